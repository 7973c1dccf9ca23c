"""Precision and recall (Kynkäänniemi et al., arXiv 1904.06991), density and coverage (Naeem et al., arXiv 2002.09797)."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from ltbench.metrics.arrays import Features, feature_pair
from ltbench.metrics.blocks import (
    BLOCK,
    ROUNDING,
    HalfOverflow,
    Points,
    Precision,
    between,
    centre,
    full_precision,
    own_lists,
)
from ltbench.metrics.sets import FOLDS, Estimate, jackknifed

if TYPE_CHECKING:
    from torch import Tensor

Boundary = Literal["<=", "<"]
KINDS = ("precision", "recall", "density", "coverage")


@dataclass(frozen=True)
class Neighbours:
    """The four shares of one comparison. Density alone may pass 1."""

    precision: Estimate
    recall: Estimate
    density: Estimate
    coverage: Estimate


def prdc(
    gen: Any,
    ref: Any,
    *,
    k: int = 3,
    boundary: Boundary = "<=",
    dtype: Precision = "float64",
    block: int = BLOCK,
    folds_gen: Any = None,
    folds_ref: Any = None,
    device: str = "cpu",
) -> Neighbours:
    """Precision, recall, density and coverage of `gen` (n, D) against `ref` (m, D), from one pass over their distances.

    A ball's radius is the distance to the k-th nearest neighbour in its own set, itself excluded. precision: the share of
    `gen` inside some ball of `ref`; recall: of `ref` inside some ball of `gen`; density: how many balls of `ref` hold a
    generated image, over k; coverage: the share of balls of `ref` that hold one. Swapping the sets swaps precision and recall.

    `boundary` "<=" counts a tie as inside (Kynkäänniemi, ADM, torch-fidelity), "<" as outside (the prdc and fld libraries);
    they differ for duplicates alone. `dtype` "fp16-adm" computes as ADM's evaluator does, which raises recall by 0.002 to
    0.003: float16 distances, a point its own neighbour of index 0; ADM's reference is 10,000 images, the caller's choice.
    Features may be float32, float64 or memory maps, and are read `block` rows at a time: beyond them the peak is a few
    block x block buffers and, per image, (FOLDS + 1)(k + 3) numbers; 50,000 by 50,000 stays far below 2 GB.

    `folds_gen` (n,) and `folds_ref` (m,), ints in 0..FOLDS-1, give standard errors by the grouped jackknife; a set without
    folds counts as fixed. With both, fold f leaves both sets at once, radii included, which measures the error of sampling
    both: precision and density average over `gen` and their balls come from `ref`, recall and coverage the other way round,
    so neither set may be treated as known. That error is on the safe side: 1.3 to 2 times the spread over fresh draws of both
    sets (8-d normal, 300 to 2,000 images), since a radius jumps when a neighbour goes. Folds of `gen` alone miss the
    reference's share, a third of density's. Two methods measured against one reference share its folds, so the error of
    their difference comes out right too. `corrected` stays None: the bias of a neighbour count is no multiple of 1/n.

    Raises TooFew when a set has no k neighbours (n <= k), ValueError for bad features, folds, k or boundary. A comparison
    that loses its k neighbours with a fold left out has a value and no `se`; `estimator` says so.
    """
    if k < 1:
        raise ValueError(f"precision and recall need k >= 1, not {k}")
    if boundary not in ("<=", "<"):
        raise ValueError(f"a boundary is '<=' or '<', not {boundary!r}")
    a, b = feature_pair(gen, ref, least=k + 1, metric=f"precision and recall at k = {k}", stored=True)
    fold_a, fold_b = _folds(folds_gen, len(a), "generated"), _folds(folds_ref, len(b), "reference")
    missing = _why_no_error(k, fold_a, fold_b)
    left_out = FOLDS if missing is None else 0

    how, used = _How(k, boundary, dtype, block, device, left_out), str(dtype)
    try:
        values = _count(a, b, fold_a, fold_b, how)
    except HalfOverflow:
        used = "float32, since float16 overflowed"
        values = _count(a, b, fold_a, fold_b, replace(how, precision="float32"))
    return _estimates(values, f"k = {k}, {boundary}, {used}; {missing or _what_is_left_out(fold_a, fold_b)}")


def precision_recall(gen: Any, ref: Any, k: int = 3, block: int = BLOCK) -> tuple[float, float]:
    """(precision, recall) of `prdc`, with ties inside, in float64 and without errors."""
    found = prdc(gen, ref, k=k, block=block)
    return found.precision.value, found.recall.value


Folds = NDArray[np.int64]  # (n,); all -1 for a set that is never left out


def _folds(folds: Any, n: int, what: str) -> Folds:
    if folds is None:
        return np.full(n, -1)
    folds = np.asarray(folds)
    if folds.shape != (n,) or folds.min() < 0 or folds.max() >= FOLDS:
        raise ValueError(f"the {what} set has {n} images; its folds are as many ints in 0..{FOLDS - 1}")
    return folds.astype(np.int64)


def _why_no_error(k: int, *sets: Folds) -> str | None:
    """Why a standard error cannot be had, or None."""
    if all((folds < 0).all() for folds in sets):
        return "no folds, so no standard error"
    kept = min(len(folds) - _sizes(folds).max() for folds in sets)
    if kept <= k:
        return f"no standard error: with a fold left out {kept} images remain, and k = {k} needs {k + 1}"
    if all(len(np.unique(folds[folds >= 0])) < 2 for folds in sets):
        return "no standard error: all images are in one fold"
    return None


def _sizes(folds: Folds) -> NDArray[np.int64]:
    return np.bincount(folds[folds >= 0], minlength=FOLDS)


def _what_is_left_out(fold_a: Folds, fold_b: Folds) -> str:
    names = [name for name, folds in (("generated", fold_a), ("reference", fold_b)) if folds[0] >= 0]
    return f"jackknife over {FOLDS} folds of {' and '.join(names)}"


@dataclass(frozen=True)
class _How:
    """What one comparison is computed with; `left_out` is the number of folds that are left out in turn."""

    k: int
    boundary: Boundary
    precision: Precision
    block: int
    device: str
    left_out: int


class _Side:
    """One set sorted by fold, with its squared radii (1 + left_out, n): row 0 of the whole set, row f + 1 without fold f.

    A radius without fold f means nothing for the points of f; `kept` (1 + left_out, n) leaves them out of that row's counts.
    """

    def __init__(self, values: Features, folds: Folds, shift: NDArray[np.float64], how: _How) -> None:
        import torch

        order = np.argsort(folds, kind="stable")
        self.points = Points(values, shift, how.precision, order, how.device)
        self.folds = torch.from_numpy(folds[order]).to(how.device)
        fixed = how.left_out == 0 or bool((folds < 0).all())
        cuts = np.array([0, len(folds)]) if fixed else np.r_[0, np.cumsum(_sizes(folds))]
        itself = how.precision == "fp16-adm"
        lists = own_lists(self.points, cuts, how.k + itself, how.block, itself=itself)
        without = range(how.left_out)
        self.radii = torch.stack(
            [lists.kth(how.k + itself, fold) for fold in (None, *(None if fixed else f for f in without))]
        )
        everyone = torch.ones_like(self.folds, dtype=torch.bool)
        self.kept = torch.stack([everyone, *(self.folds != fold for fold in without)])

    def reach(self, slack: float) -> Tensor:
        """(n,) the largest squared radius of every point, with `slack`: no ball of the point holds anything beyond it."""
        return self.radii.where(self.kept, 0).max(dim=0).values + slack


class _Tally:
    """Who was found inside what, for the whole sets (row 0) and without each fold (rows 1..)."""

    def __init__(self, gen: _Side, ref: _Side, how: _How) -> None:
        import torch

        self.gen, self.ref, self.k, self.strict = gen, ref, how.k, how.boundary == "<"
        self.inside_ref = torch.zeros_like(gen.kept)  # generated images inside a ball of ref
        self.covered = torch.zeros_like(ref.kept)  # balls of ref that hold a generated image
        self.inside_gen = torch.zeros_like(ref.kept)  # reference images inside a ball of gen
        self.pairs = torch.zeros(
            len(gen.kept), dtype=torch.int64
        )  # generated images in balls of ref, counted each

    def see(self, i: Tensor, j: Tensor, squared: Tensor, slack: Tensor) -> None:
        """Take in pairs of a generated image i and a reference image j: indices and squared distances, (p,) each."""
        for row in range(len(self.pairs)):
            both = self.gen.kept[row, i] & self.ref.kept[row, j]
            held = both & self._inside(squared, self.ref.radii[row, j], slack)
            self.inside_ref[row, i[held]] = True
            self.covered[row, j[held]] = True
            self.pairs[row] += int(held.sum())
            held = both & self._inside(squared, self.gen.radii[row, i], slack)
            self.inside_gen[row, j[held]] = True

    def _inside(self, squared: Tensor, radii: Tensor, slack: Tensor) -> Tensor:
        return squared < radii - slack if self.strict else squared <= radii + slack

    def values(self) -> dict[str, list[float]]:
        """The four shares, of the whole sets and then without each fold."""
        n, m = self.gen.kept.sum(dim=1).cpu(), self.ref.kept.sum(dim=1).cpu()
        found = {
            "precision": self.inside_ref.sum(dim=1).cpu() / n.double(),
            "recall": self.inside_gen.sum(dim=1).cpu() / m.double(),
            "density": self.pairs / (self.k * n.double()),
            "coverage": self.covered.sum(dim=1).cpu() / m.double(),
        }
        return {kind: values.tolist() for kind, values in found.items()}


@full_precision()
def _count(
    gen: Features, ref: Features, fold_gen: Folds, fold_ref: Folds, how: _How
) -> dict[str, list[float]]:
    """The shares from both sets' radii and one pass over the distances between them."""
    shift = centre(ref)
    a, b = _Side(gen, fold_gen, shift, how), _Side(ref, fold_ref, shift, how)
    norm_a, norm_b = a.points.norms, b.points.norms
    rounding = ROUNDING[how.precision]
    most = rounding * float(norm_a.max() + norm_b.max())
    reach_a, reach_b = a.reach(most), b.reach(most)
    tally = _Tally(a, b, how)
    for rows, cols, tile in between(a.points, b.points, how.block):
        # few pairs are near, so that everything after this line is cheap
        i, j = ((tile <= reach_b[None, cols]) | (tile <= reach_a[rows, None])).nonzero(as_tuple=True)
        squared, i, j = tile[i, j], i + rows.start, j + cols.start
        tally.see(i, j, squared, rounding * (norm_a[i] + norm_b[j]).to(squared.dtype))
    return tally.values()


def _estimates(values: dict[str, list[float]], estimator: str) -> Neighbours:
    def one(kind: str) -> Estimate:
        whole, *folds = values[kind]
        return jackknifed(whole, folds or None, estimator, biased=False)

    return Neighbours(*(one(kind) for kind in KINDS))
