"""The data set contract: what a file in the top-level `datasets/` folder provides.

One file is one data set family and holds one subclass of `Dataset`; its name is the file's stem, and its parameters are the
annotated keyword arguments of `__init__`. A data set is numpy only and sits in memory as one array. The folder holds no
`__init__.py`: this package points its `__path__` there, so that `datasets/digits.py` is the ordinary module
`ltbench.datasets.digits`, and Hugging Face's `datasets` stays importable.
"""

from __future__ import annotations

import hashlib
import importlib
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ltbench import plugins
from ltbench.download import Asset
from ltbench.errors import EnvironmentProblem, UsageError

__all__ = [
    "Asset",
    "Dataset",
    "EnvironmentProblem",
    "Images",
    "UsageError",
    "build_dataset",
    "check_choice",
    "data_folders",
    "read_asset",
]

ASSETS = Path(__file__).resolve().parent / "assets"
HASH_BYTES = 16 << 20  # of pixels that are looked at a time when images are hashed


# A plugin is the ordinary module ltbench.datasets.NAME: it pickles, and works under fork, spawn and forkserver.
__path__.extend(str(folder) for folder in plugins.folders("datasets"))


@dataclass(frozen=True)
class Images:
    """Labelled images: an array in memory or mapped from a file, or what stands for one and decodes what is asked of it (Streamed).

    images: (n, C, H, W) uint8. labels: (n,) int64 in [0, K). index: (n,) int64, the position of each image in the source's
    own split, so that two cuts of one source can be compared image by image. digest: what `sha256` gives where it is known already,
    so that nobody reads gigabytes to learn it.
    """

    images: np.ndarray
    labels: np.ndarray
    index: np.ndarray
    digest: str = ""

    def __post_init__(self) -> None:
        n = len(self.images)
        if self.images.ndim != 4 or self.images.dtype != np.uint8:
            raise ValueError(
                f"images must be (n, C, H, W) uint8, got {self.images.shape} {self.images.dtype}"
            )
        for name, array in (("labels", self.labels), ("index", self.index)):
            if array.shape != (n,) or array.dtype != np.int64:
                raise ValueError(
                    f"{name} must be ({n},) int64 beside {n} images, got {array.shape} {array.dtype}"
                )

    def __len__(self) -> int:
        return len(self.images)

    def sha256(self) -> str:
        """Hex sha256 over shape, pixels and labels; of images that are decoded on demand, over files, labels and decoder."""
        if self.digest:
            return self.digest
        digest = hashlib.sha256(repr(self.images.shape).encode())
        step = max(1, HASH_BYTES // max(1, self.images[:1].nbytes))
        for first in range(0, len(self.images), step):  # a memory map is never in memory whole
            digest.update(np.ascontiguousarray(self.images[first : first + step]).data)
        digest.update(self.labels.astype("<i8").tobytes())
        return digest.hexdigest()


class Dataset(ABC):
    """A long-tailed training set with a balanced reference and a balanced holdout, all real images.

    `train` is what methods learn from; `reference` is what generated images are compared with; `holdout` is disjoint from both
    and gives the real-against-real floor of every metric. `__init__` sets `channels` and `resolution` (pixels, H = W), checks its
    parameters, raises UsageError for a bad value, and reads no data.
    """

    extractor: ClassVar[str]  # a name of ltbench/extractors.py
    # How `reference` and `holdout` are square, of a protocol's `crop`; where the originals are square, both are the same.
    crops: ClassVar[tuple[str, ...]] = ("center",)
    channels: int
    resolution: int

    @property
    @abstractmethod
    def classes(self) -> tuple[str, ...]:
        """(K,) names, in the source's label order."""

    @property
    @abstractmethod
    def reference_id(self) -> str:
        """Names the reference set: equal ids mean the same real images at one resolution."""

    @abstractmethod
    def counts(self) -> list[int]:
        """(K,) training images per class, without reading any data."""

    @abstractmethod
    def train(self) -> Images:
        """The training images, class after class in label order: head classes first in the published constructions."""

    @abstractmethod
    def reference(self) -> Images:
        """The balanced real images that generated ones are compared with.

        May contain the training images where the published protocols have it so; the class's docstring then says it, and
        `reference_id` names the split.
        """

    @abstractmethod
    def holdout(self) -> Images:
        """Balanced real images, disjoint from `train` and `reference`."""

    def squared(self, crop: str) -> Dataset:
        """This data set with `reference` and `holdout` made square by a crop of `crops`: itself where that changes nothing."""
        return self

    def missing(self) -> str | None:
        """None if the data can be read here, else what is missing and what to do about it. Reads no images."""
        return None

    def assets(self, root: Path) -> list[Asset]:
        """The files that the data is in as published, with their places below `root` (LTBENCH_DATA). Reads nothing."""
        return []

    def unprepared(self) -> str | None:
        """The command that makes it ready, where its files are here and have only to be prepared; else None."""
        return None

    def homes(self) -> list[str]:
        """Names of files and folders below LTBENCH_DATA that it reads, its folder first; none: it reads nothing from outside.

        A set of several archives that lie together names the one folder of theirs.
        """
        return []

    def sha256(self) -> str:
        """`Images.sha256` of the training images."""
        return self.train().sha256()


def build_dataset(settings: Mapping[str, Any]) -> Dataset:
    """The data set of `{"name": file stem, **parameters}`, e.g. the "dataset" part of a cell's settings. Reads no images.

    A key `latents` is the engine's: the data set gives pixels all the same.

    Raises UsageError for an unknown name, an unusable file, a parameter it does not take, and whatever its `__init__` refuses.
    """
    parameters = dict(settings)
    parameters.pop("latents", None)
    plugin = plugins.get("datasets", parameters.pop("name"))
    unknown = sorted(set(parameters) - set(plugin.defaults))
    if unknown:
        raise UsageError(
            f"data set '{plugin.name}' has no parameter {', '.join(unknown)}; it {plugin.takes()}"
        )
    module = importlib.import_module(f"{__name__}.{plugin.name}")
    return getattr(module, plugin.class_name)(**parameters)


def check_choice(dataset: str, parameter: str, value: object, allowed: tuple[object, ...]) -> None:
    """Raise UsageError unless `value` is one of `allowed`, naming the parameter and the choices."""
    if value not in allowed:
        choices = ", ".join(map(repr, allowed))
        raise UsageError(f"data set '{dataset}': {parameter} is {value!r}; allowed: {choices}")


def data_folders(*names: str, system: str | None = None) -> list[Path]:
    """Where a set that the user provides may lie, in order: LTBENCH_DATA/NAME for each name, then the system's folder."""
    root = os.environ.get("LTBENCH_DATA")
    folders = [Path(root).expanduser() / name for name in names] if root else []
    return folders + ([Path(system)] if system else [])


def read_asset(name: str, sha256: str) -> dict[str, np.ndarray]:
    """The arrays of an `.npz` shipped with ltbench (ltbench/datasets/assets), its bytes checked first.

    Raises EnvironmentProblem if the file is absent or its sha256 is not the given one.
    """
    path = ASSETS / name
    remedy = "restore it from the repository (git checkout -- ltbench/datasets/assets)"
    try:
        found = hashlib.sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise EnvironmentProblem(f"{path}: cannot read the embedded data: {error.strerror}", remedy) from None
    if found != sha256:
        raise EnvironmentProblem(f"{path}: sha256 is {found}, expected {sha256}: the file is damaged", remedy)
    with np.load(path, allow_pickle=False) as arrays:
        return {key: arrays[key] for key in arrays.files}
