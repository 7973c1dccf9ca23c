"""From a table's sections, the plan and published numbers to a sheet. Pure, like `assemble.py`, which calls it."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from ltbench.report.axes import Planned
from ltbench.report.chosen import check_keys
from ltbench.report.definition import SheetColumn, SheetDefinition
from ltbench.report.differences import difference
from ltbench.report.notes import Notes
from ltbench.report.paper import judged, tolerance_text, unlike
from ltbench.report.published import Publication, PublishedLine
from ltbench.report.select import Selected
from ltbench.report.sheet import Sheet, SheetBlockLines, SheetCell, SheetHead, SheetLine, Verdict
from ltbench.report.sheet_ours import Draft, Mine, Ours
from ltbench.report.sheet_theirs import Theirs
from ltbench.report.table import Entry, Section
from ltbench.report.words import EXTERNAL_TITLE, clean, printed


def build_sheet(
    sheet: SheetDefinition,
    sections: Sequence[Section],
    planned: Sequence[Planned],
    states: Mapping[str, Mapping[str, str]],
    selected: Selected,
    publication: Publication | None,
    notes: Notes,
    *,
    verdicts: bool = False,
) -> Sheet:
    """The sheet; `verdicts` adds a line with the difference below every row that has both numbers.

    Raises UsageError for selectors that mean nothing, or more than one published number.
    """
    check_keys(sheet, planned)
    ours = Ours(sheet, sections, planned, states, selected, notes)
    theirs = Theirs(sheet, publication, notes)
    drafts = [ours.drafts(block) for block in sheet.blocks]
    outside = ours.externals(drafts)
    every = [*drafts, outside]
    columns = [*sheet.columns, *(ours.foreign_columns(every) if publication else ())]
    writer = _Writer(sheet, columns, ours, theirs, notes)
    blocks = tuple(writer.block(place, lines, verdicts) for place, lines in enumerate(drafts))
    blocks += (writer.outside(outside),) if outside else ()
    heads = [
        SheetHead(
            c.name, ours.better(c, every), c.decimals, tolerance_text(c.tolerance), theirs.head_notes(c.name)
        )
        for c in columns
    ]
    cells = [cell for block in blocks for line in block.lines if line.kind == "ours" for cell in line.cells]
    return Sheet(
        columns=tuple(heads),
        blocks=blocks,
        source=theirs.source,
        bib=theirs.bib,
        bold=sheet.bold,
        chosen=tuple(dict.fromkeys(s.chosen_by for s in sections if s.chosen_by)),
        compared=sum(1 for cell in cells if cell.verdict is not None and cell.verdict.word),
        printed=len(theirs.lines),
    )


@dataclass
class _Writer:
    """Lines of words from both sides."""

    sheet: SheetDefinition
    columns: Sequence[SheetColumn]
    ours: Ours
    theirs: Theirs
    notes: Notes

    def block(self, place: int, drafts: Sequence[Draft], verdicts: bool) -> SheetBlockLines:
        """The lines of a block: of every row the published one, ours, and the difference."""
        block = self.sheet.blocks[place]
        self.ours.marks_of_settings(drafts)
        ranked = {column.name: self.ours.ranks(drafts, column) for column in self.columns}
        extra = [draft.row for draft in drafts if draft.row not in self.sheet.rows]
        lines: list[SheetLine] = []
        for row in [*block.shown(self.sheet.rows), *extra]:
            published = self.theirs.line(place, row, self.columns)
            lines += [published] if published else []
            for draft in (each for each in drafts if each.row == row):
                line = self._our_line(draft, drafts, ranked, self.theirs.of_row(place, row))
                lines.append(replace(line, follows=published is not None and line.name == row.name))
                if verdicts and published is not None and any(cell.value for cell in line.cells):
                    lines.append(_difference_line(line, self.columns, self.notes))
        return SheetBlockLines(block.title, (*lines, *self._floor_line(drafts)))

    def outside(self, drafts: Sequence[Draft]) -> SheetBlockLines:
        """The lines of externals, which are never ranked and have no seeds."""
        unranked: dict[str, dict[int, str]] = {column.name: {} for column in self.columns}
        lines = [self._our_line(draft, drafts, unranked, {}) for draft in drafts]
        told = [replace(line, kind="external", count="") for line in lines]
        return SheetBlockLines(EXTERNAL_TITLE, tuple(told))

    def _our_line(
        self,
        draft: Draft,
        drafts: Sequence[Draft],
        ranked: Mapping[str, Mapping[int, str]],
        theirs: Mapping[str, PublishedLine],
    ) -> SheetLine:
        made = []
        for column in self.columns:
            mine = draft.values.get(column.name)
            if mine is None:
                made.append(SheetCell(gap="-"))
                continue
            cell = self._our_cell(mine, column, ranked[column.name].get(id(draft), ""))
            printed_ = theirs.get(column.name)
            verdict = None if printed_ is None else self._verdict(draft, mine, column, printed_)
            made.append(replace(cell, change=self._change(draft, drafts, column, mine), verdict=verdict))
        said = [*draft.notes, *self._row_notes(draft), *_in_every([cell.notes for cell in made])]
        seeds = max((mine.entry.planned for mine in draft.values.values()), default=0)
        counts = {cell.count for cell in made if cell.value}
        count = counts.pop() if len(counts) == 1 else ""
        return SheetLine(
            "ours",
            draft.name,
            tuple(_without(cell, said, count) for cell in made),
            draft.row.cite or "",
            draft.row.reference,
            label=str(draft.cells[0]["label"]) if draft.cells else "",
            notes=tuple(dict.fromkeys(said)),
            count=count or (f"n={seeds}" if seeds else ""),
        )

    def _row_notes(self, draft: Draft) -> Iterator[int]:
        for mine in draft.values.values():
            if mine.spot is not None:
                yield from mine.spot.section.rows[mine.spot.row].notes

    def _our_cell(self, mine: Mine, column: SheetColumn, mark: str) -> SheetCell:
        scale = column.scale or mine.column.scale
        shown = replace(mine.column, scale=scale)
        texts = printed(mine.entry, shown, {mine.column.metric: column.decimals})
        numbers = [*texts.notes, *self._gap_notes(mine.entry)]
        floor = None
        if mine.spot is not None and mine.entry.values:
            step = self.ours.entry_step(mine)
            floor = None if step is None else mine.spot.section.floors.get((mine.spot.column, step))
        return SheetCell(
            texts.value, "", texts.sd, texts.se, texts.count, texts.gap, mark, tuple(dict.fromkeys(numbers)),
            mine.entry, floor, scale, f"{mine.column.name}, {mine.column.group}",
        )  # fmt: skip

    def _gap_notes(self, entry: Entry) -> list[int]:
        """A footnote for whatever a short word in a cell cannot say, but for a cell that is only not run yet."""
        found = []
        for gap in entry.missing:
            if gap.detail and gap.text not in ("not run", "not planned"):
                found.append(self.notes.number(clean(f"{gap.text}: {gap.detail}.")))
        return list(dict.fromkeys(found))

    def _change(self, draft: Draft, drafts: Sequence[Draft], column: SheetColumn, mine: Mine) -> str:
        """Ours minus our baseline over common seeds, signed and scaled; nothing where the two cannot be subtracted, nor where the
        baseline's row is several lines, for none of them is the one meant."""
        if not (draft.row.against and column.improvement and mine.entry.values):
            return ""
        bases = [each for each in drafts if each.row.name == draft.row.against]
        base = bases[0].values.get(column.name) if len(bases) == 1 else None
        if base is None or not base.entry.values:
            return ""
        gap = difference(mine.entry, base.entry, replace(mine.column, better="lower"))
        if gap is None:
            return ""
        scale = column.scale or mine.column.scale
        return f"{gap.value * scale:+.{column.decimals}f}"

    def _verdict(self, draft: Draft, mine: Mine, column: SheetColumn, line: PublishedLine) -> Verdict:
        assert self.theirs.publication is not None, "a published line comes from a publication"
        reasons = []
        if mine.entry.mean is None:
            gaps = dict.fromkeys(clean(gap.text) for gap in mine.entry.missing)
            reasons.append(f"no value of ours ({', '.join(gaps) or 'not planned'})")
        elif mine.facts is not None:
            reasons += unlike(line, self.theirs.publication, self.ours.told(draft, mine))
        if words := self.theirs.publication.unexplained(line):
            reasons.append(f"nobody says which setting {', '.join(words)} is")
        scale = column.scale or mine.column.scale
        value = math.nan if mine.entry.mean is None else mine.entry.mean * scale
        return judged(value, line.value, column.tolerance, column.better or mine.column.better, reasons)

    def _floor_line(self, drafts: Sequence[Draft]) -> list[SheetLine]:
        cells = []
        for column in self.columns:
            found = {}
            for draft in drafts:
                mine = draft.values.get(column.name)
                if mine is not None and mine.spot is not None and mine.entry.values:
                    cell = self._our_cell(mine, column, "")
                    if cell.floor is not None:
                        found[f"{cell.floor * cell.scale:.{column.decimals}f}"] = cell
            if not found:
                cells.append(SheetCell(gap="-"))
                continue
            first = next(iter(found.values()))
            cells.append(
                SheetCell(" / ".join(found), floor=first.floor, scale=first.scale, measured=first.measured)
            )
        return [SheetLine("floor", "real images", tuple(cells))] if any(cell.value for cell in cells) else []


