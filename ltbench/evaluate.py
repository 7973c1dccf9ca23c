"""From a milestone to a record: sampler -> images -> features -> metrics for every group, in one pass over the images."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ltbench import seeds
from ltbench.canonical import canonical_json
from ltbench.datasets import Dataset
from ltbench.diffusion import process_for
from ltbench.metrics.catalogue import DEFAULT, Estimators
from ltbench.metrics.extractor import Extractor, load_extractor
from ltbench.metrics.measure import ALL, measure
from ltbench.metrics.sets import FeatureSet, interleaved
from ltbench.networks import Network, build_network
from ltbench.protocols import NOISY, OPTIONS
from ltbench.sampling import Fresh, count_rows, sample

TILE_COLUMNS = 8  # images per class kept with a record
TILE_CLASSES = 12  # classes shown; with more, the first and the last half


@dataclass(frozen=True)
class Tiles:
    """Images for figures. images: (R, C, ch, H, W) uint8. rows: class ids. columns: index of each image within its class.

    Without classes every row is None, and the images stand in reading order.
    """

    images: np.ndarray
    rows: list[int] | list[None]
    columns: list[int]


@dataclass(frozen=True)
class Generated:
    """images: (n, C, H, W) uint8. nfe: network rows that each block spent per image, as counted while it was sampled."""

    images: np.ndarray
    nfe: list[int]


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
) -> Generated:
    """n images, image k from label k and noise keyed by (sampling seed, k), the noise of a sampler's steps included.

    Sampling runs in blocks of `evaluation["block"]` rows, the last one padded, so an image depends on neither the number
    of images nor the number of devices (under dopri5, whose rows share their steps, it depends on its block). Values are rounded to
    the nearest of 256 levels.
    """
    block, count, seed = int(evaluation["block"]), len(labels), int(evaluation["seed"])
    process, parts, spent = process_for(pipeline), [], []
    for first in range(0, count, block):
        numbers = np.arange(first, first + block)
        padded = torch.from_numpy(labels[np.minimum(numbers, count - 1)]).to(device)
        with count_rows(network) as counted:
            images = sample(
                network,
                process,
                sampler=evaluation["sampler"],
                steps=evaluation["steps"],
                guidance=float(evaluation["guidance"]),
                noise=initial_noise(seed, numbers, shape).to(device),
                labels=padded,
                null=network.classes,
                fresh=step_noise(seed, numbers, shape, device) if evaluation["sampler"] in NOISY else None,
                schedule=evaluation.get("schedule"),
                guidance_channels=evaluation.get("guidance_channels"),
                options={key: evaluation[key] for key in OPTIONS.get(evaluation["sampler"], {})},
            )
        parts.append(to_uint8(images, evaluation["quantise"])[: count - first])
        spent.append(counted.rows // block)
        progress(min(first + block, count))
    return Generated(np.concatenate(parts), spent)


def initial_noise(seed: int, numbers: Sequence[int] | np.ndarray, shape: tuple[int, int, int]) -> Tensor:
    """(n, C, H, W) float32: the starting noise of images `numbers`, each from its own stream."""
    rows = [seeds.stream(seed, "sampling-noise", int(k)).standard_normal(shape, np.float32) for k in numbers]
    return torch.from_numpy(np.stack(rows))


def step_noise(
    seed: int, numbers: Sequence[int] | np.ndarray, shape: tuple[int, int, int], device: torch.device
) -> Fresh:
    """Draws (n, C, H, W) float32 at every call: the noise of the next step of images `numbers`, each from its own stream."""
    streams = [seeds.stream(seed, "sampling-steps", int(k)) for k in numbers]

    def fresh() -> Tensor:
        rows = [stream.standard_normal(shape, np.float32) for stream in streams]
        return torch.from_numpy(np.stack(rows)).to(device)

    return fresh


QUANTISE = {
    "round": torch.round
}  # a protocol's rule: to the nearest level, ties to even; SiT's clamp(127.5 x + 128) up to ties


def to_uint8(images: Tensor, rule: str = "round") -> np.ndarray:
    """(B, C, H, W) float in [-1, 1] -> uint8 on the host. Raises KeyError for a rule that `QUANTISE` does not have."""
    levels = (images * 127.5 + 127.5).clamp(0, 255)
    return QUANTISE[rule](levels).to(torch.uint8).cpu().numpy()


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
    count, classes = int(evaluation["samples"]), len(data.classes)
    conditional = evaluation["labels"] is not None
    labels = balanced_labels(count, classes) if conditional else np.full(count, network.classes)
    shape = (data.channels, data.resolution, data.resolution)
    made = generate(network, settings["pipeline"], evaluation, labels, shape, device, progress)
    measured = _measure(
        _features(extractor, made.images, labels),
        conditional,
        _real_features(canonical_json(settings["dataset"]), data, extractor),
        groups,
        f"{extractor.name}@{extractor.sha256}",
    )
    shown, real = shown_classes(classes), data.reference()
    samples = tiles(made.images, labels, shown) if conditional else unlabelled_tiles(made.images)
    return Evaluated({**_cost(made.nfe), **measured}, samples, tiles(real.images, real.labels, shown))


def _measure(
    gen: FeatureSet,
    conditional: bool,
    real: tuple[FeatureSet, FeatureSet],
    groups: Mapping[str, list[int]],
    extractor_name: str,
) -> dict[str, Any]:
    """Rows and per-class arrays. Without labels there is one group, `all`, and nothing per class."""
    if conditional:
        return measure(gen, *real, groups, DEFAULT, extractor_name, Estimators())
    ref, holdout = real
    ordered = holdout.take(
        interleaved(holdout.labels)
    )  # its first n images, the floor, have all classes alike
    one = [replace(part, labels=np.zeros(len(part), np.int64)) for part in (gen, ref, ordered)]
    found = measure(one[0], one[1], one[2], {ALL: [0]}, DEFAULT, extractor_name, Estimators())
    nothing = {key: type(value)() for key, value in found["per_class"].items()}
    return {"rows": found["rows"], "per_class": nothing}


def _cost(spent: Sequence[int]) -> dict[str, Any]:
    """`nfe`: network rows per image, the mean where blocks differ (dopri5), which then has its range beside it."""
    if len(set(spent)) == 1:
        return {"nfe": spent[0]}
    return {"nfe": sum(spent) / len(spent), "nfe_range": [min(spent), max(spent)]}


def _features(extractor: Extractor, images: np.ndarray, labels: np.ndarray) -> FeatureSet:
    found = {key: part.numpy() for key, part in extractor.features(torch.from_numpy(images)).items()}
    return FeatureSet(labels=labels, **found)


Real = tuple[FeatureSet, FeatureSet]
_REAL: dict[tuple[bytes, str], Real] = {}  # by (data set settings, extractor's sha256)


def _real_features(key: bytes, data: Dataset, extractor: Extractor) -> Real:
    """Features of the reference and of the holdout; once per process, data set and extractor."""
    known = _REAL.get((key, extractor.sha256))
    if known is None:
        ref, holdout = data.reference(), data.holdout()
        known = (
            _features(extractor, ref.images, ref.labels),
            _features(extractor, holdout.images, holdout.labels),
        )
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


def unlabelled_tiles(images: np.ndarray) -> Tiles:
    """The first images in reading order, `TILE_COLUMNS` a row and `TILE_CLASSES` rows at most."""
    columns = min(TILE_COLUMNS, len(images))
    rows = min(TILE_CLASSES, len(images) // columns)
    shown = images[: rows * columns].reshape(rows, columns, *images.shape[1:])
    return Tiles(shown, [None] * rows, list(range(columns)))
