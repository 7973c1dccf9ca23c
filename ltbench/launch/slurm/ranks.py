"""A task of srun as one of the ranks that train a cell together: it calls the job itself, and all agree on every end."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable, Sequence
from typing import Any

from ltbench.launch.local import Outcome
from ltbench.launch.slurm.layout import Entry
from ltbench.launch.slurm.log import Log
from ltbench.launch.work import HELD_PAUSE, CellWork, Job, Queue
from ltbench.launch.worker import DEFAULT_JOB, load_job
from ltbench.store import Store


def run(
    entries: Sequence[Entry],
    store: Store,
    stopped: Callable[[], signal.Signals | None],
    log: Log,
    threads: int,
    grace: float | None = None,
) -> list[Outcome]:
    """Run the stages one after another; every rank gets the same outcomes. A stage that somebody else holds is waited for.

    A failure ends the process where the group is broken: srun's --kill-on-bad-exit ends the others.
    """
    os.environ["OMP_NUM_THREADS"] = str(threads)  # before torch is imported
    run_job = load_job(DEFAULT_JOB)

    outcomes: list[Outcome] = []
    for job in _jobs(entries, threads, grace):
        begun = time.monotonic()
        log.started(0, job)
        result: dict[str, Any] = {"outcome": "held"}
        while result["outcome"] == "held":
            result = run_job(
                *(str(store.root), str(store.scratch), job.cell, job.work.run, job.stage, job.work.options),
                on_event=lambda event, job=job: log.event(0, job, event),
                stop=lambda: stopped() is not None,
            )
            if result["outcome"] == "held":
                log.held(0, job, result)
                time.sleep(HELD_PAUSE)
        outcome = Outcome(
            *(job.cell, job.work.label, job.stage, result["outcome"], result.get("cause")),
            result.get("message") or "",
            time.monotonic() - begun,
        )
        log.ended(0, job, outcome)
        outcomes.append(outcome)
        if outcome.outcome != "done":
            break
    return outcomes


def _jobs(entries: Sequence[Entry], threads: int, grace: float | None) -> list[Job]:
    """The stages in the order in which one worker would do them: equal on every rank."""
    told = {"threads": threads, "grace": grace}
    works: list[CellWork] = [entry.work(**{**told, **entry.options}) for entry in entries]
    queue, order = Queue(works), []
    while (job := queue.next()) is not None:
        order.append(job)
        queue.done(job)
    return order
