"""Writes down why a stage failed where its process could not do so itself any more."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from ltbench.errors import LtbenchError
from ltbench.launch.work import CellWork, Job
from ltbench.stages.names import stage_name
from ltbench.store import Store
from ltbench.store.claims import latest_attempt


class Cancelled:
    """Whether a person has cancelled a job's cell since this was made: then it is not begun. What was cancelled before is asked
    for again by the run that makes this."""

    def __init__(self, store: Store, work: Iterable[CellWork]) -> None:
        self._store = store
        self._before = {cell.cell: self._marks(cell) for cell in work}

    def __call__(self, job: Job) -> bool:
        return bool(self._marks(job.work) - self._before[job.cell])

    def _marks(self, work: CellWork) -> set[tuple[str, int]]:
        failures = self._store.run(work.cell, work.run).failures()
        return {(each["stage"], each["attempt"]) for each in failures if each["cause"] == "cancelled"}


class Recorder:
    """Keeps a dead worker's failure in `store`; what the disk refuses is told to `say`."""

    def __init__(self, store: Store, say: Callable[[str], None]) -> None:
        self._store, self._say = store, say

    def __call__(self, job: Job, failure: dict[str, Any]) -> None:
        run = self._store.run(job.cell, job.work.run)
        stage = stage_name(job.stage)
        attempt = job.claim.get("attempt") or latest_attempt(run.dir, stage) or 1
        fields = {key: failure.get(key) for key in ("cause", "message", "traceback", "evidence")}
        try:
            run.fail(stage, attempt, step=job.claim.get("step"), **fields)
        except LtbenchError as error:
            self._say(f"the failure of {job.work.label} could not be written down: {error.message}")
