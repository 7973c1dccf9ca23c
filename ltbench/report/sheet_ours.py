"""Our lines of a sheet before they are printed: which cells they are of, where their values are, what may be compared with what."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from ltbench.report import fair
from ltbench.report.axes import Planned, flat, seed_of
from ltbench.report.chosen import Spot, by_label, fits, is_evaluated, known_settings, merged, name_of, spots
from ltbench.report.definition import SheetBlock, SheetColumn, SheetDefinition, SheetRow
from ltbench.report.marks import marks
from ltbench.report.notes import Notes
from ltbench.report.paper import published_names
from ltbench.report.select import Record, Selected
from ltbench.report.table import Column, Entry, Missing, Section
from ltbench.report.train_values import train_column, train_entry
from ltbench.report.words import clean


@dataclass
class Mine:
    """Our value of one line in one column: where it is, what is printed, and what it may be compared with."""

    entry: Entry
    column: Column
    spot: Spot | None = None
    facts: fair.Facts | None = None
    foreign: bool = False  # measured by another extractor than the published


@dataclass
class Draft:
    """One line of ours before it is printed."""

    row: SheetRow
    label: str
    cells: Sequence[Planned]
    values: dict[str, Mine] = field(default_factory=dict)  # by column name
    notes: list[int] = field(default_factory=list)

    @property
    def name(self) -> str:
        """The row's; with the plan's label where several lines are of one row."""
        return self.row.name if not self.label else f"{self.row.name}: {self.label}"


@dataclass
class Ours:
    """Our side of a sheet."""

    sheet: SheetDefinition
    sections: Sequence[Section]
    planned: Sequence[Planned]
    states: Mapping[str, Mapping[str, str]]
    selected: Selected
    notes: Notes

    @cached_property
    def known(self) -> list[dict[str, Any]]:
        return [known_settings(cell) for cell in self.planned]

    @cached_property
    def records(self) -> dict[str, Record]:
        return {r["digest"]: r for found in self.selected.chosen.values() for r in found}

    # --- which lines ---

    def drafts(self, block: SheetBlock) -> list[Draft]:
        """Our lines of a block: those of its rows, in order, then every planned row that none of them means."""
        claimed: set[int] = set()
        lines: list[Draft] = []
        for row in block.shown(self.sheet.rows):
            if row.ours is None:
                continue
            places = self._places(merged(self.sheet.ours, block.ours, row.ours))
            claimed |= set(places)
            found = list(by_label(self.planned[place] for place in places))
            several = len(found) > 1
            lines += [Draft(row, label if several else "", cells) for label, cells in found]
            lines += [] if found else [Draft(row, "", [])]
        rest = [p for p in self._places(merged(self.sheet.ours, block.ours)) if p not in claimed]
        for label, cells in by_label(self.planned[place] for place in rest):
            lines.append(Draft(SheetRow(name=label, ours={}), "", cells))
        for line in lines:
            for column in self.sheet.columns:
                line.values[column.name] = self._mine(line, block, column)
        self._refuse(lines)
        return lines

    def _places(self, selector: Mapping[str, Any]) -> list[int]:
        return [
            place
            for place, known in enumerate(self.known)
            if fits(known, selector) and is_evaluated(self.planned[place], selector)
        ]

    # --- our values ---

    def _mine(self, line: Draft, block: SheetBlock, column: SheetColumn) -> Mine:
        selector = merged(self.sheet.ours, block.ours, line.row.ours, column.ours)
        cells = [cell for cell in line.cells if fits(known_settings(cell), selector)]
        blank = Column(str(selector.get("metric", "")), column.name, str(selector.get("group", "all")),
                       column.better or "", column.scale or 1.0, None, None, None, None)  # fmt: skip
        if not cells:
            return Mine(_nothing([], "not planned", "the benchmark holds no such cell"), blank)
        step = self._step(selector, cells)
        if "train" in selector:
            facts = fair.facts_of(cells[0], step, {}, self.sheet.varies)
            entry, machine = train_entry(cells, step, str(selector["train"]), self.selected, self.states)
            return Mine(entry, train_column(column), None, replace(facts, machine=machine))
        found, evaluated = spots(self.sections, cells, selector)
        if len(found) != 1:
            return Mine(_no_spot(cells, found, evaluated), blank)
        spot = found[0]
        facts = fair.facts_of(cells[0], step, spot.section.evaluation, self.sheet.varies)
        where = spot.section.columns[spot.column]
        if step not in spot.section.steps:
            gap = _nothing(cells, "not planned", f"step {step:,} is no milestone")
            return Mine(gap, where, spot, facts)
        entry = spot.section.entry(spot.row, spot.column, step)
        foreign = entry.mean is not None and where.name not in published_names(where.metric)
        return Mine(entry, where, spot, facts, foreign)

    def _step(self, selector: Mapping[str, Any], cells: Sequence[Planned]) -> int:
        asked = selector.get("step")
        return int(asked) if asked is not None else max(int(s) for cell in cells for s in cell["milestones"])

    def _refuse(self, lines: Sequence[Draft]) -> None:
        """Values that are measured otherwise than most of their column: each is replaced by the reason.

        Values of another extractor than the published have a column of their own, and are held against each other there.
        """
        for column in self.sheet.columns:
            found: dict[str, list[tuple[Mine, fair.Measure]]] = {}
            for line in lines:
                mine = line.values[column.name]
                if mine.spot is None or not mine.entry.values:
                    continue
                measure = fair.measure_of(mine.entry, mine.column, mine.spot.section, self.records)
                if measure is not None:
                    own = mine.column.name if mine.foreign and self.sheet.published else ""
                    found.setdefault(own, []).append((mine, measure))
            for members in found.values():
                _refuse_minority(members)

    def externals(self, drafts: Sequence[Sequence[Draft]]) -> list[Draft]:
        """A line for everything that was not trained here, in the columns of the sections that our lines stand in.

        Its steps are not ours: a section that several blocks show (by step) has its externals once.
        """
        found: dict[str, Draft] = {}
        for name, spot in ((n, m.spot) for lines in drafts for line in lines for n, m in line.values.items()):
            for place, row in enumerate(spot.section.rows if spot else ()):
                if spot is None or row.external is None:
                    continue
                entry = spot.section.entry(place, spot.column)
                if entry.values:
                    where = spot.section.columns[spot.column]
                    foreign = where.name not in published_names(where.metric)
                    draft = found.setdefault(
                        row.cells[0][1], Draft(SheetRow(name=row.label, ours={}), "", ())
                    )
                    own = Spot(spot.section, place, spot.column)
                    draft.values.setdefault(name, Mine(entry, where, own, None, foreign))
        return sorted(found.values(), key=lambda draft: draft.name)

    # --- columns of another extractor ---

    def foreign_columns(self, drafts: Sequence[Sequence[Draft]]) -> list[SheetColumn]:
        """Columns for our values that may not stand in a published one, under the name that their records give."""
        found: dict[str, SheetColumn] = {}
        for lines in drafts:
            for line in lines:
                for column in self.sheet.columns:
                    mine = line.values.get(column.name)
                    if mine is None or not mine.foreign:
                        continue
                    name = _own_name(mine.column)
                    found.setdefault(name, replace_column(column, name))
                    line.values[name] = mine
                    gap = (
                        f"measured as {mine.column.name}, which is another metric; it has a column of its own"
                    )
                    line.values[column.name] = replace_mine(mine, gap)
        return list(found.values())

    def better(self, column: SheetColumn, drafts: Sequence[Sequence[Draft]]) -> str:
        """As records say, else as the definition."""
        for lines in drafts:
            for line in lines:
                mine = line.values.get(column.name)
                if mine and mine.entry.values and mine.column.better:
                    return mine.column.better
        return column.better or ""

    def entry_step(self, mine: Mine) -> int | None:
        record = self.records.get(mine.entry.values[0].digest)
        return None if record is None else int(record["body"]["step"])

    def told(self, draft: Draft, mine: Mine) -> dict[str, Any]:
        """Everything a published line may state, of ours; the cells are those of the value."""
        cells = {value.cell for value in mine.entry.values}
        cell = next(cell for cell in draft.cells if cell["cell"] in cells)
        told: dict[str, Any] = dict(flat(cell["settings"]))
        if mine.spot is None:
            return told
        evaluation = {
            f"evaluation.{key}": name_of(value) for key, value in mine.spot.section.evaluation.items()
        }
        evaluation.setdefault("evaluation.schedule", None)
        return {**told, **evaluation, "step": self.entry_step(mine)}

    # --- what may be compared ---

    def marks_of_settings(self, drafts: Sequence[Draft]) -> None:
        """A footnote on every line whose settings are not those of the baseline's line, and on what machine speeds were measured."""
        for draft in drafts:
            machines = dict.fromkeys(m.facts.machine for m in draft.values.values() if m.facts)
            draft.notes += [self.notes.number(clean(f"Ours on {each}.")) for each in machines if each]
        base = next((d for d in drafts if d.row.name == self.sheet.baseline and d.cells), None)
        base = base or next((d for d in drafts if d.cells), None)
        if base is None:
            return
        for draft in drafts:
            texts: dict[str, None] = {}
            for name, mine in draft.values.items():
                other = base.values.get(name)
                if draft is base or mine.facts is None or other is None or other.facts is None:
                    continue
                texts |= dict.fromkeys(fair.training_differences(mine.facts, other.facts))
                texts |= dict.fromkeys(fair.sampling_differences(mine.facts, other.facts))
                texts |= dict.fromkeys(fair.machine_differences(mine.facts, other.facts))
            if texts:
                lead = (
                    "A reference row, not ranked"
                    if draft.row.reference
                    else f"Not ranked against {base.name}"
                )
                draft.notes.append(self.notes.number(clean(f"{lead}: other {', '.join(texts)}.")))

    def ranks(self, drafts: Sequence[Draft], column: SheetColumn) -> dict[int, str]:
        """Marks among lines of equal settings; reference rows have none."""
        classes: dict[str, list[Draft]] = {}
        for draft in drafts:
            mine = draft.values.get(column.name)
            if mine is not None and mine.facts is not None and mine.entry.values and not draft.row.reference:
                classes.setdefault(mine.facts.key, []).append(draft)
        found = {}
        for members in classes.values():
            values = [member.values[column.name] for member in members]
            for place, mark in marks([each.entry for each in values], values[0].column).items():
                found[id(members[place])] = mark
        return found


