"""What is to be done, in which order: the stages of every cell, and the queue that hands them out.

A stage is text, so that it travels in a JSON line and in a job script alike: `train:280,560` trains to step 560 and
keeps milestones at both, `evaluate:560:1a2b3c4d5e6f` evaluates the milestone at 560 by the stored description
1a2b3c4d5e6f.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ltbench.errors import LtbenchError

HELD_PAUSE = 2.0  # seconds before a stage that another process holds is asked for again


@dataclass(frozen=True)
class CellWork:
    """The stages that one cell still needs, in order.

    run: the 12-digit name of its directory under the cell. options: handed to every job of the cell as they are. after: (cell, step)
    of the milestone of another cell that training begins at.
    """

    cell: str
    label: str
    seed: int
    stages: tuple[str, ...]
    run: str
    options: dict[str, Any] = field(default_factory=dict)
    after: tuple[str, int] | None = None


@dataclass(eq=False)
class Job:
    """One stage of one cell. `order` sorts: lower seeds, then the plan's order, then early milestones."""

    work: CellWork
    stage: str
    order: tuple[int, int, int]
    not_before: float = 0.0
    holds: int = 0
    claim: dict = field(default_factory=dict)

    @property
    def cell(self) -> str:
        return self.work.cell

    @property
    def kind(self) -> str:
        return self.stage.partition(":")[0]

    @property
    def step(self) -> int:
        """The milestone to evaluate, or the last step to train to."""
        return milestones(self.stage)[-1]


def milestones(stage: str) -> tuple[int, ...]:
    """The steps named in a stage: `train:280,560` -> (280, 560); `evaluate:560:…` -> (560,)."""
    kind, _, rest = stage.partition(":")
    steps = rest.partition(":")[0] if kind == "evaluate" else rest
    try:
        found = tuple(int(step) for step in steps.split(","))
    except ValueError:
        found = ()
    if kind not in ("train", "evaluate") or not found:
        raise LtbenchError(
            f"'{stage}' is not a stage", "a stage reads train:STEP[,STEP...] or evaluate:STEP:EVALUATION"
        )
    return found


def stage_name(stage: str) -> str:
    """The stage's name in the store: `train`, or `evaluate-000000560-1a2b3c4d5e6f`."""
    if stage.startswith("train:"):
        return "train"
    return f"evaluate-{milestones(stage)[0]:09d}-{stage.rpartition(':')[2]}"


class Queue:
    """Hands out the next job that can start now.

    An evaluation waits for its milestone when the same queue also trains its cell, and so does a training that begins at one. A stage that somebody else holds goes
    behind everything that nobody holds, and is asked for again after a pause.
    """

    def __init__(self, work: Iterable[CellWork]) -> None:
        self._waiting: list[Job] = []
        self._training: set[str] = set()
        self._reached: dict[str, set[int]] = {}
        self.total = 0
        for index, cell in enumerate(work):
            self._add(index, cell)

    def _add(self, index: int, work: CellWork) -> None:
        train = [stage for stage in work.stages if stage.startswith("train:")]
        rest = sorted((stage for stage in work.stages if stage not in train), key=milestones)
        if train:
            self._training.add(work.cell)
        for place, stage in enumerate(train + rest):
            self._waiting.append(Job(work, stage, (work.seed, index, place)))
        self.total += len(train) + len(rest)

    def __len__(self) -> int:
        return len(self._waiting)

    def waiting(self) -> Sequence[Job]:
        """Jobs that nobody has been given yet."""
        return tuple(self._waiting)

    def next(self, now: float | None = None) -> Job | None:
        """Take out the job to start now; None when none is ready."""
        now = time.monotonic() if now is None else now
        ready = [job for job in self._waiting if job.not_before <= now and self._ready(job)]
        if not ready:
            return None
        job = min(ready, key=lambda job: (job.holds, job.order))
        self._waiting.remove(job)
        return job

    def _ready(self, job: Job) -> bool:
        cell, step = (job.work.after or ("", 0)) if job.kind == "train" else (job.cell, job.step)
        return cell not in self._training or step in self._reached.get(cell, ())

    def milestone(self, cell: str, step: int) -> None:
        """A training cell has written its milestone at `step`."""
        self._reached.setdefault(cell, set()).add(step)

    def held(self, job: Job, now: float | None = None) -> None:
        """Put back a job whose stage another process holds."""
        job.holds += 1
        job.not_before = (time.monotonic() if now is None else now) + HELD_PAUSE
        self._waiting.append(job)

    def done(self, job: Job) -> None:
        """A job ended well: after training, every evaluation of the cell is ready."""
        if job.kind == "train":
            self._training.discard(job.cell)

    def drop(self, job: Job) -> list[Job]:
        """A job ended badly: take out and return what can no longer start because of it."""
        if job.kind != "train":
            return []
        lost: list[Job] = []
        bad = {job.cell}
        while more := [
            o for o in self._waiting if o not in lost and self._waits_for(o) in bad and not self._ready(o)
        ]:
            lost += more
            bad |= {other.cell for other in more if other.kind == "train"}
        self._waiting = [other for other in self._waiting if other not in lost]
        return lost

    @staticmethod
    def _waits_for(job: Job) -> str | None:
        """The cell whose training a job needs."""
        if job.kind != "train":
            return job.cell
        return job.work.after[0] if job.work.after else None
