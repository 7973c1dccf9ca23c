"""What a disk can refuse, in errors that teach, and the few tries that a passing refusal is given."""

from __future__ import annotations

import errno
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from ltbench.errors import EnvironmentProblem, LtbenchError

# EIO is among them because a failed fsync has thrown the dirty pages away: only a rewrite under a new name can succeed.
_TRANSIENT = {errno.EINTR, errno.EAGAIN, errno.ESTALE, errno.EIO}
_PAUSES = (0.02, 0.1, 0.5)  # seconds between the four tries
_REMEDIES = {
    errno.ENOSPC: "Free space, or move LTBENCH_STORE, LTBENCH_SCRATCH or LTBENCH_DATA, whichever it is in, to a larger disk",
    errno.EDQUOT: "Ask for a larger quota, or move LTBENCH_STORE, LTBENCH_SCRATCH or LTBENCH_DATA elsewhere",
    errno.EFBIG: "Raise the file size limit (`ulimit -f unlimited`)",
    errno.EROFS: "Remount it writable, or point LTBENCH_STORE and LTBENCH_SCRATCH to a place you may write",
    errno.EACCES: "Change its permissions, or point LTBENCH_STORE and LTBENCH_SCRATCH to a place you may write",
    errno.EPERM: "Change its permissions, or point LTBENCH_STORE and LTBENCH_SCRATCH to a place you may write",
    errno.EIO: "The disk or the file server reports errors: check it (dmesg), or move to another one",
    errno.ESTALE: "The file server has lost the directory: check the mount",
    errno.ENOENT: "The directory was removed while it was in use: check the mount, then run again",
}
_SAFE = "what was complete before is intact; the same command goes on from there."

T = TypeVar("T")


class StorageProblem(EnvironmentProblem):
    """A write that the disk refused. `code` is the errno, `path` what was being written, `needed` its size in bytes."""

    def __init__(self, path: Path, error: OSError, needed: int = 0) -> None:
        self.path, self.code, self.needed = path, error.errno or 0, needed
        super().__init__(
            f"cannot write {path}: {_reason(path, error, needed)}",
            f"{_REMEDIES.get(self.code, 'Check the path and the file system')}; {_SAFE}",
        )


def _reason(path: Path, error: OSError, needed: int) -> str:
    text = os.strerror(error.errno or 0)
    if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return text
    try:
        room = os.statvfs(path.parent)
    except OSError:
        return f"{text} ({needed:,} bytes needed)"
    if error.errno == errno.ENOSPC and room.f_files and not room.f_favail:
        return f"{text}: no inodes are left (of {room.f_files:,})"
    return f"{text} ({needed:,} bytes needed, {room.f_bavail * room.f_frsize:,} free)"


class Unreadable(LtbenchError):
    """A file that is there and cannot be taken. `reason` goes on where "<path> " stops: "is not JSON", "has format 2 ..."."""

    def __init__(self, path: Path, reason: str) -> None:
        self.path, self.reason = path, reason
        super().__init__(f"{path} {reason}")


def insist(path: Path, needed: int, action: Callable[[], T]) -> T:
    """Run `action` up to four times while its errors are the passing kind; StorageProblem about `path` in the end."""
    for pause in (*_PAUSES, None):
        try:
            return action()
        except OSError as error:
            if error.errno not in _TRANSIENT or pause is None:
                raise StorageProblem(path, error, needed) from error
            time.sleep(pause)
    raise AssertionError("unreachable: the last try returns or raises")


def insist_reading(path: str | Path, action: Callable[[], T]) -> T:
    for pause in (*_PAUSES, None):
        try:
            return action()
        except FileNotFoundError:
            raise
        except OSError as error:
            if error.errno not in _TRANSIENT or pause is None:
                reason = (
                    "is a symbolic link"
                    if error.errno == errno.ELOOP
                    else f"cannot be read: {os.strerror(error.errno or 0)}"
                )
                raise Unreadable(Path(path), reason) from error
            time.sleep(pause)
    raise AssertionError("unreachable: the last try returns or raises")
