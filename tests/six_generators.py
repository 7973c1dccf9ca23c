"""Six generators of known virtue in feature space: 3 tail classes, 32 dimensions, 13 training images and 500 generated each.

A class is a normal cloud around its own mean. "oracle" draws fresh images, "half copies" half the time; the others copy, collapse,
mix or blur. What each must score is in test_six_generators.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

CLASSES, D, TRAIN, MANY = 3, 32, 13, 500
NOISE = 0.05  # of a copy, where an image of the class has 1


@dataclass(frozen=True)
class Labelled:
    values: np.ndarray
    labels: np.ndarray


def _rng(seed: int, name: str, label: int) -> np.random.Generator:
    return np.random.default_rng([seed, label, *name.encode()])


def _per_class(draw: Callable[[int], np.ndarray]) -> Labelled:
    parts = [draw(label) for label in range(CLASSES)]
    labels = np.repeat(np.arange(CLASSES), [len(part) for part in parts])
    return Labelled(np.concatenate(parts), labels)


class World:
    """Training, reference and held-out images, and a method per generator."""

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed
        self.means = np.random.default_rng([seed, 99]).normal(size=(CLASSES, D)) * 3
        self.train = self.real("train", TRAIN)
        self.reference = self.real("reference", MANY)
        self.holdout = self.real("holdout", MANY)
        self.generators = {
            "oracle": self.real("oracle", MANY),
            "copies": self.copies("copies", TRAIN, MANY),
            "collapse": self.copies("collapse", 3, MANY),
            "mixtures": self.mixtures(),
            "blur": self.blur(),
            "half copies": self.half(),
        }

    def real(self, name: str, n: int) -> Labelled:
        return _per_class(lambda c: self.means[c] + _rng(self.seed, name, c).normal(size=(n, D)))

    def trained(self, label: int) -> np.ndarray:
        return self.train.values[self.train.labels == label]

    def copies(self, name: str, of: int, n: int) -> Labelled:
        """Training images, of the first `of`, with a little noise."""

        def draw(label: int) -> np.ndarray:
            rng = _rng(self.seed, name, label)
            return self.trained(label)[rng.integers(of, size=n)] + NOISE * rng.normal(size=(n, D))

        return _per_class(draw)

    def mixtures(self) -> Labelled:
        """Points between several training images of a class, weights from Dirichlet(1/2)."""

        def draw(label: int) -> np.ndarray:
            weights = _rng(self.seed, "mixtures", label).dirichlet(np.full(TRAIN, 0.5), size=MANY)
            return weights @ self.trained(label)

        return _per_class(draw)

    def blur(self) -> Labelled:
        """Fresh real images with noise of 0.6 of their own size on top."""
        fresh = self.real("blurred", MANY)
        noise = _per_class(lambda c: 0.6 * _rng(self.seed, "blur", c).normal(size=(MANY, D)))
        return Labelled(fresh.values + noise.values, fresh.labels)

    def half(self) -> Labelled:
        """At random a fresh real image or a copy; in turn would set whole folds apart, since folds go by rank in class."""
        fresh, copied = self.real("half", MANY), self.copies("half copies", TRAIN, MANY)
        coin = np.random.default_rng([self.seed, 98]).random(len(fresh.labels)) < 0.5
        return Labelled(np.where(coin[:, None], copied.values, fresh.values), fresh.labels)
