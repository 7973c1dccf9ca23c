"""The cost of a cell and of a grid: seconds, device hours, segments, bytes and files, of what is to be done and of what was done.

Cells of the same settings but for the seed cost the same: everything is worked out once per distinct settings.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any

from ltbench.canonical import canonical_json
from ltbench.cost import space
from ltbench.cost.calibrations import step_options, train_question
from ltbench.cost.figures import BASES, NO_TIME, Figure, told, total
from ltbench.cost.machine import Machine
from ltbench.cost.size import parameter_shapes
from ltbench.cost.space import NOTHING, Kept, Space
from ltbench.cost.speed import Observed, Speeds, observed_evaluation
from ltbench.cost.work import data_shape
from ltbench.sources import reference_key
from ltbench.stages.names import parse

if TYPE_CHECKING:
    from ltbench.cost.calibrations import Calibration
    from ltbench.plan.planned import Planned, Spent
    from ltbench.spec.cells import Cell


@dataclass(frozen=True)
class Cost:
    """What some stages of one cell cost. segments: jobs that the training needs under a time limit, None without one."""

    steps: int = 0
    evaluations: int = 0
    train: Figure = NO_TIME
    evaluate: Figure = NO_TIME
    segments: int | None = None
    store: Space = NOTHING
    scratch: Space = NOTHING

    @property
    def seconds(self) -> float:
        return self.train.seconds + self.evaluate.seconds

    @property
    def basis(self) -> str:
        """Of its figures, as good as the worst."""
        return total([self.train, self.evaluate]).basis

    def json(self, machine: Machine) -> dict[str, Any]:
        """For `--json`. hours: GPU-hours, or core-hours on a CPU. wall_seconds: on one slot, one stage after another."""
        return {
            "steps": self.steps,
            "evaluations": self.evaluations,
            "hours": machine.hours(self.seconds),
            "wall_seconds": self.seconds,
            "basis": self.basis,
            "train": self.train.json(),
            "evaluate": self.evaluate.json(),
            "segments": self.segments,
            "store": self.store.json(),
            "scratch": self.scratch.json(),
        }


@dataclass(frozen=True)
class Actual:
    """What records say was spent on a cell, beside what is predicted for the same stages without these records."""

    label: str
    cell: str
    device: str
    seconds: float
    predicted: Cost

    @property
    def ratio(self) -> float | None:
        """Actual over predicted."""
        return self.seconds / self.predicted.seconds if self.predicted.seconds else None


@dataclass(frozen=True)
class GridCost:
    """The cost of what is to be done, each planned cell's in the plan's order; `shared` is made once for several cells."""

    machine: Machine
    cells: tuple[tuple[Planned, Cost], ...]
    shared_store: Space
    shared_scratch: Space
    encoding: Figure = NO_TIME
    actual: tuple[Actual, ...] = ()

    @cached_property
    def _once(self) -> list[tuple[Cost, int]]:
        """Each cost and how many cells have it, for of thousands most are the same object. A cell that two parts share is done once."""
        once = {planned.cell.id: cost for planned, cost in reversed(self.cells)}.values()
        costs = {id(cost): cost for cost in once}
        return [(costs[key], times) for key, times in Counter(map(id, once)).items()]

    @property
    def train(self) -> Figure:
        return total(cost.train * times for cost, times in self._once)

    @property
    def evaluate(self) -> Figure:
        return total(cost.evaluate * times for cost, times in self._once)

    @property
    def hours(self) -> float:
        """GPU-hours, or core-hours on a CPU."""
        return self.machine.hours(self.train.seconds + self.evaluate.seconds + self.encoding.seconds)

    @property
    def wall(self) -> float:
        """Seconds on `machine.slots` slots, without waiting in a queue: not below the longest cell's, nor below an even share."""
        longest = max((cost.seconds for cost, _ in self._once), default=0.0)
        own = max(longest, sum(cost.seconds * times for cost, times in self._once) / self.machine.slots)
        return own + self.encoding.seconds

    @property
    def segments(self) -> int | None:
        """Jobs of trainings under the time limit."""
        jobs = sum((cost.segments or 0) * times for cost, times in self._once)
        return None if self.machine.limit is None else jobs

    @property
    def store(self) -> Space:
        return sum((cost.store * times for cost, times in self._once), self.shared_store)

    @property
    def scratch(self) -> Space:
        return sum((cost.scratch * times for cost, times in self._once), self.shared_scratch)

    def assumptions(self) -> list[tuple[str, str, float]]:
        """(basis, source, seconds that rest on it among others), the most first."""
        found: dict[tuple[str, str], float] = {}
        for cost, times in self._once:
            for figure in (cost.train, cost.evaluate):
                for key in figure.sources:
                    found[key] = found.get(key, 0.0) + figure.seconds * times
        for key in self.encoding.sources if self.encoding.seconds else ():
            found[key] = self.encoding.seconds
        order = sorted(found.items(), key=lambda item: -item[1])
        return [(basis, source, seconds) for (basis, source), seconds in order]

    def json(self) -> dict[str, Any]:
        """For `--json`."""
        machine = self.machine
        return {
            "machine": {
                "device": machine.device,
                "threads": machine.threads,
                "ranks": machine.ranks,
                "slots": machine.slots,
                "limit_seconds": machine.limit,
            },
            "unit": machine.unit,
            "hours": self.hours,
            "train_hours": machine.hours(self.train.seconds),
            "evaluate_hours": machine.hours(self.evaluate.seconds),
            "encode_hours": machine.hours(self.encoding.seconds),
            "basis": max(self.train.basis, self.evaluate.basis, key=BASES.index),
            "wall_seconds": self.wall,
            "segments": self.segments,
            "store": self.store.json(),
            "scratch": self.scratch.json(),
            "assumptions": [told(basis, source) for basis, source, _ in self.assumptions()],
            "cells": [{"cell": planned.cell.id, **cost.json(machine)} for planned, cost in self.cells],
            "actual": [
                {
                    "cell": each.cell,
                    "label": each.label,
                    "device": each.device,
                    "seconds": each.seconds,
                    "predicted_seconds": each.predicted.seconds,
                    "basis": each.predicted.basis,
                    "ratio": each.ratio,
                }
                for each in self.actual
            ],
        }


