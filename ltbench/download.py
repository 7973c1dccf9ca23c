"""Fetching large files: resumed where they stopped, checked before they get their name.

What arrives is kept in `PLACE.part` with a note of what it is part of; only a whole file whose size and checksum are right becomes
PLACE. A server may break off, ignore or lie about ranges, or serve another file than yesterday: none of it ends in a wrong file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from ltbench import files
from ltbench.errors import EnvironmentProblem

if TYPE_CHECKING:
    import urllib.error

CHUNK = 1 << 20  # bytes between two looks at the progress
TIMEOUT = 60.0  # seconds without a byte
PAUSES = (1.0, 4.0, 15.0, 60.0)  # seconds before the tries after one that brought nothing

Progress = Callable[[int, int | None], None]


@dataclass(frozen=True)
class Asset:
    """A file to be had from somewhere.

    bytes, sha256, md5: None or "" where they are not known for sure. place: where it belongs. licence: its short name, or who asks
    for what. ask: where a person has to register; such a file is named and never fetched.
    """

    name: str
    url: str
    place: Path
    licence: str
    bytes: int | None = None
    sha256: str = ""
    md5: str = ""
    ask: str = ""

    @property
    def checksum(self) -> tuple[str, str]:
        """(algorithm, hex digits) that content is checked with: ("", "") where none is known."""
        return ("sha256", self.sha256) if self.sha256 else ("md5", self.md5) if self.md5 else ("", "")

    def describe(self) -> str:
        """One line: what, how large, from where, under which terms, checked how."""
        algorithm, digits = self.checksum
        size = f"{self.bytes:,} bytes" if self.bytes else "size not known"
        known = f"{algorithm} {digits}" if digits else "checksum not known"
        where = f"not downloadable without registering at {self.ask}" if self.ask else f"from {self.url}"
        return f"{self.name}: {size}, {where}, to {self.place}; licence {self.licence}; {known}"


@dataclass(frozen=True)
class Fetched:
    """A file that is there. sha256: of what is there, whichever checksum was known. downloaded: bytes that this call brought."""

    path: Path
    bytes: int
    sha256: str
    downloaded: int


@dataclass
class _Part:
    """What has arrived. validator: the server's mark of the version that it is part of; "" where it gives none."""

    path: Path
    url: str
    validator: str = ""
    total: int | None = None
    size: int = 0
    brought: int = field(default=0)

    @property
    def note(self) -> Path:
        return self.path.with_name(self.path.name + ".json")

    def keep(self) -> None:
        text = json.dumps({"url": self.url, "validator": self.validator, "total": self.total})
        files.replace(self.note, text.encode(), durable=False)

    def remove(self) -> None:
        for path in (self.path, self.note):
            path.unlink(missing_ok=True)
        self.validator, self.total, self.size = "", None, 0


class _Cut(Exception):
    """A request that did not bring everything, and another one may."""


def fetch(asset: Asset, progress: Progress | None = None, pauses: tuple[float, ...] = PAUSES) -> Fetched:
    """The asset at its place: found there and right, or downloaded. Nothing wrong ever gets the name.

    progress(bytes there, bytes in all or None) is called as they arrive. Raises EnvironmentProblem for a file that needs a
    registration, an address that is gone, no network, and content that is not what it should be; StorageProblem for a full disk.
    """
    if asset.place.exists():
        return verify(asset)
    if asset.ask or not asset.url:
        raise EnvironmentProblem(
            f"{asset.name} is not downloaded by programs: {f'get it at {asset.ask}' if asset.ask else 'no address is known'}",
            f"put it at {asset.place}, then run the same command again",
        )
    files.make_directory(asset.place.parent)
    part = _Part(asset.place.with_name(asset.place.name + ".part"), asset.url)
    with _alone(part.path):
        if asset.place.exists():  # another process was faster
            return verify(asset)
        _resume(part, asset)
        _all_of_it(part, asset, progress, pauses)
        try:
            found = _check(asset, part.path)
        except EnvironmentProblem:
            if part.brought == part.size:  # all of it came now: another try brings the same
                part.remove()
                raise
            part.remove()
            _all_of_it(part, asset, progress, pauses)
            found = _check_or_remove(asset, part)
        _publish(part, asset.place)
    return Fetched(asset.place, part.size, found, part.brought)


def verify(asset: Asset) -> Fetched:
    """The file that is at the asset's place. Raises EnvironmentProblem where size or checksum are not the known ones."""
    found = _check(asset, asset.place)
    return Fetched(asset.place, asset.place.stat().st_size, found, 0)


