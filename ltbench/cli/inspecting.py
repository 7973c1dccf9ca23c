"""The verbs that look into the store: status, show, why, accept."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated

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
from ltbench.cli.output import console, dump, out, say
from ltbench.cli.output import show as picture
from ltbench.errors import UsageError

if TYPE_CHECKING:
    from rich.console import RenderableType

    from ltbench.status import Row

CellName = Annotated[
    str,
    typer.Argument(
        metavar="CELL", help="A cell's id, or at least its first 6 digits (see status, plan --all)."
    ),
]
WATCH_EVERY = 2.0  # seconds


def status(
    spec: Annotated[
        str | None, typer.Argument(metavar="[SPEC]", help="A spec: path or name. [everything in the store]")
    ] = None,
    watch: Annotated[bool, typer.Option("--watch", help="Look again every 2 s until all is over.")] = False,
    filter_: Filters = None,
    set_: Changes = None,
    with_: WithMethods = None,
    json: AsJson = False,
    store: StoreAt = None,
    scratch: ScratchAt = None,
    plugins: Plugins = None,
) -> None:
    """How a benchmark stands: method by seed, progress, speed, and what went wrong. Reads files, asks nobody.

    \b
    Example:
      python harness.py status quickstart
      python harness.py status quickstart --watch
    """
    from ltbench.cli import board

    place(store, scratch, plugins)
    look = _looker(spec, filter_ or [], set_ or [], with_ or [])
    if json:
        rows = look()
        from ltbench.status import count

        dump({"counts": count(rows), "cells": [row.json() for row in rows]})
    elif watch:
        _watch(look, board.render)
    else:
        picture(board.render(look()))


def _looker(
    spec: str | None, filters: Sequence[str], changes: Sequence[str], methods: Sequence[str]
) -> Callable[[], list[Row]]:
    """A function that looks at the store once."""
    from ltbench import plan as plans
    from ltbench import status as state
    from ltbench.cli import stores, targets

    if spec is None:
        if filters or changes or methods:
            raise UsageError(
                "--filter, --set and --with belong to a spec", "name one: status SPEC --filter ..."
            )
        return lambda: state.of_store(stores.open_store(write=False))
    benchmark = targets.load(spec, changes, methods)
    cells = targets.cells_of(benchmark, filters)
    return lambda: state.of_plan(plans.plan(benchmark, stores.open_store(write=False), cells))


def _watch(look: Callable[[], list[Row]], render: Callable[[list[Row]], RenderableType]) -> None:
    """Redraw until nothing runs, then leave the last picture standing; Ctrl-C ends it."""
    from rich.live import Live

    screen = console()
    rows = look()
    try:
        with Live(render(rows), console=screen, auto_refresh=False) as live:
            while not _over(rows):
                time.sleep(WATCH_EVERY)
                rows = look()
                live.update(render(rows), refresh=True)
    except KeyboardInterrupt:
        say("stopped watching; nothing else was stopped")


def _over(rows: Sequence[Row]) -> bool:
    return all(row.state in ("done", "failed") for row in rows) and bool(rows)


def show(
    cell: CellName,
    json: AsJson = False,
    store: StoreAt = None,
    scratch: ScratchAt = None,
    plugins: Plugins = None,
) -> None:
    """Everything the store holds about one cell: settings, runs, records, failures, files.

    \b
    Example:
      python harness.py show 76fc6efc05e6
    """
    from ltbench.cli import cell as cells
    from ltbench.cli import stores

    place(store, scratch, plugins)
    house = stores.open_store(write=False)
    found = cells.describe(house, house.resolve(cell))
    dump(found) if json else cells.tell(found)


def why(
    cell: CellName,
    json: AsJson = False,
    store: StoreAt = None,
    scratch: ScratchAt = None,
    plugins: Plugins = None,
) -> None:
    """Why a cell stands as it does: what failed and where, or which code changed since its results were made.

    \b
    Example:
      python harness.py why 76fc6efc05e6
    """
    from ltbench.cli import cell as cells
    from ltbench.cli import stores

    place(store, scratch, plugins)
    house = stores.open_store(write=False)
    found = cells.reasons(house, house.resolve(cell))
    dump(found) if json else cells.tell_reasons(found)


def accept(
    cell: CellName,
    because: Annotated[
        str, typer.Option("--because", metavar="TEXT", help="Why the old results still hold.")
    ],
    json: AsJson = False,
    store: StoreAt = None,
    scratch: ScratchAt = None,
    plugins: Plugins = None,
) -> None:
    """Keep a cell's results although code changed since: the reason is stored and printed under the table.

    \b
    Example:
      python harness.py accept 76fc6efc05e6 --because "only a message changed"
    """
    from ltbench.cli import cell as cells
    from ltbench.cli import stores

    place(store, scratch, plugins)
    if not because.strip():
        raise UsageError("--because is empty", "say in a few words why the old results still hold")
    house = stores.open_store(write=True)
    found = cells.accept(house, house.resolve(cell), because.strip())
    if json:
        dump(found)
    else:
        out(f"accepted: run {found['run']} of cell {found['cell'][:12]}, because {because.strip()}")
