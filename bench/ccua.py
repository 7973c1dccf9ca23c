"""T3: the ways to run CCUA's two passes: serial, both in one batch with all rows (as released), and with dropped rows skipped.

All compute the same gradient, which is asserted first, to 1e-5 of the largest (the contract hands predictions out in float32, so there
is no double to compare in). `padded` fills the batch to one of few sizes with rows that count for nothing, as compiled steps want it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from turns import agree, in_turns  # beside this file
from worlds import World

from ltbench.methods import Draw, Objective, info_nce, mean_square

CPU_SIZES = {"SiT-T/2, 16x16, batch 16": World("SiT-T/2", "sit", (4, 16, 16), 16, 16, latents=True)}
TOLERANCE = 1e-5
TINY = {"SiT-N/4, 8x8, batch 8": World("SiT-N/4", "sit", (4, 8, 8), 8, 8, images=64, latents=True)}
Terms = Callable[[Draw], dict[str, Tensor]]


def measure(
    device: torch.device, sizes: dict[str, World] | None = None, turns: int = 5, times: int = 1
) -> dict[str, Any]:
    """Per size: the largest difference of gradients, milliseconds of forward and backward, each way's time over `skip`."""
    return {name: _world(world, device, turns, times) for name, world in (sizes or CPU_SIZES).items()}


def _world(world: World, device: torch.device, turns: int, times: int) -> dict[str, Any]:
    parts = world.trainer("ccua", device).parts
    draw = _with_dropped(parts.drawer, world)
    apart = _apart(parts.objective, draw)
    sides = {
        name: (lambda terms=terms: gradient(parts.objective, terms, draw))
        for name, terms in ways(parts.objective).items()
    }
    told = in_turns(sides, device, turns=turns, times=times)
    # Skipping must pay: it runs 1.9 rows where the released code runs 2.
    bound = told.goal("full", "skip", at_least=1.0)
    rows = {"rows": len(draw.y), "dropped": int(draw.dropped.sum())}
    return {**told.told("skip"), "gradients_apart": apart, **rows, "goal": bound}


def _with_dropped(drawer: Any, world: World) -> Draw:
    """The first step whose batch drops an eighth of its labels, near the tenth that are dropped on average."""
    shards = range(world.batch // world.local_batch)
    draws = (drawer.draw(step, shards) for step in range(1, 1000))
    return next(draw for draw in draws if int(draw.dropped.sum()) == max(1, world.batch // 8))


def ways(objective: Objective) -> dict[str, Terms]:
    """Each way as a function of a draw."""
    found: dict[str, Terms] = {"skip": _as(objective, passes="fused")}
    found["serial"] = _as(objective, passes="serial")
    found["full"] = lambda draw: full(objective, draw)
    found["padded"] = _as(objective, passes="fused", fixed_rows=True)
    return found


def _as(objective: Objective, **changes: Any) -> Terms:
    def terms(draw: Draw) -> dict[str, Tensor]:
        method: Any = objective.method
        before, method.task = method.task, dataclasses.replace(method.task, **changes)
        try:
            return objective(draw)
        finally:
            method.task = before

    return terms


def full(objective: Objective, draw: Draw) -> dict[str, Tensor]:
    """The released "parallel" way: the null label and the (dropped) label of every image in one batch of 2 B."""
    method: Any = objective.method
    null, given = method.run(objective.network, draw, torch.full_like(draw.y, method.task.null), draw.y_in)
    contrast = info_nce(draw.by_local_batch(null.feats[0]), method.temperature).flatten()
    return {
        "denoise": mean_square(given.pred, draw.target),
        "spread": method.alpha * (1 - draw.level) * contrast,
        "align": method.gamma * (1 - draw.level) * mean_square(given.pred, null.pred) * ~draw.dropped,
    }


def gradient(objective: Objective, terms: Terms, draw: Draw) -> list[Tensor]:
    """Of the summed means, by parameter."""
    parameters = [p for p in objective.parameters() if p.requires_grad]
    loss = torch.stack([term.mean() for term in terms(draw).values()]).sum()
    return list(torch.autograd.grad(loss, parameters))


def _apart(objective: Objective, draw: Draw) -> dict[str, float]:
    """Per way: the largest difference from `skip` over the largest gradient."""
    found = {name: gradient(objective, terms, draw) for name, terms in ways(objective).items()}
    largest = max(float(g.abs().max()) for g in found["skip"])
    gaps = {}
    for name, theirs in found.items():
        gap = max(float((a - b).abs().max()) for a, b in zip(found["skip"], theirs, strict=True)) / largest
        gaps[name] = agree(f"gradients of {name}", gap, TOLERANCE)
    return gaps
