"""Fréchet distance between two sets of features (Heusel et al., arXiv 1706.08500; Dowson and Landau 1982), with its error.

|mean(a) - mean(b)|^2 + tr(A) + tr(B) - 2 tr((A B)^(1/2)), with covariances A, B divided by n - 1. With B = R R^T the last
trace is that of (R^T A R)^(1/2), a symmetric eigenproblem. Never from the eigenvalues of A B itself, which is not symmetric:
a symmetric solver returns garbage for it (toshas/torch-fidelity#46). With fewer images than dimensions it is the nuclear norm
of a matrix that has as many rows as images, and no D x D matrix is made of that set.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltbench.metrics.arrays import Features, TooFew, feature_pair
from ltbench.metrics.moments import Gaussian, Moments, all_of, fold_moments
from ltbench.metrics.sets import FOLDS, Estimate, jackknifed

Folds = NDArray[np.int64]
Wanted = Sequence[int | None]  # the folds to leave out, one value each; None leaves out none


def frechet(a: Any, b: Any) -> float:
    """The distance between `a` (n, D) and `b` (m, D), real arrays, computed in float64.

    Biased upward by about 1/n + 1/m: compare it with the same distance between real sets of the same sizes, or see
    `estimate`. Raises TooFew below 2 images, ValueError for unequal D or features that are not finite.
    """
    a, b = feature_pair(a, b, least=2, metric="Fréchet distance")
    return estimate(a, Reference(b)).value


class Reference:
    """The side that many sets are compared with: its sums and the root of its covariance are made once, when first needed.

    `features` (m, D) with `folds` (m,) in 0 .. g - 1, or None for a reference that the jackknife holds fixed. `statistics`
    stands for features that are not at hand.
    """

    def __init__(
        self,
        features: Any = None,
        folds: Folds | None = None,
        g: int = FOLDS,
        statistics: Gaussian | None = None,
    ) -> None:
        if (features is None) == (statistics is None):
            raise ValueError("a reference has either features or statistics")
        self.features, self.folds, self.g = features, folds, g
        self.statistics = statistics

    @property
    def size(self) -> tuple[float, int]:
        """(images, D); infinitely many images where only statistics of unknown n are known."""
        if self.statistics is not None:
            return self.statistics.n or np.inf, len(self.statistics.mean)
        return self.features.shape

    @functools.cached_property
    def shift(self) -> Features:
        """(D,) what both sides are centred by before they are summed."""
        if self.statistics is not None:
            return self.statistics.mean
        return np.asarray(self.features[:4096], np.float64).mean(axis=0)

    @functools.cached_property
    def _sums(self) -> tuple[Moments, list[Moments] | None]:
        if self.folds is None:
            return Moments.of(self.features, self.shift), None
        parts = fold_moments(self.features, self.folds, self.g, self.shift)
        return all_of(parts), parts

    @functools.cached_property
    def rows(self) -> _Rows:
        """The images themselves, centred, for the path that needs no sums."""
        return _Rows(self.features, self.folds)

    @functools.cached_property
    def whole(self) -> Gaussian:
        """Mean and covariance of all images."""
        return self.statistics or self._sums[0].gaussian()

    @functools.cached_property
    def root(self) -> Features:
        """(D, D) R with R R^T = `whole.cov`."""
        return root_of(self.whole.cov)

    def without(self, fold: int | None) -> tuple[Gaussian, Features]:
        """(Gaussian, root of its covariance) with a fold left out, or of all images; a fixed reference never changes."""
        if fold is None or self.statistics is not None or self.folds is None:
            return self.whole, self.root
        total, parts = self._sums
        assert parts is not None
        left = (total - parts[fold]).gaussian()
        return left, root_of(left.cov)


def root_of(cov: Features) -> Features:
    """R with R R^T = cov: Cholesky's where it is positive definite (a tenth of the price), else from its eigenvectors."""
    try:
        return np.linalg.cholesky(cov).astype(np.float64, copy=False)
    except np.linalg.LinAlgError:
        values, vectors = np.linalg.eigh(cov)
        return (vectors * np.sqrt(np.clip(values, 0, None))).astype(np.float64)


def between(a: Gaussian, b: Gaussian, root: Features) -> float:
    """The distance from means and covariances; `root` is that of b.cov."""
    values = np.linalg.eigvalsh(root.T @ (a.cov @ root))
    nuclear = float(np.sqrt(np.clip(values, 0, None)).sum())
    return _distance(a.mean - b.mean, np.trace(a.cov) + np.trace(b.cov), nuclear)


def _distance(shift: Features, traces: float, nuclear: float) -> float:
    return max(
        float(shift @ shift + traces - 2 * nuclear), 0.0
    )  # rounding leaves -1e-15 tr(A) for equal sets


def estimate(gen: Any, ref: Reference, folds: Folds | None = None) -> Estimate:
    """The distance of `gen` (n, D) to `ref`; with `folds` (n,), its jackknife error, its correction and the fold values.

    Fold f leaves `gen` and, where it has folds, `ref` at once, by subtraction from the sums: no image is read again. So
    `corrected` has the bias of both sample sizes removed to first order (1/n + 1/m). A fold costs one symmetric eigenproblem
    of D x D, one Cholesky factor and two products: 10 folds of 2048 dimensions about 11 times one distance. A set with fewer
    than D images is solved from its images instead (`estimator` says which way was taken). Where a fold is empty there is no
    error. Raises TooFew below 2 images.
    """
    (m, d), n = ref.size, len(gen)
    if gen.ndim != 2 or gen.shape[1] != d:
        raise ValueError(f"features of shape {gen.shape} against a reference of {d} dimensions")
    for side, size in (("first", n), ("second", m)):
        if size < 2:
            raise TooFew(f"Fréchet distance needs 2 images; the {side} set has {size:g}")
    missing = _why_no_error(folds, ref) if folds is not None else "no folds"
    wanted = [None] if missing else [None, *range(ref.g)]
    path, values = _solve(gen, ref, folds, wanted)
    found = [float(value) for value in values]
    text = f"{path}; {_error_text(missing, ref)}"
    return jackknifed(found[0], found[1:] if not missing else None, text)


