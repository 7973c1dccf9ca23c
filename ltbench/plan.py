"""From a spec to cells, and from the store's files to what is done, what is missing, and why."""

from __future__ import annotations

import functools
import itertools
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ltbench import provenance
from ltbench.files import Unreadable
from ltbench.protocols import sampling_text
from ltbench.sources import has_references, reference_key
from ltbench.spec.cells import Cell, cell_id, expand
from ltbench.spec.resolved import Spec
from ltbench.spec.types import spell
from ltbench.stages.names import parse
from ltbench.store import Run, Store
from ltbench.store.records import NAME, Records, stage_name

__all__ = [
    "STATES",
    "Cell",
    "Due",
    "Plan",
    "Planned",
    "Work",
    "cell_id",
    "expand",
    "plan",
    "register",
    "settings_changes",
    "with_helpers",
]

STATES = ("done", "running", "failed", "partial", "stale", "new")


# --- states ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Due:
    """A stage that is still to be done, `train:280,560` or `evaluate:560:EVALUATION`, and why."""

    stage: str
    reason: str


@dataclass(frozen=True)
class Planned:
    """How a cell stands. done and total count records (one per milestone and one per evaluation of it).

    run: the run that counts for the present code, None if there is none yet. cause: of a failure. changes: what makes it stale.
    progress: the last heartbeat of a running stage.
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
    """All stages that one cell still needs for every part that wants it, training first."""

    cell: Cell
    run: str
    stages: tuple[str, ...]


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
        wanted: dict[str, list[Planned]] = {}
        for planned in self.cells:
            if planned.due:
                wanted.setdefault(planned.cell.id, []).append(planned)
        return [_work(same) for same in wanted.values()]

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


def with_helpers(found: Plan, work: Sequence[Work], scratch: Path, split: int = 1) -> list[Work]:
    """The same work, with what evaluations wait for as jobs of their own.

    The features of each set of real images are made once, by the first cell that needs them, unless `scratch` has them. With
    `split` above 1, that many jobs make the images of each evaluation.
    """
    evaluations = {key: e for item in found.cells for key, e in item.cell.evaluations.items()}
    seen: set[str] = set()
    helped = []
    for item in work:
        named = [named for stage in item.stages if (named := parse(stage)).kind == "evaluate"]
        real = []
        for evaluation in dict.fromkeys(each.evaluation for each in named):
            key = reference_key(item.cell.settings["dataset"], evaluations[evaluation])
            if key not in seen and not has_references(scratch, key):
                real.append(f"reference:{evaluation}")
            seen.add(key)
        shares = [
            f"sample:{each.steps[0]}:{each.evaluation}:{part}/{split}"
            for each in named
            if "search" not in evaluations[each.evaluation]
            for part in range(split if split > 1 else 0)
        ]
        helped.append(replace(item, stages=(*real, *item.stages, *shares)))
    return helped


def _work(same: Sequence[Planned]) -> Work:
    cell = same[0].cell
    stages = list(dict.fromkeys(due.stage for planned in same for due in planned.due))
    steps = {step for stage in stages if stage.startswith("train:") for step in stage[6:].split(",")}
    train = ["train:" + ",".join(sorted(steps, key=int))] if steps else []
    code = provenance.train_code(cell.settings)
    run = same[0].run or provenance.run_id(code, cell.settings)
    return Work(cell, run, (*train, *(stage for stage in stages if not stage.startswith("train:"))))


def plan(spec: Spec, store: Store, cells: Sequence[Cell] | None = None) -> Plan:
    """The state of every cell (of `cells`, if given), derived from files alone."""
    look = _Look(store)
    planned = [look.at(cell) for cell in (expand(spec) if cells is None else cells)]
    return Plan(spec, tuple(_novelty(planned)))


def _novelty(planned: Sequence[Planned]) -> Iterator[Planned]:
    """Says of a new cell which value of an axis nothing in the store has yet: `seed 2 is new`."""
    known: dict[str, dict[str, set[str]]] = {}
    for item in planned:
        if item.state != "new":
            axes = known.setdefault(item.cell.part, {axis: set() for axis in item.cell.axes})
            for axis, value in item.cell.axes.items():
                axes[axis].add(spell(value))
    for item in planned:
        part = known.get(item.cell.part)
        if item.state == "new" and part and item.cell.missing is None:
            fresh = [f"{axis} {spell(v)}" for axis, v in item.cell.axes.items() if spell(v) not in part[axis]]
            yield replace(item, reason=" and ".join(fresh) + " is new") if fresh else item
        else:
            yield item


class _Look:
    """Reads the store for one plan; the code of each method, network and data set is digested once, and only if needed."""

    def __init__(self, store: Store) -> None:
        self.store = store
        self.known = set(store.cells())
        self._evaluation = ""

    def at(self, cell: Cell) -> Planned:
        total = len(cell.milestones) * (1 + len(cell.evaluations))
        runs = self.store.runs(cell.id) if cell.id in self.known else []
        if not runs:
            return Planned(cell, "new", cell.missing or "never run", 0, total, _everything(cell, "never run"))
        code = provenance.train_code(cell.settings)
        found, accepted = self._current(cell, runs, code)
        if found is not None:
            seen = _Seen(cell, found, self._good_evaluations(accepted))
            if seen.begun:
                return seen.planned()
        changed = self._changes(cell, [run for run in runs if found is None or run.run != found.run], code)
        if changed is None:
            return Planned(cell, "new", cell.missing or "never run", 0, total, _everything(cell, "never run"))
        reason = changed[0] + (f" and {len(changed) - 1} more" if len(changed) > 1 else "")
        return Planned(cell, "stale", reason, 0, total, _everything(cell, reason), changes=tuple(changed))

    def _current(
        self, cell: Cell, runs: Sequence[Run], code: provenance.Code
    ) -> tuple[Run | None, dict[str, str]]:
        """The run that counts for the present code: an accepted one, else the code's own; and what was accepted."""
        now = {part: entry["digest"] for part, entry in {**code, **provenance.evaluation_code()}.items()}
        for run in runs:
            try:
                kept = (run.accepted() or {}).get("code") or {}
            except Unreadable:
                continue  # a damaged acceptance accepts nothing; the store's own check names it
            if kept and all(now.get(part) == value for part, value in kept.items()):
                return run, kept
        own = provenance.run_id(code, cell.settings)
        return next((run for run in runs if run.run == own), None), {}

    def _good_evaluations(self, accepted: dict[str, str]) -> str | None:
        """Digest that an evaluation record must have; None when whatever code made it was accepted."""
        if "evaluation" in accepted:
            return None
        self._evaluation = self._evaluation or provenance.evaluation_code()["evaluation"]["digest"]
        return self._evaluation

    def _changes(self, cell: Cell, others: Sequence[Run], code: provenance.Code) -> list[str] | None:
        """What has changed since the run that is nearest to the present code; None if no run has left a record."""
        found: list[list[str]] = []
        for run in others:
            if not run.records():
                continue
            try:
                info = run.info()
            except Unreadable as problem:
                found.append([f"run {run.run} cannot be compared: {problem.reason}"])
                continue
            said = provenance.changes(info["code"], code) + settings_changes(info["settings"], cell.settings)
            found.append(said or ["made by code that cannot be told apart"])
        return min(found, key=len) if found else None


