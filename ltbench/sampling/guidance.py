"""Classifier-free guidance (arXiv 2207.12598): u + w (c - u), w constant or a function of the noise level.

Levels run from 1 (noise) to 0 (data) on every pipeline. With omega = w - 1, the convention of the DDPM trees:

constant   w
linear     w (1 - level): from unconditional to w. The DDPM trees' omega scheduler: omega_t = (1 - t/T)(omega + 1) - 1.
gamma      w gamma^-level for gamma >= 1, w (1 - gamma^(1 - level)) below: the same scheduler's `gamma`, 100 by default.
cosine     1 + omega (1 + cos(pi level)): from conditional to 1 + 2 omega, omega on average over the levels. No released code has
           the paper's "cos"; this is our reading, after arXiv 2404.13040.
interval   w where low <= level <= high, else conditional alone (arXiv 2404.07724; sihyun-yu/REPA:samplers.py, high 0.7).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ltbench.diffusion import DiscreteDDPM, Process
from ltbench.sampling.forward import Ask

Answer = Callable[[Tensor, float | Tensor], Tensor]
"""The guided network at one clock value for all rows: (x (B, C, H, W), t) -> (B, C, H, W). A clock that the device has computed
is a tensor (), which the host reads only where the guidance depends on it."""

_EDGE = 1e-9  # so that 1 - 6/20 lies inside an interval that ends at 0.7


@dataclass(frozen=True)
class Guidance:
    """w at every noise level. schedule: None (constant) or {"name", parameters}. channels: how many are guided; None: all."""

    w: float
    schedule: Mapping[str, Any] | None = None
    channels: int | None = None

    def at(self, level: float) -> float:
        """w at a noise level in [0, 1]; levels outside, which dopri5's last stage reaches, count as the end they are beyond."""
        if self.schedule is None:
            return self.w
        level = min(max(level, 0.0), 1.0)
        match self.schedule["name"]:
            case "linear":
                return self.w * (1 - level)
            case "gamma":
                gamma = self.schedule["gamma"]
                return self.w * (gamma**-level if gamma >= 1 else 1 - gamma ** (1 - level))
            case "cosine":
                return 1 + (self.w - 1) * (1 + math.cos(math.pi * level))
            case "interval":
                inside = self.schedule["low"] - _EDGE <= level <= self.schedule["high"] + _EDGE
                return self.w if inside else 1.0
            case other:
                raise ValueError(f"unknown guidance schedule '{other}'")

    def rows(self, level: float) -> int:
        """Network rows per image at a level: 1 where the answer is one half alone (w = 0 or 1), else 2."""
        return 1 if self.at(level) in (0, 1) else 2


def guided(forward: Ask, guidance: Guidance, labels: Tensor, null: int, process: Process) -> Answer:
    """`forward` under guidance, both halves in one call where both are needed.

    The released SiT guides the first 3 channels and leaves the rest conditional (willisma/SiT:models.py, forward_with_cfg): that
    is `channels = 3`, which changes latents and no picture of 3 channels.
    """
    nulls = torch.full_like(labels, null)
    both_labels = torch.cat([labels, nulls])
    integer_clock = isinstance(process, DiscreteDDPM)

    def strength(t: float | Tensor) -> float:
        if guidance.schedule is None:
            return guidance.w
        return guidance.at(float(t) / DiscreteDDPM.steps if integer_clock else 1 - float(t))

    def clock(x: Tensor, t: float | Tensor, rows: int) -> Tensor:
        kind = torch.int64 if integer_clock else x.dtype
        if isinstance(t, Tensor):
            return t.to(kind).expand(rows)
        return torch.full((rows,), t, device=x.device, dtype=kind)

    def answer(x: Tensor, t: float | Tensor) -> Tensor:
        w = strength(t)
        split = guidance.channels is not None and guidance.channels < x.shape[1]
        if w == 1 or (w == 0 and not split):
            return forward(x, clock(x, t, len(x)), labels if w == 1 else nulls)
        both = forward(torch.cat([x, x]), clock(x, t, 2 * len(x)), both_labels)
        conditional, unconditional = both.chunk(2)
        mixed = unconditional + w * (conditional - unconditional)
        if split:
            mixed = torch.cat([mixed[:, : guidance.channels], conditional[:, guidance.channels :]], dim=1)
        return mixed

    return answer
