"""What is to be done, in which order: the stages of every cell, and the queue that hands them out.

How a stage is spelled is said in ltbench/stages/names.py.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ltbench.stages.names import milestones, parse

HELD_PAUSE = 2.0  # seconds before a stage that another process holds is asked for again


@dataclass(frozen=True)
class CellWork:
    """The stages that one cell still needs, in order.

    run: the 12-digit name of its directory under the cell. options: handed to every job of the cell as they are. after: (cell, step)
    of the milestone of another cell that training begins at. latents: the key of those it trains on, None for pixels.
    """

    cell: str
    label: str
    seed: int
    stages: tuple[str, ...]
    run: str
    options: dict[str, Any] = field(default_factory=dict)
    after: tuple[str, int] | None = None
    latents: str | None = None


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
        """The milestone to evaluate, or the last step to train to; 0 for a look at real images."""
        return max(milestones(self.stage), default=0)

    @property
    def helps(self) -> Hashable:
        """What others wait for while this job is not over: an evaluation for the features of real images and for its share of
        images, a training for its latents."""
        if self.kind == "reference":
            return self.kind
        if self.kind == "encode":
            return (self.kind, parse(self.stage).key)
        return (self.cell, self.step, parse(self.stage).evaluation) if self.kind == "sample" else None


class Queue:
    """Hands out the next job that can start now.

    An evaluation waits for its milestone when the same queue also trains its cell, for the features of the real images, and
    for the shares of its images that other jobs make. A training that begins at a milestone waits for it, one on latents for these. A stage that somebody else holds goes
    behind everything that nobody holds, and is asked for again after a pause.
    """

    def __init__(self, work: Iterable[CellWork]) -> None:
        self._waiting: list[Job] = []
        self._training: set[str] = set()
        self._reached: dict[str, set[int]] = {}
        self._helpers: Counter[Hashable] = Counter()
        self.total = 0
        for index, cell in enumerate(work):
            self._add(index, cell)

    def _add(self, index: int, work: CellWork) -> None:
        train = [stage for stage in work.stages if stage.startswith("train:")]
        rest = sorted((s for s in work.stages if s not in train), key=lambda s: (milestones(s), s[0] == "e"))
        if train:
            self._training.add(work.cell)
        for place, stage in enumerate(train + rest):
            first = stage.startswith(
                ("reference:", "encode:")
            )  # others wait for it, and it waits for nothing
            job = Job(work, stage, (-1 if first else work.seed, index, place))
            self._waiting.append(job)
            self._helpers[job.helps] += job.helps is not None
        self.total += len(train) + len(rest)

    def __len__(self) -> int:
        return len(self._waiting)

    def waiting(self) -> Sequence[Job]:
        """Jobs that nobody has been given yet."""
        return tuple(self._waiting)

    def next(self, now: float | None = None, *, trainings: bool = True) -> Job | None:
        """Take out the job to start now, without `trainings` an evaluation; None when none is ready."""
        now = time.monotonic() if now is None else now
        wanted = [job for job in self._waiting if trainings or job.kind != "train"]
        ready = [job for job in wanted if job.not_before <= now and self._ready(job)]
        if not ready:
            return None
        job = min(ready, key=lambda job: (job.holds, job.order))
        self._waiting.remove(job)
        return job

    def _ready(self, job: Job) -> bool:
        if self._untrained(job) or (job.kind == "train" and self._helpers["encode", job.work.latents]):
            return False
        if job.kind != "evaluate":
            return True
        mine = (job.cell, job.step, parse(job.stage).evaluation)
        return not (self._helpers["reference"] or self._helpers[mine])

    def _untrained(self, job: Job) -> bool:
        """Whether this queue has still to make the weights that a job needs."""
        cell, step = self._needs(job)
        return cell in self._training and step not in self._reached.get(cell, ())

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
        self._helpers[job.helps] -= job.helps is not None
        if job.kind == "train":
            self._training.discard(job.cell)

    def drop(self, job: Job) -> list[Job]:
        """A job ended badly: take out and return what can no longer start because of it.

        What a helper did not do an evaluation or a training does itself, or fails with the cause.
        """
        self._helpers[job.helps] -= job.helps is not None
        if job.kind != "train":
            return []
        lost: list[Job] = []
        bad = {job.cell}
        while more := [
            o for o in self._waiting if o not in lost and self._needs(o)[0] in bad and self._untrained(o)
        ]:
            lost += more
            bad |= {other.cell for other in more if other.kind == "train"}
        self._waiting = [other for other in self._waiting if other not in lost]
        return lost

    @staticmethod
    def _needs(job: Job) -> tuple[str, int]:
        """The milestone that a job needs: (cell, step); of no cell where it needs none."""
        if job.kind == "train":
            return job.work.after or ("", 0)
        return ("", 0) if job.kind in ("reference", "encode") else (job.cell, job.step)
