"""From a spec to cells, and from the store's files to what is done, what is missing, and why."""

from __future__ import annotations

import functools
import itertools
from collections import Counter, deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ltbench import elsewhere, provenance, vaes
from ltbench.answers import Answers
from ltbench.canonical import Digester
from ltbench.files import Unreadable
from ltbench.protocols import sampling_text
from ltbench.sources import has_latents, has_references, latents_key, reference_key
from ltbench.spec.cells import Cell, cell_id, expand
from ltbench.spec.resolved import Spec
from ltbench.spec.types import spell
from ltbench.stages.names import parse
from ltbench.store import Run, Store
from ltbench.store.kept import Seen
from ltbench.store.records import NAME, Glimpse, Record, Records, stage_name

__all__ = [
    "STATES",
    "Cell",
    "Due",
    "Plan",
    "Planned",
    "Work",
    "cell_id",
    "evaluation_change",
    "evaluations_only",
    "expand",
    "plan",
    "register",
    "settings_changes",
    "with_helpers",
]

STATES = ("done", "running", "failed", "partial", "stale", "new", "n/a")


# --- states ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Due:
    """A stage that is still to be done, `train:280,560` or `evaluate:560:EVALUATION`, and why."""

    stage: str
    reason: str


@dataclass(frozen=True)
class Spent:
    """What the envelope of a record tells of its making. seconds: since its attempt began. images_per_s: the median while
    training. nfe: network rows per image of an evaluation."""

    kind: str
    step: int
    evaluation: str | None
    attempt: int
    seconds: float
    gpu_hours: float
    device: str
    threads: int
    ranks: int = 1
    images_per_s: float | None = None
    nfe: float | None = None


@dataclass(frozen=True)
class Planned:
    """How a cell stands. done and total count records (one per milestone and one per evaluation of it).

    run: the run that counts for the present code, None if there is none yet. cause: of a failure, or why there is none to wait for
    (unsupported, impossible). changes: what makes it stale.
    progress: the last heartbeat of a running stage. spent: what its records say of their making.
    progress: the last heartbeat of a running stage, host where it runs. reached: the step that training is known to have come to.
    attempts: at the stage that runs, failed or was interrupted; 0 where none was looked for. Neither done nor anything due: what is
    missing needs weights that another machine has (`elsewhere`).
    """

    cell: Cell
    state: str
    reason: str
    done: int
    total: int
    due: tuple[Due, ...] = ()
    run: str | None = None
    cause: str | None = None
    changes: tuple[str, ...] = ()
    progress: dict[str, Any] | None = None
    spent: tuple[Spent, ...] = ()
    host: str | None = None
    reached: int = 0
    attempts: int = 0

    @property
    def elsewhere(self) -> bool:
        """Whether something is missing that nothing here is to be done for: its weights are where it was trained."""
        return self.state in ("partial", "stale") and not self.due

    def json(self) -> dict[str, Any]:
        """For `--json`."""
        cell = self.cell
        return {
            "cell": cell.id,
            "part": cell.part,
            "label": cell.label,
            "axes": cell.axes,
            "state": self.state,
            "reason": self.reason,
            "cause": self.cause,
            "changes": list(self.changes),
            "done": self.done,
            "total": self.total,
            "run": self.run,
            "due": [{"stage": due.stage, "reason": due.reason} for due in self.due],
            "progress": self.progress,
        }


@dataclass(frozen=True)
class Work:
    """All stages that one cell still needs for every part that wants it, training first.

    after: (cell, step) of the milestone that training begins at, None where it begins anew or at a file. start: where the starting
    weights lie: a run of that cell, or the file. latents: the key of the latents that its training needs, None for pixels.
    """

    cell: Cell
    run: str
    stages: tuple[str, ...]
    after: tuple[str, int] | None = None
    start: str | None = None
    latents: str | None = None


