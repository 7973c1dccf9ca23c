"""The watchdog: a tiny job that runs `submit` again, and puts the next one into the queue until all is done or nothing can come."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from ltbench.launch.slurm.layout import Entry, Submission
from ltbench.launch.slurm.submit import Sender
from ltbench.plan import Plan
from ltbench.plan.planned import Planned
from ltbench.profiles import Profile, Resources

RETRIED = (
    "node",
    "timeout",
    "preempted",
)  # causes for which a watchdog tries a failed cell again: the others are a person's
TRIES = 5  # rounds in a row that submitted something and found no new record


@dataclass(frozen=True)
class Round:
    """How far the grid was when a watchdog was put into the queue. tries: see TRIES."""

    done: int = 0
    tries: int = 0

    @classmethod
    def of(cls, submission: Submission, array: int) -> Round:
        """What the watchdog in `array` was told."""
        told = submission.array(array).resource
        return cls(told.get("done", 0), told.get("tries", 0))

    def next(self, found: Plan, submitted: bool) -> Round:
        """The round after this one."""
        done = sum(item.done for item in found.cells)
        return Round(done, 0 if done > self.done else self.tries + submitted)


def left_alone(found: Plan, cancelled: Collection[str]) -> dict[str, Planned]:
    """Cells that a watchdog does not submit again: those that failed for a reason of their own, those that a person cancelled."""
    failed = {
        item.cell.id: item for item in found.cells if item.state == "failed" and item.cause not in RETRIED
    }
    stopped = {
        item.cell.id: replace(item, reason="was cancelled; `submit` asks for it again")
        for item in found.cells
        if item.due and item.cell.id in cancelled
    }
    return failed | stopped


def queue(sender: Sender, at: Round) -> str:
    """Put a watchdog into the queue, to begin after the profile's pause; its job number."""
    asked, pause = resources(sender.profile), sender.profile.watchdog_minutes
    told = {"class": "watchdog", "done": at.done, "tries": at.tries, "time": asked.time}
    nothing: Sequence[Sequence[Entry]] = [()]
    array = sender.submission.add_array(told, nothing)
    text = replace(sender, function=look).script(array.number, asked, [0], begin=f"now+{pause}minutes")
    return sender.send(array.number, text)


def resources(profile: Profile) -> Resources:
    """One core for a few minutes, where helpers run."""
    minutes = max(15, 2 * profile.signal_seconds // 60 + 5)
    return replace(profile.resources("helper"), gpus=0, gpu_type=None, cpus=1, ranks=1, pack=1, time=minutes)


def look(folder: str, array: str) -> int:
    """What the job runs: `submit` once more, as it was typed, with the code that was submitted; its exit code."""
    submission = Submission(Path(folder))
    info = submission.info()
    command = [sys.executable, "-P", f"{info['snapshot']}/harness.py", *again(info)]
    code = subprocess.run([*command, "--round", f"{submission.id}.{array}"], cwd=info["cwd"]).returncode
    if code not in (0, 1):  # the command could not look, so it put no successor into the queue
        environment: Mapping[str, str] = info["environment"]
        sender = Sender(submission, submission.profile(), info["benchmark"], look, environment)
        at = Round.of(submission, int(array))
        if at.tries < TRIES:
            queue(sender, Round(at.done, at.tries + 1))
    return code


def again(info: Mapping[str, object]) -> list[str]:
    """The arguments that submit this again, with a watchdog."""
    filters = [word for text in info["filters"] for word in ("--filter", text)]  # pyright: ignore[reportGeneralTypeIssues]
    return [
        "submit",
        str(info["spec"]),
        "--profile",
        str(info["profile_file"]),
        *filters,
        "--no-ask",
        "--watchdog",
    ]
