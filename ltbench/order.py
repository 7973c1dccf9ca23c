"""Which training images a step sees: a pure function of (seed, step), so resuming is a matter of knowing the step."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from ltbench import seeds


class Order:
    """The order of training images.

    Without resampling: epoch e visits every image once, in the permutation keyed by (seed, e). With resampling by factor f:
    class c has probability f^(c/(K-1)) / sum with c the rank by training count (CCUA's re-balanced batches; f is the
    imbalance the batches see), each epoch of N draws holds every class exactly N P(c) times up to largest-remainder
    rounding, and images of a class are drawn uniformly with replacement. {"factor": f, "remainder": "last"} rounds as the released
    code does: every class down, and what is missing to N goes to the rarest class.
    """

    def __init__(
        self,
        labels: np.ndarray,
        classes: int,
        *,
        seed: int,
        batch: int,
        resample: float | Mapping[str, Any] | None,
    ) -> None:
        self.size, self.seed, self.batch = len(labels), seed, batch
        self.counts = np.bincount(labels, minlength=classes)
        self.prior, self._quota = self.counts / self.counts.sum(), None
        if resample is not None:
            self.prior, self._quota = resampled(self.counts, self.size, resample)
        self._by_class = [np.flatnonzero(labels == c) for c in range(classes)]
        self._epoch = lru_cache(maxsize=2)(self._make_epoch)

    def indices(self, step: int) -> np.ndarray:
        """(batch,) int64 positions in the training set of step 1, 2, ...; shard j of size g owns [j g, (j + 1) g)."""
        start = (step - 1) * self.batch
        position = np.arange(start, start + self.batch)
        epochs, offsets = np.divmod(position, self.size)
        parts = [self._epoch(int(epoch))[offsets[epochs == epoch]] for epoch in np.unique(epochs)]
        return np.concatenate(parts)

    def _make_epoch(self, epoch: int) -> np.ndarray:
        shuffled = seeds.permutation(self.seed, "data", "epoch", epoch, n=self.size)
        if self._quota is None:
            return shuffled
        labels = np.repeat(np.arange(len(self._quota)), self._quota)[shuffled]
        u = seeds.stream(self.seed, "data", "within", epoch).random(self.size)
        picked = np.empty(self.size, dtype=np.int64)
        for c, members in enumerate(self._by_class):
            slots = labels == c
            picked[slots] = members[(u[slots] * len(members)).astype(np.int64)]
        return picked


def resampled(
    counts: np.ndarray, total: int, resample: float | Mapping[str, Any]
) -> tuple[np.ndarray, np.ndarray]:
    """(probabilities (K,) as batches see them, draws per epoch (K,) int64, `total` in all) of a `resample` setting."""
    if not isinstance(resample, Mapping):
        prior = resampled_prior(counts, resample)
        return prior, largest_remainder(prior, total)
    quota = remainder_last(resampled_prior(counts, resample["factor"]), total, int(_by_count(counts)[-1]))
    return quota / total, quota


def _by_count(counts: np.ndarray) -> np.ndarray:
    """Classes that have images, from the most frequent to the rarest, ties by id."""
    return np.argsort(-counts, kind="stable")[: np.count_nonzero(counts)]


def resampled_prior(counts: np.ndarray, factor: float) -> np.ndarray:
    """(K,) class probabilities factor^(rank/(K-1)) / sum; rank 0 is the most frequent class, ties by id.

    A class without images has none to draw: its probability is 0 and K counts the others.
    """
    ranked = _by_count(counts)
    weights = np.zeros(len(counts))
    weights[ranked] = np.power(float(factor), np.arange(len(ranked)) / max(1, len(ranked) - 1))
    return weights / weights.sum()


def remainder_last(shares: np.ndarray, total: int, last: int) -> np.ndarray:
    """(K,) whole numbers that sum to `total`: each share rounded down, the rest to class `last` (CCUA's released resampling)."""
    # A share that is whole but for rounding (98 * 1/49) must not lose an image.
    whole = np.floor(shares * total + 1e-9).astype(np.int64)
    whole[last] += total - int(whole.sum())
    return whole


def largest_remainder(shares: np.ndarray, total: int) -> np.ndarray:
    """(K,) whole numbers that sum to `total`, each its share rounded down or up, the largest remainders up, ties by id."""
    exact = shares * total
    whole = np.floor(exact).astype(np.int64)
    up = np.argsort(-(exact - whole), kind="stable")[: total - int(whole.sum())]
    whole[up] += 1
    return whole
