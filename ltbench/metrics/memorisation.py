"""Does a generator copy its training images? C_T (Meehan et al., arXiv 2004.05675), train-copy rate, authenticity (Alaa et al., arXiv 2102.08921).

All three compare distances to the nearest training image with those of held-out real images. None detects memorisation
reliably (layer6ai-labs/dgm-eval), so each comes with its value on held-out real images: read it against that.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltbench.metrics.arrays import Features, TooFew, features_of
from ltbench.metrics.blocks import BLOCK, nearest
from ltbench.metrics.sets import FOLDS, Estimate, folds_of, jackknifed, ranks

COPIED_SHARE = 0.05
LEAST_FOR_SHARE = 19  # of 19 images and a new one, the new one is the nearest with chance 1/20

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]


@dataclass(frozen=True)
class Against:
    """A value on generated images and `real`, the same on held-out real ones; n_gen generated, n_ref held-out, n_train training images."""

    estimate: Estimate
    real: float
    n_gen: int
    n_ref: int
    n_train: int


@dataclass(frozen=True)
class Copying:
    """The three measures; TooFew in the place of one that the sets are too small for."""

    ct: Against | TooFew
    copied: Against | TooFew
    authenticity: Against | TooFew


def copying(
    gen: Any,
    train: Any,
    holdout: Any,
    *,
    gen_labels: Any,
    train_labels: Any,
    holdout_labels: Any,
    folds_gen: Any = None,
    folds_holdout: Any = None,
    block: int = BLOCK,
    device: str = "cpu",
) -> Copying:
    """C_T, copied and authenticity of `gen` (n, D) against `train` (t, D), the long-tailed training images, and `holdout` (h, D).

    `holdout` are real images that were not trained on; features are float32 or float64, labels ints. A class is a cell.

    ct: per class, the Mann-Whitney U of "a generated image lies farther from its class's nearest training image than a
    held-out one does" as a z-score (ties count half and shrink the variance); the mean over classes, weighted by held-out
    images. 0 is healthy; far below 0 copies, far above 0 misses the data. It grows with the root of the sample size, and the
    mean of K classes has a standard deviation below 1: -3 is many errors. The paper cuts cells by k-means and drops those
    with few generated images; ours are the classes, and none is dropped. `real` compares the held-out images of even rank
    in their class with those of odd rank.

    copied: the share of generated images at least as near to a training image (of any class) as the nearest 5 % of held-out
    images of their class are; `real` is that 5 % (r / (h + 1) for the r-th nearest of h). Where a class has fewer than 19
    held-out images, one threshold over all classes serves them all, and `estimator` says so.

    authenticity: the share of generated images that lie farther from their nearest training image (of any class) than it lies from
    its own nearest neighbour in the training set. Noise counts as authentic: high is not good by itself. `real` is the share
    of held-out images, classes weighted as in `gen`.

    Standard errors are grouped jackknives that leave fold f out of the generated and of the held-out images at once; the
    training images are given, they are what is asked about. Folds default to `folds_of` the labels. A class with one
    training image has a C_T; authenticity needs two training images in all. Raises ValueError for bad features or labels;
    what is too few for one measure stands in its place as TooFew, and the others are still given.
    """
    sets = [
        _labelled(values, labels, name)
        for values, labels, name in (
            (gen, gen_labels, "generated"),
            (train, train_labels, "training"),
            (holdout, holdout_labels, "held-out"),
        )
    ]
    if len({len(values[0]) for values, _ in sets if len(values)}) > 1:
        raise ValueError(f"features of {[values.shape[1] for values, _ in sets]} dimensions; they must agree")
    (g, g_labels), (t, t_labels), (h, h_labels) = sets
    world = _World(
        _Set(g, g_labels, _folds(folds_gen, g_labels, "generated")),
        _Set(t, t_labels, np.full(len(t), -1)),
        _Set(h, h_labels, _folds(folds_holdout, h_labels, "held-out")),
        block,
        device,
    )
    return Copying(*(_or_too_few(measure, world) for measure in (_ct, _copied, _authenticity)))


@dataclass(frozen=True)
class _Set:
    values: Features
    labels: Ints
    folds: Ints

    def __len__(self) -> int:
        return len(self.labels)

    def of(self, one: int) -> Features:
        return self.values[self.labels == one]


class _World:
    """The three sets, and their distances to the nearest training image, of any class and of their own."""

    def __init__(self, gen: _Set, train: _Set, holdout: _Set, block: int, device: str) -> None:
        self.gen, self.train, self.holdout = gen, train, holdout
        self._how: dict[str, Any] = {"block": block, "device": device}
        self.classes = [int(one) for one in np.unique(gen.labels)]
        self.refused = self._refuse()
        if self.refused is None:
            self.gen_at, self.gen_gap = nearest(gen.values, train.values, **self._how)
            self.holdout_at, self.holdout_gap = nearest(holdout.values, train.values, **self._how)

    def _refuse(self) -> TooFew | None:
        if not len(self.gen):
            return TooFew("memorisation needs 1 generated image; there is none")
        for name, part in (("training", self.train), ("held-out", self.holdout)):
            if missing := sorted(set(self.classes) - set(part.labels.tolist())):
                shown = ", ".join(map(str, missing[:10])) + (" ..." if len(missing) > 10 else "")
                return TooFew(
                    f"memorisation needs 1 {name} image of every generated class; there is none of {shown}"
                )
        if extra := sorted(set(self.holdout.labels.tolist()) - set(self.classes)):
            return TooFew(
                f"memorisation needs 1 generated image of every held-out class; there is none of {extra[0]}"
            )
        return None

    def own_gap(self, part: _Set) -> Floats:
        """(n,) distance of every image of `part` to the nearest training image of its own class."""
        gap = np.empty(len(part))
        for one in self.classes:
            gap[part.labels == one] = nearest(part.of(one), self.train.of(one), **self._how)[1]
        return gap

    def train_gap(self) -> Floats:
        """(t,) distance of every training image to its nearest neighbour in the training set."""
        return nearest(self.train.values, self.train.values, same=True, **self._how)[1]

    def against(self, value: Callable[[Mask, Mask], float], real: float, estimator: str) -> Against:
        """`value` of the generated and held-out images that two masks keep: of all of them and without each fold."""
        g, h = self.gen.folds, self.holdout.folds
        whole = value(g >= 0, h >= 0)
        try:
            folds = [value(g != f, h != f) for f in range(FOLDS)]
        except TooFew as few:
            folds, estimator = None, f"{estimator}; no standard error with a fold left out: {few}"
        estimate = jackknifed(whole, folds, estimator, biased=False)
        return Against(estimate, real, len(self.gen), len(self.holdout), len(self.train))


def _or_too_few(measure: Callable[[_World], Against], world: _World) -> Against | TooFew:
    if world.refused is not None:
        return world.refused
    try:
        return measure(world)
    except TooFew as few:
        return few


def _ct(world: _World) -> Against:
    gen_gap, real_gap = world.own_gap(world.gen), world.own_gap(world.holdout)
    g, h = world.gen, world.holdout

    def value(gen_in: Mask, real_in: Mask) -> float:
        return c_t(gen_gap[gen_in], g.labels[gen_in], real_gap[real_in], h.labels[real_in])

    even = ranks(h.labels) % 2 == 0
    real = c_t(real_gap[even], h.labels[even], real_gap[~even], h.labels[~even])
    return world.against(value, real, "mean z of classes, weighted by held-out images")


def c_t(gen_gap: Floats, gen_labels: Ints, real_gap: Floats, real_labels: Ints) -> float:
    """C_T from the distances to the nearest training image: z per class, averaged by the share of real images.

    Raises TooFew when a class has images of one kind only.
    """
    total = 0.0
    for one in np.union1d(gen_labels, real_labels):
        a, b = gen_gap[gen_labels == one], real_gap[real_labels == one]
        if not (len(a) and len(b)):
            raise TooFew(
                f"C_T needs generated and held-out images of every class, with any fold left out; class {one} has {len(a)} and {len(b)}"
            )
        total += len(b) * rank_z(a, b)
    return total / len(real_labels)


def rank_z(a: Floats, b: Floats) -> float:
    """Mann-Whitney U of a > b as a z-score: ties count half, the variance is that of the ties; no continuity correction.

    0 when all values are equal: then nothing is larger.
    """
    n, m = len(a), len(b)
    _, where, counts = np.unique(np.concatenate([a, b]), return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[where]
    u = ranks[:n].sum() - n * (n + 1) / 2
    size = float(n + m)
    tied = (counts.astype(float) ** 3 - counts).sum() / (size * (size - 1))
    variance = n * m / 12 * (size + 1 - tied)
    return float((u - n * m / 2) / np.sqrt(variance)) if variance > 0 else 0.0


def _copied(world: _World) -> Against:
    g, h = world.gen, world.holdout
    fewest = min(int((h.labels == one).sum()) - _largest_fold(h, one) for one in world.classes)
    by_class = fewest >= LEAST_FOR_SHARE
    cells = (g.labels, h.labels) if by_class else (np.zeros_like(g.labels), np.zeros_like(h.labels))

    def value(gen_in: Mask, real_in: Mask) -> float:
        return _copied_share(
            world.gen_gap[gen_in], cells[0][gen_in], world.holdout_gap[real_in], cells[1][real_in]
        )[0]

    _, real = _copied_share(world.gen_gap, cells[0], world.holdout_gap, cells[1])
    how = "threshold per class" if by_class else "one threshold for all classes"
    return world.against(value, real, f"nearest 5 % of held-out images, {how}")


def _largest_fold(part: _Set, one: int) -> int:
    return int(np.bincount(part.folds[part.labels == one]).max())


def _copied_share(
    gen_gap: Floats, gen_cells: Ints, real_gap: Floats, real_cells: Ints
) -> tuple[float, float]:
    """(share of generated images within their cell's threshold, the share expected of fresh real images)."""
    if not len(gen_gap):
        raise TooFew("the share of copied images needs 1 generated image")
    copied, expected = 0, 0.0
    for one in np.unique(gen_cells):
        gaps, own = np.sort(real_gap[real_cells == one]), gen_cells == one
        rank = int(COPIED_SHARE * (len(gaps) + 1) + 1e-9)
        if rank < 1:
            raise TooFew(
                f"the nearest 5 % of held-out images need {LEAST_FOR_SHARE} of them; there are {len(gaps)}"
            )
        copied += int((gen_gap[own] <= gaps[rank - 1]).sum())
        expected += own.sum() * rank / (len(gaps) + 1)
    return copied / len(gen_gap), float(expected / len(gen_gap))


def _authenticity(world: _World) -> Against:
    if len(world.train) < 2:
        raise TooFew(f"authenticity needs 2 training images; there is {len(world.train)}")
    g, h, train_gap = world.gen, world.holdout, world.train_gap()
    authentic = world.gen_gap > train_gap[world.gen_at]

    def value(gen_in: Mask, _real_in: Mask) -> float:
        if not gen_in.any():
            raise TooFew("authenticity needs 1 generated image")
        return float(authentic[gen_in].mean())

    fresh = world.holdout_gap > train_gap[world.holdout_at]
    real = sum(float(fresh[h.labels == one].mean() * (g.labels == one).mean()) for one in world.classes)
    return world.against(value, real, "farther from its nearest training image than that from its own")


def _labelled(values: Any, labels: Any, name: str) -> tuple[Features, Ints]:
    features = features_of(values, name, "memorisation", stored=True)
    ids = np.asarray(labels, dtype=np.int64)
    if ids.shape != (len(features),):
        raise ValueError(
            f"memorisation: {len(features)} {name} images with labels of shape {np.shape(labels)}"
        )
    return features, ids


def _folds(folds: Any, labels: Ints, name: str) -> Ints:
    if folds is None:
        return folds_of(labels)
    folds = np.asarray(folds, dtype=np.int64)
    if folds.shape != labels.shape or (len(folds) and not 0 <= folds.min() <= folds.max() < FOLDS):
        raise ValueError(
            f"the {name} set has {len(labels)} images; its folds are as many ints in 0..{FOLDS - 1}"
        )
    return folds
