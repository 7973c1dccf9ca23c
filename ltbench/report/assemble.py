"""From planned cells and records to the table object: a pure function, whatever the order in which records are listed."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

from ltbench.report import diverged
from ltbench.report.axes import (
    Planned,
    RowPlan,
    SectionPlan,
    baselines_of,
    rows_of,
    sections_of,
    setup_of,
    stated_seed,
)
from ltbench.report.columns import Measured, Pool, seed_value
from ltbench.report.costs import build_costs
from ltbench.report.definition import Definition
from ltbench.report.differences import against_baselines
from ltbench.report.externals import external_rows, unplaced
from ltbench.report.fair import facts_of, training_differences
from ltbench.report.guidance import arranged
from ltbench.report.identity import differing, section_of
from ltbench.report.marks import marks
from ltbench.report.notes import Notes, row_notes
from ltbench.report.pictured import picture_gaps
from ltbench.report.select import Record, Selected, select
from ltbench.report.table import Column, Entry, Inputs, Missing, Row, Section, SeedValue, Table
from ltbench.report.words import FLOORS, of_seed

_Held = (
    Mapping[tuple[str, str], list[Measured]] | None
)  # what a cell's records say at a step, by metric and group

_SAME_FLOOR = 1e-6  # relative; the same images give floors that differ by rounding between machines


def build_table(
    inputs: Inputs, definition: Definition, *, verdicts: bool = False, selected: Selected | None = None
) -> Table:
    """The table of a benchmark as `definition` asks for it. No file is read, nothing depends on order or time.

    `verdicts`: a sheet says how ours differ from the published numbers. `selected`: what `select` makes of the inputs, where that is
    known.
    """
    selected, notes = selected or select([*inputs.records, *inputs.externals]), Notes()
    plans = arranged(sections_of(inputs.planned), selected, definition.table)
    sections = tuple(
        _Assembly(plan, definition, selected, inputs.externals, inputs.states, notes).section()
        for plan in plans
    )
    for text in unplaced(inputs.externals, plans):
        notes.number(text)
    for problem in sorted(set(inputs.problems)):
        notes.number(f"Left out: {problem}.")
    sheet = None
    if definition.sheet is not None:
        from ltbench.report.sheet_build import build_sheet

        sheet = build_sheet(
            definition.sheet,
            sections,
            inputs.planned,
            inputs.states,
            selected,
            inputs.published,
            notes,
            verdicts=verdicts,
        )
    used = {
        value.digest for section in sections for entry in section.entries.values() for value in entry.values
    }
    used |= set() if sheet is None else sheet.records()
    return Table(
        name=inputs.name,
        title=definition.title or inputs.title,
        sections=sections,
        notes=tuple(notes.texts),
        records=tuple(sorted(used)),
        decimals=dict(definition.table.decimals),
        paired=definition.table.differences,
        sheet=sheet,
        costs=build_costs(inputs.planned, inputs.records, inputs.calibrations, inputs.states),
        undrawn=tuple(
            picture_gaps(sections, definition, selected, inputs.planned, inputs.states, inputs.benchmarks)
        ),
    )


@dataclass
class _Assembly:
    """Everything one section is made from."""

    plan: SectionPlan
    definition: Definition
    selected: Selected
    externals: Sequence[Record]
    states: Mapping[str, Mapping[str, str]]
    notes: Notes
    _of_row: dict[tuple[int, int], list[tuple[Planned, _Held]]] = field(default_factory=dict)

    @cached_property
    def steps(self) -> list[int]:
        planned = {int(step) for cell in self.plan.cells for step in cell["milestones"]}
        wanted = self.definition.table.step
        return sorted(planned if wanted == "last" else {*planned, int(wanted)})

    @cached_property
    def shown(self) -> int:
        wanted = self.definition.table.step
        return self.steps[-1] if wanted == "last" else int(wanted)

    @cached_property
    def rows(self) -> tuple[tuple[str, ...], list[RowPlan], list[RowPlan]]:
        """Axes, the rows of the plan, the external rows."""
        axes, own = rows_of(self.plan.cells)
        own = [self._with_guidance(row) for row in own]
        return axes, own, external_rows(self.externals, self.plan, len(axes), self.shown, self.notes)

    def _with_guidance(self, row: RowPlan) -> RowPlan:
        """The label says at which guidance a row stands, where rows have their own."""
        known = [self.plan.weights.get((cell["cell"], self.shown)) for cell in row.cells]
        found = sorted({w for w in known if w is not None})
        return replace(row, label=f"{row.label}, w={'/'.join(f'{w:g}' for w in found)}") if found else row

    @cached_property
    def pool(self) -> Pool:
        return Pool(self.plan, self.selected, self.rows[2], self.shown)

    def section(self) -> Section:
        axes, own, external = self.rows
        rows, steps, shown = [*own, *external], self.steps, self.shown
        columns = self.pool.columns(self.definition.table.metrics, self.definition.table.groups)
        entries = {
            (i, j, step): self._entry(row, column, step, shown)
            for i, row in enumerate(rows)
            for j, column in enumerate(columns)
            for step in steps
        }
        self._mark(entries, len(own), columns, steps)
        numbers, baselines = self._row_notes(rows, shown), baselines_of(rows)
        return Section(
            part=self.plan.part,
            title=self.plan.title,
            setup=setup_of(self.plan.cells, shown),
            dataset=self.plan.dataset,
            evaluation=self.plan.evaluation,
            ids=self.plan.ids,
            axes=axes,
            columns=columns,
            rows=tuple(_row(*each) for each in zip(rows, numbers, baselines, strict=True)),
            steps=tuple(steps),
            shown=shown,
            entries=entries,
            floors=dict(self._floors(columns, steps)),
            keys={cell["cell"]: self.pool.keys(cell, shown) for row in rows for cell in row.cells},
            missing=tuple(gap for row in own for cell in row.cells for gap in self._gap(row, cell, shown)),
            seeds_planned=max(len(row.cells) for row in own),
            chosen_by=self.plan.chosen_by,
            guidance=self.plan.weights,
            differences=against_baselines(entries, baselines, columns),
        )

    # --- entries ---

    def _entry(self, row: RowPlan, column: Column, step: int, shown: int) -> Entry:
        values, missing, notes = [], [], []
        for cell, held in self._cells(row, step):
            found = self._value(row, cell, held, column, step, notes)
            if isinstance(found, SeedValue):
                values.append(found)
                continue
            missing.append(found)
            if step == shown and found.text in ("refused", "undefined"):
                where = f", {column.name}, {column.group}" if self.pool.records(cell, step) else ""
                text = f"{found.label}{of_seed(found.seed)}{where}: {found.detail}."
                notes.append(self.notes.number(text))
        mean, sd = _mean_sd([value.value for value in values])
        return Entry(mean, sd, len(row.cells), tuple(values), tuple(missing), notes=tuple(notes))

    def _cells(self, row: RowPlan, step: int) -> list[tuple[Planned, _Held]]:
        """The cells of a row with what each holds at a step; None where there is no record. Asked again for every column."""
        if (id(row), step) not in self._of_row:
            pool = self.pool
            self._of_row[id(row), step] = [
                (c, pool.of(c, step) if pool.records(c, step) else None) for c in row.cells
            ]
        return self._of_row[id(row), step]

    def _value(
        self, row: RowPlan, cell: Planned, held: _Held, column: Column, step: int, notes: list[int]
    ) -> SeedValue | Missing:
        if held is None:
            return self._absent(row, cell, step)
        found = held.get((column.metric, column.group))
        if not found:
            return _gap_in(row, cell, "not measured", "the record holds no such value")
        if len(found) > 1:
            found = self.pool.measured(cell, step, column)
        record, measured = found[0]
        if differences := self.pool.differences(record, measured, column):
            told = f"refused, since the column has other {', '.join(differences)}"
            return _gap_in(row, cell, "refused", told)
        if len(found) > 1:
            fitting = [each for each in found if not self.pool.differences(*each, column)]
            notes += self._conflicts(row, cell, column, step, fitting)
        if measured["value"] is None:
            return _gap_in(row, cell, "undefined", measured.get("reason") or "the record gives no reason")
        return seed_value(stated_seed(row, cell), cell["cell"], record, measured)

    def _conflicts(
        self, row: RowPlan, cell: Planned, column: Column, step: int, found: Sequence[Measured]
    ) -> list[int]:
        """A footnote where evaluations of the same images by the same extractor give a metric two values."""
        given = {repr(measured["value"]): record["digest"][:8] for record, measured in reversed(found)}
        if len(given) < 2:
            return []
        latest = repr(found[0][1]["value"])
        others = ", ".join(
            f"{value} in {digest}" for value, digest in sorted(given.items()) if value != latest
        )
        text = (
            f"{row.label}{of_seed(stated_seed(row, cell))}, step {step}, {column.name}, {column.group}: the records differ; "
            f"{latest} in {given[latest]} is used, not {others}."
        )
        return [self.notes.number(text)]

    def _absent(self, row: RowPlan, cell: Planned, step: int) -> Missing:
        gap = _gap_in(row, cell, "not run", "")
        if cell.get("unsupported"):
            return gap._replace(text="n/a", detail=cell["unsupported"])
        if step not in [int(milestone) for milestone in cell["milestones"]]:
            return gap._replace(text="not planned", detail=f"step {step} is no milestone of it")
        if found := self.plan.gaps.get((cell["cell"], step)):
            text = "not evaluated" if self.plan.picks is None else "no guidance chosen"
            return gap._replace(text=text, detail=found)
        if found := self._misnamed(cell, step):
            return gap._replace(text="refused", detail=found)
        if state := self.states.get(cell["cell"]):
            return gap._replace(text=state["text"], detail=state.get("detail") or "")
        if (cell["cell"], step) in self.selected.train:
            what = "not evaluated" if self.plan.picks is None else "its search has chosen no guidance yet"
            return gap._replace(text="not evaluated", detail=f"trained, {what}")
        return gap

    def _misnamed(self, cell: Planned, step: int) -> str | None:
        """Why a record that states an evaluation of this section is not of it: it was made under another protocol."""
        for name in self.plan.ids if self.plan.picks is None else ():
            record = self.selected.named.get((cell["cell"], step, name))
            if record is not None and (found := section_of(record)) != self.plan.evaluation["id"]:
                texts = differing(record["body"]["evaluation"], self.plan.evaluation)
                here = self.plan.evaluation["id"]
                return f"its record states evaluation {name}, but is of {found}, not {here}: other {', '.join(texts)}"
        return None

    def _gap(self, row: RowPlan, cell: Planned, step: int) -> list[Missing]:
        return [] if self.pool.records(cell, step) else [self._absent(row, cell, step)]

    def _mark(
        self,
        entries: dict[tuple[int, int, int], Entry],
        rows: int,
        columns: Sequence[Column],
        steps: Sequence[int],
    ) -> None:
        for j, column in enumerate(columns):
            for step in steps:
                found = marks([entries[i, j, step] for i in range(rows)], column)
                for i, mark in found.items():
                    entries[i, j, step] = replace(entries[i, j, step], mark=mark)

    # --- floors and notes ---

    def _floors(
        self, columns: Sequence[Column], steps: Sequence[int]
    ) -> Iterator[tuple[tuple[int, int], float]]:
        for j, column in enumerate(columns):
            for step in steps:
                floors = sorted(self._column_floors(column, step))
                if not floors:
                    continue
                middle = math.fsum(floors) / len(floors)
                if floors[-1] - floors[0] > _SAME_FLOOR * abs(middle):
                    span = f"{floors[0]:.6g} to {floors[-1]:.6g}"
                    kind = FLOORS.get(column.better, "real value")
                    self.notes.number(
                        f"The {kind} of {column.name}, {column.group} differs between records ({span}); mean shown."
                    )
                yield (j, step), middle

    def _column_floors(self, column: Column, step: int) -> Iterator[float]:
        for record, row in self.pool.all_rows(column.metric, column.group, step):
            if (
                row["floor"] is not None
                and row["n_floor"] == column.n_floor
                and not self.pool.differences(record, row, column)
            ):
                yield float(row["floor"])

    def _row_notes(self, rows: Sequence[RowPlan], shown: int) -> list[tuple[int, ...]]:
        found = []
        for row in rows:
            found.append((row, [record for cell in row.cells for record in self.pool.records(cell, shown)]))

        def others(record: Record) -> int:
            return len(self.selected.others.get(record["digest"], []))

        numbers = row_notes(found, self.plan.evaluation["extractor"]["name"], others, self.notes)
        unlike = self._unlike_first(rows, shown)
        late = [diverged.notes_of(row, self.selected.train, shown) for row in rows]
        return [
            (*own, *map(self.notes.number, (*other, *more)))
            for own, other, more in zip(numbers, unlike, late, strict=True)
        ]

    def _unlike_first(self, rows: Sequence[RowPlan], shown: int) -> Iterator[list[str]]:
        """Of every row what its training does otherwise than the first row's, but for the method. A sheet says it of its own lines, and
        ranks them otherwise."""
        plain = [None if row.external else facts_of(row.cells[0], shown, {}, ()) for row in rows]
        first = None if self.definition.sheet else plain[0]
        for facts in plain:
            texts = training_differences(facts, first) if facts and first else []
            told = f"Other {', '.join(texts)} than in {rows[0].label}; marks compare rows of all settings."
            yield [told] if texts else []


def _gap_in(row: RowPlan, cell: Planned, text: str, detail: str) -> Missing:
    return Missing(row.label, stated_seed(row, cell), cell["cell"], text, detail)


def _row(row: RowPlan, notes: tuple[int, ...], baseline: int | None) -> Row:
    cells = tuple((stated_seed(row, cell), cell["cell"]) for cell in row.cells)
    return Row(row.label, row.method, row.axes, cells, notes, baseline, row.external)


def _mean_sd(values: Sequence[float]) -> tuple[float | None, float | None]:
    if not values:
        return None, None
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return mean, None
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
