"""Who works on cells now, or is about to: claims in the store, runs on this machine, jobs in SLURM's queue.

A cell that may live keeps all that it has. Where only time can tell whether a process on another machine lives, it lives.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from ltbench import files
from ltbench.launch import drivers
from ltbench.launch.slurm import layout, seen
from ltbench.launch.slurm.layout import Submission
from ltbench.launch.slurm.queue_states import GLANCE
from ltbench.launch.slurm.seen import Task
from ltbench.store import Run, Store, claims
from ltbench.store import owner as owners
from ltbench.store.kept import names
from ltbench.store.owner import Owner

SHARED = "a cell runs or waits, and may use it"


@dataclass(frozen=True)
class Holding:
    """A claim that has not been released: the stage of a run, the attempt, whose it is, and the step that it was last seen at. sure:
    whether its owner is known to live."""

    run: Run
    stage: str
    attempt: int
    owner: Owner
    step: int | None
    sure: bool


def holders(house: Store, cells: Collection[str] | None = None) -> Iterator[Holding]:
    """Every claim (on these cells) that has not been released and whose owner may be alive."""
    for cell in house.cells() if cells is None else cells:
        for run in house.runs(cell):
            for stage in run.stages():
                now = claims.standing(run.dir, stage, house.watch, house.lease)
                if now is not None and now.outcome is None and now.alive is not False and now.owner:
                    yield Holding(run, stage, now.attempt, now.owner, now.beat.get("step"), now.alive is True)


@dataclass(frozen=True)
class Reason:
    """why: the same for many cells; detail: of this one."""

    why: str
    detail: str


@dataclass
class Life:
    """What lives. cells: why each of them does. submissions: those that may still do something, and why. over: the tasks of the
    others. notes: what could not be found out."""

    store: Store
    cells: dict[str, Reason] = field(default_factory=dict)
    submissions: dict[str, str] = field(default_factory=dict)
    over: dict[str, list[Task]] = field(default_factory=dict)
    commands: bool = False
    notes: list[str] = field(default_factory=list)
    _known: set[str] = field(default_factory=set)

    def anyone(self) -> Reason | None:
        """Why things that cells share are in use; None where nothing lives."""
        if not self.cells and not self.commands:
            return None
        detail = next(iter(self.cells.values())).detail if self.cells else "a preparing or measuring job"
        return Reason(SHARED, detail)

    def again(self, cell: str, run: str | None = None) -> str | None:
        """Why a cell lives, asked anew: another may have begun since the look. The file server is asked, not a client's cache."""
        for each in self.store.runs(cell):
            if (each.dir / "claims").is_dir() and run in (None, each.run):
                files.ask_server(each.dir / "claims")
        held = next(holders(self.store, [cell]), None)
        if held is not None:
            return _held(held).detail
        fresh = self._fresh()
        return fresh[cell].detail if cell in fresh else None

    def anyone_again(self) -> str | None:
        """As `anyone`, asked anew."""
        held = next(holders(self.store), None)
        found = _held(held) if held is not None else next(iter(self._fresh().values()), None)
        return None if found is None else found.detail

    def uses(self, snapshot: str) -> str | None:
        """The submission that may still run a snapshot; asked anew."""
        for submission, info in _submissions(self.store):
            lives = submission.id in self.submissions or submission.id not in self.over
            if lives and (info is None or info.get("snapshot") == snapshot):
                return submission.id
        return None

    def _fresh(self) -> dict[str, Reason]:
        """What has been announced or submitted since the look."""
        found = _driven(self.store, {}, self._known)
        folder = self.store.scratch / layout.FOLDER
        for name in names(folder):
            if name not in self._known and layout.named(name):
                for task in seen.of_submission(Submission(folder / name)):
                    found |= {entry.cell: _queued(task) for entry in task.entries}
        return found


