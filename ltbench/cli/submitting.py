"""`submit`: everything a benchmark still needs, as arrays of SLURM jobs. The command ends when they are in the queue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ltbench.cli.options import (
    AsJson,
    Ask,
    Changes,
    Filters,
    Plugins,
    RetryFailed,
    ScratchAt,
    SpecName,
    StoreAt,
    WithMethods,
    place,
)
from ltbench.cli.output import clip, dump, out, plural, say, table
from ltbench.cli.targets import name_of
from ltbench.errors import EnvironmentProblem

if TYPE_CHECKING:
    from ltbench.cli.due import Looked
    from ltbench.cost.estimate import GridCost
    from ltbench.launch.slurm.layout import Entry
    from ltbench.launch.slurm.resources import Wanted
    from ltbench.launch.slurm.submit import Flight, Sender
    from ltbench.plan import Plan
    from ltbench.plan.planned import Planned
    from ltbench.plan.work import Work
    from ltbench.profiles import Profile
    from ltbench.spec.resolved import Spec
    from ltbench.store import Store


def submit(
    spec: SpecName,
    profile: Annotated[
        str,
        typer.Option(
            "--profile", "-p", metavar="NAME", help="The cluster: a file of benchmarks/profiles/, or a path."
        ),
    ],
    filter_: Filters = None,
    set_: Changes = None,
    with_: WithMethods = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be submitted, and submit nothing.")
    ] = False,
    max_gpu_hours: Annotated[
        float | None, typer.Option(metavar="N", help="Refuse what is estimated to take more.")
    ] = None,
    watchdog: Annotated[
        bool, typer.Option("--watchdog", help="A tiny job submits again what was lost, until all is done.")
    ] = False,
    plan: Annotated[
        Path | None,
        typer.Option("--plan", metavar="FILE", help="Refuse if anything changed since `plan --json > FILE`."),
    ] = None,
    ask: Ask = True,
    retry_failed: RetryFailed = False,
    json: AsJson = False,
    store: StoreAt = None,
    scratch: ScratchAt = None,
    plugins: Plugins = None,
    round_: Annotated[str | None, typer.Option("--round", metavar="SUB.ARRAY", hidden=True)] = None,
) -> None:
    """Submit whatever a benchmark still needs to SLURM: cells become job arrays, grouped by what they ask for.

    The command ends when the jobs are in the queue. The same command again repeats nothing that is done, doubles nothing that
    waits or runs, and brings back what was lost.

    \b
    Example:
      python harness.py submit quickstart --profile example --dry-run
      python harness.py submit table1 --profile mine --watchdog
      python harness.py submit table1 -p mine -f seed=0 --max-gpu-hours 500
      python harness.py submit table1 -p mine --plan table1-plan.json
    """
    from ltbench.cli import jobs, targets

    chosen = jobs.cluster(profile, scratch)
    place(store, scratch, plugins)
    benchmark = targets.load(spec, set_ or [], with_ or [])
    asked = Asked(
        spec,
        profile,
        tuple(filter_ or ()),
        dry_run,
        max_gpu_hours,
        watchdog,
        ask,
        retry_failed,
        json,
        round_,
        plan=plan,
    )
    raise typer.Exit(carry_out(benchmark, chosen, asked))


@dataclass(frozen=True)
class Asked:
    """What the command said. round: SUB.ARRAY of the watchdog that calls it. verb: `submit`, or `evaluate`, which trains nothing.
    options: that every stage is told."""

    spec: str
    profile: str
    filters: tuple[str, ...] = ()
    dry_run: bool = False
    max_hours: float | None = None
    watchdog: bool = False
    ask: bool = True
    retry_failed: bool = False
    json: bool = False
    round: str | None = None
    verb: str = "submit"
    plan: Path | None = None
    options: tuple[tuple[str, Any], ...] = ()


def carry_out(benchmark: Spec, profile: Profile, asked: Asked) -> int:
    """Look, divide, say, submit; the exit code."""
    from ltbench import caches, provenance
    from ltbench.cli import agreed, refusing, stores
    from ltbench.cli.due import look, waits_for
    from ltbench.launch.slurm import resources, sbatch, watchdog
    from ltbench.launch.slurm import submit as slurm
    from ltbench.plan.helpers import with_helpers

    house = stores.open_store(write=not asked.dry_run)
    flight = _flight(house, asked)
    more = {"ask": asked.ask, "retry_failed": asked.retry_failed, "house": house}
    looked = look(benchmark, asked.filters, **more, elsewhere=True)
    found, skipped = looked.found, looked.skipped
    if asked.plan is not None:
        agreed.refuse_changed(found, asked.plan)
    if asked.round:
        skipped |= watchdog.left_alone(found, slurm.cancelled_cells(house.scratch))
    due = _chosen(found, skipped, asked)
    waiting = waits_for(looked.cells, flight.makers())
    refusing.unable(due, profile)
    refusing.large(due, profile, house)
    refusing.missing(due, asked, waiting)
    work = flight.rest(with_helpers(found, flight.rest(due), looked.house.scratch))
    limit, source = sbatch.max_array_size(profile) if work else (1, "")
    labels = [name_of(item.cell, benchmark) for item in work]
    wanted, late = resources.arrays(work, labels, profile, limit, flight.training)
    _let_wait(wanted, waiting)
    cost = refusing.cost_of(looked, profile, wanted)
    refusing.hours(cost, asked.max_hours)
    refusing.room(cost, house)
    provenance.leave(caches.root())
    if asked.dry_run:
        return _dry_run(looked, profile, asked, wanted, late, cost, f"{limit} elements at most ({source})")
    jobs, sender = _send(looked, profile, asked, wanted) if wanted else ([], None)
    _watch(looked, profile, asked, flight, sender)
    _tell(looked, asked, flight, wanted, late, jobs, sender)
    return 0


def _chosen(found: Plan, skipped: dict[str, Planned], asked: Asked) -> list[Work]:
    """The work that the verb asks for, with the options of the command."""
    from ltbench.cli.due import due_work, untrained
    from ltbench.plan.work import evaluations_only

    due = due_work(found, skipped)
    if asked.verb == "evaluate":
        due = evaluations_only(due)
        for item in untrained(found, skipped, due):
            skipped[item.cell.id] = item
            say(f"waits    {name_of(item.cell, found.spec)}: {clip(item.reason, 200)} (submit trains it)")
    if asked.options:
        due = [
            replace(w, cell=replace(w.cell, options={**w.cell.options, **dict(asked.options)})) for w in due
        ]
    return due


def _let_wait(wanted: Sequence[Wanted], jobs: Mapping[str, str]) -> None:
    """Arrays begin when the data sets of all their cells are prepared. jobs: cell -> the job that prepares its data set."""
    for each in wanted:
        each.after = tuple(sorted({jobs[entry.cell] for entry in each.cells() if entry.cell in jobs}))
    if makers := sorted({job for each in wanted for job in each.after}):
        say(f"cells wait for their data: {', '.join(f'job {job}' for job in makers)}")


def _flight(house: Store, asked: Asked) -> Flight:
    from ltbench.launch.slurm import submit as slurm

    try:
        flight = slurm.in_flight(house)
    except EnvironmentProblem as problem:
        if not asked.dry_run:
            raise
        say(f"note: {problem.message}; shown is everything that is not done")
        return slurm.Flight()
    for line in flight.adopted:
        say(f"found in the queue, and taken over from a command that was killed: {line}")
    return flight


# --- submitting -----------------------------------------------------------------------------------------------------------


def _send(
    looked: Looked, profile: Profile, asked: Asked, wanted: Sequence[Wanted]
) -> tuple[list[str], Sender]:
    from ltbench.launch.slurm import submit as slurm

    sender = _sender(looked, profile, asked, wanted)
    return slurm.send_all(sender, wanted), sender


def _sender(looked: Looked, profile: Profile, asked: Asked, wanted: Sequence[Wanted]) -> Sender:
    """A fresh submission with a copy of the code, and how its arrays get to SLURM."""
    from ltbench.cli import jobs
    from ltbench.launch.slurm import submit as slurm
    from ltbench.launch.slurm import task

    house = looked.house
    exclude = slurm.failing_nodes(house.scratch, profile) if asked.watchdog else []
    if exclude:
        say(f"nodes that failed get no job: {', '.join(exclude)}")
    name = looked.benchmark.name
    submission, environment = jobs.begin(
        *(house, profile, asked.profile),
        benchmark=name,
        spec=_spec(looked.name(asked.spec)),
        filters=list(asked.filters),
        exclude=exclude,
        helpers=[number for number, each in enumerate(wanted) if each.job_class == "helper"],
    )
    return slurm.Sender(submission, profile, name, task.run_task, environment, tuple(exclude))


def _spec(name: str) -> str:
    """A path made absolute: a watchdog may start elsewhere. A name stays one: it is found in the snapshot, or in the store."""
    from pathlib import Path

    return str(Path(name).absolute()) if Path(name).is_file() else name


def _watch(looked: Looked, profile: Profile, asked: Asked, flight: Flight, sender: Sender | None) -> None:
    """Put a watchdog into the queue where one is wanted, none waits yet, and there is something to watch."""
    from ltbench.launch.slurm import layout, watchdog
    from ltbench.launch.slurm import submit as slurm

    if not asked.watchdog:
        return
    own, _, array = (asked.round or "").partition(".")
    known = [each for each in flight.watchdogs if each != own and _same(looked, each)]
    if known:
        say(f"a watchdog is in the queue already (submission {known[0]})")
        return
    if sender is None and not flight.stages and not flight.training:
        say("nothing is left to watch: no watchdog")
        return
    at = watchdog.Round()
    if own:
        at = watchdog.Round.of(layout.find(looked.house.scratch, own), int(array))
    at = at.next(looked.found, sender is not None)
    if at.tries >= watchdog.TRIES:
        say(f"the watchdog ends: {at.tries} rounds in a row submitted cells and brought no record")
        return
    if sender is None:
        there = next(layout.submissions(looked.house.scratch, looked.benchmark.name))
        info = there.info()
        sender = slurm.Sender(there, profile, info["benchmark"], watchdog.look, info["environment"])
    job = watchdog.queue(sender, at)
    say(f"watchdog: job {job}, in {plural(profile.watchdog_minutes, 'minute')}")


def _same(looked: Looked, submission: str) -> bool:
    from ltbench.launch.slurm import layout

    return layout.find(looked.house.scratch, submission).info()["benchmark"] == looked.benchmark.name


# --- saying ---------------------------------------------------------------------------------------------------------------


def _dry_run(
    looked: Looked,
    profile: Profile,
    asked: Asked,
    wanted: Sequence[Wanted],
    late: Sequence[Entry],
    cost: GridCost,
    limit: str,
) -> int:
    """Print the scripts and what they would start; 0."""
    from ltbench.cli import jobs
    from ltbench.launch.slurm import layout, snapshot, task
    from ltbench.launch.slurm import submit as slurm

    house = looked.house
    place = layout.Submission(house.scratch / layout.FOLDER / "SUBMISSION")
    environment = jobs.environment_of(house, house.scratch / snapshot.FOLDER / "SNAPSHOT")
    sender = slurm.Sender(place, profile, looked.benchmark.name, task.run_task, environment)
    numbers = [f"JOB_{number}" for number in range(len(wanted))]
    texts = [sender.text(number, each, slurm.dependency(each, numbers)) for number, each in enumerate(wanted)]
    if asked.json:
        dump(
            {
                **_summary(looked, wanted, late),
                "scripts": texts,
                "cost": cost.json(),
            }
        )
        return 0
    shown: set[tuple[str, bool]] = set()
    for each, text in zip(wanted, texts, strict=True):
        kind = (each.job_class, each.corresponding is not None)
        if kind not in shown:  # arrays of one kind differ in number and length
            out(text)
        shown.add(kind)
    _print(wanted, profile)
    _late(late)
    out(f"files of the submission: {2 + len(wanted)}; arrays have {limit}")
    _show_cost(cost, profile, asked.spec)
    return 0


def _show_cost(cost: GridCost, profile: Profile, spec: str) -> None:
    from ltbench.cli import costing

    costing.show_cost(cost, spec)
    for word, needed, quota in (
        ("GB", cost.scratch.bytes / 1e9, profile.scratch_quota_gb),
        ("files", cost.scratch.files, profile.scratch_quota_files),
    ):
        if quota is not None:
            out(
                f"scratch quota: {needed:,.0f} of {quota:,.0f} {word}"
                + (": TOO MUCH" if needed > quota else "")
            )
    if profile.purge_days is not None and cost.wall > profile.purge_days * 86400:
        out(
            f"scratch is purged after {profile.purge_days} days, and this takes longer: touch or move milestones"
        )


def _print(wanted: Sequence[Wanted], profile: Profile) -> None:
    from ltbench.profiles import CLASSES

    rows = []
    for job_class in CLASSES:
        ours = [each for each in wanted if each.job_class == job_class]
        if not ours:
            continue
        asked = profile.resources(job_class)
        gpus = f"{plural(asked.gpus, asked.gpu_type or 'GPU')}, " if asked.gpus else ""
        rows.append(
            (
                job_class,
                len(ours),
                sum(len(each.indices) for each in ours),
                len({entry.cell for each in ours for entry in each.cells()}),
                f"{gpus}{plural(asked.cores, 'core')}, {asked.time} min",
            )
        )
    table(("class", "arrays", "jobs", "cells", "each job asks for"), rows, right=("arrays", "jobs", "cells"))


def _late(late: Sequence[Entry]) -> None:
    for entry in late[:5]:
        say(
            f"waits    {entry.label}: begins at a milestone of cell {entry.after[0][:12] if entry.after else ''} that a queued job makes"
        )
    if late:
        say(
            f"{plural(len(late), 'cell')} cannot be queued yet: run the same command later, or use --watchdog"
        )


def _tell(
    looked: Looked,
    asked: Asked,
    flight: Flight,
    wanted: Sequence[Wanted],
    late: Sequence[Entry],
    jobs: Sequence[str],
    sender: Sender | None,
) -> None:
    if asked.json:
        name = None if sender is None else sender.submission.id
        dump({**_summary(looked, wanted, late), "submission": name, "jobs": list(jobs)})
        return
    _late(late)
    ours = {item.cell.id for item in looked.found.cells}
    going = len(ours & ({cell for cell, _, _ in flight.stages} | set(flight.training)))
    done = sum(item.state == "done" for item in looked.found.cells)
    if going:
        say(f"{plural(going, 'cell')} already queued or running")
    if sender is None:
        out(
            f"{looked.benchmark.name}: nothing to submit; {done} of {plural(len(ours), 'cell')} done, {going} on the way"
        )
        return
    _print(wanted, sender.profile)
    out(f"submitted {sender.submission.id}: {plural(len(jobs), 'array')}, {clip(', '.join(jobs), 60)}")
    out(f"next: python harness.py status {asked.spec}")


def _summary(looked: Looked, wanted: Sequence[Wanted], late: Sequence[Entry]) -> dict[str, Any]:
    return {
        "benchmark": looked.benchmark.name,
        "cells": len({item.cell.id for item in looked.found.cells}),
        "arrays": [
            {
                "class": each.job_class,
                "elements": len(each.indices),
                "cells": sorted({e.cell for e in each.cells()}),
            }
            for each in wanted
        ],
        "waiting": [{"cell": entry.cell, "label": entry.label} for entry in late],
    }
