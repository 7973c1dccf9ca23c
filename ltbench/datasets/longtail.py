"""Long-tailed cuts of a balanced source: the LDAM profile and selection (Cao et al., arXiv 1906.07413; kaidic/LDAM-DRW:
imbalance_cifar.py), the construction of CBDM, OC_LT and CCUA too.

Class c of K keeps the first n_c = int(n_max * imbalance ** (c / (K - 1))) images of its shuffled index list. Classes keep the
source's label order (class 0 is the largest), and the shuffle does not depend on n_c: a smaller imbalance value gives a subset.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from ltbench.errors import UsageError


def profile(
    n_max: float,
    classes: int,
    imbalance: float,
    sizes: Sequence[int] | None = None,
    keep_one: bool = False,
) -> list[int]:
    """(K,) images per class, truncated towards zero as the released code does; a class may get 0 (see `require_images`).

    n_max: size of the largest class, N / K of the source (a float there). imbalance: smallest over largest, in (0, 1].
    sizes: (K,) images that the source holds per class, where they differ; no class gets more. keep_one: a class that the rule
    leaves empty gets one image.
    """
    if classes < 1 or n_max < 1:
        raise UsageError(
            f"a profile needs at least one class and one image, got {classes} classes and n_max {n_max}"
        )
    if not 0 < imbalance <= 1:
        raise UsageError(f"imbalance is {imbalance}; allowed: above 0 (most skewed) up to 1 (balanced)")
    if sizes is not None and len(sizes) != classes:
        raise ValueError(f"{len(sizes)} sizes for {classes} classes; give one per class")
    # The order of operations is upstream's: another one truncates some classes differently.
    counts = [int(n_max * imbalance ** _position(c, classes)) for c in range(classes)]
    counts = [max(1, count) for count in counts] if keep_one else counts
    return counts if sizes is None else [min(count, size) for count, size in zip(counts, sizes, strict=True)]


def _position(c: int, classes: int) -> float:
    """0 for the first class, 1 for the last."""
    return c / (classes - 1.0) if classes > 1 else 0.0


def select(labels: np.ndarray, counts: Sequence[int], seed: int = 0) -> np.ndarray:
    """(sum of counts,) int64 positions in `labels`: class after class, inside a class in shuffled order.

    labels: (N,) integers in [0, K). counts: (K,), limited to what each class holds; images and labels are both taken with the
    positions returned, so they cannot shift against each other as in the released ImageFolder code.
    """
    if labels.size and not 0 <= labels.min() <= labels.max() < len(counts):
        raise ValueError(
            f"labels run from {labels.min()} to {labels.max()}, but there are counts for {len(counts)} classes"
        )
    # The legacy generator on purpose, not ltbench.seeds: the published subsets are defined by its shuffle, run once over each
    # class's full list in label order.
    legacy = np.random.RandomState(seed)
    kept = []
    for c, count in enumerate(counts):
        positions = np.flatnonzero(labels == c)
        legacy.shuffle(positions)
        kept.append(positions[:count])
    return np.concatenate(kept).astype(np.int64)


def require_images(counts: Sequence[int], names: Sequence[str], n_max: float, imbalance: float) -> None:
    """Raise UsageError if a class of the profile is empty, naming the classes and the smallest imbalance that fills them.

    The released code would go on and crash, or divide by zero, in losses that weight by class frequency.
    """
    empty = [c for c, count in enumerate(counts) if count < 1]
    if not empty:
        return
    shown = ", ".join(f"{names[c]}: {n_max * imbalance ** _position(c, len(names)):.3g}" for c in empty)
    raise UsageError(
        f"imbalance {imbalance} leaves {len(empty)} of {len(names)} classes without a training image "
        f"(images before truncation: {shown})",
        f"use imbalance {smallest_imbalance(n_max, len(names))} or more: the smallest that keeps every class "
        f"when the largest has {n_max:g} images; or say `keep_one: true`, which gives each of these classes one image",
    )


def smallest_imbalance(n_max: float, classes: int) -> float:
    """The smallest imbalance of at most three significant digits whose profile leaves no class empty."""
    limit = 1.0 / n_max  # the last class gets int(n_max * imbalance)
    unit = 10.0 ** (math.floor(math.log10(limit)) - 2)
    first = math.floor(limit / unit)
    near = (float(f"{(first + i) * unit:.2e}") for i in range(3))
    return next((value for value in near if value <= 1.0 and min(profile(n_max, classes, value)) >= 1), 1.0)
