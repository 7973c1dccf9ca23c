"""The noise of generated images: a function of (sampling seed, image, step), wherever and however early it is drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from ltbench import seeds
from ltbench.places import send

Numbers = Sequence[int] | np.ndarray
Shape = tuple[int, int, int]
THREADS = 4  # NumPy fills arrays without the interpreter's lock; 100 latents take one core 7 ms, a step of SiT-S/2 about as long


def initial_noise(seed: int, numbers: Numbers, shape: Shape) -> Tensor:
    """(n, C, H, W) float32: the starting noise of images `numbers`, each from its own stream."""
    rows = [seeds.stream(seed, "sampling-noise", int(k)).standard_normal(shape, np.float32) for k in numbers]
    return torch.from_numpy(np.stack(rows))


def step_noise(seed: int, numbers: Numbers, shape: Shape, device: torch.device) -> Callable[[], Tensor]:
    """Draws (n, C, H, W) float32 at every call: the noise of the next step of images `numbers`, each from its own stream."""
    streams = _streams(seed, numbers)

    def fresh() -> Tensor:
        made = torch.empty(len(streams), *shape)
        _fill(made, streams)
        return send(made, device)

    return fresh


@contextmanager
def noise_ahead(
    seed: int, numbers: Numbers, shape: Shape, device: torch.device, threads: int | None = None
) -> Iterator[Callable[[], Tensor]]:
    """What `step_noise` gives. On a GPU threads draw the noise of a step while the device works on the one before.

    threads: None for `THREADS` on a GPU and none elsewhere, where they would take cores from the network. They end with the
    block, after whatever they had begun; an error in one of them is raised by the call whose noise it would have been.
    """
    threads = (THREADS if device.type == "cuda" else 0) if threads is None else threads
    if not threads:
        yield step_noise(seed, numbers, shape, device)
        return
    ahead = _Ahead(_streams(seed, numbers), shape, device, threads)
    try:
        yield ahead.begun()
    finally:
        ahead.close()


def _streams(seed: int, numbers: Numbers) -> list[np.random.Generator]:
    return [seeds.stream(seed, "sampling-steps", int(k)) for k in numbers]


def _fill(rows: Tensor, streams: Sequence[np.random.Generator]) -> None:
    """Each row of (n, C, H, W) on the host with the next numbers of its stream."""
    for row, stream in zip(rows.numpy(), streams, strict=True):
        stream.standard_normal(dtype=np.float32, out=row)


class _Ahead:
    """The next step's noise, drawn by threads. A stream belongs to one share of the rows, whose steps are drawn in order."""

    def __init__(
        self, streams: Sequence[np.random.Generator], shape: Shape, device: torch.device, threads: int
    ) -> None:
        self._device, self._shape = device, (len(streams), *shape)
        cuts = [len(streams) * i // threads for i in range(threads + 1)]
        self._shares = [(slice(a, b), streams[a:b]) for a, b in pairwise(cuts) if a < b]
        self._pool = ThreadPoolExecutor(threads, "noise")

    def begun(self) -> _Ahead:
        """With the first step's noise under way."""
        self._next = self._begin()
        return self

    def close(self) -> None:
        """End the threads; what they have begun is waited for."""
        self._pool.shutdown(cancel_futures=True)

    def __call__(self) -> Tensor:
        made, parts = self._next
        for part in parts:
            part.result()
        self._next = self._begin()
        # Pinned memory is not given to anybody else before the copy out of it has ended.
        return made.to(self._device, non_blocking=True)

    def _begin(self) -> tuple[Tensor, list[Future[None]]]:
        made = torch.empty(self._shape, pin_memory=self._device.type == "cuda")
        return made, [self._pool.submit(_fill, made[rows], streams) for rows, streams in self._shares]