# --- small parts ------------------------------------------------------------------------------------------------------


def _nothing(cells: Sequence[Planned], text: str, detail: str) -> Entry:
    missing = [Missing(str(cell["label"]), seed_of(cell), cell["cell"], text, detail) for cell in cells]
    return Entry(None, None, len(cells), (), tuple(missing or [Missing("", None, "", text, detail)]))


def _no_spot(cells: Sequence[Planned], found: Sequence[Spot], evaluated: bool) -> Entry:
    """Why a column has no place for these cells, or more than one."""
    if unsupported := [cell["unsupported"] for cell in cells if cell.get("unsupported")]:
        return _nothing(cells, "n/a", str(unsupported[0]))
    if len(found) > 1:
        ids = ", ".join(sorted({spot.section.evaluation["id"] for spot in found}))
        return _nothing(cells, "refused", f"several rows or evaluations fit ({ids}): name more in `ours`")
    text = "the evaluation does not measure it" if evaluated else "no evaluation of the benchmark measures it"
    return _nothing(cells, "not planned", text)


def _refuse_minority(members: Sequence[tuple[Mine, fair.Measure]]) -> None:
    main = fair.commonest([measure for _, measure in members])
    for mine, measure in members:
        if main is not None and (texts := fair.measure_differences(measure, main)):
            mine.entry = _refused(mine.entry, f"refused, since the column has other {', '.join(texts)}")


def _refused(entry: Entry, text: str) -> Entry:
    gaps = [Missing("", value.seed, value.cell, "refused", text) for value in entry.values]
    return Entry(None, None, entry.planned, (), (*gaps, *entry.missing), notes=entry.notes)


def _own_name(column: Column) -> str:
    return column.name if column.group == "all" else f"{column.name}, {column.group}"


def replace_column(column: SheetColumn, name: str) -> SheetColumn:
    """The same column under our own name: no published number stands in it, so nothing is judged."""
    return column.model_copy(update={"name": name, "theirs": {}, "tolerance": None})


def replace_mine(mine: Mine, why: str) -> Mine:
    """What stands in the published column instead."""
    gaps = [Missing("", value.seed, value.cell, "n/a", why) for value in mine.entry.values]
    return Mine(Entry(None, None, mine.entry.planned, (), tuple(gaps)), mine.column, None, mine.facts)