@dataclass(frozen=True)
class Plan:
    """Every cell of a benchmark and its state, in the grid's order."""

    spec: Spec
    cells: tuple[Planned, ...]

    def counts(self) -> dict[str, int]:
        """Cells by state, without zeros."""
        found = Counter(planned.state for planned in self.cells)
        return {state: found[state] for state in STATES if found[state]}

    def reasons(self) -> list[tuple[str, str, int]]:
        """(state, reason, cells), by state, then the commonest first."""
        found = Counter((planned.state, planned.reason) for planned in self.cells)
        order = sorted(found.items(), key=lambda item: (STATES.index(item[0][0]), -item[1]))
        return [(state, reason, count) for (state, reason), count in order]

    def work(self) -> list[Work]:
        """What is to be done, each cell once."""
        runs = {planned.cell.id: planned.run for planned in self.cells}
        digester = Digester()
        return [_work(same, runs, digester) for same in self._wanted()]

    def stages(self) -> list[tuple[str, ...]]:
        """The stages of each `work()`, without asking which run they belong to."""
        return [_stages(same) for same in self._wanted()]

    def _wanted(self) -> Iterable[list[Planned]]:
        """What is due, by cell."""
        wanted: dict[str, list[Planned]] = {}
        for planned in self.cells:
            if planned.due:
                wanted.setdefault(planned.cell.id, []).append(planned)
        return wanted.values()

    def json(self) -> dict[str, Any]:
        """For `plan --json`."""
        return {
            "benchmark": self.spec.name,
            "file": self.spec.file,
            "total": len(self.cells),
            "counts": self.counts(),
            "reasons": [{"state": s, "reason": r, "cells": n} for s, r, n in self.reasons()],
            "cells": [planned.json() for planned in self.cells],
        }


def evaluations_only(work: Sequence[Work]) -> list[Work]:
    """What can be measured as things stand: the evaluations of milestones that are there, and no training."""
    found = []
    for item in work:
        missing = {step for stage in item.stages for step in _steps(stage)}
        ready = tuple(
            s for s in item.stages if (n := parse(s)).kind == "evaluate" and n.steps[0] not in missing
        )
        if ready:
            found.append(replace(item, stages=ready, after=None))
    return found


def with_helpers(found: Plan, work: Sequence[Work], scratch: Path, split: int = 1) -> list[Work]:
    """The same work, with what trainings and evaluations wait for as jobs of their own.

    The latents of a training set and the features of each set of real images are made once, by the first cell that needs them,
    unless `scratch` has them. With `split` above 1, that many jobs make the images of each evaluation.
    """
    evaluations = {key: e for item in found.cells for key, e in item.cell.evaluations.items()}
    keys: dict[tuple[int, str], str] = {}  # thousands of cells share a data set's settings and an evaluation
    seen: set[str] = set()
    helped = []
    for item in work:
        data = item.cell.settings["dataset"]
        latents = _latents(item)
        coding = (
            [f"encode:{latents}"]
            if latents and latents not in seen and not has_latents(scratch, latents)
            else []
        )
        seen |= {latents} if latents else set()
        named = [named for stage in item.stages if (named := parse(stage)).kind == "evaluate"]
        real = []
        for evaluation in dict.fromkeys(each.evaluation for each in named):
            key = keys.get((id(data), evaluation))
            if key is None:
                key = keys[id(data), evaluation] = reference_key(data, evaluations[evaluation])
            if key not in seen and not has_references(scratch, key):
                real.append(f"reference:{evaluation}")
            seen.add(key)
        shares = [
            f"sample:{each.steps[0]}:{each.evaluation}:{part}/{split}"
            for each in named
            if not {"search", "illustrate"} & set(evaluations[each.evaluation])
            for part in range(split if split > 1 else 0)
        ]
        helped.append(replace(item, stages=(*coding, *real, *item.stages, *shares), latents=latents))
    return helped


def _latents(item: Work) -> str | None:
    """The key of the latents that a training waits for."""
    dataset = item.cell.settings["dataset"]
    trains = any(stage.startswith("train:") for stage in item.stages)
    return latents_key(dataset) if trains and vaes.named(dataset) else None


def _work(same: Sequence[Planned], runs: Mapping[str, str | None], digester: Digester) -> Work:
    cell = same[0].cell
    after, start = None, None
    if cell.source is not None:
        source = cell.source.cell
        after, start = (source.id, cell.source.step), runs.get(source.id) or _present_run(source, digester)
    elif cell.file is not None:
        start = str(cell.file.located())
    run = same[0].run or _present_run(cell, digester)
    return Work(cell, run, _stages(same), after, start)


def _stages(same: Sequence[Planned]) -> tuple[str, ...]:
    """What is due of one cell, its training as one stage and first."""
    return _merged(same[0].due if len(same) == 1 else tuple(due for planned in same for due in planned.due))


