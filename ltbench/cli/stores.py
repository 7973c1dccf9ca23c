"""The store and the scratch root as the command line means them."""

from __future__ import annotations

import contextlib
import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ltbench.store import Store


SCRATCHES = "scratches"  # below the store: a file for each scratch folder that a profile has named


def store_root() -> Path:
    """LTBENCH_STORE (its first entry: the others are read only), else results/store."""
    return _roots()[0]


def scratch_root() -> Path:
    """LTBENCH_SCRATCH, else results/scratch; where that is not there, the one folder to which jobs of this store were submitted."""
    if given := os.environ.get("LTBENCH_SCRATCH"):
        return Path(given)
    usual = Path("results/scratch")
    known = [] if usual.is_dir() else remembered()
    return known[0] if len(known) == 1 else usual


def remember(house: Store) -> None:
    """Keep in the store where a profile puts its jobs' files: `status` and `cancel` are typed without the profile."""
    from ltbench import files
    from ltbench.canonical import digest
    from ltbench.store import sealed

    place = str(house.scratch)
    path = house.root / SCRATCHES / f"{digest(place)[:16]}.json"
    files.make_directory(path.parent)
    files.write_once(path, sealed.seal({"format": sealed.FORMAT, "scratch": place}))


def remembered() -> list[Path]:
    """Such folders of this store that are there on this machine."""
    from ltbench import files
    from ltbench.store import sealed

    folder, found = store_root() / SCRATCHES, []
    for file in sorted(folder.glob("*.json")) if folder.is_dir() else ():
        with contextlib.suppress(FileNotFoundError, files.Unreadable):
            found.append(Path(sealed.read_sealed(file)["scratch"]))
    return [place for place in found if place.is_dir()]


def _overlooked(scratch: Path) -> list[str]:
    """A line for each folder with jobs of this store in which a command that was told no scratch folder does not look."""
    if os.environ.get("LTBENCH_SCRATCH"):
        return []
    return [
        f"note: jobs of this store also lie in {place}; to see, cancel or follow them: export LTBENCH_SCRATCH={shlex.quote(str(place))}"
        for place in remembered()
        if place != scratch
    ]


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
    for line in _overlooked(store.scratch):
        say(line)
    if write:
        for problem in filter(None, map(files.exposure, (store.root, store.scratch))):
            say(f"warning: {problem}")
    return store


def say_if_missing(house: Store) -> None:
    """A mistyped place looks like a grid that never ran; the usual place may well not be there yet."""
    from ltbench.cli.output import say

    if os.environ.get("LTBENCH_STORE") and not any(root.is_dir() for root in house.layers):
        say(
            f"note: there is no store at {house.root}, which --store or LTBENCH_STORE names: nothing of ours is shown"
        )


def derived_specs() -> list[Path]:
    """Where specs lie that --set and --with derived: one's own first, then those of the layers below."""
    return [root / "specs" for root in _roots()]
