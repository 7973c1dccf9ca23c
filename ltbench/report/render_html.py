"""The page: one file with tables and figures, nothing to fetch. A jinja2 template that escapes every value.

Its one script sorts tables; the page's own policy lets nothing run but this text, by its hash.
"""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ltbench.report import render_cost, sheet_words, words
from ltbench.report.select import Record
from ltbench.report.sheet import Sheet, SheetCell
from ltbench.report.table import Column, Entry, Section, SeedValue, Table


@dataclass(frozen=True)
class Picture:
    """A rendered figure of one section (by its place in the table)."""

    section: int
    name: str  # file name without suffix
    caption: str
    png: bytes
    wide: bool
    kind: str
    vectors: Mapping[str, bytes] = field(default_factory=dict)  # by format


def _script() -> tuple[str, str]:
    """The script, and its hash as a content security policy names it."""
    text = Path(__file__).with_name("page.js").read_text(encoding="utf-8")
    hashed = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
    return text, f"sha256-{hashed}"


def render_html(table: Table, pictures: Sequence[Picture], records: Sequence[Record]) -> str:
    """`records` are those in the table, for the list of what it was made from; their envelopes tell where and with what."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    )
    template = environment.get_template("page.html")
    script, script_hash = _script()
    return template.render(
        script=Markup(script),
        script_hash=script_hash,
        title=words.clean(table.title),
        lead=_lead(table),
        sheet=None if table.sheet is None else _sheet(table.sheet),
        cost=None if table.costs is None else render_cost.page(table.costs),
        sections=[_section(table, i, section, pictures) for i, section in enumerate(table.sections)],
        undrawn=table.undrawn,
        undrawn_heading=words.UNDRAWN_HEADING,
        notes=[words.clean(note) for note in table.notes],
        legend=[*_sheet_legend(table), *words.legend(table, "bold on a tint", "underlined")],
        floor_label=words.FLOOR_LABEL,
        tie=words.TIE,
        paired_heading=words.PAIRED_HEADING,
        paired_legend=words.PAIRED_LEGEND,
        built=words.plan_line(table),
        records=_records(table, records),
    )


def _lead(table: Table) -> str:
    rows = [row for section in table.sections for row in section.rows if not row.external]
    cells = {cell for row in rows for _, cell in row.cells}
    missing = {gap.cell for section in table.sections for gap in section.missing}
    state = "all done" if not missing else f"{len(missing)} still missing"
    state += "; some figures wait (below)" if table.undrawn else ""
    return words.clean(f"Benchmark {table.name}: {words.plural(len(cells), 'training run')}, {state}.")


def _sheet(sheet: Sheet) -> dict[str, Any]:
    return {
        "heads": [{"text": sheet_words.head_text(head), "notes": head.notes} for head in sheet.columns],
        "whose": sheet_words.WHOSE_HEADING,
        "blocks": [
            {
                "title": words.clean(block.title),
                "lines": [
                    {
                        "kind": line.kind,
                        "name": sheet_words.name_text(line),
                        "whose": sheet_words.whose(line),
                        "notes": line.notes,
                        "cells": [_sheet_cell(cell) for cell in line.cells],
                    }
                    for line in block.lines
                ],
            }
            for block in sheet.blocks
        ],
    }


def _sheet_cell(cell: SheetCell) -> dict[str, Any]:
    return {
        "value": words.clean(sheet_words.value_text(cell)),
        "spread": sheet_words.spread_text(cell),
        "count": cell.count,
        "gap": words.clean(cell.gap),
        "mark": cell.mark,
        "notes": cell.notes,
        "tip": sheet_words.tip(cell),
        "record": _first_record(cell.entry),
    }


def _first_record(entry: Entry | None) -> str:
    """Where the page's list of records begins to tell of a value: those of its other seeds follow."""
    return entry.values[0].digest[:16] if entry is not None and entry.values else ""


def _sheet_legend(table: Table) -> list[str]:
    if table.sheet is None:
        return []
    return sheet_words.legend(table.sheet, "bold on a tint", "underlined", "in grey italics")


def _section(table: Table, place: int, section: Section, pictures: Sequence[Picture]) -> dict[str, Any]:
    return {
        "title": words.clean(section.title),
        "how": words.section_line(section),
        "blocks": [_block(table, section, name) for name in section.metrics()],
        "paired": _paired(table, section) if table.paired else [],
        "missing": words.missing_lines(section),
        "missing_heading": words.missing_heading(section),
        "figures": [
            {"caption": words.clean(p.caption), "wide": p.wide, "data": base64.b64encode(p.png).decode()}
            for p in pictures
            if p.section == place
        ],
    }


