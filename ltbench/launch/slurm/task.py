"""What one element of an array does: the stages of its cells, on the resources that SLURM gave it."""

from __future__ import annotations

import os
import socket
import time
from pathlib import Path
from typing import Any

from ltbench.launch.devices import seats
from ltbench.launch.local import LocalRun, Settings, failed
from ltbench.launch.slurm.layout import Submission
from ltbench.launch.work import Job
from ltbench.stages.names import stage_name
from ltbench.store import Store
from ltbench.store.claims import latest_attempt


def run_task(folder: str, array: str) -> str:
    """Run element SLURM_ARRAY_TASK_ID of `array` of the submission in `folder`; how it ended: done, failed or preempted."""
    submission, number = Submission(Path(folder)), int(array)
    index, restart = int(os.environ["SLURM_ARRAY_TASK_ID"]), int(os.environ.get("SLURM_RESTART_COUNT", "0"))
    info = submission.info()
    facts = {"node": os.environ.get("SLURMD_NODENAME") or socket.gethostname(), "pid": os.getpid()}
    submission.put_started(
        number, index, restart, job_id=os.environ["SLURM_JOB_ID"], time=time.time(), **facts
    )
    store = Store.open(Path(info["store"]), Path(info["scratch"]))
    entries = submission.array(number).tasks[index]
    for entry in entries:
        entry.register(store)
    said = entries[0].options
    chosen = seats(len(entries), workers=None, threads=said["threads"], device=said.get("device"))
    logs = submission.logs / f"{number}_{index}"
    run = LocalRun(
        [entry.work() for entry in entries],
        Settings(store.root, store.scratch, logs, chosen),
        _Quiet(),
        lambda job, failure: _record(store, job, failure),
    )
    outcomes = run.run()
    reason = "preempted" if run.stopped else "failed" if failed(outcomes) else "done"
    bad = next((each for each in outcomes if each.outcome == "failed"), None)
    told = {"cause": bad.cause, "message": bad.message} if bad else {}
    submission.put_ended(number, index, restart, reason=reason, outcome=reason, **told)
    return reason


def _record(store: Store, job: Job, failure: dict[str, Any]) -> None:
    run = store.run(job.cell, job.work.run)
    stage = stage_name(job.stage)
    attempt = job.claim.get("attempt") or latest_attempt(run.dir, stage) or 1
    fields = {key: failure.get(key) for key in ("cause", "message", "traceback", "evidence")}
    run.fail(stage, attempt, step=job.claim.get("step"), **fields)


class _Quiet:
    """Prints ends and notes: they are the element's log."""

    def hello(self, worker: int, message: dict[str, Any]) -> None: ...
    def started(self, worker: int, job: Job) -> None: ...
    def event(self, worker: int, job: Job, event: dict[str, Any]) -> None: ...
    def held(self, worker: int, job: Job, event: dict[str, Any]) -> None: ...
    def tick(self, done: int, total: int, waiting: object) -> None: ...

    def ended(self, worker: int, job: Job, outcome: Any) -> None:
        print(f"{outcome.outcome}  {job.work.label}, {job.stage} {outcome.message}", flush=True)

    def note(self, text: str) -> None:
        print(text, flush=True)
