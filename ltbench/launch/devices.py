"""How many workers, on which devices, with how many threads: asked of the system, without torch."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

from ltbench.errors import EnvironmentProblem, UsageError

CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")


@dataclass(frozen=True)
class Seats:
    """One entry per worker, its CUDA_VISIBLE_DEVICES ("" = no GPU, None = as inherited), and the threads each may use.

    ranks: neighbouring workers that train a cell together.
    """

    devices: tuple[str | None, ...]
    threads: int
    ranks: int = 1

    @property
    def workers(self) -> int:
        return len(self.devices)


def cores() -> int:
    """CPU cores this process may use: its affinity, cut by a container's quota where there is one."""
    count = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else (os.cpu_count() or 1)
    try:
        quota, period = CGROUP_QUOTA.read_text().split()
    except (OSError, ValueError):
        return count
    return count if quota == "max" else max(1, min(count, round(int(quota) / int(period))))


def gpus() -> list[str]:
    """What CUDA_VISIBLE_DEVICES may name here, one entry per GPU (or per MIG slice); [] without a working nvidia-smi."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        named = [name.strip() for name in visible.split(",")]
        stop = next((i for i, name in enumerate(named) if name in ("", "-1", "NoDevFiles")), len(named))
        return named[:stop]  # CUDA itself ignores what follows an invalid entry
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return []
    try:
        listing = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return _listed(listing)


def _listed(listing: str) -> list[str]:
    """UUIDs of an `nvidia-smi -L` listing; a GPU split by MIG is replaced by its slices."""
    found: list[list[str]] = []
    for line in listing.splitlines():
        uuid = re.search(r"UUID: ([\w-]+)", line)
        if uuid is None:
            continue
        if line.startswith("GPU "):
            found.append([uuid[1]])
        elif found:
            found[-1].append(uuid[1])
    return [uuid for gpu in found for uuid in (gpu[1:] or gpu)]


def check(workers: int | None, threads: int | None, device: str | None, ranks: int = 1) -> None:
    """Raise UsageError for numbers and names that cannot be meant; asks the system nothing."""
    for name, value in (("--workers", workers), ("--threads", threads), ("--ranks", ranks)):
        if value is not None and value < 1:
            raise UsageError(f"{name} is {value}; it must be at least 1")
    if device not in (None, "cpu", "cuda"):
        raise UsageError(f"--device is '{device}'; allowed: cpu, cuda")


def seats(
    cells: int, *, workers: int | None, threads: int | None, device: str | None, ranks: int = 1
) -> Seats:
    """Workers, devices and threads for `cells` cells; every argument that is None is chosen here.

    With GPUs, one worker each; without, one worker per cell and core. Threads share the cores evenly. With `ranks`,
    `workers` counts cells at a time, and each has that many processes, on a GPU each. Raises UsageError for an impossible
    number and EnvironmentProblem when `device` is "cuda" and there is no GPU, or fewer than `ranks`.
    """
    check(workers, threads, device, ranks)
    cards = [] if device == "cpu" else gpus()
    if device == "cuda" and not cards:
        raise EnvironmentProblem(
            "--device cuda: no GPU is visible here", "see `nvidia-smi -L` and CUDA_VISIBLE_DEVICES"
        )
    if cards and ranks > len(cards):
        raise EnvironmentProblem(
            f"--ranks {ranks}: {len(cards)} GPU{'s are' if len(cards) > 1 else ' is'} visible here, and each rank needs its own",
            f"allowed here: up to --ranks {len(cards)}, or --device cpu",
        )
    count = workers or (len(cards) if cards else cores()) // ranks
    count = max(1, min(count, cells) if workers is None else count) * ranks
    none = "" if device == "cpu" else None  # a machine whose GPU nvidia-smi does not know keeps it
    devices = tuple(cards[i % len(cards)] if cards else none for i in range(count))
    return Seats(devices, threads or max(1, cores() // count), ranks)
