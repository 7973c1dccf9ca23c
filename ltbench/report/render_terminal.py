"""The table in a terminal: one block per metric, side by side where the width allows; plain text without a TTY."""

from __future__ import annotations

from collections.abc import Callable

from rich.columns import Columns
from rich.console import Console
from rich.table import Table as Grid
from rich.text import Text

from ltbench.report import sheet_words, words
from ltbench.report.render_grid import Block, Cell, Part, add_columns
from ltbench.report.sheet import Sheet, SheetCell, SheetLine
from ltbench.report.table import Section, Table

_ASCII = str.maketrans(
    {"↓": "(v)", "↑": "(^)", "±": "+-", "×": "x", "≈": "~", "→": "->", "é": "e", "\ufffd": "?"}
)


def render_terminal(table: Table, console: Console) -> None:
    """Prints the table. Text only, no markup, so that no label can style or move anything; ASCII where the output is."""
    plain = not (console.encoding or "").lower().startswith("utf")

    def text(content: str, style: str = "") -> Text:
        safe = words.clean(content)
        return Text(
            safe.translate(_ASCII).encode("ascii", "replace").decode() if plain else safe, style=style
        )

    console.print(text(table.title, "bold"))
    if table.sheet is not None:
        for grid in _sheet(table.sheet, text, plain, console.width):
            console.print(grid)
    for section in table.sections if table.sheet is None else ():
        console.print()
        console.print(text(section.title, "bold cyan"))
        console.print(text(words.section_line(section), "dim"))
        blocks = [_block(table, section, name, text, plain) for name in section.metrics()]
        console.print(Columns(blocks, padding=(0, 2)))
        if section.missing:
            console.print(text(words.missing_heading(section), "yellow"))
            for line in words.missing_lines(section):
                console.print(Text("  ").append_text(text(line, "yellow")))
    if table.undrawn:
        console.print(text(words.UNDRAWN_HEADING, "yellow"))
        for line in table.undrawn:
            console.print(Text("  ").append_text(text(line, "yellow")))
    console.print()
    for place, note in enumerate(table.notes, 1):
        console.print(text(f"[{place}] {note}"))
    told = words.legend(table, "* bold", "_ underlined")
    if table.sheet is not None:
        told = sheet_words.legend(table.sheet, "* bold", "_ underlined", "dim")
    for line in told:
        console.print(text(line, "dim"))
    console.print(text(words.plan_line(table), "dim"))


def _sheet(sheet: Sheet, text: Callable[..., Text], plain: bool, room: int) -> list[Grid]:
    from rich import box

    top = [
        text("method"),
        text(sheet_words.WHOSE_HEADING),
        *(text(sheet_words.head_text(head) + _notes(head.notes)) for head in sheet.columns),
    ]
    rows = [[_sheet_line(line, text) for line in block.lines] for block in sheet.blocks]
    every = [top, *(row for block in rows for row in block)]
    grids = []
    for block, lines in zip(sheet.blocks, rows, strict=True):
        grid = Grid(
            title=text(block.title, "bold") if block.title else None,
            title_justify="left",
            box=box.ASCII2 if plain else box.SIMPLE_HEAD,
        )
        add_columns(grid, top, every, room, left=2)
        for line in lines:
            grid.add_row(*line)
        grids.append(grid)
    return grids


def _sheet_line(line: SheetLine, text: Callable[..., Text]) -> list[Text]:
    quiet = "dim" if line.kind in ("published", "floor") else ""
    heads = sheet_words.heads(sheet_words.name_text(line), sheet_words.whose(line), _notes(line.notes))
    return [*(text(head, quiet) for head in heads), *(_sheet_cell(cell, text, quiet) for cell in line.cells)]


def _sheet_cell(cell: SheetCell, text: Callable[..., Text], quiet: str) -> Text:
    if not cell.value:
        return text(cell.gap + _notes(cell.notes), quiet or "yellow")
    sign = {"best": "*", "second": "_", "tie": words.TIE}.get(cell.mark, "")
    style = {"best": "bold", "second": "underline", "better": "yellow", "worse": "yellow"}.get(
        cell.mark, quiet
    )
    shown = text(sign + sheet_words.value_text(cell), style)
    if spread := sheet_words.spread_text(cell):
        shown.append_text(Text(" ")).append_text(text(spread, "dim"))
    if cell.count:
        shown.append_text(Text(" ")).append_text(text(f"({cell.count})", "yellow"))
    return shown.append(_notes(cell.notes), quiet)


def _block(table: Table, section: Section, name: str, text: Callable[..., Text], plain: bool) -> Block:
    from rich import box

    def part(content: str, style: str = "") -> Part:
        return text(content).plain, style

    places = [place for place, column in enumerate(section.columns) if column.name == name]
    rows = []
    for i, row in enumerate(section.rows):
        cells = [words.printed(section.entry(i, j), section.columns[j], table.decimals) for j in places]
        rows.append([(part(row.label + _notes(row.notes)),), *(_entry(cell, part) for cell in cells)])
    floors = [(part(words.floor_text(section, place, table.decimals), "dim"),) for place in places]
    return Block(
        title=text(words.metric_heading(section, name), "bold"),
        heads=[
            (part(words.method_heading(section)),),
            *((part(section.columns[j].group),) for j in places),
        ],
        rows=rows,
        last=[(part(words.FLOOR_LABEL, "dim"),), *floors],
        box=box.ASCII2 if plain else box.SIMPLE_HEAD,
    )


def _notes(numbers: tuple[int, ...]) -> str:
    return "".join(f" [{number}]" for number in numbers)


def _entry(cell: words.Printed, part: Callable[..., Part]) -> Cell:
    if not cell.value:
        return (part(cell.gap + _notes(cell.notes), "yellow"),)
    sign = {"best": "*", "second": "_", "tie": words.TIE}.get(cell.mark, "")
    style = {"best": "bold", "second": "underline"}.get(cell.mark, "")
    found = [part(sign + cell.value, style)]
    if spread := words.spread(cell):
        found += [(" ", ""), part(spread, "dim")]
    if cell.count:
        found += [(" ", ""), part(f"({cell.count})", "yellow")]
    return (*found, (_notes(cell.notes), ""))
