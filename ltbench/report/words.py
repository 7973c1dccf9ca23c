"""The words and digits that all views share; a view only escapes and lays out."""

from __future__ import annotations

import functools
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass

from ltbench.report.table import Column, Entry, Missing, Section, Table

ARROWS = {"lower": "↓", "higher": "↑", "zero": "→0"}
BETTER = {"lower": "lower is better", "higher": "higher is better", "zero": "closer to zero is better"}
FLOORS = {"lower": "floor", "higher": "ceiling"}  # what real images score; else "real value"
FLOOR_LABEL = "real images"
INTERRUPTED = "interrupted"  # of a cell that lacks records and that nothing is running or failing at
EXTERNAL_TITLE = "Not trained here, not ranked"
UNDRAWN_HEADING = "Not drawn yet"
TIE = "≈"
_DEFAULT_DECIMALS = 3


def clean(text: object) -> str:
    """One line without control, format and surrogate characters (terminal escapes, bidirectional overrides, newlines)."""
    return _clean(str(text))


@functools.lru_cache(maxsize=4096)  # a long table has few different texts
def _clean(text: str) -> str:
    spaced = " ".join(text.split())
    return "".join("\ufffd" if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Co") else c for c in spaced)


@dataclass(frozen=True)
class Printed:
    """One table cell in parts. `value` is empty where there is no number; then `gap` says why."""

    value: str
    sd: str  # over seeds
    se: str  # of the samples of the only seed; never beside an sd
    count: str  # "n=1", "n=2 of 3"; "" where all of two or more planned seeds are there
    gap: str
    mark: str
    notes: tuple[int, ...]


def number(value: float, column: Column, decimals: Mapping[str, int]) -> str:
    """A value as printed: scaled, with the metric's fixed decimals, never "-0.00"."""
    digits = decimals.get(column.metric, _DEFAULT_DECIMALS)
    text = f"{value * column.scale:.{digits}f}"
    return text.removeprefix("-") if float(text) == 0 else text


def printed(entry: Entry, column: Column, decimals: Mapping[str, int]) -> Printed:
    """An entry in words: mean, spread or sampling error, how many seeds, or why there is nothing."""
    if entry.mean is None:
        gap = "; ".join(dict.fromkeys(clean(missing.text) for missing in entry.missing))
        return Printed("", "", "", "", gap or "not planned", "", entry.notes)
    sd, se = ("" if value is None else number(value, column, decimals) for value in (entry.sd, entry.se))
    count = ""
    if entry.n < entry.planned:
        count = f"n={entry.n} of {entry.planned}"
    elif entry.n == 1:
        count = "n=1"
    return Printed(number(entry.mean, column, decimals), sd, se, count, "", entry.mark, entry.notes)


def spread(cell: Printed) -> str:
    """ " ±0.13" over seeds, " ±0.13 SE" over the samples of one network, or nothing."""
    if cell.sd:
        return f" ±{cell.sd}"
    return f" ±{cell.se} SE" if cell.se else ""


def method_heading(section: Section) -> str:
    """The head of the first column says how many seeds a value is over, unless it says otherwise itself."""
    return f"method (n={section.seeds_planned})"


def paired_blocks(section: Section) -> list[tuple[str, list[int], list[int]]]:
    """(metric, rows, columns) that have differences against a baseline at the shown step."""
    found = []
    for name in section.metrics():
        columns = [j for j, column in enumerate(section.columns) if column.name == name]
        rows = [
            i
            for i in range(len(section.rows))
            if any((i, j, section.shown) in section.differences for j in columns)
        ]
        if rows:
            found.append((name, rows, columns))
    return found


def paired_label(section: Section, place: int) -> str:
    """ "ccua - sit" """
    row = section.rows[place]
    base = "" if row.baseline is None else f" - {section.rows[row.baseline].label}"
    return clean(f"{row.label}{base}")


def paired_text(section: Section, row: int, place: int, decimals: Mapping[str, int]) -> str:
    """ "-1.23 ±0.20 better", "+0.10 ±0.30 ≈ tie", "+1.00, no error known", or a dash."""
    gap, column = section.differences.get((row, place, section.shown)), section.columns[place]
    if gap is None:
        return "-"
    value = number(gap.value, column, decimals)
    value = value if value.startswith("-") else f"+{value}"
    if gap.error is None:
        return f"{value} {TIE} tie" if gap.verdict == "tie" else f"{value}, no error known"
    sign = f"{TIE} " if gap.verdict == "tie" else ""
    few = "" if gap.seeds > 1 else " (n=1)"
    return f"{value} ±{number(gap.error, column, decimals)} {sign}{gap.verdict}{few}"


PAIRED_HEADING = "Paired differences against the baseline"
PAIRED_LEGEND = (
    "Row minus baseline over common seeds ± its standard error, and the verdict by the rule of the marks; (n=1): one common "
    "seed, so the error is that of the samples of two networks. Where closer to zero is better, distances from zero are compared."
)


def floor_text(section: Section, place: int, decimals: Mapping[str, int]) -> str:
    """The floor of column `place` at the shown step, or a dash."""
    value = section.floors.get((place, section.shown))
    return "-" if value is None else number(value, section.columns[place], decimals)


def metric_heading(section: Section, name: str) -> str:
    """ "KD[...] x1000 ↓ (lower is better)" """
    column = next(column for column in section.columns if column.name == name)
    scale = "" if column.scale == 1 else f" ×{column.scale:g}"
    better = f" {ARROWS[column.better]} ({BETTER[column.better]})" if column.better in BETTER else ""
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
        f"Protocol {ev['protocol']} ({_ids(section)}): {samples}, {reference},",
        f"features of {extractor['name']}@{extractor['sha256'][:8]}.",
        f"{plural(section.seeds_planned, 'training seed')} planned.",
        *([section.chosen_by] if section.chosen_by else []),
    ]
    return clean(" ".join(parts))


