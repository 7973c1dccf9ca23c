"""The words of a sheet that all views share; a view only escapes and lays out."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from ltbench.report import words
from ltbench.report.sheet import Sheet, SheetCell, SheetHead, SheetLine

WHOSE_HEADING = "whose"
DIFFERENCE = "difference"


def head_text(head: SheetHead) -> str:
    """ "FID ↓" """
    arrow = words.ARROWS.get(head.better)
    return words.clean(f"{head.name} {arrow}" if arrow else head.name)


def whose(line: SheetLine) -> str:
    """Who made the numbers of a line: "published", "ours (n=3)", "difference", "held out"."""
    if line.kind == "ours":
        return f"ours ({line.count})" if line.count else "ours"
    return "held out" if line.kind == "floor" else line.kind


def name_text(line: SheetLine) -> str:
    """The row's name, once for the lines that follow each other."""
    return "" if line.follows else words.clean(line.name)


def heads(name: str, whose: str, notes: str) -> tuple[str, str]:
    """The first two entries of a line, with its notes where something stands: a lone number in the first would be read as a name."""
    return (name + notes, whose) if name else (name, whose + notes)


def value_text(cell: SheetCell) -> str:
    """The number with its parenthesis, or the difference with its verdict: "27.0 (-6.8)", "+0.4 within"."""
    text = f"{cell.value} ({cell.change})" if cell.change else cell.value
    return (
        f"{text} {cell.verdict.word}" if cell.verdict and cell.verdict.word and cell.entry is None else text
    )


def spread_text(cell: SheetCell) -> str:
    """ " ±0.13" over seeds, " ±0.13 SE" over the samples of one network, or nothing."""
    if cell.sd:
        return f" ±{cell.sd}"
    return f" ±{cell.se} SE" if cell.se else ""


def tip(cell: SheetCell) -> str:
    """What stands behind a number: seeds and records, the floor, the tolerance, or the line of the published file."""
    if cell.place:
        return words.clean(cell.place)
    parts = [words.clean(cell.measured)] if cell.measured else []
    if cell.entry is not None:
        parts += [
            f"{words.of_seed(v.seed).strip() or 'external'}: {v.value * cell.scale:.6g} ({v.digest[:8]})"
            for v in cell.entry.values
        ]
        parts += [f"{words.of_seed(m.seed).strip()}: {m.text}".strip(": ") for m in cell.entry.missing]
    if cell.floor is not None:
        parts.append(f"real images {cell.floor * cell.scale:.6g}")
    if cell.verdict is not None:
        parts.append(verdict_text(cell))
    return words.clean("; ".join(dict.fromkeys(parts)))


def verdict_text(cell: SheetCell) -> str:
    """ "within: +0.4 from the published number, allowed 1.7", or why there is none."""
    verdict = cell.verdict
    if verdict is None:
        return ""
    if not verdict.word:
        return f"cannot be compared: {verdict.reason}"
    return (
        f"{verdict.word}: {verdict.difference:+.6g} from the published number, allowed {verdict.allowed:.6g}"
    )


def legend(sheet: Sheet, best: str, second: str, theirs: str) -> list[str]:
    """What lines, parentheses, marks and verdicts mean; `theirs` says how the view shows a published line."""
    lines = list(sheet.chosen)
    if sheet.source:
        key = f" ({sheet.bib})" if sheet.bib else ""
        lines.append(
            f"Published lines, {theirs}: the digits as printed in {sheet.source}{key}; in parentheses the difference from the "
            "row of the same block that the definition names, as printed there. They are data, and no run of ours stands in them."
        )
    lines.append(
        "Ours: mean over training seeds ± standard deviation over seeds; n in the second column, and in a cell that differs. "
        "With n=1, ± ... SE is the standard error over the samples of that one network. In parentheses: the paired difference from "
        "our own line of that row, if it is one line, over common seeds."
    )
    if any(line.kind == "floor" for _, line in sheet.lines()):
        lines.append(
            f"{words.FLOOR_LABEL}: what held-out real images score; a floor where lower is better, a ceiling where higher is."
        )
    lines.append(
        f"Marks: {best} is best, {second} second best, {words.TIE} a tie, among our lines of equal settings in a block only, and "
        "only where the paired difference exceeds 2 standard errors and, for Fréchet distances, 1.3 %. Lines of other settings "
        "have a footnote and are ranked among themselves; reference rows are not ranked."
    )
    if sheet.bold == "printed":
        lines.append(
            f"In published lines {best} is the best printed number; no spread says whether that difference is real."
        )
    if any(line.kind == "difference" for _, line in sheet.lines()):
        lines += _verdicts(sheet)
    return lines


def _verdicts(sheet: Sheet) -> Iterator[str]:
    allowed = "; ".join(f"{head.name}: {head.tolerance}" for head in sheet.columns if head.tolerance)
    yield (
        f"Difference: ours minus published. within: no further than the declared tolerance (the larger of the two: {allowed}); "
        "better, worse: further, by the direction of the column."
    )
    yield compared_text(sheet)


def compared_text(sheet: Sheet) -> str:
    """ "12 of 120 published numbers compared: 10 within, 2 worse." """
    cells = [c for _, line in sheet.lines() if line.kind == "ours" for c in line.cells]
    found = Counter(c.verdict.word for c in cells if c.verdict is not None and c.verdict.word)
    said = ", ".join(
        f"{found[word]} {word}" for word in ("within", "better", "worse", "differs") if found[word]
    )
    return f"{sheet.compared} of {sheet.printed} published numbers compared{': ' + said if said else ''}."
