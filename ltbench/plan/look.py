"""How each cell stands, as the files of the store tell: which run of it counts for the present code, and what is stale."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from ltbench import provenance
from ltbench.answers import Answers
from ltbench.canonical import Digester
from ltbench.files import Unreadable
from ltbench.plan.changes import settings_changes
from ltbench.plan.holding import Goods, Holding
from ltbench.plan.planned import Due, Planned
from ltbench.plan.work import present_run
from ltbench.provenance.changes import changes
from ltbench.spec.cells import Cell
from ltbench.store import Records, Run, Store
from ltbench.store.kept import Seen


class Look:
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
        run = present_run(cell, self._digester)
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

    def _of_run(self, cell: Cell, run: Run, good: Goods) -> Planned | None:
        """What the run that counts says; None where it holds nothing."""
        if self.verify:
            whole = run.records()
            return Holding(cell, run, good, whole, whole).planned()
        return self._of_seen(cell, run.run, run.seen(), good)

    def _of_seen(self, cell: Cell, run: str, seen: list[Seen], good: Goods) -> Planned | None:
        """The same of its records. Cells whose records are all there differ in nothing else."""
        same = _same(cell, seen[0], good) if len(seen) == 1 else None
        known = self._complete.get(same) if same is not None else None
        if known is not None:
            return _alike(known, cell, run)
        there = self.store.run(cell.id, run)
        found = Holding(cell, there, good, there.glimpses_of(seen), Records()).planned()
        if same is not None and found is not None and found.state == "done":
            self._complete[same] = found
        return found

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

    def _goods(self, accepted: dict[str, str]) -> Goods:
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
        """`changes`: of thousands of runs the same few codes are compared."""
        known = next((said for *codes, said in self._compared if codes == [old, new]), None)
        if known is None:
            known = changes(old, new)
            self._compared = [(old, new, known), *self._compared[:15]]
        return known


def _same(cell: Cell, seen: Seen, good: Goods) -> tuple[Any, ...]:
    """On what alone it depends whether a run's records are all there."""
    return (seen.slots, cell.milestones, id(cell.evaluations), good)


def _alike(done: Planned, cell: Cell, run: str) -> Planned:
    """What was found of a cell that is done, said of another with the same records."""
    return Planned(cell, done.state, done.reason, done.done, done.total, run=run, reached=done.reached)


def _everything(cell: Cell, reason: str) -> tuple[Due, ...]:
    """Every stage of a cell of which nothing exists."""
    return _all_stages(cell.milestones, tuple(cell.evaluations), reason)


@functools.cache  # one tuple for the thousands of cells that want the same
def _all_stages(milestones: tuple[int, ...], evaluations: tuple[str, ...], reason: str) -> tuple[Due, ...]:
    train = Due("train:" + ",".join(map(str, milestones)), reason)
    pairs = itertools.product(milestones, evaluations)
    return (train, *(Due(f"evaluate:{step}:{key}", "after training") for step, key in pairs))
