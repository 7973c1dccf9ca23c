"""Figures that say where they come from."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

BASES = ("measured", "scaled", "estimated")  # the better first; a sum is as good as its worst part
SLIGHT = 0.02  # share of a sum below which a part does not decide that


@dataclass(frozen=True)
class Figure:
    """Seconds, and how they are known. sources: (basis, what was measured, scaled or assumed, for people)."""

    seconds: float
    basis: str
    sources: tuple[tuple[str, str], ...] = ()

    def __mul__(self, times: float) -> Figure:
        return Figure(self.seconds * times, self.basis, self.sources)

    def json(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "seconds": self.seconds,
            "basis": self.basis,
            "sources": [told(*source) for source in self.sources],
        }


def figure(seconds: float, basis: str, source: str) -> Figure:
    """A figure with one source."""
    return Figure(seconds, basis, ((basis, source),))


def told(basis: str, source: str) -> dict[str, str]:
    """For `--json`."""
    return {"basis": basis, "source": source}


NO_TIME = Figure(0.0, BASES[0])


def total(figures: Iterable[Figure]) -> Figure:
    """Their sum; what takes next to no time of it says nothing about how well it is known."""
    parts = [figure for figure in figures if figure.seconds]
    if not parts:
        return NO_TIME
    sources = tuple(dict.fromkeys(source for figure in parts for source in figure.sources))
    seconds = sum(each.seconds for each in parts)
    bases = [each.basis for each in parts if each.seconds >= SLIGHT * seconds]
    return Figure(seconds, max(bases, key=BASES.index), sources)
