"""Samplers: fixed steps from given noise to an image, with classifier-free guidance.

euler and heun integrate the flow's ODE dx/ds = v from s = 0 (noise) to s = 1 (data) in equal steps; ddim is DDIM with eta = 0 on
the grid of the released DDPM trees (arXiv 2010.02502, Eq. 12; qym7/CBDM-pytorch:diffusion.py). They are pure: noise and labels
come from the caller, nothing is drawn here, and image k of the result depends on row k alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise

import torch
from torch import Tensor, nn

from ltbench.diffusion import DiscreteDDPM, LinearFlow, Process
from ltbench.errors import UsageError

SAMPLERS: dict[str, type[Process]] = {"euler": LinearFlow, "heun": LinearFlow, "ddim": DiscreteDDPM}

Answer = Callable[[Tensor, float], Tensor]
"""The guided network at one clock value for all rows: (x (B, C, H, W), t) -> (B, C, H, W)."""


def check_sampling(process: Process, *, sampler: str, steps: int) -> None:
    """Raise UsageError unless `sampler` exists, belongs to this process, and can take `steps` steps."""
    if sampler not in SAMPLERS:
        raise UsageError(f"unknown sampler '{sampler}'", hint=f"samplers are {', '.join(SAMPLERS)}")
    if not isinstance(process, SAMPLERS[sampler]):
        fitting = [name for name, kind in SAMPLERS.items() if isinstance(process, kind)]
        raise UsageError(
            f"sampler '{sampler}' does not belong to pipeline '{process.name}'",
            hint=f"samplers of '{process.name}' are {', '.join(fitting)}",
        )
    if steps < 1:
        raise UsageError(f"sampler '{sampler}' got steps: {steps}", hint="steps is a whole number from 1 up")
    if sampler == "ddim" and (steps < 2 or DiscreteDDPM.steps % steps):
        allowed = [str(n) for n in range(2, DiscreteDDPM.steps + 1) if DiscreteDDPM.steps % n == 0]
        raise UsageError(
            f"sampler 'ddim' got steps: {steps}, which do not cut {DiscreteDDPM.steps} times into equal parts",
            hint=f"steps can be {', '.join(allowed)}",
        )


def rows_per_call(guidance: float) -> int:
    """Network rows per image and call: 1 for pure conditional (w = 1) or unconditional (w = 0) sampling, else 2."""
    return 1 if guidance in (0, 1) else 2


def nfe(sampler: str, steps: int, guidance: float) -> int:
    """Network rows per image of a whole sampling: calls times rows per call.

    ddim makes one call less than it has steps, since its last step, at t = 0, is the identity whatever the network says.
    """
    calls = {"euler": steps, "heun": 2 * steps, "ddim": steps - 1}
    if sampler not in calls:
        raise UsageError(f"unknown sampler '{sampler}'", hint=f"samplers are {', '.join(SAMPLERS)}")
    return calls[sampler] * rows_per_call(guidance)


def sample(
    network: nn.Module,
    process: Process,
    *,
    sampler: str,
    steps: int,
    guidance: float,
    noise: Tensor,
    labels: Tensor,
    null: int,
) -> Tensor:
    """Images (B, C, H, W), dtype and device of `noise`, not clipped, from noise (B, C, H, W) ~ N(0, I) and labels (B,) int64.

    The network is called as `network(x, t, y)` and answers (prediction, features); it runs in eval mode without gradients and is
    left in the mode it came in. guidance is w in u + w (c - u), u being the answer for label `null`; with w = 1 and w = 0 only
    the needed half is computed. Raises UsageError as `check_sampling` does.
    """
    check_sampling(process, sampler=sampler, steps=steps)
    with torch.no_grad(), evaluating(network):
        answer = guided(network, guidance, labels, null, process)
        if isinstance(process, DiscreteDDPM):
            return _ddim(answer, process, noise, steps)
        return _heun(answer, noise, steps) if sampler == "heun" else _euler(answer, noise, steps)


@contextmanager
def evaluating(network: nn.Module) -> Iterator[None]:
    """eval() for a while; afterwards every module is back in its own mode, frozen parts included."""
    modes = [(module, module.training) for module in network.modules()]
    network.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


def guided(network: nn.Module, guidance: float, labels: Tensor, null: int, process: Process) -> Answer:
    """The network under guidance, both halves in one forward where both are needed."""
    nulls = torch.full_like(labels, null)
    integer_clock = isinstance(process, DiscreteDDPM)

    def clock(x: Tensor, t: float, rows: int) -> Tensor:
        return torch.full((rows,), t, device=x.device, dtype=torch.int64 if integer_clock else x.dtype)

    def one_pass(x: Tensor, t: float) -> Tensor:
        return network(x, clock(x, t, len(x)), labels if guidance == 1 else nulls)[0]

    def two_halves(x: Tensor, t: float) -> Tensor:
        both, _ = network(torch.cat([x, x]), clock(x, t, 2 * len(x)), torch.cat([labels, nulls]))
        conditional, unconditional = both.chunk(2)
        return unconditional + guidance * (conditional - unconditional)

    return one_pass if rows_per_call(guidance) == 1 else two_halves


def _euler(answer: Answer, x: Tensor, steps: int) -> Tensor:
    for k in range(steps):
        x = x + answer(x, k / steps) / steps
    return x


def _heun(answer: Answer, x: Tensor, steps: int) -> Tensor:
    """Explicit trapezoid rule, second order; the last step asks at s = 1 too, where the velocity is regular."""
    for k in range(steps):
        slope = answer(x, k / steps)
        x = x + (slope + answer(x + slope / steps, (k + 1) / steps)) / (2 * steps)
    return x


def ddim_grid(steps: int) -> list[int]:
    """The released clock values, noisiest first: T - T/steps, ..., T/steps, 0. It begins below T - 1: noise is taken as x_{T-skip}."""
    skip = DiscreteDDPM.steps // steps
    return list(range(0, DiscreteDDPM.steps, skip))[::-1]


def _ddim(answer: Answer, process: DiscreteDDPM, x: Tensor, steps: int) -> Tensor:
    """DDIM, eta = 0, no clipping. The released last step goes from t = 0 to t = 0, the identity, so it asks for no network call:
    the result stays at alpha_bar[0], noise of std .01."""
    grid = ddim_grid(steps)
    for t, lower in pairwise(grid):
        out = answer(x, t)
        clock = torch.full((len(x),), t, device=x.device)
        x = process.diffuse(
            process.to_x0(out, x, clock), process.to_eps(out, x, clock), torch.full_like(clock, lower)
        )
    return x
