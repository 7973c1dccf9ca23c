"""Files that are either wholly there or not there at all, on local disks and on NFS.

Everything durable goes through here: written beside under a `.tmp-` name, fsynced, linked or renamed into place, directory
fsynced. A kill at any call leaves the old state or the new one, and at worst a `.tmp-` file, which readers ignore and
`sweep` removes. The functions of `os` are looked up when they are called, so that fault tests can stand in for them.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import hashlib
import os
import pwd
import re
import shutil
import stat
import time
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Literal, TypeVar

from ltbench.errors import EnvironmentProblem, LtbenchError

READ_LIMIT = 64 << 20  # bytes; nothing that is read whole into memory by name alone is larger
READ_PIECE = 1 << 20  # bytes; of a file that does not come in one

# EIO is among them because a failed fsync has thrown the dirty pages away: only a rewrite under a new name can succeed.
_TRANSIENT = {errno.EINTR, errno.EAGAIN, errno.ESTALE, errno.EIO}
_PAUSES = (0.02, 0.1, 0.5)  # seconds between the four tries
_NO_LINK = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
_TEMPORARY = re.compile(r"\.tmp-(?P<kernel>[0-9a-f]{8})-(?P<pid>[0-9]+)-[0-9a-f]{12}")
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


class Unreadable(LtbenchError):
    """A file that is there and cannot be taken. `reason` goes on where "<path> " stops: "is not JSON", "has format 2 ..."."""

    def __init__(self, path: Path, reason: str) -> None:
        self.path, self.reason = path, reason
        super().__init__(f"{path} {reason}")


# --- writing -----------------------------------------------------------------------------------------------------------


def write_once(path: Path, data: bytes, *, link: bool = True) -> bool:
    """Create `path` with `data`, or leave alone what is there; True when this call made it.

    Of any number of callers, on any number of machines, exactly one gets True: link() is atomic on NFS too. `link=False`,
    or a file system without link(), falls back to O_EXCL, which is as exclusive but shows a half-written file while it is
    being written and after a kill; readers check digests and writers repair. Raises StorageProblem.
    """
    created = _insist(path, len(data), lambda: _create(path, data, link))
    sync_directory(path.parent)  # also when another made it: our caller will count on the name being durable
    return created


def replace(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Put `data` at `path` whatever is there; a reader sees the old bytes or the new ones.

    `durable=False` skips both fsyncs, for heartbeats: after a power loss the file may be empty. Raises StorageProblem.
    """

    def once() -> None:
        temporary = _write_beside(path, data, durable)
        try:
            _rename(temporary, path)
        except OSError:
            discard(temporary)
            raise

    _insist(path, len(data), once)
    if durable:
        sync_directory(path.parent)


def publish_directory(temporary: Path, final: Path) -> None:
    """Rename the finished directory `temporary`, whose files are fsynced, to `final` and make the name durable.

    Raises FileExistsError when a non-empty `final` is there, else StorageProblem.
    """
    sync_directory(temporary)
    try:
        _insist(final, 0, lambda: _rename(temporary, final))
    except StorageProblem as problem:
        if problem.code in (errno.ENOTEMPTY, errno.EEXIST):
            raise FileExistsError(errno.EEXIST, "directory exists", str(final)) from problem
        raise
    sync_directory(final.parent)


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


def make_directory(path: Path) -> None:
    """`mkdir -p` whose new names are durable. Raises StorageProblem."""
    if _insist(path, 0, path.is_dir):  # raises where a folder above may not be searched
        return
    if path.parent != path:
        make_directory(path.parent)
    try:
        _insist(path, 0, lambda: os.mkdir(path))
    except StorageProblem as problem:
        if problem.code != errno.EEXIST or not path.is_dir():
            raise
    sync_directory(path.parent)


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

    _insist(folder, 0, once)


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


def temporary_beside(path: Path) -> Path:
    """A fresh `.tmp-` name in `path`'s directory that tells `sweep` who made it."""
    return path.parent / f".tmp-{_kernel_tag()}-{os.getpid()}-{uuid.uuid4().hex[:12]}"