def _block(table: Table, section: Section, name: str) -> dict[str, Any]:
    places = [place for place, column in enumerate(section.columns) if column.name == name]
    heading = words.metric_heading(section, name)
    rows = [
        {
            "label": words.clean(row.label),
            "notes": row.notes,
            "cells": [_cell(section.entry(i, j), section.columns[j], table.decimals) for j in places],
        }
        for i, row in enumerate(section.rows)
    ]
    floors = [
        {"value": words.floor_text(section, j, table.decimals), "tip": _floor_tip(section.columns[j])}
        for j in places
    ]
    return {
        "name": words.clean(name),
        "method": words.method_heading(section),
        "better": heading.removeprefix(words.clean(name)).lstrip(", "),
        "groups": [section.columns[j].group for j in places],
        "rows": rows,
        "floors": floors,
    }


def _paired(table: Table, section: Section) -> list[dict[str, Any]]:
    return [
        {
            "name": words.clean(name),
            "groups": [section.columns[j].group for j in places],
            "rows": [
                {
                    "label": words.paired_label(section, i),
                    "cells": [words.paired_text(section, i, j, table.decimals) for j in places],
                }
                for i in rows
            ],
        }
        for name, rows, places in words.paired_blocks(section)
    ]


def _cell(entry: Entry, column: Column, decimals: Mapping[str, int]) -> dict[str, Any]:
    shown = words.printed(entry, column, decimals)
    return {**vars(shown), "spread": words.spread(shown), "tip": _tip(entry, column, decimals),
            "record": _first_record(entry)}  # fmt: skip


def _tip(entry: Entry, column: Column, decimals: Mapping[str, int]) -> str:
    """What a pointer shows: every seed's value, the sample counts, and why a seed is missing."""

    def of(seed: int | None) -> str:
        return words.of_seed(seed).strip() or "external"

    parts = [f"{of(v.seed)}: {_seed_text(v, column, decimals)} ({v.digest[:8]})" for v in entry.values]
    parts += [f"{of(gap.seed)}: {gap.text}" for gap in entry.missing]
    if entry.values:
        parts.append(f"{column.n_gen} generated against {column.n_ref} real images")
    return words.clean("; ".join(parts))


def _seed_text(value: SeedValue, column: Column, decimals: Mapping[str, int]) -> str:
    """ "10.42 ±0.13 SE, bias-corrected 9.98", as far as the record has them."""
    text = words.number(value.value, column, decimals)
    if value.se is not None:
        text += f" ±{words.number(value.se, column, decimals)} SE"
    if value.corrected is not None:
        text += f", bias-corrected {words.number(value.corrected, column, decimals)}"
    return text


def _floor_tip(column: Column) -> str:
    kind = words.FLOORS.get(column.better, "real value")
    return f"{kind}: {column.n_floor} held-out real images against {column.n_ref}" if column.n_floor else ""


def _records(table: Table, records: Sequence[Record]) -> list[dict[str, Any]]:
    """One line per record in the table, sorted as the table is."""
    by_digest = {record["digest"]: record for record in records}
    lines = []
    for number, section in enumerate(table.sections, 1):
        for i, row in enumerate(section.rows):
            for step in section.steps:
                values = {
                    v.digest: v for j in range(len(section.columns)) for v in section.entry(i, j, step).values
                }
                for value in sorted(values.values(), key=lambda v: (v.seed or 0, v.digest)):
                    seed = "" if value.seed is None else value.seed
                    line = {"digest": value.digest[:16], "label": words.clean(row.label), "seed": seed}
                    made = _made(by_digest.get(value.digest))
                    own = step if row.external is None else row.external.step or ""
                    lines.append({**line, "step": own, "cell": value.cell[:12], "made": made,
                                  "section": number})  # fmt: skip
    lines += _training(table.sheet, by_digest) if table.sheet is not None else []
    return list({line["digest"]: line for line in reversed(lines)}.values())[::-1]


def _training(sheet: Sheet, by_digest: Mapping[str, Record]) -> list[dict[str, Any]]:
    """The records behind a sheet that stand in no section: of training."""
    lines = []
    for _, line in sheet.lines():
        values = {v.digest: v for cell in line.cells if cell.entry is not None for v in cell.entry.values}
        for value in values.values():
            made = by_digest.get(value.digest)
            lines.append({"digest": value.digest[:16], "label": words.clean(line.name), "cell": value.cell[:12],
                          "seed": "" if value.seed is None else value.seed, "made": _made(made), "section": 0,
                          "step": "" if made is None else made["body"]["step"]})  # fmt: skip
    return lines


def _made(record: Record | None) -> str:
    """Device, versions and commit of an envelope, as far as it has them."""
    envelope = (record or {}).get("envelope") or {}
    parts = [str(envelope["device"])] if envelope.get("device") else []
    versions = envelope.get("versions") or {}
    parts += [f"{name} {versions[name]}" for name in ("torch", "python") if versions.get(name)]
    if envelope.get("commit"):
        parts.append(
            f"commit {str(envelope['commit'])[:10]}{' + local changes' if envelope.get('dirty') else ''}"
        )
    if envelope.get("seconds") is not None:
        parts.append(f"{float(envelope['seconds']):.0f} s")
    return words.clean(", ".join(parts))
