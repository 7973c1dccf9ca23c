"""The discrete chain: DDIM with eta = 0 on the released and on a corrected grid, and DDPM's ancestral steps, all 1000 or fewer."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor

from ltbench.diffusion import DiscreteDDPM
from ltbench.sampling.guidance import Answer
from ltbench.sampling.sde import Fresh


def integrate(
    sampler: str, answer: Answer, process: DiscreteDDPM, x: Tensor, steps: int, fresh: Fresh | None
) -> Tensor:
    """x (B, C, H, W) down the chain by "ddim", "ddim-corrected" or "ddpm"; the last needs `fresh`."""
    if sampler == "ddpm":
        assert fresh is not None, "ddpm draws noise at every step but the last"
        return ancestral(answer, process, x, steps, fresh)
    return ddim(answer, process, x, steps) if sampler == "ddim" else ddim_corrected(answer, process, x, steps)


def ddim_grid(steps: int) -> list[int]:
    """The released clock values, noisiest first: T - T/steps, ..., T/steps, 0. It begins below T - 1: noise is taken as x_{T-skip}."""
    skip = DiscreteDDPM.steps // steps
    return list(range(0, DiscreteDDPM.steps, skip))[::-1]


def corrected_grid(steps: int) -> list[int]:
    """`steps` clock values from T - 1 down, evenly to one unit: the "trailing" spacing of arXiv 2305.08891, table 2."""
    total = DiscreteDDPM.steps
    return [total - 1 - (2 * k * total + steps) // (2 * steps) for k in range(steps)]


def ddim(answer: Answer, process: DiscreteDDPM, x: Tensor, steps: int) -> Tensor:
    """DDIM (arXiv 2010.02502, Eq. 12) as the released DDPM trees run it, no clipping. Their last step goes from t = 0 to t = 0, the
    identity, so it asks for no network call: the result stays at alpha_bar[0], noise of std .01."""
    for t, lower in pairwise(ddim_grid(steps)):
        x = _toward(answer, process, x, t, lower)
    return x


def ddim_corrected(answer: Answer, process: DiscreteDDPM, x: Tensor, steps: int) -> Tensor:
    """DDIM that takes noise for what it is, x_{T-1}, and whose last step really goes to the image; `steps` calls."""
    times = corrected_grid(steps)
    for t, lower in pairwise(times):
        x = _toward(answer, process, x, t, lower)
    return process.to_x0(answer(x, times[-1]), x, _clock(x, times[-1]))


def _toward(answer: Answer, process: DiscreteDDPM, x: Tensor, t: int, lower: int) -> Tensor:
    out, clock = answer(x, t), _clock(x, t)
    return process.diffuse(process.to_x0(out, x, clock), process.to_eps(out, x, clock), _clock(x, lower))


def _clock(x: Tensor, t: int) -> Tensor:
    return torch.full((len(x),), t, device=x.device)


def ancestral(answer: Answer, process: DiscreteDDPM, x: Tensor, steps: int, fresh: Fresh) -> Tensor:
    """DDPM (arXiv 2006.11239, Algorithm 2), variance beta_t ("fixedlarge"), noise at every step but the last.

    As released (qym7/CBDM-pytorch:diffusion.py): x0 is clipped there only after the posterior mean has been taken, so no clipping
    ever has an effect, and the special first entry of the variance table belongs to the step without noise. With fewer steps than
    the chain has, those of `corrected_grid`, whose betas are 1 - alpha_bar_t / alpha_bar_lower (arXiv 2102.09672, section 4).
    """
    alpha_bar, times = process.alpha_bar.tolist(), corrected_grid(steps)
    for t, lower in zip(times, [*times[1:], None], strict=True):
        now, before = alpha_bar[t], 1.0 if lower is None else alpha_bar[lower]
        beta = 1 - now / before
        to_image = math.sqrt(before) * beta / (1 - now)
        to_noisy = math.sqrt(1 - beta) * (1 - before) / (1 - now)
        x = to_image * process.to_x0(answer(x, t), x, _clock(x, t)) + to_noisy * x
        if lower is not None:
            x = x + math.sqrt(beta) * fresh()
    return x


CLOCKS: dict[str, Callable[[int], list[int]]] = {
    "ddim": lambda steps: ddim_grid(steps)[:-1],
    "ddim-corrected": corrected_grid,
    "ddpm": corrected_grid,
}
"""The clock value of every network call."""
