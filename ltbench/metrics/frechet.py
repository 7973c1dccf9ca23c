"""Fréchet distance between two sets of features (Heusel et al., arXiv 1706.08500; Dowson and Landau 1982)."""

from __future__ import annotations

from typing import Any

import numpy as np

from ltbench.metrics.arrays import Features, feature_pair


def frechet(a: Any, b: Any) -> float:
    """|mean(a) - mean(b)|^2 + tr(A) + tr(B) - 2 tr((A B)^(1/2)), with covariances A, B divided by n - 1.

    `a` (n, D) and `b` (m, D) are real arrays, computed in float64. No D x D matrix is formed when a set has fewer than D
    images. Biased upward by about 1/n + 1/m: compare it with the same distance between real sets of the same sizes.
    Raises TooFew below 2 images, ValueError for unequal D or features that are not finite.
    """
    a, b = feature_pair(a, b, least=2, metric="Fréchet distance")
    shift = a.mean(axis=0) - b.mean(axis=0)
    a, b = _centred(a), _centred(b)
    root = _root_low_rank(a, b) if min(len(a), len(b)) < a.shape[1] else _root_full(a, b)
    distance = shift @ shift + (a * a).sum() + (b * b).sum() - 2 * root
    return max(float(distance), 0.0)  # rounding leaves -1e-15 tr(A) for equal sets


def _centred(x: Features) -> Features:
    """Rows whose Gram over images is the covariance: x^T x = Cov."""
    return (x - x.mean(axis=0)) / np.sqrt(len(x) - 1)


def _root_low_rank(a: Features, b: Features) -> float:
    """tr((A B)^(1/2)) is the nuclear norm of a b^T, an (n, m) matrix."""
    return float(np.linalg.svd(a @ b.T, compute_uv=False).sum())


def _root_full(a: Features, b: Features) -> float:
    """tr((A B)^(1/2)) from two symmetric eigenproblems: with B = R R^T, A B and R^T A R share their eigenvalues.

    Never from the eigenvalues of A B itself, which is not symmetric: a symmetric solver returns garbage for it
    (toshas/torch-fidelity#46).
    """
    values, vectors = np.linalg.eigh(b.T @ b)
    root = vectors * np.sqrt(np.clip(values, 0, None))
    return float(np.sqrt(np.clip(np.linalg.eigvalsh(root.T @ (a.T @ a) @ root), 0, None)).sum())
