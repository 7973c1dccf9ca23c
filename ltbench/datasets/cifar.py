"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009, www.cs.toronto.edu/~kriz/cifar.html) from their original Python files, long-tailed.

Both are read from the folder that the archive unpacks to or from the archive itself, which then stays packed. The images of a
training class are chosen as the published subsets are (longtail.py). Their 50,000 balanced training images are the reference, as in
CBDM's, OCLT's and CCUA's evaluation, so the reference holds the images that methods train on; the 10,000 test images are the holdout.
"""

from __future__ import annotations

import hashlib
import tarfile
import zlib
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import Any, ClassVar, Literal

import numpy as np

from ltbench.datasets import Asset, Dataset, EnvironmentProblem, Images, check_choice, data_folders
from ltbench.datasets.longtail import profile, require_images, select
from ltbench.datasets.unpickle import unpickle

SIDE = 32
HOME = "https://www.cs.toronto.edu/~kriz"


@dataclass(frozen=True)
class Source:
    """One published set. train, test: its files with their md5, in order; "" where any content is taken.

    name: of its reference, and of the folder that people give it. folder: what the archive unpacks to. key: of the labels in a file.
    per_train, per_test: images per class.
    """

    title: str
    name: str
    folder: str
    archive: str
    key: str
    classes: tuple[str, ...]
    train: Mapping[str, str]
    test: Mapping[str, str]
    per_train: int
    per_test: int
    archive_bytes: int | None = None
    archive_md5: str = ""

    def files(self, split: Literal["train", "test"]) -> Mapping[str, str]:
        """File name -> md5 of one split."""
        return self.train if split == "train" else self.test

    def places(self) -> list[Path]:
        """Folders and archives that are looked for, in order."""
        folders = data_folders(self.name, self.folder, f"{self.name}/{self.folder}")
        return folders + data_folders(self.archive, f"{self.name}/{self.archive}")


class Cifar(Dataset):
    """What both sets share. imbalance: smallest over largest class, 1 is balanced. resolution: 32, as published.

    keep_one: a class that the imbalance empties keeps one image.
    """

    extractor = "lite0"
    crops = ("center", "squash")  # the originals are square
    channels = 3
    source: ClassVar[Source]

    def __init__(
        self, *, imbalance: float = 0.01, resolution: Literal[32] = 32, keep_one: bool = False
    ) -> None:
        check_choice(type(self).__module__.rpartition(".")[2], "resolution", resolution, (SIDE,))
        self.imbalance, self.resolution = imbalance, resolution
        largest = float(self.source.per_train)
        self._counts = profile(largest, len(self.classes), imbalance, keep_one=keep_one)
        require_images(self._counts, self.classes, largest, imbalance)

    @property
    def classes(self) -> tuple[str, ...]:
        return self.source.classes

    @property
    def reference_id(self) -> str:
        return f"{self.source.name}:train-balanced-{self.source.per_train}"

    def counts(self) -> list[int]:
        return list(self._counts)

    def train(self) -> Images:
        return self._train

    def reference(self) -> Images:
        return self._reference

    def holdout(self) -> Images:
        return self._holdout

    def homes(self) -> list[str]:
        return [self.source.folder, self.source.archive]

    def assets(self, root: Path) -> list[Asset]:
        source = self.source
        return [
            Asset(
                source.title,
                f"{HOME}/{source.archive}",
                root / source.archive,
                "none stated; cite Krizhevsky 2009",
                bytes=source.archive_bytes,
                md5=source.archive_md5,
            )
        ]

    def missing(self) -> str | None:
        try:
            find_home(self.source)
        except EnvironmentProblem as problem:
            return str(problem)
        return None

    @cached_property
    def _train(self) -> Images:
        whole = self._reference
        index = select(whole.labels, self._counts)
        return Images(whole.images[index], whole.labels[index], index)

    @cached_property
    def _reference(self) -> Images:
        return read_split(self.source, "train")

    @cached_property
    def _holdout(self) -> Images:
        return read_split(self.source, "test")


def find_home(source: Source) -> Path:
    """The first folder with all files of the set, else the first archive. Raises EnvironmentProblem saying where was looked."""
    names = [*source.train, *source.test]
    looked = []
    for place in source.places():
        absent = [name for name in names if not (place / name).is_file()]
        if place.is_file() or not absent:
            return place
        looked.append(f"{place}: {'no ' + ', '.join(absent) if place.is_dir() else 'not there'}")
    raise EnvironmentProblem(
        f"{source.title} was not found ({'; '.join(looked) or 'LTBENCH_DATA is not set'})",
        f"put {source.archive} from {HOME}/{source.archive} into the folder that LTBENCH_DATA names, packed or unpacked",
    )


def read_split(source: Source, split: Literal["train", "test"]) -> Images:
    """All images of a split in the order of its files, checked to be the whole of it.

    Raises EnvironmentProblem naming the file that is absent, damaged or not the published one.
    """
    home, files = find_home(source), source.files(split)
    parts = {}
    for name, path, data in _contents(home, source.folder, files):
        _check_md5(data, files[name], path, source)
        parts[name] = _batch(unpickle(data, path), path, source)
    if absent := [name for name in files if name not in parts]:
        raise EnvironmentProblem(
            f"{home}: holds no {source.folder}/{', '.join(absent)}",
            f"replace it with {HOME}/{source.archive}",
        )
    images = np.concatenate([parts[name][0] for name in files])
    labels = np.concatenate([parts[name][1] for name in files])
    _check_sizes(labels, source, split, home)
    return Images(images, labels, np.arange(len(labels)))


def _contents(home: Path, folder: str, names: Collection[str]) -> Iterator[tuple[str, str, bytes]]:
    """(name, where, content) of the named files, of a folder or of an archive, in the archive's order."""
    try:
        if home.is_dir():
            for name in names:
                yield name, str(home / name), (home / name).read_bytes()
        else:
            yield from _members(home, folder, names)
    except (tarfile.TarError, EOFError, zlib.error) as error:
        raise EnvironmentProblem(
            f"{home}: not a usable archive: {error}", "download it again; it is damaged or cut short"
        ) from None
    except OSError as error:
        raise EnvironmentProblem(
            f"{error.filename or home}: cannot be read: {error.strerror or error}",
            "check that the file is readable and whole",
        ) from None


