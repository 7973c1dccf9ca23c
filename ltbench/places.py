"""Where the rows of a training set are while it trains: on the device, in memory-mapped files, or in a copy on the node's own disk.

The place changes no number: rows are the same bytes everywhere, and what is drawn from them is decided by whoever asks.
Arrays sit on the device where they take at most a share of its free memory (LTBENCH_RESIDENT, 0.5 by default; 0: never). Files
that do not are read where they are, or, with LTBENCH_LOCAL naming a folder of the node, from a copy there: made once per node,
checked, and shared by its processes.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from ltbench import files
from ltbench.errors import EnvironmentProblem, UsageError

SHARE = 0.5  # of a device's free memory; the rest is for the network, its optimiser and activations
CHUNK = 16 << 20  # bytes read at a time while a file is copied


class Rows(Protocol):
    """Rows of an array that is somewhere: (n, ...)."""

    @property
    def device(self) -> torch.device: ...
    @property
    def row(self) -> tuple[int, ...]:
        """Shape of one row."""
        ...

    def take(self, index: Tensor) -> Tensor:
        """(B,) int64 on any device -> (B, ...) on `device`. Waits for the device only if `index` is there and the rows are not."""
        ...


class Held:
    """Rows in a tensor on the device."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor

    @property
    def device(self) -> torch.device:
        return self.tensor.device

    @property
    def row(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape[1:])

    def take(self, index: Tensor) -> Tensor:
        return self.tensor[send(index, self.device)]


class Mapped:
    """Rows in one or several arrays of the host, one after another; memory-mapped ones are read as they are asked for."""

    def __init__(self, arrays: Sequence[np.ndarray], device: torch.device) -> None:
        self.arrays, self.device = tuple(arrays), device
        self._ends = np.cumsum([len(a) for a in arrays])

    @property
    def row(self) -> tuple[int, ...]:
        return tuple(self.arrays[0].shape[1:])

    def take(self, index: Tensor) -> Tensor:
        wanted = index.cpu().numpy()
        if len(self.arrays) == 1:
            return send(torch.from_numpy(np.take(self.arrays[0], wanted, axis=0)), self.device)
        found = np.empty((len(wanted), *self.row), self.arrays[0].dtype)
        which = np.searchsorted(self._ends, wanted, side="right")
        for number in np.unique(which):
            own = which == number
            first = self._ends[number] - len(self.arrays[number])
            found[own] = self.arrays[number][wanted[own] - first]
        return send(torch.from_numpy(found), self.device)


class LazyRows:
    """Rows that find their place at the first look: pictures beside latents take no memory where nobody asks for them."""

    def __init__(self, find: Callable[[], Rows]) -> None:
        self._find = find

    @cached_property
    def _rows(self) -> Rows:
        return self._find()

    @property
    def device(self) -> torch.device:
        return self._rows.device

    @property
    def row(self) -> tuple[int, ...]:
        return self._rows.row

    def take(self, index: Tensor) -> Tensor:
        return self._rows.take(index)


def send(tensor: Tensor, device: torch.device) -> Tensor:
    """The tensor on `device`; the host goes on at once, where torch would wait for the GPU."""
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


class Coming:
    """A small tensor of the device on its way to the host, which goes on meanwhile."""

    def __init__(self, tensor: Tensor) -> None:
        if tensor.device.type != "cuda":
            self._here, self._event = tensor, None
            return
        self._here = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        self._here.copy_(tensor, non_blocking=True)
        self._event = torch.cuda.Event()
        self._event.record()

    def read(self) -> bool:
        """Whether it is set: waits until it has arrived."""
        if self._event is not None:
            self._event.synchronize()
        return bool(self._here)


def place(
    arrays: Sequence[np.ndarray], device: torch.device, notice: Callable[[str], None] = lambda message: None
) -> Rows:
    """Rows of `arrays`, one array after another, in the best place. notice: hears why a copy on the node was not made.

    Raises UsageError for a share that is none.
    """
    share, size = resident_share(), sum(array.nbytes for array in arrays)
    on_disk = any(isinstance(array, np.memmap) for array in arrays)
    # For a CPU a memory map is as good as memory, and all processes of a machine share it.
    if device.type == "cpu" and not on_disk and len(arrays) == 1:
        return Held(torch.from_numpy(arrays[0]))
    if device.type != "cpu" and size <= share * free_memory(device):
        return Held(on_device(arrays, device))
    return Mapped([staged(array, notice) for array in arrays], device)


