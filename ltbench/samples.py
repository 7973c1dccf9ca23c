"""Images that somebody else made, as an evaluation takes them: ADM's .npz, or a folder of PNG or JPEG.

    FILE.npz            arr_0 (n, H, W, C) uint8 and, for groups, arr_1 (n,) labels
    FOLDER/CLASS/*.png  a folder per class, named after it or by its number
    FOLDER/*.png        with FOLDER/labels.csv (lines of file,label) for groups

Nothing is resized, rounded, reordered or left out. Reading is in order and in blocks, and never runs what is in a file.
"""

from __future__ import annotations

import csv
import hashlib
import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from ltbench import files, npz
from ltbench.errors import LtbenchError, UsageError

SUFFIXES = (".png", ".jpg", ".jpeg")
LOSSY = (".jpg", ".jpeg")
LABELS = "labels.csv"
STATISTICS = ("mu", "sigma")
_BLOCK = 256  # images decoded at a time


@dataclass(frozen=True)
class Target:
    """What images have to be: the data set's classes (by number), channels and resolution."""

    classes: tuple[str, ...]
    channels: int
    resolution: int

    def label(self, text: str) -> int | None:
        """The number of a class that is given by number or by name; None for no class."""
        if text in self.classes:
            return self.classes.index(text)
        return int(text) if text.isascii() and text.isdigit() and int(text) < len(self.classes) else None

    def says(self) -> str:
        """The classes in words."""
        return f"0 to {len(self.classes) - 1}, or by name: {_some(self.classes)}"


