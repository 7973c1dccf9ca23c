"""Loss terms, gradient norm and rate as data: means over windows of `every` steps, exact across interruptions."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ltbench.methods import WATCHED

GROUPS = ("head", "body", "tail")
LEVELS = 5  # bins of noise level for what a method watches: level0 is [0, 0.2), level4 is [0.8, 1]


POINTS = 500  # windows of the first length; after them the length doubles whenever the run's length does


class Curve:
    """Accumulates on the device in float64; the host reads once per window.

    Where a window ends depends on the step alone, and an open window travels in the checkpoint: whatever was interrupted
    where, the points are those of an uninterrupted run, bit for bit. Windows grow with the run (`window`), so that a record
    of 900,000 steps stays as small as one of 10,000.
    """

    def __init__(self, group_of_class: Tensor, every: int) -> None:
        self.every, self._group_of_class = every, group_of_class
        self.points: list[dict[str, Any]] = []
        self._sums: dict[str, Tensor] = {}

    def add(self, terms: Mapping[str, Tensor], y: Tensor, share: float, level: Tensor | None = None) -> None:
        """Terms of one micro-batch, and what was watched, which `level` (B,) splits further; `share`: its part of the batch."""
        groups = self._group_of_class[y]
        for name, term in terms.items():
            term = term.detach().double()
            self._bump(name, torch.stack([term.mean() * share, torch.as_tensor(share, device=term.device)]))
            if term.dim() == 1:
                for number, group in enumerate(GROUPS):
                    self._bump_rows(f"{name}/{group}", term, groups == number)
            if name.startswith(WATCHED) and level is not None:
                bins = (level * LEVELS).long().clamp(0, LEVELS - 1)
                for number in range(LEVELS):
                    self._bump_rows(f"{name}/level{number}", term, bins == number)

    @property
    def open(self) -> dict[str, Tensor]:
        """What was added since the last window: (2,) float64 by name, a sum and its weight."""
        return dict(self._sums)

    def empty(self) -> Curve:
        """A curve of the same groups that has seen nothing."""
        return Curve(self._group_of_class, self.every)

    def merge(self, sums: Mapping[str, Tensor]) -> None:
        """Add what other curves hold open."""
        for name, pair in sums.items():
            self._bump(name, pair)

    def close_step(self, step: int, norm: Tensor, rate: float) -> dict[str, Any] | None:
        """Add the step's gradient norm; at the end of a window its point {step, lr, grad_norm, terms, loss}, else None."""
        self._bump("grad_norm", torch.stack([norm.double(), torch.ones_like(norm, dtype=torch.float64)]))
        if step % window(step, self.every):
            return None
        means = {name: _mean(pair) for name, pair in self._sums.items()}
        self._sums = {}
        point = {"step": step, "lr": rate, "grad_norm": means.pop("grad_norm"), "terms": means}
        point["loss"] = sum(v for name, v in means.items() if "/" not in name and v is not None)
        self.points.append(point)
        return point

    def columns(self) -> dict[str, Any]:
        """The points as columns; a group that a window did not see is None there."""
        names = sorted({name for point in self.points for name in point["terms"]})
        return {
            "step": [point["step"] for point in self.points],
            "loss": [point["loss"] for point in self.points],
            "grad_norm": [point["grad_norm"] for point in self.points],
            "lr": [point["lr"] for point in self.points],
            "terms": {name: [point["terms"].get(name) for point in self.points] for name in names},
        }

    def state(self) -> dict[str, Any]:
        """JSON-able: Python floats keep every bit."""
        return {"points": self.points, "open": {name: pair.tolist() for name, pair in self._sums.items()}}

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from `state()`."""
        self.points = list(state["points"])
        device = self._group_of_class.device
        self._sums = {
            name: torch.tensor(pair, dtype=torch.float64, device=device)
            for name, pair in state["open"].items()
        }

    def _bump_rows(self, name: str, term: Tensor, rows: Tensor) -> None:
        mask = rows.double()
        self._bump(name, torch.stack([(term * mask).sum(), mask.sum()]))

    def _bump(self, name: str, pair: Tensor) -> None:
        self._sums[name] = self._sums[name] + pair if name in self._sums else pair


def window(step: int, every: int) -> int:
    """Steps in the window that `step` belongs to: `every`, doubled each time the run has doubled beyond `POINTS` windows."""
    return every << (step // (every * POINTS)).bit_length()


def _mean(pair: Tensor) -> float | None:
    total, weight = pair.tolist()
    return total / weight if weight else None
