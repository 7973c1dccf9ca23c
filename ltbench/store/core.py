"""The results store: directories and write-once files that any number of processes and machines may share."""

from __future__ import annotations

import contextlib
import itertools
import os
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ltbench import files
from ltbench.canonical import canonical_json, digest
from ltbench.errors import EnvironmentProblem, LtbenchError, UsageError
from ltbench.store import claims, kept, records, sealed
from ltbench.store.kept import LIVE, Once, Reads
from ltbench.store.records import Damaged, Record, Records, damage
from ltbench.store.run import Run
from ltbench.store.values import Values

DEFAULT_ROOT, DEFAULT_SCRATCH = "results/store", "results/scratch"
PREFIX = 6  # hex digits that a shortened cell id has at least

_HEX = re.compile(r"[0-9a-f]+")
_CELL = re.compile(r"[0-9a-f]{12,64}")
_RUN = re.compile(r"[0-9a-f]{12}")
_EVALUATION = re.compile(r"[0-9a-f]{12}\.json")
_SPEC = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}", re.IGNORECASE)


class Store:
    """An open store; made by `Store.open`. `root` is its own folder, `layers` that and the read-only ones behind it."""

    def __init__(
        self, root: Path, scratch: Path, *, write: bool, readonly: Sequence[Path], link: bool, lease: float
    ) -> None:
        self.root, self.scratch, self.write, self.link = root, scratch, write, link
        self.layers = (root, *readonly)
        self.folders = tuple(map(str, self.layers))  # thousands of names are made from them
        self.watch, self.lease = claims.WATCH, lease
        # Whether rows of records stay packed until they are asked for, and a run's records are those of the first question;
        # of a store open for reading.
        self.lazy = False
        self.reads: Reads = LIVE  # of what a look asks; who only looks may put a `Kept` here
        self.values: Values | None = None  # what is known of records, for one look: `looking`
        self._read: dict[str, tuple[tuple[int, ...], Record]] = {}
        self.looked: dict[tuple[str, str], Records] = {}

    def __repr__(self) -> str:
        return f"Store({self.root})"

    @classmethod
    def open(
        cls,
        root: Path | None = None,
        scratch: Path | None = None,
        *,
        write: bool = True,
        readonly: Sequence[Path] = (),
        lease: float = claims.LEASE,
    ) -> Store:
        """Open a store, `root` or LTBENCH_STORE (whose further folders, after ':', are read-only layers) or results/store.

        With `write` both folders are made and tried out. `lease` is how many seconds the heartbeat of an owner on another
        machine may stand still. Raises EnvironmentProblem: cannot be written, a newer format, a layer that is no store.
        """
        named = [
            Path(part) for part in os.environ.get("LTBENCH_STORE", DEFAULT_ROOT).split(os.pathsep) if part
        ]
        if root is None:
            root, *more = named or [Path(DEFAULT_ROOT)]
            readonly = (*readonly, *more)
        root = Path(root).absolute()  # a plugin may change the working directory
        scratch = Path(scratch or os.environ.get("LTBENCH_SCRATCH") or DEFAULT_SCRATCH).absolute()
        layers = [Path(layer).absolute() for layer in readonly]
        for layer in layers:
            if not (layer / "FORMAT").exists():
                raise EnvironmentProblem(
                    f"{layer} is not a store: it has no FORMAT file", "Check LTBENCH_STORE."
                )
            _read_format(layer)
        link = _settle_format(root, scratch) if write else _read_format(root).get("link", True)
        return cls(root, scratch, write=write, readonly=layers, link=link, lease=lease)

    def require_writable(self) -> None:
        """Raises UsageError when the store was opened for reading."""
        if not self.write:
            raise UsageError(f"the store {self.root} was opened for reading", "Open it with write=True.")

    def layer_of(self, path: Path) -> str:
        """Which layer a file of the store is in: "own", or the folder of a read-only one."""
        found = next(root for root in self.layers if path.is_relative_to(root))
        return "own" if found == self.root else str(found)

    # --- cells and runs --------------------------------------------------------------------------------------------

    def put_cell(self, cell_id: str, identity: dict[str, Any], settings: dict[str, Any]) -> None:
        """Keep what a cell is; a second call with the same cell is nothing."""
        self.require_writable()
        path = self._cell_folder(self.root, cell_id) / "cell.json"
        files.make_directory(path.parent)
        content = {"format": sealed.FORMAT, "id": cell_id, "identity": identity, "settings": settings}
        sealed.keep_once(path, content, link=self.link)

    def cells(self) -> Iterator[str]:
        """The ids of all cells of all layers, sorted."""
        return iter(sorted({cell for root in self.layers for cell in _cell_names(root)}))

    def cell(self, cell_id: str) -> dict[str, Any]:
        """cell.json: {"format", "id", "identity", "settings"}. Raises UsageError for an unknown cell, files.Unreadable for a
        damaged one."""
        for root in self.layers:
            try:
                return sealed.read_sealed(self._cell_folder(root, cell_id) / "cell.json")
            except FileNotFoundError:
                continue
        raise UsageError(f"no cell {cell_id} in {self._where()}")

    def settings(self, cell_id: str) -> dict[str, Any]:
        """Of a cell, through what is kept of the store; nobody changes them. Raises as `cell` does."""
        _check_cell(cell_id)
        for root in self.folders:
            try:
                return self.reads.settings(f"{root}/cells/{cell_id[:2]}/{cell_id}/cell.json")
            except FileNotFoundError:
                continue
        raise UsageError(f"no cell {cell_id} in {self._where()}")

    def resolve(self, prefix: str) -> str:
        """The one cell whose id begins with `prefix` (at least 6 hex digits). Raises UsageError otherwise."""
        prefix = prefix.lower()
        if not _HEX.fullmatch(prefix) or len(prefix) < PREFIX:
            raise UsageError(f"{prefix!r} is not the beginning of a cell id: at least {PREFIX} hex digits")
        found = sorted(
            {
                cell
                for root in self.layers
                for cell in _cell_names(root, prefix[:2])
                if cell.startswith(prefix)
            }
        )
        if not found:
            raise UsageError(
                f"no cell {prefix} in {self._where()}", "`plan SPEC --all` and `status` list the cells."
            )
        if len(found) > 1:
            raise UsageError(
                f"{prefix} is the beginning of {len(found)} cells: " + ", ".join(id[:16] for id in found[:5])
            )
        return found[0]

    def run(self, cell_id: str, run: str) -> Run:
        """A run, which need not exist yet."""
        _check_cell(cell_id)
        if not _RUN.fullmatch(run):
            raise UsageError(f"{run!r} is not a run: 12 hex digits")
        return Run(self, cell_id, run)

    def runs(self, cell_id: str) -> list[Run]:
        """The runs of a cell in all layers, by name."""
        _check_cell(cell_id)
        place = f"cells/{cell_id[:2]}/{cell_id}/runs"
        first, *more = (self.reads.names(f"{root}/{place}") for root in self.folders)
        found = sorted({*first, *itertools.chain(*more)}) if more else first
        return [Run(self, cell_id, name) for name in found if _RUN.fullmatch(name)]

    def read_record(self, path: str) -> Record:
        """`records.read_record`; a store that is open for reading keeps what it read while the file stays the same.

        A report asks for each record three times, and reading is most of its time. The bodies are shared: nobody changes them.
        """
        if self.write:
            return records.read_record(Path(path))
        found = os.stat(path)
        mark = (found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)
        known = self._read.get(path)
        if known is None or known[0] != mark:
            record = self.values.get(path, found) if self.values is not None else None
            if record is None:
                record = records.read_record(Path(path), lazy=self.lazy)
                if self.values is not None:
                    self.values.put(path, found, record)
            known = self._read[path] = (mark, record)
        return known[1]

    @contextlib.contextmanager
    def looking(self) -> Iterator[Store]:
        """One look at a store open for reading: records are known from `values` where they have not changed, and stay as they
        were first seen."""
        self.lazy, self.values, self.reads = True, Values.of(self.layers), Once()
        yield self
        if self.values is not None:
            self.values.save()

    def records(self, kind: str = "evaluation") -> Iterator[Record]:
        """The records that count, of every run, verified, in a fixed order. `damaged()` lists those that were skipped."""
        for cell in self.cells():
            for run in self.runs(cell):
                yield from run.records(kind)

    def damaged(self) -> list[Damaged]:
        """Every record and descriptor in the store that cannot be trusted, with the reason."""
        found: list[Damaged] = []
        for root in self.layers:
            for name in kept.names(root / "evaluations"):
                found += _evaluation_damage(root / "evaluations" / name)
        for cell in self.cells():
            for root in self.layers:
                found += damage(self._cell_folder(root, cell) / "cell.json")
            for run in self.runs(cell):
                found += run.damaged()
        return found

    # --- descriptors -----------------------------------------------------------------------------------------------

    def put_evaluation(self, evaluation: dict[str, Any]) -> str:
        """Keep what an evaluation is and return its id, 12 hex digits of the digest of `evaluation` without "id"."""
        self.require_writable()
        content = {key: value for key, value in evaluation.items() if key != "id"}
        name = digest(content)[:12]
        path = self.root / "evaluations" / f"{name}.json"
        files.make_directory(path.parent)
        if not files.write_once(path, canonical_json(content), link=self.link) and _evaluation_damage(path):
            files.replace(path, canonical_json(content))
        return name

    def get_evaluation(self, evaluation_id: str) -> dict[str, Any]:
        """The evaluation of this id. Raises UsageError for an unknown one, files.Unreadable for a damaged one."""
        for root in self.layers:
            path = root / "evaluations" / f"{evaluation_id}.json"
            if _EVALUATION.fullmatch(path.name) and path.exists():
                if problems := _evaluation_damage(path):
                    raise files.Unreadable(path, problems[0].reason)
                return sealed.parse(files.read_regular(path))
        raise UsageError(f"no evaluation {evaluation_id} in {self._where()}")

    def put_spec(self, name: str, text: str) -> Path:
        """Keep a derived spec under `specs/<name>.yaml`, in place of an older one of that name."""
        self.require_writable()
        if not _SPEC.fullmatch(name) or ".." in name:
            raise UsageError(
                f"{name!r} cannot be a spec's name: letters, digits, '.', '_' and '-', at most 64"
            )
        path = self.root / "specs" / f"{name}.yaml"
        files.make_directory(path.parent)
        files.replace(path, text.encode())
        return path

    def specs(self) -> dict[str, Path]:
        """The derived specs by name; one's own hide those of read-only layers."""
        found: dict[str, Path] = {}
        for root in reversed(self.layers):
            for name in kept.names(root / "specs"):
                if name.endswith(".yaml"):
                    found[name.removesuffix(".yaml")] = root / "specs" / name
        return dict(sorted(found.items()))

    # --- inside ----------------------------------------------------------------------------------------------------

    def _cell_folder(self, root: Path, cell_id: str) -> Path:
        _check_cell(cell_id)
        return root / "cells" / cell_id[:2] / cell_id

    def _where(self) -> str:
        return " and ".join(str(root) for root in self.layers)


