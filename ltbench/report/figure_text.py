"""Names in a figure: as short as room asks, and never so short that two rows look like one. And the legend."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_WIDTH = 32  # letters in a line of a legend


def short(label: str, most: int) -> str:
    """`label`, or as much of it as `most` letters hold with an ellipsis."""
    return label if len(label) <= most else label[: most - 1] + "…"


def wrapped(label: str, width: int, most: int = 2) -> str:
    """In lines of at most so many characters, at most so many lines; what does not fit ends in an ellipsis."""
    lines = textwrap.wrap(label, max(width, 2)) or [label]
    if len(lines) > most:
        lines = [*lines[: most - 1], short(" ".join(lines[most - 1 :]), max(width, 2))]
    return "\n".join(lines)


def told_apart(labels: Sequence[str], width: int) -> list[str]:
    """Every label in lines of at most so many characters, in as few lines as leave different labels different: rows of a grid
    often differ in their last words only."""
    most, longest = 1, max((len(label) for label in labels), default=0)
    while True:
        shown = [wrapped(label, width, most) for label in labels]
        if len(set(shown)) == len(set(labels)) or most > longest:
            return shown
        most += 1


def widest(texts: Sequence[str]) -> int:
    """Letters in the longest line."""
    return max(len(line) for text in texts for line in text.split("\n"))


def legend(figure: Figure, handles: Sequence[Any], labels: Sequence[str]) -> None:
    """Below the axes, in as few lines as the figure's width allows; read row by row. Nothing where nothing was drawn."""
    if not labels:
        return
    shown = told_apart(labels, _WIDTH)
    shown = [f" {text}" if text.startswith("_") else text for text in shown]  # else matplotlib drops them
    width = 0.095 * widest(shown) + 0.75  # inches of one entry at this font size
    columns = max(1, min(len(shown), int(figure.get_figwidth() / width)))
    lines = -(-len(shown) // columns)
    columns = -(-len(shown) // lines)
    more = max(text.count("\n") for text in shown)
    figure.set_figheight(figure.get_figheight() + 0.25 * (lines - 1) + 0.17 * more * lines)
    order = [
        i for first in range(columns) for i in range(first, len(shown), columns)
    ]  # matplotlib fills columns first
    chosen = [handles[i] for i in order], [shown[i] for i in order]
    figure.legend(*chosen, loc="outside lower center", ncols=columns, frameon=False, columnspacing=1.6)
