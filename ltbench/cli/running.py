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
    Changes,
    Filters,
    Plugins,
    ScratchAt,
    SpecName,
    StoreAt,
    WithMethods,
    place,
)
from ltbench.cli.output import clip, dump, duration, out, plural, say, table
from ltbench.cli.targets import name_of
from ltbench.errors import EnvironmentProblem, LtbenchError

if TYPE_CHECKING:
    from ltbench.launch.devices import Seats
    from ltbench.launch.local import LocalRun, Outcome
    from ltbench.launch.work import CellWork, Job
    from ltbench.plan import Cell, Plan, Planned, Work
    from ltbench.spec.resolved import Spec
    from ltbench.store import Store

NOT_RETRIED = (
    "nan",
    "unsupported",
)  # causes that a plain rerun does not try again: they would end the same way


def run(
    spec: SpecName,
    filter_: Filters = None,
    set_: Changes = None,
    with_: WithMethods = None,
    workers: Annotated[
        int | None, typer.Option(help="Worker processes. [one per GPU, else one per cell and core]")
    ] = None,
    threads: Annotated[int | None, typer.Option(help="Threads per worker. [cores / workers]")] = None,
    device: Annotated[
        str | None, typer.Option(metavar="cpu|cuda", help="Where to train. [a GPU if there is one]")
    ] = None,
    report: Annotated[bool, typer.Option("--report", help="Build the report at the end.")] = False,
    retry_failed: Annotated[
        bool, typer.Option("--retry-failed", help="Try cells again whose loss was not finite.")
    ] = False,
    split: Annotated[
        int, typer.Option(metavar="N", min=1, help="Jobs that share the images of one evaluation.")
    ] = 1,
    keep_samples: Annotated[
        bool, typer.Option("--keep-samples", help="Keep generated images in the scratch folder.")
    ] = False,
    json: AsJson = False,
    store: StoreAt = None,
    scratch: ScratchAt = None,
    plugins: Plugins = None,
    job: Annotated[
        str | None,
        typer.Option(
            "--job", metavar="MODULE:FUNCTION", help="The function that runs one stage.", hidden=True
        ),
    ] = None,
) -> None:
    """Train and evaluate whatever a benchmark still needs, on this machine.

    The same command continues after an interruption and does nothing twice. Ctrl-C stops at a step boundary, a second one
    at once. Exit code 1 when some cells failed.

    \b
    Example:
      python harness.py run quickstart --report
      python harness.py run table1 --filter method=ccua --filter seed=0
      python harness.py run quickstart --set train.batch=32 --with mine
    """
    from ltbench import plan as plans
    from ltbench.cli import stores, targets
    from ltbench.launch.devices import check

    place(store, scratch, plugins)
    check(workers, threads, device)
    benchmark = targets.load(spec, set_ or [], with_ or [])
    cells = targets.cells_of(benchmark, filter_ or [])
    _refuse_missing_data(cells)
    house = stores.open_store(write=True)
    again = _command(benchmark, house, spec, filter_ or [])
    found = plans.plan(benchmark, house, cells)
    skipped = {} if retry_failed else {i.cell.id: i for i in found.cells if i.due and i.cause in NOT_RETRIED}
    pool = _Pool(workers, threads, device, job, split, keep_samples)
    outcomes, stopped = _do(house, found, skipped, pool, again)
    code = _summarise(found, skipped, outcomes, stopped, "" if report else again, json)
    if report and not stopped:
        from ltbench.cli import reporting

        house = stores.open_store(write=False)
        reporting.build(plans.plan(benchmark, house, cells), house, quiet=json)
    raise typer.Exit(code)


@dataclass(frozen=True)
class _Pool:
    """What the command said about workers and their jobs."""

    workers: int | None
    threads: int | None
    device: str | None
    job: str | None
    split: int = 1
    keep_samples: bool = False

    def seats(self, cells: int) -> Seats:
        """For a benchmark of `cells` cells, whatever is left of it: a resumed cell is bitwise equal only at equal threads."""
        from ltbench.launch.devices import seats

        return seats(cells, workers=self.workers, threads=self.threads, device=self.device)

    def options(self, seats: Seats) -> dict[str, Any]:
        """What every job is told."""
        chosen: dict[str, Any] = {} if self.device is None else {"device": self.device}
        if self.keep_samples:
            chosen["keep_samples"] = True
        return {"threads": seats.threads, **chosen}


def _command(benchmark: Spec, store: Store, given: str, filters: Sequence[str]) -> str:
    """The arguments that name this work again; a changed spec is kept in the store under its own name."""
    name = given
    if benchmark.derived is not None:
        path = store.put_spec(benchmark.name, benchmark.derived)
        say(f"the changed spec is kept as {path}; its name is {benchmark.name}")
        name = benchmark.name
    return " ".join([name, *(f"--filter {text}" for text in filters)])


