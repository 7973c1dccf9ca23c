"""Fashion-MNIST (Xiao et al., arXiv 1708.07747; MIT), long-tailed: grey clothes, 10 classes, 6,000 + 1,000 images each.

`embedded` is our own cut, shipped with ltbench and made by scripts/cut_fashion_mnist.py. `full` is the whole set in its IDX files.
"""

from __future__ import annotations

from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from ltbench.datasets import (
    Dataset,
    EnvironmentProblem,
    Images,
    UsageError,
    check_choice,
    data_folders,
    read_asset,
)
from ltbench.datasets.idx import find_idx, read_idx
from ltbench.datasets.longtail import profile, require_images, select

CLASSES = (
    "T-shirt",
    "Trouser",
    "Pullover",
    "Dress",
    "Coat",
    "Sandal",
    "Shirt",
    "Sneaker",
    "Bag",
    "Ankle boot",
)
EMBEDDED_SHA256 = "beb8a43c6e6f3ead227a84e64ecdbe531e099082e213c3c19af1ff0b650916f5"
EMBEDDED_IMBALANCE = 0.01
SYSTEM_FOLDER = "/usr/share/datasets/fashion-mnist"  # Debian's package dataset-fashion-mnist
TRAIN_PER_CLASS, TEST_PER_CLASS = 6000, 1000
# Per class of the source: size of the largest training class, reference images, holdout images.
SIZES = {"embedded": (1000, 200, 50), "full": (TRAIN_PER_CLASS, 900, 100)}


class FashionMnist(Dataset):
    """Long-tailed Fashion-MNIST.

    source: `embedded` (largest class 1,000 images, imbalance at most 0.01) or `full` (6,000, any imbalance).
    imbalance: smallest over largest class. resolution: 32 (padded by 2), 28 (native), 16 (padded, then 2x2 means).
    keep_one: a class that the imbalance empties keeps one image.
    """

    extractor = "fashion-cnn-v1"
    crops = ("center", "squash")  # the originals are square
    channels = 1

    def __init__(
        self,
        *,
        source: Literal["embedded", "full"] = "embedded",
        imbalance: float = 0.01,
        resolution: Literal[32, 28, 16] = 32,
        keep_one: bool = False,
    ) -> None:
        check_choice("fashion_mnist", "source", source, ("embedded", "full"))
        check_choice("fashion_mnist", "resolution", resolution, (32, 28, 16))
        self.source, self.imbalance, self.resolution = source, imbalance, resolution
        n_max, self._per_reference, self._per_holdout = SIZES[source]
        self._counts = profile(n_max, len(CLASSES), imbalance, keep_one=keep_one)
        if source == "embedded" and imbalance > EMBEDDED_IMBALANCE:
            raise UsageError(
                f"data set 'fashion_mnist': imbalance is {imbalance}, but the embedded cut holds {EMBEDDED_IMBALANCE} and below",
                "for a milder imbalance use the whole set: `source: full`",
            )
        require_images(self._counts, CLASSES, n_max, imbalance)

    @property
    def classes(self) -> tuple[str, ...]:
        return CLASSES

    @property
    def reference_id(self) -> str:
        return f"fashion_mnist:test-balanced-{self._per_reference}"

    def counts(self) -> list[int]:
        return list(self._counts)

    def train(self) -> Images:
        return self._train

    def reference(self) -> Images:
        return self._held_out["reference"]

    def holdout(self) -> Images:
        return self._held_out["holdout"]

    def homes(self) -> list[str]:
        return ["fashion-mnist"]

    def missing(self) -> str | None:
        if self.source == "embedded":
            return None
        try:
            full_folder()
        except EnvironmentProblem as problem:
            return str(problem)
        return None

    @cached_property
    def _train(self) -> Images:
        if self.source == "full":
            images, labels = read_split(full_folder(), "train")
            index = select(labels, self._counts)
            return self._images(images[index], labels[index], index)
        cut = self._cut
        # The cut keeps the selection's order inside a class, so a smaller class is a prefix of the one that is stored.
        kept = np.concatenate(
            [np.flatnonzero(cut["train_labels"] == c)[:n] for c, n in enumerate(self._counts)]
        )
        return self._images(cut["train_images"][kept], cut["train_labels"][kept], cut["train_index"][kept])

    @cached_property
    def _held_out(self) -> dict[str, Images]:
        if self.source == "full":
            images, labels = read_split(full_folder(), "t10k")
            parts = split_test(labels, self._per_reference, self._per_holdout)
            return {name: self._images(images[index], labels[index], index) for name, index in parts.items()}
        cut = self._cut
        return {
            name: self._images(*(cut[f"{name}_{part}"] for part in ("images", "labels", "index")))
            for name in ("reference", "holdout")
        }

    @cached_property
    def _cut(self) -> dict[str, np.ndarray]:
        return read_asset("fashion-mnist-lt.npz", EMBEDDED_SHA256)

    def _images(self, images: np.ndarray, labels: np.ndarray, index: np.ndarray) -> Images:
        return Images(resize(images, self.resolution), labels.astype(np.int64), index.astype(np.int64))


