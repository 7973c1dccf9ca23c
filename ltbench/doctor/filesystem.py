"""Where results and weights lie: room, and whether the file system keeps the promises that the store is built on."""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from ltbench import files
from ltbench.doctor.findings import Finding, call, failure, ok, warning

LITTLE, FEW = 10 * 2**30, 10_000  # bytes and files that should be free
NONE = 2**29  # bytes below which nothing can be trained
SLOW = 0.2  # seconds of one durable small file: a store of thousands is felt
FORGETFUL = ("tmpfs", "ramfs")


def existing(folder: Path) -> Path:
    """The folder itself, or the nearest one above it that exists."""
    return next(place for place in (folder.absolute(), *folder.absolute().parents) if place.is_dir())


def room(topic: str, folder: Path) -> Iterator[Finding]:
    """Free bytes and files, and what kind of file system it is."""
    place = existing(folder)
    usage, inodes = shutil.disk_usage(place), os.statvfs(place)
    kind, where = kind_of(place), f"{folder} ({_size(usage.free)} free"
    where += f", {inodes.f_favail:,} files, {kind})" if inodes.f_files else f", {kind})"
    if usage.free < NONE:
        yield failure(topic, f"{where}: full", "delete what is not needed, or choose another folder")
    elif usage.free < LITTLE:
        yield warning(topic, f"{where}: little room", "plan SPEC says what a benchmark needs")
    elif inodes.f_files and inodes.f_favail < FEW:
        yield warning(
            topic, f"{where}: few files may be added", "delete old files, or ask for a higher file quota"
        )
    else:
        yield ok(topic, where)
    if kind in FORGETFUL:
        yield warning(
            topic,
            f"{folder} lies in memory ({kind})",
            "choose a folder on a disk: a restart empties this one",
        )


def _size(count: float) -> str:
    return f"{count / 2**30:,.0f} GiB" if count >= 2**30 else f"{count / 2**20:,.0f} MiB"


def kind_of(folder: Path) -> str:
    """ext4, nfs4, lustre ... of the mount that holds a folder; "unknown" where /proc does not tell."""
    best, kind = "", "unknown"
    try:
        lines = Path("/proc/mounts").read_text().splitlines()
    except OSError:
        return kind
    for line in lines:
        _, point, name, *_ = line.split()
        point = point.replace("\\040", " ")
        if len(point) >= len(best) and (
            folder.resolve() == Path(point) or folder.resolve().is_relative_to(point)
        ):
            best, kind = point, name
    return kind


def promises(topic: str, folder: Path) -> Iterator[Finding]:
    """Write, sync, link, rename, and reading a file while another takes its place, tried in a folder that is removed again."""
    try:
        place = Path(tempfile.mkdtemp(prefix=".ltbench-doctor-", dir=existing(folder)))
    except OSError as error:
        yield failure(
            topic,
            f"{folder} cannot be written: {error.strerror}",
            "choose a folder of yours, or ask for access",
        )
        return
    try:
        yield from _tried(topic, folder, place)
    except files.StorageProblem as problem:
        yield failure(topic, problem.message, "choose another folder: a store cannot be kept there")
    finally:
        shutil.rmtree(place, ignore_errors=True)


def _tried(topic: str, folder: Path, place: Path) -> Iterator[Finding]:
    begun = time.monotonic()
    works = files.probe(place)
    seconds = (time.monotonic() - begun) / 3
    if not works["link"]:
        remedy = "nothing: names are then taken by exclusive creation, and a kill in the middle is repaired when it is next read"
        yield warning(topic, f"{folder}: no hard links", remedy)
    if not _keeps_what_is_read(place):
        remedy = "choose another file system for it: a reader must go on seeing the old file while a new one takes its name"
        yield failure(topic, f"{folder}: a file that is replaced changes under who reads it", remedy)
    if not _exclusive(place):
        yield failure(
            topic,
            f"{folder}: two processes can create one file",
            "choose another file system: claims need it",
        )
    if seconds > SLOW:
        remedy = "fewer, longer runs; or keep the store on a faster disk and copy it"
        yield warning(topic, f"{folder}: one durable small file takes {seconds * 1000:.0f} ms", remedy)
    else:
        yield ok(
            topic, f"{folder}: write, sync, link and rename work ({seconds * 1000:.1f} ms for a durable file)"
        )


def _keeps_what_is_read(place: Path) -> bool:
    path = place / "read"
    files.replace(path, b"old" * 4096)
    with path.open("rb", buffering=0) as reader:
        first = reader.read(3)
        files.replace(path, b"new" * 4096)
        return first + reader.read(3) == b"oldold" and path.read_bytes()[:3] == b"new"


def _exclusive(place: Path) -> bool:
    path = place / "once"
    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    try:
        os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY))
    except FileExistsError:
        return True
    return False


def quota(topic: str, folder: Path) -> Iterator[Finding]:
    """What the user may keep there, where a tool tells."""
    place, kind = existing(folder), kind_of(existing(folder))
    words = (
        ["lfs", "quota", "-q", "-u", str(os.getuid()), str(place)]
        if kind == "lustre"
        else ["quota", "-w", "-p", "-f", str(place)]
    )
    said = call(words, 15)
    if said is None or not (fields := _fields(said.out)):
        return
    used, limit, count, most = fields
    for have, top, unit in ((used * 1024, limit * 1024, "bytes"), (count, most, "files")):
        if not top:
            continue
        told = f"{_size(have)} of {_size(top)}" if unit == "bytes" else f"{have:,} of {top:,} files"
        if have > 0.9 * top:
            yield warning(
                topic,
                f"quota at {place}: {told} are used",
                "delete what is not needed before the grid starts",
            )
        else:
            yield ok(topic, f"quota at {place}: {told} are used")


def _fields(text: str) -> tuple[int, int, int, int] | None:
    """(KiB used, KiB allowed, files, files allowed) of the last line that has them: `FS used quota limit [grace] files quota limit`.
    The soft limit counts where there is one."""
    for line in reversed(text.splitlines()):
        numbers = [int(word.rstrip("*")) for word in line.split() if word.rstrip("*").isdigit()]
        if len(numbers) in (6, 7, 8):
            half = len(numbers) // 2
            return numbers[0], numbers[1] or numbers[2], numbers[half], numbers[half + 1] or numbers[half + 2]
    return None
