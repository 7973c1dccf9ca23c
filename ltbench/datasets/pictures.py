"""Image files in bulk: what lies in folders and archives, and the bytes of one of them, without unpacking anything.

ImageNet's tar is a tar of tars: inner tars are looked into, so that a folder, a tar and a tar of tars of one set list the same names.
Reading one image then is one `pread`, from any process.
"""

from __future__ import annotations

import functools
import hashlib
import os
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from ltbench.errors import EnvironmentProblem

FILE, TAR, ZIP, TGZ = range(4)  # how an image lies in its place
COMPRESSED_LIMIT = 2 << 30  # bytes of a compressed tar, which has to be read from its beginning
_DAMAGE = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError)
_BLOCK = 512


@dataclass(frozen=True)
class Pictures:
    """Labelled image files, and where each one lies.

    places: folders and archives. keys: (N,) what names an image whatever it lies in, `CLASS/FILE`. names: (N,) its path in its place;
    both are UTF-8 bytes, a quarter of what NumPy needs for text.
    place, form: (N,) int64 into `places`, and of the forms above. start, size: (N,) int64, bytes. labels: (N,) int64. index: (N,)
    int64, the position in the source's own split.
    """

    places: tuple[Path, ...]
    keys: np.ndarray
    names: np.ndarray
    place: np.ndarray
    form: np.ndarray
    start: np.ndarray
    size: np.ndarray
    labels: np.ndarray
    index: np.ndarray

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, rows: np.ndarray) -> Pictures:
        """Some of them, in this order."""
        return Pictures(self.places, **{name: array[rows] for name, array in self.arrays().items()})

    def arrays(self) -> dict[str, np.ndarray]:
        """Everything but the places, by name."""
        names = ("keys", "names", "place", "form", "start", "size", "labels", "index")
        return {name: getattr(self, name) for name in names}

    def name(self, i: int) -> str:
        """Its path in its place."""
        return self.names[i].decode()

    def where(self, i: int) -> str:
        """What a person calls one of them."""
        place = self.places[int(self.place[i])]
        return str(place / self.name(i)) if self.form[i] == FILE else f"{place}:{self.name(i)}"

    def read(self, i: int) -> bytes:
        """The bytes of one file. Raises EnvironmentProblem naming it."""
        place, form, name = self.places[int(self.place[i])], int(self.form[i]), self.name(i)
        try:
            if form == FILE:
                return (place / name).read_bytes()
            if form == TAR:
                return _span(place, int(self.start[i]), int(self.size[i]))
            return _zip(place).read(name) if form == ZIP else _unpacked(place)[name]
        except (*_DAMAGE, OSError, KeyError) as error:
            raise EnvironmentProblem(
                f"{self.where(i)}: cannot be read: {getattr(error, 'strerror', None) or error}",
                "get it again: it is damaged or cut short, or was moved since it was looked at",
            ) from None

    def identity(self) -> str:
        """Hex sha256 over keys, sizes and labels: equal for a folder and an archive of the same files."""
        digest = hashlib.sha256()
        for key, size, label in zip(self.keys, self.size, self.labels, strict=True):
            digest.update(b"%s\0%d\0%d\n" % (key, size, label))
        return digest.hexdigest()


@dataclass(frozen=True)
class Entry:
    """A file in a place: its path there and, in a tar, the bytes it takes."""

    name: str
    form: int
    start: int
    size: int


def look(place: Path) -> list[Entry]:
    """All files of a folder or an archive. Raises EnvironmentProblem for a place that cannot be read."""
    try:
        if place.is_dir():
            return list(_walk(place))
        if zipfile.is_zipfile(place):
            return [Entry(i.filename, ZIP, 0, i.file_size) for i in _zip(place).infolist() if not i.is_dir()]
        return list(_tar(place))
    except _DAMAGE as error:
        raise EnvironmentProblem(
            f"{place}: not a usable archive: {error}", "download it again; it is damaged or cut short"
        ) from None
    except OSError as error:
        raise EnvironmentProblem(
            f"{error.filename or place}: cannot be read: {error.strerror or error}", "check its permissions"
        ) from None


def gather(found: Mapping[Path, Sequence[tuple[Entry, str, int]]], in_order: bool = False) -> Pictures:
    """Pictures of {place: (entry, key, label)}, class after class and by key inside a class; index counts in that order.

    in_order: they are given class after class, and stay so.
    """
    places = tuple(found)
    rows = [
        (label, key.encode(), number, entry.name.encode(), entry.form, entry.start, entry.size)
        for number, place in enumerate(places)
        for entry, key, label in found[place]
    ]
    rows = rows if in_order else sorted(rows)
    columns: list[Any] = list(zip(*rows, strict=True)) if rows else [()] * 7
    labels, keys, place, names, form, start, size = columns
    ints = {
        "place": place,
        "form": form,
        "start": start,
        "size": size,
        "labels": labels,
        "index": range(len(rows)),
    }
    return Pictures(
        places,
        keys=np.array(keys, np.bytes_),
        names=np.array(names, np.bytes_),
        **{name: np.array(values, np.int64) for name, values in ints.items()},
    )


