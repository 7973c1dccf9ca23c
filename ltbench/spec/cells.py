"""The cells of a benchmark: every combination of its axes, with its settings, identity and id."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ltbench.canonical import Digester, digest
from ltbench.extractors import extractor_problem, named
from ltbench.protocols import evaluation_id
from ltbench.spec.resolved import CellStart, Data, FileStart, MethodRow, Part, Recipe, Spec
from ltbench.spec.types import spell

if TYPE_CHECKING:
    from ltbench.spec.yaml_io import Position

FORMAT = 1


@dataclass(frozen=True)
class Source:
    """The milestone of another cell at which a cell's weights begin, and where the spec says so."""

    cell: Cell
    step: int
    where: Position


@dataclass(frozen=True)
class Cell:
    """One training run of the grid.

    settings: everything that decides its weights, defaults written out. identity: the same without values equal to a default; `id`
    is its digest. axes: the grid's coordinates, the method by its label. label: the row of a table, equal for all seeds.
    evaluations: id -> description, each wanted at every milestone. options: micro_batch, checkpoint_seconds, log_every, preview_every,
    and the folder of the VAE where the spec names one.
    missing: None, or why the data cannot be read, or an evaluation not be measured, on this machine. source, file: where its
    weights begin, if not anew. recipe: the named training recipe in words, with every deviation from it.
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
    source: Source | None = None
    file: FileStart | None = None
    recipe: str | None = None

    @property
    def seed(self) -> int:
        return self.settings["seed"]


def cell_id(identity: dict[str, Any], digester: Digester | None = None) -> str:
    """64 hex digits of a cell's identity; a `digester` spells what many cells share once."""
    whole = {"format": FORMAT, **identity}
    return digest(whole) if digester is None else digester.digest(whole)


def expand(spec: Spec) -> list[Cell]:
    """Every cell of a benchmark, part after part, in the order of the grid. Two parts may share a cell."""
    digester = Digester()
    return [cell for part in spec.parts for cell in expand_part(part, digester)]


def expand_part(part: Part, digester: Digester | None = None) -> Iterator[Cell]:
    """The cells of one part."""
    digester = digester or Digester()
    names = list(part.axes)
    shown = [a for a in names if a not in ("method", "init", "resample", "seed") and len(part.axes[a]) > 1]
    ids = {key: _Wanted.of(found) for key, found in part.evaluations.items()}
    for values in itertools.product(*part.axes.values()):
        axes = dict(zip(names, values, strict=True))
        if not part.exclude or not any(excluded(entry, axes) for entry in part.exclude):
            yield _cell(part, axes, shown, ids, digester)


def excluded(entry: dict[str, tuple[Any, ...]], axes: dict[str, Any]) -> bool:
    """Whether an exclusion holds for a combination of axis values: all of its keys must match."""
    return all(axes[axis] in values for axis, values in entry.items())


@dataclass(frozen=True)
class _Wanted:
    """The evaluations of one data set by their ids, and why one of them cannot be measured here: asked once for all cells."""

    evaluations: dict[str, dict[str, Any]]
    problem: str | None

    @classmethod
    def of(cls, found: Iterable[dict[str, Any]]) -> _Wanted:
        evaluations = {evaluation_id(each): each for each in found}
        return cls(evaluations, _no_extractor(evaluations))


def _cell(
    part: Part, axes: dict[str, Any], shown: list[str], wanted: Mapping[Any, _Wanted], digester: Digester
) -> Cell:
    row = part.methods[axes["method"]]
    start = row.start if row.starts else part.starts.get(axes.get("init"))
    named = {**axes, "init": None if row.starts else axes.get("init")}  # a row's own label says its start
    data = _data_key(axes)
    return _make(
        part,
        axes,
        row,
        part.recipes,
        part.data,
        start,
        label=_label(row.label, named, shown),
        wanted=wanted[data],
        digester=digester,
    )


def _data_key(axes: dict[str, Any]) -> tuple[Any, ...]:
    return tuple([value for axis, value in axes.items() if axis.startswith("dataset.")])


