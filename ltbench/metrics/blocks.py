"""Squared distances between sets of features, one tile at a time: 50,000 by 50,000 without a large matrix.

torch is imported when a distance is computed, not with the module, so that reading the names of metrics stays fast.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from ltbench.metrics.arrays import Features

if TYPE_CHECKING:
    from torch import Tensor

Precision = Literal["float64", "float32", "fp16-adm"]
BLOCK = 2048

# Distances come from |x|^2 + |y|^2 - 2 x.y, whose last bits depend on how BLAS blocks the product. Values within this share of
# the squared norms are a tie, so that duplicates and block sizes cannot move a metric. ADM's evaluator knows no such ties.
ROUNDING: dict[Precision, float] = {"float64": 1e-12, "float32": 3e-7, "fp16-adm": 0.0}


@contextmanager
def full_precision() -> Iterator[None]:
    """No TF32 or bfloat16 inside float32 products: their 10 and 8 bits would decide who is a neighbour."""
    import torch

    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)


class HalfOverflow(ArithmeticError):
    """A float16 distance is not finite."""


class Points:
    """(n, D) features in a given order, centred and converted one block at a time; `norms` (n,) are squared lengths."""

    def __init__(
        self,
        values: Features,
        shift: NDArray[np.float64],
        precision: Precision,
        order: NDArray[np.int64] | None = None,
        device: str = "cpu",
    ) -> None:
        if precision not in ROUNDING:
            raise ValueError(f"distances are computed in {', '.join(ROUNDING)}, not {precision!r}")
        self.values, self.shift, self.precision, self.device = values, shift, precision, device
        self.order = np.arange(len(values)) if order is None else order
        self.norms = self._norms()

    def __len__(self) -> int:
        return len(self.order)

    def rows(self, part: slice) -> Tensor:
        """(r, D) points of `part`: float64 or float32, less the shift; for ADM rounded to float16 and not shifted."""
        import torch

        block = np.asarray(self.values[self.order[part]])
        if self.precision == "fp16-adm":
            return torch.from_numpy(block).to(self.device).half().float()
        exact = block.astype(np.float64, copy=False) - self.shift
        return torch.from_numpy(exact.astype(self.precision, copy=False)).to(self.device)

    def _norms(self) -> Tensor:
        import torch

        blocks = [torch.zeros(0, dtype=torch.float64, device=self.device)]
        for part in parts(len(self), BLOCK):
            rows = self.rows(part)
            squares = rows * rows
            if self.precision == "fp16-adm":
                squares = squares.half()
            blocks.append(squares.double().sum(dim=1))
        norms = torch.cat(blocks)
        return {"float64": norms, "float32": norms.float(), "fp16-adm": norms.half()}[self.precision]


def parts(n: int, block: int) -> Iterator[slice]:
    """range(n) in slices of at most `block`."""
    if block < 1:
        raise ValueError(f"a block holds 1 row or more, not {block}")
    return (slice(start, min(start + block, n)) for start in range(0, n, block))


def centre(values: Features) -> NDArray[np.float64]:
    """(D,) mean of the points, read a block at a time. Distances do not change with the origin; their rounding does."""
    total = np.zeros(values.shape[1])
    for part in parts(len(values), BLOCK):
        total += values[part].sum(axis=0, dtype=np.float64)
    return total / len(values)


def between(a: Points, b: Points, block: int) -> Iterator[tuple[slice, slice, Tensor]]:
    """Every tile of squared distances: (rows of a, rows of b, (r, c) distances)."""
    for rows in parts(len(a), block):
        left = a.rows(rows)
        for cols in parts(len(b), block):
            yield rows, cols, _tile(left, a.norms[rows], b.rows(cols), b.norms[cols])


def within(a: Points, block: int) -> Iterator[tuple[slice, slice, Tensor]]:
    """The tiles on and above the diagonal of the distances of a set to itself; the others are their transposes."""
    for rows in parts(len(a), block):
        left = a.rows(rows)
        for cols in parts(len(a), block):
            if cols.start >= rows.start:
                yield rows, cols, _tile(left, a.norms[rows], a.rows(cols), a.norms[cols])


def _tile(left: Tensor, left_norms: Tensor, right: Tensor, right_norms: Tensor) -> Tensor:
    """(r, c) squared distances. Norms in float16 mean ADM's: the product is rounded to float16, then every sum is.

    (openai/guided-diffusion evaluations/evaluator.py, which adds in this order. It repeats a 10,000 by 10,000 block in
    float32 when it overflows; here the whole metric is, so that the value does not depend on the block.)
    """
    import torch

    if left_norms.dtype != torch.float16:
        tile = torch.addmm(right_norms[None], left, right.T, alpha=-2)
        return tile.add_(left_norms[:, None]).clamp_(min=0)
    product = (left @ right.T).half()
    tile = (left_norms[:, None] - 2 * product + right_norms[None]).clamp_(min=0)
    if not bool(torch.isfinite(tile).all()):
        raise HalfOverflow("float16 distances overflow")
    return tile.float()


class Lists:
    """The `depth` smallest distances of every point to each fold of a set that is sorted by fold.

    Kept per fold, they give the distance to a k-th neighbour with any one fold left out, exactly and from one pass.
    `cuts` (g + 1,) are the borders of the folds in the sorted set.
    """

    def __init__(self, n: int, cuts: NDArray[np.int64], depth: int, like: Tensor) -> None:
        self.cuts, self.depth = cuts, depth
        self.best = like.new_full((n, len(cuts) - 1, depth), float("inf"))

    def see(self, rows: slice, cols: slice, tile: Tensor) -> None:
        """Take in the distances (r, c) of the points `rows` to the members `cols`."""
        import torch

        for fold, (low, high) in enumerate(zip(self.cuts[:-1], self.cuts[1:], strict=True)):
            low, high = max(int(low), cols.start), min(int(high), cols.stop)
            if low >= high:
                continue
            part = tile[:, low - cols.start : high - cols.start]
            found = part.topk(min(self.depth, high - low), largest=False, sorted=False).values
            both = torch.cat([self.best[rows, fold], found], dim=1)
            self.best[rows, fold] = both.topk(self.depth, largest=False, sorted=False).values

    def kth(self, k: int, without: int | None = None) -> Tensor:
        """(n,) the k-th smallest distance of every point, of all folds or of all but one."""
        lists = self.best
        if without is not None:
            lists = lists.clone()
            lists[:, without] = float("inf")
        return lists.flatten(1).kthvalue(k).values


def own_lists(points: Points, cuts: NDArray[np.int64], depth: int, block: int, itself: bool) -> Lists:
    """Lists of a set in itself; a point is its own neighbour only with `itself` (ADM counts it, as float16 leaves it near 0)."""
    lists: Lists | None = None
    for rows, cols, tile in within(points, block):
        if lists is None:
            lists = Lists(len(points), cuts, depth, tile)
        if rows == cols:
            if not itself:
                tile.fill_diagonal_(float("inf"))
        else:
            lists.see(cols, rows, tile.T)
        lists.see(rows, cols, tile)
    assert lists is not None
    return lists


def nearest(
    a: Any, b: Any, block: int = BLOCK, *, same: bool = False, device: str = "cpu"
) -> tuple[Any, Any]:
    """Of every point of `a` (n, D) its nearest in `b` (m, D): (index (n,) int64, distance (n,) float64).

    The distance is computed again from the difference of the two, so that equal images are at exactly 0. With `same`, b is a
    and a point is not its own neighbour.
    """
    import torch

    shift = centre(b)
    left, right = Points(a, shift, "float64", device=device), Points(b, shift, "float64", device=device)
    best = torch.full((len(left),), float("inf"), dtype=torch.float64, device=device)
    index = torch.zeros(len(left), dtype=torch.int64, device=device)
    for rows, cols, tile in between(left, right, block):
        if same and rows == cols:
            tile.fill_diagonal_(float("inf"))
        found, where = tile.min(dim=1)
        closer = found < best[rows]
        best[rows] = torch.where(closer, found, best[rows])
        index[rows] = torch.where(closer, where + cols.start, index[rows])
    chosen = index.cpu().numpy()
    distance = np.empty(len(left))
    for part in parts(len(left), block):
        gap = a[part].astype(np.float64) - b[chosen[part]].astype(np.float64)
        distance[part] = np.sqrt((gap * gap).sum(axis=1))
    return chosen, distance
