"""T4: a training step of a U-Net against CBDM's loop (NCHW, fp32, eager), from the same pixels.

Fed the same data, noise, clock and labels both have the same losses over 20 steps; then each draws for itself.
"""

from __future__ import annotations

from typing import Any

import torch
from official import UNetLoop, batches  # beside this file
from steps import PATIENCE, STEPS, fed, tolerance_of
from torch import Tensor
from turns import agree, in_turns
from worlds import World, twin

from ltbench.trainer import Trainer

CPU_SIZES = {"UNet-32, 16x16, batch 8": World("UNet-32", "ddpm", (3, 16, 16), 8, 8)}
TINY = {"UNet-8, 8x8, batch 4": World("UNet-8", "ddpm", (3, 8, 8), 4, 4, images=64)}


def measure(
    device: torch.device, sizes: dict[str, World] | None = None, turns: int = 5, times: int = 1
) -> dict[str, Any]:
    """Per size: how far the losses are apart, milliseconds of both, and the loop's time over ours."""
    found: dict[str, Any] = {}
    budget = PATIENCE if sizes is None else 0.0
    for name, world in (sizes or CPU_SIZES).items():
        apart = trace_apart(world, device)
        ours = world.trainer("ddpm", device)
        loop = loop_of(world, ours, device)
        sides = {"ours": ours.advance, "cbdm_style": loop.step}
        told = in_turns(sides, device, turns=turns, times=times, warm=2, budget=budget)
        ours.close()
        bound = told.goal("cbdm_style", "ours", at_least=1.0)
        found[name] = {**told.told(), "trace_apart": apart, "goal": bound}
    return found


def loop_of(world: World, ours: Trainer, device: torch.device) -> UNetLoop:
    """CBDM's loop on a copy of our network at its present weights, reading the same pixels from the host as floats."""
    network = twin(ours.parts.objective.network)
    images = ours.parts.drawer.data.images
    rows = images.gather(torch.arange(world.images), torch.zeros(world.images, dtype=torch.bool)).cpu()

    def forward(x: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        return network(x, t, torch.full_like(t, network.null_label) if y is None else y)[0]

    labels = ours.parts.drawer.data.labels.cpu()
    return UNetLoop(network, forward, batches(rows, labels, world.batch), device=device)


def trace_apart(world: World, device: torch.device, steps: int = STEPS) -> float:
    """Largest relative difference of the two losses. Raises AssertionError above tolerance."""
    ours = world.trainer("ddpm", device, log_every=1)
    loop = loop_of(world, ours, device)
    gaps = []
    for step in range(1, steps + 1):
        point = ours.advance()
        assert point is not None, "every step closes a window"
        gaps.append(abs(point["loss"] / loop.step(fed(ours, step)) - 1))
    ours.close()
    return agree("loss trace", max(gaps), tolerance_of("fp32", device))
