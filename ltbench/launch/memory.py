"""Whether something of ours was killed for want of memory: asked of the control group, without root, or read in a job's log."""

from __future__ import annotations

import os
import re
from pathlib import Path

ROOT = Path("/sys/fs/cgroup")
OWN = Path("/proc/self/cgroup")
# What slurmstepd and srun print, where the job's state is no more than FAILED: of a limit that SLURM watches itself (OverMemoryKill),
# and of a kill by the kernel in one of the job's steps.
SAID = re.compile(
    rb"slurmstepd\S*: error: .*([Ee]xceeded (job )?memory limit|oom[-_]kill event)|task \S+: Out Of Memory"
)
TAIL = 16_384  # bytes of a log's end in which that stands


def cause_of_kill(log: Path, otherwise: str = "killed") -> str:
    """ "oom" where SLURM says at the end of a job's log that its memory was short, else `otherwise`."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, file.seek(0, os.SEEK_END) - TAIL))
            return "oom" if SAID.search(file.read()) else otherwise
    except OSError:
        return otherwise


def oom_kills() -> int | None:
    """How many processes of this process's control group (of SLURM's job or step, say) the kernel has killed for want of
    memory; None where nobody counts."""
    try:
        lines = OWN.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2
            folder, name = ROOT / path.lstrip("/"), "memory.events"
        elif "memory" in controllers.split(","):
            folder, name = ROOT / "memory" / path.lstrip("/"), "memory.oom_control"
        else:
            continue
        # The innermost group need not count: cgroup v2 has the file only where the memory controller was handed down.
        for place in (folder, *folder.parents):
            if (count := _count(place / name)) is not None:
                return count
            if place == ROOT:
                break
    return None


def _count(path: Path) -> int | None:
    try:
        found = re.search(r"^oom_kill (\d+)$", path.read_text(), re.MULTILINE)
    except OSError:
        return None
    return None if found is None else int(found[1])
