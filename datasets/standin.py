"""What `--smoke` trains on in the place of a data set that is large, or not here: the embedded Fashion-MNIST, in its format.

Real images with as many classes and channels and about the resolution of the real set, long-tailed, in a second. Its numbers
say that a benchmark runs, and nothing about any method.
"""

from __future__ import annotations

import colorsys
from functools import cached_property
from typing import Literal

import numpy as np

from ltbench.datasets import Dataset, Images, UsageError, check_choice, read_asset
from ltbench.datasets.longtail import profile

ASSET = "fashion-mnist-lt.npz"
ASSET_SHA256 = "beb8a43c6e6f3ead227a84e64ecdbe531e099082e213c3c19af1ff0b650916f5"
SOURCE_CLASSES, PER_CLASS, SIDE = (
    10,
    250,
    32,
)  # balanced images of the cut (its reference and holdout), padded to 32
LARGEST, REFERENCE, HOLDOUT = 24, 20, 10  # images per class, where there are few enough classes
MOST = 250  # classes; each then has ten images
RESOLUTIONS = (32, 64, 128, 256)
GOLDEN = 0.618034  # of a turn: neighbouring classes have hues far apart


class Standin(Dataset):
    """Long-tailed clothes as a stand-in: class k is the garment k mod 10, in colour tinted by k; classes of one garment share no image.

    classes: 3 to 250. channels: 1 or 3. imbalance: smallest over largest class; every class keeps at least one image.
    resolution: 32 (native size, padded), or each pixel repeated to 64, 128 or 256.
    """

    extractor = "fashion-cnn-v1"
    crops = ("center", "squash")  # the originals are square

    def __init__(
        self,
        *,
        classes: int = 10,
        channels: Literal[1, 3] = 3,
        imbalance: float = 0.1,
        resolution: Literal[32, 64, 128, 256] = 32,
    ) -> None:
        check_choice("standin", "channels", channels, (1, 3))
        check_choice("standin", "resolution", resolution, RESOLUTIONS)
        if not 3 <= classes <= MOST:
            raise UsageError(f"data set 'standin': classes is {classes}; allowed: 3 to {MOST}")
        self.channels, self.resolution = channels, resolution
        own = PER_CLASS // -(-classes // SOURCE_CLASSES)
        self._holdout_size, self._reference_size = min(HOLDOUT, own // 5), min(REFERENCE, own * 2 // 5)
        largest = min(LARGEST, own - self._holdout_size - self._reference_size)
        self._counts = profile(largest, classes, imbalance, keep_one=True)

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(
            f"garment {k % SOURCE_CLASSES}, kind {k // SOURCE_CLASSES}" for k in range(len(self._counts))
        )

    @property
    def reference_id(self) -> str:
        return f"standin-{len(self._counts)}x{self.channels}:held-out-balanced-{self._reference_size}"

    def counts(self) -> list[int]:
        return list(self._counts)

    def train(self) -> Images:
        return self._images(self._holdout_size + self._reference_size, self._counts)

    def reference(self) -> Images:
        return self._images(self._holdout_size, [self._reference_size] * len(self._counts))

    def holdout(self) -> Images:
        return self._images(0, [self._holdout_size] * len(self._counts))

    def _images(self, start: int, sizes: list[int]) -> Images:
        """`sizes[k]` images of every class k, from the `start`-th of its own on."""
        images, labels, index = self._cut
        rows = []
        for k, size in enumerate(sizes):
            own = np.flatnonzero(labels == k % SOURCE_CLASSES)[
                k // SOURCE_CLASSES :: -(-len(sizes) // SOURCE_CLASSES)
            ]
            rows.append(own[start : start + size])
        chosen, classes = np.concatenate(rows), np.repeat(np.arange(len(sizes)), sizes)
        return Images(self._drawn(images[chosen], classes), classes.astype(np.int64), index[chosen])

    def _drawn(self, grey: np.ndarray, classes: np.ndarray) -> np.ndarray:
        """(n, 28, 28) uint8 -> (n, C, R, R) uint8: padded, enlarged, and in colour multiplied by the class's tint."""
        repeat = self.resolution // SIDE
        square = np.pad(grey, ((0, 0), (2, 2), (2, 2))).repeat(repeat, axis=1).repeat(repeat, axis=2)[:, None]
        if self.channels == 1:
            return np.ascontiguousarray(square)
        tints = np.array([colorsys.hsv_to_rgb(k * GOLDEN % 1, 0.5, 1.0) for k in range(len(self._counts))])
        return (square * tints[classes][:, :, None, None]).round().astype(np.uint8)

    @cached_property
    def _cut(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Images (2500, 28, 28) uint8, garments, places in the source's test split: the balanced, held-out images of the cut."""
        cut = read_asset(ASSET, ASSET_SHA256)
        images, labels, index = (
            np.concatenate([cut[f"{part}_{what}"] for part in ("reference", "holdout")])
            for what in ("images", "labels", "index")
        )
        return images, labels, index.astype(np.int64)
