"""Running sums of features: what is added block by block can be merged, and a fold subtracted, without reading an image again."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltbench.metrics.arrays import Features, TooFew

BLOCK = 4096  # rows turned into float64 at a time


@dataclass(frozen=True)
class Gaussian:
    """What the Fréchet distance knows of a set: mean (D,) and cov (D, D) in float64, and n images where that is known."""

    mean: Features
    cov: Features
    n: int | None = None


@dataclass(frozen=True)
class Moments:
    """n images, the sum (D,) of x - shift, and the sum (D, D) of (x - shift)(x - shift)^T, in float64.

    The shift is fixed before the first image and near the mean, so that the covariance is no small difference of large sums.
    Sums of one shift add and subtract; the order of images changes them by rounding alone (about 1e-15 n^(1/2) of their
    size). `cov` after a subtraction is as good as that of the images left, while those are not a vanishing share.
    """

    n: int
    shift: Features
    total: Features
    scatter: Features

    @staticmethod
    def zero(shift: Any) -> Moments:
        """Nothing yet, around `shift` (D,)."""
        shift = np.asarray(shift, dtype=np.float64)
        return Moments(0, shift, np.zeros_like(shift), np.zeros((len(shift), len(shift))))

    @staticmethod
    def of(features: Any, shift: Any = None, block: int = BLOCK) -> Moments:
        """Sums of `features` (n, D), read `block` rows at a time; the shift is by default the mean of the first block."""
        parts = (features[start : start + block] for start in range(0, len(features), block))
        return Moments.stream(
            parts, np.asarray(features[:block], np.float64).mean(axis=0) if shift is None else shift
        )

    @staticmethod
    def stream(blocks: Iterable[Any], shift: Any) -> Moments:
        """Sums over an iterable of (b, D) blocks, around `shift` (D,). Raises ValueError for NaN or infinite features."""
        found = Moments.zero(shift)
        n, total, scatter = 0, found.total, found.scatter
        for rows in blocks:
            centred = np.asarray(rows, dtype=np.float64) - found.shift
            if not np.isfinite(centred).all():
                bad = np.flatnonzero(~np.isfinite(centred).all(axis=1))
                raise ValueError(
                    f"{len(bad)} images have NaN or infinite features, the first at {n + bad[0]}"
                )
            n += len(centred)
            total += centred.sum(axis=0)
            scatter += centred.T @ centred
        return Moments(n, found.shift, total, scatter)

    def __add__(self, other: Moments) -> Moments:
        """Sums of both sets. Raises ValueError for another shift or number of dimensions."""
        self._check(other)
        return Moments(self.n + other.n, self.shift, self.total + other.total, self.scatter + other.scatter)

    def __sub__(self, other: Moments) -> Moments:
        """Sums without the images of `other`, which are part of this set. Raises ValueError for another shift or too many images."""
        self._check(other)
        if other.n > self.n:
            raise ValueError(f"{other.n} images cannot be taken from {self.n}")
        return Moments(self.n - other.n, self.shift, self.total - other.total, self.scatter - other.scatter)

    def _check(self, other: Moments) -> None:
        if not np.array_equal(self.shift, other.shift):
            raise ValueError("sums around different shifts do not add: make both around one, the reference's")

    @property
    def mean(self) -> Features:
        """(D,) mean of the images."""
        return self.shift + self.total / self.n

    @property
    def cov(self) -> Features:
        """(D, D) covariance, divided by n - 1. Raises TooFew below 2 images."""
        if self.n < 2:
            raise TooFew(f"a covariance needs 2 images; there are {self.n}")
        return (self.scatter - np.outer(self.total, self.total / self.n)) / (self.n - 1)

    def gaussian(self) -> Gaussian:
        """Mean and covariance. Raises TooFew below 2 images."""
        return Gaussian(self.mean, self.cov, self.n)


def fold_moments(features: Any, folds: NDArray[np.int64], g: int, shift: Features) -> list[Moments]:
    """Sums of each of the folds 0 .. g - 1 of `features` (n, D); `folds` (n,). Their sum is that of the whole set."""
    return [_rows_moments(features, np.flatnonzero(folds == f), shift) for f in range(g)]


def _rows_moments(features: Any, rows: NDArray[np.int64], shift: Features) -> Moments:
    return Moments.stream((features[rows[i : i + BLOCK]] for i in range(0, len(rows), BLOCK)), shift)


def all_of(parts: Iterable[Moments]) -> Moments:
    """The sums of all parts together, at least one."""
    first, *rest = parts
    n, total, scatter = first.n, first.total.copy(), first.scatter.copy()
    for part in rest:
        first._check(part)
        n += part.n
        total += part.total
        scatter += part.scatter
    return Moments(n, first.shift, total, scatter)
