"""From the work of a benchmark to arrays of jobs: by class, small cells packed, seed 0 and early milestones first, chunked."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ltbench.launch.slurm.layout import Entry
from ltbench.plan.work import Work
from ltbench.profiles import CLASSES, JobClass, Profile, Resources
from ltbench.stages.names import milestones, parse


@dataclass
class Wanted:
    """An array to submit. tasks: element i's entries, () where there is no element i. corresponding: an earlier one of the list,
    whose element i must have ended well before element i may begin. behind: earlier ones that must have ended, however. after: jobs of
    other submissions that must have ended well."""

    job_class: JobClass
    tasks: list[tuple[Entry, ...]]
    corresponding: int | None = None
    behind: tuple[int, ...] = ()
    after: tuple[str, ...] = ()

    @property
    def indices(self) -> list[int]:
        return [index for index, task in enumerate(self.tasks) if task]

    def cells(self) -> Iterator[Entry]:
        for task in self.tasks:
            yield from task


@dataclass(frozen=True)
class Job:
    """What one cell needs of one class, and where it stands in the order."""

    entry: Entry
    order: tuple[int, ...]


def options(asked: Resources) -> dict[str, Any]:
    """What every stage of a class is told: equal threads, whatever the machine, or a resumed cell is not bitwise equal."""
    device = {} if asked.gpus else {"device": "cpu"}
    return {"threads": max(1, asked.cores // (asked.ranks * asked.pack)), **device}


def arrays(
    work: Sequence[Work], labels: Sequence[str], profile: Profile, limit: int, elsewhere: Iterable[str] = ()
) -> tuple[list[Wanted], list[Entry]]:
    """The arrays of all work, in the order in which they are to be submitted; and what cannot be submitted yet, because it begins
    at a milestone that a job of an earlier submission is to make (`elsewhere`: the cells that such jobs train).

    limit: elements that one array may have.
    """
    said: dict[JobClass, dict[str, Any]] = {each: options(profile.resources(each)) for each in CLASSES}
    helpers, trainings, evaluations = _by_class(work, labels, said)
    wanted = _chunks("helper", helpers, 1, limit)
    helping = tuple(range(len(wanted)))  # evaluations wait for the features of real images, however that ends
    made = {job.entry.cell for job in trainings} | set(elsewhere)
    later = [job.entry for job in trainings if _source(job.entry) in made]
    now = [job for job in trainings if _source(job.entry) not in made]
    first = len(wanted)
    wanted += _chunks("training", now, profile.resources("training").pack, limit)
    late = _dependents(wanted, first, later)
    if any(stage.startswith("encode:") for each in wanted for e in each.cells() for stage in e.stages):
        for each in wanted[first:]:  # and trainings for the latents of their images
            each.behind = helping if any(entry.latents for entry in each.cells()) else ()
    if not profile.submit_from_jobs:
        _promised(wanted, said["evaluation"], helping)
    ready = _chunks("evaluation", evaluations, profile.resources("evaluation").pack, limit)
    return wanted + [replace(each, behind=helping) for each in ready], late


def _by_class(
    work: Sequence[Work], labels: Sequence[str], said: Mapping[JobClass, dict[str, Any]]
) -> tuple[list[Job], list[Job], list[Job]]:
    """(helpers, trainings, evaluations of milestones that are there), each in its order."""
    helpers: list[Job] = []
    trainings: list[Job] = []
    evaluations: list[Job] = []
    for index, (item, label) in enumerate(zip(work, labels, strict=True)):
        named = {stage: parse(stage) for stage in item.stages}
        train = tuple(stage for stage in item.stages if named[stage].kind == "train")
        coming = {step for stage in train for step in named[stage].steps}
        seed = item.cell.seed
        for stage in item.stages:
            if named[stage].kind in ("reference", "encode"):
                helpers.append(Job(_entry(item, label, (stage,), said["helper"]), (seed, index)))
        rest = [s for s in item.stages if named[s].kind in ("evaluate", "sample")]
        if train:
            promised = tuple(stage for stage in rest if named[stage].steps[0] in coming)
            trainings.append(Job(_entry(item, label, (*train, *promised), said["training"]), (seed, index)))
        for step in sorted({named[stage].steps[0] for stage in rest} - coming):
            ours = tuple(stage for stage in rest if named[stage].steps[0] == step)
            evaluations.append(Job(_entry(item, label, ours, said["evaluation"]), (seed, step, index)))
    for jobs in (helpers, trainings, evaluations):
        jobs.sort(key=lambda job: job.order)
    return helpers, trainings, evaluations


def _entry(item: Work, label: str, stages: tuple[str, ...], said: dict[str, Any]) -> Entry:
    cell = item.cell
    return Entry(
        cell.id,
        label,
        cell.seed,
        item.run,
        stages,
        {**cell.options, **said},
        item.after,
        item.start,
        cell.settings,
        cell.identity,
        cell.evaluations,
        item.latents,
    )


def _chunks(job_class: JobClass, jobs: Sequence[Job], pack: int, limit: int) -> list[Wanted]:
    tasks = [tuple(job.entry for job in jobs[start : start + pack]) for start in range(0, len(jobs), pack)]
    return [Wanted(job_class, tasks[start : start + limit]) for start in range(0, len(tasks), limit)]


def _dependents(wanted: list[Wanted], first: int, entries: Sequence[Entry]) -> list[Entry]:
    """Add arrays for cells that begin at a milestone of another, each at the index of that one, so that SLURM can pair them;
    return those whose source is in none."""
    waiting = list(entries)
    level = range(first, len(wanted))
    while waiting:
        place = {e.cell: (n, i) for n in level for i, task in enumerate(wanted[n].tasks) for e in task}
        ready = [entry for entry in waiting if _source(entry) in place]
        if not ready:
            break
        waiting = [entry for entry in waiting if _source(entry) not in place]
        level = range(len(wanted), len(wanted) + _align(wanted, [(place[_source(e)], e) for e in ready]))
    return waiting


def _source(entry: Entry) -> str:
    return entry.after[0] if entry.after else ""


def _align(wanted: list[Wanted], placed: Sequence[tuple[tuple[int, int], Entry]]) -> int:
    """Add arrays in which every entry has the index that it is placed at; as many per array as its fullest index needs."""
    layers: dict[tuple[int, int], dict[int, Entry]] = {}
    for (number, index), entry in placed:
        depth = next(k for k in itertools.count() if index not in layers.get((number, k), {}))
        layers.setdefault((number, depth), {})[index] = entry
    for (number, _), row in sorted(layers.items()):
        tasks = [(row[index],) if index in row else () for index in range(max(row) + 1)]
        wanted.append(Wanted("training", tasks, corresponding=number))
    return len(layers)


def _promised(wanted: list[Wanted], said: dict[str, Any], helping: tuple[int, ...]) -> None:
    """Take the evaluations out of the trainings, into arrays of their own: element i of the k-th has the k-th milestones of the
    cells that element i trains."""
    for number, each in enumerate(list(wanted)):
        if each.job_class != "training":
            continue
        rows: dict[int, dict[int, list[Entry]]] = {}
        for index, task in enumerate(each.tasks):
            for entry in task:
                for k, stages in enumerate(_by_step(entry.stages)):
                    mine = replace(
                        entry, stages=stages, options={**entry.options, **said}, after=None, start=None
                    )
                    rows.setdefault(k, {}).setdefault(index, []).append(mine)
            each.tasks[index] = tuple(replace(e, stages=tuple(filter(_trains, e.stages))) for e in task)
        for _, row in sorted(rows.items()):
            tasks = [tuple(row.get(index, ())) for index in range(max(row) + 1)]
            wanted.append(Wanted("evaluation", tasks, corresponding=number, behind=helping))


def _by_step(stages: Sequence[str]) -> list[tuple[str, ...]]:
    rest = [stage for stage in stages if not _trains(stage)]
    return [tuple(s for s in rest if milestones(s) == step) for step in sorted({milestones(s) for s in rest})]


def to_follow(wanted: Iterable[Wanted]) -> int:
    """How many evaluations the trainings of these arrays are to submit themselves, each when its milestone is there."""
    trained = (entry for each in wanted if each.job_class == "training" for entry in each.cells())
    return sum(len(_by_step(entry.stages)) for entry in trained)


def slots(wanted: Sequence[Wanted], profile: Profile) -> int:
    """Cells that these arrays work on at the same time, on a cluster that has room for all of them."""
    arrays = [each for each in wanted if each.job_class == "training"] or [
        each for each in wanted if each.job_class == "evaluation"
    ]
    found = 0
    for each in arrays:
        asked = profile.resources(each.job_class)
        counts = sorted((len(task) for task in each.tasks), reverse=True)
        found += sum(counts[: asked.at_once])
    return max(1, found)


def _trains(stage: str) -> bool:
    return stage.startswith("train:")
