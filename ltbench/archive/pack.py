"""From a store to an archive."""

from __future__ import annotations

import json
import os
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from ltbench import files, plugins
from ltbench.archive import FORMAT, MANIFEST
from ltbench.archive.images import PLACE, Kept, kept_images, write
from ltbench.errors import LtbenchError
from ltbench.spec.cells import Cell
from ltbench.store import Record, Run, Store

EPOCH = (1980, 1, 1, 0, 0, 0)  # zip's first day: an archive's bytes depend on its content alone


@dataclass(frozen=True)
class Packed:
    """What went into an archive. absent: cells that the store has nothing of. images: those packed, if they were asked for."""

    path: Path
    cells: int
    records: int
    members: int
    bytes: int
    absent: tuple[str, ...]
    images: Kept | None = None


def pack(
    path: Path,
    benchmark: str,
    spec: bytes,
    cells: Sequence[Cell],
    store: Store,
    lock: Path | None = None,
    *,
    samples: bool = False,
    externals: Sequence[str] = (),
) -> Packed:
    """Write the archive of a benchmark's cells, and of the `externals` that its reports show, beside `path` and rename it.

    Every run of a cell is packed, of older code too; what the store's readers would not take (damaged, superseded) is not.
    With `lock` the file goes in as well, and the cells of every record that it pins; with `samples` the generated images that the
    scratch folder holds of its records. Raises LtbenchError when the store has none of the cells or lacks a pinned record,
    StorageProblem when the disk refuses.
    """
    known = set(store.cells())
    pinned = {} if lock is None else _pinned(lock)
    ids = list(dict.fromkeys([*(cell.id for cell in cells), *externals, *sorted(set(pinned.values()))]))
    present = sorted(cell for cell in ids if cell in known and _is_described(store, cell))
    if not present:
        raise LtbenchError(
            f"the store {store.root} has none of the {len(ids)} cells of {benchmark}",
            "run it first, or name the right store by --store",
        )
    members: dict[str, bytes | Path] = {f"spec/{benchmark}.yaml": spec, **_plugins(cells)}
    if lock is not None:
        members[f"lock/{_lock_name(lock)}"] = lock
    records: list[Record] = []
    members |= _store_members(store, present, records)
    _insist(pinned, members, lock)
    images = kept_images(records, store.scratch) if samples else None
    members |= {} if images is None else images.members
    size = _write(path.absolute(), benchmark, members)
    absent = tuple(cell for cell in ids if cell not in present)
    return Packed(path, len(present), len(records), len(members), size, absent, images)


def _is_described(store: Store, cell: str) -> bool:
    """Whether a layer says what a cell is. Raises LtbenchError where none does and there are records of it."""
    if any((root / _cell_file(cell)).is_file() for root in store.layers):
        return True
    if any(run.records() for run in store.runs(cell)):
        raise LtbenchError(
            f"{store.root} has records of cell {cell[:12]}, but nothing says what it is ({_cell_file(cell)})",
            "name the store that it was layered over in LTBENCH_STORE too, or import that store's archive first",
        )
    return False


def _pinned(lock: Path) -> dict[str, str]:
    """{digest: cell} of every record that a lock pins."""
    from ltbench.report.pins import read_lock

    return {name: told["cell"] for pins in read_lock(lock).values() for name, told in pins.records.items()}


def _lock_name(lock: Path) -> str:
    """The lock's own name where an archive may hold it; else paper.lock."""
    return lock.name if re.fullmatch(r"[a-zA-Z0-9][a-zA-Z0-9._-]{0,63}", lock.name) else "paper.lock"


def _insist(pinned: Mapping[str, str], members: Mapping[str, bytes | Path], lock: Path | None) -> None:
    """Raises LtbenchError when a pinned record is not among the members: a supplement that lacks a number's record is none."""
    packed = {name.removesuffix(".json").rpartition("-")[2] for name in members if "/records/" in name}
    if lacking := sorted(name for name in pinned if name[:16] not in packed):
        some = ", ".join(f"{name[:12]} of cell {pinned[name][:12]}" for name in lacking[:5])
        raise LtbenchError(
            f"{lock} pins {len(lacking)} records that the store does not hold: {some}",
            "`report NAME --check` says what moved; `--lock` pins what is there now",
        )


def _plugins(cells: Iterable[Cell]) -> dict[str, Path]:
    """The file of every method and data set in use, by its name in the archive. One that is not here any more is left out:
    the digests of its code are in the runs."""
    wanted = {(kind, cell.settings[key]["name"]) for cell in cells
              for kind, key in (("methods", "method"), ("datasets", "dataset"))}  # fmt: skip
    known = {kind: plugins.find(kind) for kind in ("methods", "datasets")}
    return {f"plugins/{kind}/{name}.py": known[kind][name].path for kind, name in sorted(wanted) if name in known[kind]}  # fmt: skip


def _store_members(store: Store, cells: Sequence[str], records: list[Record]) -> Iterator[tuple[str, Path]]:
    """(name in the archive, file); `records` gains those that are among them."""
    for cell in cells:
        folder = f"store/cells/{cell[:2]}/{cell}"
        yield f"{folder}/cell.json", _first(store, _cell_file(cell))
        for run in store.runs(cell):
            for inner, source in _run_members(run, records):
                yield f"{folder}/runs/{run.run}/{inner}", source
    for name in sorted({record.evaluation for record in records if record.evaluation is not None}):
        yield f"store/evaluations/{name}.json", _first(store, f"evaluations/{name}.json")


def _run_members(run: Run, records: list[Record]) -> Iterator[tuple[str, Path]]:
    """(place in the run, file); `records` gains its own."""
    made = run.records()
    records += made
    for name in ("run.json", "accepted.json"):
        if found := run.file(name):
            yield name, found
    for record in made:
        yield f"records/{record.path.name}", record.path
    for name in run.facts.names():
        yield f"facts/{name}", run.facts.file(name)
    for path in run.standing_failures():
        yield f"failed/{path.name}", path


def _cell_file(cell: str) -> str:
    return f"cells/{cell[:2]}/{cell}/cell.json"


def _first(store: Store, place: str) -> Path:
    """The file of the first layer that has it, which is the one that readers take."""
    return next(path for root in store.layers if (path := root / place).is_file())


def _write(path: Path, benchmark: str, members: Mapping[str, bytes | Path]) -> int:
    """The archive beside `path`, then in its place; its bytes. Records are small, images are copied piece by piece."""
    files.make_directory(path.parent)
    temporary = files.temporary_beside(path)
    try:
        with temporary.open("xb") as file:
            with zipfile.ZipFile(file, "w") as archive:
                listed = {name: _add(archive, name, members[name]) for name in sorted(members)}
                manifest = {"format": FORMAT, "benchmark": benchmark, "files": listed}
                archive.writestr(_entry(MANIFEST), json.dumps(manifest, indent=1, sort_keys=True))
            file.flush()
            os.fsync(file.fileno())
            size = file.tell()
        temporary.replace(path)
    except OSError as error:
        raise files.StorageProblem(path, error) from error
    finally:
        files.discard(temporary)
    files.sync_directory(path.parent)
    return size


def _add(archive: zipfile.ZipFile, name: str, source: bytes | Path) -> dict[str, str | int]:
    if isinstance(source, Path) and PLACE.fullmatch(name):
        return write(archive, _entry(name), source)
    data = source if isinstance(source, bytes) else files.read_regular(source)
    archive.writestr(_entry(name), data)
    return {"sha256": files.sha256_bytes(data), "bytes": len(data)}


def _entry(name: str) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name, EPOCH)
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = 0o644 << 16
    return entry
