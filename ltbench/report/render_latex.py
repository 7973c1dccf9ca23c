"""The table as LaTeX: one `tabular` per section, metrics stacked, so that it fits a text column. Needs booktabs only."""

from __future__ import annotations

from ltbench.report import sheet_words, words
from ltbench.report.latex_text import escape, with_notes
from ltbench.report.sheet import Sheet, SheetCell, SheetLine
from ltbench.report.table import Section, Table


def render_latex(table: Table) -> str:
    """A `tabular` per section; title, legend and records stand in comments above, notes in its last rows."""
    lines = [f"% {escape(table.title)}", r"% needs \usepackage{booktabs}"]
    if table.sheet is not None:
        told = sheet_words.legend(table.sheet, "bold", "underlined", "in italics")
        lines += [f"% {escape(line)}" for line in (*told, words.plan_line(table))]
        return "\n".join([*lines, "", *_sheet(table, table.sheet)]) + "\n"
    lines += [f"% {escape(line)}" for line in words.legend(table, "bold", "underlined")]
    lines += [f"% {escape(words.plan_line(table))}"]
    for section in table.sections:
        lines += ["", f"% {escape(section.title)}", f"% {escape(words.section_line(section))}"]
        lines += _tabular(table, section)
    return "\n".join(lines) + "\n"


def _sheet(table: Table, sheet: Sheet) -> list[str]:
    """One `tabular` with every block; names carry their citation."""
    width = 2 + len(sheet.columns)
    heads = [escape(text) for text in ("method", sheet_words.WHOSE_HEADING)]
    heads += [escape(sheet_words.head_text(head)) + _notes(head.notes) for head in sheet.columns]
    lines = [
        rf"\begin{{tabular}}{{ll{'r' * len(sheet.columns)}}}",
        r"\toprule",
        _line(heads),
    ]
    for block in sheet.blocks:
        lines.append(r"\midrule")
        lines += [rf"\multicolumn{{{width}}}{{l}}{{{escape(block.title)}}} \\"] if block.title else []
        lines += [_sheet_line(line) for line in block.lines]
    lines += [r"\bottomrule", r"\end{tabular}"]
    texts = [*map(escape, sheet.chosen), _sheet_legend(sheet)]
    texts += [rf"\textsuperscript{{{place}}} {escape(note)}" for place, note in enumerate(table.notes, 1)]
    return with_notes(lines, texts)


def _sheet_legend(sheet: Sheet) -> str:
    """One line for a table that travels without its page."""
    text = "Ours: mean ± standard deviation over training seeds; bold, underlined: best, second best where the difference is real."
    text = escape(text)
    if not sheet.source:
        return text
    cite = rf"~\cite{{{sheet.bib}}}" if sheet.bib else ""
    return rf"\emph{{Published}}: as printed{cite}. {text}"


def _sheet_line(line: SheetLine) -> str:
    name = escape(sheet_words.name_text(line))
    cite = rf"~\cite{{{line.cite}}}" if line.cite and line.kind == "published" else ""
    whose = escape(sheet_words.whose(line))
    quiet = line.kind in ("published", "floor")
    whose = rf"\emph{{{whose}}}" if quiet else whose
    first, second = sheet_words.heads(name + cite, whose, _notes(line.notes))
    return _line([first, second, *(_sheet_cell(cell, quiet) for cell in line.cells)])


def _sheet_cell(cell: SheetCell, quiet: bool) -> str:
    if not cell.value:
        return escape(cell.gap) + _notes(cell.notes)
    value = escape(sheet_words.value_text(cell)).replace("-", "$-$").replace("+", "$+$")
    value = rf"\emph{{{value}}}" if quiet else value
    shown = {"best": rf"\textbf{{{value}}}", "second": rf"\underline{{{value}}}", "tie": rf"$\approx${value}"}
    count = f" ({escape(cell.count)})" if cell.count else ""
    return shown.get(cell.mark, value) + escape(sheet_words.spread_text(cell)) + count + _notes(cell.notes)


def _tabular(table: Table, section: Section) -> list[str]:
    groups = list(dict.fromkeys(column.group for column in section.columns))
    width = 1 + len(groups)
    heads = [words.method_heading(section), *groups]
    lines = [
        rf"\begin{{tabular}}{{l{'r' * len(groups)}}}",
        r"\toprule",
        _line([escape(head) for head in heads]),
    ]
    for name in section.metrics():
        lines += [
            r"\midrule",
            rf"\multicolumn{{{width}}}{{l}}{{{escape(words.metric_heading(section, name))}}} \\",
        ]
        lines += _block(table, section, name)
    lines += [r"\bottomrule", r"\end{tabular}"]
    return with_notes(lines, _below(table, section))


def _block(table: Table, section: Section, name: str) -> list[str]:
    places = [place for place, column in enumerate(section.columns) if column.name == name]
    lines = []
    for i, row in enumerate(section.rows):
        cells = [
            _entry(words.printed(section.entry(i, j), section.columns[j], table.decimals)) for j in places
        ]
        lines.append(_line([escape(row.label) + _notes(row.notes), *cells]))
    floors = [_math(words.floor_text(section, place, table.decimals)) for place in places]
    label = rf"\emph{{{words.FLOOR_LABEL}}}"
    return [*lines, _line([label, *floors])]


def _below(table: Table, section: Section) -> list[str]:
    """What the table says of itself, since it travels without its page: signs, footnotes, what is missing."""
    used = {number for row in section.rows for number in row.notes}
    used |= {
        number
        for i in range(len(section.rows))
        for j in range(len(section.columns))
        for number in section.entry(i, j).notes
    }
    texts = [escape(words.short_legend(section, "Bold", "underlined"))]
    texts += [escape(section.chosen_by)] if section.chosen_by else []
    texts += [rf"\textsuperscript{{{number}}} {escape(table.notes[number - 1])}" for number in sorted(used)]
    if section.missing:
        texts.append(escape(f"{words.missing_heading(section)}: {'; '.join(words.missing_lines(section))}"))
    return texts


def _line(cells: list[str]) -> str:
    return " & ".join(cells) + r" \\"


def _math(number: str) -> str:
    return f"${number}$"


def _notes(numbers: tuple[int, ...]) -> str:
    return rf"\textsuperscript{{{','.join(map(str, numbers))}}}" if numbers else ""


def _entry(cell: words.Printed) -> str:
    if not cell.value:
        return escape(cell.gap) + _notes(cell.notes)
    shown = {
        "best": rf"\mathbf{{{cell.value}}}",
        "second": rf"\underline{{{cell.value}}}",
        "tie": rf"{{\approx}}{cell.value}",
    }
    value = shown.get(cell.mark, cell.value)
    spread = rf" \pm {cell.sd}" if cell.sd else rf" \pm {cell.se}\,\mathrm{{SE}}" if cell.se else ""
    count = f" ({escape(cell.count)})" if cell.count else ""
    return _math(value + spread) + count + _notes(cell.notes)
