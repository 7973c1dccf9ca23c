"""Handwritten digits of scikit-learn (UCI "Optical Recognition of Handwritten Digits", Alpaydin and Kaynak 1998), long-tailed.

1,797 grey 8x8 images that come inside a package ltbench needs anyway: enough for tests and first steps, not for claims.
"""

from __future__ import annotations

import importlib.util
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np

from ltbench.datasets import Dataset, EnvironmentProblem, Images, check_choice
from ltbench.datasets.longtail import profile, require_images, select

CLASSES = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
POOL, REFERENCE, HOLDOUT = 104, 50, 20  # images per class; the smallest class of the source has 174
PLACE = ("datasets", "data", "digits.csv.gz")  # in the package sklearn
LEVELS = 16  # the source counts 0..16 dark pixels in a 4x4 cell


class Digits(Dataset):
    """Long-tailed digits: largest class 104 images; 50 reference and 20 holdout images per class.

    imbalance: smallest over largest class, at least 0.00962. resolution: 8 (native), 16 or 32 (each pixel repeated).
    keep_one: a class that the imbalance empties keeps one image.
    """

    extractor = "digits-cnn-v1"
    crops = ("center", "squash")  # the originals are square
    channels = 1

    def __init__(
        self, *, imbalance: float = 0.1, resolution: Literal[8, 16, 32] = 8, keep_one: bool = False
    ) -> None:
        check_choice("digits", "resolution", resolution, (8, 16, 32))
        self.imbalance, self.resolution = imbalance, resolution
        self._counts = profile(POOL, len(CLASSES), imbalance, keep_one=keep_one)
        require_images(self._counts, CLASSES, POOL, imbalance)

    @property
    def classes(self) -> tuple[str, ...]:
        return CLASSES

    @property
    def reference_id(self) -> str:
        return f"digits:held-out-balanced-{REFERENCE}"

    def counts(self) -> list[int]:
        return list(self._counts)

    def train(self) -> Images:
        return self._parts["train"]

    def reference(self) -> Images:
        return self._parts["reference"]

    def holdout(self) -> Images:
        return self._parts["holdout"]

    def missing(self) -> str | None:
        if _file() is None:
            return f"scikit-learn's {'/'.join(PLACE)} is not installed; `pip install scikit-learn` brings the digits"
        return None

    @cached_property
    def _parts(self) -> dict[str, Images]:
        images, labels = self._source()
        parts = split(labels)
        pool = parts["train"]
        parts["train"] = pool[select(labels[pool], self._counts)]
        repeat = self.resolution // 8
        big = images.repeat(repeat, axis=1).repeat(repeat, axis=2)[:, None]
        return {name: Images(big[index], labels[index], index) for name, index in parts.items()}

    def _source(self) -> tuple[np.ndarray, np.ndarray]:
        """(1797, 8, 8) uint8 in 0..255 and (1797,) int64."""
        if (path := _file()) is None:
            raise EnvironmentProblem(f"data set 'digits': {self.missing()}")
        table = np.loadtxt(path, delimiter=",", dtype=np.uint16)  # a row: 64 pixels, then the label
        scaled = (table[:, :-1] * 255 + LEVELS // 2) // LEVELS
        return scaled.astype(np.uint8).reshape(-1, 8, 8), table[:, -1].astype(np.int64)


def _file() -> Path | None:
    """What sklearn.datasets.load_digits reads: to import that takes two seconds in every process of a grid."""
    found = importlib.util.find_spec("sklearn")
    if found is None or found.origin is None:
        return None
    path = Path(found.origin).parent.joinpath(*PLACE)
    return path if path.is_file() else None


def split(labels: np.ndarray) -> dict[str, np.ndarray]:
    """Disjoint, balanced positions, class after class: train pool (104), reference (50), holdout (20) of each class.

    Held-out images are spread evenly over the source's order, because neighbours there share a writer.
    """
    parts: dict[str, list[np.ndarray]] = {"train": [], "reference": [], "holdout": []}
    held = REFERENCE + HOLDOUT
    for c in range(len(CLASSES)):
        positions = np.flatnonzero(labels == c)
        out = np.arange(held) * len(positions) // held
        to_holdout = np.arange(held) * HOLDOUT // held != (np.arange(held) + 1) * HOLDOUT // held
        parts["reference"].append(positions[out[~to_holdout]])
        parts["holdout"].append(positions[out[to_holdout]])
        parts["train"].append(np.delete(positions, out)[:POOL])
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}
