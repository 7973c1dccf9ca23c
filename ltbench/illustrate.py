"""What figures show of a milestone and a table does not hold: samples of some classes, their nearest images, the features behind a
map, and the reverse process. Everything is a function of (weights, sampling seed, image number) and small enough to be kept.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ltbench.collect import Collector
from ltbench.datasets import Dataset, Images
from ltbench.diffusion import process_for
from ltbench.embedding import embed
from ltbench.evaluate import Bench, Milestone, Tiles, collector_of, planned_extractor, references, tiles
from ltbench.execution import executed
from ltbench.generate import Block, build_sampler, decoder_of, initial_noise, quantised, shape_of, step_noise
from ltbench.protocols import NOISY, OF_TRAINING, OPTIONS, sampled_in
from ltbench.reals import real_features
from ltbench.sampling import Forward, evaluating, multiplying, sample

GENERATED = 3  # images of a class whose nearest training images are looked for
ANCHORS = 2  # training images of a class whose nearest generated images are looked for
MAP_REALS, MAP_TRAIN = 300, 100  # images of a class on its map, at most
MAP_WIDTH = 64  # numbers per image that the map keeps
FRAMES = 8  # of the reverse process, the result included


@dataclass(frozen=True)
class Nearest:
    """Images and the k nearest of another set. tiles: a row per image, itself first. of: (R,) its number in its own set;
    indices, distances: (R, k) of the others, nearest first; labels: (R, k) their classes."""

    tiles: Tiles
    of: list[int]
    indices: np.ndarray
    distances: np.ndarray
    labels: np.ndarray


@dataclass(frozen=True)
class FeatureMap:
    """Features of one class for a map. features: (n, D) float16 in units of the real images' spread, at most MAP_WIDTH wide;
    points: (n, 2) float32, their t-SNE; kinds: (n,) int8: 0 real, 1 training, 2 generated."""

    features: np.ndarray
    points: np.ndarray
    kinds: np.ndarray


@dataclass(frozen=True)
class Reverse:
    """The reverse process from one noise. frames: (R, F, C, H, W) float32, row by row without a label and for each class;
    levels: (F,) noise level of each frame, the last is 0 and holds the result."""

    frames: np.ndarray
    levels: list[float]
    classes: list[int | None]


@dataclass(frozen=True)
class Illustrated:
    """Everything of one milestone. maps by class id; a class without training images has no `nearest` row of theirs."""

    samples: Tiles
    reference: Tiles
    of_generated: Nearest | None
    of_training: Nearest | None
    maps: dict[int, FeatureMap]
    reverse: Reverse


def illustrate(
    settings: Mapping[str, Any],
    evaluation: Mapping[str, Any],
    milestone: Milestone,
    data: Dataset,
    bench: Bench,
) -> Illustrated:
    """Sample the classes of `evaluation["illustrate"]`, unless their features are there, and look at them beside the real images.

    Raises collect.Preempted after a stop; what was finished is on disk.
    """
    how, count = evaluation["illustrate"], int(evaluation["samples"])
    ids, k = list(how["classes"]), int(how["neighbours"])
    extractor = planned_extractor(evaluation, bench.device)
    bench.ran(
        executed(compiled=False, graphs=False)
    )  # as the reverse process is; sampling may tell otherwise
    collector = collector_of(settings, evaluation, milestone, data, extractor, bench)
    kept = _Kept(collector)
    made = replace(collector, make=kept.make).collect(count)
    squared = data.squared(evaluation["crop"])
    asked = {**evaluation, "metrics": list(OF_TRAINING)}
    real = real_features(
        squared, settings, asked, extractor, references(bench), without=("holdout",), stop=bench.stop
    )
    train, reference = squared.train(), squared.reference()
    pools = made.arrays["pool"], real["train"]["pool"], real["reference"]["pool"]
    numbers = {c: np.flatnonzero(made.labels == c) for c in ids}
    return Illustrated(
        samples=tiles(made.shown, made.labels[made.shown_numbers], ids),
        reference=tiles(reference.images, reference.labels, ids),
        of_generated=_of_generated(numbers, pools, train, kept, k),
        of_training=_of_training(numbers, pools, train, kept, k),
        maps={c: feature_map(*_sets(c, numbers, pools, train, reference)) for c in ids},
        reverse=_reverse_of(settings, evaluation, milestone, data, bench),
    )


# --- images that were made -------------------------------------------------------------------------------------------


class _Kept:
    """Images by number: those that passed by while features were made, and the others made again, block by block."""

    def __init__(self, collector: Collector) -> None:
        self._make, self._block = collector.make, collector.sampling.block
        rule = collector.sampling.evaluation["quantise"]
        self._rule = "round" if rule == "none" else rule
        self._images: dict[int, np.ndarray] = {}

    def make(self, wanted: Iterable[int]) -> Iterator[Block]:
        for block in self._make(wanted):
            self._images[block.number] = quantised(block.images, self._rule).cpu().numpy()
            yield block

    def at(self, numbers: np.ndarray) -> np.ndarray:
        """(n, C, H, W) uint8."""
        blocks = numbers // self._block
        for _ in self.make(sorted({int(b) for b in blocks} - set(self._images))):
            pass
        return np.stack(
            [self._images[int(b)][int(n) % self._block] for b, n in zip(blocks, numbers, strict=True)]
        )


# --- neighbours --------------------------------------------------------------------------------------------------------


def nearest(queries: np.ndarray, pool: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
    """(indices, distances), each (Q, min(k, n)): for queries (Q, D) the nearest rows of `pool` (n, D), nearest first, of equal
    distances the lower index first. Euclidean, in float64, from the differences themselves: a copy is at exactly 0."""
    found = np.empty((len(queries), len(pool)))
    for first in range(0, len(pool), 4096):
        rows = pool[first : first + 4096].astype(np.float64)
        for q, query in enumerate(queries.astype(np.float64)):
            found[q, first : first + len(rows)] = np.sqrt(((rows - query) ** 2).sum(axis=1))
    order = np.argsort(found, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(found, order, axis=1)


Pools = tuple[np.ndarray, np.ndarray, np.ndarray]  # features of generated, training and reference images


def _of_generated(
    numbers: Mapping[int, np.ndarray], pools: Pools, train: Images, kept: _Kept, k: int
) -> Nearest | None:
    """Of the first generated images of each class the nearest training images, of whatever class."""
    of = np.concatenate([own[:GENERATED] for own in numbers.values()])
    if not len(train):
        return None
    indices, distances = nearest(pools[0][of], pools[1], k)
    beside = train.images[indices.ravel()].reshape(*indices.shape, *train.images.shape[1:])
    rows = [c for c, own in numbers.items() for _ in own[:GENERATED]]
    return _nearest(kept.at(of), beside, rows, of, indices, distances, train.labels[indices])


def _of_training(
    numbers: Mapping[int, np.ndarray], pools: Pools, train: Images, kept: _Kept, k: int
) -> Nearest | None:
    """Of the first training images of each class the nearest generated images of the class."""
    parts = []
    for c, own in numbers.items():
        anchors = np.flatnonzero(train.labels == c)[:ANCHORS]
        found, distances = nearest(pools[1][anchors], pools[0][own], k)
        parts.append((anchors, own[found], distances, [c] * len(anchors)))
    of, indices, distances = (np.concatenate([part[i] for part in parts]) for i in range(3))
    if not len(of):
        return None
    rows = [c for part in parts for c in part[3]]
    beside = kept.at(indices.ravel()).reshape(*indices.shape, *train.images.shape[1:])
    labels = np.repeat(np.array(rows)[:, None], indices.shape[1], axis=1)
    return _nearest(train.images[of], beside, rows, of, indices, distances, labels)


def _nearest(
    own: np.ndarray,
    beside: np.ndarray,
    rows: list[int],
    of: np.ndarray,
    indices: np.ndarray,
    distances: np.ndarray,
    labels: np.ndarray,
) -> Nearest:
    sheet = np.concatenate([own[:, None], beside], axis=1)
    columns = list(range(sheet.shape[1]))
    return Nearest(Tiles(sheet, rows, columns), [int(n) for n in of], indices, distances, labels)


# --- maps --------------------------------------------------------------------------------------------------------------


def _sets(
    c: int, numbers: Mapping[int, np.ndarray], pools: Pools, train: Images, reference: Images
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Features of a class's real, training and generated images, the first ones of each."""
    own = np.flatnonzero(train.labels == c)[:MAP_TRAIN]
    real = np.flatnonzero(reference.labels == c)[:MAP_REALS]
    return pools[2][real], pools[1][own], pools[0][numbers[c]]


