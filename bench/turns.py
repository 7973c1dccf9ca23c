"""Two sides of a case in one process: they take turns, and what is told is the median of the turns' ratios.

What else the machine does meets both sides alike. Time is the process's own CPU time on a CPU, the device's between two events on
a GPU. A goal travels with its number: {"value", "at_least" or "at_most", "met"}.
"""

from __future__ import annotations

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
        pairs = zip(self.by_side[side], self.by_side[over], strict=True)
        return round(statistics.median(a / b for a, b in pairs), 3)

    def told(self, ours: str = "ours") -> dict[str, Any]:
        """Milliseconds of every side, and every other side's time over ours."""
        others = [side for side in self.by_side if side != ours]
        times = {f"{side}_ms": self.ms(side) for side in self.by_side}
        return {**times, **{f"{side}_over_{ours}": self.ratio(side, ours) for side in others}}


def in_turns(
    sides: Mapping[str, Work], device: torch.device, *, turns: int, times: int = 1, warm: int = 1
) -> Turns:
    """Run every side `times` times per turn, forwards and backwards in the list; first `warm` calls that do not count."""
    for work in sides.values():
        seconds(work, warm, device)
    found: dict[str, list[float]] = {side: [] for side in sides}
    for turn in range(turns):
        for side in list(sides)[:: -1 if turn % 2 else 1]:
            found[side].append(seconds(sides[side], times, device) / times)
    return Turns(found)


def goal(value: float, *, at_least: float | None = None, at_most: float | None = None) -> dict[str, Any]:
    """A number beside what it should be."""
    if at_least is not None:
        return {"value": value, "at_least": at_least, "met": value >= at_least}
    assert at_most is not None, "a goal has a bound"
    return {"value": value, "at_most": at_most, "met": value <= at_most}


def missed(found: Any, place: str = "") -> Iterator[str]:
    """Where in a result a goal was missed."""
    if isinstance(found, Mapping):
        slow = isinstance(bound := found.get("goal"), int | float) and found.get("cpu_s", 0.0) > bound
        if slow or found.get("met") is False:
            yield place
        for name, part in found.items():
            yield from missed(part, f"{place}.{name}" if place else str(name))


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