@dataclass(frozen=True)
class Samples:
    """n images in their order. shape: (C, H, W). labels: (n,) int64, or None. notes: what a person should know of the file."""

    path: Path
    shape: tuple[int, int, int]
    labels: np.ndarray | None
    count: int
    notes: tuple[str, ...]
    read: Callable[[], Iterator[np.ndarray]]  # (b, C, H, W) uint8, all images in order, in blocks of any size
    keep: np.ndarray | None = None  # (all images,) bool: the ones that this set consists of

    def blocks(self, size: int, first: int = 0) -> Iterator[np.ndarray]:
        """(size, C, H, W) uint8 from image `first` on; the last block may be shorter. Raises UsageError for what is malformed."""
        waiting: list[np.ndarray] = []
        for rows in self._from(first):
            waiting.append(rows)
            if sum(map(len, waiting)) >= size:
                joined = np.concatenate(waiting)
                whole = len(joined) // size * size
                yield from np.split(joined[:whole], whole // size)
                waiting = [joined[whole:]]
        if waiting and len(rest := np.concatenate(waiting)):
            yield rest

    def _from(self, first: int) -> Iterator[np.ndarray]:
        done = seen = 0
        for rows in self.read():
            if self.keep is not None:
                done, rows = done + len(rows), rows[self.keep[done : done + len(rows)]]
            start, seen = max(0, first - seen), seen + len(rows)
            yield rows[start:]

    @cached_property
    def sha256(self) -> str:
        """Hex sha256 over shape, pixels and labels, whatever file holds them (`datasets.Images.sha256`, where there are labels)."""
        found = hashlib.sha256(repr((self.count, *self.shape)).encode())
        for rows in self.blocks(_BLOCK):
            found.update(np.ascontiguousarray(rows).tobytes())
        if self.labels is not None:
            found.update(self.labels.astype("<i8").tobytes())
        return found.hexdigest()

    def only(self, keep: np.ndarray) -> Samples:
        """The images where `keep` (n,) is true."""
        whole = np.ones(self.count, dtype=bool) if self.keep is None else self.keep.copy()
        whole[np.flatnonzero(whole)] = keep
        labels = None if self.labels is None else self.labels[keep]
        return replace(self, labels=labels, count=int(keep.sum()), keep=whole)


def open_samples(path: Path, target: Target) -> Samples:
    """Look at an .npz file or a folder of images; pixels are read later. Raises UsageError for whatever does not fit."""
    if path.is_dir():
        return _folder(path, target)
    if not path.exists():
        raise UsageError(f"there is no {path}", "samples are an .npz file or a folder of PNG or JPEG images")
    if path.suffix == ".npz":
        return _npz(path, target)
    raise UsageError(
        f"{path} is no .npz file and no folder", "samples are an .npz file or a folder of images"
    )


# --- .npz -----------------------------------------------------------------------------------------------------------


def _npz(path: Path, target: Target) -> Samples:
    held = npz.members(path)
    if statistics := [name for name in STATISTICS if name in held]:
        raise UsageError(
            f"{path} holds statistics ({', '.join(statistics)}): it is a reference and no set of samples",
            "give it as --reference",
        )
    return _arrays(path, held, target)


def reference_images(path: Path, target: Target) -> Samples | None:
    """The images beside the statistics in one of ADM's reference files; None where it has none. Raises UsageError."""
    held = npz.members(path)
    return _arrays(path, held, target) if "arr_0" in held else None


def _arrays(path: Path, held: dict[str, npz.Member], target: Target) -> Samples:
    images = _images_of(path, held, target)
    labels = _labels_of(path, held.get("arr_1"), images.shape[0], target)

    def read() -> Iterator[np.ndarray]:
        for rows in images.blocks(_BLOCK):
            yield _channels(rows.transpose(0, 3, 1, 2), target.channels, f"{path}: an image")

    shape = (target.channels, target.resolution, target.resolution)
    return Samples(path, shape, labels, images.shape[0], _without(labels), read)


def _images_of(path: Path, held: dict[str, npz.Member], target: Target) -> npz.Member:
    if "arr_0" not in held:
        raise UsageError(f"{path} has no arr_0; it holds {_some(held)}", "images are arr_0, labels arr_1")
    images = held["arr_0"]
    if images.dtype != np.uint8:
        hint = "round them to 0..255 first, by the rule that your own numbers go by (SiT rounds, REPA cuts)"
        raise UsageError(f"{path}: arr_0 is {images.dtype}; images are uint8", hint)
    if len(images.shape) != 4 or images.shape[0] == 0:
        raise UsageError(f"{path}: arr_0 has shape {images.shape}; images are (n, H, W, 3)")
    height, width, channels = images.shape[1:]
    if channels not in (1, 3):
        swapped = height in (1, 3) and width == channels
        hint = "it looks like (n, C, H, W): save arr_0.transpose(0, 2, 3, 1)" if swapped else None
        raise UsageError(f"{path}: arr_0 has shape {images.shape}; images are (n, H, W, 3)", hint)
    _require_size(f"{path}: arr_0 has images", width, height, target)
    return images


def _labels_of(path: Path, held: npz.Member | None, count: int, target: Target) -> np.ndarray | None:
    if held is None:
        return None
    what = f"{path}: arr_1"
    if len(held.shape) != 1:
        one_hot = held.shape == (count, len(target.classes))
        hint = "it looks one-hot: save arr_1.argmax(1)" if one_hot else None
        raise UsageError(f"{what} has shape {held.shape}; labels are ({count},)", hint)
    if held.dtype.kind not in "iu":
        raise UsageError(f"{what} is {held.dtype}; labels are whole numbers, 0 to {len(target.classes) - 1}")
    if held.shape[0] != count:
        raise UsageError(f"{what} has {held.shape[0]} labels for the {count} images of arr_0")
    labels = held.read().astype(np.int64)
    wrong = np.flatnonzero((labels < 0) | (labels >= len(target.classes)))
    if len(wrong):
        raise UsageError(
            f"{what}: {len(wrong)} labels are outside the classes 0 to {len(target.classes) - 1}, "
            f"the first is {labels[wrong[0]]} of image {wrong[0]}"
        )
    return labels


def _without(labels: np.ndarray | None) -> tuple[str, ...]:
    return (
        ()
        if labels is not None
        else ("there are no labels: all classes are measured together, and no group",)
    )


# --- folders --------------------------------------------------------------------------------------------------------


def _folder(path: Path, target: Target) -> Samples:
    folders, pictures = _listed(path)
    if folders and pictures:
        raise UsageError(
            f"{path} holds images beside folders ({_some(folders)})",
            f"either a folder per class, or images and {LABELS}",
        )
    if folders:
        names, labels = _by_class(path, folders, target)
    else:
        names, labels = pictures, _listed_labels(path, pictures, target)
    if not names:
        raise UsageError(f"{path} holds no image", f"images end in {', '.join(SUFFIXES)}")
    _decoded(path / names[0], target)  # what is wrong with all of them is said before any work

    def read() -> Iterator[np.ndarray]:
        for start in range(0, len(names), _BLOCK):
            yield np.stack([_decoded(path / name, target) for name in names[start : start + _BLOCK]])

    notes = _without(labels)
    if lossy := sum(name.lower().endswith(LOSSY) for name in names):
        notes += (f"{lossy} images are JPEG, whose losses are measured as if the model had made them",)
    shape = (target.channels, target.resolution, target.resolution)
    return Samples(path, shape, labels, len(names), notes, read)


def _listed(path: Path) -> tuple[list[str], list[str]]:
    """(folders, images) in a folder by name, hidden ones aside. Raises UsageError for files that are neither."""
    with os.scandir(path) as entries:
        found = sorted((entry for entry in entries if entry.name[0] != "."), key=lambda entry: entry.name)
    folders = [entry.name for entry in found if entry.is_dir()]
    pictures = [entry.name for entry in found if entry.name.lower().endswith(SUFFIXES) and entry.is_file()]
    if others := [e.name for e in found if e.name not in {*folders, *pictures, LABELS}]:
        raise UsageError(
            f"{path} holds files that are no images: {_some(others)}", f"images end in {', '.join(SUFFIXES)}"
        )
    return folders, pictures


def _by_class(path: Path, folders: Sequence[str], target: Target) -> tuple[list[str], np.ndarray]:
    numbers = {name: target.label(name) for name in folders}
    if unknown := [name for name, number in numbers.items() if number is None]:
        raise UsageError(
            f"{path}: folders that name no class: {_some(unknown)}", f"classes are {target.says()}"
        )
    if twice := [c for c, n in Counter(numbers.values()).items() if n > 1]:
        both = [name for name, number in numbers.items() if number == twice[0]]
        raise UsageError(f"{path}: {' and '.join(both)} are the same class")
    names: list[str] = []
    labels: list[int] = []
    for name in sorted(folders, key=lambda name: numbers[name] or 0):
        inner, pictures = _listed(path / name)
        if inner:
            raise UsageError(
                f"{path / name} holds folders: {_some(inner)}", "a class is one folder of images"
            )
        names += [f"{name}/{picture}" for picture in pictures]
        labels += [numbers[name] or 0] * len(pictures)
    return names, np.array(labels, dtype=np.int64)


def _listed_labels(path: Path, pictures: Sequence[str], target: Target) -> np.ndarray | None:
    """Labels from labels.csv, which names every image once; None where there is no such file."""
    file = path / LABELS
    if not file.exists():
        return None
    try:
        rows = [row for row in csv.reader(files.read_regular(file).decode().splitlines()) if row]
    except (UnicodeDecodeError, csv.Error) as error:
        raise UsageError(f"{file} cannot be read: {error}") from None
    if rows and rows[0] == ["file", "label"]:
        rows = rows[1:]
    if bad := [row for row in rows if len(row) != 2]:
        raise UsageError(f"{file}: the line {','.join(bad[0])!r} is not file,label")
    if wrong := [row for row in rows if target.label(row[1]) is None]:
        raise UsageError(
            f"{file}: {len(wrong)} labels are no class, the first is {wrong[0][1]!r} of {wrong[0][0]}",
            f"classes are {target.says()}",
        )
    counts = Counter(name for name, _ in rows)
    problems = [f"{_some(names)} {what}" for names, what in (
        ([name for name, n in counts.items() if n > 1], "named more than once"),
        (sorted(set(counts) - set(pictures)), "not in the folder"),
        (sorted(set(pictures) - set(counts)), "without a label"),
    ) if names]  # fmt: skip
    if problems:
        raise UsageError(f"{file} and the images differ: {'; '.join(problems)}")
    known = {name: target.label(label) for name, label in rows}
    return np.array([known[name] for name in pictures], dtype=np.int64)


def _decoded(path: Path, target: Target) -> np.ndarray:
    """(C, H, W) uint8 of a PNG or JPEG."""
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path, formats=["PNG", "JPEG"]) as picture:
            mode, size = picture.mode, picture.size
            _require_size(f"{path} has", *size, target)
            if mode not in ("L", "RGB", "1", "P") or "transparency" in picture.info:
                raise UsageError(
                    f"{path} has the mode {mode}{' with transparency' if 'transparency' in picture.info else ''}; "
                    "images are 8-bit grey or RGB without transparency"
                )
            pixels = np.asarray(picture if mode in ("L", "RGB") else picture.convert("RGB"))
    except (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise UsageError(f"{path} cannot be read as an image: {error}") from None
    rows = pixels[..., None] if pixels.ndim == 2 else pixels
    return _channels(rows.transpose(2, 0, 1)[None], target.channels, str(path))[0]


# --- what they share ------------------------------------------------------------------------------------------------


def _channels(rows: np.ndarray, wanted: int, where: str) -> np.ndarray:
    """(b, 1 or 3, H, W) as images of `wanted` channels: grey repeated, three equal ones taken as one."""
    if rows.shape[1] == wanted:
        return rows
    if rows.shape[1] == 1:
        return np.repeat(rows, wanted, axis=1)
    if not bool((rows == rows[:, :1]).all()):
        raise UsageError(f"{where} is in colour, and the data set is grey")
    return rows[:, :1]


def _require_size(what: str, width: int, height: int, target: Target) -> None:
    size = target.resolution
    if (width, height) != (size, size):
        raise UsageError(
            f"{what} of {width} x {height} pixels; the data set has {size} x {size}",
            "nothing is resized here: how to would be a choice that changes the numbers",
        )


def _some(names: Iterable[Any]) -> str:
    listed = [str(name) for name in names]
    return ", ".join(listed[:5]) + (f" and {len(listed) - 5} more" if len(listed) > 5 else "")


# --- writing --------------------------------------------------------------------------------------------------------


def write_npz(
    path: Path, blocks: Iterable[np.ndarray], labels: np.ndarray | None, shape: tuple[int, ...], count: int
) -> None:
    """Write images as ADM's evaluator reads them: arr_0 (n, H, W, 3) uint8, grey ones repeated, and arr_1 (n,) int64 labels.

    blocks: (b, C, H, W) uint8, together `count` images of `shape` (C, H, W).
    """
    rows = (_channels(block, 3, "").transpose(0, 2, 3, 1) for block in blocks)
    arrays: dict[str, Any] = {"arr_0": ((count, *shape[1:], 3), np.dtype(np.uint8), rows)}
    if labels is not None:
        arrays["arr_1"] = ((count,), np.dtype(np.int64), [labels])
    npz.write(path, arrays)


def write_folder(path: Path, blocks: Iterable[np.ndarray], labels: np.ndarray | None) -> None:
    """Write images as PNG, 000000.png and so on, and their labels.csv. Raises UsageError when the folder is there already."""
    from PIL import Image

    if path.exists():
        raise UsageError(f"{path} exists", "name a folder that does not exist yet")
    files.make_directory(path.parent)
    temporary = files.temporary_beside(path)
    temporary.mkdir()
    number = 0
    try:
        for block in blocks:
            for image in block:
                picture = Image.fromarray(image[0] if len(image) == 1 else image.transpose(1, 2, 0))
                picture.save(temporary / f"{number:06d}.png")
                number += 1
        if labels is not None:
            lines = ["file,label", *(f"{k:06d}.png,{label}" for k, label in enumerate(labels))]
            (temporary / LABELS).write_text("\n".join(lines) + "\n")
        files.publish_directory(temporary, path)
    except OSError as error:
        raise LtbenchError(f"{path} cannot be written: {error}") from error
    finally:
        if temporary.exists():
            files.remove_tree(temporary)