def estimate(
    planned: Sequence[Planned],
    machine: Machine,
    calibrations: Iterable[Calibration] = (),
) -> GridCost:
    """The cost of everything that is due, and what was spent so far beside its prediction."""
    known = list(calibrations)
    seen, calls = _observed(planned)
    speeds = Speeds(machine, known, seen, calls)
    ask = _Asked(speeds, machine)
    cells = tuple((item, ask.due(item)) for item in planned)
    shared = _shared(planned, speeds)
    actual = _Spent(machine, known, calls).all(planned)
    return GridCost(machine, cells, *shared, actual)


def _observed(planned: Sequence[Planned]) -> tuple[list[Observed], dict[str, float]]:
    """How fast cells went that left records, and the rows that dopri5 took."""
    found: list[Observed] = []
    calls: dict[str, list[float]] = {}
    for item in planned:
        settings, cell = item.cell.settings, item.cell.id
        for spent in item.spent:
            if spent.kind == "train" and spent.images_per_s and spent.ranks == 1:
                question = train_question(settings, **step_options(item.cell.options)).id
                seconds = settings["train"]["batch"] / spent.images_per_s
                found.append(Observed(question, spent.device, spent.threads, seconds, cell))
            elif spent.kind == "evaluation" and spent.evaluation:
                question = observed_evaluation(settings, spent.evaluation)
                found.append(Observed(question, spent.device, spent.threads, spent.seconds, cell))
                if spent.nfe is not None:
                    calls.setdefault(spent.evaluation, []).append(spent.nfe)
    return found, {key: sum(values) / len(values) for key, values in calls.items()}


