"""What records say, kept between processes: who looks again, or first at what was made here, reads no record that has not changed.

Derived and local, in LTBENCH_CACHE beside what else is kept (`caches.root`), and never trusted against the files. An entry holds
the mark of its record's file (`kept.mark`). It is believed only while the mark is the same and the file's last change is some time
ago; whatever else, and whatever is damaged, is read from the record itself. Readers add what they read and verified, writers what
they wrote. The folder may be deleted at any time.

A store has a folder of segments, each with one writer, which appends frames: a head (lengths and a checksum), JSON, numbers of 8
bytes. What many records share (settings, digests of code, the shape of their rows) is written once per segment. A reader that
finds many segments, or much that is out of date, writes one in their place.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
import os
import struct
import sys
import threading
import time
import uuid
import zlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from ltbench import caches, files
from ltbench.canonical import digest
from ltbench.errors import LtbenchError
from ltbench.store import records, sealed
from ltbench.store.kept import mark, stat
from ltbench.store.records import Record
from ltbench.store.rows import Rows

# seconds: what changed less long ago could change again within one tick of the file system's clock
SETTLED = 2.0
SEGMENTS = 16  # more than these are made one
LIMIT = 1 << 31  # bytes of a segment
SHORT = 64  # characters of JSON that are not worth sharing

_MAGIC = b"ltv1" + sys.byteorder[:1].encode()
_HEAD = struct.Struct(f"{len(_MAGIC)}sIQI")  # lengths of the JSON and of the numbers, crc32 of both
EVENT = (
    "ltbench.read"  # as the audit event "open": of a file that was not opened, on which what is told depends
)


class Values:
    """What is known of the records in some folders. `get` and `put` while looking, `save` when the look is over."""

    def __init__(self, folder: Path, roots: Sequence[Path]) -> None:
        self._folder, self._roots = folder, [f"{root}/" for root in roots]
        self._now = time.time_ns()
        self._entries: dict[str, tuple[int, list[Any], memoryview, list[Any]]] = {}
        self._new: dict[str, dict[str, tuple[int, Record]]] = {root: {} for root in self._roots}
        self._read: dict[str, int] = {}  # entries in each root's segments
        self._segments: dict[str, list[Path]] = {}
        for root in self._roots:
            self._load(root)

    @classmethod
    def of(cls, roots: Sequence[Path]) -> Values | None:
        """None where nothing is to be kept."""
        folder = caches.root()
        return None if folder is None else cls(folder, roots)

    def get(self, path: str, found: os.stat_result) -> Record | None:
        """The record at `path`, which lies there as `found`; None where it is to be read."""
        known = self._entries.get(path)
        if known is None or known[0] != mark(found) or not self._settled(found):
            return None
        record = _opened(path, known[1], known[2], known[3])
        if record is not None:
            sys.audit(EVENT, path)
        return record

    def put(self, path: str, found: os.stat_result, record: Record) -> None:
        """Keep a record that was read after the file lay there as `found`."""
        root = next((root for root in self._roots if path.startswith(root)), None)
        if root is not None and self._settled(found):
            self._new[root][path] = (mark(found), record)

    def save(self) -> None:
        """Write down what is new. A disk that refuses costs only the speed."""
        for root in self._roots:
            with contextlib.suppress(LtbenchError, OSError, ValueError):
                self._save(root)

    def _settled(self, found: os.stat_result) -> bool:
        return max(found.st_mtime_ns, found.st_ctime_ns) <= self._now - SETTLED * 1e9

    # --- files ---

    def _load(self, root: str) -> None:
        segments = sorted((self._folder / folder_name(root)).glob("*.segment"))
        self._segments[root], self._read[root] = segments, 0
        for segment in segments:
            for entry, numbers, shared in _entries(segment):
                self._entries[root + entry[0]] = (entry[1], entry[4:], numbers, shared)
                self._read[root] += 1

    def _save(self, root: str) -> None:
        new, segments = self._new[root], self._segments[root]
        known = [path for path in self._entries if path.startswith(root) and path not in new]
        whole = len(segments) > SEGMENTS or self._read[root] > 2 * (len(known) + len(new))
        if not new and not whole:
            return
        told = [(path, *new[path]) for path in new]
        if whole:
            told += [each for path in known if (each := self._standing(path)) is not None]
        folder = self._folder / folder_name(root)
        files.make_directory(folder)
        files.replace(_fresh(folder), _Segment(root).frame(told), durable=False)
        for segment in segments if whole else ():
            segment.unlink(missing_ok=True)

    def _standing(self, path: str) -> tuple[str, int, Record] | None:
        """An entry whose file still lies there."""
        known, entry, numbers, shared = self._entries[path]
        found = stat(path)
        record = _opened(path, entry, numbers, shared) if found and mark(found) == known else None
        return None if record is None else (path, known, record)


# --- frames ---------------------------------------------------------------------------------------------------------


class _Segment:
    """What has been written to a segment so far: the texts that its entries share, each of which has a number."""

    def __init__(self, root: str) -> None:
        self._root = root
        self._shared: dict[str, int] = {}

    def frame(self, told: Sequence[tuple[str, int, Record]]) -> bytes:
        """Paths, marks and records as bytes to be appended."""
        before, numbers = len(self._shared), bytearray()
        entries = [self._entry(*each, numbers) for each in told]
        fresh = ",".join(itertools.islice(self._shared, before, None))
        text = f'{{"before":{before},"shared":[{fresh}],"entries":{_spelled(entries)}}}'.encode()
        check = zlib.crc32(numbers, zlib.crc32(text))
        return _HEAD.pack(_MAGIC, len(text), len(numbers), check) + text + numbers

    def _entry(self, path: str, known: int, record: Record, numbers: bytearray) -> list[Any]:
        rows = record.body.get("rows")
        parts = rows.parts() if isinstance(rows, Rows) else None
        at, body, refs = len(numbers), {}, {}
        for key, value in record.body.items():
            if key == "rows" and parts is not None:
                text = _spelled_shape(parts[0])
                numbers += parts[1].cast("B")
            else:
                text = _spelled(list(value) if isinstance(value, Rows) else value)
            body[key] = None if len(text) >= SHORT else value
            if len(text) >= SHORT or (key == "rows" and parts is not None):
                refs[key] = self._shared.setdefault(text, len(self._shared))
        size, packed = len(numbers) - at, parts is not None
        place = path[len(self._root) :]
        return [place, known, at, size, body, refs, packed, record.envelope, record.digest]


def _opened(path: str, entry: list[Any], numbers: memoryview, shared: list[Any]) -> Record | None:
    """None for an entry that makes no record."""
    try:
        told, refs, packed, envelope, name = entry
        body = {**told, **{key: shared[at] for key, at in refs.items()}}
        if packed:
            body["rows"] = Rows.packed(body["rows"], numbers)
        return Record(Path(path), body, envelope, name)
    except (ValueError, TypeError, KeyError, IndexError, AttributeError):
        return None


_spelled = json.JSONEncoder(allow_nan=False, separators=(",", ":")).encode


@functools.lru_cache(maxsize=16)  # long, and of thousands of records few have another
def _spelled_shape(text: str) -> str:
    return _spelled(text)


def _entries(segment: Path) -> Iterator[tuple[list[Any], memoryview, list[Any]]]:
    """(entry, its numbers, what it may refer to) of every sound frame up to the first that is not."""
    shared: list[Any] = []
    try:
        data = memoryview(files.read_regular(segment, LIMIT))
        for value, numbers in _frames(data):
            if value["before"] != len(shared):
                return  # a frame before it is missing
            shared += value["shared"]
            for entry in value["entries"]:
                yield entry, numbers[entry[2] : entry[2] + entry[3]], shared
    except (FileNotFoundError, files.Unreadable, ValueError, TypeError, KeyError, IndexError):
        return


def _frames(data: memoryview) -> Iterator[tuple[dict[str, Any], memoryview]]:
    at = 0
    while at + _HEAD.size <= len(data):
        magic, text, size, check = _HEAD.unpack_from(data, at)
        begin = at + _HEAD.size
        middle, at = begin + text, begin + text + size
        if magic != _MAGIC or at > len(data):
            return
        if zlib.crc32(data[middle:at], zlib.crc32(data[begin:middle])) != check:
            return
        yield sealed.parse(bytes(data[begin:middle])), data[middle:at]


# --- writers --------------------------------------------------------------------------------------------------------

_OWN: dict[tuple[int, str], tuple[Path, _Segment]] = {}  # of this process, by its number and a root
_ONE = threading.Lock()


def note(root: Path, path: Path, data: bytes) -> None:
    """Keep the record `data` that was just written to `path` of the store `root`."""
    folder = caches.root()
    if folder is None:
        return
    with contextlib.suppress(LtbenchError, OSError, ValueError), _ONE:
        found = os.stat(path)
        record = records.parse_record(path, data, lazy=True)
        if found.st_size == len(data):
            _append(folder / folder_name(f"{root}/"), f"{root}/", (str(path), mark(found), record))


def _append(folder: Path, root: str, told: tuple[str, int, Record]) -> None:
    path, segment = _OWN.pop((os.getpid(), root), (None, None))
    if path is None or segment is None or path.parent != folder or not path.exists():
        files.make_directory(folder)  # the first of this process, or a reader has put one in place of several
        path, segment = _fresh(folder), _Segment(root)
    data = segment.frame([told])
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
    try:
        if os.write(handle, data) == len(data):  # else a reader stops there, and another segment begins
            _OWN[os.getpid(), root] = (path, segment)
    finally:
        os.close(handle)


def folder_name(root: str) -> str:
    """Of the segments of the store in `root`."""
    return f"values-{digest([root])[:32]}"


def _fresh(folder: Path) -> Path:
    """Names sort by time, so that of two entries of one file the later counts."""
    return folder / f"{time.time_ns():020d}-{uuid.uuid4().hex[:8]}.segment"