@functools.lru_cache(maxsize=4096)  # thousands of cells want the same
def _merged(due: tuple[Due, ...]) -> tuple[str, ...]:
    stages = dict.fromkeys(each.stage for each in due)
    steps = {step for stage in stages for step in _steps(stage)}
    train = ["train:" + ",".join(map(str, sorted(steps)))] if steps else []
    return (*train, *(stage for stage in stages if not stage.startswith("train:")))


def _steps(stage: str) -> list[int]:
    """The milestones of a training stage; none for another."""
    kind, _, steps = stage.partition(":")
    return [int(step) for step in steps.split(",")] if kind == "train" else []


def _present_run(cell: Cell, digester: Digester | None = None) -> str:
    """The run that the present code makes of a cell."""
    return provenance.run_id(provenance.train_code(cell.settings), cell.settings, digester)


def plan(spec: Spec, store: Store, cells: Sequence[Cell] | None = None, *, verify: bool = True) -> Plan:
    """The state of every cell (of `cells`, if given), derived from files alone.

    Without `verify` records are known by their names and ends, which is for showing and not for acting.

    A cell that is to begin at a milestone of another cell, which is not among them or has lost its weights, brings that cell in,
    trained up to there and not evaluated; its reason says for whom.
    """
    look = _Look(store, verify)
    planned = [look.at(cell) for cell in (expand(spec) if cells is None else cells)]
    return Plan(spec, tuple(_with_sources(list(_novelty(planned)), look)))


def _with_sources(planned: list[Planned], look: _Look) -> list[Planned]:
    """`planned`, and before the first cell that needs it each source; sources may have sources."""
    own = {
        item.cell.id: item for item in reversed(planned)
    }  # of two parts that share a cell the first speaks
    steps: dict[str, set[int]] = {}
    brought: dict[str, tuple[str, Planned]] = {}  # source -> (the planned cell it goes before, its plan)
    waiting = deque((item, item) for item in planned)
    while waiting:
        item, first = waiting.popleft()
        source = item.cell.source
        if source is None or not look.begins(item):
            continue
        cell, wanted = source.cell, steps.setdefault(source.cell.id, set())
        if source.step in wanted:
            continue
        wanted.add(source.step)
        reason = f"{item.cell.label} starts from its step {source.step}"
        if cell.id in own:
            known = own[cell.id]
            own[cell.id] = look.with_weights(known, source.step, reason)
            if own[cell.id] is not known:
                waiting.append((own[cell.id], first))
            continue
        found = look.at(replace(cell, milestones=tuple(sorted(wanted))))
        for step in sorted(wanted):
            found = look.with_weights(found, step, reason)
        found = replace(found, reason=f"added: {reason}" if found.state in ("new", "done") else found.reason)
        place = brought[cell.id][0] if cell.id in brought else first.cell.id
        brought[cell.id] = (place, found)
        waiting.append((found, first))
    return list(_assembled(planned, own, brought))


def _assembled(
    planned: Sequence[Planned], own: dict[str, Planned], brought: Mapping[str, tuple[str, Planned]]
) -> Iterator[Planned]:
    """Sources before the cells that brought them; a source's own source, which was found later, before it."""
    before: dict[str, list[Planned]] = {}
    for place, found in brought.values():
        before.setdefault(place, []).insert(0, found)
    for item in planned:
        yield from before.pop(item.cell.id, ())
        changed = own.pop(item.cell.id, item)
        yield changed if changed.cell is item.cell else item


def _novelty(planned: Sequence[Planned]) -> Iterator[Planned]:
    """Says of a new cell which value of an axis nothing in the store has yet: `seed 2 is new`."""
    if not any(item.state == "new" for item in planned):
        yield from planned
        return
    known: dict[str, dict[str, set[str]]] = {}
    seen: set[tuple[str, str, int]] = set()  # thousands of cells have the values of the spec's few lists
    for item in planned:
        if item.state != "new":
            part = item.cell.part
            axes = known.setdefault(part, {axis: set() for axis in item.cell.axes})
            for axis, value in item.cell.axes.items():
                if (key := (part, axis, id(value))) not in seen:
                    seen.add(key)
                    axes[axis].add(spell(value))
    for item in planned:
        part = known.get(item.cell.part)
        if item.state == "new" and part and item.cell.missing is None and item.cause is None:
            fresh = [f"{axis} {spell(v)}" for axis, v in item.cell.axes.items() if spell(v) not in part[axis]]
            yield replace(item, reason=" and ".join(fresh) + " is new") if fresh else item
        else:
            yield item


