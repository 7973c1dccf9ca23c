"""What a folder allows: whether it can hold results, what room it has, who else may change it, and what its server knows."""

from __future__ import annotations

import contextlib
import os
import pwd
import stat
from pathlib import Path

from ltbench.files.leftovers import discard, temporary_beside
from ltbench.files.problems import StorageProblem, insist
from ltbench.files.writing import link_or_none, make_directory, rename, replace, sync_directory


def probe(folder: Path) -> dict[str, bool]:
    """Try write, fsync, link and rename in `folder` (made if missing) and return {"link": whether link() works}.

    Raises StorageProblem when the folder cannot hold results: better now than after three days.
    """
    make_directory(folder)
    first = temporary_beside(folder / "probe")
    second, third = temporary_beside(folder / "probe"), temporary_beside(folder / "probe")
    try:
        replace(first, b"probe")
        linked = insist(second, 0, lambda: link_or_none(first, second))
        insist(third, 0, lambda: rename(first, third))
        sync_directory(folder)
    finally:
        for name in (first, second, third):
            discard(name)
    return {"link": linked is not None}


def free(path: Path) -> int | None:
    """Bytes that this user may still write where `path` is or would be; None where nobody can tell."""
    while True:
        try:
            found = os.statvfs(path)
            return found.f_bavail * found.f_frsize
        except FileNotFoundError:
            if path.parent == path:
                return None
            path = path.parent
        except OSError:
            return None


def exposure(folder: Path) -> str | None:
    """Why others could change what `folder` holds, in one sentence; None where only its user and root can."""
    try:
        found = os.stat(folder)
    except OSError:
        return None
    if found.st_mode & stat.S_IWOTH:
        return f"everybody on this machine may write into {folder}: chmod o-w {folder}"
    if found.st_uid not in (os.geteuid(), 0):
        return f"{folder} belongs to {_user(found.st_uid)}, who can change or remove any result in it"
    return None


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def surely_missing(path: Path) -> bool:
    """Whether nothing is at `path`, as the file server knows: an NFS client may say so from its cache for a minute after another
    machine has made it. A change of our own in the folder makes it ask."""
    if os.path.lexists(path):
        return False
    ask_server(path.parent)
    return not os.path.lexists(path)


def ask_server(folder: Path) -> None:
    """Make a change of our own in `folder`, if it can be written, after which an NFS client trusts its cache of it no more."""
    own_change = temporary_beside(folder / "any")
    with contextlib.suppress(StorageProblem):
        replace(own_change, b"", durable=False)
    own_change.unlink(missing_ok=True)
