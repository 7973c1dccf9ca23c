"""A command of ours as a job: `datasets prepare`, `calibrate`, `evaluate --external`.

It is an array of one element in a submission of its own, with no cells in it: what it is to do stands in the array's resource as
it was typed, less --profile. So `status`, `logs` and `cancel` know it, a requeue goes on with it, and `submit` lets cells wait for
what it makes. In the job it is a child process: a signal reaches it as Ctrl-C, and the same command goes on where that left it.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltbench.launch.local import Outcome
from ltbench.launch.process import exit_reason
from ltbench.launch.signals import shielded
from ltbench.profiles import JobClass

if TYPE_CHECKING:
    from ltbench.launch.slurm.submit import Sender

KEY = "command"  # of an array's resource
TICK = 0.2  # seconds between looks at the child and at the signals
PATIENCE = 90.0  # seconds that a child has to stop after Ctrl-C
TAIL = 8192  # bytes of a log in which the last error is looked for


@dataclass(frozen=True)
class Command:
    """words: the verb and its arguments. title: for people. makes: the place of a prepared data set that cells may wait for."""

    words: tuple[str, ...]
    title: str
    job_class: JobClass
    makes: str | None = None

    @classmethod
    def of(cls, resource: Mapping[str, Any]) -> Command | None:
        """What an array's resource says; None for an array of cells."""
        if KEY not in resource:
            return None
        told = resource[KEY]
        return cls(tuple(told["words"]), told["title"], resource["class"], told["makes"])


def queue(sender: Sender, command: Command) -> str:
    """Put the command into SLURM's queue; its job number. Raises EnvironmentProblem."""
    from ltbench.launch.slurm.submit import told

    asked = sender.profile.resources(command.job_class)
    content = {"words": list(command.words), "title": command.title, "makes": command.makes}
    resource = {"class": command.job_class, **told(asked), KEY: content}
    array = sender.submission.add_array(resource, [()])
    return sender.send(array.number, sender.script(array.number, asked, [0]))


# --- in the job -----------------------------------------------------------------------------------------------------------


def run(command: Command, info: Mapping[str, Any], log: Path, heard: Callable[[], object]) -> Outcome:
    """Run it with the code that was submitted, where it was typed; how it ended. `heard`: whether a signal asks for a stop."""
    begun = time.monotonic()
    with shielded():  # SLURM signals every process of a job; what a child is to hear, it hears from here
        child = subprocess.Popen(
            [sys.executable, "-P", f"{info['snapshot']}/harness.py", *command.words],
            cwd=info["cwd"],
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
    stopped = _wait(child, heard)
    code = child.wait()
    seconds = time.monotonic() - begun
    if code == 0:
        return Outcome("", command.title, "", "done", seconds=seconds)
    if stopped:
        return Outcome("", command.title, "", "preempted", seconds=seconds)
    said = last_error(log) or exit_reason(code)
    return Outcome("", command.title, "", "failed", "environment" if code == 4 else "code", said, seconds)


def _wait(child: subprocess.Popen[bytes], heard: Callable[[], object]) -> bool:
    """Until the child has ended; whether it was asked to."""
    asked: float | None = None
    while child.poll() is None:
        if asked is None and heard():
            asked = time.monotonic()
            child.send_signal(signal.SIGINT)
        if asked is not None and time.monotonic() - asked > PATIENCE:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
        time.sleep(TICK)
    return asked is not None


def last_error(log: Path) -> str | None:
    """What the last `error:` of a log says; None where there is none."""
    try:
        with log.open("rb") as file:
            file.seek(max(0, log.stat().st_size - TAIL))
            text = file.read().decode("utf-8", "replace")
    except OSError:
        return None
    found = re.findall(r"^error:\s+(.+)$", text, re.MULTILINE)
    return found[-1].strip() if found else None
