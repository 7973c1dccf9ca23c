"""The cells of a benchmark: every combination of its axes, with its settings, identity and id."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ltbench.canonical import digest
from ltbench.extractors import extractor_problem, named
from ltbench.protocols import evaluation_id
from ltbench.spec.resolved import Part, Spec
from ltbench.spec.types import spell

FORMAT = 1


@dataclass(frozen=True)
class Cell:
    """One training run of the grid.

    settings: everything that decides its weights, defaults written out. identity: the same without values equal to a default; `id`
    is its digest. axes: the grid's coordinates, the method by its label. label: the row of a table, equal for all seeds.
    evaluations: id -> description, each wanted at every milestone. options: micro_batch, checkpoint_seconds, log_every, preview_every.
    missing: None, or why the data cannot be read, or an evaluation not be measured, on this machine.
    """

    id: str
    part: str
    label: str
    axes: dict[str, Any]
    identity: dict[str, Any]
    settings: dict[str, Any]
    milestones: tuple[int, ...]
    evaluations: dict[str, dict[str, Any]]
    options: dict[str, Any]
    missing: str | None = None

    @property
    def seed(self) -> int:
        return self.settings["seed"]


def cell_id(identity: dict[str, Any]) -> str:
    """64 hex digits of a cell's identity."""
    return digest({"format": FORMAT, **identity})


def expand(spec: Spec) -> list[Cell]:
    """Every cell of a benchmark, part after part, in the order of the grid. Two parts may share a cell."""
    return [cell for part in spec.parts for cell in _expand_part(part)]


def _expand_part(part: Part) -> Iterator[Cell]:
    names = list(part.axes)
    shown = [a for a in names if a not in ("method", "resample", "seed") and len(part.axes[a]) > 1]
    ids = {key: {evaluation_id(e): e for e in found} for key, found in part.evaluations.items()}
    for values in itertools.product(*part.axes.values()):
        axes = dict(zip(names, values, strict=True))
        if not any(excluded(entry, axes) for entry in part.exclude):
            yield _cell(part, axes, shown, ids)


def excluded(entry: dict[str, tuple[Any, ...]], axes: dict[str, Any]) -> bool:
    """Whether an exclusion holds for a combination of axis values: all of its keys must match."""
    return all(axes[axis] in values for axis, values in entry.items())


def _cell(part: Part, axes: dict[str, Any], shown: list[str], evaluations: dict[Any, dict[str, Any]]) -> Cell:
    row = part.methods[axes["method"]]
    data_key = tuple(value for axis, value in axes.items() if axis.startswith("dataset."))
    data = part.data[data_key]
    recipe = part.recipes[tuple(value for axis, value in axes.items() if axis.startswith("train."))]
    resample = axes["resample"]
    if isinstance(resample, int):
        resample = float(resample)
    identity = {
        "dataset": data.identity,
        "pipeline": part.pipeline,
        "network": axes["network"],
        "method": row.identity,
        "seed": axes["seed"],
        "train": recipe.identity,
    }
    if resample is not None:
        identity["resample"] = resample
    settings = {
        "dataset": data.settings,
        "pipeline": part.pipeline,
        "network": axes["network"],
        "method": row.settings,
        "resample": resample,
        "seed": axes["seed"],
        "train": recipe.settings,
    }
    return Cell(
        id=cell_id(identity),
        part=part.name,
        label=_label(row.label, axes, shown),
        axes={**axes, "method": row.label},
        identity=identity,
        settings=settings,
        milestones=recipe.milestones,
        evaluations=evaluations[data_key],
        options=recipe.options,
        missing=data.missing or _no_extractor(evaluations[data_key]),
    )


def _no_extractor(evaluations: dict[str, dict[str, Any]]) -> str | None:
    """Why an evaluation could not measure here: better known before the training than after it."""
    wanted = sorted({named(evaluation["extractor"]) for evaluation in evaluations.values()})
    return next((problem for name in wanted if (problem := extractor_problem(name))), None)


def _label(method: str, axes: dict[str, Any], shown: list[str]) -> str:
    """The method and its parameters, resampling if any, and the axes that the grid varies; without the seed."""
    said = [f"{axis.rpartition('.')[2]}={spell(axes[axis])}" for axis in shown]
    if axes["resample"] is not None:
        said.insert(0, f"resample={spell(axes['resample'])}")
    if not said:
        return method
    inner = method[:-1] + ", " if method.endswith(")") else method + " ("
    return f"{inner}{', '.join(said)})"
