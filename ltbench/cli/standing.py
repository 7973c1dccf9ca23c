"""`status`: how a benchmark stands, once or again and again."""

from __future__ import annotations

import gc
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ltbench.cli.options import (
    AsJson,
    Changes,
    Filters,
    Plugins,
    ScratchAt,
    StoreAt,
    WithMethods,
    place,
)
from ltbench.cli.output import console, dump, out, out_all, plain, plural, say
from ltbench.cli.output import show as picture
from ltbench.errors import UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ltbench.launch.slurm.seen import Seen
    from ltbench.status import Row
    from ltbench.store import Store
    from ltbench.store.kept import Kept

EVERY = 2.0  # seconds between two looks on a terminal
BLOCKS = 10.0  # seconds between two looks where nobody redraws a screen
SHARE = 4.0  # a look that took long is followed by a rest this many times as long: the file server has other clients
ASK_EVERY = 30.0  # seconds between two questions to SLURM
STILL = 60.0  # seconds in which nothing ran or waited, after which a watch is over


def status(
    spec: Annotated[
        str | None, typer.Argument(metavar="[SPEC]", help="A spec: path or name. [everything in the store]")
    ] = None,
    watch: Annotated[
        bool, typer.Option("--watch", help="Look again every 2 s until all is over; Ctrl-C ends it.")
    ] = False,
    list_: Annotated[bool, typer.Option("--list", "-l", help="One line per cell, with the reason.")] = False,
    queue: Annotated[
        bool, typer.Option("--queue/--no-queue", help="Ask SLURM about cells that were submitted.")
    ] = True,
    filter_: Filters = None,
    set_: Changes = None,
    with_: WithMethods = None,
    json: AsJson = False,
    store: StoreAt = None,
    scratch: ScratchAt = None,
    plugins: Plugins = None,
) -> None:
    """How a benchmark stands: method by seed, progress, speed, time left, what waits and what went wrong.

    It reads files, and asks SLURM about submitted cells where there is one; no driver has to be alive. Many seeds are shown with one
    character each: 0-9 tenths of what runs, # done, q queued, F failed, ~ interrupted, x cancelled, s made by older code, . new,
    - cannot run. Records are known by their names here; plan, run and report verify them.

    \b
    Example:
      python harness.py status quickstart
      python harness.py status quickstart --watch
      python harness.py status quickstart --list | grep FAIL
    """
    from ltbench.cli import board

    place(store, scratch, plugins)
    look = Looker(spec, tuple(filter_ or ()), tuple(set_ or ()), tuple(with_ or ()), queue)
    if watch and (json or list_):
        raise UsageError("--watch draws the board", "--json and --list print once: leave --watch away")
    if json:
        _dump(look)
    elif list_:
        out_all(board.render_list(look()))
        _say(look)
    elif watch:
        _watch(look)
    else:
        picture(look.board(console().width))


