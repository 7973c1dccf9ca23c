"""What a benchmark still needs, for the verbs that see to it: `run`, `evaluate` and `submit` look in the same way."""

from __future__ import annotations

import time
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from ltbench.cli.output import clip, say
from ltbench.cli.targets import name_of
from ltbench.errors import EnvironmentProblem

if TYPE_CHECKING:
    from ltbench.plan import Plan
    from ltbench.plan.planned import Planned
    from ltbench.plan.work import Work
    from ltbench.spec.cells import Cell
    from ltbench.spec.resolved import Spec
    from ltbench.store import Store

TIDYING = 2.0  # seconds
NOT_RETRIED = (
    "nan",
    "unsupported",
)  # causes that a plain rerun does not try again: they would end the same way


@dataclass(frozen=True)
class Looked:
    """A benchmark's cells, the store, how they stand, and those that are not to be tried (by cell id)."""

    benchmark: Spec
    house: Store
    cells: list[Cell]
    found: Plan
    skipped: dict[str, Planned]

    def named(self, typed: str) -> str:
        """What names this spec again, once `name` has kept it."""
        return typed if self.benchmark.derived is None else self.benchmark.name

    def name(self, typed: str) -> str:
        """What names this spec again; a changed one is kept in the store under its own name."""
        if self.benchmark.derived is not None:
            path = self.house.put_spec(self.benchmark.name, self.benchmark.derived)
            say(f"the changed spec is kept as {path}; its name is {self.benchmark.name}")
        return self.named(typed)


def look(
    benchmark: Spec,
    filters: Sequence[str],
    *,
    ask: bool,
    retry_failed: bool,
    house: Store | None = None,
    elsewhere: bool = False,
) -> Looked:
    """Ask what can run here, plan, and say what cannot. elsewhere: it is not to run here, and the caller sees to what is missing.

    Raises EnvironmentProblem for missing data or weights.
    """
    from ltbench import caches
    from ltbench import plan as plans
    from ltbench.cli import asking, planning, stores, targets

    cells = targets.cells_of(benchmark, filters)
    if not elsewhere:
        _refuse_missing_data(cells)
    house = stores.open_store(write=True) if house is None else house
    caches.use(house.scratch)
    for line in planning.recipe_lines(benchmark):
        say(line)
    if ask:
        asking.find_out(cells, house, again=house.write)
    found = plans.plan(benchmark, house, cells)
    if house.write:
        tidy(
            house, ((item.cell.id, item.run) for item in found.cells if item.run is not None and not item.due)
        )
    asking.warn(found, house)
    targets.check_starts(found)
    retried = () if retry_failed else NOT_RETRIED
    skipped = {item.cell.id: item for item in found.cells if item.due and item.cause in retried}
    if ask:
        skipped |= {item.cell.id: item for item in found.cells if item.due and item.cause == "impossible"}
    skipped |= {item.cell.id: replace(item, cause="elsewhere") for item in found.cells if item.elsewhere}
    return Looked(benchmark, house, cells, found, skipped)


def tidy(house: Store, runs: Iterable[tuple[str, str]]) -> None:
    """Sweep where nobody else will: a cell that is done is claimed no more, and a process killed right after its last record may
    have left a half-written file; so may one that made what cells share. For two seconds at most, since that helps nobody who
    waits. runs: (cell, run)."""
    from ltbench import files, sources

    end = time.monotonic() + TIDYING
    kinds = (sources.references_root, sources.latents_root, sources.features_root, sources.samples_root)
    for root in (house.root, house.scratch, *(kind(house.scratch) for kind in kinds)):
        for folder in (root, *filter(Path.is_dir, root.iterdir() if root.is_dir() else ())):
            files.sweep(folder)
            if time.monotonic() > end:
                return
    for cell, run in runs:
        house.run(cell, run).sweep()
        if time.monotonic() > end:
            return


def command(verb: str, name: str, filters: Sequence[str]) -> str:
    """The arguments that ask for this work again."""
    return " ".join([verb, name, *(f"--filter {text}" for text in filters)])


def due_work(found: Plan, skipped: dict[str, Planned]) -> list[Work]:
    """The work that is to be tried; what waits for a skipped cell joins `skipped`, and each is said."""
    for item in _waiting_for(found, skipped):
        skipped[item.cell.id] = item
    for item in skipped.values():
        if item.cause == "impossible":
            continue  # said before
        name, reason = name_of(item.cell, found.spec), clip(item.reason, 200)
        if item.cause == "elsewhere":
            say(f"waits    {name}: {reason}")
        else:
            say(f"skipped  {name}: {reason} (--retry-failed tries again)")
    return [work for work in found.work() if work.cell.id not in skipped]


def untrained(found: Plan, skipped: Collection[str], due: Sequence[Work]) -> list[Planned]:
    """Cells that want an evaluation of weights that are not there, and have nothing else to measure."""
    has_work = {work.cell.id for work in due} | set(skipped)
    return [
        replace(item, cause="untrained") for item in found.cells if item.due and item.cell.id not in has_work
    ]


def waits_for(cells: Sequence[Cell], makers: Mapping[str, str]) -> dict[str, str]:
    """Cell -> the job that prepares its data set."""
    from ltbench import needs

    if not makers:
        return {}
    places: dict[int, str | None] = {}  # thousands of cells share a data set's settings
    found = {}
    for cell in cells:
        data = cell.settings["dataset"]
        if id(data) not in places:
            places[id(data)] = needs.prepared_place(data)
        if (job := makers.get(places[id(data)] or "")) is not None:
            found[cell.id] = job
    return found


def _refuse_missing_data(cells: Sequence[Cell]) -> None:
    problems = sorted({cell.missing for cell in cells if cell.missing})
    if problems:
        raise EnvironmentProblem("what the benchmark needs is not here:\n" + "\n".join(problems))


def _waiting_for(found: Plan, skipped: Mapping[str, Planned]) -> list[Planned]:
    """Cells that are to begin at a milestone which a skipped cell would have to make, directly or through others."""
    from ltbench.stages.names import trained

    starting = [(item, source) for item in found.cells if item.due and (source := item.cell.source)]
    if not starting:
        return []
    lost: dict[str, Planned] = {}
    gone = set(skipped)
    making = {
        (work.cell.id, step) for work in found.work() for stage in work.stages for step in trained(stage)
    }
    while more := [
        item
        for item, source in starting
        if item.cell.id not in gone and source.cell.id in gone and (source.cell.id, source.step) in making
    ]:
        lost |= {i.cell.id: replace(i, reason="the cell that it starts from was skipped") for i in more}
        gone |= lost.keys()
    return list(lost.values())