def _shared(planned: Sequence[Planned], speeds: Speeds) -> tuple[Space, Space, Figure]:
    """(store, scratch, time) of what is made once: descriptions of evaluations, features of real images, latents."""
    described: dict[str, Mapping[str, Any]] = {}
    real: dict[str, Space] = {}
    coded: dict[bytes, tuple[Space, Figure]] = {}
    done: set[tuple[int, int]] = set()
    for item in planned:
        key = (id(item.cell.settings["dataset"]), id(item.cell.evaluations))
        if not item.due or key in done:
            continue
        done.add(key)
        described |= item.cell.evaluations
        dataset = canonical_json(item.cell.settings["dataset"])
        if item.state == "new" and dataset not in coded:
            made = space.latents(data_shape(item.cell.settings["dataset"]))
            coded[dataset] = (made, speeds.encoding(item.cell.settings))
        for evaluation in item.cell.evaluations.values():
            sets = speeds.real(item.cell.settings, evaluation)
            name = reference_key(item.cell.settings["dataset"], evaluation)
            real[name] = max(
                real.get(name, NOTHING), space.references(sets, evaluation), key=lambda s: s.bytes
            )
    store = Space(sum(len(canonical_json(e)) for e in described.values()), len(described))
    scratch = sum((made for made, _ in coded.values()), sum(real.values(), NOTHING))
    return store, scratch, total(time for _, time in coded.values())


class _Spent:
    """Sets what was spent beside what calibrations and assumptions alone would predict on the machine that it was spent on."""

    def __init__(
        self,
        machine: Machine,
        known: Sequence[Calibration],
        calls: Mapping[str, float],
    ) -> None:
        self._machine, self._known, self._calls = machine, known, calls
        self._asked: dict[tuple[str, int, int], _Asked] = {}

    def all(self, planned: Sequence[Planned]) -> tuple[Actual, ...]:
        """One per cell and machine; a cell that two parts share counts once."""
        once = {item.cell.id: item for item in planned if item.spent}
        several = len({item.cell.part for item in planned}) > 1
        return tuple(
            replace(each, label=f"{item.cell.part} {each.label}") if several else each
            for item in once.values()
            for each in self._one(item)
        )

    def _one(self, item: Planned) -> Iterator[Actual]:
        places: dict[tuple[str, int, int], list[Spent]] = {}
        for spent in item.spent:
            places.setdefault((spent.device, spent.threads, spent.ranks), []).append(spent)
        for place, spent in places.items():
            if place not in self._asked:
                device, threads, ranks = place
                machine = replace(self._machine, device=device, threads=threads, ranks=ranks)
                speeds = Speeds(machine, self._known, (), self._calls)
                self._asked[place] = _Asked(speeds, machine)
            yield self._asked[place].actual(item, spent)


@dataclass(frozen=True)
class _Unit:
    """What all cells of the same settings have in common: a step, an evaluation, and what each leaves."""

    cell: Cell  # held, so that nothing else gets the ids that name this unit
    kept: Kept
    step: Figure
    evaluations: dict[str, tuple[Figure, Space, Space]]  # seconds, store, scratch of one at one milestone


