"""Writing so that a file or a directory is wholly there or not there at all.

Written beside under a `.tmp-` name, fsynced, linked or renamed into place, directory fsynced. A kill at any call leaves the old
state or the new one, and at worst a `.tmp-` file.
"""

from __future__ import annotations

import errno
import os
import shutil
from pathlib import Path

from ltbench.files.leftovers import discard, temporary_beside
from ltbench.files.problems import StorageProblem, insist

_NO_LINK = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


def write_once(path: Path, data: bytes, *, link: bool = True) -> bool:
    """Create `path` with `data`, or leave alone what is there; True when this call made it.

    Of any number of callers, on any number of machines, exactly one gets True: link() is atomic on NFS too. `link=False`,
    or a file system without link(), falls back to O_EXCL, which is as exclusive but shows a half-written file while it is
    being written and after a kill; readers check digests and writers repair. Raises StorageProblem.
    """
    created = insist(path, len(data), lambda: _create(path, data, link))
    sync_directory(path.parent)  # also when another made it: our caller will count on the name being durable
    return created


def replace(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Put `data` at `path` whatever is there; a reader sees the old bytes or the new ones.

    `durable=False` skips both fsyncs, for heartbeats: after a power loss the file may be empty. Raises StorageProblem.
    """

    def once() -> None:
        temporary = _write_beside(path, data, durable)
        try:
            rename(temporary, path)
        except OSError:
            discard(temporary)
            raise

    insist(path, len(data), once)
    if durable:
        sync_directory(path.parent)


def publish_directory(temporary: Path, final: Path) -> None:
    """Rename the finished directory `temporary`, whose files are fsynced, to `final` and make the name durable.

    Raises FileExistsError when a non-empty `final` is there, else StorageProblem.
    """
    sync_directory(temporary)
    try:
        insist(final, 0, lambda: rename(temporary, final))
    except StorageProblem as problem:
        if problem.code in (errno.ENOTEMPTY, errno.EEXIST):
            raise FileExistsError(errno.EEXIST, "directory exists", str(final)) from problem
        raise
    sync_directory(final.parent)


def make_directory(path: Path) -> None:
    """`mkdir -p` whose new names are durable. Raises StorageProblem."""
    if insist(path, 0, path.is_dir):  # raises where a folder above may not be searched
        return
    if path.parent != path:
        make_directory(path.parent)
    try:
        insist(path, 0, lambda: os.mkdir(path))
    except StorageProblem as problem:
        if problem.code != errno.EEXIST or not path.is_dir():
            raise
    sync_directory(path.parent)


def remove_tree(path: Path) -> None:
    """Remove a directory so that a kill half-way leaves a `.tmp-` name and not half a directory. Raises StorageProblem."""
    aside = temporary_beside(path)
    insist(path, 0, lambda: rename(path, aside))
    shutil.rmtree(aside, ignore_errors=True)


def sync_directory(folder: Path) -> None:
    """Make the names in `folder` durable. Raises StorageProblem."""

    def once() -> None:
        handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(handle)
        except OSError as error:
            if (
                error.errno != errno.EINVAL
            ):  # some FUSE and SMB mounts have no fsync on directories, and need none
                raise
        finally:
            os.close(handle)

    insist(folder, 0, once)


def _create(path: Path, data: bytes, link: bool) -> bool:
    if not link:
        return _create_exclusive(path, data)
    temporary = _write_beside(path, data)
    try:
        created = link_or_none(temporary, path)
    finally:
        discard(temporary)
    return _create_exclusive(path, data) if created is None else created


def link_or_none(temporary: Path, path: Path) -> bool | None:
    """True: `path` is now `temporary`'s file; False: `path` was there; None: this file system has no link()."""
    try:
        os.link(temporary, path)
    except OSError as error:
        # NFS can lose the reply of a link() that worked, and answer its repetition with EEXIST: only the link count
        # tells (open(2), O_EXCL).
        if os.stat(temporary).st_nlink == 2:
            return True
        if isinstance(error, FileExistsError):
            return False
        if error.errno in _NO_LINK:
            return None
        raise
    return True


def _create_exclusive(path: Path, data: bytes) -> bool:
    try:
        _write_new(path, data)
    except FileExistsError:
        return False
    return True


def _write_beside(path: Path, data: bytes, durable: bool = True) -> Path:
    temporary = temporary_beside(path)
    _write_new(temporary, data, durable)
    return temporary


def _write_new(path: Path, data: bytes, durable: bool = True) -> None:
    """All of `data` in a new file, or no file."""
    handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666)
    try:
        try:
            rest = memoryview(data)
            while rest:
                rest = rest[os.write(handle, rest) :]
            if durable:
                os.fsync(handle)
        finally:
            os.close(handle)  # NFS reports a full disk here at the latest
    except OSError:
        discard(path)
        raise


def rename(source: Path, target: Path) -> None:
    inode = os.stat(source).st_ino
    try:
        os.replace(source, target)
    except FileNotFoundError:
        # A repeated rename whose first reply was lost finds its source gone.
        if _inode(target) != inode:
            raise


def _inode(path: Path) -> int | None:
    try:
        return os.stat(path).st_ino
    except OSError:
        return None
