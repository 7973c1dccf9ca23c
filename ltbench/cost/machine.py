"""What a cost is estimated for: a device, how many of it at a time, and how long a job may run there."""

from __future__ import annotations

import os
import shutil
import subprocess
from dataclasses import dataclass


@dataclass(frozen=True)
class Machine:
    """device: as torch names a GPU, part of such a name ("a100"), or "cpu (N cores)". threads: of one worker on a CPU.

    ranks: devices that share a cell. slots: cells at a time. limit: seconds that a job may run, None for no limit.
    """

    device: str
    threads: int = 1
    ranks: int = 1
    slots: int = 1
    limit: float | None = None

    @property
    def gpu(self) -> bool:
        return not self.device.lower().startswith("cpu")

    def matches(self, device: str) -> bool:
        """Whether something measured on `device` holds here."""
        if not self.gpu:
            return device.lower().startswith("cpu")
        return self.device.lower() in device.lower()

    def hours(self, seconds: float) -> float:
        """GPU-hours, or core-hours on a CPU, of one cell that takes so many seconds."""
        return seconds / 3600 * self.ranks * (1 if self.gpu else self.threads)

    @property
    def unit(self) -> str:
        return "GPU-hours" if self.gpu else "core-hours"


def cpu_name() -> str:
    """This machine's CPU as records name it."""
    return f"cpu ({os.cpu_count()} cores)"


def gpu_names() -> list[str]:
    """The GPUs that nvidia-smi knows, as torch names them; [] without any."""
    tool = shutil.which("nvidia-smi")
    if tool is None or os.environ.get("CUDA_VISIBLE_DEVICES") in ("", "-1"):
        return []
    command = [tool, "--query-gpu=name", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=20, check=True).stdout
    except (OSError, subprocess.SubprocessError):
        return []
    return [line.strip() for line in said.splitlines() if line.strip()]
