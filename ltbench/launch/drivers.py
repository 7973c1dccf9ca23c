"""Which cells a run on some machine is about: SCRATCH/logs/RUN/driver.json, written by the run before anything starts.

A cell that waits for its turn has no claim yet. Whoever is about to delete something of it must know all the same.
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from ltbench import files
from ltbench.store import owner as owners
from ltbench.store import sealed
from ltbench.store.kept import names
from ltbench.store.owner import Owner

FOLDER, NAME = "logs", "driver.json"


@dataclass(frozen=True)
class Driver:
    """A run that may still go on: its folder of logs, its process, the cells that it does."""

    folder: Path
    owner: Owner
    cells: frozenset[str]


@contextlib.contextmanager
def announced(folder: Path, cells: Iterable[str]) -> Iterator[None]:
    """In the block, others can read that this process is about these cells. A disk that is full costs the file, not the run."""
    value = {"format": sealed.FORMAT, "owner": owners.here().json(), "cells": sorted(set(cells))}
    with contextlib.suppress(files.StorageProblem):
        files.make_directory(folder)
        files.replace(folder / NAME, sealed.seal(value))
    try:
        yield
    finally:
        files.discard(folder / NAME)


def drivers(scratch: Path, but: Collection[str] = ()) -> Iterator[Driver]:
    """Every run whose process lives, or is on another machine, where nobody here can know; without those in the folders `but`."""
    here = owners.here()
    for name in names(scratch / FOLDER):
        if name in but:
            continue
        folder = scratch / FOLDER / name
        try:
            told = sealed.read_sealed(folder / NAME)
            owner, cells = Owner.from_json(told["owner"]), frozenset(map(str, told["cells"]))
        except (FileNotFoundError, files.Unreadable, KeyError, TypeError):
            continue
        if owner is not None and owner.alive(here) is not False:
            yield Driver(folder, owner, cells)
