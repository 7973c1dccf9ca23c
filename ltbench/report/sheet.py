"""A table in a paper's form, as every view prints it: blocks of lines, published numbers in lines of their own beside ours."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from ltbench.report.table import Entry

DRIFTED = ("better", "worse", "differs")  # verdicts that `--fail-on drift` names


@dataclass(frozen=True)
class Verdict:
    """Ours against a published number. word: within | better | worse | differs (no direction) | "" with the reason why not."""

    word: str
    difference: float | None = None  # ours minus theirs, in printed units
    allowed: float | None = None  # the tolerance, in printed units
    reason: str = ""


@dataclass(frozen=True)
class SheetCell:
    """One cell in words, with the numbers behind it. `value` is empty where there is none; then `gap` says why."""

    value: str = ""
    change: str = ""  # against the declared baseline, signed: "-6.8"
    sd: str = ""
    se: str = ""
    count: str = ""
    gap: str = ""
    mark: str = ""  # best | second | tie; of a difference the verdict's word
    notes: tuple[int, ...] = ()
    entry: Entry | None = None  # ours: the seeds, their records and the spread
    floor: float | None = None  # what real images score here, unscaled
    scale: float = 1.0
    measured: str = ""  # the metric as our records name it, and its group
    verdict: Verdict | None = None
    place: str = ""  # published: FILE:LINE


@dataclass(frozen=True)
class SheetLine:
    """One line. Published and ours of one row follow each other and are never merged."""

    kind: str  # published | ours | difference | floor | external
    name: str  # of the row
    cells: tuple[SheetCell, ...]
    cite: str = ""
    reference: bool = False
    label: str = ""  # ours: of the plan
    notes: tuple[int, ...] = ()
    count: str = ""  # of seeds, in every cell that says nothing else: "n=3", "n=2 of 3"
    follows: bool = False  # below the published line of the same row: views need not name it again


@dataclass(frozen=True)
class SheetBlockLines:
    """Lines under one title ("" for the only block)."""

    title: str
    lines: tuple[SheetLine, ...]


@dataclass(frozen=True)
class SheetHead:
    """The head of a column."""

    name: str
    better: str  # lower | higher | ""
    decimals: int
    tolerance: str = ""  # in words; "" where none is declared
    notes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Sheet:
    """The whole; `table.Table.notes` holds its footnotes."""

    columns: tuple[SheetHead, ...]
    blocks: tuple[SheetBlockLines, ...]
    source: str  # of the published numbers; "" without
    bib: str
    bold: str  # SheetDefinition.bold
    chosen: tuple[str, ...] = ()  # how guidance was chosen, where it was
    compared: int = 0  # published numbers with a verdict
    printed: int = 0  # published numbers

    def lines(self) -> Iterator[tuple[str, SheetLine]]:
        """(block title, line) in order."""
        for block in self.blocks:
            for line in block.lines:
                yield block.title, line

    def records(self) -> set[str]:
        """Digests of the records behind ours."""
        entries = [cell.entry for _, line in self.lines() for cell in line.cells if cell.entry]
        return {value.digest for entry in entries for value in entry.values}

    def drifted(self) -> list[str]:
        """One line for every cell of ours that is outside the tolerance of the published number."""
        found = []
        for title, line in self.lines():
            if line.kind != "ours":
                continue
            for head, cell in zip(self.columns, line.cells, strict=True):
                verdict = cell.verdict
                if verdict is not None and verdict.word in DRIFTED:
                    where = ", ".join(filter(None, (title, line.name, head.name)))
                    gap, allowed = _apart(verdict.difference or 0.0, verdict.allowed or 0.0, head.decimals)
                    told = f"ours {cell.value}, {gap} against the published number, allowed {allowed}"
                    found.append(f"{where}: {verdict.word}; {told}")
        return found


def _apart(gap: float, allowed: float, decimals: int) -> tuple[str, str]:
    """A difference and the smaller one that is allowed, with as many decimals more as it takes to see which is larger."""
    while decimals < 12 and f"{abs(gap):.{decimals}f}" == f"{allowed:.{decimals}f}":
        decimals += 1
    return f"{gap:+.{decimals}f}", f"{allowed:.{decimals}f}"