def _in_every(lists: Sequence[Sequence[int]]) -> list[int]:
    first, *others = lists
    return [number for number in first if all(number in other for other in others)]


def _without(cell: SheetCell, said: Sequence[int], count: str) -> SheetCell:
    """A cell without what its line says already."""
    notes = tuple(number for number in cell.notes if number not in said)
    return replace(cell, notes=notes, count="" if cell.count == count else cell.count)


def _difference_line(ours: SheetLine, columns: Sequence[SheetColumn], notes: Notes) -> SheetLine:
    """Ours minus theirs with the verdict, or why there is none."""
    cells = []
    for cell, column in zip(ours.cells, columns, strict=True):
        verdict = cell.verdict
        if verdict is None:
            cells.append(SheetCell(gap="-"))
            continue
        number = (
            () if not verdict.reason else (notes.number(clean(f"Cannot be compared: {verdict.reason}.")),)
        )
        if verdict.difference is None:
            cells.append(SheetCell(gap="not compared", notes=number, verdict=verdict))
            continue
        value = f"{verdict.difference:+.{column.decimals}f}"
        cells.append(SheetCell(value, mark=verdict.word, notes=number, verdict=verdict))
    return SheetLine(
        "difference", ours.name, tuple(cells), reference=ours.reference, label=ours.label, follows=True
    )