def feature_map(real: np.ndarray, train: np.ndarray, generated: np.ndarray) -> FeatureMap:
    """A map of features (n, D) float32 of one class.

    Wide features are projected by a random matrix that is the same for every method, class and seed, which keeps distances up to
    a few percent (Johnson and Lindenstrauss); a basis fitted to some of the images would flatter these.
    """
    kinds = np.repeat(np.array([0, 1, 2], np.int8), [len(real), len(train), len(generated)])
    features = _narrow(np.concatenate([real, train, generated]))
    spread = float(np.sqrt(features[kinds == 0].var(axis=0).mean())) or 1.0
    centre = features[kinds == 0].mean(axis=0)
    small = ((features - centre) / spread).astype(np.float16)
    return FeatureMap(small, embed(small), kinds)


def _narrow(features: np.ndarray) -> np.ndarray:
    width = features.shape[1]
    if width <= MAP_WIDTH:
        return features.astype(np.float64)
    # of no training and no sampling: a constant matrix for each width, not one of the streams of ltbench.seeds
    matrix = np.random.Generator(np.random.Philox(key=width)).standard_normal((width, MAP_WIDTH))
    return features.astype(np.float64) @ (matrix / np.sqrt(MAP_WIDTH))


# --- the reverse process -----------------------------------------------------------------------------------------------


