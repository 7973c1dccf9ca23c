"""Checks that every metric on features makes before it computes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.float64]


class TooFew(ValueError):
    """A set holds too few images for the metric to be defined; the text says how many it needs."""


def feature_pair(a: Any, b: Any, least: int, metric: str) -> tuple[Features, Features]:
    """`a` (n, D) and `b` (m, D) as finite float64 arrays with n, m >= `least`.

    Raises TooFew for small sets, ValueError for other shapes and for NaN or infinite features.
    """
    left, right = _features(a, "first", metric), _features(b, "second", metric)
    if left.shape[1] != right.shape[1]:
        raise ValueError(
            f"{metric}: features of {left.shape[1]} and {right.shape[1]} dimensions; they must agree"
        )
    for side, array in (("first", left), ("second", right)):
        if len(array) < least:
            raise TooFew(f"{metric} needs {least} images; the {side} set has {len(array)}")
    return left, right


def _features(values: Any, side: str, metric: str) -> Features:
    array = np.asarray(values, dtype=np.float64)
    if array.ndim != 2 or array.shape[1] == 0:
        raise ValueError(
            f"{metric}: the {side} set has shape {array.shape}; features are (images, dimensions)"
        )
    if not np.isfinite(array).all():
        rows = np.flatnonzero(~np.isfinite(array).all(axis=1))
        raise ValueError(f"{metric}: {len(rows)} images of the {side} set have NaN or infinite features")
    return array
