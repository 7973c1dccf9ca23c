"""Every number in long form: one line per mean, per seed and per floor, at every milestone, unscaled and unrounded."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from typing import Any

from ltbench.protocols import sampling_text
from ltbench.report import render_cost, words
from ltbench.report.sheet import Sheet, SheetCell
from ltbench.report.table import Entry, Section, Table

FIELDS: tuple[str, ...] = (
    "kind",  # mean (over seeds), seed (one run), or what real images score: floor, ceiling, real value
    "part", "dataset", "evaluation", "protocol", "sampler", "sampling_steps", "guidance", "sampling", "extractor",
    # external: samples or checkpoint, where the row was not trained here
    "label", "method", "external", "axes", "seed", "cell", "record", "step",
    "metric", "name", "group", "better", "scale", "k", "estimator",
    "value", "sd", "n", "planned",  # sd over n training seeds
    "se", "corrected",  # of one network: sampling error; jackknife bias-corrected value (kind mean: their mean)
    "floor", "n_gen", "n_ref", "n_floor", "mark", "missing",
    # minus the baseline, over common seeds; difference_over: what its error is over, seeds or folds
    "baseline", "difference", "difference_se", "difference_seeds", "difference_over", "verdict",
    # lines of a sheet: kind published (value: the digits as printed; source: file and line), and kind ours with what the published
    # number is, the difference (printed units) and whether it is within the tolerance, or why it cannot be compared
    "block", "column", "source", "published", "against_published", "published_verdict", "not_compared",
    # lines of the cost section (kind cost): metric is steps_per_s, memory_bytes ...; what kind of step it was, and on what
    "setting", "where",
)  # fmt: skip


def escape(text: object) -> str:
    """Text that a spreadsheet will not run: a leading = + - @ or tab gets an apostrophe. For text fields only."""
    safe = words.clean(text)
    return f"'{safe}" if safe[:1] in ("=", "+", "-", "@") else safe


def render_csv(table: Table) -> str:
    """RFC 4180 with \\n line ends. Numbers by repr: they read back bit for bit. Multiply by `scale` to get the printed value."""
    target = io.StringIO()
    writer = csv.DictWriter(target, FIELDS, restval="", lineterminator="\n")
    writer.writeheader()
    for section in table.sections:
        for line in _lines(section):
            writer.writerow({key: _field(value) for key, value in line.items()})
    for line in () if table.costs is None else render_cost.csv_lines(table.costs):
        writer.writerow({key: _field(value) for key, value in line.items()})
    for line in () if table.sheet is None else _sheet_lines(table.sheet):
        writer.writerow({key: _field(value) for key, value in line.items()})
    return target.getvalue()


class Digits(str):
    """A number as somebody printed it, checked when it was read: its trailing zeros and its sign are kept."""


def _field(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, Digits):
        return str(value)
    return repr(value) if isinstance(value, int | float) else escape(value)


def _lines(section: Section) -> Iterator[dict[str, Any]]:
    for step in section.steps:
        for j, column in enumerate(section.columns):
            base = {**_context(section), "step": step, **_column(section, j, step)}
            for i, row in enumerate(section.rows):
                axes = "; ".join(
                    f"{name}={value}" for name, value in zip(section.axes, row.axes, strict=True)
                )
                known = {**base, "label": row.label, "method": row.method, "axes": axes}
                known |= _guidance(section, [cell for _, cell in row.cells], step)
                if row.external:
                    if step != section.shown:
                        continue
                    known |= {"external": row.external.kind, "step": row.external.step or None}
                for line in _entry({**known, **_difference(section, i, j, step)}, section.entry(i, j, step)):
                    yield {**line, **_guidance(section, [line.get("cell", "")], step)}
            if (j, step) in section.floors:
                floor = section.floors[j, step]
                yield {
                    **base,
                    "kind": words.FLOORS.get(column.better, "real value"),
                    "label": words.FLOOR_LABEL,
                    "value": floor,
                    "n_gen": column.n_floor,
                }


def _sheet_lines(sheet: Sheet) -> Iterator[dict[str, Any]]:
    """The printed numbers of a sheet, and ours beside them."""
    for block in sheet.blocks:
        printed: dict[tuple[str, str], SheetCell] = {}
        for line in block.lines:
            for head, cell in zip(sheet.columns, line.cells, strict=True):
                base = {"label": line.name, "block": block.title, "column": head.name, "better": head.better}
                if line.kind == "published" and cell.value:
                    printed[line.name, head.name] = cell
                    source = f"{sheet.bib} {cell.place}".strip()
                    yield {**base, "kind": "published", "value": Digits(cell.value), "source": source}
                elif line.kind == "ours" and cell.entry is not None:
                    yield {**base, "kind": "ours", **_ours(cell, printed.get((line.name, head.name)))}


def _ours(cell: SheetCell, theirs: SheetCell | None) -> dict[str, Any]:
    entry, verdict = cell.entry, cell.verdict
    assert entry is not None, "the caller asks for cells with a value of ours only"
    known: dict[str, Any] = {
        "value": entry.mean,
        "sd": entry.sd,
        "n": entry.n,
        "planned": entry.planned,
        "mark": cell.mark,
        "missing": cell.gap,
        "record": "; ".join(value.digest for value in entry.values),
        "name": cell.measured,
        "scale": cell.scale,
    }
    if theirs is not None:
        known["published"] = Digits(theirs.value)
    if verdict is not None:
        known |= {"against_published": verdict.difference, "published_verdict": verdict.word}
        known["not_compared"] = verdict.reason
    return known


def _context(section: Section) -> dict[str, Any]:
    ev = section.evaluation
    return {
        "part": section.part,
        "dataset": section.dataset["name"],
        "evaluation": "; ".join(section.ids),
        "protocol": ev["protocol"],
        "sampler": ev["sampler"],
        "sampling_steps": ev["steps"],
        "guidance": ev.get("guidance"),
        "sampling": sampling_text(ev),
        "extractor": f"{ev['extractor']['name']}@{ev['extractor']['sha256']}",
    }


def _guidance(section: Section, cells: Sequence[str], step: int) -> dict[str, Any]:
    """The guidance of cells that have their own: a number, or all of them where seeds differ."""
    found = sorted({section.guidance[cell, step] for cell in cells if (cell, step) in section.guidance})
    if not found:
        return {}
    return {"guidance": found[0] if len(found) == 1 else "; ".join(f"{w!r}" for w in found)}


def _column(section: Section, place: int, step: int) -> dict[str, Any]:
    column = section.columns[place]
    keys = ("metric", "name", "group", "better", "scale", "k", "estimator", "n_gen", "n_ref", "n_floor")
    return {**{key: getattr(column, key) for key in keys}, "floor": section.floors.get((place, step))}


_OF_MEANS = ("baseline", "difference", "difference_se", "difference_seeds", "difference_over", "verdict")


def _difference(section: Section, i: int, j: int, step: int) -> dict[str, Any]:
    gap, base = section.differences.get((i, j, step)), section.rows[i].baseline
    label = None if base is None else section.rows[base].label
    if gap is None:
        return dict.fromkeys(_OF_MEANS) | {"baseline": label}
    known = (label, gap.value, gap.error, gap.seeds, gap.source, gap.verdict)
    return dict(zip(_OF_MEANS, known, strict=True))


def _entry(known: dict[str, Any], entry: Entry) -> Iterator[dict[str, Any]]:
    yield {
        **known,
        "kind": "mean",
        "value": entry.mean,
        "sd": entry.sd,
        "n": entry.n,
        "planned": entry.planned,
        "se": entry.se,
        "corrected": entry.corrected,
        "mark": entry.mark,
        "missing": "; ".join(f"{words.of_seed(gap.seed)}: {gap.text}".strip(": ") for gap in entry.missing),
    }
    for value in entry.values:
        yield {
            **{key: text for key, text in known.items() if key not in _OF_MEANS},
            "kind": "seed",
            "seed": value.seed,
            "cell": value.cell,
            "record": value.digest,
            "value": value.value,
            "se": value.se,
            "corrected": value.corrected,
        }
