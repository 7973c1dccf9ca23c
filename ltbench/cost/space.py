"""Bytes and files that a cell leaves: in the store, which is kept, and under the scratch root.

The sizes of weights are exact (`safetensors_bytes` writes the header that the library would). Records, states and pictures are
JSON and PNG, whose length depends on the numbers in them: those are estimates, meant to be right within a third.
"""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ltbench import provenance, vaes
from ltbench.canonical import canonical_json, digest
from ltbench.cost.size import Shapes
from ltbench.cost.work import (
    SHOWN_CLASSES,
    TILES,
    DataShape,
    feature_numbers,
    padded,
)
from ltbench.searching import rounds

FACT_LIMIT = 1 << 20
SHARD_IMAGES = 1000
KEPT_CHECKPOINTS = 2
POINTS = 500  # windows of a curve before they grow
MANIFEST = 400  # of a milestone; a checkpoint's names four files
NAMES = 4  # logged numbers of one loss term: itself, head, body and tail
PREVIEW_TILES = 24
CIRCUMSTANCES = 530  # envelope of a record


@dataclass(frozen=True)
class Space:
    """Bytes, and files."""

    bytes: int = 0
    files: int = 0

    def __add__(self, other: Space) -> Space:
        return Space(self.bytes + other.bytes, self.files + other.files)

    def __mul__(self, times: int) -> Space:
        return Space(self.bytes * times, self.files * times)

    def json(self) -> dict[str, int]:
        """For `--json`."""
        return {"bytes": self.bytes, "files": self.files}


NOTHING = Space()


