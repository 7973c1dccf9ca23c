"""What one run holds of what its cell wants, and what is left to be done, with the reason of each stage."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator, Sequence
from typing import Any

from ltbench import elsewhere
from ltbench.files import Unreadable
from ltbench.plan.changes import evaluation_change
from ltbench.plan.planned import Due, Planned, Spent
from ltbench.protocols import sampling_text
from ltbench.spec.cells import Cell
from ltbench.store import Run
from ltbench.store.records import NAME, Glimpse, Record, Records, stage_name

Goods = tuple[str | None, str | None]  # digests that records of numbers and of pictures must have; None: any


class Holding:
    """What one run holds of what its cell wants."""

    def __init__(
        self, cell: Cell, run: Run, good: Goods, known: Sequence[Record | Glimpse], whole: Records
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
