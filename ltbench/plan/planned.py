"""How a cell stands: its state, what is still to be done for it, and what was spent on it so far. Values only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ltbench.spec.cells import Cell

STATES = ("done", "running", "failed", "partial", "stale", "new", "n/a")


@dataclass(frozen=True)
class Due:
    """A stage that is still to be done, `train:280,560` or `evaluate:560:EVALUATION`, and why."""

    stage: str
    reason: str


@dataclass(frozen=True)
class Spent:
    """What the envelope of a record tells of its making. seconds: since its attempt began. images_per_s: the median while
    training. nfe: network rows per image of an evaluation."""

    kind: str
    step: int
    evaluation: str | None
    attempt: int
    seconds: float
    gpu_hours: float
    device: str
    threads: int
    ranks: int = 1
    images_per_s: float | None = None
    nfe: float | None = None


@dataclass(frozen=True)
class Planned:
    """How a cell stands. done and total count records (one per milestone and one per evaluation of it).

    run: the run that counts for the present code, None if there is none yet. cause: of a failure, or why there is none to wait for
    (unsupported, impossible). changes: what makes it stale.
    spent: what its records say of their making.
    progress: the last heartbeat of a running stage, host where it runs. reached: the step that training is known to have come to.
    attempts: at the stage that runs, failed or was interrupted; 0 where none was looked for. Neither done nor anything due: what is
    missing needs weights that another machine has (`elsewhere`).
    """

    cell: Cell
    state: str
    reason: str
    done: int
    total: int
    due: tuple[Due, ...] = ()
    run: str | None = None
    cause: str | None = None
    changes: tuple[str, ...] = ()
    progress: dict[str, Any] | None = None
    spent: tuple[Spent, ...] = ()
    host: str | None = None
    reached: int = 0
    attempts: int = 0

    @property
    def elsewhere(self) -> bool:
        """Whether something is missing that nothing here is to be done for: its weights are where it was trained."""
        return self.state in ("partial", "stale") and not self.due

    def json(self) -> dict[str, Any]:
        """For `--json`."""
        cell = self.cell
        return {
            "cell": cell.id,
            "part": cell.part,
            "label": cell.label,
            "axes": cell.axes,
            "state": self.state,
            "reason": self.reason,
            "cause": self.cause,
            "changes": list(self.changes),
            "done": self.done,
            "total": self.total,
            "run": self.run,
            "due": [{"stage": due.stage, "reason": due.reason} for due in self.due],
            "progress": self.progress,
        }
