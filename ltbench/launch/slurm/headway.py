"""Whether an element gets anywhere: what each of its starts found kept, and what is said when starts in a row kept nothing.

A job that is preempted before its first checkpoint, or whose time limit ends before its first step, would otherwise be put back
into the queue for ever.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ltbench import files
from ltbench.launch.slurm.element import Element
from ltbench.launch.slurm.layout import Entry
from ltbench.profiles import Profile, Resources
from ltbench.stages.names import parse, stage_name
from ltbench.store import Run, Store, claims, sealed
from ltbench.store.kept import names as listed

CAUSE = "no-progress"
# As ltbench/checkpoint.py calls a milestone, and an attempt's checkpoint.
_STEP = re.compile(r"step-(\d+)(\.a\d+)?")


def kept(entries: Sequence[Entry], store: Store) -> int:
    """What is kept of an element's work, in one number that only grows: steps of training in checkpoints, images of evaluations."""
    found = 0
    for entry in entries:
        run = store.run(entry.cell, entry.run)
        for stage in entry.stages:
            found += _steps(run) if parse(stage).kind == "train" else _images(run, stage)
    return found


def _steps(run: Run) -> int:
    names = [name for folder in (run.checkpoints, run.milestones) for name in listed(folder)]
    return max((int(found[1]) for name in names if (found := _STEP.fullmatch(name))), default=0)


def _images(run: Run, stage: str) -> int:
    now = claims.standing(run.dir, stage_name(stage), run.store.watch, run.store.lease)
    return 0 if now is None else int(now.beat.get("step") or 0)


def problem(element: Element, now: int, profile: Profile, asked: Resources) -> str | None:
    """A sentence once `profile.stuck_starts` starts before this one have kept nothing new, else None. now: what is kept."""
    before = [_read(element, "started", restart) for restart in range(element.restart)]
    if len(before) < profile.stuck_starts:
        return None
    then = before[-profile.stuck_starts].get("kept")
    if then is None or now > then:  # a start that was lost with its file proves nothing
        return None
    times = [_read(element, "ended", restart).get("reason") for restart in range(element.restart)]
    return (
        f"started {profile.stuck_starts} times in a row and kept nothing new ({now} steps or images are there): "
        + (
            f"the time limit of {asked.time} minutes, with its warning {profile.signal_seconds} s before, ends before the first new step; "
            "raise time in the profile"
            if set(times[-profile.stuck_starts :]) == {"timeout"}
            else "it is stopped or lost each time before anything is saved; lower train.checkpoint_seconds, choose a partition that "
            "leaves it longer, or raise stuck_starts in the profile"
        )
    )


def give_up(entries: Sequence[Entry], store: Store, message: str) -> None:
    """Write into the store that the stages which are not over failed."""
    for entry in entries:
        run = store.run(entry.cell, entry.run)
        stands = {
            stage: claims.standing(run.dir, stage_name(stage), run.store.watch, run.store.lease)
            for stage in entry.stages
        }
        for stage, now in stands.items():
            if now is None and any(stands.values()):
                continue  # it was never reached
            if now is not None and (
                now.outcome == "done" or (now.outcome is None and now.alive is not False)
            ):
                continue
            # Before the first attempt where there was none: a later one is newer.
            attempt, step = (0, None) if now is None else (now.attempt, now.beat.get("step"))
            run.fail(stage_name(stage), attempt, step=step, cause=CAUSE, message=message)
            break


def _read(element: Element, kind: str, restart: int) -> dict[str, Any]:
    name = f"{element.array}.{element.index}.{restart}.json"
    try:
        return sealed.read_sealed(Path(element.submission.folder, kind, name))
    except (FileNotFoundError, files.Unreadable):
        return {}
