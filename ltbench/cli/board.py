"""The board of `status`: method by seed, one short word or one character per cell, and a line for what needs a person."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from ltbench.cli.output import clip, duration, plural
from ltbench.status import CANCELLED, WAITING, WORDS, Row, whole

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table

STYLES = {
    "done": "green",
    "running": "cyan",
    WAITING: "blue",
    "failed": "bold red",
    "partial": "yellow",
    "stale": "magenta",
    "n/a": "dim",
    CANCELLED: "dim",
}
SIGNS = {
    "done": "#",
    WAITING: "q",
    "failed": "F",
    "partial": "~",
    "stale": "s",
    "new": ".",
    "n/a": "-",
    CANCELLED: "x",
}
LINES = 12  # of what runs, and of what went wrong; `--list` has the rest
WORD = 11  # columns of a cell's word, which has a space behind it
SUMS = 38  # columns of the sums beside the board
LABEL = 16  # columns of a label at least


def render(rows: Sequence[Row], *, width: int, title: str = "", notes: Sequence[str] = ()) -> RenderableType:
    """The whole picture for a screen of `width` columns; `notes` are said under it."""
    from rich.console import Group
    from rich.text import Text

    if not rows:
        return Text("the store holds no cell yet")
    parts: list[RenderableType] = [Text(line) for line in _heading(rows, title)]
    parts += [_grid(rows, width)]
    parts += [Text(line, style="cyan") for line in _running(rows)]
    parts += [Text(line, style=STYLES[WAITING]) for line in _waiting(rows)]
    parts += [Text(line, style=STYLES.get(state, "")) for state, line in _trouble(rows)]
    parts += [Text(f"note: {line}", style="yellow") for line in notes]
    return Group(*parts)


def render_list(rows: Sequence[Row]) -> Iterator[str]:
    """One line per cell, for grep."""
    room = max((len(row.label) for row in rows), default=0)
    for row in rows:
        seed = "-" if row.seed is None else str(row.seed)
        records = "" if row.records is None else f"{row.done}/{row.records}"
        more = "" if row.state == "done" else clip(row.reason, 200)
        line = f"{row.cell[:12]}  {row.label:<{room}}  {seed:>4}  {_word(row):<{WORD}}  {records:>6}  {more}"
        yield line.rstrip()


def _heading(rows: Sequence[Row], title: str) -> Iterator[str]:
    """`quickstart: 12 cells: 4 done, 3 running` and how far all of it is."""
    sums = whole(rows)
    counts = ", ".join(f"{number} {state}" for state, number in sums.counts.items())
    yield f"{title + ': ' if title else ''}{plural(len(rows), 'cell')}: {counts}"
    if not sums.wanted or set(sums.counts) <= {"done", "n/a"}:
        return
    parts = [f"{sums.steps / sums.wanted:.0%} of {sums.wanted:,} training steps"]
    if sums.steps_per_s:
        parts += [f"{sums.steps_per_s:.3g} steps/s", f"{duration(sums.left)} of training left at that speed"]
    else:
        begun = any(row.state == "running" and _stage(row) == "train" for row in rows)
        parts.append("no training has told its speed yet" if begun else "nothing trains now")
    if sums.restarts:
        parts.append(plural(sums.restarts, "restart"))
    yield ", ".join(parts)


# --- the grid -------------------------------------------------------------------------------------------------------


def _grid(rows: Sequence[Row], width: int) -> Table:
    """Rows are methods, columns are seeds: a word per cell where the width allows it, else a character, else numbers."""
    lines: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        lines.setdefault((row.data, row.label), []).append(row)
    several = len({data for data, _ in lines}) > 1
    seeds = sorted({row.seed for row in rows if row.seed is not None})
    placed = {(row.data, row.label, row.seed): row for row in rows}
    single = len(placed) == len(rows)
    room = width - SUMS - LABEL - (LABEL if several else 0)
    # What was not trained here has no seed, and no column to stand in.
    if single and all(row.seed is not None for row in rows) and len(seeds) * (WORD + 1) <= room:
        heads = [f"seed {seed}" for seed in seeds]
        cells = {key: [_cell(placed.get((*key, seed))) for seed in seeds] for key in lines}
    elif single and len(seeds) <= room:
        first = f"seeds {seeds[0]}-{seeds[-1]}" if seeds else "cells"
        heads = [first]
        cells = {
            key: [_signs([placed.get((*key, s)) for s in seeds] if seeds else own)]
            for key, own in lines.items()
        }
    else:
        known = [state for state in WORDS if any(row.state == state for row in rows)]
        heads = known
        cells = {key: _numbers(own, known) for key, own in lines.items()}
    return _assemble(lines, cells, heads, several)


def _assemble(
    lines: dict[tuple[str, str], list[Row]],
    cells: dict[tuple[str, str], list[RenderableType]],
    heads: Sequence[str],
    several: bool,
) -> Table:
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, pad_edge=False, show_edge=False, header_style="bold", padding=(0, 1, 0, 0))
    if several:
        grid.add_column("data", overflow="fold", min_width=6)
    grid.add_column("method", overflow="fold", min_width=8)
    for head in heads:
        grid.add_column(head, no_wrap=True)
    sums = {key: _sums(own) for key, own in lines.items()}
    told = [n for n in range(len(SUM_HEADS)) if any(line[n] for line in sums.values())]
    for n in told:
        grid.add_column(SUM_HEADS[n], justify="right", no_wrap=True)
    for key in lines:
        names = key if several else key[1:]
        grid.add_row(*map(Text, names), *cells[key], *(Text(sums[key][n]) for n in told))
    return grid


SUM_HEADS = ("records", "steps", "steps/s", "left", "restarts")


def _sums(own: Sequence[Row]) -> tuple[str, ...]:
    """What a line of the board adds up to; "" for what there is nothing to say about."""
    sums = whole(own)
    records = sum(row.records or 0 for row in own)
    return (
        f"{sum(row.done for row in own)}/{records}" if records else f"{sum(row.done for row in own)}",
        f"{sums.steps / sums.wanted:.0%}" if sums.wanted else "",
        f"{sums.steps_per_s:.3g}" if sums.steps_per_s else "",
        _short(sums.left) if sums.left is not None else "",
        str(sums.restarts) if sums.restarts else "",
    )


def _short(seconds: float) -> str:
    """`50s`, `12min`, `3.2h`, `4.1d`."""
    for unit, size, until in (("s", 1, 90), ("min", 60, 5400), ("h", 3600, 172_800)):
        if seconds < until:
            return f"{seconds / size:.0f}{unit}" if unit != "h" else f"{seconds / size:.1f}h"
    return f"{seconds / 86_400:.1f}d"


def _cell(row: Row | None) -> RenderableType:
    from rich.text import Text

    return Text("") if row is None else Text(_word(row), style=STYLES.get(row.state, ""))


def _word(row: Row) -> str:
    """`done`, `63% train`, `FAIL nan`, `part 2/6`, `queued`."""
    if row.state == "running":
        share = "" if row.progress is None else f"{row.progress:.0%} "
        return f"{share}{_stage(row).replace('evaluate', 'eval')}"
    if row.state == "failed":
        return f"FAIL {row.cause}"[:WORD]
    if row.state == "partial" and row.records:
        return f"part {row.done}/{row.records}"
    return row.state


def _stage(row: Row) -> str:
    """`train` or `evaluate`, from either way of writing a stage."""
    return (row.stage or "").replace(":", "-").partition("-")[0]


def _signs(own: Sequence[Row | None]) -> RenderableType:
    """A character per cell; a running one is its tenths, 0 to 9."""
    from rich.text import Text

    line = Text()
    for row in own:
        sign = " " if row is None else SIGNS.get(row.state, f"{min(9, int((row.progress or 0.0) * 10))}")
        line.append(sign, style=STYLES.get(row.state, "") if row else "")
    return line


def _numbers(own: Sequence[Row], states: Sequence[str]) -> list[RenderableType]:
    from rich.text import Text

    found = Counter(row.state for row in own)
    return [Text(str(found[state] or ""), style=STYLES.get(state, "")) for state in states]


# --- lines under the grid -------------------------------------------------------------------------------------------


def _running(rows: Sequence[Row]) -> Iterator[str]:
    """What runs, where, how fast and until when."""
    going = [row for row in rows if row.state == "running"]
    for row in going[:LINES]:
        parts = [f"running  {row.name}, {_stage(row)}"]
        parts.append("" if row.step is None else f"{row.step}/{row.total}")
        parts.append("" if row.loss is None else f"loss {_number(row.loss)}")
        parts.append("" if row.steps_per_s is None else f"{row.steps_per_s:.3g} steps/s")
        parts.append("" if not row.images_per_s else f"{row.images_per_s:.0f} img/s")
        parts.append("" if row.left is None else f"{_short(row.left)} left")
        parts.append("" if row.host is None else f"on {row.host}")
        parts.append("" if row.queue is None or row.queue.job is None else f"job {row.queue.job}")
        yield "  ".join(filter(None, parts))
    if len(going) > LINES:
        yield f"running  {len(going) - LINES} more (--list has them all)"


def _number(value: float | str) -> str:
    """A loss; a heartbeat spells one that is not finite as text."""
    return value if isinstance(value, str) else f"{value:.4g}"


def _waiting(rows: Sequence[Row]) -> Iterator[str]:
    """The cells that wait, by SLURM's word and reason, with one job each to ask about."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.state == WAITING and row.queue is not None:
            found.setdefault((row.queue.state, row.queue.reason or row.queue.nodes), []).append(row)
    for (state, why), own in sorted(found.items(), key=lambda item: -len(item[1])):
        job = own[0].queue.job if own[0].queue else ""
        more = "" if not why or why == "None" else f" ({why})"
        yield f"queued   {plural(len(own), 'cell')}: {state}{more}, e.g. {own[0].name}, job {job}"


def _trouble(rows: Sequence[Row]) -> Iterator[tuple[str, str]]:
    """(state, line): one line per reason, with the cells that it concerns."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.state in ("failed", "partial", "stale", "n/a", CANCELLED):
            found.setdefault((row.state, row.reason), []).append(row)
    order = sorted(found.items(), key=lambda item: (WORDS.index(item[0][0]), -len(item[1])))
    for (state, reason), own in order[:LINES]:
        names = ", ".join(f"{row.name} ({row.cell[:12]})" for row in own[:3])
        more = f" and {len(own) - 3} more" if len(own) > 3 else ""
        yield state, f"{state.upper() if state == 'failed' else state:<8} {names}{more}: {clip(reason, 300)}"
    if len(order) > LINES:
        yield "", f"{len(order) - LINES} more reasons (--list has every cell)"
