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
from ltbench.cli.output import clip, plural, say
from ltbench.cli.targets import name_of
from ltbench.errors import EnvironmentProblem

if TYPE_CHECKING:
    from ltbench.cli.due import Looked
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
        float | None, typer.Option(metavar="N", min=0, help="Refuse what is estimated to take more.")
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
    from ltbench.cli import agreed, refusing, saying, stores
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
        return saying.dry_run(
            looked, profile, asked, flight, wanted, late, cost, f"{limit} elements at most ({source})"
        )
    jobs, sender = _send(looked, profile, asked, wanted) if wanted else ([], None)
    _watch(looked, profile, asked, flight, sender)
    saying.tell(looked, asked, flight, wanted, late, jobs, sender)
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
    try:
        return slurm.send_all(sender, wanted), sender
    except KeyboardInterrupt:
        say(
            f"interrupted; what reached the queue goes on, and the same command takes it over and submits the rest; "
            f"to stop it: python harness.py cancel {asked.spec}"
        )
        raise SystemExit(130) from None


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