def remove_tree(path: Path) -> None:
    """Remove a directory so that a kill half-way leaves a `.tmp-` name and not half a directory. Raises StorageProblem."""
    aside = temporary_beside(path)
    _insist(path, 0, lambda: _rename(path, aside))
    shutil.rmtree(aside, ignore_errors=True)


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


def writer(name: str) -> Literal["gone", "here", "elsewhere"] | None:
    """Whose a half-written file of this name is: of a process of this kernel that is gone, or that lives; of another machine. None
    for any other file."""
    match = _TEMPORARY.fullmatch(name)
    if match is None:
        return None
    if match["kernel"] != _kernel_tag():
        return "elsewhere"
    return "here" if pid_exists(int(match["pid"])) else "gone"


def probe(folder: Path) -> dict[str, bool]:
    """Try write, fsync, link and rename in `folder` (made if missing) and return {"link": whether link() works}.

    Raises StorageProblem when the folder cannot hold results: better now than after three days.
    """
    make_directory(folder)
    first = temporary_beside(folder / "probe")
    second, third = temporary_beside(folder / "probe"), temporary_beside(folder / "probe")
    try:
        replace(first, b"probe")
        linked = _insist(second, 0, lambda: _link_or_none(first, second))
        _insist(third, 0, lambda: _rename(first, third))
        sync_directory(folder)
    finally:
        for name in (first, second, third):
            discard(name)
    return {"link": linked is not None}


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


# --- reading -----------------------------------------------------------------------------------------------------------


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

    return _insist_reading(path, once)


def read_head(path: str, size: int) -> tuple[bytes, os.stat_result]:
    """The first `size` bytes of a regular file, or all, and how it lay there before. Raises FileNotFoundError, or Unreadable with the
    reason."""

    def once() -> tuple[bytes, os.stat_result]:
        handle, found = _open_regular(path)
        try:
            return os.pread(handle, size, 0), found
        finally:
            os.close(handle)

    return _insist_reading(path, once)


def sha256_bytes(data: bytes) -> str:
    """64 hex digits."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> tuple[str, int]:
    """(64 hex digits, bytes) of a regular file, in bounded memory. Raises FileNotFoundError or Unreadable."""

    def once() -> tuple[str, int]:
        with open(_open_regular(path)[0], "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest(), stream.tell()

    return _insist_reading(path, once)


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


# --- inside ------------------------------------------------------------------------------------------------------------


def _insist(path: Path, needed: int, action: Callable[[], T]) -> T:
    """Run `action` up to four times while its errors are the passing kind; StorageProblem about `path` in the end."""
    for pause in (*_PAUSES, None):
        try:
            return action()
        except OSError as error:
            if error.errno not in _TRANSIENT or pause is None:
                raise StorageProblem(path, error, needed) from error
            time.sleep(pause)
    raise AssertionError("unreachable: the last try returns or raises")


def _insist_reading(path: str | Path, action: Callable[[], T]) -> T:
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


def _create(path: Path, data: bytes, link: bool) -> bool:
    if not link:
        return _create_exclusive(path, data)
    temporary = _write_beside(path, data)
    try:
        created = _link_or_none(temporary, path)
    finally:
        discard(temporary)
    return _create_exclusive(path, data) if created is None else created


def _link_or_none(temporary: Path, path: Path) -> bool | None:
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


def _rename(source: Path, target: Path) -> None:
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


def _open_regular(path: str | Path) -> tuple[int, os.stat_result]:
    """A read handle, and what it is of. O_NONBLOCK keeps a FIFO from blocking us before fstat can refuse it."""
    handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    found = os.fstat(handle)
    if not stat.S_ISREG(found.st_mode):
        os.close(handle)
        raise Unreadable(Path(path), "is not a regular file")
    return handle, found


def _names(folder: Path) -> list[str]:
    try:
        return sorted(os.listdir(folder))
    except FileNotFoundError:
        return []


def _kernel_tag() -> str:
    return hashlib.sha256(kernel().encode()).hexdigest()[:8]


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
