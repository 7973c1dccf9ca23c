"""The board of `status`: method by seed, one short word per cell, and one line per cell that needs a person."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from ltbench.cli.output import clip, plural
from ltbench.status import Row, count

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

STYLES = {
    "done": "green",
    "running": "cyan",
    "failed": "bold red",
    "partial": "yellow",
    "stale": "magenta",
    "n/a": "dim",
}
SEEDS = 8  # more columns than that, and every cell gets a line of its own


def render(rows: Sequence[Row]) -> RenderableType:
    """The whole picture as something rich can print."""
    from rich.console import Group
    from rich.text import Text

    if not rows:
        return Text("the store holds no cell yet")
    parts: list[RenderableType] = [_grid(rows), Text(_tally(rows))]
    if any(row.state == "running" for row in rows):
        parts.append(_running(rows))
    parts += [_trouble(row) for row in rows if row.state in ("failed", "partial", "stale", "n/a")]
    return Group(*parts)


def _tally(rows: Sequence[Row]) -> str:
    counts = ", ".join(f"{number} {state}" for state, number in count(rows).items())
    return f"{plural(len(rows), 'cell')}: {counts}"


def _table(*columns: str) -> Table:
    from rich.table import Table

    grid = Table(box=None, pad_edge=False, show_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name in columns:
        grid.add_column(name, overflow="fold")
    return grid


def _grid(rows: Sequence[Row]) -> Table:
    """Rows are methods, columns are seeds; a list when seeds are many or a place has two cells."""
    from rich.text import Text

    seeds = sorted({row.seed for row in rows if row.seed is not None})
    placed = {(row.label, row.seed): row for row in rows}
    # What was not trained here has no seed, and no column to stand in.
    if len(seeds) > SEEDS or len(placed) < len(rows) or any(row.seed is None for row in rows):
        return _list(rows)
    grid = _table("method", *(f"seed {seed}" for seed in seeds))
    for name in dict.fromkeys(row.label for row in rows):
        cells = [placed.get((name, seed)) for seed in seeds]
        grid.add_row(Text(name), *(_cell(row) for row in cells))
    return grid


def _cell(row: Row | None) -> RenderableType:
    from rich.text import Text

    return Text("") if row is None else Text(_word(row), style=STYLES.get(row.state, ""))


def _word(row: Row) -> str:
    """`done`, `63% train`, `failed nan`, `partial 2/6`."""
    if row.state == "running":
        share = "" if row.progress is None else f"{row.progress:.0%} "
        return f"{share}{_stage(row)}"
    if row.state == "failed":
        return f"failed {row.cause}"
    if row.state == "partial" and row.records:
        return f"partial {row.done}/{row.records}"
    return row.state


def _stage(row: Row) -> str:
    """`train` or `evaluate`, from either way of writing a stage."""
    return (row.stage or "").replace(":", "-").partition("-")[0]


def _list(rows: Sequence[Row]) -> Table:
    from rich.text import Text

    grid = _table("cell", "method", "seed", "state")
    for row in rows:
        grid.add_row(
            Text(row.cell[:12]), Text(row.label), Text("" if row.seed is None else str(row.seed)), _cell(row)
        )
    return grid


def _running(rows: Sequence[Row]) -> Table:
    from rich.text import Text

    grid = _table("running", "stage", "step", "loss", "steps/s", "img/s")
    for row in rows:
        if row.state == "running":
            grid.add_row(
                *(Text(row.name), Text(_stage(row))),
                Text("" if row.step is None else f"{row.step}/{row.total}"),
                *(Text("" if value is None else f"{value:.4g}") for value in (row.loss, row.steps_per_s)),
                Text("" if row.images_per_s is None else f"{row.images_per_s:.0f}"),
            )
    return grid


def _trouble(row: Row) -> RenderableType:
    from rich.text import Text

    text = f"{row.state}  {row.name} ({row.cell[:12]})  {clip(row.reason, 300)}"
    return Text(text, style=STYLES[row.state])
