"""A disk that forgets, at a power loss, whatever was not fsynced: told by watching the calls of one process, without root or FUSE.

Two such disks are looked at. A lazy one keeps neither data nor names before their fsync. A hasty one has every name at once, and of
the data only what was fsynced: an empty file under its final name (the order in which ext4 and others may write).
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

CHANGES = ("fsync", "link", "rename", "replace", "unlink", "mkdir")  # after each of them the power may go


class Disk:
    """What of `folder` would be there after a power loss. What it holds in the beginning is durable."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._open = ExitStack()  # an inode that is held open is not given to another file
        self._data: dict[int, bytes] = {}  # what was fsynced, by inode
        self._names: dict[int, dict[str, int]] = {}
        self._handles: dict[int, int] = {}
        for path in (folder, *folder.rglob("*")):
            self.synced(self._hold(path))

    def _hold(self, path: Path) -> int:
        handle = os.open(path, os.O_RDONLY)
        number = os.fstat(handle).st_ino
        if number in self._handles:
            os.close(handle)
        else:
            self._handles[number] = handle
            self._open.callback(os.close, handle)
        return self._handles[number]

    def synced(self, handle: int) -> None:
        """An fsync has succeeded."""
        found = os.fstat(handle)
        if stat.S_ISDIR(found.st_mode):
            self._names[found.st_ino] = self._entries(handle)
        else:
            self._data[found.st_ino] = os.pread(self._handles.get(found.st_ino, handle), found.st_size, 0)

    def _entries(self, handle: int) -> dict[str, int]:
        return {entry.name: entry.inode() for entry in os.scandir(handle)}

    def look(self) -> None:
        """Take note of what is new."""
        for path in self.folder.rglob("*"):
            self._hold(path)

    def put(self, image: Path, *, hasty: bool) -> None:
        """Make `image` what is left after a power loss now."""
        self._put(image, os.stat(self.folder).st_ino, hasty)

    def _put(self, image: Path, number: int, hasty: bool) -> None:
        handle = self._handles[number]
        if not stat.S_ISDIR(os.fstat(handle).st_mode):
            image.write_bytes(self._data.get(number, b""))
            return
        image.mkdir()
        gone = os.fstat(handle).st_nlink == 0  # removed since, and its name not yet
        names = self._entries(handle) if hasty and not gone else self._names.get(number, {})
        for name, inner in names.items():
            self._put(image / name, inner, hasty)

    def close(self) -> None:
        self._open.close()


@contextmanager
def losing_power(folder: Path, at_each: Callable[[Disk, str], None]) -> Iterator[None]:
    """Within the block `at_each(disk, call)` runs after every change below `folder`."""
    disk = Disk(folder)
    real = {name: getattr(os, name) for name in CHANGES}

    def stand_in(name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            done = real[name](*args, **kwargs)
            if not kwargs:  # rmtree's calls, relative to a folder, remove what no name leads to any more
                for other, function in real.items():
                    setattr(os, other, function)
                disk.look()
                if name == "fsync":
                    disk.synced(args[0])
                at_each(disk, name)
                put_in()
            return done

        return call

    def put_in() -> None:
        for name in CHANGES:
            setattr(os, name, stand_in(name))

    put_in()
    try:
        yield
    finally:
        for name, function in real.items():
            setattr(os, name, function)
        disk.close()