def _check_cell(cell_id: str) -> None:
    if not _CELL.fullmatch(cell_id):
        raise UsageError(f"{cell_id!r} is not a cell id: hex digits; `resolve` completes a shortened one")


def _cell_names(root: Path, first: str | None = None) -> list[str]:
    groups = kept.names(root / "cells") if first is None else [first]
    return [name for group in groups for name in kept.names(root / "cells" / group) if _CELL.fullmatch(name)]


def _settle_format(root: Path, scratch: Path) -> bool:
    """Try both folders out, write FORMAT where there is none; whether link() is to be used."""
    works = files.probe(root)
    files.probe(scratch)
    found = _read_format(root)
    if not found:
        content = {"format": sealed.FORMAT, "link": works["link"]}
        if not files.write_once(root / "FORMAT", canonical_json(content), link=works["link"]):
            found = _read_format(root)
            if not found:
                files.replace(root / "FORMAT", canonical_json(content))
    return bool(found.get("link", True)) and works["link"]


def _read_format(root: Path) -> dict[str, Any]:
    """FORMAT; {} where there is none or an empty one, which a kill can leave. Raises EnvironmentProblem."""
    path = root / "FORMAT"
    try:
        data = files.read_regular(path, 4096)
        if not data:
            return {}
        value = sealed.parse(data)
        sealed.check_format(path, value)
    except FileNotFoundError:
        return {}
    except sealed.NewerFormat as problem:
        raise EnvironmentProblem(f"the store {root} {problem.reason}") from problem
    except (LtbenchError, ValueError) as problem:
        hint = 'It holds {"format":1,"link":true}: restore it, or choose another folder by LTBENCH_STORE.'
        raise EnvironmentProblem(f"{path} cannot be read: {problem}", hint) from problem
    return value


def _evaluation_damage(path: Path) -> list[Damaged]:
    try:
        data = files.read_regular(path)
        if files.sha256_bytes(data)[:12] != path.name.removesuffix(".json"):
            return [Damaged(path, "does not match its name (sha256)")]
    except FileNotFoundError:
        return []
    except files.Unreadable as problem:
        return [Damaged(path, problem.reason)]
    return []
