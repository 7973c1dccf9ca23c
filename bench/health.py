"""T6: whether compiled steps stay compiled: graph breaks, recompilations after warm-up, shapes, reads by the host.

On a CPU through the backend aot_eager, which traces as the real one does and runs what it traced; on a GPU through inductor. Wall
time of the first steps is what compiling cost.
"""

from __future__ import annotations

import time
from contextlib import contextmanager
from typing import Any

import torch
from methods import candidates  # beside this file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from turns import goal
from worlds import World

from ltbench.errors import LtbenchError
from ltbench.trainer import Trainer

CPU_SIZES = {"SiT-N/4, 8x8, batch 16": World("SiT-N/4", "sit", (4, 8, 8), 16, 8, images=128, latents=True)}
TINY = {"SiT-N/4, 8x8, batch 8": World("SiT-N/4", "sit", (4, 8, 8), 8, 4, images=64, latents=True)}
WARM, STEADY, MENU = 20, 100, 6
# What makes the host wait for a device: a number read, or a shape that depends on data.
READS = ("_local_scalar_dense", "nonzero", "masked_select", "_unique2", "equal")


def measure(
    device: torch.device,
    sizes: dict[str, World] | None = None,
    warm: int = WARM,
    steady: int = STEADY,
    methods: tuple[str, ...] | None = None,
) -> dict[str, Any]:
    """Per size and method of its pipeline: the counts, and seconds of the warm-up beside those of as many steady steps."""
    try:
        from ltbench import compiled
    except ImportError as error:
        return {"left_out": f"no compiled steps here: {error}"}
    found: dict[str, Any] = {}
    for name, world in (sizes or CPU_SIZES).items():
        found[name] = {"methods": {}, "left_out": {}}
        for label, method, more in [("baseline", world.pipeline, {}), *candidates(world.pipeline)]:
            if methods is not None and label not in methods:
                continue
            try:
                trainer = world.trainer(method, device, execution="compiled", **more)
            except LtbenchError as error:
                found[name]["left_out"][label] = error.message
                continue
            found[name]["methods"][label] = _steps(trainer, device, compiled, warm, steady)
    return found


def _steps(
    trainer: Trainer, device: torch.device, compiled: Any, warm: int, steady: int
) -> dict[str, Any]:
    counters: Any = torch._dynamo.utils.counters
    torch._dynamo.reset()
    counters.clear()
    backend = "inductor" if device.type == "cuda" else "aot_eager"
    blocks = compiled.compile_blocks(trainer.parts.objective.network, backend=backend)
    with _rows(trainer) as rows:
        start = time.perf_counter()
        for _ in range(warm):
            trainer.advance()
        cold, first = time.perf_counter() - start, counters["stats"]["unique_graphs"]
        start = time.perf_counter()
        for _ in range(steady):
            trainer.advance()
        steps = time.perf_counter() - start
    reads = Reads()
    with reads:
        for _ in range(4):
            trainer.advance()
    trainer.close()
    return {
        "blocks": blocks,
        "graph_breaks": goal(sum(counters["graph_break"].values()), at_most=0),
        "recompilations": goal(counters["stats"]["unique_graphs"] - first, at_most=0),
        "shapes": goal(len(rows), at_most=MENU),
        "compile_s": round(cold - steps * warm / steady, 2),
        "reads_per_step": reads.count / 4,
    }


@contextmanager
def _rows(trainer: Trainer) -> Any:
    """The set of row numbers that the network is called with."""
    seen: set[int] = set()
    hook = trainer.parts.objective.network.register_forward_pre_hook(lambda _, given: seen.add(len(given[0])))
    try:
        yield seen
    finally:
        hook.remove()


class Reads(TorchDispatchMode):
    """Counts operations for which a host would wait on a GPU. On a CPU the verdict of a step is such a read, too."""

    count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Tensor:
        self.count += any(name in func.name() for name in READS)
        return func(*args, **(kwargs or {}))