def settings_changes(old: dict[str, Any], new: dict[str, Any], above: str = "") -> list[str]:
    """Values that differ between two settings of one identity, i.e. defaults that have changed."""
    said = []
    for key in sorted({*old, *new}):
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

    def __init__(self, cell: Cell, run: Run, good: str | None) -> None:
        self.cell, self.run = cell, run
        self.records: Records = run.records()
        self.trained = {record.step for record in self.records if record.kind == "train"}
        made = [record for record in self.records if record.kind in ("evaluation", "selection")]
        fresh = [r for r in made if good is None or (r.body.get("code") or {}).get("evaluation") == good]
        self.made = {(record.step, record.evaluation) for record in fresh}
        self.old = {(r.step, r.evaluation): r.envelope.get("evaluation_code") for r in made if r not in fresh}
        self.begun = bool(self.records or self.records.damaged or run.stages())
        self.failure: tuple[str, str] | None = None
        self.progress: dict[str, Any] | None = None
        self.stale: list[str] = []

    def planned(self) -> Planned:
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
        )

    def _verdict(self, due: Sequence[Due], done: int, total: int) -> tuple[str, str]:
        if not due:
            return "done", "every record is there"
        if self.progress is not None:
            return "running", f"{done} of {total} records so far"
        if self.failure is not None:
            return "failed", ": ".join(self.failure)
        if self.stale and all(due_.reason in self.stale for due_ in due):
            return "stale", self.stale[0]
        return "partial", due[0].reason

    def _train(self) -> Iterator[Due]:
        """One stage for all milestones that lack their record, or their weights while an evaluation needs them."""
        steps = [step for step in self.cell.milestones if step not in self.trained]
        reason = self._stage_reason("train", "train", self.cell.milestones[0]) if steps else ""
        if steps and not reason:
            reached = max(self.trained, default=0)
            reason = f"milestone {steps[0]} is wanted, step {reached} is reached" if reached else "was begun"
        gone = [step for step in self.cell.milestones if self._lacks_weights(step)]
        if gone and not steps:
            reason = f"the weights of milestone {gone[0]} are not in the scratch folder"
        if steps or gone:
            yield Due("train:" + ",".join(map(str, sorted({*steps, *gone}))), reason)

    def _lacks_weights(self, step: int) -> bool:
        needed = any((step, key) not in self.made for key in self.cell.evaluations)
        return step in self.trained and needed and not (self.run.milestones / f"step-{step:09d}").is_dir()

    def _evaluations(self) -> Iterator[Due]:
        for step, key in itertools.product(self.cell.milestones, self.cell.evaluations):
            if (step, key) not in self.made:
                yield Due(f"evaluate:{step}:{key}", self._evaluation_reason(step, key))

    def _evaluation_reason(self, step: int, key: str) -> str:
        reason = self._stage_reason(f"evaluate-{step:09d}-{key}", "evaluation", step, key)
        if reason:
            return reason
        if (step, key) in self.old:
            self.stale.append(_evaluation_change(self.old[(step, key)]))
            return self.stale[-1]
        if step not in self.trained:
            return "after training"
        what = self.cell.evaluations[key]
        return f"no {what['protocol']}, {sampling_text(what)}, of step {step}"

    def _stage_reason(self, stage: str, kind: str, step: int, key: str | None = None) -> str:
        """What its last attempt or a damaged record says about a missing stage; "" if nothing does."""
        state = self.run.state(stage)
        if state is not None and state.state == "running":
            self.progress = state.progress or {}
            return "running" + (f" on {state.host}" if state.host else "")
        if state is not None and state.state == "failed":
            message = (state.message or "").split("\n")[0]
            self.failure = self.failure or (state.cause or "unknown", message)
            return f"failed ({state.cause}): {message}"
        for damage in self.records.damaged:
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


def _evaluation_change(old: dict[str, Any] | None) -> str:
    """What changed in the evaluation code, as far as the record's envelope tells."""
    now = provenance.evaluation_code()
    said = provenance.changes({"evaluation": old}, now) if old else []
    return f"evaluation code changed: {said[0]}" if said else "evaluation code changed"


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