def _members(archive: Path, folder: str, names: Collection[str]) -> Iterator[tuple[str, str, bytes]]:
    with tarfile.open(archive, "r:*") as tar:
        for member in tar:
            parts = PurePosixPath(member.name).parts
            if parts[-2:-1] != (folder,) or parts[-1] not in names or not member.isfile():
                continue
            file = tar.extractfile(member)
            assert file is not None, "a regular file has content"
            yield parts[-1], f"{archive}:{member.name}", file.read()


def _check_md5(data: bytes, expected: str, path: str, source: Source) -> None:
    found = hashlib.md5(data, usedforsecurity=False).hexdigest()
    if expected and found != expected:
        raise EnvironmentProblem(
            f"{path}: md5 is {found}, but that of {source.title}'s file is {expected}: damaged, or another file",
            f"replace it with the one in {HOME}/{source.archive}",
        )


def _batch(found: Mapping[str, Any], path: str, source: Source) -> tuple[np.ndarray, np.ndarray]:
    """(n, 3, 32, 32) uint8 images and (n,) int64 labels of one file: a row is the red, the green and the blue plane."""
    data, labels = found.get("data"), found.get(source.key)
    remedy = f"replace it with the one in {HOME}/{source.archive}"
    width = 3 * SIDE * SIDE
    if not isinstance(data, np.ndarray) or data.ndim != 2 or data.shape[1] != width:
        shape = data.shape if isinstance(data, np.ndarray) else type(data).__name__
        raise EnvironmentProblem(f"{path}: `data` is {shape}, expected (n, {width}) bytes", remedy)
    if not isinstance(labels, list) or len(labels) != len(data):
        size = f"{len(labels)} entries" if isinstance(labels, list) else type(labels).__name__
        raise EnvironmentProblem(
            f"{path}: `{source.key}` is {size}, expected a list of {len(data)}, one per image", remedy
        )
    classes = len(source.classes)
    if bad := [label for label in labels if type(label) is not int or not 0 <= label < classes]:
        raise EnvironmentProblem(
            f"{path}: `{source.key}` holds {bad[0]!r}; labels are 0 to {classes - 1}", remedy
        )
    return data.reshape(-1, 3, SIDE, SIDE), np.array(labels, np.int64)


def _check_sizes(labels: np.ndarray, source: Source, split: Literal["train", "test"], home: Path) -> None:
    """Every class as large as published, or EnvironmentProblem naming those that are not."""
    per_class = source.per_train if split == "train" else source.per_test
    sizes = np.bincount(labels, minlength=len(source.classes)).tolist()
    if wrong := [f"{source.classes[c]}: {size}" for c, size in enumerate(sizes) if size != per_class]:
        shown = ", ".join(wrong[:5]) + (f" and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        raise EnvironmentProblem(
            f"{home}: {split} images per class are not {per_class} ({shown})",
            f"replace {', '.join(source.files(split))} with those in {HOME}/{source.archive}",
        )
