"""The flow's SDE, as released (willisma/SiT:transport; arXiv 2401.08740), with one network evaluation per drift.

dx = (v + g score) ds + sqrt(2 g) dW from s = 0 (noise) on, score = (s v - x) / (1 - s). The released code asks the network once for
v and again for the score; both follow from one answer. `steps` counts as there: a grid of `steps` points, so steps - 1 intervals
from s = 0 to 1 - last_step_size, and then the last step. REPA's sampler (sihyun-yu/REPA:samplers.py: clock r = 1 - s, diffusion
2 r, one mean step from r = 0.04) is this one with diffusion `sigma` and last step `mean`.

diffusion  g(s)
sigma      norm (1 - s); `linear` is the same function on this path
SBDM       norm (1 - s) / s: infinite at s = 0, where the released code starts for velocities and ends in NaN; here it starts at
           s = 1e-3, the released command line's --sample-eps, which its transport forgets
constant   norm
decreasing (norm cos(pi s) + 1)^2 / 4
increasing-decreasing  norm sin(pi s)^2 (the released table misspells the key, so its own command line refuses it)

last step  of size h, from 1 - h to 1, without noise
mean       x + h (v + g score)
euler      x + h v
tweedie    E[x0 | x], on this path the same as euler up to rounding
none       nothing: the grid itself ends at s = 1
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

from torch import Tensor

from ltbench.sampling.guidance import Answer

SAMPLERS = ("sde-euler", "sde-heun")
SBDM_START = 1e-3

Fresh = Callable[[], Tensor]
"""The standard normal noise (B, C, H, W) of the next noisy step, row k from image k's own stream."""


def diffusion_at(form: str, norm: float, s: float) -> float:
    """g(s)."""
    match form:
        case "sigma" | "linear":
            return norm * (1 - s)
        case "SBDM":
            return norm * (1 - s) / s
        case "constant":
            return norm
        case "decreasing":
            return 0.25 * (norm * math.cos(math.pi * s) + 1) ** 2
        case "increasing-decreasing":
            return norm * math.sin(math.pi * s) ** 2
        case other:
            raise ValueError(f"unknown diffusion form '{other}'")


def grid(steps: int, diffusion: str, last_step_size: float | None) -> list[float]:
    """The `steps` points of the noisy part."""
    start = SBDM_START if diffusion == "SBDM" else 0.0
    end = 1.0 - (last_step_size or 0.0)
    return [start + (end - start) * k / (steps - 1) for k in range(steps - 1)] + [end]


def clocks(
    sampler: str,
    steps: int,
    *,
    diffusion: str,
    diffusion_norm: float,
    last_step: str,
    last_step_size: float | None,
) -> list[float]:
    """The clock value of every network call."""
    points = grid(steps, diffusion, last_step_size)
    pairs = pairwise(points)
    calls = points[:-1] if sampler == "sde-euler" else [s for pair in pairs for s in pair]
    return calls if last_step == "none" else [*calls, points[-1]]


def integrate(
    sampler: str,
    answer: Answer,
    x: Tensor,
    steps: int,
    fresh: Fresh,
    *,
    diffusion: str,
    diffusion_norm: float,
    last_step: str,
    last_step_size: float | None,
) -> Tensor:
    """x (B, C, H, W) from s = 0 to the end of the last step; `fresh` is called once per interval."""

    def drift(x: Tensor, s: float) -> Tensor:
        velocity = answer(x, s)
        score = (s * velocity - x) / (1 - s)
        return velocity + diffusion_at(diffusion, diffusion_norm, s) * score

    points = grid(steps, diffusion, last_step_size)
    for s, after in pairwise(points):
        h = after - s
        kick = math.sqrt(2 * diffusion_at(diffusion, diffusion_norm, s) * h) * fresh()
        if sampler == "sde-euler":
            x = x + h * drift(x, s) + kick
        else:  # the noise first, then a trapezoid of the drift, as released
            x = x + kick
            slope = drift(x, s)
            x = x + h / 2 * (slope + drift(x + h * slope, after))
    end, h = points[-1], 1 - points[-1]
    match last_step:
        case "mean":
            return x + h * drift(x, end)
        case "euler":
            return x + h * answer(x, end)
        case "tweedie":
            score = (end * answer(x, end) - x) / (1 - end)
            return x / end + (1 - end) ** 2 / end * score
    return x
