"""Kernel distance: unbiased squared MMD with the cubic kernel of Bińkowski et al. (arXiv 1801.01401)."""

from __future__ import annotations

from typing import Any

from ltbench.metrics.arrays import Features, feature_pair


def kernel(a: Any, b: Any, block: int = 2048) -> float:
    """Unbiased MMD^2 over ALL pairs with k(x, y) = (x.y / D + 1)^3; about 0, of either sign, for equal distributions.

    `a` (n, D), `b` (m, D), computed in float64; sets may differ in size. The full-sample estimator needs no random
    subsets, so it works for a tail class of 50 images and has no seed. `block` rows are held at a time; it does not change
    the value beyond rounding. Raises TooFew below 2 images, ValueError for unequal D or features that are not finite.
    """
    a, b = feature_pair(a, b, least=2, metric="kernel distance")
    n, m = len(a), len(b)
    within_a = (_sum(a, a, block) - _diagonal(a)) / (n * (n - 1))
    within_b = (_sum(b, b, block) - _diagonal(b)) / (m * (m - 1))
    return float(within_a + within_b - 2 * _sum(a, b, block) / (n * m))


def _sum(a: Features, b: Features, block: int) -> float:
    total = 0.0
    for start in range(0, len(a), block):
        total += float(((a[start : start + block] @ b.T / a.shape[1] + 1) ** 3).sum())
    return total


def _diagonal(a: Features) -> float:
    return float((((a * a).sum(axis=1) / a.shape[1] + 1) ** 3).sum())