@dataclass
class Looker:
    """Looks at the store, and at SLURM's queue, each time it is called.

    rows: what was seen last; notes: what could not be found out; took: seconds of that look.
    """

    spec: str | None
    filters: Sequence[str] = ()
    changes: Sequence[str] = ()
    methods: Sequence[str] = ()
    ask: bool = True
    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    took: float = 0.0
    _rows: Callable[[], list[Row]] | None = None
    _kept: Kept | None = None
    _seen: Seen | None = None
    _asked: float = 0.0

    def __call__(self) -> list[Row]:
        begun = time.monotonic()
        self._rows = self._rows or self._source()
        self._look_at_queue()
        rows, self.notes = self._rows(), []
        if self._seen is not None:
            from ltbench import status as state

            rows = state.with_queue(rows, self._seen)
            self.notes = [*self._seen.notes, *state.of_commands(self._seen)]
        self.rows, self.took = rows, time.monotonic() - begun
        return rows

    def _look_at_queue(self) -> None:
        """SLURM is asked every 30 s at most: its controller has other clients."""
        from ltbench.cli.stores import scratch_root

        if not (scratch_root() / "submissions").is_dir():
            return
        from ltbench.launch.slurm import seen
        from ltbench.launch.slurm.queue_states import GLANCE

        if self._seen is None or time.monotonic() - self._asked >= ASK_EVERY:
            self._seen = seen.look(scratch_root(), ask=self.ask, patience=GLANCE)
            self._asked = time.monotonic()

    def board(self, width: int) -> RenderableType:
        """The picture of a fresh look."""
        from ltbench.cli import board

        rows = self()
        return board.render(rows, width=width, title=self.spec or "", notes=self.notes)

    def _source(self) -> Callable[[], list[Row]]:
        from ltbench import plan as plans
        from ltbench import status as state
        from ltbench.cli import targets

        if self.spec is None:
            if self.filters or self.changes or self.methods:
                raise UsageError(
                    "--filter, --set and --with belong to a spec", "name one: status SPEC --filter ..."
                )
            return lambda: self._looked(lambda store: state.of_store(store, self._seen))
        benchmark = targets.load(self.spec, self.changes, self.methods)
        cells = targets.cells_of(benchmark, self.filters)
        return lambda: self._looked(
            lambda store: state.of_plan(plans.plan(benchmark, store, cells, verify=False))
        )

    def _looked(self, look: Callable[[Store], list[Row]]) -> list[Row]:
        """A look at the store through what is kept of it."""
        from ltbench import provenance
        from ltbench.cli import stores
        from ltbench.report.memory import root
        from ltbench.store.kept import Kept

        store = stores.open_store(write=False)
        if self._kept is None:
            stores.say_if_missing(store)
        self._kept = self._kept or Kept.below(root(), store.layers)
        self._kept.begin()
        store.reads = self._kept
        with provenance.kept_in(root()):
            rows = look(store)
        self._kept.save(store.cells)
        return rows


def _dump(look: Looker) -> None:
    from ltbench.status import whole

    rows = look()
    sums: dict[str, Any] = whole(rows).json()
    dump({**sums, "notes": look.notes, "cells": [row.json() for row in rows]})


def _say(look: Looker) -> None:
    for note in look.notes:
        say(f"note: {note}")


# --- watching -------------------------------------------------------------------------------------------------------


def _watch(look: Looker) -> None:
    """Redraw until all is over, then leave the last picture standing; Ctrl-C ends it, too."""
    gc.enable()  # a look that is told once goes without
    still = _Still()
    try:
        _live(look, still) if redraws() else _blocks(look, still)
    except KeyboardInterrupt:
        say("stopped watching; nothing else was stopped")
        return
    if still.open:
        say(
            f"nothing has run or waited for {STILL:.0f} s and {plural(still.open, 'cell')} left: "
            "run or submit continues"
        )


def redraws() -> bool:
    """Whether standard output is a terminal on which a picture can be drawn over the last one."""
    return sys.stdout.isatty() and not console().is_dumb_terminal


def _live(look: Looker, still: _Still) -> None:
    from rich.live import Live

    screen = console()
    with Live(look.board(screen.width), console=screen, auto_refresh=False) as live:
        live.refresh()
        while not still.over(look.rows):
            time.sleep(max(EVERY, SHARE * look.took))
            live.update(look.board(screen.width), refresh=True)


def _blocks(look: Looker, still: _Still) -> None:
    """Without a terminal a block of plain text whenever something has changed."""
    said = ""
    while True:
        text = plain(look.board(console().width))
        if text != said:
            out(f"--- {time.strftime('%H:%M:%S')}\n{text}")
            sys.stdout.flush()
            said = text
        if still.over(look.rows):
            return
        time.sleep(max(BLOCKS, SHARE * look.took))


class _Still:
    """Knows when a watch has nothing to wait for: every cell is over, or for a while nothing has run or waited. `open`: cells that
    are not over."""

    def __init__(self) -> None:
        self.open = 0
        self._since: float | None = None

    def over(self, rows: Sequence[Row]) -> bool:
        """Whether this look was the last."""
        from ltbench.status import OVER, WAITING

        self.open = sum(row.state not in OVER for row in rows)
        if not self.open or any(row.state in ("running", WAITING) for row in rows):
            self._since = None
            return not self.open and bool(rows)
        self._since = self._since or time.monotonic()
        return time.monotonic() - self._since >= STILL