@dataclass(frozen=True)
class Kept:
    """What one cell leaves. `own` methods have parameters beside the network's: their number. terms: names of a loss curve."""

    settings: Mapping[str, Any]
    data: DataShape
    shapes: Shapes
    own: int = 0
    terms: int = NAMES
    log_every: int = 20
    previews: int = 0

    def milestone(self) -> Space:
        """EMA weights of one milestone, kept for good."""
        state = len(canonical_json(self.settings)) + 270
        return Space(safetensors_bytes(self.shapes) + MANIFEST + state, 3)

    def checkpoint(self, step: int) -> Space:
        """One checkpoint: weights, EMA, optimiser, state. The method's own parameters lack their share of the header."""
        live = {f"network.{name}": shape for name, shape in self.shapes.items()}
        moments: Shapes = {}
        for name, shape in live.items():
            moments |= {f"{name}/exp_avg": shape, f"{name}/exp_avg_sq": shape, f"{name}/step": ()}
        weights = sum(map(safetensors_bytes, (self.shapes, live, moments))) + 3 * 4 * self.own
        state = 120 + points(step, self.log_every) * (60 + 40 * self.terms)
        return Space(weights + state + 660, 5)

    def training_record(self, step: int) -> Space:
        """Record and preview of one milestone."""
        curve = 120 + points(step, self.log_every) * (50 + 20 * self.terms)
        body = 900 + len(canonical_json(self.settings)) + 5 * self.data.classes + curve
        return Space(body + CIRCUMSTANCES + 1000, 1) + self._picture(PREVIEW_TILES)

    def evaluation_record(self, evaluation: Mapping[str, Any]) -> Space:
        """Record of one evaluation, and the picture of its samples."""
        classes, metrics = self.data.classes, len(evaluation["metrics"])
        rows = metrics * (4 if evaluation.get("classes", "all") == "all" else 1)
        body = 1800 + len(canonical_json(self.settings)) + len(canonical_json(dict(evaluation)))
        body += 450 * rows + 57 * classes * metrics + self.data.names + 20 * classes
        shown = min(SHOWN_CLASSES, classes) * min(TILES, max(1, int(evaluation["samples"]) // classes))
        kind = "illustration" if "illustrate" in evaluation else "evaluation"
        record = Space(body + CIRCUMSTANCES + _code_of(kind), 1)
        if "illustrate" in evaluation:
            return record + self._illustration(evaluation["illustrate"])
        if "search" in evaluation:  # every round is a record, and the choice
            return (
                record * len(rounds(evaluation))
                + Space(3000, 1)
                + self._picture(shown) * len(rounds(evaluation))
            )
        return record + self._picture(shown)

    def run(self, stages: int) -> Space:
        """What describes the cell and the run, and the claims and heartbeats of its stages."""
        settings = len(canonical_json(self.settings))
        described = 2 * settings + 250 + settings + _train_code(self.settings) + 230
        return Space(described + stages * (342 + 207), 2 + 2 * stages) + self._picture(
            TILES * min(SHOWN_CLASSES, self.data.classes)
        )  # of real images

    def _illustration(self, how: Mapping[str, Any]) -> Space:
        """Samples, real images and two sheets of neighbours as pictures; a map of each class and the frames as arrays."""
        classes, images = len(how["classes"]), int(how["images"])
        sheets = (3 + 2) * classes * (1 + int(how["neighbours"]))
        maps = Space(classes * (300 + 100 + images) * (2 * 64 + 9), classes)
        frames = Space(min(FACT_LIMIT, 4 * 8 * 2 * self.data.pixels), 1)
        tiles = TILES * classes
        return (
            self._picture(tiles) + self._picture(tiles) + self._picture(sheets) + maps + frames + Space(0, 1)
        )

    def _picture(self, tiles: int) -> Space:
        """A PNG of so many images, at worst as large as they are; halved until it fits."""
        size = tiles * self.data.pixels
        while size > FACT_LIMIT:
            size //= 4
        return Space(size, 1)


def features(data: DataShape, evaluation: Mapping[str, Any]) -> Space:
    """Features of the images of one evaluation of one milestone, in the scratch folder; of a search, of all its rounds."""
    block = int(evaluation["block"])
    per_shard = max(1, SHARD_IMAGES // block) * block
    numbers = feature_numbers(evaluation["extractor"])
    shown = min(SHOWN_CLASSES, data.classes) * TILES * data.pixels
    made: dict[tuple[str, int | None, float | None], int] = {}
    *tried, (_, images) = rounds(evaluation)
    for each, count in tried:
        series = each["sampler"], each.get("steps"), each["guidance"]
        made[series] = made.get(series, 0) + count
    total = NOTHING
    for count in (*made.values(), images):
        whole = padded(count, block)
        shards = -(-whole // per_shard)
        total += Space(whole * numbers * 4 + shown + shards * 500 + 8 * (whole // block), shards)
    return total


def references(sets: Mapping[str, int], evaluation: Mapping[str, Any]) -> Space:
    """Features of the real images an evaluation is compared with, made once for a whole grid."""
    numbers = feature_numbers(evaluation["extractor"])
    return Space(sum(sets.values()) * numbers * 4 + 200 * len(sets), len(sets))


def latents(data: DataShape) -> Space:
    """The cached latents of a training set, made once for a whole grid."""
    if not data.latents:
        return NOTHING
    size = vaes.latents_bytes(data.latents, data.images, data.resolution)
    return Space(size, -(-data.images // 4096) + 1)


def points(step: int, every: int) -> int:
    """Points of a loss curve at a step: windows of `every` steps, doubled whenever the run has doubled beyond `POINTS` of them."""
    count, size, at = 0, every, 0
    while at < step:
        end = min(step, every * POINTS if size == every else at * 2)
        count += (end - at) // size
        at, size = end, size * 2
    return count


def safetensors_bytes(shapes: Shapes) -> int:
    """The size of a safetensors file of float32 tensors of these names and shapes."""
    return _safetensors_bytes(tuple(sorted(shapes.items())))


@functools.lru_cache(maxsize=512)
def _safetensors_bytes(shapes: Sequence[tuple[str, tuple[int, ...]]]) -> int:
    header, at = {}, 0
    for name, shape in shapes:
        end = at + 4 * math.prod(shape)
        header[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [at, end]}
        at = end
    length = len(json.dumps(header, separators=(",", ":")))
    return 8 + -(-length // 8) * 8 + at


@functools.cache
def _code_of(kind: str) -> int:
    return len(canonical_json(provenance.measuring_code(kind)))


def _train_code(settings: Mapping[str, Any]) -> int:
    parts = {"method": settings["method"]["name"], "dataset": settings["dataset"]["name"]}
    key = digest({**parts, "network": settings["network"].partition("/")[0], "init": "init" in settings})
    if key not in _CODE:
        _CODE[key] = len(canonical_json(provenance.train_code(settings)))
    return _CODE[key]


_CODE: dict[str, int] = {}
