"""Samplers: from given noise to images, with classifier-free guidance. `sample` is the entrance.

flow.py integrates the flow's ODE (euler, heun, dopri5), sde.py its SDE (sde-euler, sde-heun), ddpm.py the discrete chain (ddim,
ddim-corrected, ddpm); guidance.py mixes the conditional and the unconditional answer; forward.py and graphs.py are how the network
is called. Which sampler takes which settings is said in ltbench/protocols.py. Samplers are pure: noise and labels come from the
caller, nothing is drawn here, and image k of the result depends on row k alone, except under dopri5, whose step sizes the rows of
a call share.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ltbench import protocols
from ltbench.diffusion import PROCESSES, DiscreteDDPM, Process
from ltbench.errors import UsageError
from ltbench.sampling import ddpm, flow, sde
from ltbench.sampling.ddpm import corrected_grid, ddim_grid
from ltbench.sampling.forward import Forward, multiplying, prepared
from ltbench.sampling.guidance import Answer, Guidance, guided
from ltbench.sampling.sde import Fresh

__all__ = [
    "SAMPLERS",
    "Answer",
    "Forward",
    "Fresh",
    "Guidance",
    "check_sampling",
    "corrected_grid",
    "count_rows",
    "ddim_grid",
    "evaluating",
    "guided",
    "multiplying",
    "nfe",
    "prepared",
    "sample",
]

SAMPLERS: dict[str, type[Process]] = {
    name: PROCESSES[pipeline] for pipeline, names in protocols.SAMPLERS.items() for name in names
}


def check_sampling(
    process: Process, *, sampler: str, steps: int | None, options: Mapping[str, Any] | None = None
) -> None:
    """Raise UsageError unless `sampler` exists, belongs to this process, and takes these steps and options."""
    found = protocols.sampler_problems(process.name, {"sampler": sampler, "steps": steps, **(options or {})})
    if found:
        raise UsageError("; ".join(message for _, message in found))


def nfe(
    sampler: str,
    steps: int,
    guidance: float,
    *,
    schedule: Mapping[str, Any] | None = None,
    options: Mapping[str, Any] | None = None,
) -> int:
    """Network rows per image of a whole sampling: over its calls, 1 where one half is enough (w = 0 or 1), else 2.

    Two calls are not made: ddim's last step, at t = 0, is the identity whatever the network says, and an SDE without a last step
    ends on noise. dopri5 chooses its calls as it goes: `count_rows` measures them. Raises UsageError for it and for an unknown name.
    """
    levels = _levels(sampler, steps, protocols.sampler_options({"sampler": sampler, **(options or {})}))
    strength = Guidance(guidance, schedule)
    return sum(strength.rows(level) for level in levels)


def _levels(sampler: str, steps: int, options: Mapping[str, Any]) -> list[float]:
    """The noise level of every call."""
    if sampler in flow.CLOCKS:
        return [1 - s for s in flow.CLOCKS[sampler](steps)]
    if sampler in sde.SAMPLERS:
        return [1 - s for s in sde.clocks(sampler, steps, **options)]
    if sampler in ddpm.CLOCKS:
        return [t / DiscreteDDPM.steps for t in ddpm.CLOCKS[sampler](steps)]
    known = ", ".join([*flow.CLOCKS, *sde.SAMPLERS, *ddpm.CLOCKS])
    raise UsageError(
        f"the calls of sampler '{sampler}' are not known beforehand", hint=f"they are for {known}"
    )


def sample(
    network: nn.Module,
    process: Process,
    *,
    sampler: str,
    steps: int | None,
    guidance: float,
    noise: Tensor,
    labels: Tensor,
    null: int,
    fresh: Fresh | None = None,
    schedule: Mapping[str, Any] | None = None,
    guidance_channels: int | None = None,
    options: Mapping[str, Any] | None = None,
    forward: Forward | None = None,
) -> Tensor:
    """Images (B, C, H, W), dtype and device of `noise`, not clipped, from noise (B, C, H, W) ~ N(0, I) and labels (B,) int64.

    The network is called as `network(x, t, y)` and answers (prediction, features); it runs in eval mode without gradients and is
    left in the mode it came in. guidance is w in u + w (c - u), u being the answer for label `null`; where w is 1 or 0 only the
    needed half is computed. `schedule` ({"name": "linear"}, ...) lets w depend on the noise level; `guidance_channels` guides
    the first channels only and leaves the others conditional. `fresh()` gives the noise (B, C, H, W) of one step, called once per
    noisy step of sde-euler, sde-heun and ddpm, which need it. `options` are the sampler's own settings, by default those of
    `protocols.OPTIONS`. `forward` is how `network` is called, by default plainly. Raises UsageError as `check_sampling` does, and
    for a noisy sampler without `fresh`.
    """
    check_sampling(process, sampler=sampler, steps=steps, options=options)
    if sampler in protocols.NOISY and fresh is None:
        raise UsageError(
            f"sampler '{sampler}' draws noise at every step",
            hint="pass fresh=, which returns it for all rows",
        )
    settings = protocols.sampler_options({"sampler": sampler, **(options or {})})
    with torch.no_grad(), evaluating(network):
        strength = Guidance(guidance, schedule, guidance_channels)
        answer = guided(forward or Forward(network), strength, labels, null, process)
        if sampler == "dopri5":
            return flow.dopri5(answer, noise, **settings)
        assert steps is not None, "checked above"
        if isinstance(process, DiscreteDDPM):
            return ddpm.integrate(sampler, answer, process, noise, steps, fresh)
        if fresh is not None and sampler in sde.SAMPLERS:
            return sde.integrate(sampler, answer, noise, steps, fresh, **settings)
        return flow.integrate(sampler, answer, noise, steps)


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


@dataclass
class Count:
    """Rows that a network was given."""

    rows: int = 0


@contextmanager
def count_rows(network: nn.Module) -> Iterator[Count]:
    """Counts the rows of every call of `network` inside the block, whoever makes it."""
    count = Count()

    def add(module: nn.Module, arguments: tuple[Any, ...]) -> None:
        count.rows += len(arguments[0])

    handle = network.register_forward_pre_hook(add)
    try:
        yield count
    finally:
        handle.remove()