def _reverse_of(
    settings: Mapping[str, Any],
    evaluation: Mapping[str, Any],
    milestone: Milestone,
    data: Dataset,
    bench: Bench,
) -> Reverse:
    """Without a label, for the most frequent, a middle and the rarest class of the data set."""
    counts = data.counts()
    ranked = sorted(range(len(counts)), key=lambda c: (-counts[c], c))
    classes: list[int | None] = [None, ranked[0], ranked[len(ranked) // 2], ranked[-1]]
    network = build_sampler(settings, data, milestone.load(), bench.device)
    precision = sampled_in(evaluation, settings["train"].get("precision"))
    frames, levels = reverse(
        network,
        settings["pipeline"],
        evaluation,
        classes,
        len(data.classes),
        shape_of(settings, data),
        bench.device,
        precision,
    )
    decode = decoder_of(settings, bench.device)
    with multiplying(precision):
        shown = (
            frames if decode is None else torch.stack([decode(frame.to(bench.device)) for frame in frames])
        )
    return Reverse(shown.float().cpu().numpy().swapaxes(0, 1), levels, classes)


def reverse(
    network: nn.Module,
    pipeline: str,
    evaluation: Mapping[str, Any],
    classes: Sequence[int | None],
    null: int,
    shape: tuple[int, int, int],
    device: torch.device,
    precision: str | None = None,
) -> tuple[Tensor, list[float]]:
    """(frames (F, R, C, H, W), noise levels): image 0 of a sampling, for each of `classes` from the same noise at every step.

    Frames are what the network was asked about nearest to levels that are evenly spread, the last of several at one level; under
    heun and dopri5 that may be a stage of a step instead of its end. The last frame is the result.
    """
    rows, seed = [0] * len(classes), int(evaluation["seed"])
    labels = torch.tensor([null if c is None else c for c in classes], device=device)
    film = _Film([1 - i / (FRAMES - 1) for i in range(FRAMES - 1)], len(rows), pipeline)
    handle = network.register_forward_pre_hook(film.see)
    try:
        forward = Forward(network, precision or evaluation.get("precision"))
        with evaluating(network), multiplying(forward.precision):
            last = sample(
                network,
                process_for(pipeline),
                sampler=evaluation["sampler"],
                steps=evaluation["steps"],
                guidance=float(evaluation["guidance"]),
                noise=initial_noise(seed, rows, shape).to(device),
                labels=labels,
                null=null,
                fresh=step_noise(seed, rows, shape, device) if evaluation["sampler"] in NOISY else None,
                schedule=evaluation.get("schedule"),
                guidance_channels=evaluation.get("guidance_channels"),
                options={key: evaluation[key] for key in OPTIONS.get(evaluation["sampler"], {})},
                forward=forward,
            )
    finally:
        handle.remove()
    frames = film.frames()
    return torch.stack([*(x for _, x in frames), last.cpu()]), [*(level for level, _ in frames), 0.0]


class _Film:
    """Keeps what the network is asked about at the levels nearest to the wanted ones."""

    def __init__(self, wanted: Sequence[float], rows: int, pipeline: str) -> None:
        self._wanted, self._rows, self._process = wanted, rows, process_for(pipeline)
        self._best: list[tuple[float, float, Tensor] | None] = [None] * len(wanted)

    def see(self, module: nn.Module, arguments: tuple[Any, ...]) -> None:
        x, level = arguments[0], float(self._process.level(arguments[1][:1]))
        for i, wanted in enumerate(self._wanted):
            gap, best = abs(level - wanted), self._best[i]
            if best is None or gap <= best[0]:
                self._best[i] = gap, level, x[: self._rows].detach().cpu().clone()

    def frames(self) -> list[tuple[float, Tensor]]:
        """(level, (R, C, H, W)) from noise to image, each level once: a short sampler has fewer than were wanted."""
        found = {level: x for best in self._best if best is not None for _, level, x in [best]}
        return sorted(found.items(), key=lambda each: -each[0])


def shown_frames(frames: np.ndarray, limit: int) -> np.ndarray:
    """float16 frames, means of 2 x 2 pixels until they fit into `limit` bytes."""
    while 2 * frames.size > limit:
        high, wide = frames.shape[-2] // 2, frames.shape[-1] // 2
        cut = frames[..., : 2 * high, : 2 * wide].reshape(*frames.shape[:-2], high, 2, wide, 2)
        frames = cut.mean(axis=(-3, -1))
    return frames.astype(np.float16)
