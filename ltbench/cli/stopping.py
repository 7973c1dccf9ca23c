"""`cancel`: mark first, then scancel; and the run on this machine that works on a cell is asked to stop."""

from __future__ import annotations

import os
import re
import signal
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ltbench.cli.options import AsJson, Changes, Filters, Plugins, ScratchAt, StoreAt, WithMethods, place
from ltbench.cli.output import dump, out, plural
from ltbench.errors import LtbenchError, UsageError

if TYPE_CHECKING:
    from ltbench.clearing.living import Holding
    from ltbench.launch.slurm.layout import Submission
    from ltbench.launch.slurm.seen import Seen, Task
    from ltbench.store import Store

CHUNK = 500  # jobs in one call of scancel


def cancel(
    target: Annotated[
        str | None,
        typer.Argument(
            metavar="[SPEC|CELL|SUBMISSION]",
            help="A spec, a cell by its first 6 digits or more, a submission.",
        ),
    ] = None,
    all_: Annotated[bool, typer.Option("--all", help="Everything that was submitted or runs here.")] = False,
    filter_: Filters = None,
    set_: Changes = None,
    with_: WithMethods = None,
    json: AsJson = False,
    store: StoreAt = None,
    scratch: ScratchAt = None,
    plugins: Plugins = None,
) -> None:
    """Stop cells: jobs that wait or run in SLURM, and runs on this machine. Nothing that was computed is lost.

    A cancelled cell is not started again by SLURM, by a job or by another run; it stays cancelled until `submit`, `run` or
    `retry --class cancelled` asks for it. A job that also runs cells which were not named is left alone, and said. A run on this
    machine stops as a whole, at its next step boundary; what it had of other cells is interrupted, not cancelled. Exit code 1 when
    something could not be stopped.

    \b
    Example:
      python harness.py cancel table1
      python harness.py cancel table1 --filter method=ccua
      python harness.py cancel 76fc6efc05e6
      python harness.py cancel 20260131-120000-a1b2c3d4e
      python harness.py cancel --all
    """
    from ltbench.cli import stores
    from ltbench.launch.slurm import layout, seen

    place(store, scratch, plugins)
    if (target is None) != all_:
        raise UsageError(
            "cancel takes one of SPEC, CELL, SUBMISSION and --all", "`status` shows what runs and waits"
        )
    house = stores.open_store(write=False)
    known = seen.look(house.scratch)
    if target is not None and layout.named(target):
        known = _of_submission(known, layout.find(house.scratch, target))
        all_ = True
    cells = None if all_ else _cells(target or "", house, known, filter_ or [], set_ or [], with_ or [])
    done = Done()
    queued = _cancel_jobs(known, cells, done)
    if target is None or not layout.named(target):
        _stop_runs(house, cells, queued, done)
    dump(done.json()) if json else done.tell()
    raise typer.Exit(1 if done.problems else 0)


def _of_submission(known: Seen, submission: Submission) -> Seen:
    """What of it belongs to one submission."""

    def ours(tasks: Iterable[Task]) -> tuple[Task, ...]:
        return tuple(task for task in tasks if task.submission == submission)

    tasks = {cell: found for cell, own in known.tasks.items() if (found := list(ours(own)))}
    return replace(known, tasks=tasks, watchdogs=ours(known.watchdogs), commands=ours(known.commands))


@dataclass
class Done:
    """What came of it: jobs that were cancelled, the cells in them, processes that were asked to stop, and what could not be."""

    jobs: list[str] = field(default_factory=list)
    cells: set[str] = field(default_factory=set)
    stopped: list[int] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {**vars(self), "cells": sorted(self.cells)}

    def tell(self) -> None:
        """Say it (stdout)."""
        if self.jobs:
            cells = f" with {plural(len(self.cells), 'cell')}" if self.cells else ""
            out(f"cancelled {plural(len(self.jobs), 'job')}{cells}")
        for pid in self.stopped:
            out(f"asked the run on this machine (process {pid}) to stop at its next step boundary")
        for line in self.left:
            out(f"left alone: {line}")
        for line in self.problems:
            out(f"could not: {line}")
        if not (self.jobs or self.stopped or self.left or self.problems):
            out("nothing of it waits or runs")


def _cells(
    target: str,
    house: Store,
    known: Seen,
    filters: Sequence[str],
    changes: Sequence[str],
    methods: Sequence[str],
) -> set[str]:
    """The cells that were named. Raises UsageError where the target is neither a spec nor a cell."""
    from ltbench.cli import targets

    if re.fullmatch("[0-9a-f]{6,64}", target) and not Path(target).is_file():
        found = {cell for cell in known.tasks if cell.startswith(target)}  # submitted, and perhaps not begun
        if len(found) > 1:
            raise UsageError(
                f"{target} is the beginning of {len(found)} cells: " + ", ".join(sorted(found))[:200]
            )
        return found or {house.resolve(target)}
    benchmark = targets.load(target, changes, methods)
    return {cell.id for cell in targets.cells_of(benchmark, filters)}


# --- jobs -----------------------------------------------------------------------------------------------------------


