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
        self._sums: dict[tuple[str, ...], Tensor] = {}  # names that come together -> (n, 2), sums and weights
        members = torch.arange(len(GROUPS), device=group_of_class.device) == group_of_class[:, None]
        self._member = torch.cat(
            [torch.ones_like(members[:, :1]), members], dim=1
        ).double()  # (K, 1 + groups)

    def add(self, terms: Mapping[str, Tensor], y: Tensor, share: float, level: Tensor | None = None) -> None:
        """Terms of one micro-batch, and what was watched, which `level` (B,) splits further; `share`: its part of the batch.

        All terms of a kind are summed at once: one by one, a step of five terms would launch two hundred kernels.
        """
        scalars = {name: term for name, term in terms.items() if term.dim() == 0}
        rows = {name: term for name, term in terms.items() if term.dim() == 1}
        if scalars:
            self._bump(tuple(scalars), _means(torch.stack(list(scalars.values())).detach().double(), share))
        if rows:
            self._add_rows(rows, y, share)
        watched = {name: term for name, term in rows.items() if name.startswith(WATCHED)}
        if watched and level is not None:
            bins = (level * LEVELS).long().clamp(0, LEVELS - 1)
            where = (bins[:, None] == torch.arange(LEVELS, device=bins.device)).double()
            names = tuple(f"{name}/level{number}" for name in watched for number in range(LEVELS))
            self._bump(names, _sums_where(_stacked(watched), where).flatten(0, 1))

    def _add_rows(self, rows: Mapping[str, Tensor], y: Tensor, share: float) -> None:
        sums = _sums_where(_stacked(rows), self._member[y])  # (terms, 1 + groups, 2)
        self._bump(tuple(rows), _means(sums[:, 0, 0] / len(y), share))
        names = tuple(f"{name}/{group}" for name in rows for group in GROUPS)
        self._bump(names, sums[:, 1:].flatten(0, 1))

    @property
    def open(self) -> dict[str, Tensor]:
        """What was added since the last window: (2,) float64 by name, a sum and its weight."""
        return {
            name: pair
            for names, pairs in self._sums.items()
            for name, pair in zip(names, pairs.unbind(), strict=True)
        }

    def empty(self) -> Curve:
        """A curve of the same groups that has seen nothing."""
        return Curve(self._group_of_class, self.every)

    def merge(self, sums: Mapping[str, Tensor]) -> None:
        """Add what other curves hold open."""
        if sums:
            self._bump(tuple(sums), torch.stack(list(sums.values())))

    def closes(self, step: int) -> bool:
        """Whether a window ends with this step."""
        return step % window(step, self.every) == 0

    def close_step(self, step: int, norm: Tensor, rate: float) -> dict[str, Any] | None:
        """Add the step's gradient norm; at the end of a window its point {step, lr, grad_norm, terms, loss}, else None."""
        self._bump(("grad_norm",), _means(norm.double()[None], 1.0))
        if not self.closes(step):
            return None
        means = self._read_means()
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
        return {"points": self.points, "open": self._read()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Continue from `state()`."""
        self.points = list(state["points"])
        device = self._group_of_class.device
        self._sums = {
            (name,): torch.tensor([pair], dtype=torch.float64, device=device)
            for name, pair in state["open"].items()
        }

    def _read(self) -> dict[str, list[float]]:
        """`open` on the host: one wait for the device."""
        names = [name for together in self._sums for name in together]
        return dict(zip(names, torch.cat(list(self._sums.values())).tolist(), strict=True)) if names else {}

    def _read_means(self) -> dict[str, float | None]:
        return {name: total / weight if weight else None for name, (total, weight) in self._read().items()}

    def _bump(self, names: tuple[str, ...], pairs: Tensor) -> None:
        """Add pairs (n, 2) to those of `names`, which usually came together before."""
        if names not in self._sums:
            apart = self.open
            known = {name: apart.pop(name) for name in names if name in apart}
            if known:  # they came in another company before: whoever is left stands alone
                self._sums = {(name,): pair[None] for name, pair in apart.items()}
                nothing = torch.zeros_like(pairs[0])
                self._sums[names] = torch.stack([known.get(name, nothing) for name in names])
        self._sums[names] = self._sums[names] + pairs if names in self._sums else pairs


def _stacked(rows: Mapping[str, Tensor]) -> Tensor:
    """(terms, B) float64."""
    return torch.stack(list(rows.values())).detach().double()


def _means(values: Tensor, share: float) -> Tensor:
    """Means (n,) over a share of a batch, as pairs (n, 2) of weighted value and weight."""
    return torch.stack([values * share, torch.full_like(values, share)], dim=1)


def _sums_where(values: Tensor, where: Tensor) -> Tensor:
    """values (n, B) and members (B, m) of 0 and 1 -> (n, m, 2): sums over the members, and how many there are."""
    sums = values @ where
    return torch.stack([sums, where.sum(0).expand_as(sums)], dim=2)


def window(step: int, every: int) -> int:
    """Steps in the window that `step` belongs to: `every`, doubled each time the run has doubled beyond `POINTS` windows."""
    return every << (step // (every * POINTS)).bit_length()
