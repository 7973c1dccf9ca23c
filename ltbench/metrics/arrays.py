"""Checks that every metric on features makes before it computes."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Features = NDArray[np.float64]


class TooFew(ValueError):
    """A set holds too few images for the metric to be defined; the text says how many it needs."""


def feature_pair(
    a: Any, b: Any, least: int, metric: str, *, stored: bool = False
) -> tuple[Features, Features]:
    """`a` (n, D) and `b` (m, D) as finite float64 arrays with n, m >= `least`.

    With `stored`, float32 arrays and memory maps stay as they are, for metrics that read them a block at a time.
    Raises TooFew for small sets, ValueError for other shapes and for NaN or infinite features.
    """
    left, right = features_of(a, "first", metric, stored), features_of(b, "second", metric, stored)
    if left.shape[1] != right.shape[1]:
        raise ValueError(
            f"{metric}: features of {left.shape[1]} and {right.shape[1]} dimensions; they must agree"
        )
    for side, array in (("first", left), ("second", right)):
        if len(array) < least:
            raise TooFew(f"{metric} needs {least} images; the {side} set has {len(array)}")
    return left, right


def features_of(values: Any, side: str, metric: str, stored: bool = False) -> Features:
    """The `side` set of `metric` as a finite array (n, D); float64, or with `stored` float32 where it is. Raises ValueError."""
    array = np.asarray(values)
    if not (stored and array.dtype == np.float32):
        array = array.astype(np.float64, copy=False)
    if array.ndim != 2 or array.shape[1] == 0:
        raise ValueError(
            f"{metric}: the {side} set has shape {array.shape}; features are (images, dimensions)"
        )
    if not np.isfinite(array).all():
        rows = np.flatnonzero(~np.isfinite(array).all(axis=1))
        raise ValueError(f"{metric}: {len(rows)} images of the {side} set have NaN or infinite features")
    return array
