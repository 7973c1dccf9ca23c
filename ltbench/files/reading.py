"""Reading what may be anything: never a FIFO, a symbolic link, or more than the memory holds."""

from __future__ import annotations

import hashlib
import os
import stat
from pathlib import Path

from ltbench.files.problems import Unreadable, insist_reading

READ_LIMIT = 64 << 20  # bytes; nothing that is read whole into memory by name alone is larger
READ_PIECE = 1 << 20  # bytes; of a file that does not come in one


def read_regular(path: str | Path, limit: int = READ_LIMIT) -> bytes:
    """The bytes of a regular file of at most `limit` bytes. Never blocks on a FIFO and never follows a symbolic link.

    Raises FileNotFoundError, or Unreadable with the reason.
    """
    return read_known(path, limit)[0]


def read_known(path: str | Path, limit: int = READ_LIMIT) -> tuple[bytes, os.stat_result]:
    """`read_regular`, and how the file lay there before it was read."""

    def once() -> tuple[bytes, os.stat_result]:
        handle, found = _open_regular(path)
        try:
            if found.st_size > limit:
                raise Unreadable(
                    Path(path), f"is {found.st_size:,} bytes; this kind of file has at most {limit:,}"
                )
            data = piece = os.read(handle, found.st_size + 1)
            while piece and len(data) != found.st_size:  # cut short, or it has grown meanwhile
                piece = os.read(handle, READ_PIECE)
                data += piece
            return data, found
        finally:
            os.close(handle)

    return insist_reading(path, once)


def read_head(path: str, size: int) -> tuple[bytes, os.stat_result]:
    """The first `size` bytes of a regular file, or all, and how it lay there before. Raises FileNotFoundError, or Unreadable with the
    reason."""

    def once() -> tuple[bytes, os.stat_result]:
        handle, found = _open_regular(path)
        try:
            return os.pread(handle, size, 0), found
        finally:
            os.close(handle)

    return insist_reading(path, once)


def sha256_file(path: Path) -> tuple[str, int]:
    """(64 hex digits, bytes) of a regular file, in bounded memory. Raises FileNotFoundError or Unreadable."""

    def once() -> tuple[str, int]:
        with open(_open_regular(path)[0], "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest(), stream.tell()

    return insist_reading(path, once)


def sha256_bytes(data: bytes) -> str:
    """64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def _open_regular(path: str | Path) -> tuple[int, os.stat_result]:
    """A read handle, and what it is of. O_NONBLOCK keeps a FIFO from blocking us before fstat can refuse it."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    found = os.fstat(handle)
    if not stat.S_ISREG(found.st_mode):
        os.close(handle)
        raise Unreadable(Path(path), "is not a regular file")
    return handle, found
