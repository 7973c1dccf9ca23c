"""Mirrors of the store for people who watch runs elsewhere: TensorBoard, Weights & Biases. Called by `sync` alone.

A job writes records and knows no tracker: it needs no network and no key. A mirror is derived from records, at any time and any
number of times; what it holds is never read back.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ltbench import tiles
from ltbench.canonical import digest
from ltbench.errors import LtbenchError
from ltbench.protocols import sampling_text
from ltbench.store import Record, Run

KINDS = ("tensorboard", "wandb")
_TRAIN = ("loss", "grad_norm", "lr")


@dataclass(frozen=True)
class Scalar:
    """One number of one curve at a training step."""

    tag: str
    step: int
    value: float


@dataclass(frozen=True)
class Image:
    """One grid as PNG bytes; side lengths in pixels."""

    tag: str
    step: int
    png: bytes
    height: int
    width: int


@dataclass(frozen=True)
class Mirror:
    """What a tracker shows of one run of a cell. finished: seconds since 1970 of its last record, the only time in it."""

    name: str
    cell: str
    run: str
    settings: Mapping[str, Any]
    scalars: Sequence[Scalar]
    images: Sequence[Image] = ()
    finished: float = 0.0
    problems: Sequence[str] = field(default_factory=tuple)  # pictures that are missing or damaged

    @property
    def content(self) -> str:
        """16 hex digits that move when anything that is mirrored does."""
        images = [(each.tag, each.step, digest(each.png.hex())) for each in self.images]
        scalars = [(each.tag, each.step, each.value) for each in self.scalars]
        return digest([self.name, dict(self.settings), scalars, images])[:16]


def mirror_of(run: Run, name: str) -> Mirror | None:
    """A run's curves, metrics and grids, sorted by step and tag; None where it has no record."""
    records = run.records()
    if not records:
        return None
    images, problems = [], []
    for record in records:
        for tag, fact in _grids(record):
            try:
                images.append(_image(run, record, tag, fact))
            except (LtbenchError, ValueError) as problem:
                problems.append(f"{name}: {tag} of step {record.step}: {problem}")
    ends = [float(record.envelope.get("finished") or 0.0) for record in records]
    settings = records[-1].body.get("settings") or {}
    scalars = {(each.step, each.tag): each for each in _scalars(records)}
    return Mirror(
        name=name,
        cell=run.cell,
        run=run.run,
        settings=settings,
        scalars=[scalars[place] for place in sorted(scalars)],
        images=sorted(images, key=lambda each: (each.step, each.tag)),
        finished=max(ends),
        problems=tuple(problems),
    )


def _scalars(records: Sequence[Record]) -> Iterator[Scalar]:
    trained = [record for record in records if record.kind == "train"]
    if trained:  # the curve of a milestone holds those of all before it
        yield from _curve(max(trained, key=lambda record: record.step).body.get("curve") or {})
    for record in records:
        if record.kind == "evaluation":
            where = _evaluation(record.body["evaluation"])
            for row in record.body["rows"]:
                if row.get("value") is not None and math.isfinite(row["value"]):
                    name = row.get("name") or row["metric"]
                    yield Scalar(f"{where}/{name}/{row['group']}", record.step, float(row["value"]))


def _curve(curve: Mapping[str, Any]) -> Iterator[Scalar]:
    """A window that saw no image of a group is a gap, not a zero."""
    columns = {name: curve[name] for name in _TRAIN if name in curve} | dict(curve.get("terms") or {})
    for name, values in columns.items():
        for step, value in zip(curve["step"], values, strict=True):
            if value is not None and math.isfinite(value):
                yield Scalar(f"train/{name}", int(step), float(value))


def _evaluation(evaluation: Mapping[str, Any]) -> str:
    """How the images were made, in a tag: a slash in it would be a level of its own."""
    try:
        said = f"{evaluation['protocol']} {sampling_text(evaluation)}"
    except KeyError:
        said = str(evaluation.get("protocol", "evaluation"))
    return f"{said} {str(evaluation['id'])[:6]}".replace("/", "-")


def _grids(record: Record) -> Iterator[tuple[str, Mapping[str, Any]]]:
    for name, fact in sorted((record.body.get("facts") or {}).items()):
        if isinstance(fact, dict) and str(fact.get("file", "")).endswith(".png"):
            where = "train" if record.kind == "train" else _evaluation(record.body["evaluation"])
            yield f"{where}/{name}", fact


def _image(run: Run, record: Record, tag: str, fact: Mapping[str, Any]) -> Image:
    data = run.facts.read(fact["file"])
    grid = tiles.read_grid(data, int(fact["tile"]))
    return Image(tag, record.step, data, grid.shape[0] * grid.shape[3], grid.shape[1] * grid.shape[4])
