"""The verbs that look into one cell: show, why, accept."""

from __future__ import annotations

from typing import Annotated

import typer

from ltbench.cli.options import AsJson, Plugins, ScratchAt, StoreAt, place
from ltbench.cli.output import dump, out
from ltbench.errors import UsageError

CellName = Annotated[
    str,
    typer.Argument(
        metavar="CELL", help="A cell's id, or at least its first 6 digits (see status, plan --all)."
    ),
]


def show(
    cell: CellName,
    json: AsJson = False,
    store: StoreAt = None,
    scratch: ScratchAt = None,
    plugins: Plugins = None,
) -> None:
    """Everything the store holds about one cell: settings, runs, curves, records, attempts and their jobs, failures, files.

    \b
    Example:
      python harness.py show 76fc6efc05e6
    """
    from ltbench.cli import cell as cells
    from ltbench.cli import following, stores

    place(store, scratch, plugins)
    found = cells.describe(stores.open_store(write=False), following.resolve(cell))
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
    from ltbench.cli import following, stores
    from ltbench.cli import reasons as whys

    place(store, scratch, plugins)
    found = whys.reasons(stores.open_store(write=False), following.resolve(cell))
    dump(found) if json else whys.tell_reasons(found)


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
    from ltbench.cli import reasons, stores

    place(store, scratch, plugins)
    if not because.strip():
        raise UsageError("--because is empty", "say in a few words why the old results still hold")
    house = stores.open_store(write=True)
    found = reasons.accept(house, house.resolve(cell), because.strip())
    if json:
        dump(found)
    else:
        out(f"accepted: run {found['run']} of cell {found['cell'][:12]}, because {because.strip()}")
