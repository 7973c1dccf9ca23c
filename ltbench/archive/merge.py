"""From archives to a store: what is new is added, what is there stays, and what contradicts it is named."""

from __future__ import annotations

import re
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ltbench import files
from ltbench.archive import FORMAT, MANIFEST, images
from ltbench.errors import LtbenchError, UsageError
from ltbench.store import Run, Store, sealed
from ltbench.store.records import evaluation_of, parse_record

# What zipfile and zlib raise for damaged bytes: they have no common base.
_BROKEN = (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError, KeyError, ValueError, OSError)
LIMIT = 4 << 30  # bytes of all members but images: a zip can claim to hold far more than it is long
_RUN = r"store/cells/[0-9a-f]{2}/(?P<cell>[0-9a-f]{12,64})/runs/(?P<run>[0-9a-f]{12})"
_PLACES = {
    "cell": re.compile(r"store/cells/[0-9a-f]{2}/(?P<cell>[0-9a-f]{12,64})/cell\.json"),
    "evaluation": re.compile(r"store/evaluations/(?P<name>[0-9a-f]{12})\.json"),
    "run": re.compile(_RUN + r"/run\.json"),
    "accepted": re.compile(_RUN + r"/accepted\.json"),
    "record": re.compile(_RUN + r"/records/(?P<name>[a-z0-9-]+\.json)"),
    "fact": re.compile(_RUN + r"/facts/(?P<name>[0-9a-f]{16}\.(png|npz))"),
    "failure": re.compile(_RUN + r"/failed/(?P<name>[a-z0-9-]+\.[0-9]+\.json)"),
    "spec": re.compile(r"spec/(?P<name>[a-z0-9][a-z0-9._-]{0,63})\.yaml"),
    "lock": re.compile(r"lock/(?P<name>[a-zA-Z0-9][a-zA-Z0-9._-]{0,63})"),
    "plugin": re.compile(r"plugins/(methods|datasets)/(?P<name>[a-z][a-z0-9_]*)\.py"),
    "image": images.PLACE,
}  # in the order in which they are merged: a record's cell and run are there before it


@dataclass
class Merged:
    """What an import did: members by kind that were added, and that were there already; `conflicts` were left out, each with
    its place and what it contradicts."""

    added: Counter[str] = field(default_factory=Counter)
    present: Counter[str] = field(default_factory=Counter)
    conflicts: list[str] = field(default_factory=list)
    image_bytes: int = 0  # of images that were added
    left: list[str] = field(default_factory=list)  # specs and plugins, which stay in the archive

    def note(self, kind: str, new: bool) -> None:
        (self.added if new else self.present)[kind] += 1


def merge(path: Path, store: Store) -> Merged:
    """Add what an archive holds to a store. Nothing that the store holds is changed.

    The archive is checked whole before anything is written. Specs, plugins and locks stay in the archive: the code and the
    benchmarks of a checkout are its own. Raises LtbenchError for a file that is no sound archive.
    """
    members = read_archive(path)
    done = Merged()
    for kind, add in _ADD.items():
        for name, data in members.items():
            if match := _PLACES[kind].fullmatch(name):
                add(store, match.groupdict(), data, path.name, done)
    done.left = [name for name in members if name.startswith(("spec/", "plugins/"))]
    _images(path, store, done)
    return done


def _images(path: Path, store: Store, done: Merged) -> None:
    """Generated images go to the scratch folder, where evaluations of them find them."""
    with zipfile.ZipFile(path) as archive:
        for name in sorted(archive.namelist()):
            if images.PLACE.fullmatch(name):
                new, conflict = images.place(archive, name, store.scratch)
                if conflict:
                    done.conflicts.append(conflict)
                else:
                    done.note("image", new)
                    done.image_bytes += archive.getinfo(name).file_size if new else 0


def read_archive(path: Path) -> dict[str, bytes]:
    """The members of an archive, each checked against the manifest, in the order of their names; images are checked and left where
    they are.

    Raises UsageError for a path without a file, LtbenchError for a damaged archive, a newer one, and names that do not belong.
    """
    if not path.is_file():
        raise UsageError(f"there is no archive {path}", "`export SPEC --out FILE.zip` makes one")
    try:
        with zipfile.ZipFile(path) as archive:
            manifest = _manifest(path, archive)
            listed: Mapping[str, Any] = manifest["files"]
            _check_names(path, archive, listed)
            pictures = {name for name in listed if images.PLACE.fullmatch(name)}
            for name in sorted(pictures):
                images.check(path, archive, name, listed[name])
            return {
                name: _member(path, archive, name, listed[name]) for name in sorted(set(listed) - pictures)
            }
    except _BROKEN as error:
        raise LtbenchError(f"{path} is damaged, or no zip archive: {error}", "copy it again") from None


def _manifest(path: Path, archive: zipfile.ZipFile) -> dict[str, Any]:
    try:
        found = sealed.parse(archive.read(MANIFEST))
    except KeyError:
        raise LtbenchError(f"{path} has no {MANIFEST}", "`export` of ltbench makes such archives") from None
    except ValueError as error:
        raise LtbenchError(f"{path}: its {MANIFEST} {error}") from None
    if not isinstance(found.get("format"), int) or found["format"] > FORMAT:
        raise LtbenchError(
            f"{path} has format {found.get('format')!r}; this ltbench reads up to {FORMAT}", "update ltbench"
        )
    return found


