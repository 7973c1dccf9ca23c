"""What a job that is dead could no longer write: its end, derived from what it said at its beginning and from SLURM's queue.

Called by whoever looks (`submit`, `status`): files are written once and the first writer counts, so that two may look at the same
moment. A job that SLURM does not name as ended is left alone, and so is one on which SLURM gives no answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ltbench import files
from ltbench.launch import memory
from ltbench.launch.slurm import queue_states
from ltbench.launch.slurm.layout import Entry, Submission
from ltbench.launch.slurm.queue_states import Key, State
from ltbench.stages.names import stage_name
from ltbench.store import Run, Store, claims, sealed

CAUSES = {  # SLURM's word for an end -> cause in the store
    "CANCELLED": "cancelled",
    "TIMEOUT": "timeout",
    "DEADLINE": "timeout",
    "OUT_OF_MEMORY": "oom",
    "NODE_FAIL": "node",
    "BOOT_FAIL": "node",
    "LAUNCH_FAILED": "node",
    "RECONFIG_FAIL": "node",
    "PREEMPTED": "preempted",
}
WORDS = {
    "cancelled": "was cancelled in SLURM",
    "timeout": "ran into its time limit before it could save and requeue",
    "oom": "was ended by SLURM for want of memory",
    "node": "was lost with its node",
    "preempted": "was preempted and not requeued",
    "killed": "ended without a word (killed)",
}
REASONS = {
    "cancelled": "cancelled",
    "timeout": "timeout",
    "preempted": "preempted",
}  # cause -> reason of an end


@dataclass(frozen=True)
class Settled:
    """An element whose end was written down now."""

    array: int
    index: int
    restart: int
    cause: str
    message: str


def settle(submission: Submission, store: Store, states: Mapping[Key, State] | None = None) -> list[Settled]:
    """Write down the ends of elements that are over by SLURM's word (`states`, or asked now): ended/A.I.R.json, and a failure for
    every stage that was theirs and has no end. Returns what was settled now; nothing where SLURM does not answer."""
    jobs = {number: job for number in submission.arrays() if (job := submission.job(number)) is not None}
    states = queue_states.ask(jobs.values()) if states is None else states
    if states is None:
        return []
    begun = {}
    for key in sorted(submission.started()):
        begun[key[:2]] = key[2]  # the latest start counts: an earlier one ended when SLURM began it anew
    found = []
    for number, job in jobs.items():
        array = submission.array(number)
        for index in array.indices:
            place = _Place(submission, number, index, job, begun.get((number, index)))
            cause = place.cause(states.get((job, index), states.get(job)))
            if cause is not None and (settled := place.settle(array.tasks[index], store, cause)):
                found.append(settled)
    return found


@dataclass(frozen=True)
class _Place:
    """An element, and which start of it is the latest; None: it never began."""

    submission: Submission
    array: int
    index: int
    job: str
    restart: int | None

    def cause(self, state: State | None) -> str | None:
        """Why it is over, unless it lives or has said so itself."""
        said = self._said("ended").get("reason")
        if said in ("done", "failed") or (state is not None and state.alive):
            return None
        if self.submission.cancelled(self.array, self.index):
            return "cancelled"
        log = self.submission.log(self.array, self.index)
        if state is None:  # SLURM has forgotten it
            return memory.cause_of_kill(log) if self.restart is not None and said is None else None
        cause = CAUSES.get(state.word) or memory.cause_of_kill(log)
        if cause == "cancelled":
            return None if "Dependency" in state.reason else cause
        # What was saved goes on with the next `submit`; what never began has nothing to say.
        return cause if self.restart is not None and said is None else None

    def settle(self, entries: tuple[Entry, ...], store: Store, cause: str) -> Settled | None:
        message = f"job {self.job}_{self.index} {WORDS[cause]}"
        wrote = False
        for entry in entries:
            run = store.run(entry.cell, entry.run)
            for stage, attempt, step in self._open(entry, run, cause):
                known = {failure["attempt"] for failure in run.failures(stage)}
                if attempt not in known:
                    if entry.settings:  # readers expect no failure of a cell that is not there
                        store.put_cell(entry.cell, entry.identity, entry.settings)
                    run.fail(stage, attempt, step=step, cause=cause, message=message)
                    wrote = True
        told = {
            "reason": REASONS.get(cause, "failed"),
            "outcome": "failed",
            "cause": cause,
            "message": message,
        }
        restart = self.restart or 0
        if self._said("ended").get("cause") != cause:
            self.submission.put_ended(self.array, self.index, restart, **told)
            wrote = True
        return Settled(self.array, self.index, restart, cause, message) if wrote else None

    def _open(self, entry: Entry, run: Run, cause: str) -> Iterator[tuple[str, int, int | None]]:
        """(stage, attempt, last step) of what this element had begun and not ended; of a cancelled one also what it had saved, and
        its first stage where it had begun none."""
        job = str(self._said("started").get("job_id"))
        claimed = False
        for stage in map(stage_name, entry.stages):
            now = claims.standing(run.dir, stage, run.store.watch, run.store.lease)
            claimed = claimed or now is not None
            if now is None or now.owner is None or now.owner.slurm_job != job or now.alive is True:
                continue
            if now.outcome is None or (now.outcome == "preempted" and cause == "cancelled"):
                yield stage, now.attempt, now.beat.get("step")
        if not claimed and cause == "cancelled":
            yield stage_name(entry.stages[0]), 0, None  # before the first attempt: a later one is newer

    def _said(self, kind: str) -> dict[str, Any]:
        path = self.submission.folder / kind / f"{self.array}.{self.index}.{self.restart or 0}.json"
        try:
            return sealed.read_sealed(path)
        except (FileNotFoundError, files.Unreadable):
            return {}