_Goods = tuple[str | None, str | None]  # digests that records of numbers and of pictures must have; None: any


class _Look:
    """Reads the store for one plan; the code of each method, network and data set is digested once, and only if needed."""

    def __init__(self, store: Store, verify: bool = True) -> None:
        self.store, self.verify = store, verify
        self.known = set(store.cells())
        self.answers = Answers(store)
        self._codes: dict[str, str] = {}
        self._digester = Digester()
        self._complete: dict[tuple[Any, ...], Planned] = {}
        self._compared: list[tuple[provenance.Code, provenance.Code, list[str]]] = []  # the last first

    def at(self, cell: Cell) -> Planned:
        """How the cell stands; what it cannot do, as far as that is known, is no work."""
        planned = self._at_a_glance(cell) or self._from_files(cell)
        answer = self.answers.of(cell.settings) if planned.due and planned.state != "running" else None
        if answer is None or answer.kind in ("yes", "broken"):
            return planned
        if answer.kind == "unsupported":
            return replace(
                planned, state="n/a", reason=answer.reason, cause="unsupported", due=(), changes=()
            )
        return replace(planned, reason=f"cannot run here: {answer.reason}", cause="impossible")

    def _at_a_glance(self, cell: Cell) -> Planned | None:
        """A cell with one run, of the present code, which nobody has accepted, as nearly every cell of a grid; None for any other."""
        if self.verify or len(self.store.layers) > 1 or cell.id not in self.known:
            return None
        run = provenance.run_id(provenance.train_code(cell.settings), cell.settings, self._digester)
        seen = self.store.reads.sole(self.store.folders[0], cell.id, run)
        if seen is None:
            return None
        return self._of_seen(cell, run, [seen], self._goods({})) or self._unbegun(cell)

    def _from_files(self, cell: Cell) -> Planned:
        runs = self.store.runs(cell.id) if cell.id in self.known else []
        if not runs:
            return self._unbegun(cell)
        code = provenance.train_code(cell.settings)
        found, accepted = self._current(cell, runs, code)
        if found is not None:
            planned = self._of_run(cell, found, self._goods(accepted))
            if planned is not None:
                return planned
        changed = self._changes(cell, [run for run in runs if found is None or run.run != found.run], code)
        if changed is None:
            return self._unbegun(cell)
        total = len(cell.milestones) * (1 + len(cell.evaluations))
        reason = changed[0] + (f" and {len(changed) - 1} more" if len(changed) > 1 else "")
        return Planned(cell, "stale", reason, 0, total, _everything(cell, reason), changes=tuple(changed))

    def _unbegun(self, cell: Cell) -> Planned:
        total = len(cell.milestones) * (1 + len(cell.evaluations))
        return Planned(cell, "new", cell.missing or "never run", 0, total, _everything(cell, "never run"))

    def _of_run(self, cell: Cell, run: Run, good: _Goods) -> Planned | None:
        """What the run that counts says; None where it holds nothing."""
        if self.verify:
            whole = run.records()
            return _Seen(cell, run, good, whole, whole).planned()
        return self._of_seen(cell, run.run, run.seen(), good)

    def _of_seen(self, cell: Cell, run: str, seen: list[Seen], good: _Goods) -> Planned | None:
        """The same of its records. Cells whose records are all there differ in nothing else."""
        same = _same(cell, seen[0], good) if len(seen) == 1 else None
        known = self._complete.get(same) if same is not None else None
        if known is not None:
            return _alike(known, cell, run)
        there = self.store.run(cell.id, run)
        found = _Seen(cell, there, good, there.glimpses_of(seen), Records()).planned()
        if same is not None and found is not None and found.state == "done":
            self._complete[same] = found
        return found

    def begins(self, planned: Planned) -> bool:
        """Whether a cell's training is to begin, i.e. is due and has no checkpoint to go on from."""
        if not any(_steps(due.stage) for due in planned.due):
            return False
        run = planned.run or _present_run(planned.cell)
        return not any(self.store.run(planned.cell.id, run).checkpoints.glob("step-*"))

    def with_weights(self, planned: Planned, step: int, reason: str) -> Planned:
        """The plan of a source, made to train up to `step` where its weights there are neither kept nor due."""
        due = {each for stage in planned.due for each in _steps(stage.stage)}
        run = planned.run or _present_run(planned.cell)
        if step in due or (self.store.run(planned.cell.id, run).milestones / f"step-{step:09d}").is_dir():
            return planned
        more = (Due(f"train:{step}", reason), *planned.due)
        state = "partial" if planned.state == "done" else planned.state
        return replace(planned, due=more, state=state, reason=f"{reason}, and its weights are gone")

    def _current(
        self, cell: Cell, runs: Sequence[Run], code: provenance.Code
    ) -> tuple[Run | None, dict[str, str]]:
        """The run that counts for the present code: an accepted one, else the code's own; and what was accepted."""
        for run in runs:
            try:
                kept = (run.accepted() or {}).get("code") or {}
            except Unreadable:
                continue  # a damaged acceptance accepts nothing; the store's own check names it
            if not kept:
                continue
            now = {part: entry["digest"] for part, entry in {**code, **provenance.evaluation_code()}.items()}
            if all(now.get(part) == value for part, value in kept.items() if part != "illustration"):
                return run, kept
        own = provenance.run_id(code, cell.settings, self._digester)
        return next((run for run in runs if run.run == own), None), {}

    def _goods(self, accepted: dict[str, str]) -> _Goods:
        return self._good("evaluation", accepted), self._good("illustration", accepted)

    def _good(self, kind: str, accepted: dict[str, str]) -> str | None:
        """Digest that a record of a kind must have; None when whatever code made it was accepted.

        Illustrations are accepted as long as the code of pictures stays: it may change beside an accepted run.
        """
        if kind not in self._codes:
            self._codes[kind] = provenance.measuring_code(kind)["digest"]
        pictures = accepted.get("illustration") == self._codes[kind] if kind == "illustration" else True
        return None if "evaluation" in accepted and pictures else self._codes[kind]

    def _changes(self, cell: Cell, others: Sequence[Run], code: provenance.Code) -> list[str] | None:
        """What has changed since the run that is nearest to the present code; None if no run has left a record."""
        found: list[list[str]] = []
        for run in others:
            if not (run.records() if self.verify else run.glimpses()):
                continue
            try:
                before, settings = run.made_of()
            except Unreadable as problem:
                found.append([f"run {run.run} cannot be compared: {problem.reason}"])
                continue
            said = self._code_changes(before, code) + settings_changes(settings, cell.settings)
            found.append(said or ["made by code that cannot be told apart"])
        return min(found, key=len) if found else None

    def _code_changes(self, old: provenance.Code, new: provenance.Code) -> list[str]:
        """`provenance.changes`: of thousands of runs the same few codes are compared."""
        known = next((said for *codes, said in self._compared if codes == [old, new]), None)
        if known is None:
            known = provenance.changes(old, new)
            self._compared = [(old, new, known), *self._compared[:15]]
        return known