class Bar:
    """Progress on stderr: a line that rewrites itself on a terminal, one line every ten seconds elsewhere."""

    def __init__(self, name: str, unit: str = "MB", size: float = 1e6, stream: IO[str] | None = None) -> None:
        self.name, self.unit, self.size, self.stream = name, unit, size, stream or sys.stderr
        self._live = self.stream.isatty()
        self._start = self._said = time.monotonic()
        self._first: int | None = None

    def __call__(self, done: int, total: int | None) -> None:
        now = time.monotonic()
        if self._first is None or done < self._first:  # the next thing of the same name
            self._first, self._start = done, now
        ended = total is not None and done >= total
        if now - self._said < (0.2 if self._live else 10.0) and not ended:
            return
        self._said = now
        speed = (done - self._first) / max(1e-3, now - self._start)
        digits = 1 if self.size > 1 else 0
        share = (
            f" of {total / self.size:,.{digits}f} {self.unit}, {done / total:.0%}"
            if total
            else f" {self.unit}"
        )
        text = f"{self.name}: {done / self.size:,.{digits}f}{share}, {speed / self.size:,.1f} {self.unit}/s"
        print(
            f"\r{text}\033[K" if self._live else text,
            end="\n" if ended or not self._live else "",
            file=self.stream,
            flush=True,
        )


# --- inside ------------------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Two processes never write one part. Where the file system has no locks, the checksum has to do."""
    try:
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise files.StorageProblem(path, error) from error
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
            os.close(handle)
            raise EnvironmentProblem(
                f"{path}: another process is downloading it", "wait for it, then run the same command again"
            ) from None
    try:
        yield
    finally:
        if not os.fstat(handle).st_size:
            path.unlink(missing_ok=True)
        os.close(handle)


def _resume(part: _Part, asset: Asset) -> None:
    """Take up what an earlier call left, if it is known what it is part of."""
    part.size = part.path.stat().st_size
    try:
        note = json.loads(part.note.read_text())
        part.validator, part.total = str(note["validator"]), note["total"]
        known = note["url"] == part.url and (part.validator or asset.checksum[1])
    except (OSError, ValueError, KeyError, TypeError):
        known = False
    if not known:
        _start_over(part)


def _start_over(part: _Part) -> None:
    os.truncate(part.path, 0)
    part.validator, part.total, part.size, part.brought = "", None, 0, 0


def _all_of_it(part: _Part, asset: Asset, progress: Progress | None, pauses: tuple[float, ...]) -> None:
    """Ask until all bytes are there; give up after as many tries in a row without a new byte as there are pauses."""
    waits = iter(pauses)
    while True:
        before = part.size
        try:
            _ask(part, asset, progress)
            return
        except _Cut as cut:
            if part.size > before:
                waits = iter(pauses)
            pause = next(waits, None)
            if pause is None:
                raise EnvironmentProblem(
                    f"{asset.name}: cannot be downloaded from {asset.url}: {cut} ({part.size:,} bytes are kept)",
                    f"run the same command again where there is a network, or put the file at {asset.place}",
                ) from None
            time.sleep(pause)


def _ask(part: _Part, asset: Asset, progress: Progress | None) -> None:
    """One request for what is missing. Raises _Cut when it ends early."""
    import http.client  # here, because every data set's file imports this module, and nearly no command downloads
    import urllib.error
    import urllib.request

    if part.size and part.size == part.total:
        return
    if not part.path.exists():
        part.path.touch()
    headers = {"User-Agent": "ltbench", "Accept-Encoding": "identity"}
    if part.size:
        headers["Range"] = f"bytes={part.size}-"
        if part.validator:
            headers["If-Range"] = part.validator
    try:
        with urllib.request.urlopen(
            urllib.request.Request(asset.url, headers=headers), timeout=TIMEOUT
        ) as reply:
            _take(reply, part, asset, progress)
    except urllib.error.HTTPError as error:
        _refused(error, part, asset)
    except (urllib.error.URLError, http.client.HTTPException, ConnectionError, TimeoutError) as error:
        raise _Cut(str(getattr(error, "reason", None) or error or type(error).__name__)) from None


def _refused(error: urllib.error.HTTPError, part: _Part, asset: Asset) -> None:
    if (
        error.code == 416 and part.size
    ):  # nothing lies behind what is here: it is complete, or of another file
        _start_over(part)
        raise _Cut("the server has no more bytes than are here")
    if error.code in (408, 429) or error.code >= 500:
        raise _Cut(f"the server answers {error.code} {error.reason}")
    raise EnvironmentProblem(
        f"{asset.name}: {asset.url} answers {error.code} {error.reason}",
        f"the address may have moved: get the file elsewhere and put it at {asset.place}",
    )


