"""Numbered footnotes, and the differences between records that deserve one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ltbench.report.axes import RowPlan, flat, seed_of, start_text

Record = Mapping[str, Any]
Found = Sequence[tuple[RowPlan, list[Record]]]  # every row with its records at the shown step

SHARED_CODE = ("trainer", "data", "evaluation")


class Notes:
    """Footnotes numbered in order of their first use; the same text keeps its number."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def number(self, text: str) -> int:
        """The number of `text`, from 1."""
        if text not in self.texts:
            self.texts.append(text)
        return self.texts.index(text) + 1


def row_notes(
    found: Found, extractor: str, others: Callable[[Record], int], notes: Notes
) -> list[tuple[int, ...]]:
    """Footnote numbers of every row: mixed code, mixed data, further records, a method trained against the extractor."""
    numbers: list[list[int]] = [[] for _ in found]
    for component in SHARED_CODE:
        _mixed(found, f"{component} code", lambda r, c=component: r["body"]["code"].get(c), notes, numbers)
    for network in sorted({row.cells[0]["settings"]["network"] for row, _ in found}):
        same = [(row, rs if row.cells[0]["settings"]["network"] == network else []) for row, rs in found]
        _mixed(same, "network code", lambda r: r["body"]["code"].get("network"), notes, numbers)
    _mixed(found, "training data", lambda r: r["body"].get("data_sha256"), notes, numbers)
    for place, (row, records) in enumerate(found):
        alone: Found = [(row, records)]
        own = [numbers[place]]
        _mixed(alone, "method code", lambda r: r["body"]["code"].get("method"), notes, own)
        _mixed(alone, "code of the start", lambda r: r["body"]["code"].get("init"), notes, own)
        if text := _start_note(row):
            numbers[place].append(notes.number(text))
        if further := sum(others(record) for record in records):
            noun = "record" if further == 1 else "records"
            text = f"{row.label}: {further} older {noun} of the same cells and evaluation (other code or attempt) not used."
            numbers[place].append(notes.number(text))
        if any(
            value == extractor for name, value in flat(row.cells[0]["settings"]) if name.startswith("method.")
        ):
            text = f"{row.label} trains against {extractor}, the extractor of these metrics: its values are flattered."
            numbers[place].append(notes.number(text))
    return [tuple(row) for row in numbers]


def _start_note(row: RowPlan) -> str | None:
    """What a row's steps do not count, and where its weights begin."""
    init = row.cells[0]["settings"].get("init")
    if init is None:
        return None
    if "source" in init:
        cells = ", ".join(
            f"{cell['settings']['init']['cell'][:8]} for seed {seed_of(cell)}" for cell in row.cells
        )
        begun = f"the EMA weights of {start_text(init)} (cell {cells})"
    else:
        begun = f"{start_text(init)} (external weights, prior steps as declared)"
    return f"{row.label}: {init['prior_steps']:,} prior steps; its own are counted from {begun}."


def _mixed(
    found: Found, what: str, value: Callable[[Record], str | None], notes: Notes, numbers: list[list[int]]
) -> None:
    """One footnote, on every row with a minority value, when the records do not share `value`."""
    counts = Counter(str(value(record)) for _, records in found for record in records)
    if len(counts) < 2:
        return
    ranked = sorted(counts, key=lambda digest: (-counts[digest], digest))
    holders = []
    for digest in ranked:
        who = [
            f"{row.label} seed {seed_of(cell)}"
            for row, records in found
            for cell in row.cells
            if any(r["body"]["cell"] == cell["cell"] and str(value(r)) == digest for r in records)
        ]
        holders.append(f"{digest[:8]} in {', '.join(who)}")
    number = notes.number(f"Mixed {what}: {'; '.join(holders)}.")
    for place, (_, records) in enumerate(found):
        if any(str(value(record)) != ranked[0] for record in records):
            numbers[place].append(number)