def look(store: Store, wait: Callable[[str], None] | None = None) -> Life:
    """What lives below the store and its scratch root. wait: hears, before the lease of a claim is waited for, whose it is; without
    it an owner on another machine is taken to live."""
    held = list(holders(store))
    unsure = [each for each in held if not each.sure]
    if unsure and wait is not None:
        wait(", ".join(sorted({f"{each.owner.host} (process {each.owner.pid})" for each in unsure})))
        time.sleep(store.lease)
        held = list(holders(store))
    life = Life(store)
    life._known = {*names(store.scratch / drivers.FOLDER), *names(store.scratch / layout.FOLDER)}
    machines = {(each.owner.host, each.owner.kernel) for each in held}
    life.cells |= _driven(store, machines, set())
    _look_at_slurm(life)
    life.cells |= {each.run.cell: _held(each) for each in held}
    return life


def _held(each: Holding) -> Reason:
    sure = "runs" if each.sure else "may run"
    return Reason("its cell runs", f"{each.stage} {sure} on {each.owner.host} (process {each.owner.pid})")


def _driven(store: Store, machines: Collection[Any], known: Collection[str]) -> dict[str, Reason]:
    """Cells of runs whose process lives here; of one elsewhere only while a claim of that machine lives."""
    here, found = owners.here(), {}
    for driver in drivers.drivers(store.scratch, known):
        owner = driver.owner
        if owner.alive(here) or (owner.host, owner.kernel) in machines:
            reason = Reason("its cell waits for a run", f"process {owner.pid} on {owner.host}")
            found |= dict.fromkeys(driver.cells, reason)
    return found


def _look_at_slurm(life: Life) -> None:
    """Tasks of every submission, SLURM's word asked once."""
    found = list(_submissions(life.store))
    if not found:
        return
    whole = seen.look(life.store.scratch, patience=GLANCE)
    life.notes += whole.notes
    tasks = {
        id(task): task for own in (*whole.tasks.values(), whole.watchdogs, whole.commands) for task in own
    }
    by: dict[str, list[Task]] = {submission.id: [] for submission, _ in found}
    for task in tasks.values():
        by.setdefault(task.submission.id, []).append(task)
    life.commands = any(_lives(task) for task in whole.commands)
    for submission, info in found:
        own = by[submission.id]
        for task in filter(_lives, own):
            life.cells |= {entry.cell: _queued(task) for entry in task.entries}
        if (why := _in_use(submission, info, own)) is not None:
            life.submissions[submission.id] = why
        else:
            life.over[submission.id] = own


def _in_use(submission: Submission, info: Mapping[str, Any] | None, tasks: Collection[Task]) -> str | None:
    """Why a submission may still do something; None when it is over."""
    if info is None:
        return "its submission.json cannot be read"
    driver = Owner.from_json(info.get("driver"))
    if driver is not None and driver.alive(owners.here()):
        return "it is being submitted"
    if any(map(_lives, tasks)):
        return "jobs of it wait or run"
    if len({task.array for task in tasks}) < len(submission.arrays()):
        return "an array of it cannot be read"
    return None


def _lives(task: Task) -> bool:
    """Whether it may do something yet. An array whose number nobody knows may be in the queue: its driver died at a bad moment."""
    return task.alive or (task.job is None and task.ended is None and not task.cancelled)


def _queued(task: Task) -> Reason:
    if task.job is None:
        text = f"array {task.array} of {task.submission.id} may be in the queue: submit again finds out, cancel gives it up"
        return Reason("its cell may wait in SLURM", text)
    return Reason("its cell waits or runs in SLURM", f"job {task.name} is {task.word}")


def _submissions(store: Store) -> Iterator[tuple[Submission, Mapping[str, Any] | None]]:
    """Every submission's folder, and what it says of itself; None where that cannot be read."""
    folder = store.scratch / layout.FOLDER
    for name in filter(layout.named, names(folder)):
        submission = Submission(folder / name)
        try:
            yield submission, submission.info()
        except (FileNotFoundError, files.Unreadable):
            yield submission, None
