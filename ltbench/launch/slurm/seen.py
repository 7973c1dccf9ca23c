"""What submissions and SLURM tell of cells: which task has a cell, whether it is alive, and how the last one ended.

The files are the truth, SLURM's word is asked once for all jobs. Where nobody answers, a task that has not told its end counts as
alive; so does every state that is not known to be an end.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltbench import files
from ltbench.launch import memory
from ltbench.launch.slurm import queue_states
from ltbench.launch.slurm.commands import Command
from ltbench.launch.slurm.layout import Entry, Submission, submissions
from ltbench.launch.slurm.queue_states import Key, State
from ltbench.store import sealed

FINAL = (
    "done",
    "failed",
    "cancelled",
)  # reasons of an end after which the task does not come again by itself
CAUSES = {  # SLURM's word for an end -> the class by which cells are retried
    "BOOT_FAIL": "node", "NODE_FAIL": "node", "LAUNCH_FAILED": "node", "RECONFIG_FAIL": "node", "TIMEOUT": "timeout",
    "DEADLINE": "timeout", "OUT_OF_MEMORY": "oom", "PREEMPTED": "preempted", "CANCELLED": "cancelled", "FAILED": "killed",
}  # fmt: skip


@dataclass(frozen=True)
class Task:
    """An element of a submitted array, as far as files and SLURM tell. job: SLURM's number of the array, None where sbatch was never
    heard. command: where it is no cells' work. restart: how often SLURM has started it again. ended: what it said last, after its last start. state: SLURM's word; None
    where SLURM has forgotten it. answered: whether SLURM was asked and answered."""

    submission: Submission
    array: int
    index: int
    job: str | None
    entries: tuple[Entry, ...]
    kind: str
    restart: int
    ended: Mapping[str, Any] | None
    state: State | None
    answered: bool
    cancelled: bool
    command: Command | None = None

    @property
    def name(self) -> str:
        """`1234_5`, as squeue and scancel know it."""
        return f"{self.job}_{self.index}" if self.job else "(not sent)"

    @property
    def alive(self) -> bool:
        """Whether it may still do something."""
        if self.job is None:
            return False
        if self.answered:
            return self.state is not None and self.state.alive
        return self.ended is None or self.ended.get("reason") not in FINAL

    @property
    def word(self) -> str:
        """SLURM's word; "unknown" where it does not answer, "forgotten" where it no longer knows the job."""
        if not self.answered:
            return "unknown"
        return "forgotten" if self.state is None else self.state.word

    @property
    def cause(self) -> str | None:
        """The class of a task's bad end; None while it lives or when it ended well."""
        if self.alive:
            return None
        told = self.ended or {}
        if told.get("reason") == "done":
            return None
        if self.cancelled and told.get("reason") != "failed":  # what had failed before keeps its cause
            return "cancelled"
        if told.get("reason") in ("preempted", "timeout", "cancelled"):
            return told["reason"]
        if told.get("cause"):
            return str(told["cause"])
        if self.orphaned:
            return "lost"
        if self.word == "COMPLETED":
            return None
        cause = CAUSES.get(self.word, "lost")
        return memory.cause_of_kill(self.log, cause) if cause in ("killed", "lost") else cause

    @property
    def orphaned(self) -> bool:
        """Whether SLURM gave it up because what it waited for did not end well."""
        return self.state is not None and not self.state.alive and "Dependency" in self.state.reason

    @property
    def log(self) -> Path:
        return self.submission.log(self.array, self.index)


@dataclass(frozen=True)
class Seen:
    """Tasks by cell, the newest submission's first; those without a cell, of watchdogs and of commands. notes: what could not be
    found out."""

    tasks: dict[str, list[Task]]
    watchdogs: tuple[Task, ...]
    commands: tuple[Task, ...]
    notes: tuple[str, ...]

    def of(self, cell: str) -> Task | None:
        """The task that speaks for a cell: of those alive its training before anything else, and one that runs before one that
        waits; where none is alive, of the newest submission's one that ended badly before one that ended well."""
        own = self.tasks.get(cell, [])
        if living := [task for task in own if task.alive]:
            return min(living, key=_rank)
        newest = sorted((task for task in own if task.submission == own[0].submission), key=_rank)
        bad = (task for task in newest if task.cause is not None) if len(newest) > 1 else ()
        return next(iter(bad), newest[0] if newest else None)

    def restarts(self) -> dict[str, int]:
        """Cell -> how often SLURM has started its tasks again."""
        return {cell: max(task.restart for task in own) for cell, own in self.tasks.items()}

    def cancelled(self) -> set[str]:
        """Cells that a person cancelled and nobody has submitted since."""
        return {
            cell
            for cell, own in self.tasks.items()
            if any(task.cancelled for task in own if task.submission == own[0].submission)
        }