def _same(cell: Cell, seen: Seen, good: _Goods) -> tuple[Any, ...]:
    """On what alone it depends whether a run's records are all there."""
    return (seen.slots, cell.milestones, id(cell.evaluations), good)


def _alike(done: Planned, cell: Cell, run: str) -> Planned:
    """What was found of a cell that is done, said of another with the same records."""
    return Planned(cell, done.state, done.reason, done.done, done.total, run=run, reached=done.reached)


def settings_changes(old: dict[str, Any], new: dict[str, Any], above: str = "") -> list[str]:
    """Values that differ between two settings of one identity, i.e. defaults that have changed."""
    said = []
    for key in sorted({*old, *new}) if old != new else ():
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            said += settings_changes(before, after, f"{above}{key}.")
        elif key not in old:
            said.append(f"{above}{key} is new, with default {spell(after)}")
        elif key not in new:
            said.append(f"{above}{key} is gone")
        elif before != after:
            said.append(f"the default of {above}{key} was {spell(before)} and is {spell(after)}")
    return said


def _everything(cell: Cell, reason: str) -> tuple[Due, ...]:
    """Every stage of a cell of which nothing exists."""
    return _all_stages(cell.milestones, tuple(cell.evaluations), reason)


@functools.cache  # one tuple for the thousands of cells that want the same
def _all_stages(milestones: tuple[int, ...], evaluations: tuple[str, ...], reason: str) -> tuple[Due, ...]:
    train = Due("train:" + ",".join(map(str, milestones)), reason)
    pairs = itertools.product(milestones, evaluations)
    return (train, *(Due(f"evaluate:{step}:{key}", "after training") for step, key in pairs))