def _take(reply: Any, part: _Part, asset: Asset, progress: Progress | None) -> None:
    """Append the reply's body if it continues what is here, else begin again with it."""
    start, total = _range(reply)
    if start != part.size:
        _start_over(part)
        if start != 0:
            raise _Cut(f"asked for the bytes from 0 on, the server sent those from {start}")
    if part.size and part.total is not None and total != part.total:
        _start_over(part)
        raise _Cut(f"the file has another size now: {total}")
    if asset.bytes and total and total != asset.bytes:
        part.remove()
        raise EnvironmentProblem(
            f"{asset.name}: {asset.url} has {total:,} bytes, expected {asset.bytes:,}: it is another file",
            f"get the right one elsewhere and put it at {asset.place}",
        )
    part.total = total
    part.validator = _validator(reply)
    _need_room(part, asset)
    part.keep()
    _copy(reply, part, progress)
    if total is not None and part.size < total:
        raise _Cut(f"the connection ended after {part.size:,} of {total:,} bytes")
    if total is not None and part.size > total:
        _start_over(part)
        raise _Cut("the server sent more bytes than it announced")


def _range(reply: Any) -> tuple[int, int | None]:
    """(first byte of the body, size of the whole file) of a reply."""
    if reply.status == 206:
        unit, _, spec = reply.headers.get("Content-Range", "").partition(" ")
        span, _, whole = spec.partition("/")
        first = span.partition("-")[0]
        if unit == "bytes" and first.isdigit():
            return int(first), int(whole) if whole.isdigit() else None
        return -1, None
    length = reply.headers.get("Content-Length", "")
    return 0, int(length) if length.isdigit() else None


def _validator(reply: Any) -> str:
    """A mark that changes with the content: a strong ETag, else the date of the last change."""
    tag = reply.headers.get("ETag", "")
    return tag if tag and not tag.startswith("W/") else reply.headers.get("Last-Modified", "")


def _need_room(part: _Part, asset: Asset) -> None:
    total = part.total or asset.bytes
    if total is None:
        return
    free, missing = shutil.disk_usage(part.path.parent).free, total - part.size
    if missing > free:
        raise EnvironmentProblem(
            f"{asset.name}: {missing:,} bytes are missing, {free:,} are free in {part.path.parent}",
            "free space, or put the data elsewhere (LTBENCH_DATA, --root); what has arrived is kept",
        )


def _copy(reply: Any, part: _Part, progress: Progress | None) -> None:
    import http.client

    try:
        with open(part.path, "r+b") as out:
            out.seek(part.size)
            out.truncate()
            while True:
                try:
                    data = reply.read(CHUNK)
                except http.client.IncompleteRead as error:
                    data = error.partial
                if not data:
                    break
                out.write(data)
                part.size += len(data)
                part.brought += len(data)
                if progress is not None:
                    progress(part.size, part.total)
            out.flush()
            os.fsync(out.fileno())
    except (ConnectionError, TimeoutError, http.client.HTTPException):
        raise
    except OSError as error:
        raise files.StorageProblem(part.path, error, (part.total or part.size) - part.size) from error


def _check(asset: Asset, path: Path) -> str:
    """sha256 of the file. Raises EnvironmentProblem where size or checksum are not the known ones."""
    size = path.stat().st_size
    if asset.bytes and size != asset.bytes:
        raise EnvironmentProblem(
            f"{path}: has {size:,} bytes, {asset.name} has {asset.bytes:,}",
            "remove it, or replace it with the right file",
        )
    algorithm, expected = asset.checksum
    sums = [hashlib.sha256()]
    if algorithm == "md5":
        sums.append(hashlib.md5(usedforsecurity=False))
    with open(path, "rb") as stream:
        while data := stream.read(CHUNK):
            for one in sums:
                one.update(data)
    if expected and sums[-1].hexdigest() != expected:
        raise EnvironmentProblem(
            f"{path}: {algorithm} is {sums[-1].hexdigest()}, that of {asset.name} is {expected}: damaged, or another file",
            "remove it, or replace it with the right file",
        )
    return sums[0].hexdigest()


def _check_or_remove(asset: Asset, part: _Part) -> str:
    try:
        return _check(asset, part.path)
    except EnvironmentProblem:
        part.remove()
        raise


def _publish(part: _Part, place: Path) -> None:
    try:
        os.replace(part.path, place)
    except OSError as error:
        raise files.StorageProblem(place, error) from error
    part.note.unlink(missing_ok=True)
    files.sync_directory(place.parent)
