"""From a spec to cells, and from the store's files to what is done, what is missing, and why.

planned.py   how a cell stands, as a value: its state, what is due, what was spent
look.py      the state of one cell from the store: which run counts for the present code, and what is stale
holding.py   what that run holds, and the reason of each stage that is left
sources.py   cells that others begin at, brought in
changes.py   what is not as before, in words
work.py      what one cell still needs, as jobs do it
helpers.py   jobs that others wait for
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ltbench import provenance
from ltbench.canonical import Digester
from ltbench.plan.changes import novelty
from ltbench.plan.look import Look
from ltbench.plan.planned import STATES, Planned
from ltbench.plan.sources import with_sources
from ltbench.plan.work import Work, stages_of, work_of
from ltbench.spec.cells import Cell, expand
from ltbench.spec.resolved import Spec
from ltbench.store import Store

__all__ = ["Plan", "plan", "register"]


def plan(spec: Spec, store: Store, cells: Sequence[Cell] | None = None, *, verify: bool = True) -> Plan:
    """The state of every cell (of `cells`, if given), derived from files alone.

    Without `verify` records are known by their names and ends, which is for showing and not for acting.

    A cell that is to begin at a milestone of another cell, which is not among them or has lost its weights, brings that cell in,
    trained up to there and not evaluated; its reason says for whom.
    """
    look = Look(store, verify)
    planned = [look.at(cell) for cell in (expand(spec) if cells is None else cells)]
    return Plan(spec, tuple(with_sources(list(novelty(planned)), look)))


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
        return [work_of(same, runs, digester) for same in self._wanted()]

    def stages(self) -> list[tuple[str, ...]]:
        """The stages of each `work()`, without asking which run they belong to."""
        return [stages_of(same) for same in self._wanted()]

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