def _make(
    part: Part,
    axes: dict[str, Any],
    row: MethodRow,
    recipes: Mapping[tuple[Any, ...], Recipe],
    sets: Mapping[tuple[Any, ...], Data],
    start: CellStart | FileStart | None,
    *,
    label: str,
    wanted: _Wanted,
    digester: Digester,
    milestones: tuple[int, ...] | None = None,
) -> Cell:
    """A cell at one point of the grid: `axes` and `start`, with the data and recipes of its part or of a source's own."""
    data = sets[_data_key(axes)]
    recipe = recipes[tuple([value for axis, value in axes.items() if axis.startswith("train.")])]
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
    source = _source(part, axes, recipes, sets, start, digester) if isinstance(start, CellStart) else None
    if start is not None:  # without a start neither holds the key, and ids and runs stay what they were
        identity["init"], settings["init"] = _init(start, source)
    return Cell(
        id=cell_id(identity, digester),
        part=part.name,
        label=label,
        axes={**axes, "method": row.label},
        identity=identity,
        settings=settings,
        milestones=recipe.milestones if milestones is None else milestones,
        evaluations=wanted.evaluations,
        options=recipe.options if data.vae is None else {**recipe.options, "vae": data.vae},
        missing=data.missing or wanted.problem,
        source=source,
        file=start if isinstance(start, FileStart) else None,
        recipe=recipe.said(),
    )


def _no_extractor(evaluations: dict[str, dict[str, Any]]) -> str | None:
    """Why an evaluation could not measure here: better known before the training than after it."""
    wanted = sorted({named(evaluation["extractor"]) for evaluation in evaluations.values()})
    return next((problem for name in wanted if (problem := extractor_problem(name))), None)


def _source(
    part: Part,
    axes: dict[str, Any],
    recipes: Mapping[tuple[Any, ...], Recipe],
    sets: Mapping[tuple[Any, ...], Data],
    start: CellStart,
    digester: Digester,
) -> Source:
    """The cell that `start` names: the one at `axes`, but for what the start says of it; trained, and not evaluated."""
    own = {**axes, **start.axes}
    if "init" in axes or start.below is not None:
        own["init"] = None if start.below is None else start.below.label
    cell = _make(
        part,
        own,
        start.method,
        start.recipes or recipes,
        start.data or sets,
        start.below,
        label=_label(start.method.label, own, []),
        wanted=_Wanted({}, None),
        digester=digester,
        milestones=(start.step,),
    )
    return Source(cell, start.step, start.where)


def _init(start: CellStart | FileStart, source: Source | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """(identity, settings) of a start. Prior steps follow from a source's cell and are a statement about a file: no identity."""
    rule = {} if start.classes == "keep" else {"classes": start.classes}
    if isinstance(start, FileStart):
        chosen = {"weights": start.weights} if start.weights != "ema" else {}
        chosen |= {"family": start.family} if start.family is not None else {}
        own = {"sha256": start.sha256, "weights": start.weights, "family": start.family}
        settings = {**own, "classes": start.classes, "prior_steps": start.prior_steps}
        return {"sha256": start.sha256, **chosen, **rule}, settings
    assert source is not None, "made from this start"
    before = source.cell.settings.get("init", {}).get("prior_steps", 0)
    settings = {
        "cell": source.cell.id,
        "step": source.step,
        "classes": start.classes,
        "prior_steps": source.step + before,
        "source": source.cell.settings,
    }
    return {"cell": source.cell.id, "step": source.step, **rule}, settings


def _label(method: str, axes: dict[str, Any], shown: list[str]) -> str:
    """The method and its parameters, its start and resampling if any, and the axes that the grid varies; without the seed."""
    said = [f"{axis.rpartition('.')[2]}={spell(axes[axis])}" for axis in shown]
    if axes["resample"] is not None:
        said.insert(0, f"resample={spell(axes['resample'])}")
    if axes.get("init") is not None:
        said.insert(0, f"init={axes['init']}")
    if not said:
        return method
    inner = method[:-1] + ", " if method.endswith(")") else method + " ("
    return f"{inner}{', '.join(said)})"
