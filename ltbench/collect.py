"""One network pass over generated images: sampler -> rounding -> extractor -> features on disk, block by block.

Whatever is measured later (metrics, groups, classes, folds) comes from these features; no image is touched twice. Features
are kept in shards of whole blocks, so that a killed evaluation goes on where it was, several processes can share one, and a
small sample of a guidance search is the beginning of the large one.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ltbench.canonical import digest
from ltbench.generate import Block, labels_of, quantised
from ltbench.places import send
from ltbench.shards import Arrays, Shards

SHARD_IMAGES = 1000  # images per file, rounded down to whole blocks
# Work that a kill may cost: finished blocks of an unfinished shard are written this often, and more rarely where writing takes
# longer than a tenth of a second, so that a GPU waits for a slow disk for a twentieth of the time at most.
KEEP_SECONDS = 2.0
TILE_COLUMNS = 8  # images per class kept with a record
TILE_CLASSES = 12  # classes shown; with more, the first and the last half
# What of an evaluation decides no image. Everything else does, so that a new key makes new images rather than wrong ones.
NOT_SAMPLING = {
    "id",
    "protocol",
    "samples",
    "extractor",
    "reference",
    "crop",
    "metrics",
    "estimators",
    "groups",
    "quantise",
    "precision",  # `Sampling` has the one that it comes to
}


class Preempted(Exception):
    """A stop was asked for; every finished block is on disk."""


class Features(Protocol):
    """What a feature extractor offers here."""

    @property
    def identity(self) -> dict[str, str]: ...
    def features(self, images: Tensor) -> dict[str, Tensor]: ...


@dataclass(frozen=True)
class Sampling:
    """Everything that decides generated images. milestone: sha256 of the EMA weights. ids: classes that are sampled, sorted.
    null: the null label. precision: of the network (protocols.sampled_in). code: digests of the code that samples."""

    evaluation: Mapping[str, Any]
    milestone: str
    pipeline: str
    network: str
    ids: Sequence[int]
    null: int
    shape: tuple[int, int, int]
    precision: str
    code: Mapping[str, str]

    @property
    def block(self) -> int:
        return int(self.evaluation["block"])

    def key(self) -> str:
        """20 hex digits. The number of images is not in it: a larger sample begins with the smaller one."""
        settings = {key: value for key, value in self.evaluation.items() if key not in NOT_SAMPLING}
        content = {
            "milestone": self.milestone,
            "pipeline": self.pipeline,
            "network": self.network,
            "classes": list(self.ids),
            "shape": list(self.shape),
            "precision": self.precision,
            "code": dict(self.code),
        }
        return digest({**content, "sampling": settings})[:20]

    def features_key(self, extractor: Mapping[str, str], code: str) -> str:
        """20 hex digits of the images, their rounding, and the extractor with its weights and code."""
        seen = {"quantise": self.evaluation["quantise"], "extractor": dict(extractor), "code": code}
        return digest({"images": self.key(), **seen})[:20]

    def images_key(self) -> str:
        """20 hex digits of the images and their rounding."""
        return digest({"images": self.key(), "quantise": self.evaluation["quantise"]})[:20]

    def labels(self, count: int) -> np.ndarray:
        """(count,) int64."""
        return labels_of(np.arange(count), self.evaluation, self.ids, self.null)

    def shown(self, numbers: np.ndarray) -> np.ndarray:
        """(n,) bool: which of these images are kept for figures, the first of each shown class (of all, without labels)."""
        if self.evaluation["labels"] is None:
            return numbers < TILE_COLUMNS * TILE_CLASSES
        labels = self.labels(int(numbers[-1]) + 1)
        rank = np.zeros(len(labels), dtype=np.int64)
        for c in shown_classes(self.ids):
            own = labels == c
            rank[own] = np.arange(1, own.sum() + 1)
        return (rank[numbers] > 0) & (rank[numbers] <= TILE_COLUMNS)


@dataclass(frozen=True)
class Collected:
    """Features of n images. arrays: pool (n, D) float32 and what else the extractor gives. nfe: network rows per image, by
    block. shown: (m, C, H, W) uint8 images for figures, `shown_numbers` (m,) which ones they are."""

    arrays: Arrays
    labels: np.ndarray
    nfe: list[int]
    shown: np.ndarray
    shown_numbers: np.ndarray


@dataclass(frozen=True)
class Seen:
    """A block as an extractor sees it. images: (block, C, H, W) uint8, or float32 in [0, 1] under the rule `none`."""

    number: int
    images: Tensor
    nfe: int


@dataclass
class Collector:
    """Makes or finds the features of one sampling.

    make: samples the blocks of these numbers. features, samples: where features and, if `keep_samples`, images are kept.
    stop: asked between blocks. progress: hears the number of images done.
    """

    sampling: Sampling
    extractor: Features
    extractor_code: str
    make: Callable[[Iterable[int]], Iterator[Block]]
    features: Shards
    samples: Shards
    keep_samples: bool = False
    stop: Callable[[], bool] = field(default=lambda: False)
    progress: Callable[[int], None] = field(default=lambda done: None)

    def __post_init__(self) -> None:
        self._key = self.sampling.features_key(self.extractor.identity, self.extractor_code)
        self._images_key = self.sampling.images_key()
        self._per_shard = max(1, SHARD_IMAGES // self.sampling.block)
        self._marked = np.zeros(0, dtype=bool)  # which of the first images are kept for figures

    def collect(self, count: int) -> Collected:
        """All features of images 0 .. count - 1. Raises Preempted between two blocks."""
        shards = [self._shard(number, needed, count) for number, needed in self._wanted(count)]
        # each kind of array is let go before the next is joined: there are never two copies of all
        arrays = {name: np.concatenate([shard.pop(name) for shard in shards]) for name in list(shards[0])}
        nfe = [int(n) for n in arrays.pop("nfe")]
        shown, numbers = arrays.pop("shown"), arrays.pop("shown_numbers")
        inside = numbers < count
        trimmed = {name: array[:count] for name, array in arrays.items()}
        return Collected(trimmed, self.sampling.labels(count), nfe, shown[inside], numbers[inside])

    def part(self, count: int, part: int, parts: int) -> None:
        """Make the shards whose number is `part` modulo `parts`, for whoever collects them. Raises Preempted."""
        for number, needed in self._wanted(count):
            if number % parts == part:
                self._shard(number, needed, count)

    def _wanted(self, count: int) -> list[tuple[int, int]]:
        """(shard, blocks that it must have) for `count` images."""
        total, each = -(-count // self.sampling.block), self._per_shard
        return [(first // each, min(each, total - first)) for first in range(0, total, each)]

    def _shard(self, number: int, needed: int, count: int) -> Arrays:
        """Its first `needed` blocks: read, or what is there with the missing blocks behind it."""
        have, arrays = _longest(self.features, self._key, number, needed)
        if arrays is None or have < needed:
            arrays = self._extend(number, have, arrays, needed)
        self.progress(min(count, (number * self._per_shard + needed) * self.sampling.block))
        return self._cut(arrays, number, needed)

    def _cut(self, arrays: Arrays, number: int, blocks: int) -> Arrays:
        """The part that belongs to the first `blocks` blocks of a shard."""
        rows = blocks * self.sampling.block
        inside = arrays["shown_numbers"] < number * self._per_shard * self.sampling.block + rows
        special = {
            "nfe": arrays["nfe"][:blocks],
            "shown": arrays["shown"][inside],
            "shown_numbers": arrays["shown_numbers"][inside],
        }
        return {name: special.get(name, array[:rows]) for name, array in arrays.items()}

    def _extend(self, number: int, have: int, arrays: Arrays | None, needed: int) -> Arrays:
        """A shard with `needed` blocks, written. A stop or an error keeps the blocks that are finished, a kill all but the last
        `KEEP_SECONDS` of work."""
        parts = [] if arrays is None else [arrays]
        done, kept, kept_at, wait = have, have, time.monotonic(), KEEP_SECONDS
        try:
            with closing(self._seen(number, have, needed)) as blocks:
                for seen in blocks:
                    parts.append(self._one(seen))
                    done += 1
                    self.progress((seen.number + 1) * self.sampling.block)
                    if done < needed and (begun := time.monotonic()) - kept_at >= wait:
                        parts = [_joined(parts)]
                        _put(self.features, self._key, number, done, parts[0])
                        kept, kept_at = done, time.monotonic()
                        wait = KEEP_SECONDS * max(1.0, 10 * (kept_at - begun))
                    if done < needed and self.stop():
                        raise Preempted
        finally:
            joined = _joined(parts)
            if done > kept:
                _put(self.features, self._key, number, done, joined)
        return joined

    def _seen(self, number: int, have: int, needed: int) -> Generator[Seen]:
        """Blocks `have` .. `needed` - 1 of a shard: kept images where there are any, else freshly sampled ones."""
        first, size, rule = (
            number * self._per_shard,
            self.sampling.block,
            self.sampling.evaluation["quantise"],
        )
        kept, images = _longest(self.samples, self._images_key, number, needed)
        fresh: list[Seen] = []
        for i in range(have, min(kept, needed)):
            assert images is not None, "no block without images"
            rows = torch.from_numpy(images["images"][i * size : (i + 1) * size])
            yield Seen(first + i, rows, int(images["nfe"][i]))
        try:
            for block in self.make(range(first + max(have, min(kept, needed)), first + needed)):
                fresh.append(Seen(block.number, quantised(block.images, rule), block.nfe))
                yield fresh[-1]
        finally:
            # Kept images have no gap: what came before these blocks must be there too.
            if self.keep_samples and fresh and fresh[0].number - first == kept:
                self._keep(number, images, fresh)

    def _keep(self, number: int, before: Arrays | None, fresh: Sequence[Seen]) -> None:
        new = {
            "images": torch.cat([seen.images for seen in fresh]).cpu().numpy(),
            "nfe": np.array([seen.nfe for seen in fresh], dtype=np.int64),
        }
        joined = new if before is None else {k: np.concatenate([before[k], v]) for k, v in new.items()}
        _put(self.samples, self._images_key, number, len(joined["nfe"]), joined)

    def _one(self, seen: Seen) -> Arrays:
        """What is kept of one block. The extractor sees whole blocks, so that its batches are always the same."""
        found = self.extractor.features(seen.images)
        numbers = seen.number * self.sampling.block + np.arange(self.sampling.block)
        picked = self._shown(numbers)
        # by places, for which a GPU is not asked how many there are
        tiles = seen.images[send(torch.from_numpy(np.flatnonzero(picked)), seen.images.device)].cpu()
        if tiles.dtype != torch.uint8:
            tiles = (tiles * 255).round().to(torch.uint8)
        return {
            **{name: value.float().cpu().numpy() for name, value in found.items()},
            "nfe": np.array([seen.nfe], dtype=np.int64),
            "shown": tiles.numpy(),
            "shown_numbers": numbers[picked],
        }

    def _shown(self, numbers: np.ndarray) -> np.ndarray:
        """(n,) bool as `Sampling.shown`, which looks at all images before these: asked for twice as many each time."""
        last = int(numbers[-1])
        if last >= len(self._marked):
            self._marked = self.sampling.shown(np.arange(2 * (last + 1)))
        return self._marked[numbers]


def _joined(parts: Sequence[Arrays]) -> Arrays:
    if len(parts) < 2:
        return parts[0] if parts else {}
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def _longest(place: Shards, key: str, number: int, needed: int) -> tuple[int, Arrays | None]:
    """(blocks, arrays) of the file of a shard to use: the shortest that suffices, else the longest that is sound."""
    sizes = _sizes(place, key, number)
    for blocks in [n for n in sizes if n >= needed] + [n for n in reversed(sizes) if n < needed]:
        arrays = place.read(key, f"shard-{number:06d}-{blocks:04d}")
        if arrays is not None:
            return blocks, arrays
    return 0, None


def _put(place: Shards, key: str, number: int, blocks: int, arrays: Arrays) -> None:
    """Keep a shard of so many blocks, and only then let the shorter files go that it contains."""
    place.write(key, f"shard-{number:06d}-{blocks:04d}", arrays)
    for shorter in _sizes(place, key, number):
        if shorter < blocks:
            place.remove(key, f"shard-{number:06d}-{shorter:04d}")


def _sizes(place: Shards, key: str, number: int) -> list[int]:
    prefix = f"shard-{number:06d}-"
    return sorted(int(name.removeprefix(prefix)) for name in place.names(key) if name.startswith(prefix))


def shown_classes(ids: Sequence[int]) -> list[int]:
    """Classes whose images are kept for figures: all of `ids`, or the first and last `TILE_CLASSES` / 2."""
    if len(ids) <= TILE_CLASSES:
        return list(ids)
    half = TILE_CLASSES // 2
    return [*ids[:half], *ids[-half:]]