class _Asked:
    """Works out each distinct cell once."""

    def __init__(self, speeds: Speeds, machine: Machine) -> None:
        self.speeds, self.machine = speeds, machine
        self._units: dict[tuple[Any, ...], _Unit] = {}
        self._costs: dict[tuple[Any, ...], Cost] = {}

    def due(self, item: Planned) -> Cost:
        """The cost of the stages that are due."""
        if not item.due:
            return _FREE
        key, unit = self._unit(item.cell)
        reached = _reached(item)
        name = (*key, item.due, item.run is None, reached)
        if name not in self._costs:
            stages = [parse(due.stage) for due in item.due]
            steps = [step for stage in stages if stage.kind == "train" for step in stage.steps]
            wanted = [(s.steps[0], s.evaluation) for s in stages if s.kind == "evaluate"]
            cost = self._cost(unit, steps, reached, wanted, new=item.run is None)
            self._costs[name] = cost
        return self._costs[name]

    def actual(self, item: Planned, spent: Sequence[Spent]) -> Actual:
        """What was spent on this machine, beside the prediction for just that."""
        _, unit = self._unit(item.cell)
        trained = [each for each in spent if each.kind == "train"]
        measured = [each for each in spent if each.evaluation in unit.evaluations]
        last: dict[int, float] = {}
        for each in trained:  # a record tells the seconds since its attempt began
            last[each.attempt] = max(last.get(each.attempt, 0.0), each.seconds)
        seconds = sum(last.values()) + sum(each.seconds for each in measured)
        steps = [each.step for each in trained]
        before = (
            max((s.step for s in item.spent if s.kind == "train" and s.step < min(steps)), default=0)
            if steps
            else 0
        )
        wanted = [(each.step, each.evaluation or "") for each in measured]
        predicted = self._cost(unit, steps, before, wanted, new=False)
        return Actual(item.cell.label, item.cell.id, self.machine.device, seconds, predicted)

    def _unit(self, cell: Cell) -> tuple[tuple[Any, ...], _Unit]:
        settings = cell.settings
        key = (
            *(id(settings[name]) for name in ("dataset", "method", "train")),
            *(settings["network"], settings["pipeline"], id(cell.evaluations), cell.milestones),
            *(cell.options.get(name) for name in ("micro_batch", "recompute", "log_every", "preview_every")),
            "init" in settings,
        )
        if key not in self._units:
            self._units[key] = self._make(cell)
        return key, self._units[key]

    def _make(self, cell: Cell) -> _Unit:
        settings, options = cell.settings, cell.options
        data = data_shape(settings["dataset"])
        known = self.speeds.calibrated(settings)
        kept = Kept(
            settings,
            data,
            parameter_shapes(settings["network"], data.network(settings["train"])),
            own=known.get("own_parameters", 0),
            terms=known.get("terms", space.NAMES),
            log_every=options.get("log_every") or 20,
        )
        each = {
            key: (
                self.speeds.evaluation(settings, evaluation, key),
                kept.evaluation_record(evaluation),
                space.features(data, evaluation),
            )
            for key, evaluation in cell.evaluations.items()
        }
        return _Unit(cell, kept, self.speeds.step(settings, **step_options(options)), each)

    def _cost(
        self,
        unit: _Unit,
        steps: Sequence[int],
        reached: int,
        evaluations: Sequence[tuple[int, str]],
        *,
        new: bool,
    ) -> Cost:
        """steps: milestones to train to, from step `reached` on. evaluations: (milestone, id)."""
        kept, count = unit.kept, max(0, max(steps, default=0) - reached)
        train = unit.step * count
        found = [unit.evaluations[key] for _, key in evaluations if key in unit.evaluations]
        limit = self.machine.limit
        segments = None if limit is None else -int(-train.seconds // limit) if steps else 0
        stages = bool(steps) + len(evaluations) + max(0, (segments or 0) - 1)
        store = kept.run(stages) if new else Space(stages * 549, 2 * stages)
        store = sum((kept.training_record(step) for step in steps), store)
        scratch = sum((kept.milestone() for _ in steps), NOTHING)
        if steps:
            several = min(space.KEPT_CHECKPOINTS, len(kept_steps(unit.cell, steps)))
            scratch += kept.checkpoint(max(steps)) * several
        return Cost(
            steps=count,
            evaluations=len(evaluations),
            train=train,
            evaluate=total(seconds for seconds, _, _ in found),
            segments=segments,
            store=sum((records for _, records, _ in found), store),
            scratch=sum((made for _, _, made in found), scratch),
        )


def kept_steps(cell: Cell, steps: Sequence[int]) -> set[int]:
    """Steps at which a checkpoint is sure to be written."""
    return {*steps, *(step for step in cell.milestones if step <= max(steps))}


_FREE = Cost()


def _reached(item: Planned) -> int:
    """The step that training goes on from, as far as records and heartbeats tell."""
    steps = [step for due in item.due if due.stage.startswith("train:") for step in parse(due.stage).steps]
    if not steps:
        return 0
    reached = max((s.step for s in item.spent if s.kind == "train" and s.step < min(steps)), default=0)
    beat = item.progress or {}
    if beat.get("total") == max(steps) and isinstance(beat.get("step"), int):
        reached = max(reached, beat["step"])
    return reached