def resize(images: np.ndarray, resolution: int) -> np.ndarray:
    """(n, 28, 28) uint8 -> (n, 1, R, R) uint8: zeros around to 32; for 16 the mean of 2x2 pixels of that, halves up."""
    if resolution == 28:
        return images[:, None].copy()
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2)))
    if resolution == 32:
        return padded[:, None]
    cells = padded.reshape(len(images), 16, 2, 16, 2).astype(np.uint16)
    return ((cells.sum(axis=(2, 4)) + 2) // 4).astype(np.uint8)[:, None]


def full_folder() -> Path:
    """The folder that holds the four IDX files (plain or .gz). Raises EnvironmentProblem naming what is missing where."""
    folders = data_folders("fashion-mnist", "FashionMNIST/raw", system=SYSTEM_FOLDER)
    stems = [
        f"{split}-{kind}"
        for split in ("train", "t10k")
        for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")
    ]
    lacking = {folder: [stem for stem in stems if find_idx(folder, stem) is None] for folder in folders}
    for folder, absent in lacking.items():
        if not absent:
            return folder
    found = "; ".join(
        f"{folder}: {'no such folder' if not folder.is_dir() else 'no ' + ', '.join(absent)}"
        for folder, absent in lacking.items()
    )
    raise EnvironmentProblem(
        f"the full Fashion-MNIST was not found ({found})",
        "install Debian's dataset-fashion-mnist, or put the four IDX files (plain or .gz) into LTBENCH_DATA/fashion-mnist, "
        "or use `source: embedded`",
    )


def read_split(folder: Path, split: Literal["train", "t10k"]) -> tuple[np.ndarray, np.ndarray]:
    """(n, 28, 28) uint8 images and (n,) uint8 labels of one split, checked to be the whole of it.

    Raises EnvironmentProblem naming the file for a damaged one, or one that is not Fashion-MNIST's shape or class sizes.
    """
    paths = [find_idx(folder, f"{split}-{kind}") for kind in ("images-idx3-ubyte", "labels-idx1-ubyte")]
    if paths[0] is None or paths[1] is None:
        raise EnvironmentProblem(
            f"{folder}: the {split} images or labels are missing", "put the four IDX files there"
        )
    images, labels = read_idx(paths[0], 3), read_idx(paths[1], 1)
    per_class = TRAIN_PER_CLASS if split == "train" else TEST_PER_CLASS
    remedy = "replace it with the file of Fashion-MNIST (60,000 + 10,000 images)"
    if images.shape != (per_class * len(CLASSES), 28, 28):
        raise EnvironmentProblem(
            f"{paths[0]}: holds {images.shape}, expected {(per_class * len(CLASSES), 28, 28)}", remedy
        )
    sizes = np.bincount(labels, minlength=len(CLASSES)).tolist()
    if sizes != [per_class] * len(CLASSES):
        raise EnvironmentProblem(
            f"{paths[1]}: images per label are {sizes}, expected {per_class} of each of 0..9", remedy
        )
    return images, labels


def split_test(labels: np.ndarray, per_reference: int, per_holdout: int) -> dict[str, np.ndarray]:
    """Positions in the test split, class after class: the first images of each class are the reference, the last the holdout.

    Taken from both ends, so that the embedded reference is a part of the full one and never meets a holdout of either.
    """
    classes = [np.flatnonzero(labels == c) for c in range(len(CLASSES))]
    return {
        "reference": np.concatenate([positions[:per_reference] for positions in classes]),
        "holdout": np.concatenate([positions[-per_holdout:] for positions in classes]),
    }
