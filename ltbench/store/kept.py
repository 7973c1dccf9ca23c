"""What was read of a store, kept between looks: a look at thousands of cells then asks whether files changed, not what they hold.

Derived and local, never trusted against the files. Whatever is kept has the mark of its file or folder (of size, times, inode)
from before it was read. It is told again only while the mark is the same, and kept only when the last change was long enough ago
that another one would show in the times. The file may be deleted at any time; a damaged or foreign one is no file. Any number of
readers may write it: beside and renamed, the last one stays, and each is right.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from ltbench import derived, files
from ltbench.canonical import digest
from ltbench.store import records, sealed
from ltbench.store.records import Glimpse, Slot

FORMAT = 3
# What changed less long ago is read again. Two changes within a tick of the file system's clock (10 ms) have one time; the rest is
# for a file server whose clock is behind ours.
SETTLED = 60.0  # seconds
SMALL = 4096  # bytes of a file whose content is worth keeping; a failure with its traceback is not
SHARE = 20  # the file is written again when one in so many entries is new


class Seen(NamedTuple):
    """The records in a folder by their names and heads: what each one is, and the files' names with "/" between them."""

    folder: str
    slots: tuple[Slot, ...]
    names: str

    def places(self) -> list[str]:
        """The files, in the order of `slots`."""
        return [f"{self.folder}/{name}" for name in self.names.split("/")] if self.names else []

    def glimpses(self) -> list[Glimpse]:
        """One by one."""
        return [Glimpse(place, *slot) for place, slot in zip(self.places(), self.slots, strict=True)]


