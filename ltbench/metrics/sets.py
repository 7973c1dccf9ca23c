"""Sets of features with their labels, their folds, and estimates with their errors; numpy only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FOLDS = 10


@dataclass(frozen=True)
class Estimate:
    """A value with its standard error, its bias-corrected value and the values with one fold left out, where they exist."""

    value: float
    se: float | None = None
    corrected: float | None = None
    folds: tuple[float, ...] | None = None
    estimator: str = ""


@dataclass(frozen=True)
class FeatureSet:
    """What one network pass left of n images, row k of every array being image k.

    pool: (n, D) float, may be a memmap. labels: (n,) int64 class ids. spatial: (n, S) float or None. logits: (n, K') float
    or None. Raises ValueError when the arrays do not have one row per image.
    """

    pool: NDArray[Any]
    labels: NDArray[np.int64]
    spatial: NDArray[Any] | None = None
    logits: NDArray[Any] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "labels", np.asarray(self.labels, dtype=np.int64))
        for name, array in self._arrays():
            if array.ndim != 2 or len(array) != len(self.labels) or self.labels.ndim != 1:
                raise ValueError(
                    f"{name} features of shape {array.shape} with labels of shape {self.labels.shape}: one row per image"
                )

    def __len__(self) -> int:
        return len(self.labels)

    def _arrays(self) -> Iterator[tuple[str, NDArray[Any]]]:
        for name in ("pool", "spatial", "logits"):
            if (array := getattr(self, name)) is not None:
                yield name, array

    def take(self, rows: NDArray[np.int64]) -> FeatureSet:
        """The images at positions `rows` (n',), in that order; this reads them from a memmap."""
        return FeatureSet(labels=self.labels[rows], **{name: array[rows] for name, array in self._arrays()})

    def of(self, classes: Sequence[int]) -> FeatureSet:
        """The images of `classes`, in their stored order; uncopied where they lie side by side, as in a set sorted by class."""
        rows = np.flatnonzero(np.isin(self.labels, np.asarray(classes, dtype=np.int64)))
        if len(rows) == len(self):
            return self
        if not len(rows) or rows[-1] - rows[0] + 1 != len(rows):
            return self.take(rows)
        part = slice(rows[0], rows[-1] + 1)
        return FeatureSet(labels=self.labels[part], **{name: array[part] for name, array in self._arrays()})

    def first(self, wanted: Mapping[int, int]) -> FeatureSet:
        """The first `wanted[c]` images of each class c, or as many as there are; no others."""
        limits = np.array([wanted.get(int(c), 0) for c in self.labels], dtype=np.int64)
        return self.take(np.flatnonzero(ranks(self.labels) < limits))

    def capped(self, most: int) -> FeatureSet:
        """At most `most` images, the first of every class, then the second ..., in their stored order."""
        if len(self) <= most:
            return self
        return self.take(np.sort(interleaved(self.labels)[:most]))

    def counts(self) -> dict[int, int]:
        """Images of every class that has any."""
        found, numbers = np.unique(self.labels, return_counts=True)
        return dict(zip(found.tolist(), numbers.tolist(), strict=True))

    def folds(self, g: int = FOLDS) -> NDArray[np.int64]:
        """(n,) the fold of every image; see `folds_of`."""
        return folds_of(self.labels, g)


def ranks(labels: Any) -> NDArray[np.int64]:
    """(n,) how many earlier images have the same label."""
    labels = np.asarray(labels, dtype=np.int64)
    order = np.argsort(labels, kind="stable")
    first = np.searchsorted(labels[order], labels[order])
    found = np.empty(len(labels), dtype=np.int64)
    found[order] = np.arange(len(labels)) - first
    return found


def interleaved(labels: Any) -> NDArray[np.int64]:
    """(n,) positions in an order whose every beginning holds all classes alike: the first image of each, the second of each ..."""
    return np.lexsort((np.asarray(labels), ranks(labels)))


def folds_of(labels: Any, g: int = FOLDS) -> NDArray[np.int64]:
    """(n,) fold 0 .. g - 1 of every image: (rank within its class + 7 label) mod g.

    Every class is spread over the folds evenly up to one image; the 7 starts each class elsewhere, so that a group of small
    classes fills all folds too. It depends on nothing
    else, so the folds of two methods that sampled the same labels are the same, and so are those of a class in any group.
    """
    if g < 2:
        raise ValueError(f"a jackknife needs 2 folds or more, not {g}")
    return (ranks(labels) + 7 * np.asarray(labels, dtype=np.int64)) % g


def jackknife(values: Sequence[float]) -> float:
    """Standard error from the values with one of g folds left out each."""
    g, x = len(values), np.asarray(values)
    return float(np.sqrt((g - 1) / g * ((x - x.mean()) ** 2).sum()))


def jackknifed(value: float, folds: Sequence[float] | None, estimator: str, biased: bool = True) -> Estimate:
    """The estimate with the grouped jackknife's error and, for a `biased` estimator, its correction value - (g - 1) (mean - value).

    `folds` are the values with one of g folds left out each, or None where that is undefined.
    """
    if folds is None:
        return Estimate(value, estimator=estimator)
    bias = (len(folds) - 1) * (float(np.mean(folds)) - value)
    corrected = value - bias if biased else None
    return Estimate(value, jackknife(folds), corrected, tuple(folds), estimator)
