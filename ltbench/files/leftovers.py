"""Half-written files: the names they have while they are written, whose they are, and sweeping up after the dead."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import re
import shutil
import uuid
from pathlib import Path
from typing import Literal

_TEMPORARY = re.compile(r"\.tmp-(?P<kernel>[0-9a-f]{8})-(?P<pid>[0-9]+)-[0-9a-f]{12}")


def temporary_beside(path: Path) -> Path:
    """A fresh `.tmp-` name in `path`'s directory that tells `sweep` who made it."""
    return path.parent / f".tmp-{_kernel_tag()}-{os.getpid()}-{uuid.uuid4().hex[:12]}"


def writer(name: str) -> Literal["gone", "here", "elsewhere"] | None:
    """Whose a half-written file of this name is: of a process of this kernel that is gone, or that lives; of another machine. None
    for any other file."""
    match = _TEMPORARY.fullmatch(name)
    if match is None:
        return None
    if match["kernel"] != _kernel_tag():
        return "elsewhere"
    return "here" if pid_exists(int(match["pid"])) else "gone"


def sweep(folder: Path, *, sole_owner: bool = False) -> list[str]:
    """Remove what killed writers left in `folder`, and return the names.

    Only leftovers of processes of this kernel that are gone; with `sole_owner` (the caller is the folder's only rightful
    writer) those of every other process.
    """
    removed = []
    for name in _names(folder):
        match = _TEMPORARY.fullmatch(name)
        if match is None or int(match["pid"]) == os.getpid():
            continue
        gone = match["kernel"] == _kernel_tag() and not pid_exists(int(match["pid"]))
        if gone or sole_owner:
            discard(folder / name)
            removed.append(name)
    return removed


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except FileNotFoundError:
        return []


def discard(path: Path) -> None:
    """Remove a temporary file or directory; what cannot be removed now is a `.tmp-` name for a later sweep."""
    try:
        os.unlink(path)
    except IsADirectoryError:
        shutil.rmtree(path, ignore_errors=True)
    except OSError:
        with contextlib.suppress(OSError):  # macOS answers EPERM for a directory
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path, ignore_errors=True)


def _kernel_tag() -> str:
    return hashlib.sha256(kernel().encode()).hexdigest()[:8]


@functools.cache
def kernel() -> str:
    """Names the process table this process is in: the kernel's boot id and the pid namespace; "" where neither is told.

    The namespace is part of it because containers on one machine share the boot id and not the process numbers.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot}/{os.stat('/proc/self/ns/pid').st_ino}"
    except OSError:
        return ""


def pid_exists(pid: int) -> bool:
    """Whether a process of this number lives here, whoever it belongs to. One that has ended and that nobody has asked about yet (a
    zombie) writes nothing any more."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        return True
    try:
        told = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:  # no /proc, or it has ended meanwhile
        return True
    return told.rpartition(b")")[2].split()[:1] not in ([b"Z"], [b"X"])
