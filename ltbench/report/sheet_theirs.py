"""The published side of a sheet: which printed number stands where, and its footnotes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property

from ltbench.errors import UsageError
from ltbench.report.chosen import merged
from ltbench.report.definition import SheetColumn, SheetDefinition, SheetRow
from ltbench.report.notes import Notes
from ltbench.report.published import Publication, PublishedLine
from ltbench.report.sheet import SheetCell, SheetLine
from ltbench.report.sheet_notes import PublishedNotes


@dataclass
class Theirs:
    """Published numbers by (place of the block, row, column). Without a publication there are none."""

    sheet: SheetDefinition
    publication: Publication | None
    notes: Notes

    @cached_property
    def lines(self) -> dict[tuple[int, str, str], PublishedLine]:
        """All that the sheet prints. Raises UsageError for a row or a column that fits no printed number, or for one that fits several."""
        found = {}
        for place, block in enumerate(self.sheet.blocks if self.publication else ()):
            for row in block.shown(self.sheet.rows):
                if row.theirs is None:
                    continue
                known = len(found)
                for column in self.sheet.columns:
                    selector = merged(self.sheet.theirs, block.theirs, row.theirs, column.theirs)
                    if self.publication and (line := self.publication.find(selector)):
                        found[place, row.name, column.name] = line
                if len(found) == known:
                    where = f"{block.title}, {row.name}" if block.title else row.name
                    raise UsageError(
                        f"{where}: no published number of {self.sheet.published}.csv fits `theirs`",
                        "correct it, or leave the row out of the block's `rows`",
                    )
        for column in self.sheet.columns if found else ():
            if column.theirs and not any(name == column.name for _, _, name in found):
                raise UsageError(
                    f"{column.name}: no published number of {self.sheet.published}.csv fits the column's `theirs`",
                    "correct it, or leave `theirs` out of the column",
                )
        return found

    @property
    def source(self) -> str:
        """Where the numbers are from; "" where none is printed."""
        return self.publication.source if self.publication and self.lines else ""

    @property
    def bib(self) -> str:
        """The key of its entry in references.bib."""
        return self.publication.bib if self.publication and self.lines else ""

    def of_row(self, place: int, row: SheetRow) -> dict[str, PublishedLine]:
        """By column."""
        return {
            column: line for (at, name, column), line in self.lines.items() if (at, name) == (place, row.name)
        }

    def head_notes(self, column: str) -> tuple[int, ...]:
        """Footnotes of a column's head."""
        return () if self._footnotes is None else self._footnotes.heads.get(column, ())

    @cached_property
    def _footnotes(self) -> PublishedNotes | None:
        if self.publication is None:
            return None
        by_column: dict[str, list[PublishedLine]] = {column.name: [] for column in self.sheet.columns}
        for (_, _, column), line in self.lines.items():
            by_column[column].append(line)
        return PublishedNotes(self.publication, self.notes, by_column)

    def line(self, place: int, row: SheetRow, columns: Sequence[SheetColumn]) -> SheetLine | None:
        """The published line of a row; None where it has none."""
        own = self.of_row(place, row)
        if not own or self._footnotes is None:
            return None
        general, cells = self._footnotes.of_line(own)
        base = {} if row.against is None else self._row_named(place, row.against)
        best = self._best(place) if self.sheet.bold == "printed" else {}
        made = []
        for column in columns:
            line = own.get(column.name)
            if line is None:
                made.append(SheetCell(gap="-"))
                continue
            under = base.get(column.name) if column.improvement else None
            change = "" if under is None else f"{Decimal(line.value) - Decimal(under.value):+}"
            mark = "best" if best.get(column.name) == row.name else ""
            made.append(SheetCell(line.value, change, mark=mark, notes=cells[column.name], place=line.place))
        return SheetLine("published", row.name, tuple(made), row.cite or "", row.reference, notes=general)

    def _row_named(self, place: int, name: str) -> dict[str, PublishedLine]:
        return {column: line for (at, row, column), line in self.lines.items() if (at, row) == (place, name)}

    def _best(self, place: int) -> dict[str, str]:
        ranked = {row.name for row in self.sheet.rows if not row.reference}
        theirs = {
            (row, column): line
            for (at, row, column), line in self.lines.items()
            if at == place and row in ranked
        }
        return _printed_best(self.sheet.columns, theirs)


def _printed_best(
    columns: Sequence[SheetColumn], theirs: Mapping[tuple[str, str], PublishedLine]
) -> dict[str, str]:
    """{column: row} of the best printed number of a block, by its digits alone; none where two are equal."""
    found = {}
    for column in columns:
        if column.better is None:
            continue
        values = {row: Decimal(line.value) for (row, name), line in theirs.items() if name == column.name}
        if len(values) < 2:
            continue
        best = (min if column.better == "lower" else max)(values.values())
        leaders = [row for row, value in values.items() if value == best]
        if len(leaders) == 1:
            found[column.name] = leaders[0]
    return found
