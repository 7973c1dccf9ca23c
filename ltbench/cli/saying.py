"""What `submit` says of what it sends, or would send: the scripts, how many jobs of which kind, what they cost, what waits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from ltbench.cli.output import clip, dump, out, plural, say, table

if TYPE_CHECKING:
    from ltbench.cli.due import Looked
    from ltbench.cli.submitting import Asked
    from ltbench.cost.estimate import GridCost
    from ltbench.launch.slurm.layout import Entry
    from ltbench.launch.slurm.resources import Wanted
    from ltbench.launch.slurm.submit import Flight, Sender
    from ltbench.profiles import JobClass, Profile

# Of an element that starts once: what it was asked, that it began and ended, its call and its log, its worker's and the stages in it;
# of one that a training submits also its array.
FILES_OF_A_JOB = 8


def dry_run(
    looked: Looked,
    profile: Profile,
    asked: Asked,
    flight: Flight,
    wanted: Sequence[Wanted],
    late: Sequence[Entry],
    cost: GridCost,
    limit: str,
) -> int:
    """Print the scripts and what they would start; 0."""
    from ltbench.cli import jobs
    from ltbench.launch.slurm import layout, resources, snapshot, task
    from ltbench.launch.slurm import submit as slurm

    house, later = looked.house, resources.to_follow(wanted)
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
    if not wanted:
        _late(late)
        _nothing(looked, flight)
        return 0
    shown: set[tuple[str, bool]] = set()
    for each, text in zip(wanted, texts, strict=True):
        kind = (each.job_class, each.corresponding is not None)
        if kind not in shown:  # arrays of one kind differ in number and length
            out(text)
        shown.add(kind)
    if later:  # what a training will hand over
        out(sender.script(len(wanted), profile.resources("evaluation"), [0]))
    _print(wanted, profile)
    _late(late)
    starts = sum(len(each.indices) for each in wanted) + later
    out(
        f"files of the submission: {2 + len(wanted)}, then about {FILES_OF_A_JOB} small ones for each of {plural(starts, 'job')}; "
        f"arrays have {limit}"
    )
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
    from ltbench.launch.slurm.resources import to_follow
    from ltbench.profiles import CLASSES

    rows = []
    for job_class in CLASSES:
        ours = [each for each in wanted if each.job_class == job_class]
        if not ours:
            continue
        rows.append(
            (
                job_class,
                len(ours),
                sum(len(each.indices) for each in ours),
                len({entry.cell for each in ours for entry in each.cells()}),
                _asks(profile, job_class),
            )
        )
    table(("class", "arrays", "jobs", "cells", "each job asks for"), rows, right=("arrays", "jobs", "cells"))
    if later := to_follow(wanted):
        out(
            f"{plural(later, 'evaluation')} to follow, each a job that a training submits when the milestone is there: {_asks(profile, 'evaluation')}"
        )


def _asks(profile: Profile, job_class: JobClass) -> str:
    asked = profile.resources(job_class)
    gpus = f"{plural(asked.gpus, asked.gpu_type or 'GPU')}, " if asked.gpus else ""
    return f"{gpus}{plural(asked.cores, 'core')}, {asked.time} min"


def _late(late: Sequence[Entry]) -> None:
    for entry in late[:5]:
        say(
            f"waits    {entry.label}: begins at a milestone of cell {entry.after[0][:12] if entry.after else ''} that a queued job makes"
        )
    if late:
        say(
            f"{plural(len(late), 'cell')} cannot be queued yet: run the same command later, or use --watchdog"
        )


def tell(
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
    if sender is None:
        _nothing(looked, flight)
        return
    if going := _on_the_way(looked, flight):
        say(f"{plural(going, 'cell')} already queued or running")
    _print(wanted, sender.profile)
    out(f"submitted {sender.submission.id}: {plural(len(jobs), 'array')}, {clip(', '.join(jobs), 60)}")
    out(f"next: python harness.py status {looked.named(asked.spec)}")


def _on_the_way(looked: Looked, flight: Flight) -> int:
    """How many of the cells a job has that waits or runs."""
    ours = {item.cell.id for item in looked.found.cells}
    return len(ours & ({cell for cell, _, _ in flight.stages} | set(flight.training)))


def _nothing(looked: Looked, flight: Flight) -> None:
    cells = looked.found.cells
    done = sum(item.state == "done" for item in cells)
    known = plural(len({item.cell.id for item in cells}), "cell")
    out(
        f"{looked.benchmark.name}: nothing to submit; {done} of {known} done, {_on_the_way(looked, flight)} on the way"
    )


def _summary(looked: Looked, wanted: Sequence[Wanted], late: Sequence[Entry]) -> dict[str, Any]:
    from ltbench.launch.slurm.resources import to_follow

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
        "to_follow": to_follow(wanted),
        "waiting": [{"cell": entry.cell, "label": entry.label} for entry in late],
    }
