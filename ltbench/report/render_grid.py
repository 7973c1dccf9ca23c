"""A table for the terminal whose columns are as wide as what they hold: rich's own layout, in a tenth of its time.

rich measures and folds every cell several times, a second for a table of a thousand rows. Where nothing has to be folded the
lines are simply put together; where the width does not allow that, rich does it, in columns whose widths are set here: left alone
it cuts a number short with an ellipsis while names beside it have room to fold.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

from rich.box import Box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions
from rich.measure import Measurement
from rich.segment import Segment
from rich.table import Table as Grid
from rich.text import Text

Part = tuple[str, str]  # text without line breaks, and its style
Cell = tuple[Part, ...]
_HEADER = "table.header"


@dataclass
class Block:
    """A table with a title: `heads`, `rows`, and below a rule `last`. The first column is flush left, the others flush right."""

    title: Text
    heads: Sequence[Cell]
    rows: Sequence[Sequence[Cell]]
    last: Sequence[Cell]
    box: Box

    @cached_property
    def widths(self) -> list[int]:
        """Of the columns with one space on either side."""
        lines = zip(self.heads, self.last, *self.rows, strict=True)
        return [
            max(1, *(cell_len("".join(text for text, _ in cell)) for cell in column)) + 2 for column in lines
        ]

    @property
    def width(self) -> int:
        """With the edges and the lines between columns."""
        return sum(self.widths) + len(self.widths) + 1

    def __rich_measure__(self, console: Console, options: ConsoleOptions) -> Measurement:
        if self.width > options.max_width:
            return Measurement.get(console, options, self.grid(options.max_width))
        return Measurement(self.width, self.width)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment | Grid]:
        if self.width > options.max_width:
            yield self.grid(options.max_width)
            return
        yield from console.render(self.title, options.update(width=self.width, justify="left", height=None))
        for line in self._lines():
            if console.is_terminal:
                yield from (Segment(text, console.get_style(style)) for text, style in line)
            else:
                yield Segment("".join(text for text, _ in line))
            yield Segment.line()

    def _lines(self) -> Iterator[list[Part]]:
        box, widths = self.box, self.widths
        yield [(box.get_top(widths), "")]
        heads = [tuple((text, f"{_HEADER} {style}".rstrip()) for text, style in cell) for cell in self.heads]
        yield self._line(heads, box.head_left, box.head_vertical, box.head_right)
        yield [(box.get_row(widths, "head"), "")]
        for row in self.rows:
            yield self._line(row, box.mid_left, box.mid_vertical, box.mid_right)
        yield [(box.get_row(widths, "row"), "")]
        yield self._line(self.last, box.foot_left, box.foot_vertical, box.foot_right)
        yield [(box.get_bottom(widths), "")]

    def _line(self, cells: Sequence[Cell], left: str, between: str, right: str) -> list[Part]:
        parts: list[Part] = []
        for place, (cell, width) in enumerate(zip(cells, self.widths, strict=True)):
            space = " " * (width - 1 - cell_len("".join(text for text, _ in cell)))
            before, after = (" ", space) if place == 0 else (space, " ")
            parts += [((between if place else left) + before, ""), *cell, (after, "")]
        return [*parts, (right, "")]

    def grid(self, room: int) -> Grid:
        """The same as rich's own table, which folds what is too wide for so many columns of a terminal."""
        rows = [[*map(_text, row)] for row in (self.heads, *self.rows, self.last)]
        title = self.title.copy()
        title.overflow = "fold"
        grid = Grid(title=title, title_justify="left", box=self.box)
        add_columns(grid, rows[0], rows, room, left=1)
        for row in rows[1:-1]:
            grid.add_row(*row)
        grid.add_section()
        grid.add_row(*rows[-1])
        return grid


def add_columns(
    grid: Grid, heads: Sequence[Text], rows: Sequence[Sequence[Text]], room: int, left: int
) -> None:
    """Columns for `rows` (each a text per column, `heads` among them) in so many columns of a terminal; the first `left` flush left,
    the others flush right. Nothing is cut: what does not fit is folded, between words while that is enough."""
    cells = list(zip(*rows, strict=True))
    whole = [max(1, *(cell.cell_len for cell in column)) for column in cells]
    words = [max([1, *(cell_len(word) for c in column for word in c.plain.split())]) for column in cells]
    rules = len(cells) + 1
    padding = 1 if sum(words) + 2 * len(cells) + rules <= room else 0
    grid.padding = (0, padding)
    widths = within(whole, words, room - rules - 2 * padding * len(cells))
    for place, (head, width) in enumerate(zip(heads, widths, strict=True)):
        justify = "left" if place < left else "right"
        grid.add_column(head, justify=justify, overflow="fold", width=width)


def within(whole: Sequence[int], words: Sequence[int], room: int) -> list[int]:
    """Widths of columns that together take no more than `room`. The widest give first, none less than its longest word unless all
    do, and none less than one."""
    widths = list(whole)
    for least in (words, [1] * len(widths)):
        while sum(widths) > room and (can := [i for i, width in enumerate(widths) if width > least[i]]):
            widths[max(can, key=lambda i: (widths[i], -i))] -= 1
    return widths


def _text(cell: Cell) -> Text:
    return Text().join(Text(text, style=style) for text, style in cell)