def _ids(section: Section) -> str:
    if len(section.ids) == 1:
        return f"evaluation {section.ids[0]}"
    differ = "guidance or metrics" if "guidance" not in section.evaluation else "metrics"
    return f"evaluations {', '.join(section.ids)}, which differ only in their {differ}"


def plural(count: int, noun: str) -> str:
    """ "1 seed", "2 seeds" """
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


# (seeds, how many of 100 equal pairs pass 2 standard errors): Student's t with n - 1 degrees of freedom
_BY_CHANCE = {2: 30, 3: 18, 4: 14, 5: 12}


def legend(table: Table, best: str, second: str) -> list[str]:
    """What marks and signs mean; `best` and `second` say how the view shows them."""
    lines = [
        "Value: mean over training seeds ± standard deviation over seeds. n: how many seeds, in the head of the first column, "
        "and in a cell that differs. With n=1 there is no spread: ± ... SE is the standard error over the samples of that one "
        "network, and knows nothing of training it again. head, body, tail: thirds of the classes ranked by training images.",
        f"{FLOOR_LABEL}: the same estimator on held-out real images, as many as were generated; what a perfect generator "
        "would score at this n. A floor where lower is better, a ceiling where higher is.",
        f"Marks: {best} is best, {second} second best: better than every row ranked below by more than 2 standard errors of "
        "the paired difference (same seeds, same folds of samples) and, for Fréchet distances, by more than 1.3 %. "
        f"{TIE} is a tie: these rows share the place, best or else second, and this test cannot tell the first of them from the "
        "others. No mark: beaten, or no error is known.",
        "The error of a difference is that over common seeds or over folds of samples, whichever is larger; with one common seed "
        "only the folds speak, so a mark then compares two networks, not two methods. Every comparison is tested on its own.",
    ]
    seeds = max((section.seeds_planned for section in table.sections), default=0)
    if seeds in _BY_CHANCE:
        lines.append(
            f"With {seeds} seeds the marks are weak: of two equal methods, one can pass 2 standard errors by chance in up to "
            f"{_BY_CHANCE[seeds]} of 100 comparisons."
        )
    return lines


def short_legend(section: Section, best: str, second: str) -> str:
    """One line for a table that travels without its page."""
    spread = f"mean ± standard deviation over n={section.seeds_planned} training seeds"
    if section.seeds_planned == 1:
        spread = "one training seed (n=1), ± ... SE: standard error over its samples"
    elif any(
        section.entry(i, j).n == 1 for i in range(len(section.rows)) for j in range(len(section.columns))
    ):
        spread += "; n=1: ± ... SE is the standard error over the samples of the only seed"
    return (
        f"{spread[0].upper()}{spread[1:]}. {best}, {second}: best, second best by more than 2 standard errors of the paired "
        f"difference (Fréchet distances: and 1.3 %); {TIE}: tie for that place."
    )


def missing_lines(section: Section) -> list[str]:
    """One line per planned cell without a value, with its id; empty when nothing is missing."""
    return [clean(_missing_line(missing)) for missing in section.missing]


def _missing_line(missing: Missing) -> str:
    detail = f" ({missing.detail})" if missing.detail else ""
    return f"{missing.label},{of_seed(missing.seed)}, cell {missing.cell[:12]}: {missing.text}{detail}"


def of_seed(seed: int | None) -> str:
    """ " seed 1"; nothing for what has no seed."""
    return "" if seed is None else f" seed {seed}"


def missing_heading(section: Section) -> str:
    """ "Missing: 2 of 8 cells" """
    planned = sum(len(row.cells) for row in section.rows if not row.external)
    return f"Missing: {len(section.missing)} of {plural(planned, 'cell')}"


def plan_line(table: Table) -> str:
    """The records an artefact was built from, in one digest that any change moves."""
    from ltbench.canonical import digest

    return (
        f"Built from {plural(len(table.records), 'record')}; all together {digest(list(table.records))[:16]}."
    )
