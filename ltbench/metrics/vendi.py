"""Vendi score (Friedman and Dieng, arXiv 2210.02410): how many different images a set holds, without a reference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from ltbench.metrics.arrays import Features, TooFew, feature_pair, features_of
from ltbench.metrics.sets import FOLDS, Estimate, folds_of, jackknife, jackknifed

Kernel = Literal["cosine", "rbf"]
MOST = 1000  # images per class: the eigenvalues of 1,000 take 0.2 s, of 5,000 half a minute


@dataclass(frozen=True)
class ClassVendi:
    """One class: the scores of its first n images of both sets; `folds` are the ratios without each fold, None where too few remain."""

    label: int
    n: int
    generated: float
    real: float
    folds: tuple[float, ...] | None

    @property
    def ratio(self) -> float:
        return self.generated / self.real

    @property
    def se(self) -> float | None:
        return None if self.folds is None else jackknife(self.folds)


@dataclass(frozen=True)
class VendiRatio:
    """The mean over classes of the per-class ratio, and every class in order of its label."""

    estimate: Estimate
    classes: list[ClassVendi]


def vendi(features: Any, kernel: Kernel = "cosine", bandwidth: float | None = None) -> float:
    """exp of the entropy of the eigenvalues of K / n: 1 for n equal images, n for n images that share nothing.

    `features` (n, D), computed in float64. "cosine": K = x.y / |x||y|; "rbf": K = exp(-|x - y|^2 / 2 bandwidth^2), where
    `bandwidth` defaults to `real_bandwidth` of the features themselves: give it to compare two sets. Grows with n, so compare sets of one
    size. Raises TooFew without images, ValueError for bad features, kernel or bandwidth, and for an image of length 0 with "cosine".
    """
    x = features_of(features, "first", "Vendi score")
    if not len(x):
        raise TooFew("Vendi score needs 1 image; the first set has 0")
    if kernel == "cosine":
        values = _cosine_eigenvalues(x)
    elif kernel == "rbf":
        values = _rbf_eigenvalues(x, real_bandwidth(x) if bandwidth is None else bandwidth)
    else:
        raise ValueError(f"Vendi score: the kernel is 'cosine' or 'rbf', not {kernel!r}")
    values = values[values > 0]  # rounding leaves -1e-17, and 0 log 0 is 0
    return float(np.exp(-(values * np.log(values)).sum()))


def _cosine_eigenvalues(x: Features) -> NDArray[Any]:
    lengths = np.linalg.norm(x, axis=1, keepdims=True)
    if not lengths.all():
        raise ValueError("Vendi score: an image of length 0 has no direction, so no cosine")
    x = x / lengths
    gram = x @ x.T if len(x) <= x.shape[1] else x.T @ x  # the same eigenvalues, but for zeros
    return np.linalg.eigvalsh(gram / len(x))


def _rbf_eigenvalues(x: Features, bandwidth: float) -> NDArray[Any]:
    if not bandwidth > 0:
        raise ValueError(f"Vendi score: a bandwidth is above 0, not {bandwidth}")
    return np.linalg.eigvalsh(np.exp(-_squared(x) / (2 * bandwidth**2)) / len(x))


def _squared(x: Features) -> NDArray[np.float64]:
    """(n, n) squared distances; exactly 0 on the diagonal."""
    x = x - x.mean(axis=0)
    norms = (x * x).sum(axis=1)
    squared = np.clip(norms[:, None] + norms[None] - 2 * x @ x.T, 0, None)
    np.fill_diagonal(squared, 0)
    return squared


def real_bandwidth(real: Any) -> float:
    """Half the median distance between two images of `real` (n, D): two typical real images have k = exp(-2) = 0.14.

    The whole median (k = 0.6) barely separates sets, a tenth calls all images different. Of images that are all equal, 1.
    Raises TooFew below 2 images.
    """
    x = features_of(real, "first", "bandwidth")
    if len(x) < 2:
        raise TooFew(f"the bandwidth of a kernel needs 2 real images; there is {len(x)}")
    distances = np.sqrt(_squared(x)[np.triu_indices(len(x), 1)])
    return float(np.median(distances)) / 2 or float(distances.mean()) / 2 or 1.0


def vendi_ratio(
    gen: Any,
    real: Any,
    *,
    gen_labels: Any,
    real_labels: Any,
    kernel: Kernel = "rbf",
    folds_gen: Any = None,
    folds_real: Any = None,
    most: int = MOST,
) -> VendiRatio:
    """The Vendi score of every class of `gen` over that of `real`, at equal n, and the mean over classes.

    Features (n, D) and (m, D), labels ints. Of each class the first n images of both sets count, n the smaller number and at
    most `most`. 1 is as diverse as real, collapse is near 0, noise may pass 1. The RBF bandwidth of a class is that of its
    n real images and holds for both sets and all folds. Standard errors are grouped jackknives that leave fold f out of
    both sets (folds default to `folds_of` the labels). n differs between tables: compare ratios of equal n.

    Raises TooFew when a class has fewer than 2 images of either kind (no mean over fewer classes than asked for), ValueError
    for bad features, labels or kernel.
    """
    a, b = feature_pair(gen, real, least=2, metric="Vendi ratio", stored=True)
    left = _Labelled(a, gen_labels, folds_gen, "generated")
    right = _Labelled(b, real_labels, folds_real, "real")
    classes = sorted({*left.labels.tolist(), *right.labels.tolist()})
    each = [_one_class(left, right, one, kernel, most) for one in classes]
    how = f"{kernel} kernel, mean over classes"
    without = [one.folds for one in each if one.folds is not None]
    folds = None
    if len(without) == len(each):
        folds = tuple(float(np.mean(ratios)) for ratios in zip(*without, strict=True))
    else:
        short = ", ".join(str(one.label) for one in each if one.folds is None)
        how += f"; no standard error: with a fold left out under 2 images remain of class {short}"
    value = float(np.mean([one.ratio for one in each]))
    return VendiRatio(jackknifed(value, folds, how, biased=False), each)


class _Labelled:
    def __init__(self, values: Features, labels: Any, folds: Any, name: str) -> None:
        self.values, self.labels = values, np.asarray(labels, dtype=np.int64)
        if self.labels.shape != (len(values),):
            raise ValueError(
                f"Vendi ratio: {len(values)} {name} images with labels of shape {self.labels.shape}"
            )
        self.folds = folds_of(self.labels) if folds is None else np.asarray(folds, dtype=np.int64)
        if self.folds.shape != self.labels.shape:
            raise ValueError(
                f"Vendi ratio: {len(values)} {name} images with folds of shape {self.folds.shape}"
            )
        if len(self.folds) and not 0 <= self.folds.min() <= self.folds.max() < FOLDS:
            raise ValueError(f"Vendi ratio: the folds of the {name} images are ints in 0..{FOLDS - 1}")

    def first(self, one: int, n: int) -> tuple[Features, NDArray[np.int64]]:
        """The first n images of class `one` in float64, and their folds."""
        rows = np.flatnonzero(self.labels == one)[:n]
        return self.values[rows].astype(np.float64), self.folds[rows]


def _one_class(left: _Labelled, right: _Labelled, one: int, kernel: Kernel, most: int) -> ClassVendi:
    n = min(int((left.labels == one).sum()), int((right.labels == one).sum()), most)
    if n < 2:
        raise TooFew(f"Vendi ratio needs 2 generated and 2 real images of every class; class {one} has {n}")
    a, folds_a = left.first(one, n)
    b, folds_b = right.first(one, n)
    bandwidth = real_bandwidth(b) if kernel == "rbf" else None
    whole_a, whole_b = vendi(a, kernel, bandwidth), vendi(b, kernel, bandwidth)
    folds: list[float] = []
    for fold in range(FOLDS):
        keep_a, keep_b = folds_a != fold, folds_b != fold
        if min(keep_a.sum(), keep_b.sum()) < 2:
            return ClassVendi(one, n, whole_a, whole_b, None)
        if keep_a.all() and keep_b.all():
            folds.append(whole_a / whole_b)
        else:
            folds.append(vendi(a[keep_a], kernel, bandwidth) / vendi(b[keep_b], kernel, bandwidth))
    return ClassVendi(one, n, whole_a, whole_b, tuple(folds))
