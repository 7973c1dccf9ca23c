"""A series as a line of a terminal."""

from __future__ import annotations

import math
import sys
from collections.abc import Sequence

BLOCKS, PLAIN = "▁▂▃▄▅▆▇█", "_.-=+*#@"
WIDTH = 48  # characters of a line


def spark(values: Sequence[float | None], width: int = WIDTH) -> str:
    """The values as heights between their least and largest, in at most `width` characters (means of neighbours); x: not finite.

    Plain characters where the output cannot write blocks.
    """
    signs = BLOCKS if (sys.stdout.encoding or "").lower().startswith("utf") else PLAIN
    points = _thinned(values, width)
    known = [point for point in points if point is not None]
    if not known:
        return "x" * len(points)
    low, high = min(known), max(known)
    scale = (len(signs) - 1) / (high - low) if high > low else 0.0
    return "".join("x" if point is None else signs[round((point - low) * scale)] for point in points)


def _thinned(values: Sequence[float | None], width: int) -> list[float | None]:
    size = max(1, math.ceil(len(values) / width))
    return [_mean(values[start : start + size]) for start in range(0, len(values), size)]


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if isinstance(value, int | float) and math.isfinite(value)]
    return sum(known) / len(known) if len(known) == len(values) else None


def line(name: str, steps: Sequence[int], values: Sequence[float | None]) -> tuple[str, str, str, str]:
    """(name, first value, picture, last value) of a series, for a table."""
    first, last = (
        next((f"{v:.4g}" for v in each if isinstance(v, int | float)), "x") for each in (values, values[::-1])
    )
    return name, first, spark(values), f"{last} at {steps[-1]}" if steps else last
