"""The flow's ODE dx/ds = v from s = 0 (noise) to s = 1 (data): euler and heun in equal steps, dopri5 in steps of its own."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ltbench.errors import LtbenchError
from ltbench.sampling.guidance import Answer


def integrate(sampler: str, answer: Answer, x: Tensor, steps: int) -> Tensor:
    """x (B, C, H, W) taken from s = 0 to s = 1 by "euler" or "heun"."""
    return heun(answer, x, steps) if sampler == "heun" else euler(answer, x, steps)


def euler(answer: Answer, x: Tensor, steps: int) -> Tensor:
    """Explicit Euler, first order."""
    for k in range(steps):
        x = x + answer(x, k / steps) / steps
    return x


def heun(answer: Answer, x: Tensor, steps: int) -> Tensor:
    """Explicit trapezoid rule, second order; the last step asks at s = 1 too, where the velocity is regular."""
    for k in range(steps):
        slope = answer(x, k / steps)
        x = x + (slope + answer(x + slope / steps, (k + 1) / steps)) / (2 * steps)
    return x


def dopri5(answer: Answer, x: Tensor, *, atol: float, rtol: float) -> Tensor:
    """torchdiffeq's adaptive Dormand-Prince 5(4), as willisma/SiT:transport/integrators.py calls it (atol 1e-6, rtol 1e-3).

    The error that decides a step is one root mean square over all elements of all rows, so rows share their steps: an image moves,
    within the tolerance, with the block it was sampled in. The released code integrates a dead copy of the batch under guidance;
    with all channels guided the copy is equal and leaves the mean square as it is. The last step runs past s = 1 and is interpolated
    back, so the network is also asked a little beyond s = 1. Raises LtbenchError when the solver cannot go on.
    """
    from torchdiffeq import odeint  # here, because it takes a second to load and few samplings need it

    ends = torch.tensor([0.0, 1.0], dtype=x.dtype, device=x.device)
    try:
        path = odeint(lambda s, at: answer(at, s), x, ends, method="dopri5", atol=atol, rtol=rtol)
    except (
        AssertionError
    ) as error:  # torchdiffeq's way of saying that a step vanished or a state is not finite
        raise LtbenchError(
            f"dopri5 stopped: {str(error)[:120]}",
            hint="the network's answer is not finite, or too rough for rtol; `heun` does not adapt its steps",
        ) from error
    assert isinstance(path, Tensor), "one tensor in, one tensor out"
    return path[-1]


CLOCKS: dict[str, Callable[[int], list[float]]] = {
    "euler": lambda steps: [k / steps for k in range(steps)],
    "heun": lambda steps: [(k + j) / steps for k in range(steps) for j in (0, 1)],
}
"""The clock value of every network call."""