class _Seen:
    """What one run holds of what its cell wants."""

    def __init__(
        self, cell: Cell, run: Run, good: _Goods, known: Sequence[Record | Glimpse], whole: Records
    ) -> None:
        """known: its records; whole: the same if they are verified, else empty."""
        self.cell, self.run = cell, run
        self.damaged = whole.damaged
        self.spent = tuple(spent for record in whole if (spent := _spent(record)))
        self.training = {record.step: record for record in known if record.kind == "train"}
        self.trained = set(self.training)
        made = [record for record in known if record.kind in ("evaluation", "selection", "illustration")]
        fresh = [r for r in made if good[r.kind == "illustration"] in (None, r.evaluation_code)]
        self.made = {(record.step, record.evaluation) for record in fresh}
        self.old = {(r.step, r.evaluation): r for r in made if r not in fresh}
        self.begun = bool(known or self.damaged or self._touched)
        self.failure: tuple[str, str] | None = None
        self.progress: dict[str, Any] | None = None
        self.host: str | None = None
        self.reached, self.attempts = max(self.trained, default=0), 0
        self.stale: list[str] = []

    @functools.cached_property
    def _touched(self) -> set[str]:
        return self.run.touched()

    def planned(self) -> Planned | None:
        """None where nothing was ever begun."""
        if not self.begun:
            return None
        cell = self.cell
        due = (*self._train(), *self._evaluations())
        total = len(cell.milestones) * (1 + len(cell.evaluations))
        wanted = {(step, key) for step in cell.milestones for key in cell.evaluations}
        done = len(self.trained & set(cell.milestones)) + len(self.made & wanted)
        state, reason = self._verdict(due, done, total)
        return Planned(
            cell,
            state,
            reason,
            done,
            total,
            due,
            run=self.run.run,
            cause=self.failure[0] if state == "failed" and self.failure else None,
            changes=tuple(dict.fromkeys(self.stale)) if state == "stale" else (),
            progress=self.progress,
            spent=self.spent,
            host=self.host,
            reached=self.reached,
            attempts=self.attempts,
        )

    def _verdict(self, due: Sequence[Due], done: int, total: int) -> tuple[str, str]:
        away = elsewhere.sentence(self.away)
        if not due and not away:
            return "done", "every record is there"
        if self.progress is not None:
            return "running", f"{done} of {total} records so far"
        if self.failure is not None:
            return "failed", ": ".join(self.failure)
        if self.stale and all(due_.reason in self.stale for due_ in due):
            return "stale", self.stale[0] if due else f"{self.stale[0]}; {away}"
        return "partial", due[0].reason if due else away

    def _train(self) -> Iterator[Due]:
        """One stage for all milestones that lack their record, or their weights while an evaluation needs them."""
        steps = [step for step in self.cell.milestones if step not in self.trained]
        reason = self._stage_reason("train", "train", self.cell.milestones[0]) if steps else ""
        if steps and not reason:
            reached = max(self.trained, default=0)
            reason = f"milestone {steps[0]} is wanted, step {reached} is reached" if reached else "was begun"
        gone = [s for s in self.cell.milestones if self._lacks_weights(s) and s not in self.away]
        if gone and not steps:
            reason = f"the weights of milestone {gone[0]} are not in the scratch folder"
        if steps or gone:
            yield Due("train:" + ",".join(map(str, sorted({*steps, *gone}))), reason)

    @functools.cached_property
    def away(self) -> dict[int, str]:
        """Trained steps that want measuring, and whose weights another machine has: where they came from. Nothing is trained again
        for their sake, unless a later step has to be trained anyhow."""
        if not set(self.cell.milestones) <= self.trained:
            return {}
        lacking = [step for step in self.cell.milestones if self._lacks_weights(step)]
        return elsewhere.origins(self.run, [self.training[step] for step in lacking])

    def _lacks_weights(self, step: int) -> bool:
        needed = any((step, key) not in self.made for key in self.cell.evaluations)
        return step in self.trained and needed and not (self.run.milestones / f"step-{step:09d}").is_dir()

    def _evaluations(self) -> Iterator[Due]:
        for step, key in itertools.product(self.cell.milestones, self.cell.evaluations):
            if (step, key) not in self.made:
                reason = self._evaluation_reason(step, key)
                if step not in self.away:
                    yield Due(f"evaluate:{step}:{key}", reason)

    def _evaluation_reason(self, step: int, key: str) -> str:
        reason = self._stage_reason(f"evaluate-{step:09d}-{key}", "evaluation", step, key)
        if reason:
            return reason
        if (step, key) in self.old:
            old = self.old[(step, key)]
            try:
                made = old.envelope.get("evaluation_code")
            except FileNotFoundError:
                made = None
            except Unreadable as problem:
                return f"its record is damaged: {problem.reason}"
            self.stale.append(evaluation_change(old.kind, made))
            return self.stale[-1]
        if step not in self.trained:
            return "after training"
        what = self.cell.evaluations[key]
        return f"no {what['protocol']}, {sampling_text(what)}, of step {step}"

    def _stage_reason(self, stage: str, kind: str, step: int, key: str | None = None) -> str:
        """What its last attempt or a damaged record says about a missing stage; "" if nothing does."""
        state = self.run.state(stage) if stage in self._touched else None
        if state is not None:
            self.attempts = max(self.attempts, state.attempt)
            at = (state.progress or {}).get("step") if stage == "train" else None
            self.reached = max(self.reached, at or 0)
        if state is not None and state.state == "running":
            if (
                self.progress is None
            ):  # while a cell trains, its evaluations run too: the training's speed is its own
                self.progress, self.host = state.progress or {}, state.host
            return "running" + (f" on {state.host}" if state.host else "")
        if state is not None and state.state == "failed":
            message = (state.message or "").split("\n")[0]
            self.failure = self.failure or (state.cause or "unknown", message)
            return f"failed ({state.cause}): {message}"
        for damage in self.damaged:
            match = NAME.fullmatch(damage.path.name)
            if match and stage_name(match["kind"], int(match["step"]), match["evaluation"]) == stage_name(
                kind, step, key
            ):
                return f"its record is damaged: {damage.reason}"
        if state is not None and state.state in ("lost", "preempted"):
            at = (state.progress or {}).get("step")
            word = "was interrupted" if state.state == "preempted" else "its process ended without a word"
            return word + (f" at step {at}" if at else "")
        return ""