def _check_names(path: Path, archive: zipfile.ZipFile, listed: Mapping[str, Any]) -> None:
    inside = [entry.filename for entry in archive.infolist() if entry.filename != MANIFEST]
    strange = sorted(name for name in inside if not any(p.fullmatch(name) for p in _PLACES.values()))
    if strange:
        raise LtbenchError(f"{path} holds {strange[0]!r}, which has no place in an archive of ltbench")
    if sorted(inside) != sorted(listed):
        odd = sorted(set(inside) ^ set(listed)) or ["a name twice"]
        raise LtbenchError(f"{path}: its manifest and its members differ ({odd[0]})", "copy it again")
    sizes = [e.file_size for e in archive.infolist() if not images.PLACE.fullmatch(e.filename)]
    if (total := sum(sizes)) > LIMIT:
        raise LtbenchError(f"{path} unpacks to {total:,} bytes; the limit is {LIMIT:,}")


def _member(path: Path, archive: zipfile.ZipFile, name: str, told: Mapping[str, Any]) -> bytes:
    data = archive.read(name)
    if files.sha256_bytes(data) != told.get("sha256"):
        raise LtbenchError(
            f"{path}: {name} does not match its sha256 in the manifest", "copy the archive again"
        )
    return data


# --- one kind of member each ------------------------------------------------------------------------------------------


def _cell(store: Store, place: Mapping[str, str], data: bytes, _origin: str, done: Merged) -> None:
    new = _parsed(data, f"cell {place['cell'][:12]}")
    try:
        known = store.cell(place["cell"])["identity"]
    except UsageError:
        known = None
        store.put_cell(place["cell"], new["identity"], new["settings"])
    if known not in (None, new["identity"]):
        done.conflicts.append(f"cell {place['cell'][:12]}: the store has other settings under this id")
        return
    done.note("cell", known is None)


def _evaluation(store: Store, place: Mapping[str, str], data: bytes, _origin: str, done: Merged) -> None:
    if files.sha256_bytes(data)[:12] != place["name"]:
        raise LtbenchError(f"evaluation {place['name']} of the archive does not match its name (sha256)")
    there = (store.root / "evaluations" / f"{place['name']}.json").is_file()
    store.put_evaluation(sealed.parse(data))
    done.note("evaluation", not there)


def _run(store: Store, place: Mapping[str, str], data: bytes, _origin: str, done: Merged) -> None:
    run, info = _place(store, place), _parsed(data, f"run {place['run']}")
    there = run.file("run.json") is not None
    if not there:
        run.create(info["code"], info["settings"])
    done.note("run", not there)


def _accepted(store: Store, place: Mapping[str, str], data: bytes, _origin: str, done: Merged) -> None:
    run, told = _place(store, place), _parsed(data, f"accepted.json of run {place['run']}")
    mine = run.accepted()
    if mine is None:
        _frame(store, run)
        run.accept(told["because"], told["code"])
    elif mine["code"] != told["code"]:
        done.conflicts.append(f"{_where(place)}: accepted here for other code; the store's acceptance stays")
        return
    done.note("accepted", mine is None)


def _record(store: Store, place: Mapping[str, str], data: bytes, origin: str, done: Merged) -> None:
    """The attempt that wrote it means something among the claims of its own store only, so it goes into the envelope's
    `imported`; a record without an attempt is fenced by nobody."""
    run = _place(store, place)
    record = parse_record(run.dir / "records" / place["name"], data)
    same_slot = [each for each in run.records(record.kind) if each.slot == record.slot]
    if any(each.digest == record.digest for each in same_slot):
        done.note("record", False)
    elif same_slot:
        done.conflicts.append(
            f"{_where(place)}: {record.stage} at step {record.step} has other values here; the store's stay"
        )
    else:
        envelope = {key: value for key, value in record.envelope.items() if key != "attempt"}
        envelope["imported"] = {"from": origin, "attempt": record.attempt}
        _frame(store, run)
        run.put_record(record.kind, record.step, record.body, envelope, evaluation_of(record.body))
        done.note("record", True)


def _fact(store: Store, place: Mapping[str, str], data: bytes, _origin: str, done: Merged) -> None:
    run = _place(store, place)
    if files.sha256_bytes(data)[:16] != place["name"][:16]:
        raise LtbenchError(f"fact {place['name']} of the archive does not match its name (sha256)")
    new = place["name"] not in run.facts.names()
    run.facts.put(data, place["name"].partition(".")[2])
    done.note("fact", new)


def _failure(store: Store, place: Mapping[str, str], data: bytes, _origin: str, done: Merged) -> None:
    """As attempt 0, before every attempt of this store; where the stage has a story here, that one stays."""
    run, told = _place(store, place), _parsed(data, f"failed/{place['name']}")
    new = run.state(told["stage"]) is None
    if new:
        fields = {k: v for k, v in told.items() if k not in ("format", "stage", "attempt", "time", "seal")}
        _frame(store, run)
        run.fail(told["stage"], 0, **fields)
    done.note("failure", new)


_ADD: dict[str, Callable[[Store, Mapping[str, str], bytes, str, Merged], None]] = {
    "cell": _cell,
    "evaluation": _evaluation,
    "run": _run,
    "accepted": _accepted,
    "record": _record,
    "fact": _fact,
    "failure": _failure,
}


def _frame(store: Store, run: Run) -> None:
    """What a cell and its run are, beside what is added to them: a layer below, which may be all that says it, can be gone tomorrow."""
    cell, info = store.cell(run.cell), run.info()
    store.put_cell(run.cell, cell["identity"], cell["settings"])
    run.create(info["code"], info["settings"])


def _place(store: Store, place: Mapping[str, str]) -> Run:
    return store.run(place["cell"], place["run"])


def _where(place: Mapping[str, str]) -> str:
    return f"cell {place['cell'][:12]}, run {place['run']}"


def _parsed(data: bytes, what: str) -> dict[str, Any]:
    try:
        return sealed.unseal(data)
    except ValueError as error:
        raise LtbenchError(f"{what} of the archive {error}") from None
