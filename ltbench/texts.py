"""What source files say, kept between processes by their text: the same text says the same, wherever and whenever it is read.

Only commands that look take what was kept (`kept_in`). What makes results reads every file itself, and leaves what it found (`leave`).
"""

from __future__ import annotations

import contextlib
import hashlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ltbench import derived

T = TypeVar("T")

ENTRIES = 4000  # kept at most, about; beyond them only what was just read


@dataclass
class _Memory:
    """read: what this process read itself; kept: what others did, None where that is not to be used."""

    read: dict[str, Any] = field(default_factory=dict)
    kept: dict[str, Any] | None = None


_memory = _Memory()


def say(text: bytes, read: Callable[[bytes], T]) -> T:
    """`read(text)`, which depends on nothing else, or what it gave before."""
    key = f"{read.__name__} {hashlib.sha256(text).hexdigest()}"
    if _memory.kept is not None and key in _memory.kept:
        return _memory.kept[key]
    if key not in _memory.read:
        _memory.read[key] = read(text)
    return _memory.read[key]


def forget() -> None:
    """Read every text again at the next call."""
    _memory.read = {}


@contextlib.contextmanager
def kept_in(folder: Path | None, reader: str) -> Iterator[None]:
    """In the block, texts that were read before are not read again: `folder` keeps what they say. reader: the file of the code that
    reads, another version of which may read otherwise. Without a folder, nothing that others read is used."""
    before, _memory.kept = _memory.kept, None if folder is None else _found(_path(folder, reader))
    try:
        yield
    finally:
        if folder is not None:
            _leave(_path(folder, reader), _memory.kept or {})
        _memory.kept = before


def leave(folder: Path, reader: str) -> None:
    """Leave what this process has read for the looks of others, and take nothing."""
    path = _path(folder, reader)
    _leave(path, _found(path))


def _path(folder: Path, reader: str) -> Path:
    version = hashlib.sha256(Path(reader).read_bytes()).hexdigest()[:16]
    return folder / f"code-{'.'.join(map(str, sys.version_info[:2]))}-{version}.json"


def _found(path: Path) -> dict[str, Any]:
    found = derived.read(path)
    return found if isinstance(found, dict) else {}


def _leave(path: Path, there: dict[str, Any]) -> None:
    if not _memory.read.keys() <= there.keys():
        derived.write(path, there | _memory.read if len(there) < ENTRIES else _memory.read)