def _spent(record: Record) -> Spent | None:
    """None for a record whose envelope does not tell: it was written by another program."""
    told, seconds = record.envelope, record.envelope.get("seconds")
    if not isinstance(seconds, int | float) or not isinstance(told.get("device"), str):
        return None
    speeds = [speed for _, speed in told.get("images_per_s") or ()]
    return Spent(
        record.kind,
        record.step,
        record.evaluation,
        record.attempt,
        float(seconds),
        float(told.get("gpu_hours") or 0),
        told["device"],
        int(told.get("threads") or 1),
        int(told.get("ranks") or 1),
        sorted(speeds)[len(speeds) // 2] if speeds else None,
        record.body.get("nfe"),
    )


def evaluation_change(kind: str, old: dict[str, Any] | None) -> str:
    """What changed in the code that makes records of a kind, as far as the record's envelope tells."""
    what = "illustration" if kind == "illustration" else "evaluation"
    said = provenance.changes({what: old}, {what: provenance.measuring_code(kind)}) if old else []
    return f"{what} code changed: {said[0]}" if said else f"{what} code changed"


def register(cells: Sequence[Cell], store: Store) -> None:
    """Write what jobs read: cell.json and the present code's run.json of every cell, the description of every evaluation."""
    evaluations: dict[str, dict[str, Any]] = {}
    for cell in cells:
        store.put_cell(cell.id, cell.identity, cell.settings)
        code = provenance.train_code(cell.settings)
        store.run(cell.id, provenance.run_id(code, cell.settings)).create(code, cell.settings)
        evaluations |= cell.evaluations
    for evaluation in evaluations.values():
        store.put_evaluation(evaluation)
