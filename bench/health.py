"""T6: whether compiled steps stay compiled: graph breaks, recompilations of shapes that were seen, shapes, reads by the host.

On a CPU through the backend aot_eager, which traces as the real one does and runs what it traced; on a GPU through inductor. compile_s is
the wall time of the steps that compiled.
"""

from __future__ import annotations

import statistics
import time
from contextlib import contextmanager
from typing import Any

import torch
from ratios import candidates  # beside this file
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from turns import goal
from worlds import World

from ltbench.errors import LtbenchError
from ltbench.trainer import Trainer

CPU_SIZES = {"SiT-N/4, 8x8, batch 16": World("SiT-N/4", "sit", (4, 8, 8), 16, 8, images=128, latents=True)}
TINY = {"SiT-N/4, 8x8, batch 8": World("SiT-N/4", "sit", (4, 8, 8), 8, 4, images=64, latents=True)}
WARM, STEADY, MENU = 12, 24, 6
# One of each kind of pass: what else there is takes the same ones, and a minute more to compile.
KINDS = ("baseline", "ccua", "cbdm", "dispersive", "oclt")
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
    backend = "inductor" if device.type == "cuda" else "aot_eager"
    found: dict[str, Any] = {}
    for name, world in (sizes or CPU_SIZES).items():
        found[name] = {"methods": {}, "left_out": {}}
        for label, method, more in [("baseline", world.pipeline, {}), *candidates(world.pipeline)]:
            if methods is not None and label not in methods:
                found[name]["left_out"][label] = "not asked for"
                continue
            try:
                trainer = world.trainer(method, device, execution="compiled", backend=backend, **more)
            except LtbenchError as error:
                found[name]["left_out"][label] = error.message
                continue
            told = _steps(trainer, warm, steady)
            eager = world.trainer(method, device, **more)
            found[name]["methods"][label] = {**told, "reads_per_step": reads_per_step(eager)}
    return found


def _steps(trainer: Trainer, warm: int, steady: int) -> dict[str, Any]:
    counters: Any = torch._dynamo.utils.counters
    torch._dynamo.reset()
    counters.clear()
    again, spent = 0, []
    with _rows(trainer) as rows:
        for number in range(warm + steady):
            shapes, graphs, start = len(rows), counters["stats"]["unique_graphs"], time.perf_counter()
            trainer.advance()
            spent.append(time.perf_counter() - start)
            # A shape that has not been seen is compiled once, whenever it comes; nothing else may be.
            if number >= warm and len(rows) == shapes:
                again += counters["stats"]["unique_graphs"] - graphs
    trainer.close()
    each = statistics.median(spent[warm:])
    return {
        "graph_breaks": goal(sum(counters["graph_break"].values()), at_most=0),
        "recompilations": goal(again, at_most=0),
        "shapes": goal(len(rows), at_most=MENU),
        "compile_s": round(sum(second for second in spent if second > 5 * each), 2),
    }


def reads_per_step(trainer: Trainer, steps: int = 4) -> float:
    """Reads by the host in a step as written: a compiled step cannot be watched, and its blocks read nothing."""
    trainer.advance()
    with Reads() as reads:
        for _ in range(steps):
            trainer.advance()
    trainer.close()
    return reads.count / steps


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
