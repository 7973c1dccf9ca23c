"""T2: a step of every method, and of resampling, against its pipeline's baseline, beside what its operations alone would cost.

flop_ratio: counted over steps of both (products and convolutions, frozen encoders included), 1.9 for what runs nine tenths of the
images twice. efficiency: that over the time ratio, 1 where a method costs what its operations do.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from turns import goal, in_turns  # beside this file
from worlds import World

from ltbench import plugins
from ltbench.errors import LtbenchError
from ltbench.trainer import Trainer

BASELINES = ("sit", "ddpm")
GOALS = {"ccua": 1.95, "cbdm": 1.95, "dispersive": 1.03, "oclt": 1.03, "resampling": 1.03}
COUNTED = 4  # steps whose operations are counted
CPU_SIZES = {
    "sit: SiT-T/2, 16x16, batch 8": World("SiT-T/2", "sit", (4, 16, 16), 8, 8, latents=True),
    "ddpm: UNet-16, 16x16, batch 8": World("UNet-16", "ddpm", (3, 16, 16), 8, 8),
}
TINY = {"sit: SiT-N/4, 8x8, batch 4": World("SiT-N/4", "sit", (4, 8, 8), 4, 4, images=64, latents=True)}


def measure(
    device: torch.device,
    sizes: dict[str, World] | None = None,
    turns: int = 7,
    times: int = 2,
    **recipe: Any,
) -> dict[str, Any]:
    """Per size: the baseline's milliseconds per step, and for each method time, operations and their ratio. `recipe`: of all."""
    return {
        name: _world(world, device, turns, times, recipe) for name, world in (sizes or CPU_SIZES).items()
    }


def _world(
    world: World, device: torch.device, turns: int, times: int, recipe: dict[str, Any]
) -> dict[str, Any]:
    plain = world.trainer(world.pipeline, device, **recipe)
    base = operations(plain)
    rows, left_out, baseline = {}, {}, []
    for name, method, more in candidates(world.pipeline):
        try:
            other = world.trainer(method, device, **{**recipe, **more})
        except LtbenchError as error:  # not on this pipeline, or its encoder cannot be had here
            left_out[name] = error.message
            continue
        flops = operations(other) / base
        told = in_turns(
            {"baseline": plain.advance, name: other.advance}, device, turns=turns, times=times, warm=2
        )
        other.close()
        baseline.append(told.ms("baseline"))
        rows[name] = row(name, told.ratio(name, "baseline"), flops)
    plain.close()
    return {"baseline_ms": min(baseline), "methods": rows, "left_out": left_out}


def row(name: str, ratio: float, flops: float) -> dict[str, Any]:
    """A method's time over the baseline's, beside its operations over the baseline's."""
    bound = GOALS.get(name)
    told = {"time_ratio": ratio, "flop_ratio": round(flops, 3), "efficiency": round(flops / ratio, 3)}
    return told if bound is None else {**told, "goal": goal(ratio, at_most=bound)}


def candidates(pipeline: str) -> list[tuple[str, str, dict[str, Any]]]:
    """(name, method, recipe) of every usable method that is no baseline, and of the baseline under resampling."""
    found = plugins.find("methods").items()
    usable = [name for name, plugin in found if plugin.problem is None and name not in BASELINES]
    return [*((name, name, {}) for name in usable), ("resampling", pipeline, {"resample": 0.1})]


def operations(trainer: Trainer) -> float:
    """Operations of `COUNTED` steps: products and convolutions, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        for _ in range(COUNTED):
            trainer.advance()
    return float(counter.get_total_flops())
