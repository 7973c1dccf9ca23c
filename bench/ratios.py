"""T2: a step of every method, and of resampling, against its pipeline's baseline, beside what its operations alone would cost.

flop_ratio: counted over steps of both (products and convolutions, frozen encoders included), 1.9 for what runs nine tenths of the
images twice. efficiency: that over the time ratio, 1 where a method costs what its operations do.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode
from turns import goal, in_turns  # beside this file
from worlds import World

from ltbench import plugins
from ltbench.errors import LtbenchError

BASELINES = ("sit", "ddpm")
GOALS = {"ccua": 1.95, "cbdm": 1.95, "dispersive": 1.03, "oclt": 1.03, "resampling": 1.03}
COUNTED = 3  # steps whose operations are counted
# CPU seconds of turns: a goal three hundredths away needs many. A method without a goal, or far below it, needs few.
CLOSE, FAR = 3.5, 0.6
LONG = 30.0  # for CLOSE ones, where there is time: over 200 steps a side, an error of 0.003
CPU_SIZES = {
    "sit: SiT-T/2, 16x16, batch 8": World("SiT-T/2", "sit", (4, 16, 16), 8, 8, latents=True),
    "ddpm: UNet-16, 16x16, batch 8": World("UNet-16", "ddpm", (3, 16, 16), 8, 8),
}
TINY = {"sit: SiT-N/4, 8x8, batch 4": World("SiT-N/4", "sit", (4, 8, 8), 4, 4, images=64, latents=True)}


def measure(
    device: torch.device,
    sizes: dict[str, World] | None = None,
    turns: int = 3,
    times: int = 1,
    only: tuple[str, ...] | None = None,
    close: float = CLOSE,
    **recipe: Any,
) -> dict[str, Any]:
    """Per size: the baseline's milliseconds per step, and for each method time, operations and their ratio.

    only: these methods. close: seconds of turns for what has a goal near 1, at the CPU's sizes. recipe: precision, execution and the
    like, of all.
    """
    found = {}
    for name, world in (sizes or CPU_SIZES).items():
        wanted = [each for each in candidates(world.pipeline) if only is None or each[0] in only]
        found[name] = _world(world, device, turns, times, wanted, recipe, None if sizes else close)
    return found


Candidate = tuple[str, str, dict[str, Any]]  # name, method, what it changes of the recipe


def _world(
    world: World,
    device: torch.device,
    turns: int,
    times: int,
    wanted: list[Candidate],
    recipe: dict[str, Any],
    close: float | None,
) -> dict[str, Any]:
    plain = world.trainer(world.pipeline, device, **recipe)
    base = operations(world, world.pipeline, device)
    rows, left_out, baseline = {}, {}, []
    for name, method, more in wanted:
        try:
            other = world.trainer(method, device, **recipe, **more)
        except LtbenchError as error:  # not on this pipeline, or its encoder cannot be had here
            left_out[name] = error.message
            continue
        sides = {"baseline": plain.advance, name: other.advance}
        told = in_turns(sides, device, turns=turns, times=times, **_patience(name, device, close))
        other.close()
        baseline.append(told.ms("baseline"))
        flops = operations(world, method, device, **more) / base
        rows[name] = row(name, told.ratio(name, "baseline"), flops, told.error(name, "baseline"))
    plain.close()
    return {"baseline_ms": min(baseline), "methods": rows, "left_out": left_out}


def _patience(name: str, device: torch.device, close: float | None) -> dict[str, Any]:
    """Calls before anything counts, and seconds of turns: `close` near a goal, none where that is None."""
    if device.type != "cpu":
        return {"warm": 20}
    if close is None:
        return {"warm": 2}
    return {"warm": 2, "budget": close if GOALS.get(name, math.inf) < 1.1 else FAR}


def row(name: str, ratio: float, flops: float, error: float | None = None) -> dict[str, Any]:
    """A method's time over the baseline's, beside its operations over the baseline's."""
    bound = GOALS.get(name)
    told = {"time_ratio": ratio, "flop_ratio": round(flops, 3), "efficiency": round(flops / ratio, 3)}
    told |= {} if error is None else {"error": error}
    return told if bound is None else {**told, "goal": goal(ratio, at_most=bound, error=error)}


def candidates(pipeline: str) -> list[Candidate]:
    """(name, method, recipe) of every usable method that is no baseline, and of the baseline under resampling."""
    found = plugins.find("methods").items()
    usable = [name for name, plugin in found if plugin.problem is None and name not in BASELINES]
    return [*((name, name, {}) for name in usable), ("resampling", pipeline, {"resample": 0.1})]


def operations(world: World, method: str, device: torch.device, **recipe: Any) -> float:
    """Operations of `COUNTED` steps as written: products and convolutions, forward and backward."""
    trainer = world.trainer(method, device, **recipe)
    with FlopCounterMode(display=False) as counter:
        for _ in range(COUNTED):
            trainer.advance()
    trainer.close()
    return float(counter.get_total_flops())
