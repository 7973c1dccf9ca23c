"""Who a process is, so that others can tell whether it is still there."""

from __future__ import annotations

import functools
import os
import socket
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ltbench import files


@dataclass(frozen=True)
class Owner:
    """A process. `kernel` is files.kernel(), `start` its start in clock ticks since boot (a process number is reused, the
    pair is not); the SLURM fields are None outside a job."""

    host: str
    pid: int
    start: int | None
    kernel: str
    slurm_job: str | None
    slurm_restart: int

    @classmethod
    def from_json(cls, value: Any) -> Owner | None:
        """None when `value` is not what `json()` gives."""
        try:
            return cls(**value)
        except TypeError:
            return None

    def json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)

    def alive(self, here: Owner) -> bool | None:
        """Whether the process is still there; None where `here` cannot know, being under another kernel."""
        if not self.kernel or self.kernel != here.kernel:
            return None
        if not files.pid_exists(self.pid):
            return False
        found = process_start(self.pid)
        # /proc can be closed to us (hidepid) for somebody else's process: then the number has to do.
        return found is None or self.start is None or found == self.start

    def requeued_as(self, here: Owner) -> bool:
        """Whether `here` is a later start of the same SLURM job: then SLURM itself says that this one is over."""
        return self.slurm_job is not None and (self.slurm_job, True) == (
            here.slurm_job,
            here.slurm_restart > self.slurm_restart,
        )


def here() -> Owner:
    """This process."""
    job, restart = os.environ.get("SLURM_JOB_ID"), os.environ.get("SLURM_RESTART_COUNT", "0")
    return _made(os.getpid(), files.kernel(), job, restart)


@functools.lru_cache(maxsize=1)  # a look asks for it once per stage that is not over
def _made(pid: int, kernel: str, job: str | None, restart: str) -> Owner:
    return Owner(
        host=socket.gethostname(),
        pid=pid,
        start=process_start(pid),
        kernel=kernel,
        slurm_job=job,
        slurm_restart=int(restart) if restart.isdigit() else 0,
    )


def process_start(pid: int) -> int | None:
    """Field 22 of /proc/PID/stat; -1 for a process that has ended and waits for its parent; None where there is no telling."""
    try:
        text = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # the command's name, in brackets, may hold anything
    return -1 if fields[0] in "ZX" else int(fields[19])
