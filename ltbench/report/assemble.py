"""From planned cells and records to the table object: a pure function, whatever the order in which records are listed."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from ltbench.canonical import canonical_json
from ltbench.report.axes import (
    Planned,
    RowPlan,
    SectionPlan,
    baselines_of,
    rows_of,
    sections_of,
    seed_of,
    setup_of,
)
from ltbench.report.definition import Definition
from ltbench.report.differences import against_baselines
from ltbench.report.marks import marks
from ltbench.report.notes import Notes, row_notes
from ltbench.report.select import Record, Selected, select
from ltbench.report.table import Column, Entry, Inputs, Missing, Row, Section, SeedValue, Table

_SAME_FLOOR = 1e-6  # relative; the same images give floors that differ by rounding between machines


def build_table(inputs: Inputs, definition: Definition) -> Table:
    """The table of a benchmark as `definition` asks for it. No file is read, nothing depends on order or time."""
    selected, notes = select(inputs.records), Notes()
    sections = tuple(
        _Assembly(plan, definition, selected, inputs.states, notes).section()
        for plan in sections_of(inputs.planned)
    )
    for problem in sorted(set(inputs.problems)):
        notes.number(f"Left out: {problem}.")
    used = sorted(
        {value.digest for section in sections for entry in section.entries.values() for value in entry.values}
    )
    return Table(
        name=inputs.name,
        title=definition.title or inputs.title,
        sections=sections,
        notes=tuple(notes.texts),
        records=tuple(used),
        decimals=dict(definition.table.decimals),
        paired=definition.table.differences,
    )


@dataclass
class _Assembly:
    """Everything one section is made from."""

    plan: SectionPlan
    definition: Definition
    selected: Selected
    states: Mapping[str, Mapping[str, str]]
    notes: Notes

    def section(self) -> Section:
        axes, rows = rows_of(self.plan.cells)
        steps = sorted({int(step) for cell in self.plan.cells for step in cell["milestones"]})
        wanted = self.definition.table.step
        shown = steps[-1] if wanted == "last" else int(wanted)
        steps = sorted({*steps, shown})
        columns = self._columns()
        entries = {
            (i, j, step): self._entry(row, column, step, shown)
            for i, row in enumerate(rows)
            for j, column in enumerate(columns)
            for step in steps
        }
        self._mark(entries, len(rows), columns, steps)
        numbers, baselines = self._row_notes(rows, shown), baselines_of(rows)
        return Section(
            part=self.plan.part,
            title=self.plan.title,
            setup=setup_of(self.plan.cells, shown),
            dataset=self.plan.dataset,
            evaluation=self.plan.evaluation,
            axes=axes,
            columns=columns,
            rows=tuple(_row(*each) for each in zip(rows, numbers, baselines, strict=True)),
            steps=tuple(steps),
            shown=shown,
            entries=entries,
            floors=dict(self._floors(columns, steps)),
            missing=tuple(gap for row in rows for cell in row.cells for gap in self._gap(row, cell, shown)),
            seeds_planned=max(len(row.cells) for row in rows),
            differences=against_baselines(entries, baselines, columns),
        )

    # --- records of this section ---

    def _record(self, cell: Planned, step: int) -> Record | None:
        return self.selected.chosen.get((cell["cell"], step, self.plan.evaluation["id"]))

    def _all_records(self, step: int | None = None) -> Iterator[Record]:
        for cell in self.plan.cells:
            for milestone in sorted(cell["milestones"]):
                record = self._record(cell, int(milestone))
                if record is not None and step in (None, int(milestone)):
                    yield record

    @cached_property
    def _main_groups(self) -> bytes:
        """The group definition that most records share."""
        return _most_common([canonical_json(record["body"]["groups"]) for record in self._all_records()])

    # --- columns ---

    def _columns(self) -> tuple[Column, ...]:
        """Metrics x groups; each column is what most records say it is, and the rest will be refused."""
        seen = [row["metric"] for record in self._all_records() for row in record["body"]["rows"]]
        kinds = self.definition.table.metrics
        if kinds is None:
            kinds = list(dict.fromkeys(seen))
        groups = self.definition.table.groups
        if self.plan.evaluation["labels"] is None:  # images without a class belong to no group
            groups = tuple(group for group in groups if group == "all")
        return tuple(self._column(kind, group) for kind in kinds for group in groups)

    def _column(self, kind: str, group: str) -> Column:
        found = [
            (record, row)
            for record in self._all_records()
            for row in record["body"]["rows"]
            if (row["metric"], row["group"]) == (kind, group)
        ]
        if not found:
            extractor = self.plan.evaluation["extractor"]
            name = f"{kind}[{extractor['name']}@{extractor['sha256'][:8]}]"
            return Column(kind, name, group, "", 1, None, None, None, None)
        main = _most_common([canonical_json(_identity(record, row)) for record, row in found])
        like = [row for record, row in found if canonical_json(_identity(record, row)) == main]
        n_floor = int(_most_common([f"{row['n_floor']:012d}".encode() for row in like]))
        row = like[0]
        return Column(
            kind,
            row["name"],
            group,
            row["better"],
            row["scale"],
            row["k"],
            row["n_gen"],
            row["n_ref"],
            n_floor,
            row.get("estimator"),
        )

    # --- entries ---

    def _entry(self, row: RowPlan, column: Column, step: int, shown: int) -> Entry:
        values, missing, notes = [], [], []
        for cell in row.cells:
            found = self._value(row, cell, column, step)
            if isinstance(found, SeedValue):
                values.append(found)
                continue
            missing.append(found)
            if step == shown and found.text in ("refused", "undefined"):
                text = f"{found.label} seed {found.seed}, {column.name}, {column.group}: {found.detail}."
                notes.append(self.notes.number(text))
        mean, sd = _mean_sd([value.value for value in values])
        return Entry(mean, sd, len(row.cells), tuple(values), tuple(missing), notes=tuple(notes))

    def _value(self, row: RowPlan, cell: Planned, column: Column, step: int) -> SeedValue | Missing:
        record = self._record(cell, step)
        if record is None:
            return self._absent(row, cell, step)
        rows = record["body"]["rows"]
        measured = next((r for r in rows if (r["metric"], r["group"]) == (column.metric, column.group)), None)
        gap = Missing(
            row.label, seed_of(cell), cell["cell"], "not measured", "the record holds no such value"
        )
        if measured is None:
            return gap
        if differences := self._differences(record, measured, column):
            return replace(
                gap, text="refused", detail=f"refused, since the column has other {', '.join(differences)}"
            )
        if measured["value"] is None:
            return replace(
                gap, text="undefined", detail=measured.get("reason") or "the record gives no reason"
            )
        return _seed_value(seed_of(cell), cell["cell"], record, measured)

    def _differences(self, record: Record, measured: Mapping[str, Any], column: Column) -> list[str]:
        """What keeps a value out of its column, in words."""
        texts = []
        for key in ("name", "better", "scale", "k", "n_gen", "n_ref"):
            here, there = measured[key], getattr(column, key)
            if here != there:
                texts.append(f"{key} ({there}, here {here})")
        if canonical_json(record["body"]["groups"]) != self._main_groups:
            texts.append("head, body and tail classes")
        return texts

    def _absent(self, row: RowPlan, cell: Planned, step: int) -> Missing:
        gap = Missing(row.label, seed_of(cell), cell["cell"], "not run")
        if cell.get("unsupported"):
            return replace(gap, text="n/a", detail=cell["unsupported"])
        if step not in [int(milestone) for milestone in cell["milestones"]]:
            return replace(gap, text="not planned", detail=f"step {step} is no milestone of it")
        if state := self.states.get(cell["cell"]):
            return replace(gap, text=state["text"], detail=state.get("detail") or "")
        if (cell["cell"], step) in self.selected.train:
            return replace(gap, text="not evaluated", detail="trained, not evaluated")
        return gap

    def _gap(self, row: RowPlan, cell: Planned, step: int) -> list[Missing]:
        return [] if self._record(cell, step) is not None else [self._absent(row, cell, step)]

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
                    self.notes.number(
                        f"The floor of {column.name}, {column.group} differs between records ({span}); mean shown."
                    )
                yield (j, step), middle

    def _column_floors(self, column: Column, step: int) -> Iterator[float]:
        for record in self._all_records(step):
            for row in record["body"]["rows"]:
                same = (row["metric"], row["group"], row["name"], row["n_gen"], row["n_floor"])
                wanted = (column.metric, column.group, column.name, column.n_gen, column.n_floor)
                if same == wanted and row["floor"] is not None:
                    yield float(row["floor"])

    def _row_notes(self, rows: Sequence[RowPlan], shown: int) -> list[tuple[int, ...]]:
        found = []
        for row in rows:
            records = [self._record(cell, shown) for cell in row.cells]
            found.append((row, [record for record in records if record is not None]))

        def others(record: Record) -> int:
            body = record["body"]
            return len(
                self.selected.others.get((body["cell"], int(body["step"]), body["evaluation"]["id"]), [])
            )

        return row_notes(found, self.plan.evaluation["extractor"]["name"], others, self.notes)


def _row(row: RowPlan, notes: tuple[int, ...], baseline: int | None) -> Row:
    cells = tuple((seed_of(cell), cell["cell"]) for cell in row.cells)
    return Row(row.label, row.method, row.axes, cells, notes, baseline)


def _seed_value(seed: int, cell: str, record: Record, measured: Mapping[str, Any]) -> SeedValue:
    """Older records have neither errors nor folds."""
    folds = measured.get("folds") or ()
    sound = bool(folds) and all(fold is not None and math.isfinite(fold) for fold in folds)
    return SeedValue(
        seed,
        float(measured["value"]),
        cell,
        record["digest"],
        se=measured.get("se"),
        corrected=measured.get("corrected"),
        folds=tuple(float(fold) for fold in folds) if sound else None,
        n=measured["n_gen"],
    )


def _identity(record: Record, row: Mapping[str, Any]) -> list[Any]:
    """What all values of a column must share."""
    keys = ("name", "better", "scale", "k", "n_gen", "n_ref")
    return [*(row[key] for key in keys), record["body"]["groups"]]


def _most_common(items: Sequence[bytes]) -> bytes:
    counts = Counter(items)
    return min(counts, key=lambda item: (-counts[item], item))


def _mean_sd(values: Sequence[float]) -> tuple[float | None, float | None]:
    if not values:
        return None, None
    mean = math.fsum(values) / len(values)
    if len(values) == 1:
        return mean, None
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
