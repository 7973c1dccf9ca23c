"""From EMA weights to images, block by block: image k is a function of (weights, sampling settings, k) and of nothing else.

Sampling runs in blocks of a fixed number of rows. A block is a function of its number: it is always sampled whole, with the
labels and the noise that its rows would have in a larger set, so neither the number of images nor the number of devices
changes an image (under dopri5, whose rows share their steps, an image depends on its block and on no more).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ltbench import seeds, vaes
from ltbench.datasets import Dataset
from ltbench.diffusion import process_for
from ltbench.execution import PLAIN, Execution
from ltbench.latents.codec import CompiledDecoder, Decode, load_codec
from ltbench.networks import Network, build_network
from ltbench.noise import initial_noise, noise_ahead
from ltbench.noise import step_noise as step_noise
from ltbench.places import send
from ltbench.protocols import NOISY, OPTIONS
from ltbench.sampling import Forward, Fresh, multiplying, sample


@dataclass(frozen=True)
class Block:
    """Images `first` .. `first + block` of a sampling. images: (block, C, H, W) float32 in [-1, 1] on the sampling device,
    before any rounding. labels: (block,) int64. nfe: network rows per image, as counted."""

    number: int
    images: Tensor
    labels: np.ndarray
    nfe: int


def shape_of(settings: Mapping[str, Any], data: Dataset) -> tuple[int, int, int]:
    """(C, H, W) of what the network of a cell works on: pixels, or the latents that its data set names."""
    return vaes.network_shape(settings.get("dataset", {}), data.channels, data.resolution)


def decoder_of(
    settings: Mapping[str, Any],
    device: torch.device,
    execution: Execution = PLAIN,
    notice: Callable[[str], None] = lambda message: None,
) -> Decode | None:
    """What turns a cell's latents into images; None where it works on pixels. notice: hears where it is not executed so."""
    name = vaes.named(settings.get("dataset", {}))
    if name is None:
        return None
    codec = load_codec(name, device)
    return CompiledDecoder(codec, notice) if execution.compiled else codec.decode


def build_sampler(
    settings: Mapping[str, Any], data: Dataset, weights: Mapping[str, Tensor], device: torch.device
) -> Network:
    """The network of a cell with EMA weights, in eval mode: dropout is off while sampling."""
    channels, resolution, _ = shape_of(settings, data)
    network = build_network(
        settings["network"],
        channels=channels,
        resolution=resolution,
        classes=len(data.classes),
        dropout=settings["train"]["dropout"],
        augmented=settings["train"].get("augment", "none") != "none",
    )
    network.load_state_dict(dict(weights))
    return network.to(device).eval()


def labels_of(
    numbers: Sequence[int] | np.ndarray, evaluation: Mapping[str, Any], ids: Sequence[int], null: int
) -> np.ndarray:
    """(n,) int64 labels of images `numbers`, of the classes `ids` (sorted).

    `labels: balanced` gives image k class ids[k mod len(ids)], so every class has the same number up to one; `uniform` draws
    independently, keyed by (sampling seed, k), as the released samplers do; None is the null label, unconditional sampling.
    """
    k = np.asarray(numbers, dtype=np.int64)
    policy = evaluation["labels"]
    if policy is None:
        return np.full(len(k), null, dtype=np.int64)
    chosen = np.asarray(ids, dtype=np.int64)
    if policy == "balanced":
        return chosen[k % len(chosen)]
    if policy == "uniform":
        return chosen[(_uniform(int(evaluation["seed"]), k) * len(chosen)).astype(np.int64)]
    raise ValueError(f"labels are balanced, uniform or null, not {policy!r}")


def _uniform(seed: int, k: np.ndarray) -> np.ndarray:
    """(n,) float64 in [0, 1), a function of (seed, k): streams of 1,024 numbers, since one stream per label costs too much."""
    pages, rows = np.divmod(k, 1024)
    known, place = np.unique(pages, return_inverse=True)
    drawn = [seeds.stream(seed, "sampling-labels", int(page)).random(1024) for page in known]
    return np.stack(drawn)[place, rows] if drawn else np.empty(0)


def blocks(
    network: Network,
    pipeline: str,
    evaluation: Mapping[str, Any],
    ids: Sequence[int],
    shape: tuple[int, int, int],
    device: torch.device,
    wanted: Iterable[int],
    decode: Decode | None = None,
    forward: Forward | None = None,
) -> Iterator[Block]:
    """The blocks with the numbers `wanted`, one after another. shape: (C, H, W) of what the network makes. ids: classes that are
    sampled. decode: from there to images, where the network makes latents. forward: how the network is called, by default plainly
    in the precision that the evaluation names."""
    block = int(evaluation["block"])
    forward = forward or Forward(network, evaluation.get("precision"))
    for number in wanted:
        rows = np.arange(number * block, (number + 1) * block)
        labels = labels_of(rows, evaluation, ids, network.null_label)
        before = forward.rows
        with _fresh(evaluation, rows, shape, device) as fresh, multiplying(forward.precision):
            images = sample(
                network,
                process_for(pipeline),
                sampler=evaluation["sampler"],
                steps=evaluation["steps"],
                guidance=float(evaluation["guidance"]),
                noise=send(initial_noise(int(evaluation["seed"]), rows, shape), device),
                labels=send(torch.from_numpy(labels), device),
                null=network.null_label,
                fresh=fresh,
                schedule=evaluation.get("schedule"),
                guidance_channels=evaluation.get("guidance_channels"),
                options={key: evaluation[key] for key in OPTIONS.get(evaluation["sampler"], {})},
                forward=forward,
            )
            images = images if decode is None else decode(images)
        yield Block(number, images, labels, (forward.rows - before) // block)


def _fresh(
    evaluation: Mapping[str, Any], rows: np.ndarray, shape: tuple[int, int, int], device: torch.device
) -> AbstractContextManager[Fresh | None]:
    """The noise of the steps of images `rows`, for a sampler that takes some."""
    if evaluation["sampler"] not in NOISY:
        return nullcontext()
    return noise_ahead(int(evaluation["seed"]), rows, shape, device)


def to_uint8(images: Tensor, rule: str = "round") -> Tensor:
    """(B, C, H, W) float in [-1, 1] -> uint8 on the same device.

    `round` goes to the nearest level, ties to even: SiT's clamp(127.5 x + 128) cut to a byte, up to ties. `floor` cuts, half
    a level darker: REPA's 255 (x + 1) / 2 and CCUA-DDPM's mul(255).byte(). Raises KeyError for another rule.
    """
    levels = (images * 127.5 + 127.5).clamp(0, 255)
    return {"round": torch.round, "floor": torch.floor}[rule](levels).to(torch.uint8)


def quantised(images: Tensor, rule: str) -> Tensor:
    """What an extractor sees: uint8 by the protocol's rule, or with rule `none` float32 in [0, 1] as CBDM and OCLT feed it."""
    return ((images + 1) / 2).clamp(0, 1) if rule == "none" else to_uint8(images, rule)
