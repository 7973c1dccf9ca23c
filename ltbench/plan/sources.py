"""Cells that others begin at: brought into a plan, trained up to the milestone that is wanted of them and not evaluated."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import replace

from ltbench.plan.look import Look
from ltbench.plan.planned import Due, Planned
from ltbench.plan.work import present_run
from ltbench.spec.cells import Cell
from ltbench.stages.names import trained
from ltbench.store import Run


def with_sources(planned: list[Planned], look: Look) -> list[Planned]:
    """`planned`, and before the first cell that needs it each source; sources may have sources."""
    sources = _Sources(planned, look)
    waiting = deque((item, item) for item in planned)
    while waiting:
        item, first = waiting.popleft()
        if (more := sources.bring(item, first)) is not None:
            waiting.append((more, first))
    return list(sources.assembled(planned))


class _Sources:
    """The sources found so far: own, cells of the plan itself, and brought, with the cell that each goes before."""

    def __init__(self, planned: Sequence[Planned], look: Look) -> None:
        self.look = look
        # Of two parts that share a cell the first speaks.
        self.own = {item.cell.id: item for item in reversed(planned)}
        self.brought: dict[str, tuple[str, Planned]] = {}
        self._steps: dict[str, set[int]] = {}

    def bring(self, item: Planned, first: Planned) -> Planned | None:
        """Plan what `item` begins at, to go before `first`. The source, if it has changed and may want a source itself."""
        source = item.cell.source
        if source is None or not self._begins(item):
            return None
        wanted = self._steps.setdefault(source.cell.id, set())
        if source.step in wanted:
            return None
        wanted.add(source.step)
        reason = f"{item.cell.label} starts from its step {source.step}"
        if (known := self.own.get(source.cell.id)) is not None:
            found = self.own[source.cell.id] = self._with_weights(known, source.step, reason)
            return None if found is known else found
        found = self._added(source.cell, sorted(wanted), reason)
        place = self.brought[source.cell.id][0] if source.cell.id in self.brought else first.cell.id
        self.brought[source.cell.id] = (place, found)
        return found

    def _added(self, cell: Cell, steps: Sequence[int], reason: str) -> Planned:
        found = self.look.at(replace(cell, milestones=tuple(steps)))
        for step in steps:
            found = self._with_weights(found, step, reason)
        return replace(found, reason=f"added: {reason}" if found.state in ("new", "done") else found.reason)

    def _begins(self, planned: Planned) -> bool:
        """Whether a cell's training is to begin, i.e. is due and has no checkpoint to go on from."""
        if not any(trained(due.stage) for due in planned.due):
            return False
        return not any(self._run(planned).checkpoints.glob("step-*"))

    def _with_weights(self, planned: Planned, step: int, reason: str) -> Planned:
        """The plan of a source, made to train up to `step` where its weights there are neither kept nor due."""
        due = {each for stage in planned.due for each in trained(stage.stage)}
        if step in due or (self._run(planned).milestones / f"step-{step:09d}").is_dir():
            return planned
        more = (Due(f"train:{step}", reason), *planned.due)
        state = "partial" if planned.state == "done" else planned.state
        return replace(planned, due=more, state=state, reason=f"{reason}, and its weights are gone")

    def _run(self, planned: Planned) -> Run:
        return self.look.store.run(planned.cell.id, planned.run or present_run(planned.cell))

    def assembled(self, planned: Sequence[Planned]) -> Iterator[Planned]:
        """Sources before the cells that brought them; a source's own source, which was found later, before it."""
        before: dict[str, list[Planned]] = {}
        for place, found in self.brought.values():
            before.setdefault(place, []).insert(0, found)
        for item in planned:
            yield from before.pop(item.cell.id, ())
            changed = self.own.pop(item.cell.id, item)
            yield changed if changed.cell is item.cell else item
