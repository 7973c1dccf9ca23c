"""The words and digits that all views share; a view only escapes and lays out."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass

from ltbench.report.table import Column, Entry, Missing, Section, Table

ARROWS = {"lower": "↓", "higher": "↑", "": ""}
FLOOR_LABEL = "real images"
_DEFAULT_DECIMALS = 3


def clean(text: object) -> str:
    """One line without control, format and surrogate characters (terminal escapes, bidirectional overrides, newlines)."""
    spaced = " ".join(str(text).split())
    return "".join("\ufffd" if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co") else c for c in spaced)


@dataclass(frozen=True)
class Printed:
    """One table cell in parts. `value` is empty where there is no number; then `gap` says why."""

    value: str
    sd: str
    count: str  # "1/2" where seeds are missing, "n=1" where one was planned, else ""
    gap: str
    mark: str
    notes: tuple[int, ...]


def number(value: float, column: Column, decimals: Mapping[str, int]) -> str:
    """A value as printed: scaled, with the metric's fixed decimals, never "-0.00"."""
    digits = decimals.get(column.metric, _DEFAULT_DECIMALS)
    text = f"{value * column.scale:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def printed(entry: Entry, column: Column, decimals: Mapping[str, int]) -> Printed:
    """An entry in words: mean, spread, how many seeds, or why there is nothing."""
    if entry.mean is None:
        gap = "; ".join(dict.fromkeys(clean(missing.text) for missing in entry.missing))
        return Printed("", "", "", gap or "not planned", "", entry.notes)
    sd = "" if entry.sd is None else number(entry.sd, column, decimals)
    count = ""
    if entry.n < entry.planned:
        count = f"{entry.n}/{entry.planned}"
    elif entry.planned == 1:
        count = "n=1"
    return Printed(number(entry.mean, column, decimals), sd, count, "", entry.mark, entry.notes)


def floor_text(section: Section, place: int, decimals: Mapping[str, int]) -> str:
    """The floor of column `place` at the shown step, or a dash."""
    value = section.floors.get((place, section.shown))
    return "-" if value is None else number(value, section.columns[place], decimals)


def metric_heading(section: Section, name: str) -> str:
    """ "KD[...] x1000 ↓ (lower is better)" """
    column = next(column for column in section.columns if column.name == name)
    scale = "" if column.scale == 1 else f" ×{column.scale:g}"
    better = f" {ARROWS[column.better]} ({column.better} is better)" if column.better else ""
    k = f", k = {column.k}" if column.k else ""
    return clean(f"{name}{scale}{k}{better}")


def section_line(section: Section) -> str:
    """How the numbers of a section were made, in one sentence each."""
    ev = section.evaluation
    extractor = ev["extractor"]
    labels = "no labels" if ev["labels"] is None else f"labels {ev['labels']}"
    samples = f"{ev['samples']} generated images, {labels}, sampling seed {ev['seed']}"
    reference = f"against {ev['reference']}"
    if count := next((c.n_ref for c in section.columns if c.group == "all" and c.n_ref), None):
        reference += f" ({count} images)"
    parts = [
        f"{section.setup}.",
        f"Protocol {ev['protocol']} (evaluation {ev['id']}): {samples}, {reference},",
        f"features of {extractor['name']}@{extractor['sha256'][:8]}.",
        f"{plural(section.seeds_planned, 'training seed')} planned.",
    ]
    return clean(" ".join(parts))


def plural(count: int, noun: str) -> str:
    """ "1 seed", "2 seeds" """
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def legend(table: Table, best: str, second: str) -> list[str]:
    """What marks and signs mean; `best` and `second` say how the view shows them."""
    seeds = max((section.seeds_planned for section in table.sections), default=0)
    lines = [
        "Value: mean over training seeds ± standard deviation over seeds; 1/2 after a value: one of two planned seeds. "
        "head, body, tail: thirds of the classes ranked by training images.",
        f"{FLOOR_LABEL}: the same estimator on held-out real images, as many as were generated; what a perfect generator "
        "would score at this n.",
        f"Marks: {best} is best, {second} second best, only where the mean difference over common seeds to every row below "
        "exceeds 2 standard errors of that paired difference; one seed, or differences equal to the last digit, mark nothing.",
    ]
    if seeds == 2:
        lines.append(
            "With two seeds the marks are weak: of two equal methods, one passes this test by chance about 3 times in 10."
        )
    return lines


def missing_lines(section: Section) -> list[str]:
    """One line per planned cell without a value, with its id; empty when nothing is missing."""
    return [clean(_missing_line(missing)) for missing in section.missing]


def _missing_line(missing: Missing) -> str:
    detail = f" ({missing.detail})" if missing.detail else ""
    return f"{missing.label}, seed {missing.seed}, cell {missing.cell[:12]}: {missing.text}{detail}"


def missing_heading(section: Section) -> str:
    """ "Missing: 2 of 8 cells" """
    planned = sum(len(row.cells) for row in section.rows)
    return f"Missing: {len(section.missing)} of {plural(planned, 'cell')}"


def plan_line(table: Table) -> str:
    """The records an artefact was built from, in one digest that any change moves."""
    from ltbench.canonical import digest

    return (
        f"Built from {plural(len(table.records), 'record')}; all together {digest(list(table.records))[:16]}."
    )
