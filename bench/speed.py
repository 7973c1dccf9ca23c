"""T5: what share of a card's matrix rate a training step reaches, and how memory grows with the rows of a batch.

The rate is measured in the same run (a large product in the step's precision), not read from a datasheet. Operations of a step are
ltbench/cost's closed form, three times the forward's. On a CPU only the slope is told: bytes that the forward keeps for the backward.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor
from turns import seconds  # beside this file
from worlds import World

from ltbench.cost.size import BACKWARD, Shape, forward_operations
from ltbench.methods import Draw, Objective

SIDE = 8192
CPU_SIZES = {
    "SiT-T/2, 16x16": World("SiT-T/2", "sit", (4, 16, 16), 4, 4, latents=True),
    "UNet-16, 16x16": World("UNet-16", "ddpm", (3, 16, 16), 4, 4),
}
TINY = {"SiT-N/4, 8x8": World("SiT-N/4", "sit", (4, 8, 8), 4, 4, images=64, latents=True)}


def measure(device: torch.device, sizes: dict[str, World] | None = None) -> dict[str, Any]:
    """Per size: megabytes as a + b rows, for the baseline and for ccua, whose rows are 1.9 a image."""
    return {name: _slopes(world, device) for name, world in (sizes or CPU_SIZES).items()}


def matmul_rate(device: torch.device, dtype: torch.dtype, side: int = SIDE, times: int = 20) -> float:
    """Operations per second of a (side, side) product of random numbers; zeros would run faster."""
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    seconds(lambda: a @ b, 5, device)
    return 2.0 * side**3 * times / seconds(lambda: a @ b, times, device)


def train_operations(world: World) -> float:
    """Of one baseline step."""
    channels, side, _ = world.shape
    each = forward_operations(world.network, Shape(channels, side, world.classes))
    return BACKWARD * each * world.batch


def _slopes(world: World, device: torch.device) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for method in (world.pipeline, "ccua"):
        sizes = [world, dataclasses.replace(world, batch=2 * world.batch, local_batch=2 * world.local_batch)]
        small, large = (kept_bytes(each, method, device) for each in sizes)
        slope = (large - small) / world.batch
        # A straight line: what is kept without any row is what the weights themselves are kept for.
        found[method] = {
            "kept_mb_per_image": round(slope / 1e6, 3),
            "kept_mb_fixed": round(max(0.0, small - slope * world.batch) / 1e6, 3),
        }
    return found


def kept_bytes(world: World, method: str, device: torch.device) -> int:
    """Bytes of the activations that a forward keeps for its backward, every storage once, weights left out."""
    trainer = world.trainer(method, device, label_drop=0.0)
    draw = trainer.parts.drawer.draw(1, range(world.batch // world.local_batch))
    trainer.close()
    return saved(trainer.parts.objective, draw)


def saved(objective: Objective, draw: Draw) -> int:
    """As `kept_bytes`, of an objective on a draw."""
    weights = {p.untyped_storage().data_ptr() for p in [*objective.parameters(), *objective.buffers()]}
    storages: dict[int, int] = {}
    held: list[Tensor] = []  # so that no address is given twice

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            held.append(tensor)
            storages[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        terms = objective(draw)
    del terms
    return sum(storages.values())
