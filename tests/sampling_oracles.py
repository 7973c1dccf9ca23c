"""Networks that are formulas, and samplers' exact moments on Gaussian data."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ltbench.diffusion import DiscreteDDPM, Process
from ltbench.sampling import sample

MU, STD = 0.7, 0.4
NULL = 2


class Oracle(nn.Module):
    """A network that is a formula of (x, t, y); it notes how it was called."""

    def __init__(self, formula: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.formula = formula
        self.part = nn.Linear(1, 1)
        self.rows = 0
        self.calls: list[tuple[Tensor, Tensor, bool, bool]] = []

    def forward(self, x: Tensor, t: Tensor, y: Tensor) -> tuple[Tensor, list[Tensor]]:
        self.rows += len(x)
        self.calls.append((t, y, self.training, torch.is_grad_enabled()))
        return self.formula(x, t, y), []


def exact_velocity(x: Tensor, s: Tensor, y: Tensor) -> Tensor:
    """E[x0 - eps | xs] for x0 ~ N(MU, STD^2)."""
    s = s.view(-1, 1, 1, 1)
    variance = (s * STD) ** 2 + (1 - s) ** 2
    return MU + (s * STD**2 - (1 - s)) / variance * (x - s * MU)


def exact_noise(mean: float, std: float) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """E[eps | xt] on the DDPM path for x0 ~ N(mean, std^2)."""
    alpha_bar = DiscreteDDPM().alpha_bar

    def formula(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        a = alpha_bar[t].view(-1, 1, 1, 1)
        return (1 - a).sqrt() * (x - a.sqrt() * mean) / (a * std**2 + 1 - a)

    return formula


def noise_of(rows: int = 3, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn((rows, 1, 4, 4), generator=torch.Generator().manual_seed(1), dtype=dtype)


def draw(
    network: nn.Module,
    process: Process,
    sampler: str,
    steps: int | None,
    noise: Tensor,
    guidance: float = 1.0,
    **more: Any,
) -> Tensor:
    labels = torch.arange(len(noise)) % NULL
    return sample(
        network,
        process,
        sampler=sampler,
        steps=steps,
        guidance=guidance,
        noise=noise,
        labels=labels,
        null=NULL,
        **more,
    )


def moments(
    formula: Callable[[Tensor, Tensor, Tensor], Tensor],
    process: Process,
    sampler: str,
    steps: int,
    noises: int,
    **more: Any,
) -> tuple[float, float]:
    """Exact mean and standard deviation of a sampler that is affine in its noises, of which it draws `noises` beside the first.

    Row 0 gets no noise at all, row k a one in noise k - 1 and zero in the others: the responses add in squares.
    """
    units = torch.eye(noises + 2, dtype=torch.float64)[:, 1:].reshape(noises + 2, noises + 1, 1, 1, 1)
    columns = iter(range(1, noises + 1))
    x = draw(
        Oracle(formula), process, sampler, steps, units[:, 0], fresh=lambda: units[:, next(columns)], **more
    ).flatten()
    assert next(columns, None) is None, "the sampler drew less noise than it was said to"
    return x[0].item(), math.sqrt(((x[1:] - x[0]) ** 2).sum().item())
