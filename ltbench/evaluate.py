"""From a milestone to a record: sampler -> images -> features -> metrics for every group, in one pass over the images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ltbench import seeds
from ltbench.canonical import canonical_json
from ltbench.datasets import Dataset
from ltbench.diffusion import process_for
from ltbench.metrics.extractor import Extractor, load_extractor
from ltbench.metrics.features import evaluate_features
from ltbench.networks import Network, build_network
from ltbench.sampling import nfe, sample

TILE_COLUMNS = 8  # images per class kept with a record
TILE_CLASSES = 12  # classes shown; with more, the first and the last half


@dataclass(frozen=True)
class Tiles:
    """Images for figures. images: (R, C, ch, H, W) uint8. rows: class ids. columns: index of each image within its class."""

    images: np.ndarray
    rows: list[int]
    columns: list[int]


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation measured. `body` is the part of the record body that it fills."""

    body: dict[str, Any]
    samples: Tiles
    reference: Tiles


def build_sampler(
    settings: Mapping[str, Any], data: Dataset, weights: Mapping[str, Tensor], device: torch.device
) -> Network:
    """The network of a cell with EMA weights, in eval mode."""
    network = build_network(
        settings["network"],
        channels=data.channels,
        resolution=data.resolution,
        classes=len(data.classes),
        dropout=settings["train"]["dropout"],
    )
    network.load_state_dict(dict(weights))
    return network.to(device).eval()


def generate(
    network: Network,
    pipeline: str,
    evaluation: Mapping[str, Any],
    labels: np.ndarray,
    shape: tuple[int, int, int],
    device: torch.device,
    progress: Callable[[int], None] = lambda done: None,
) -> np.ndarray:
    """(n, C, H, W) uint8 images, image k from label k and noise keyed by (sampling seed, k).

    Sampling runs in blocks of `evaluation["block"]` rows, the last one padded, so an image depends on neither the number
    of images nor the number of devices. Values are rounded to the nearest of 256 levels.
    """
    block, count, null = int(evaluation["block"]), len(labels), network.classes
    process, parts = process_for(pipeline), []
    for first in range(0, count, block):
        numbers = np.arange(first, first + block)
        noise = initial_noise(int(evaluation["seed"]), numbers, shape).to(device)
        padded = torch.from_numpy(labels[np.minimum(numbers, count - 1)]).to(device)
        images = sample(
            network,
            process,
            sampler=evaluation["sampler"],
            steps=int(evaluation["steps"]),
            guidance=float(evaluation["guidance"]),
            noise=noise,
            labels=padded,
            null=null,
        )
        parts.append(to_uint8(images)[: count - first])
        progress(min(first + block, count))
    return np.concatenate(parts)


def initial_noise(seed: int, numbers: Sequence[int] | np.ndarray, shape: tuple[int, int, int]) -> Tensor:
    """(n, C, H, W) float32: the starting noise of images `numbers`, each from its own stream."""
    rows = [seeds.stream(seed, "sampling-noise", int(k)).standard_normal(shape, np.float32) for k in numbers]
    return torch.from_numpy(np.stack(rows))


def to_uint8(images: Tensor) -> np.ndarray:
    """(B, C, H, W) float in [-1, 1] -> uint8 on the host, rounded half to even, as SiT's clamp(127.5 x + 128) does up to ties."""
    return (images * 127.5 + 127.5).clamp(0, 255).round().to(torch.uint8).cpu().numpy()


def balanced_labels(count: int, classes: int) -> np.ndarray:
    """(count,) int64: image k has class k mod K, so every class has the same number up to one."""
    return np.arange(count, dtype=np.int64) % classes


def evaluate(
    settings: Mapping[str, Any],
    evaluation: Mapping[str, Any],
    weights: Mapping[str, Tensor],
    data: Dataset,
    groups: Mapping[str, list[int]],
    device: torch.device,
    progress: Callable[[int], None] = lambda done: None,
) -> Evaluated:
    """Sample from the weights and measure. Raises ValueError when the extractor's weights are not those the evaluation names."""
    extractor = load_extractor(evaluation["extractor"]["name"]).to(device)
    if extractor.sha256 != evaluation["extractor"]["sha256"]:
        raise ValueError(
            f"extractor {extractor.name} has weights {extractor.sha256[:12]}, the evaluation was planned with "
            f"{evaluation['extractor']['sha256'][:12]}: plan again"
        )
    network = build_sampler(settings, data, weights, device)
    labels = balanced_labels(int(evaluation["samples"]), len(data.classes))
    shape = (data.channels, data.resolution, data.resolution)
    images = generate(network, settings["pipeline"], evaluation, labels, shape, device, progress)
    real, spare = _real_features(canonical_json(settings["dataset"]), data, extractor)
    measured = evaluate_features(
        gen=_features(extractor, images),
        gen_labels=labels,
        ref=real[0],
        ref_labels=real[1],
        holdout=spare[0],
        holdout_labels=spare[1],
        groups=dict(groups),
        extractor_name=f"{extractor.name}@{extractor.sha256}",
    )
    body = {
        "nfe": nfe(evaluation["sampler"], int(evaluation["steps"]), float(evaluation["guidance"])),
        **measured,
    }
    shown = shown_classes(len(data.classes))
    return Evaluated(
        body, tiles(images, labels, shown), tiles(data.reference().images, data.reference().labels, shown)
    )


def _features(extractor: Extractor, images: np.ndarray) -> np.ndarray:
    return extractor.features(torch.from_numpy(images))["pool"].double().cpu().numpy()


_REAL: dict[tuple[bytes, str], Any] = {}  # features of real images by (data set settings, extractor's sha256)


def _real_features(key: bytes, data: Dataset, extractor: Extractor) -> Any:
    """((features, labels) of the reference, of the holdout); once per process, data set and extractor."""
    known = _REAL.get((key, extractor.sha256))
    if known is None:
        sets = (data.reference(), data.holdout())
        known = tuple((_features(extractor, one.images), one.labels) for one in sets)
        _REAL.clear()  # one benchmark has one data set: an older one would only hold memory
        _REAL[key, extractor.sha256] = known
    return known


def shown_classes(classes: int) -> list[int]:
    """Class ids whose images are kept for figures: all, or the first and last `TILE_CLASSES` / 2."""
    if classes <= TILE_CLASSES:
        return list(range(classes))
    half = TILE_CLASSES // 2
    return [*range(half), *range(classes - half, classes)]


def tiles(images: np.ndarray, labels: np.ndarray, classes: Sequence[int]) -> Tiles:
    """The first images of each class, as many as every class has, `TILE_COLUMNS` at most."""
    columns = min(TILE_COLUMNS, *(int((labels == c).sum()) for c in classes))
    rows = [images[np.flatnonzero(labels == c)[:columns]] for c in classes]
    return Tiles(np.stack(rows), list(classes), list(range(columns)))
