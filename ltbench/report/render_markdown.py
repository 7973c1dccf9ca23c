"""The table as Markdown (GitHub's dialect): one table per metric, so that it reads on a phone too."""

from __future__ import annotations

import re

from ltbench.report import render_cost, sheet_words, words
from ltbench.report.sheet import Sheet, SheetCell, SheetLine
from ltbench.report.table import Section, Table

_SPECIAL = re.compile(r"([\\`*_\[\]|~$])")
_BLOCK = re.compile(
    r"^([-+#=]|\d+(?=[.)]))"
)  # what begins a list, a heading or a rule at the start of a line


def escape(text: object) -> str:
    """Any text as literal Markdown: HTML entities for what starts markup, backslashes for the rest."""
    safe = words.clean(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _SPECIAL.sub(r"\\\1", safe)


def escape_block(text: object) -> str:
    """The same at the start of a line, where a dash, a hash or a number with a dot would begin something."""
    return _BLOCK.sub(lambda found: f"&#{ord(found[0][0])};{found[0][1:]}", escape(text))


def render_markdown(table: Table) -> str:
    """The shown step of every section, with what is missing, footnotes and legend; ends with a newline."""
    lines = [f"# {escape(table.title)}", ""]
    if table.sheet is not None:
        lines += _sheet(table.sheet)
    for section in table.sections if table.sheet is None else ():
        lines += [f"## {escape(section.title)}", "", escape_block(words.section_line(section)), ""]
        for name in section.metrics():
            lines += _block(table, section, name)
        if table.paired:
            lines += _paired(table, section)
        if section.missing:
            lines += [f"**{words.missing_heading(section)}**", ""]
            lines += [f"- {escape_block(line)}" for line in words.missing_lines(section)] + [""]
    lines += [] if table.costs is None else render_cost.markdown(table.costs)
    if table.undrawn:
        lines += [
            f"**{words.UNDRAWN_HEADING}**",
            "",
            *(f"- {escape_block(line)}" for line in table.undrawn),
            "",
        ]
    lines += [f"<sup>{place}</sup> {escape(note)}  " for place, note in enumerate(table.notes, 1)]
    lines += [""] if table.notes else []
    if table.sheet is None:
        lines += [f"{escape(line)}  " for line in words.legend(table, "bold", "underlined")]
    else:
        told = sheet_words.legend(table.sheet, "bold", "underlined", "in italics")
        lines += [f"{escape(line)}  " for line in told]
    lines += ["", f"{escape(words.plan_line(table))}"]
    return "\n".join(lines) + "\n"


def _sheet(sheet: Sheet) -> list[str]:
    heads = [escape(text) for text in ("method", sheet_words.WHOSE_HEADING)]
    heads += [escape(sheet_words.head_text(head)) + _notes(head.notes) for head in sheet.columns]
    lines = []
    for block in sheet.blocks:
        lines += [f"**{escape(block.title)}**", ""] if block.title else []
        lines += [
            _line(heads),
            _line([":---", ":---"] + ["---:"] * len(sheet.columns)),
        ]
        lines += [_sheet_line(line) for line in block.lines]
        lines.append("")
    return lines


def _sheet_line(line: SheetLine) -> str:
    name = escape(sheet_words.name_text(line))
    style = "*" if line.kind in ("published", "floor") else ""
    whose = f"{style}{escape(sheet_words.whose(line))}{style}"
    first, second = sheet_words.heads(name, whose, _notes(line.notes))
    return _line([first, second, *(_sheet_cell(cell, style) for cell in line.cells)])


def _sheet_cell(cell: SheetCell, style: str) -> str:
    if not cell.value:
        return escape(cell.gap) + _notes(cell.notes)
    value = escape(sheet_words.value_text(cell))
    shown = {"best": f"**{value}**", "second": f"<u>{value}</u>", "tie": f"{words.TIE}{value}"}
    text = f"{style}{shown.get(cell.mark, value)}{style}"
    count = f" ({escape(cell.count)})" if cell.count else ""
    return text + sheet_words.spread_text(cell).replace("±", "± ") + count + _notes(cell.notes)


def _block(table: Table, section: Section, name: str) -> list[str]:
    places = [place for place, column in enumerate(section.columns) if column.name == name]
    heads = [words.method_heading(section), *(section.columns[place].group for place in places)]
    rules = [":---"] + ["---:"] * len(places)
    lines = [
        f"**{escape(words.metric_heading(section, name))}**",
        "",
        _line([escape(h) for h in heads]),
        _line(rules),
    ]
    for i, row in enumerate(section.rows):
        cells = [
            _entry(words.printed(section.entry(i, j), section.columns[j], table.decimals)) for j in places
        ]
        lines.append(_line([escape(row.label) + _notes(row.notes), *cells]))
    floors = [escape(words.floor_text(section, place, table.decimals)) for place in places]
    lines.append(_line([f"*{words.FLOOR_LABEL}*", *(f"*{floor}*" for floor in floors)]))
    return [*lines, ""]


def _paired(table: Table, section: Section) -> list[str]:
    blocks = words.paired_blocks(section)
    if not blocks:
        return []
    lines = [f"**{words.PAIRED_HEADING}**", "", escape(words.PAIRED_LEGEND), ""]
    for name, rows, places in blocks:
        heads = [name, *(section.columns[place].group for place in places)]
        lines += [_line([escape(head) for head in heads]), _line([":---"] + ["---:"] * len(places))]
        for i in rows:
            texts = [words.paired_label(section, i)]
            texts += [words.paired_text(section, i, place, table.decimals) for place in places]
            lines.append(_line([escape(text) for text in texts]))
        lines.append("")
    return lines


def _line(cells: list[str]) -> str:
    return "| " + " | ".join(cells) + " |"


def _notes(numbers: tuple[int, ...]) -> str:
    return "".join(f"<sup>{number}</sup>" for number in numbers)


def _entry(cell: words.Printed) -> str:
    if not cell.value:
        return escape(cell.gap) + _notes(cell.notes)
    value = escape(cell.value)
    shown = {"best": f"**{value}**", "second": f"<u>{value}</u>", "tie": f"{words.TIE}{value}"}
    value, spread = shown.get(cell.mark, value), words.spread(cell).replace("±", "± ")
    count = f" ({escape(cell.count)})" if cell.count else ""
    return value + spread + count + _notes(cell.notes)
