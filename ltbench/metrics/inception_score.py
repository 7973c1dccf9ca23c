"""Inception score (Salimans et al., arXiv 1606.03498) from the logits of any classifier: exp of the mean KL(p(y|x) | p(y))."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltbench.metrics.arrays import Features, TooFew
from ltbench.metrics.sets import Estimate, interleaved, jackknifed

Folds = NDArray[np.int64]


@dataclass(frozen=True)
class ISRule:
    """How images are cut into chunks, whose scores are averaged: `splits` equal chunks, or chunks of `chunk` images.

    ADM's evaluator takes chunks of 5000, on logits without bias (an extractor's matter); torch-fidelity 10 splits. The two
    agree at 50,000 images alone. `seed` shuffles before: a file sorted by class has one class per chunk and scored 1.05 where
    7.60 was true. Exactly one of `splits` and `chunk` is given.
    """

    splits: int | None = 10
    chunk: int | None = None
    seed: int = 2020

    def __post_init__(self) -> None:
        if (self.splits is None) == (self.chunk is None) or (self.splits or self.chunk or 0) < 1:
            raise ValueError(
                f"an IS rule has either splits or chunk, from 1 up, not {self.splits} and {self.chunk}"
            )

    def bounds(self, n: int) -> list[tuple[int, int]]:
        """(start, end) of every chunk of n images; of chunks of a given size the last may be shorter, as in ADM."""
        if self.chunk is not None:
            return [(start, min(start + self.chunk, n)) for start in range(0, n, self.chunk)]
        assert self.splits is not None
        return [(i * n // self.splits, (i + 1) * n // self.splits) for i in range(self.splits)]

    def text(self) -> str:
        """The rule in words."""
        cut = f"chunks of {self.chunk}" if self.chunk is not None else f"{self.splits} splits"
        return f"{cut}, shuffled with seed {self.seed}"


SPLITS_10 = ISRule()
ADM = ISRule(splits=None, chunk=5000)


def inception_score(logits: Any, rule: ISRule = SPLITS_10, labels: Any = None) -> float:
    """The score of `logits` (n, K), float, computed in float64; 1 is the least, K the most.

    With `labels` (n,) the images are first put into an order that depends on labels and ranks within a class alone, so a file
    sorted by class and the same one shuffled give the same value; without, the order of the rows counts, as in torch-fidelity.
    Raises TooFew where a chunk would be empty, ValueError for other shapes and NaN or infinite logits.
    """
    p, log_p = _probabilities(logits)
    order = _shuffled(len(p), rule, labels)
    return _score(p[order], log_p[order], rule)


def estimate(logits: Any, rule: ISRule, labels: Any, folds: Folds | None = None, g: int = 10) -> Estimate:
    """`inception_score` with the jackknife over `folds` (n,) of the images; the score of the rest is cut by the same rule.

    The correction removes the bias of few images per chunk, which lowers the score.
    """
    p, log_p = _probabilities(logits)
    order = _shuffled(len(p), rule, labels)
    p, log_p = p[order], log_p[order]
    value = _score(p, log_p, rule)
    sizes = np.zeros(1) if folds is None else np.bincount(folds, minlength=g)
    if folds is None or not sizes.all() or len(rule.bounds(len(p) - int(sizes.max()))) > len(p) - sizes.max():
        return jackknifed(value, None, f"{rule.text()}; no error: a fold is empty or leaves too few images")
    kept = [folds[order] != f for f in range(g)]
    left = [_score(p[rows], log_p[rows], rule) for rows in kept]
    return jackknifed(value, left, f"{rule.text()}; jackknife, {g} folds")


def _shuffled(n: int, rule: ISRule, labels: Any) -> NDArray[np.int64]:
    canonical = np.arange(n) if labels is None else interleaved(labels)
    return canonical[np.random.RandomState(rule.seed).permutation(n)]


def _probabilities(logits: Any) -> tuple[Features, Features]:
    logits = np.asarray(logits, dtype=np.float64)
    if logits.ndim != 2 or not np.isfinite(logits).all():
        raise ValueError(f"logits are finite and (images, classes); these have shape {logits.shape}")
    shifted = logits - logits.max(axis=1, keepdims=True)
    log_p = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return np.exp(log_p), log_p


def _score(p: Features, log_p: Features, rule: ISRule) -> float:
    bounds = rule.bounds(len(p))
    if not bounds or min(end - start for start, end in bounds) < 1:
        raise TooFew(f"{rule.text()} needs {rule.splits or 1} images; there are {len(p)}")
    return float(np.mean([_chunk(p[start:end], log_p[start:end]) for start, end in bounds]))


def _chunk(p: Features, log_p: Features) -> float:
    with np.errstate(divide="ignore", invalid="ignore"):  # a class that no image has: 0 log 0 is 0
        kl = np.where(p > 0, p * (log_p - np.log(p.mean(axis=0))), 0.0)
    return float(np.exp(kl.sum(axis=1).mean()))
