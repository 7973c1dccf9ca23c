"""`run`: everything a benchmark still needs, on this machine."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ltbench.cli.options import (
    AsJson,
    Ask,
    Changes,
    Filters,
    KeepSamples,
    Plugins,
    ReportAfter,
    RetryFailed,
    ScratchAt,
    Smoke,
    SpecName,
    Split,
    StoreAt,
    Threads,
    WithMethods,
    place,
)
from ltbench.cli.output import clip, dump, duration, out, plural, say, table
from ltbench.cli.targets import name_of
from ltbench.errors import EnvironmentProblem, UsageError

if TYPE_CHECKING:
    from ltbench.launch.devices import Seats
    from ltbench.launch.local import LocalRun, Outcome
    from ltbench.launch.work import CellWork
    from ltbench.plan import Plan
    from ltbench.plan.planned import Planned
    from ltbench.plan.work import Work
    from ltbench.spec.cells import Cell
    from ltbench.spec.resolved import Spec
    from ltbench.store import Store

Workers = Annotated[
    int | None, typer.Option(help="Worker processes. [one per GPU, else one per cell and core]")
]
Ranks = Annotated[
    int,
    typer.Option(metavar="N", help="Processes that train one cell together, a GPU each if there are any."),
]
TrainOn = Annotated[
    str | None, typer.Option(metavar="cpu|cuda", help="Where to train. [a GPU if there is one]")
]
ProfileStep = Annotated[
    bool,
    typer.Option(
        "--profile-step",
        help="Train nothing: profile a step of the first cell of each method, write traces, print the five largest costs.",
    ),
]
RunJob = Annotated[
    str | None,
    typer.Option("--job", metavar="MODULE:FUNCTION", help="The function that runs one stage.", hidden=True),
]


def run(
    spec: SpecName,
    filter_: Filters = None,
    set_: Changes = None,
    with_: WithMethods = None,
    smoke: Smoke = False,
    workers: Workers = None,
    threads: Threads = None,
    ranks: Ranks = 1,
    ask: Ask = True,
    device: TrainOn = None,
    report: ReportAfter = False,
    retry_failed: RetryFailed = False,
    split: Split = 1,
    keep_samples: KeepSamples = False,
    profile_step: ProfileStep = False,
    json: AsJson = False,
    store: StoreAt = None,
    scratch: ScratchAt = None,
    plugins: Plugins = None,
    job: RunJob = None,
) -> None:
    """Train and evaluate whatever a benchmark still needs, on this machine.

    The same command continues after an interruption and does nothing twice. Ctrl-C stops at a step boundary, a second one
    at once. Exit code 1 when some cells failed.

    \b
    Example:
      python harness.py run quickstart --report
      python harness.py run table1 --filter method=ccua --filter seed=0
      python harness.py run quickstart --set train.batch=32 --with mine
      python harness.py run table1 --smoke --report
      python harness.py run table1 --profile-step --filter method=ccua
    """
    from ltbench.cli import targets

    place(store, scratch, plugins)
    benchmark = targets.load(spec, set_ or [], with_ or [], smoke=smoke)
    pool = Pool(workers, threads, device, ranks, job, split, keep_samples)
    asked = Asked("run", spec, tuple(filter_ or ()), ask, report, retry_failed, json)
    raise typer.Exit((_profile if profile_step else carry_out)(benchmark, pool, asked))


@dataclass(frozen=True)
class Asked:
    """What the command said about the work. verb: `run`, or `evaluate`, which trains nothing."""

    verb: str
    spec: str
    filters: tuple[str, ...] = ()
    ask: bool = True
    report: bool = False
    retry_failed: bool = False
    json: bool = False


def _profile(benchmark: Spec, pool: Pool, asked: Asked) -> int:
    """`--profile-step`, which trains nothing; the exit code. Raises UsageError for what would mean something in a training alone."""
    from ltbench.cli import profiling

    profiling.refuse(
        workers=pool.workers,
        ranks=pool.ranks > 1,
        report=asked.report,
        retry_failed=asked.retry_failed,
        split=pool.split > 1,
        keep_samples=pool.keep_samples,
    )
    where = profiling.Where(pool.device, pool.threads)
    return profiling.profile_step(benchmark, asked.filters, where, json=asked.json)


def carry_out(benchmark: Spec, pool: Pool, asked: Asked) -> int:
    """Run what a benchmark still needs and say what came of it; the exit code."""
    from ltbench import plan as plans
    from ltbench.cli import stores
    from ltbench.cli.due import command, look
    from ltbench.launch.devices import check

    check(pool.workers, pool.threads, pool.device, pool.ranks)
    looked = look(benchmark, asked.filters, ask=asked.ask, retry_failed=asked.retry_failed)
    house, found, skipped = looked.house, looked.found, looked.skipped
    again = command(asked.verb, looked.name(asked.spec), asked.filters)
    outcomes, stopped = _do(house, found, skipped, pool, asked, again)
    code = _summarise(found, skipped, outcomes, stopped, "" if asked.report else again, asked)
    if asked.report and not stopped:
        from ltbench.cli import reporting

        house = stores.open_store(write=False)
        reporting.build(plans.plan(benchmark, house, looked.cells), house, quiet=asked.json)
    return code


@dataclass(frozen=True)
class Pool:
    """What the command said about workers and their jobs."""

    workers: int | None
    threads: int | None
    device: str | None
    ranks: int
    job: str | None
    split: int = 1
    keep_samples: bool = False

    def refuse_uneven(self, cells: Sequence[Cell]) -> None:
        """Raises UsageError where the ranks cannot share the local batches of every cell evenly, with the numbers that can."""
        shares = {c.settings["train"]["batch"] // c.settings["train"]["local_batch"] for c in cells}
        if any(share % self.ranks for share in shares):
            allowed = ", ".join(str(n) for n in range(1, max(shares) + 1) if not any(s % n for s in shares))
            raise UsageError(
                f"--ranks {self.ranks} cannot share {' or '.join(map(str, sorted(shares)))} local batches per step evenly",
                f"allowed here: {allowed}; or change train.local_batch",
            )

    def seats(self, cells: int) -> Seats:
        """For a benchmark of `cells` cells, whatever is left of it: a resumed cell is bitwise equal only at equal threads."""
        from ltbench.launch.devices import seats

        return seats(cells, workers=self.workers, threads=self.threads, device=self.device, ranks=self.ranks)

    def options(self, seats: Seats) -> dict[str, Any]:
        """What every job is told."""
        chosen: dict[str, Any] = {} if self.device is None else {"device": self.device}
        if self.keep_samples:
            chosen["keep_samples"] = True
        return {"threads": seats.threads, **chosen}


def _do(
    store: Store, found: Plan, skipped: dict[str, Planned], pool: Pool, asked: Asked, again: str
) -> tuple[list[Outcome], Any]:
    """Run the stages; the outcomes, and the signal that ended the run early (None otherwise)."""
    from ltbench import caches, provenance
    from ltbench.cli import costing, refusing
    from ltbench.cli.due import due_work, tidy, untrained
    from ltbench.cli.progress import counts_line, watcher
    from ltbench.launch import drivers, local
    from ltbench.launch.recorder import Cancelled, Recorder
    from ltbench.plan import register
    from ltbench.plan.helpers import with_helpers
    from ltbench.plan.work import evaluations_only

    due = due_work(found, skipped)
    if asked.verb == "evaluate":
        due = evaluations_only(due)
        for item in untrained(found, skipped, due):
            skipped[item.cell.id] = item
            say(f"waits    {name_of(item.cell, found.spec)}: {clip(item.reason, 200)} (run trains it)")
    if not due:
        return [], None
    pool.refuse_uneven([work.cell for work in due])
    refusing.room(costing.cost_of(found, store, costing.this_machine(found.spec))[0], store)
    due = with_helpers(found, due, store.scratch, pool.split)
    seats = pool.seats(sum(math.prod(map(len, part.axes.values())) for part in found.spec.parts))
    register([item.cell for item in found.cells if item.due], store)
    provenance.leave(caches.root())
    stages = sum(len(work.stages) for work in due)
    busy = min(seats.workers, stages * seats.ranks)
    say(counts_line(len(due), stages, busy, seats.threads, seats.ranks))
    logs = store.scratch / drivers.FOLDER / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    settings = local.Settings(store.root, store.scratch, logs, seats, entry=pool.job or local.DEFAULT_JOB)
    cells = [_cell_work(work, found.spec, pool.options(seats)) for work in due]
    with drivers.announced(logs, (work.cell.id for work in due)), watcher(seats.workers, stages) as view:
        cancelled = Cancelled(store, cells)
        going = local.LocalRun(cells, settings, view, Recorder(store, say), cancelled=cancelled)
        outcomes = going.run()
    tidy(store, {(item.cell.id, item.run): None for item in (*due, *found.cells) if item.run is not None})
    _after(going, logs, again)
    return outcomes, going.stopped


def _cell_work(work: Work, benchmark: Spec, options: dict[str, Any]) -> CellWork:
    from ltbench.launch.work import CellWork

    cell = work.cell
    start = {} if work.start is None else {"start": work.start}
    return CellWork(
        cell.id,
        name_of(cell, benchmark),
        cell.seed,
        work.stages,
        work.run,
        {**cell.options, **options, **start},
        work.after,
        work.latents,
    )


def _after(going: LocalRun, logs: Path, again: str) -> None:
    if any(path.stat().st_size for path in logs.glob("*.log")):
        say(f"output of the workers: {logs}")
    if going.stopped:
        say(f"stopped by {going.stopped.name}; the same command continues: python harness.py {again}")
    if going.environment:
        raise EnvironmentProblem(
            f"the run was ended: {going.environment}", f"then continue: python harness.py {again}"
        )


def _summarise(
    found: Plan,
    skipped: Mapping[str, Planned],
    outcomes: Sequence[Outcome],
    stopped: Any,
    again: str,
    asked: Asked,
) -> int:
    """Say what came of it (stdout); the exit code."""
    bad = [outcome for outcome in outcomes if outcome.outcome == "failed" and outcome.cause != "unsupported"]
    failed = {outcome.cell: outcome for outcome in reversed(bad)}
    open_ = {outcome.cell for outcome in outcomes if outcome.outcome != "done"}
    cells = {item.cell.id for item in found.cells}
    never = {item.cell.id for item in found.cells if item.state == "n/a"}
    done = len(cells - open_ - set(skipped) - never)
    if asked.json:
        dump(_summary(found, skipped, outcomes, done))
    else:
        out(
            f"{plural(len(cells), 'cell')} of {found.spec.name}: {done} done"
            + _counts(failed, skipped, open_, never)
        )
        if outcomes:
            spent = duration(sum(outcome.seconds for outcome in outcomes))
            out(f"{plural(sum(o.outcome == 'done' for o in outcomes), 'stage')} done in {spent} of work")
        _failures(list(failed.values()))
        if failed:
            out(f"next: python harness.py why {next(iter(failed))[:12]}")
        elif again and not stopped:
            out(f"next: python harness.py report {again.split()[1]}")
    if stopped:
        return 128 + int(stopped)
    causes = {item.cause for item in skipped.values()} - {"unsupported", "untrained", "elsewhere"}
    if failed or causes - {"impossible"}:
        return 1
    return EnvironmentProblem.exit_code if causes else 0


def _counts(
    failed: dict[str, Outcome], skipped: Mapping[str, Planned], open_: set[str], never: set[str]
) -> str:
    impossible = sum(item.cause == "impossible" for item in skipped.values())
    untrained = sum(item.cause == "untrained" for item in skipped.values())
    elsewhere = sum(item.cause == "elsewhere" for item in skipped.values())
    parts = {
        "failed": len(failed),
        "n/a": len(never),
        "skipped after an earlier failure": len(skipped) - impossible - untrained - elsewhere,
        "impossible here": impossible,
        "not trained": untrained,
        "with weights elsewhere": elsewhere,
        "unfinished": len(open_ - set(failed)),
    }
    return "".join(f", {number} {words}" for words, number in parts.items() if number)


def _failures(failed: Sequence[Outcome]) -> None:
    from ltbench.cli.progress import stage_words

    if failed:
        out()
        table(
            ("failed", "cell", "stage", "cause", "message"),
            ((o.label, o.cell[:12], stage_words(o.stage), o.cause, clip(o.message, 200)) for o in failed),
            keep=("cell",),
        )


def _summary(
    found: Plan, skipped: Mapping[str, Planned], outcomes: Sequence[Outcome], done: int
) -> dict[str, Any]:
    from dataclasses import asdict

    return {
        "benchmark": found.spec.name,
        "cells": len({item.cell.id for item in found.cells}),
        "done": done,
        "stages": [asdict(outcome) for outcome in outcomes],
        "skipped": [
            {"cell": cell, "label": name_of(item.cell, found.spec), "why": item.reason}
            for cell, item in skipped.items()
        ],
    }