def _error_text(missing: str | None, ref: Reference) -> str:
    if missing:
        return f"no error: {missing}"
    fixed = ref.folds is None
    return f"jackknife, {ref.g} folds of {'generated, reference fixed' if fixed else 'both sets'}"


def _why_no_error(folds: Folds, ref: Reference) -> str | None:
    for what, each in (("generated", folds), ("reference", ref.folds)):
        if each is None:
            continue
        sizes = np.bincount(each, minlength=ref.g)
        if not sizes.all():
            return f"{len(each)} {what} images leave one of {ref.g} folds empty"
        if len(each) - sizes.max() < 2:
            return f"{len(each)} {what} images are less than 2 without a fold"
    return None


def _solve(gen: Any, ref: Reference, folds: Folds | None, wanted: Wanted) -> tuple[str, Iterator[float]]:
    (m, d), n = ref.size, len(gen)
    if n >= d and m >= d:
        return "covariances", _by_covariances(gen, ref, folds, wanted)
    if ref.features is not None and _gram_is_cheaper(n, int(m), d, len(wanted)):
        return "Gram matrix", _by_gram(gen, ref, folds, wanted)
    if n < d:
        return "images against root", _by_root(gen, ref, folds, wanted)
    # the reference is the small side: it is projected on the root of the generated images; the distance is symmetric
    other = Reference(gen, folds, ref.g)
    return "images against root", _by_root(ref.features, other, ref.folds, wanted)


def _gram_is_cheaper(n: int, m: int, d: int, solves: int) -> bool:
    """By counting operations: one (n, m) product against sums and a factor of D x D."""
    low, high = min(n, m), max(n, m)
    gram = 2 * n * m * d + solves * 2 * low**2 * high
    root = high * d**2 + solves * (d**3 / 3 + 2 * low * d**2 + 2 * low**2 * d)
    return gram <= root


def _by_covariances(gen: Any, ref: Reference, folds: Folds | None, wanted: Wanted) -> Iterator[float]:
    side = Reference(gen, folds if len(wanted) > 1 else None, ref.g)
    side.shift = ref.shift
    total, parts = side._sums
    for fold in wanted:
        left = total if fold is None or parts is None else total - parts[fold]
        yield between(left.gaussian(), *ref.without(fold))


def _by_root(images: Any, side: Reference, folds: Folds | None, wanted: Wanted) -> Iterator[float]:
    """Nuclear norm of (images centred) R, an (n, D) matrix, where R R^T is the covariance of `side`."""
    rows = np.asarray(images, dtype=np.float64) - side.shift
    _require_finite(rows)
    for fold in wanted:
        kept = rows if fold is None or folds is None else rows[folds != fold]
        other, root = side.without(fold)
        mean = kept.mean(axis=0)
        centred = (kept - mean) / np.sqrt(len(kept) - 1)
        nuclear = np.linalg.svd(centred @ root, compute_uv=False).sum()
        shift = mean + side.shift - other.mean
        yield _distance(shift, (centred * centred).sum() + np.trace(other.cov), float(nuclear))


def _by_gram(gen: Any, ref: Reference, folds: Folds | None, wanted: Wanted) -> Iterator[float]:
    """Nuclear norm of a b^T, an (n, m) matrix made once; a fold's is the same one, less rows and columns, centred again."""
    left, right = _Rows(gen, folds), ref.rows
    products = left.rows @ right.rows.T
    for fold in wanted:
        i, j = left.kept(fold), right.kept(fold)
        part = products if fold is None else products[i][:, j]
        part = part - part.mean(axis=0) - part.mean(axis=1, keepdims=True) + part.mean()
        (mean_a, trace_a), (mean_b, trace_b) = left.spread(fold), right.spread(fold)
        nuclear = np.linalg.svd(part, compute_uv=False).sum() / np.sqrt((i.sum() - 1) * (j.sum() - 1))
        yield _distance(mean_a - mean_b, trace_a + trace_b, float(nuclear))


class _Rows:
    """Means and traces of the covariance of images (n, D) without a fold, from sums per fold."""

    def __init__(self, features: Any, folds: Folds | None) -> None:
        self.folds = np.full(len(features), -1) if folds is None else folds
        rows = np.asarray(features, dtype=np.float64)
        _require_finite(rows)
        self.mean = rows.mean(axis=0)
        self.rows = rows - self.mean
        self.squares = (self.rows * self.rows).sum(axis=1)

    def kept(self, fold: int | None) -> NDArray[np.bool_]:
        return np.ones(len(self.rows), bool) if fold is None else self.folds != fold

    def spread(self, fold: int | None) -> tuple[Features, float]:
        """(mean (D,), trace of the covariance) of the images left; all rows sum to zero, so a fold's sum is what is missing."""
        kept = self.kept(fold)
        n = kept.sum()
        mean = -self.rows[~kept].sum(axis=0) / n
        return self.mean + mean, float(self.squares[kept].sum() - n * (mean @ mean)) / (n - 1)


def _require_finite(rows: Features) -> None:
    if not np.isfinite(rows).all():
        bad = (~np.isfinite(rows).all(axis=1)).sum()
        raise ValueError(f"Fréchet distance: {bad} images have NaN or infinite features")
