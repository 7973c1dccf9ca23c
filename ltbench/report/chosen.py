"""What a line of a sheet is made from: the planned cells that a selector means, and where a table holds their values."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ltbench.errors import UsageError
from ltbench.report.axes import Planned, compared, flat
from ltbench.report.definition import EVALUATION_KEYS, VALUE_KEYS, Selector, SheetDefinition
from ltbench.report.published import same_value
from ltbench.report.table import Section

_CELL_KEYS = ("part", "label", "benchmark")


def merged(*selectors: Selector | None) -> dict[str, Any]:
    """One selector; a later one wins."""
    found: dict[str, Any] = {}
    for selector in selectors:
        found |= selector or {}
    return found


def known_settings(cell: Planned) -> dict[str, Any]:
    """What a selector may ask of a planned cell: its flat settings, `method` for the method's name, its part, label and benchmark."""
    settings = dict(flat(compared(cell["settings"])))
    own = {key: cell.get(key) for key in _CELL_KEYS}
    return {**settings, "method": settings["method.name"], **own}


def fits(known: Mapping[str, Any], selector: Mapping[str, Any]) -> bool:
    """Whether a cell has what a selector asks of cells. null fits a setting that is none or that the cell has not."""
    for key, wanted in selector.items():
        if key in VALUE_KEYS or key in EVALUATION_KEYS:
            continue
        if not same_value(known.get(key), wanted):
            return False
    return True


def evaluates(evaluation: Mapping[str, Any], selector: Mapping[str, Any]) -> bool:
    """Whether an evaluation is what a selector asks of evaluations."""
    return all(
        same_value(name_of(evaluation.get(key)), wanted)
        for key, wanted in selector.items()
        if key in EVALUATION_KEYS
    )


def name_of(value: Any) -> Any:
    """The name of a part with parameters, as a guidance schedule is; anything else as it is."""
    return value["name"] if isinstance(value, Mapping) and "name" in value else value


def is_evaluated(cell: Planned, selector: Mapping[str, Any]) -> bool:
    """Whether one of a cell's evaluations is what a selector asks for; a cell without any is what its settings say."""
    evaluations = cell["evaluations"]
    return not evaluations or any(evaluates(evaluation, selector) for evaluation in evaluations)


def check_keys(sheet: SheetDefinition, planned: Iterable[Planned]) -> None:
    """Raises UsageError for a key of `ours` that no planned cell and no evaluation could ever have."""
    cells = [known_settings(cell) for cell in planned]
    if not cells:
        return
    known = {key for cell in cells for key in cell} | {*VALUE_KEYS, *EVALUATION_KEYS, *_CELL_KEYS}
    selectors = [sheet.ours, *(each.ours for each in (*sheet.blocks, *sheet.columns))]
    selectors += [row.ours or {} for row in sheet.rows]
    for selector in selectors:
        for key in selector:
            # a method's own parameters are there only where the method is
            if key not in known and not key.startswith(("method.", "train.", "dataset.")):
                near = difflib.get_close_matches(key, sorted(known), 1)
                hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(sorted(known))}"
                raise UsageError(f"ours: no cell has a setting {key!r}", hint)


@dataclass(frozen=True)
class Spot:
    """Where a table holds a value: a section, and the places of a row and a column in it."""

    section: Section
    row: int
    column: int


def spots(
    sections: Sequence[Section], cells: Sequence[Planned], selector: Mapping[str, Any]
) -> tuple[list[Spot], bool]:
    """Every place that fits, and whether an evaluation of these cells fits at all."""
    ids, parts = {cell["cell"] for cell in cells}, {cell["part"] for cell in cells}
    labels = {cell["label"] for cell in cells}
    metric, group = selector.get("metric"), selector.get("group", "all")
    found, evaluated = [], False
    for section in sections:
        if section.part not in parts or not evaluates(section.evaluation, selector):
            continue
        for row, known in enumerate(section.rows):
            own = {cell for _, cell in known.cells}
            if known.external or not own <= ids or not _labelled(known.label, labels):
                continue
            evaluated = True
            found += [
                Spot(section, row, place)
                for place, column in enumerate(section.columns)
                if (column.metric, column.group) == (metric, group)
            ]
    return found, evaluated


def _labelled(row: str, labels: Iterable[str]) -> bool:
    """A row's label is a cell's, or begins with it where the table had to say more."""
    return any(row.startswith(label) for label in labels)


def by_label(cells: Iterable[Planned]) -> Iterator[tuple[str, list[Planned]]]:
    """Cells that differ in their seed, part or data set only by what the plan's label does not say, in the plan's order."""
    found: dict[str, list[Planned]] = {}
    for cell in cells:
        found.setdefault(str(cell["label"]), []).append(cell)
    yield from found.items()