def by_list(
    place: Path, pattern: str, labels: Mapping[str, int], classes: Sequence[str], title: str
) -> list[tuple[Entry, str, int]]:
    """The images of a place that lie flat, with labels from a list of the set. labels: file -> label.

    Raises EnvironmentProblem for an image that is not in the list.
    """
    expression, found = re.compile(pattern), []
    for entry in look(place):
        match = expression.search(entry.name)
        if match is None:
            continue
        if match["file"] not in labels:
            raise EnvironmentProblem(
                f"{place}: {entry.name} is not in the list of {title}", "name the published set and its list"
            )
        label = labels[match["file"]]
        found.append((entry, f"{classes[label]}/{match['file']}", label))
    return found


def by_class(
    place: Path, pattern: str, classes: Mapping[str, int], spell: Callable[[str], str] = str
) -> list[tuple[Entry, str, int]]:
    """The images of a place whose path matches, with their keys and labels.

    pattern: a regular expression, searched for, with groups `cls` and `file`. spell: a class as the place spells it -> as
    `classes` does. classes: name -> label. Raises EnvironmentProblem for
    a class that is none of them.
    """
    expression, found, strange = re.compile(pattern), [], set()
    for entry in look(place):
        match = expression.search(entry.name)
        if match is None:
            continue
        name = spell(match["cls"])
        if name in classes:
            found.append((entry, f"{name}/{match['file']}", classes[name]))
        else:
            strange.add(name)
    if strange:
        raise EnvironmentProblem(
            f"{place}: holds {len(strange)} classes that this data set does not have ({', '.join(sorted(strange)[:5])})",
            "name the folder or archive of the published set",
        )
    return found


# --- inside ------------------------------------------------------------------------------------------------------------


def _walk(root: Path) -> Iterator[Entry]:
    stack = [""]
    while stack:
        inside = stack.pop()
        with os.scandir(root / inside) as entries:
            for entry in entries:
                name = f"{inside}/{entry.name}" if inside else entry.name
                if entry.name.startswith("."):
                    continue
                if entry.is_dir():
                    stack.append(name)
                else:
                    yield Entry(name, FILE, 0, entry.stat().st_size)


def _tar(place: Path) -> Iterator[Entry]:
    with open(place, "rb") as stream:
        packed = stream.read(2) == b"\x1f\x8b"
        if packed and place.stat().st_size > COMPRESSED_LIMIT:
            raise EnvironmentProblem(
                f"{place}: a compressed archive of {place.stat().st_size:,} bytes cannot be read image by image",
                f"unpack its outer layer once: gunzip {place.name}",
            )
        if packed:
            for name, data in _unpacked(place).items():
                yield Entry(name, TGZ, 0, len(data))
        else:
            yield from _members(stream, 0, "")


def _members(stream: IO[bytes], base: int, prefix: str) -> Iterator[Entry]:
    """Members of the plain tar that begins at `base`; those of an inner tar under its stem."""
    stream.seek(base)
    window: Any = _Window(stream, base)  # what tarfile needs of a stream
    with tarfile.open(fileobj=window, mode="r:") as tar:
        for member in tar:
            if not member.isfile():
                continue
            name, start = prefix + member.name.removeprefix("./"), base + member.offset_data
            if name.endswith(".tar"):
                yield from _members(stream, start, f"{name.removesuffix('.tar')}/")
            else:
                yield Entry(name, TAR, start, member.size)


class _Window:
    """A stream whose position 0 is somewhere inside another one, for an archive that lies in an archive."""

    def __init__(self, stream: IO[bytes], base: int) -> None:
        self.stream, self.base, self.at = stream, base, 0

    def read(self, size: int) -> bytes:
        self.stream.seek(self.base + self.at)
        data = self.stream.read(size)
        self.at += len(data)
        return data

    def seek(self, to: int) -> int:
        self.at = to
        return to

    def tell(self) -> int:
        return self.at


def _span(place: Path, start: int, size: int) -> bytes:
    data = os.pread(_handle(place), size, start)
    if len(data) != size:
        raise EOFError("the archive ends before it")
    return data


@functools.lru_cache(maxsize=64)
def _handle(place: Path) -> int:
    return os.open(place, os.O_RDONLY | os.O_CLOEXEC)


@functools.lru_cache(maxsize=8)
def _zip(place: Path) -> zipfile.ZipFile:
    return zipfile.ZipFile(place)


@functools.lru_cache(maxsize=4)
def _unpacked(place: Path) -> dict[str, bytes]:
    """Small members of a compressed tar: what lies beside the images in such an archive (sprite sheets) is left out."""
    found = {}
    with tarfile.open(place, "r:*") as tar:
        for member in tar:
            if member.isfile() and member.size <= 8 << 20:
                file = tar.extractfile(member)
                assert file is not None, "a regular file has content"
                found[member.name.removeprefix("./")] = file.read()
    return found