def resident_share() -> float:
    """LTBENCH_RESIDENT: the share of a device's free memory that one set of arrays may take."""
    text = os.environ.get("LTBENCH_RESIDENT", str(SHARE))
    try:
        share = float(text)
    except ValueError:
        share = -1.0
    if not 0 <= share <= 1:
        raise UsageError(f"LTBENCH_RESIDENT is {text!r}", "a share of the free memory of a device: 0 to 1")
    return share


def free_memory(device: torch.device) -> int:
    """Bytes that nobody uses on a GPU."""
    return torch.cuda.mem_get_info(device)[0]


def on_device(arrays: Sequence[np.ndarray], device: torch.device) -> Tensor:
    """One tensor (n, ...), filled piece by piece: the host never holds a second copy of the whole."""
    rows = sum(len(array) for array in arrays)
    kind = torch.from_numpy(np.empty(0, arrays[0].dtype)).dtype
    made = torch.empty((rows, *arrays[0].shape[1:]), dtype=kind, device=device)
    step = max(1, CHUNK // max(1, arrays[0][:1].nbytes))
    at = 0
    for array in arrays:
        for first in range(0, len(array), step):
            part = torch.from_numpy(np.array(array[first : first + step]))
            made[at : at + len(part)] = part.to(device)
            at += len(part)
    return made


# --- the node's own disk ----------------------------------------------------------------------------------------------


def staged(array: np.ndarray, notice: Callable[[str], None] = lambda message: None) -> np.ndarray:
    """The same array, mapped from a copy under LTBENCH_LOCAL; as it is where that is not set, it is no map of a file, or the
    copy cannot be made, which `notice` hears."""
    root, source = os.environ.get("LTBENCH_LOCAL"), _mapping(array)
    if not root or source is None or source.filename is None:
        return array
    try:
        copy = copy_once(Path(source.filename), Path(root).expanduser() / "ltbench")
    except (OSError, EnvironmentProblem) as problem:
        notice(f"no copy on the node's disk ({str(problem).splitlines()[0]}): reading {source.filename}")
        return array
    mapped = np.memmap(copy, source.dtype, "r", source.offset, source.shape)
    return mapped.reshape(array.shape)


def _mapping(array: np.ndarray) -> np.memmap | None:
    """The whole map of a file that `array` is, perhaps in another shape; None for what is not one or is a part of one."""
    if not isinstance(array, np.memmap) or array.filename is None or not array.flags.c_contiguous:
        return None
    whole = array
    while isinstance(whole.base, np.memmap):
        whole = whole.base
    return whole if whole.nbytes == array.nbytes and whole.dtype == array.dtype else None


def copy_once(source: Path, root: Path) -> Path:
    """A verified copy of `source` in `root`; processes of the node that ask at once wait for the one that makes it.

    The name says which file it is of (path, size, time of change), so a changed file is copied again. Raises OSError, and
    EnvironmentProblem when the copy does not read back as it was written.
    """
    stat = source.stat()
    told = f"{source.resolve()}\x1f{stat.st_size}\x1f{stat.st_mtime_ns}"
    key = hashlib.sha256(told.encode()).hexdigest()[:16]
    target = root / f"{key}-{source.name}"
    root.mkdir(parents=True, exist_ok=True)
    with _alone(root / f"{key}.lock"):
        if not (target.is_file() and target.stat().st_size == stat.st_size):
            _copy(source, target)
    return target


@contextlib.contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """One process of this node at a time. flock is sound on a node's own disk and let go of by a process that dies; the store,
    which several nodes share, has no locks."""
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _copy(source: Path, target: Path) -> None:
    temporary = files.temporary_beside(target)
    digest = hashlib.sha256()
    try:
        with source.open("rb") as reading, temporary.open("wb") as writing:
            while chunk := reading.read(CHUNK):
                digest.update(chunk)
                writing.write(chunk)
            writing.flush()
            os.fsync(writing.fileno())
        if files.sha256_file(temporary)[0] != digest.hexdigest():
            raise EnvironmentProblem(f"{temporary} does not read back as it was written", "check the disk")
        temporary.rename(target)
    finally:
        temporary.unlink(missing_ok=True)