def _cancel_jobs(known: Seen, cells: Collection[str] | None, done: Done) -> set[str]:
    """Marks first: a task that gets the signal looks for its mark, and does not come back. Returns the cells that jobs had which
    waited or ran: whether these stop is settled."""
    tasks = list({id(task): task for own in known.tasks.values() for task in own}.values())
    chosen: list[Task] = []
    for task in tasks:
        own = {entry.cell for entry in task.entries}
        if not (task.alive or task.job is None) or (cells is not None and not own & set(cells)):
            continue
        if cells is not None and not own <= set(cells):
            others = ", ".join(entry.label for entry in task.entries if entry.cell not in cells)
            done.left.append(f"job {task.name}, which also has {others}")
            continue
        chosen.append(task)
    whole = _whole(tasks, cells)
    # A watchdog would bring back what was cancelled.
    chosen += [dog for dog in known.watchdogs if dog.alive and (cells is None or dog.submission in whole)]
    if cells is None:
        chosen += [task for task in known.commands if task.alive or task.job is None]
        whole |= {task.submission for task in known.commands}
    _mark(chosen, whole, done)
    names = [task.name for task in chosen if task.job]
    for start in range(0, len(names), CHUNK):
        problem = _scancel(names[start : start + CHUNK])
        if problem:
            done.problems.append(
                f"scancel of {plural(len(names[start : start + CHUNK]), 'job')}: {problem}; they are marked, and will not start again"
            )
        else:
            done.jobs += names[start : start + CHUNK]
    done.cells |= {entry.cell for task in chosen if task.job for entry in task.entries}
    return {entry.cell for task in tasks if task.alive for entry in task.entries}


def _whole(tasks: Iterable[Task], cells: Collection[str] | None) -> set[Submission]:
    """The submissions of which no cell is left out."""
    partial = {
        task.submission
        for task in tasks
        if cells is not None and any(entry.cell not in cells for entry in task.entries)
    }
    return {task.submission for task in tasks} - partial


def _mark(chosen: Sequence[Task], whole: Collection[Submission], done: Done) -> None:
    """One mark for a submission all of which was named, one per element otherwise."""
    for submission in {task.submission for task in chosen}:
        try:
            if submission in whole:
                submission.cancel()
                continue
            for task in chosen:
                if task.submission == submission:
                    submission.cancel(task.array, task.index)
        except LtbenchError as error:
            done.problems.append(f"mark {submission.id} as cancelled: {error.message}")


def _scancel(names: Sequence[str]) -> str | None:
    from ltbench.doctor.findings import call

    said = call(["scancel", *names], 120)
    if said is None:
        return "it is not here, or does not answer"
    return said.reason if said.code else None


# --- runs on this machine -------------------------------------------------------------------------------------------


def _stop_runs(house: Store, cells: Collection[str] | None, queued: Collection[str], done: Done) -> None:
    """A mark for every stage of the cells that a process here works on, and SIGTERM to its driver; elsewhere only its place can be
    told. What a job has of the cells in `queued` was cancelled with the job, or left alone with it. Marks first: a run that shares the work must not take over what the other lets go."""
    from ltbench.clearing.living import holders
    from ltbench.store import owner as owners

    here = owners.here()
    held: list[Holding] = []
    for holding in holders(house, None if cells is None else sorted(cells)):
        owner, cell = holding.owner, holding.run.cell
        alive = owner.alive(here)
        if owner.slurm_job is not None and cell in queued:
            continue
        if alive is None:
            done.problems.append(
                f"stop cell {cell[:12]}: process {owner.pid} on {owner.host} may still have it; stop it there"
            )
        elif alive:
            held.append(holding)
    _mark_held(held, done)
    for holding in held:
        _stop(holding.run.cell, holding.owner.pid, done)


def _mark_held(held: Sequence[Holding], done: Done) -> None:
    """What a person cancelled stays so, though the process that had it will say only that it was interrupted."""
    from ltbench.cli import stores

    if not held:
        return
    try:
        house = stores.open_store(write=True)
    except LtbenchError as error:
        done.problems.append(f"mark {plural(len(held), 'stage')} as cancelled: {error.message}")
        return
    for holding in held:
        try:
            run = house.run(holding.run.cell, holding.run.run)
            run.fail(
                holding.stage, holding.attempt, cause="cancelled", message="was cancelled", step=holding.step
            )
        except LtbenchError as error:
            done.problems.append(f"mark cell {holding.run.cell[:12]} as cancelled: {error.message}")
        else:
            done.cells.add(holding.run.cell)


def _stop(cell: str, pid: int, done: Done) -> None:
    driver = _driver(pid)
    if driver in done.stopped:
        return
    try:
        os.kill(driver, signal.SIGTERM)
    except OSError as error:
        done.problems.append(f"stop cell {cell[:12]}: process {driver}: {error.strerror}")
    else:
        done.stopped.append(driver)


def _driver(pid: int) -> int:
    """The process that feeds a worker, from the worker's command line; a process without one is asked itself."""
    try:
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except OSError:
        return pid
    told = next((word for word in words if word.startswith(b"--driver=")), None)
    return int(told.partition(b"=")[2]) if told else pid
