"""Best and second best, only where seeds carry it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from ltbench.report.table import Entry

_ROUNDING = 1e-9  # a standard error below this share of the mean is 0 up to rounding


def marks(entries: Sequence[Entry], better: str) -> dict[int, str]:
    """{row: "best" | "second"} for one column; `better` is "lower" or "higher".

    A row is marked only if it beats every row below it by more than 2 standard errors of the paired difference (same seed in
    both rows), over at least 2 common seeds. A standard error of exactly 0 says that the metric moves in steps, not that the
    difference is certain, and marks nothing. A row that cannot be compared so with some row below it is not marked, and where
    there is no best there is no second. The last of two rows is never called second best.
    """
    if better not in ("lower", "higher"):
        return {}
    sign = 1.0 if better == "lower" else -1.0
    rows = [row for row, entry in enumerate(entries) if entry.mean is not None]
    ranked = sorted(rows, key=lambda row: (sign * (entries[row].mean or 0.0), row))
    found: dict[int, str] = {}
    for name, place in (("best", 0), ("second", 1)):
        below = ranked[place + 1 :]
        if not below or not all(_beats(entries[ranked[place]], entries[other], sign) for other in below):
            break
        found[ranked[place]] = name
    return found


def _beats(a: Entry, b: Entry, sign: float) -> bool:
    left, right = _by_seed(a), _by_seed(b)
    gaps = [sign * (right[seed] - left[seed]) for seed in sorted(left.keys() & right.keys())]
    if len(gaps) < 2:
        return False
    mean, error = mean_and_error(gaps)
    return error > _ROUNDING * mean and mean > 2 * error


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean and its standard error from at least 2 values, sums rounded once."""
    n = len(values)
    mean = math.fsum(values) / n
    variance = math.fsum((value - mean) ** 2 for value in values) / (n - 1)
    return mean, math.sqrt(variance / n)


def _by_seed(entry: Entry) -> Mapping[int, float]:
    return {value.seed: value.value for value in entry.values}