def _refuse_missing_data(cells: Sequence[Cell]) -> None:
    problems = sorted({cell.missing for cell in cells if cell.missing})
    if problems:
        raise EnvironmentProblem("what the benchmark needs is not here:\n" + "\n".join(problems))


def _do(
    store: Store, found: Plan, skipped: Mapping[str, Planned], pool: _Pool, again: str
) -> tuple[list[Outcome], Any]:
    """Run the stages; the outcomes, and the signal that ended the run early (None otherwise)."""
    from ltbench.cli.progress import counts_line, watcher
    from ltbench.launch import local
    from ltbench.plan import register, with_helpers

    for item in skipped.values():
        say(
            f"skipped  {name_of(item.cell, found.spec)}: {clip(item.reason, 200)} (--retry-failed tries again)"
        )
    due = [work for work in found.work() if work.cell.id not in skipped]
    if not due:
        return [], None
    due = with_helpers(found, due, store.scratch, pool.split)
    seats = pool.seats(sum(math.prod(map(len, part.axes.values())) for part in found.spec.parts))
    register([item.cell for item in found.cells if item.due], store)
    stages = sum(len(work.stages) for work in due)
    say(counts_line(len(due), stages, min(seats.workers, stages), seats.threads))
    logs = store.scratch / "logs" / f"{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
    settings = local.Settings(store.root, store.scratch, logs, seats, entry=pool.job or local.DEFAULT_JOB)
    cells = [_cell_work(work, found.spec, pool.options(seats)) for work in due]
    with watcher(seats.workers, stages) as view:
        going = local.LocalRun(cells, settings, view, _Recorder(store))
        outcomes = going.run()
    _after(going, logs, again)
    return outcomes, going.stopped


def _cell_work(work: Work, benchmark: Spec, options: dict[str, Any]) -> CellWork:
    from ltbench.launch.work import CellWork

    cell = work.cell
    return CellWork(
        cell.id, name_of(cell, benchmark), cell.seed, work.stages, work.run, {**cell.options, **options}
    )


class _Recorder:
    """Writes the failure of a stage whose worker died before it could."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __call__(self, job: Job, failure: dict[str, Any]) -> None:
        from ltbench.stages.names import stage_name
        from ltbench.store.claims import latest_attempt

        run = self._store.run(job.cell, job.work.run)
        stage = stage_name(job.stage)
        attempt = job.claim.get("attempt") or latest_attempt(run.dir, stage) or 1
        fields = {key: failure.get(key) for key in ("cause", "message", "traceback", "evidence")}
        try:
            run.fail(stage, attempt, step=job.claim.get("step"), **fields)
        except LtbenchError as error:
            say(f"the failure of {job.work.label} could not be written down: {error.message}")


def _after(going: LocalRun, logs: Path, again: str) -> None:
    if any(path.stat().st_size for path in logs.glob("*.log")):
        say(f"output of the workers: {logs}")
    if going.stopped:
        say(f"stopped by {going.stopped.name}; the same command continues: python harness.py run {again}")
    if going.environment:
        raise EnvironmentProblem(
            f"the run was ended: {going.environment}", f"then continue: python harness.py run {again}"
        )


def _summarise(
    found: Plan,
    skipped: Mapping[str, Planned],
    outcomes: Sequence[Outcome],
    stopped: Any,
    again: str,
    json: bool,
) -> int:
    """Say what came of it (stdout); the exit code."""
    bad = [outcome for outcome in outcomes if outcome.outcome == "failed" and outcome.cause != "unsupported"]
    failed = {outcome.cell: outcome for outcome in reversed(bad)}
    open_ = {outcome.cell for outcome in outcomes if outcome.outcome != "done"}
    cells = {item.cell.id for item in found.cells}
    done = len(cells - open_ - set(skipped))
    if json:
        dump(_summary(found, skipped, outcomes, done))
    else:
        out(
            f"{plural(len(cells), 'cell')} of {found.spec.name}: {done} done"
            + _counts(failed, skipped, open_)
        )
        if outcomes:
            spent = duration(sum(outcome.seconds for outcome in outcomes))
            out(f"{plural(sum(o.outcome == 'done' for o in outcomes), 'stage')} done in {spent} of work")
        _failures(list(failed.values()))
        if failed:
            out(f"next: python harness.py why {next(iter(failed))[:12]}")
        elif again and not stopped:
            out(f"next: python harness.py report {again.split()[0]}")
    if stopped:
        return 128 + int(stopped)
    return 1 if failed or any(item.cause != "unsupported" for item in skipped.values()) else 0


def _counts(failed: dict[str, Outcome], skipped: Mapping[str, Planned], open_: set[str]) -> str:
    parts = {
        "failed": len(failed),
        "skipped after an earlier failure": len(skipped),
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
