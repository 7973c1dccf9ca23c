"""Figures that say where they come from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

BASES = ("measured", "scaled", "estimated")  # the better first; a sum is as good as its worst part


@dataclass(frozen=True)
class Figure:
    """Seconds, and how they are known. sources: what was measured, scaled or assumed, for people."""

    seconds: float
    basis: str
    sources: tuple[str, ...] = ()

    def __mul__(self, times: float) -> Figure:
        return Figure(self.seconds * times, self.basis, self.sources)

    def json(self) -> dict[str, Any]:
        """For `--json`."""
        return {"seconds": self.seconds, "basis": self.basis, "sources": list(self.sources)}


NO_TIME = Figure(0.0, BASES[0])


def total(figures: Iterable[Figure]) -> Figure:
    """Their sum; what takes no time says nothing about it."""
    parts = [figure for figure in figures if figure.seconds]
    if not parts:
        return NO_TIME
    sources = tuple(dict.fromkeys(source for figure in parts for source in figure.sources))
    return Figure(sum(f.seconds for f in parts), max((f.basis for f in parts), key=BASES.index), sources)