class Reads:
    """Reads what a look at a store needs, from the files each time."""

    def names(self, folder: str) -> list[str]:
        """The sorted names in a folder without those that begin with a dot; none where there is no folder."""
        return names(folder)

    def sealed(self, path: str) -> dict[str, Any]:
        """A sealed file; nobody changes what is returned. Raises FileNotFoundError or files.Unreadable."""
        return sealed.read_sealed(path)

    def settings(self, path: str) -> dict[str, Any]:
        """The settings in a cell.json; nobody changes what is returned. Raises as `sealed` does."""
        return self.sealed(path)["settings"]

    def info(self, path: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """The code and the settings in a run.json; nobody changes what is returned. Raises as `sealed` does."""
        value = self.sealed(path)
        return value["code"], value["settings"]

    def records(self, folder: str) -> Seen:
        """The records in a folder; what cannot be read is left out."""
        return _see(folder)[0]

    def sole(self, root: str, cell: str, run: str) -> Seen | None:
        """The records of `run`, where it is the only run of the cell in the store at `root` and nobody has accepted it; None where
        there is another, or a record that cannot be read. With as few questions to the file server as there can be."""
        found = _sole(f"{root}/cells/{cell[:2]}/{cell}/runs", run)
        return None if found is None else found[0]


class Once(Reads):
    """Lists each folder once: for a process that looks once and tells what it saw."""

    def __init__(self) -> None:
        self._names: dict[str, list[str]] = {}

    def names(self, folder: str) -> list[str]:
        found = self._names.get(folder)
        if found is None:
            found = self._names[folder] = names(folder)
        return found


LIVE = Reads()


class Kept(Reads):
    """Reads only what has changed since it was kept. For processes that look and do not act."""

    def __init__(self, path: Path | None = None, roots: Sequence[Path] = ()) -> None:
        self._path, self._roots, self._fresh = path, [str(root) for root in roots], 0
        kept = _load(path, self._roots)
        self._names, self._sealed, self._records, self._settings, self._infos, self._sole, *kept = kept
        shapes, self._shared = kept
        self._alike = {_gist(shared): number for number, shared in enumerate(self._shared)}
        self._shapes = {tuple(map(tuple, shape)): number for number, shape in enumerate(shapes)}
        self._slots = list(self._shapes)
        self.begin()

    @classmethod
    def below(cls, folder: Path | None, roots: Sequence[Path]) -> Kept:
        """What is kept in `folder` of the store of these layers; without a folder it lasts as long as the process."""
        name = digest([str(root) for root in roots])[:32]
        return cls(None if folder is None else folder / f"store-{name}.json", roots)

    def begin(self) -> None:
        """A look begins: what changes from now on is young."""
        self._until = time.time_ns() - int(SETTLED * 1e9)
        self._told: dict[str, list[str]] = {}  # in this look

    def names(self, folder: str) -> list[str]:
        if (told := self._told.get(folder)) is not None:
            return told
        found, told = stat(folder), []
        if found is not None:
            known = self._names.get(folder)
            if known is None or known[0] != mark(found):
                known = [mark(found), names(folder)]
                self._keep(self._names, folder, known, [found])
            told = known[1]
        self._told[folder] = told
        return told

    def sealed(self, path: str) -> dict[str, Any]:
        known = self._sealed.get(path)
        if known is None or known[0] != _mark_of(path):
            value, found = sealed.read_known(path)
            known = [mark(found), value]
            if found.st_size <= SMALL:
                self._keep(self._sealed, path, known, [found])
        return known[1]

    def settings(self, path: str) -> dict[str, Any]:
        """Kept without the seed: the others of a grid have the rest, as one object."""
        known = self._settings.get(path)
        if known is None or known[0] != _mark_of(path):
            value, found = sealed.read_known(path)
            known = [mark(found), *self._without_seed(value["settings"])]
            self._keep(self._settings, path, known, [found])
        return self._with_seed(*known[1:])

    def info(self, path: str) -> tuple[dict[str, Any], dict[str, Any]]:
        """Kept as settings are: the runs of a method have one code."""
        known = self._infos.get(path)
        if known is None or known[0] != _mark_of(path):
            value, found = sealed.read_known(path)
            known = [mark(found), self._share(value["code"]), *self._without_seed(value["settings"])]
            self._keep(self._infos, path, known, [found])
        return self._shared[known[1]], self._with_seed(*known[2:])

    def records(self, folder: str) -> Seen:
        found = stat(folder)
        if found is None:
            return Seen(folder, (), "")
        known = self._records.get(folder)
        if known is not None and known[0] == mark(found):
            seen = Seen(folder, self._slots[known[1]], known[2])
            measured = [p for p, slot in zip(seen.places(), seen.slots, strict=True) if slot[2]]
            if [_mark_of(place) for place in measured] == known[3]:
                return seen
        seen, heads = _see(folder)
        if heads is not None:
            entry = [mark(found), self._number(seen.slots), seen.names, [mark(h) for h in heads]]
            self._keep(self._records, folder, entry, [found, *heads])
        return seen

    def sole(self, root: str, cell: str, run: str) -> Seen | None:
        if [root] != self._roots:
            return super().sole(root, cell, run)
        runs = f"{root}/cells/{cell[:2]}/{cell}/runs"
        known = self._sole.get(cell)
        if known is not None and known[1] == run:
            seen = Seen(f"{runs}/{run}/records", self._slots[known[2]], known[3])
            if _same(runs, seen, known[0]):
                return seen
        if runs in self._names and self.names(runs) != [run]:
            return None  # as an earlier look found it
        found = _sole(runs, run)
        if found is None:
            return None
        seen, stats = found
        entry = [mark_all(stats), run, self._number(seen.slots), seen.names]
        self._keep(self._sole, cell, entry, [each for each in stats if each is not None])
        return seen

    def save(self, cells: Callable[[], Iterable[str]]) -> None:
        """Write down what is kept of `cells()`, if enough of it is new. A disk that refuses costs only the speed."""
        parts = (self._names, self._sealed, self._records, self._settings, self._infos, self._sole)
        if self._path is None or not self._fresh or self._fresh * SHARE < sum(map(len, parts)):
            return
        known = set(cells())
        kept = [
            {place: entry for place, entry in part.items() if self._cell(place) in known}
            for part in parts[:5]
        ]
        kept.append({cell: entry for cell, entry in self._sole.items() if cell in known})
        derived.write(self._path, [FORMAT, self._roots, *kept, self._slots, self._shared])
        self._fresh = 0

    def _keep(
        self, part: dict[str, Any], place: str, entry: list[Any], before: Sequence[os.stat_result]
    ) -> None:
        """Unless something changed lately: then it could change again and look the same."""
        for each in before:
            if each.st_ctime_ns > self._until or each.st_mtime_ns > self._until:
                part.pop(place, None)
                return
        part[place] = entry
        self._fresh += 1

    def _share(self, value: dict[str, Any]) -> int:
        """The place of `value` in the list of what many cells have in common."""
        gist = _gist(value)
        number = self._alike.get(gist)
        if number is None or self._shared[number] != value:
            number = self._alike[gist] = len(self._shared)
            self._shared.append(value)
        return number

    def _without_seed(self, settings: dict[str, Any]) -> list[Any]:
        """The place of what the others of a grid share, and the seed where there is one."""
        number = self._share({key: value for key, value in settings.items() if key != "seed"})
        return [number, settings["seed"]] if "seed" in settings else [number]

    def _with_seed(self, number: int, *seed: Any) -> dict[str, Any]:
        return {**self._shared[number], "seed": seed[0]} if seed else self._shared[number]

    def _number(self, slots: tuple[Slot, ...]) -> int:
        """The place of `slots` in the list of those that folders have in common."""
        number = self._shapes.setdefault(slots, len(self._slots))
        self._slots += [slots] if number == len(self._slots) else []
        return number

    def _cell(self, place: str) -> str:
        root = next((root for root in self._roots if place.startswith(f"{root}/cells/")), "")
        return place[len(root) :].split("/", 4)[3] if root else ""


def _gist(value: dict[str, Any]) -> str:
    """Of the code of a run its digests, which nearly always tell it from others; of settings everything."""
    return repr(
        [(key, part.get("digest", part) if isinstance(part, dict) else part) for key, part in value.items()]
    )


def stat(path: str) -> os.stat_result | None:
    """None where there is nothing."""
    try:
        return os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None


def mark(found: os.stat_result) -> int:
    """What changes when a file's content or a folder's names do. A hash of whole numbers is the same in every process."""
    return hash((found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino))


def _mark_of(path: str) -> int:
    """The mark of what lies there now; 0 where there is nothing."""
    found = stat(path)
    return 0 if found is None else mark(found)


def mark_all(found: Sequence[os.stat_result | None]) -> int:
    """`mark` of several in their order; None is what is not there."""
    return hash(tuple([f and (f.st_size, f.st_mtime_ns, f.st_ctime_ns, f.st_ino) for f in found]))


def names(folder: str | Path) -> list[str]:
    """The sorted names in a folder without those that begin with a dot; none where there is no folder."""
    try:
        return sorted([name for name in os.listdir(folder) if name[0] != "."])
    except (FileNotFoundError, NotADirectoryError):
        return []


def _see(folder: str) -> tuple[Seen, list[os.stat_result] | None]:
    """The records in a folder, and how those lay there whose content was looked at; None where one could not be read."""
    slots: list[Slot] = []
    told: list[str] = []
    heads: list[os.stat_result] = []
    whole = True
    for match in filter(None, map(records.NAME.fullmatch, names(folder))):
        try:
            slot, found = records.glimpse(f"{folder}/{match.string}", match)
        except (FileNotFoundError, files.Unreadable):
            whole = False
            continue
        slots.append(slot)
        told.append(match.string)
        if found is not None:
            heads.append(found)
    return Seen(folder, tuple(slots), "/".join(told)), heads if whole else None


def _sole(runs: str, run: str) -> tuple[Seen, list[os.stat_result | None]] | None:
    """`Reads.sole`, and how everything lay there on which it depends."""
    there, folder = stat(runs), f"{runs}/{run}/records"
    if there is None or names(runs) != [run] or os.path.lexists(f"{runs}/{run}/accepted.json"):
        return None
    found = stat(folder)
    seen, heads = _see(folder)
    return None if heads is None else (seen, [there, found, *heads])


def _same(runs: str, seen: Seen, known: int) -> bool:
    """Whether everything is as it was when the only run's records were marked."""
    folder, found = seen.folder, [stat(runs), stat(seen.folder)]
    for name, slot in zip(seen.names.split("/"), seen.slots, strict=False):
        if slot[2]:
            found.append(stat(f"{folder}/{name}"))
    return mark_all(found) == known and not os.path.lexists(f"{folder[:-8]}/accepted.json")


def _load(path: Path | None, roots: list[str]) -> tuple[Any, ...]:
    """Empty where there is no such file, or it is damaged, of another version or of other folders."""
    found = derived.read(path) if path is not None else None
    if isinstance(found, list) and len(found) == 10 and found[:2] == [FORMAT, roots]:
        return tuple(found[2:])
    return {}, {}, {}, {}, {}, {}, [], []
