"""Work on a GPU recorded once and replayed: one launch where the host would make a thousand, one after another.

A recording reads and writes memory at fixed places and keeps every number that came from the host. Who records copies inputs
there before a replay, and results away after it. sampling/graphs.py does so with a network's forward, captured.py with a step.
"""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, Protocol, TypeVar

import torch

T = TypeVar("T")


class Recording(Protocol):
    """Work on fixed memory that can be done again."""

    def capture(self, work: Callable[[], Any], generators: Sequence[torch.Generator] = ()) -> Any:
        """Record `work`, and return what every replay fills. generators: whose numbers it draws; they are seeded before a replay."""
        ...

    def replay(self) -> None:
        """Do it again."""
        ...


Recorder = Callable[[], Recording]


class CudaGraph:
    """A CUDA graph. Graphs of one `pool` share memory, so an answer must be taken away before another one is replayed."""

    def __init__(self, device: torch.device, pool: Any) -> None:
        self._device, self._pool = device, pool
        self._graph = torch.cuda.CUDAGraph()

    def capture(self, work: Callable[[], Any], generators: Sequence[torch.Generator] = ()) -> Any:
        # A dead cycle may hold nodes of autograd that are tied to another stream, which would end the capture.
        gc.collect()
        for generator in generators:
            self._graph.register_generator_state(generator)
        # thread_local: threads that draw numbers ask for pinned memory meanwhile
        with (
            torch.cuda.device(self._device),
            torch.cuda.graph(self._graph, pool=self._pool, capture_error_mode="thread_local"),
        ):
            return work()

    def replay(self) -> None:
        self._graph.replay()


def cuda_graph(device: torch.device) -> Recorder:
    """What makes graphs on a GPU that share their memory."""
    pool = torch.cuda.graph_pool_handle()
    return lambda: CudaGraph(device, pool)


@cache
def _side(device: torch.device) -> Any:
    """One stream for all work aside: torch keeps freed memory by stream, and each new one would take a step's activations anew."""
    return torch.cuda.Stream()


def aside(device: torch.device, work: Callable[[], T]) -> T:
    """Work that is done before it is recorded, away from the GPU's main stream, to which a recording may not be tied: libraries
    choose kernels and take memory in their first calls. On a CPU, just the work."""
    if device.type != "cuda":
        return work()
    with torch.cuda.device(device):
        main, side = torch.cuda.current_stream(), _side(device)
        side.wait_stream(main)
        with torch.cuda.stream(side):
            found = work()
        main.wait_stream(side)
    return found
