"""Images that are decoded when they are asked for: sets that are looked at once, block by block, and kept as features only."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from ltbench.datasets.decode import Decoder
from ltbench.datasets.pictures import Pictures

WORKERS = 16  # threads at most: Pillow lets go of the interpreter while it decodes


class Streamed:
    """Stands for an (n, C, R, R) uint8 array: slices and gathers along the first axis decode and give plain arrays.

    Nothing is kept: what is asked for twice is decoded twice. Raises EnvironmentProblem naming an image that cannot be read.
    """

    ndim = 4
    dtype = np.dtype(np.uint8)

    def __init__(self, pictures: Pictures, decoder: Decoder) -> None:
        side = decoder.resolution
        self.pictures, self.decoder = pictures, decoder
        self.shape = (len(pictures), decoder.channels, side, side)

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, rows: Any) -> np.ndarray:
        wanted = np.arange(len(self))[rows]
        return self._one(int(wanted)) if wanted.ndim == 0 else self._many(wanted)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        return self[:].astype(dtype or self.dtype, copy=False)

    def _one(self, i: int) -> np.ndarray:
        return self.decoder(self.pictures.read(i), self.pictures.where(i))

    def _many(self, rows: np.ndarray) -> np.ndarray:
        made = np.empty((len(rows), *self.shape[1:]), np.uint8)

        def fill(slot: int) -> None:
            made[slot] = self._one(int(rows[slot]))

        with ThreadPoolExecutor(min(WORKERS, usable_cores())) as pool:
            for _ in pool.map(fill, range(len(rows))):
                pass
        return made


def usable_cores() -> int:
    """Cores that this process may use: a SLURM job has fewer than its node."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
