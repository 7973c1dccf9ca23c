"""What source files say, kept between processes by their text: the same text says the same, wherever and whenever it is read.

Only commands that look use it (`kept_in`); what makes results parses every file.
"""

from __future__ import annotations

import contextlib
import hashlib
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

from ltbench import derived

T = TypeVar("T")

ENTRIES = 4000  # kept at most, about; beyond them only what was just used


class _Memory:
    """kept: from the file; used: what this process asked for. Both None where nothing is to be kept."""

    kept: dict[str, Any] | None = None
    used: dict[str, Any] | None = None


_memory = _Memory()


def say(text: bytes, read: Callable[[bytes], T]) -> T:
    """`read(text)`, which depends on nothing else, or what it gave before."""
    if _memory.kept is None or _memory.used is None:
        return read(text)
    key = f"{read.__name__} {hashlib.sha256(text).hexdigest()}"
    if key not in _memory.used:
        _memory.used[key] = _memory.kept[key] if key in _memory.kept else read(text)
    return _memory.used[key]


@contextlib.contextmanager
def kept_in(folder: Path | None, reader: str) -> Iterator[None]:
    """In the block, texts that were read before are not read again: `folder` keeps what they say. reader: the file of the code that
    reads, another version of which may read otherwise."""
    if folder is None:
        yield
        return
    version = hashlib.sha256(Path(reader).read_bytes()).hexdigest()[:16]
    path = folder / f"code-{'.'.join(map(str, sys.version_info[:2]))}-{version}.json"
    found = derived.read(path)
    kept = _memory.kept = found if isinstance(found, dict) else {}
    used = _memory.used = {}
    try:
        yield
    finally:
        _memory.kept = _memory.used = None
        if not used.keys() <= kept.keys():
            derived.write(path, kept | used if len(kept) < ENTRIES else used)
