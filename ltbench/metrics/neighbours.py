"""Precision and recall from k-nearest-neighbour balls (Kynkäänniemi et al., arXiv 1904.06991)."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltbench.metrics.arrays import Features, feature_pair

# Distances come from |x|^2 + |y|^2 - 2 x.y, whose last bits depend on how BLAS blocks the product. A tie within this share of
# the squared norms counts as inside (`<=`), so that duplicates and block sizes cannot move the value.
_ROUNDING = 1e-12


def precision_recall(gen: Any, ref: Any, k: int = 3, block: int = 2048) -> tuple[float, float]:
    """(precision, recall): the share of `gen` inside the balls of `ref`, and the share of `ref` inside the balls of `gen`.

    `gen` (n, D), `ref` (m, D), computed in float64. A ball's radius is the distance to the k-th nearest neighbour in its own
    set, itself excluded; the boundary is inside. Swapping the arguments swaps the values. Real against real is far from 1
    (0.67 at k = 3 in 32 dimensions), so print the floor beside it. Raises TooFew when a set has no k neighbours (n <= k).
    """
    if k < 1:
        raise ValueError(f"precision and recall need k >= 1, not {k}")
    gen, ref = feature_pair(gen, ref, least=k + 1, metric=f"precision and recall at k = {k}")
    return (
        _share_inside(gen, ref, _radii(ref, k, block), block),
        _share_inside(ref, gen, _radii(gen, k, block), block),
    )


def _squared_distances(rows: Features, others: Features) -> tuple[Features, Features]:
    """(r, m) squared distances and the rounding allowed in each."""
    scale = (rows * rows).sum(axis=1)[:, None] + (others * others).sum(axis=1)[None]
    return np.clip(scale - 2 * rows @ others.T, 0, None), _ROUNDING * scale


def _radii(points: Features, k: int, block: int) -> NDArray[np.float64]:
    """(n,) squared distance of every point to its k-th neighbour among the others."""
    radii = np.empty(len(points))
    for start in range(0, len(points), block):
        rows = points[start : start + block]
        distances, _ = _squared_distances(rows, points)
        distances[np.arange(len(rows)), start + np.arange(len(rows))] = np.inf
        radii[start : start + len(rows)] = np.partition(distances, k - 1, axis=1)[:, k - 1]
    return radii


def _share_inside(points: Features, centres: Features, radii: NDArray[np.float64], block: int) -> float:
    inside = 0
    for start in range(0, len(points), block):
        distances, rounding = _squared_distances(points[start : start + block], centres)
        inside += int((distances <= radii[None] + rounding).any(axis=1).sum())
    return inside / len(points)
