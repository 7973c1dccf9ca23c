"""S1: the engine's samplers against the official ones: the SDE that asks its network twice per step, and DDIM in two calls.

The official SDE's second answer is the first once more, so leaving it out changes no bit: shown first, on its own sequence of
operations. Ours orders its sums another way and is compared with it on the same noise. Each side draws its noise as it does.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from official import Model, ddim, sde  # beside this file
from torch import Tensor
from turns import agree, in_turns, most_apart
from worlds import World

from ltbench.diffusion import DiscreteDDPM
from ltbench.generate import blocks, initial_noise, step_noise
from ltbench.networks import Network

GUIDANCE = 1.5
SDE = {
    "sampler": "sde-euler",
    "diffusion": "sigma",
    "diffusion_norm": 1.0,
    "last_step": "mean",
    "last_step_size": 0.04,
}
CPU_SIZES = {
    "SiT-T/2, 16x16, 4 images, 25 steps": (World("SiT-T/2", "sit", (4, 16, 16), 4, 4, latents=True), 25),
    "UNet-16, 16x16, 4 images, 20 steps": (World("UNet-16", "ddpm", (3, 16, 16), 4, 4), 20),
}
TINY = {
    "SiT-N/4, 8x8, 4 images, 10 steps": (World("SiT-N/4", "sit", (4, 8, 8), 4, 4, latents=True), 10),
    "UNet-8, 8x8, 4 images, 10 steps": (World("UNet-8", "ddpm", (3, 8, 8), 4, 4), 10),
}
Sizes = dict[str, tuple[World, int]]


def measure(device: torch.device, sizes: Sizes | None = None, turns: int = 3) -> dict[str, Any]:
    """Per size: how far the images are apart, milliseconds of both, the official sampler's time over ours."""
    case = {"sit": _sde, "ddpm": _ddim}
    found = (sizes or CPU_SIZES).items()
    return {name: case[world.pipeline](world, steps, device, turns) for name, (world, steps) in found}


def evaluation_of(world: World, steps: int, **more: Any) -> dict[str, Any]:
    """Sampling settings as an evaluation has them; the released guidance of three channels, where there are more."""
    common = {"block": world.batch, "seed": 0, "labels": "balanced", "steps": steps, "guidance": GUIDANCE}
    three = {"guidance_channels": 3} if world.shape[0] > 3 else {}
    return {**common, **three, **(SDE if world.pipeline == "sit" else {"sampler": "ddim"}), **more}


def ours_of(world: World, network: Network, evaluation: dict[str, Any], device: torch.device) -> Tensor:
    """One block of images, as an evaluation makes it."""
    ids = list(range(world.classes))
    made = blocks(network, world.pipeline, evaluation, ids, world.shape, device, [0])
    return next(made).images


def _sde(world: World, steps: int, device: torch.device, turns: int) -> dict[str, Any]:
    network, evaluation = world.fresh(device), evaluation_of(world, steps)
    labels = torch.arange(world.batch, device=device) % world.classes
    model: Model = lambda x, t, y: network(x, t, y)[0]  # noqa: E731
    rows = range(world.batch)

    def official(model: Model, fed: bool = False) -> Tensor:
        shape = (world.batch, *world.shape)
        kick: Callable[[], Tensor] = lambda: torch.randn(shape).to(device)  # noqa: E731
        start = kick()
        if fed:
            start = initial_noise(0, rows, world.shape).to(device)
            kick = step_noise(0, rows, world.shape, device)
        return sde(model, start, labels, kick, steps=steps, guidance=GUIDANCE, null=network.null_label)[-1]

    once = agree("one evaluation", most_apart(official(model, True), official(remembered(model), True)), 0.0)
    mine = ours_of(world, network, evaluation, device)
    apart = agree("images", most_apart(mine, official(model, True)), 1e-4)
    sides = {"ours": lambda: ours_of(world, network, evaluation, device), "official": lambda: official(model)}
    told = in_turns(sides, device, turns=turns, warm=0)  # they have just been compared
    ratio = told.goal("official", "ours", at_least=1.9)
    return {**told.told(), "one_evaluation_apart": once, "apart": apart, "goal": ratio}


def remembered(model: Model) -> Model:
    """The model, answering what it was just asked from memory: the second evaluation of a step for nothing."""
    last: list[tuple[Tensor, Tensor, Tensor]] = []

    def answer(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        if last and torch.equal(last[0][0], x) and torch.equal(last[0][1], t):
            return last[0][2]
        last[:] = [(x, t, model(x, t, y))]
        return last[0][2]

    return answer


def _ddim(world: World, steps: int, device: torch.device, turns: int) -> dict[str, Any]:
    network, evaluation = world.fresh(device), evaluation_of(world, steps)
    labels = torch.arange(world.batch, device=device) % world.classes
    table = DiscreteDDPM().alpha_bar.to(device)
    start = initial_noise(0, range(world.batch), world.shape).to(device)

    def official() -> Tensor:
        model: Model = lambda x, t, y: network(x, t, y)[0]  # noqa: E731
        return ddim(model, start, labels, table, steps=steps, omega=GUIDANCE - 1, null=network.null_label)

    mine = ours_of(world, network, evaluation, device)
    apart = agree("images", most_apart(mine, official()), 1e-3)
    sides = {"ours": lambda: ours_of(world, network, evaluation, device), "two_calls": official}
    told = in_turns(sides, device, turns=turns, warm=0)  # they have just been compared
    return {**told.told(), "apart": apart, "goal": told.goal("two_calls", "ours", at_least=1.0)}
