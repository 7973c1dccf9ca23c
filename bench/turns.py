"""Two sides of a case in one process: they take turns, and what is told is the median of the turns' ratios.

What else the machine does meets both sides alike. Time is the process's own CPU time on a CPU, the device's between two events on
a GPU. A ratio has a standard error, from the spread of the turns. A goal travels with its number: {"value", "error" where there is
one, "at_least" or "at_most", "met"}.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch

Work = Callable[[], Any]


def seconds(work: Work, times: int, device: torch.device) -> float:
    """Time of `times` calls: this process's CPU time, or a GPU's between the events around them."""
    if device.type != "cuda":
        start = time.process_time()
        for _ in range(times):
            work()
        return time.process_time() - start
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize(device)
    start.record()
    for _ in range(times):
        work()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1e3


@dataclass(frozen=True)
class Turns:
    """Seconds of one call of every side, turn by turn."""

    by_side: dict[str, list[float]]

    def ms(self, side: str) -> float:
        """Median milliseconds of a call."""
        return round(1e3 * statistics.median(self.by_side[side]), 3)

    def ratio(self, side: str, over: str) -> float:
        """Median over the turns of the time of `side` over that of `over`."""
        return round(statistics.median(self._ratios(side, over)), 3)

    def error(self, side: str, over: str) -> float:
        """Standard error of `ratio`: of a median, from the turns' median distance to it; nothing can be said of one turn."""
        ratios = self._ratios(side, over)
        middle = statistics.median(ratios)
        spread = 1.4826 * statistics.median(abs(each - middle) for each in ratios)
        return round(1.2533 * spread / len(ratios) ** 0.5, 4) if len(ratios) > 1 else math.inf

    def _ratios(self, side: str, over: str) -> list[float]:
        return [a / b for a, b in zip(self.by_side[side], self.by_side[over], strict=True)]

    def goal(self, side: str, over: str, **bound: float) -> dict[str, Any]:
        """The ratio with its error beside what it should be, as `goal` tells it."""
        return goal(self.ratio(side, over), error=self.error(side, over), **bound)

    def told(self, ours: str = "ours") -> dict[str, Any]:
        """Milliseconds of every side, and every other side's time over ours."""
        others = [side for side in self.by_side if side != ours]
        times = {f"{side}_ms": self.ms(side) for side in self.by_side}
        turns = len(self.by_side[ours])
        return {**times, **{f"{side}_over_{ours}": self.ratio(side, ours) for side in others}, "turns": turns}


def in_turns(
    sides: Mapping[str, Work],
    device: torch.device,
    *,
    turns: int,
    times: int = 1,
    warm: int = 1,
    budget: float = 0.0,
) -> Turns:
    """Run every side `times` times per turn, forwards and backwards in the list; first `warm` calls that do not count.

    budget: seconds, in the clock of the device, that more turns are added for, so that a ratio of quick steps is worth something.
    """
    for work in sides.values():
        seconds(work, warm, device)
    found: dict[str, list[float]] = {side: [] for side in sides}
    spent, turn = 0.0, 0
    while turn < turns or spent < budget:
        for side in list(sides)[:: -1 if turn % 2 else 1]:
            took = seconds(sides[side], times, device)
            found[side].append(took / times)
            spent += took
        turn += 1
    return Turns(found)


def goal(
    value: float, *, at_least: float | None = None, at_most: float | None = None, error: float | None = None
) -> dict[str, Any]:
    """A number beside what it should be."""
    told = {"value": value} if error is None or math.isinf(error) else {"value": value, "error": error}
    if at_least is not None:
        return {**told, "at_least": at_least, "met": value >= at_least}
    assert at_most is not None, "a goal has a bound"
    return {**told, "at_most": at_most, "met": value <= at_most}


@dataclass(frozen=True)
class Judged:
    """A number that has a goal: where it stands in what was found, its standard error if one is known, the bound in words."""

    place: str
    value: float
    error: float | None
    bound: str
    met: bool

    @property
    def open(self) -> bool:
        """Whether the bound lies within two standard errors, so that another run may say the opposite."""
        return self.error is not None and abs(self.value - float(self.bound.split()[1])) <= 2 * self.error


def judged(found: Any, place: str = "") -> Iterator[Judged]:
    """Every number of a result that has a goal."""
    if not isinstance(found, Mapping):
        return
    if "met" in found and "value" in found:
        bound = f">= {found['at_least']:g}" if "at_least" in found else f"<= {found['at_most']:g}"
        yield Judged(place, found["value"], found.get("error"), bound, found["met"])
    elif isinstance(most := found.get("goal"), int | float) and "cpu_s" in found:
        yield Judged(place, found["cpu_s"], None, f"<= {most:g}", found["cpu_s"] <= most)
    for name, part in found.items():
        yield from judged(part, f"{place}.{name}" if place else str(name))


def missed(found: Mapping[str, Any]) -> list[str]:
    """Where a goal was missed, and the cases that failed."""
    failed = [name for name, told in found.items() if isinstance(told, Mapping) and "failed" in told]
    return [each.place for each in judged(found) if not each.met] + failed


def most_apart(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest absolute difference of two tensors."""
    return float((a.double() - b.double()).abs().max()) if a.numel() else 0.0


def agree(what: str, gap: float, tolerance: float) -> float:
    """The gap, shortened; an AssertionError where it is above the tolerance, for then times mean nothing."""
    if not gap <= tolerance:
        raise AssertionError(
            f"{what}: the sides are {gap:.3g} apart, allowed {tolerance:g}: their times mean nothing"
        )
    return float(f"{gap:.3g}")