def _rank(task: Task) -> tuple[bool, bool, bool]:
    runs = task.state is not None and not task.state.waiting
    return task.kind != "training", task.kind == "helper", not runs


def look(
    scratch: Path, benchmark: str | None = None, *, ask: bool = True, patience: float | None = None
) -> Seen:
    """Read every submission below `scratch` (of a benchmark), and ask SLURM about its jobs, for `patience` seconds as
    `queue_states.ask` means it."""
    found = [_Files(each) for each in submissions(scratch, benchmark)]
    jobs = {job for each in found for job in each.jobs.values() if job is not None}
    states = queue_states.ask(jobs, patience) if ask and jobs else None
    notes = (
        []
        if not jobs or not ask or states is not None
        else [
            "SLURM does not answer: what is shown is what files tell; a job that has not told its end counts as alive"
        ]
    )
    tasks: dict[str, list[Task]] = {}
    watchdogs: list[Task] = []
    commands: list[Task] = []
    for each in found:
        for task in each.tasks(states):
            watchdogs += [task] if task.kind == "watchdog" else []
            commands += [task] if task.command is not None else []
            for entry in task.entries:
                tasks.setdefault(entry.cell, []).append(task)
        notes += each.problems  # found while its files were read
    return Seen(tasks, tuple(watchdogs), tuple(commands), tuple(notes))


def of_submission(submission: Submission) -> list[Task]:
    """Its tasks as files tell them; SLURM is not asked."""
    return list(_Files(submission).tasks(None))


class _Files:
    """What one submission's folder holds, listed once."""

    def __init__(self, submission: Submission) -> None:
        self.submission = submission
        self.problems: list[str] = []
        self.jobs = {number: self._job(number) for number in submission.arrays()}

    def _job(self, number: int) -> str | None:
        try:
            return self.submission.job(number)
        except files.Unreadable as problem:
            self.problems.append(problem.message)
            return None

    def tasks(self, states: Mapping[Key, State] | None) -> Iterator[Task]:
        started, ended = _latest(self.submission.started()), _latest(self.submission.ended())
        marks = {path.name for path in self.submission.folder.glob("cancelled*")}
        for number, job in self.jobs.items():
            try:
                array = self.submission.array(number)
            except (FileNotFoundError, files.Unreadable) as problem:
                self.problems.append(str(problem))
                continue
            for index, entries in enumerate(array.tasks):
                place = (number, index)
                restart = started[place][0] if place in started else 0
                over = ended.get(place)
                yield Task(
                    self.submission,
                    number,
                    index,
                    job,
                    entries,
                    array.resource["class"],
                    restart,
                    _told(over[1]) if over and over[0] >= restart else None,
                    _state(states, job, index),
                    states is not None,
                    bool(marks & {"cancelled", f"cancelled-{number}-{index}"}),
                    Command.of(array.resource),
                )


def _state(states: Mapping[Key, State] | None, job: str | None, index: int) -> State | None:
    """SLURM's word for an element; an array of one may be known by its job alone."""
    if states is None or job is None:
        return None
    return states.get((job, index)) or states.get(job)


def _latest(listed: Mapping[tuple[int, int, int], Path]) -> dict[tuple[int, int], tuple[int, Path]]:
    found: dict[tuple[int, int], tuple[int, Path]] = {}
    for (array, index, restart), path in listed.items():
        if restart >= found.get((array, index), (-1, path))[0]:
            found[array, index] = (restart, path)
    return found


def _told(path: Path) -> dict[str, Any]:
    try:
        return sealed.read_sealed(path)
    except (FileNotFoundError, files.Unreadable):
        return {"reason": "failed", "message": f"{path} cannot be read"}
