"""The store and the scratch root as the command line means them."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ltbench.store import Store


def store_root() -> Path:
    """LTBENCH_STORE (its first entry: the others are read only), else results/store."""
    return _roots()[0]


def scratch_root() -> Path:
    """LTBENCH_SCRATCH, else results/scratch."""
    return Path(os.environ.get("LTBENCH_SCRATCH") or "results/scratch")


def _roots() -> list[Path]:
    given = [part for part in os.environ.get("LTBENCH_STORE", "").split(os.pathsep) if part]
    return [Path(part) for part in given] or [Path("results/store")]


def open_store(*, write: bool) -> Store:
    """The store of this command. Raises EnvironmentProblem when a place is no folder, or with `write` cannot be written."""
    from ltbench import files
    from ltbench.cli.output import say
    from ltbench.errors import EnvironmentProblem
    from ltbench.store import Store

    own, *others = _roots()
    for name, place in (("LTBENCH_STORE", own), ("LTBENCH_SCRATCH", scratch_root())):
        if place.exists() and not place.is_dir():
            raise EnvironmentProblem(f"{place} is a file, not a folder", f"{name} names a folder")
    store = Store.open(own, scratch_root(), write=write, readonly=others)
    if write:
        for problem in filter(None, map(files.exposure, (store.root, store.scratch))):
            say(f"warning: {problem}")
    return store
