"""Paired differences between two rows of one column: their error, and what may be concluded from it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ltbench.report.table import Column, Difference, Entry, SeedValue

RELATIVE = 0.013  # of the larger value: retraining moves a Fréchet distance by this much (arXiv 2606.20536)
FRECHET = ("FD", "sFD")
ERRORS = 2.0
_ROUNDING = 1e-9  # a standard error below this share of the difference is 0 up to rounding


def difference(a: Entry, b: Entry, column: Column) -> Difference | None:
    """`a` minus `b`, or None where they have no common seed.

    The rule, for marks and for differences against the baseline alike:
    value   the mean of the paired differences over common seeds (same data order, noise and labels in both rows). Where closer
            to zero is better, the difference of the distances from zero.
    error   between seeds, from 2 common seeds on: the standard deviation (n - 1) of the paired differences over sqrt(n).
            Between folds: the jackknife se^2 = (g - 1) / g * sum (d_f - mean d)^2, where d_f is the mean paired difference with
            fold f of the samples left out; folds are the same images' places for every method. The larger of the two counts:
            seeds that agree by luck, as two often do, do not hide the noise of the samples; their sum would count that noise
            twice. With one common seed the folds alone speak, for these two networks and not for training again.
    tie     unless |value| exceeds 2 errors and, for Fréchet distances, 1.3 % of the larger mean. Equal values are a tie.
    none    without seeds and without folds there is no error and no verdict; nor where the seeds agree to the last digit on a
            difference: that says that the metric moves in steps, not that the difference is certain.
    """
    pairs = _pairs(a, b)
    if not pairs:
        return None
    if column.better == "zero":
        gaps = [_side(x, column) * x.value - _side(y, column) * y.value for x, y in pairs]
    else:  # the same, for nearly every column
        gaps = [x.value - y.value for x, y in pairs]
    value = math.fsum(gaps) / len(gaps)
    error, source = max(
        (0.0, ""),
        (_over_seeds(gaps), "seeds"),
        (_over_folds(pairs, column), "folds"),
        key=lambda each: each[0],
    )
    known = error if error > _ROUNDING * abs(value) else None
    size = max(
        abs(math.fsum(side) / len(side)) for side in zip(*((x.value, y.value) for x, y in pairs), strict=True)
    )
    return Difference(value, known, len(pairs), source if known else "", _verdict(value, known, size, column))


def against_baselines(
    entries: Mapping[tuple[int, int, int], Entry], baselines: Sequence[int | None], columns: Sequence[Column]
) -> dict[tuple[int, int, int], Difference]:
    """(row, column, step) -> the row minus its baseline, where it has one and both have a common seed."""
    found = {}
    for i, j, step in entries:
        base = baselines[i]
        if base is not None:
            gap = difference(entries[i, j, step], entries[base, j, step], columns[j])
            if gap is not None:
                found[i, j, step] = gap
    return found


def _pairs(a: Entry, b: Entry) -> list[tuple[SeedValue, SeedValue]]:
    left, right = a.by_seed, b.by_seed
    return [(left[seed], right[seed]) for seed in sorted(left.keys() & right.keys())]


def _side(value: SeedValue, column: Column) -> float:
    """-1 turns a negative value into its distance from zero. Its folds turn with it, so that they keep their spread near 0."""
    return -1.0 if column.better == "zero" and value.value < 0 else 1.0


def _over_seeds(gaps: Sequence[float]) -> float:
    """Standard error of the mean over seeds; 0 below two."""
    n = len(gaps)
    if n < 2:
        return 0.0
    mean = math.fsum(gaps) / n
    return math.sqrt(math.fsum((gap - mean) ** 2 for gap in gaps) / (n - 1) / n)


def _over_folds(pairs: Sequence[tuple[SeedValue, SeedValue]], column: Column) -> float:
    """Jackknife error of the mean paired difference; 0 where a value has no folds or another number of them."""
    counts = {len(each.folds or ()) for both in pairs for each in both}
    if len(counts) != 1 or (g := counts.pop()) < 2:
        return 0.0
    gaps = [0.0] * g
    for x, y in pairs:
        left, right = _side(x, column) / len(pairs), _side(y, column) / len(pairs)
        gaps = [
            gap + (left * u - right * v) for gap, u, v in zip(gaps, x.folds or (), y.folds or (), strict=True)
        ]
    mean = math.fsum(gaps) / g
    return math.sqrt((g - 1) / g * math.fsum((gap - mean) ** 2 for gap in gaps))


def _verdict(value: float, error: float | None, size: float, column: Column) -> str:
    if value == 0:
        return "tie"
    if error is None:
        return ""
    if abs(value) <= ERRORS * error or (column.metric in FRECHET and abs(value) <= RELATIVE * size):
        return "tie"
    if column.better not in ("lower", "higher", "zero"):
        return "differs"
    return "better" if (value > 0) == (column.better == "higher") else "worse"
