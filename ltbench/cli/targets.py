"""From what a person types to what a command is about: the benchmark, and those of its cells that a filter leaves."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ltbench.cli import specs
from ltbench.errors import UsageError

if TYPE_CHECKING:
    from ltbench.plan import Plan
    from ltbench.spec.cells import Cell
    from ltbench.spec.resolved import Spec


def load(
    name: str,
    changes: Sequence[str] = (),
    methods: Sequence[str] = (),
    measures: Sequence[str] = (),
    *,
    smoke: bool = False,
) -> Spec:
    """The benchmark that SPEC, --set, --with, --add and --smoke name."""
    from ltbench import spec

    return spec.load(specs.find(name), changes=changes, methods=methods, measures=measures, smoke=smoke)


def cells_of(benchmark: Spec, filters: Sequence[str] = ()) -> list[Cell]:
    """The cells of a benchmark in the grid's order, those that fit every filter.

    Raises UsageError for a filter that no cell could ever fit.
    """
    from ltbench.spec.cells import expand

    cells = expand(benchmark)
    chosen = cells
    for text in filters:
        test = _Filter(text, cells)
        chosen = [cell for cell in chosen if test.fits(cell)]
    if filters and not chosen:
        raise UsageError(f"no cell of {benchmark.name} fits " + " and ".join(filters))
    return chosen


def check_starts(found: Plan) -> None:
    """The files that cells still to be trained begin at. Raises SpecError for one that is missing or another."""
    from ltbench.spec.starts import check_files

    due = [item.cell for item in found.cells if any(due.stage.startswith("train:") for due in item.due)]
    check_files(due)


def name_of(cell: Cell, benchmark: Spec) -> str:
    """What a person calls a cell: `ccua seed 0`, with its part in front where the benchmark has several."""
    own = f"{cell.label} seed {cell.seed}"
    return f"{cell.part} {own}" if len(benchmark.parts) > 1 else own


class _Filter:
    """One `--filter KEY=VALUE`, checked against everything that the benchmark's cells could answer. `cell` takes several: a,b,c."""

    def __init__(self, text: str, cells: Sequence[Cell]) -> None:
        self.key, equals, self.value = text.partition("=")
        if self.key == "cell" and equals:
            return
        keys = list(dict.fromkeys(key for cell in cells for key in _facts(cell)))
        if not equals or self.key not in keys:
            near = difflib.get_close_matches(self.key, keys, 1)
            hint = f"did you mean '{near[0]}'?" if near else f"keys here: {', '.join([*keys, 'cell'])}"
            raise UsageError(f"--filter {text}: expects KEY=VALUE with a key of the benchmark", hint)
        values = sorted({spelling for cell in cells for spelling in _facts(cell).get(self.key, ())})
        if self.value not in values:
            near = difflib.get_close_matches(self.value, values, 1)
            hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(values)}"
            raise UsageError(f"--filter {text}: no cell has this {self.key}", hint)

    def fits(self, cell: Cell) -> bool:
        if self.key == "cell":
            return cell.id.startswith(tuple(filter(None, self.value.split(","))))
        return self.value in _facts(cell).get(self.key, ())


def _facts(cell: Cell) -> dict[str, set[str]]:
    """What a filter may ask of a cell: every axis, the part, the pipeline, the data set, the method by label or name."""
    from ltbench.spec.types import spell

    found = {axis: {spell(value), str(value)} for axis, value in cell.axes.items()}
    found["method"] |= {cell.settings["method"]["name"], cell.label}
    found |= {"part": {cell.part}, "pipeline": {cell.settings["pipeline"]}, "seed": {str(cell.seed)}}
    found["dataset"] = {cell.settings["dataset"]["name"]}
    return found
