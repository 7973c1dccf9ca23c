"""One element of a job array as it sees itself: which it is, what SLURM did to it, and how it is put back into the queue."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from ltbench.errors import UsageError
from ltbench.launch.signals import shielded
from ltbench.launch.slurm.layout import Submission

PATIENCE = 60  # seconds for one answer of scontrol


@dataclass(frozen=True)
class Element:
    """Element `index` of array `array`, begun for the `restart`-th time (0 is the first) as SLURM's job `job`."""

    submission: Submission
    array: int
    index: int
    restart: int
    job: str

    @classmethod
    def here(cls, folder: str, array: str, env: Mapping[str, str] | None = None) -> Element:
        """As SLURM's variables tell. Raises UsageError outside a job."""
        env = os.environ if env is None else env
        if "SLURM_JOB_ID" not in env:
            raise UsageError("this runs in a SLURM job only: SLURM_JOB_ID is not set", "submit starts it")
        index = env.get("SLURM_ARRAY_TASK_ID", "0")
        # The last element of an array has the array's own number: to requeue that would requeue all of them.
        name = f"{env['SLURM_ARRAY_JOB_ID']}_{index}" if "SLURM_ARRAY_JOB_ID" in env else env["SLURM_JOB_ID"]
        restart = int(env.get("SLURM_RESTART_COUNT", "0"))
        return cls(Submission(Path(folder)), int(array), int(index), restart, name)

    @property
    def cancelled(self) -> bool:
        """Whether a person wants no more of it."""
        return self.submission.cancelled(self.array, self.index)

    def say_started(self, kept: int) -> None:
        """kept: see ltbench/launch/slurm/headway.py."""
        self.submission.put_started(
            *(self.array, self.index, self.restart),
            node=os.environ.get("SLURMD_NODENAME", socket.gethostname()),
            job_id=os.environ.get("SLURM_JOB_ID"),
            time=time.time(),
            pid=os.getpid(),
            kept=kept,
        )

    def say_ended(self, reason: str, outcome: str, cause: str | None = None, message: str = "") -> None:
        told = {"reason": reason, "outcome": outcome, "cause": cause, "message": message, "time": time.time()}
        self.submission.put_ended(self.array, self.index, self.restart, **told)

    def timeouts(self) -> int:
        """How many of its earlier starts ran into the time limit."""
        from ltbench.store import sealed

        ends = self.submission.ended()
        mine = [
            path for (array, index, _), path in ends.items() if (array, index) == (self.array, self.index)
        ]
        return sum(sealed.read_sealed(path).get("reason") == "timeout" for path in mine)

    def view(self) -> View:
        """What SLURM says of it now."""
        with shielded():
            text = _output("scontrol", "-o", "show", "job", self.job)
        return View.read(text, self.restart)

    def requeue(self) -> str | None:
        """Put it back into the queue; None, or why SLURM would not."""
        with shielded():  # SLURM's answer is a signal to everything that runs here
            try:
                done = subprocess.run(
                    ["scontrol", "requeue", self.job], capture_output=True, text=True, timeout=PATIENCE
                )
            except (OSError, subprocess.TimeoutExpired) as error:
                return str(error)
        return (
            None if done.returncode == 0 else done.stderr.strip() or f"scontrol ended with {done.returncode}"
        )


@dataclass(frozen=True)
class View:
    """What `scontrol show job` tells an element about itself (seen in Slurm 22.05): a preempted job runs on and has a
    PreemptTime; a cancelled one is completing; one that was requeued has a higher restart count already."""

    fate: str  # running, preempted, cancelled, requeued, unknown

    @classmethod
    def read(cls, text: str | None, restart: int) -> View:
        """From one line of scontrol; `restart` is the element's own count."""
        pairs = (word.partition("=") for word in (text or "").split())
        fields = {name: value for name, _, value in pairs}
        state, preempted = fields.get("JobState", ""), fields.get("PreemptTime", "None")
        if not state:
            return cls("unknown")
        if int(fields.get("Restarts", "0")) > restart:
            return cls("requeued")
        if state != "RUNNING":
            return cls("cancelled")
        return cls("running" if preempted in ("None", "") else "preempted")


def _output(*words: str) -> str | None:
    try:
        done = subprocess.run(words, capture_output=True, text=True, timeout=PATIENCE)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def cores(env: Mapping[str, str] | None = None) -> int | None:
    """CPU cores of one task as SLURM says; None where it does not."""
    env = os.environ if env is None else env
    for name in ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE"):
        if env.get(name, "").isdigit():
            return int(env[name])
    return None
