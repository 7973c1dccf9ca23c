"""What one cell still needs, as a job will do it: its stages, its run, and the weights that it begins at."""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from ltbench import provenance
from ltbench.canonical import Digester
from ltbench.plan.planned import Due, Planned
from ltbench.spec.cells import Cell
from ltbench.stages.names import parse, trained


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


def work_of(same: Sequence[Planned], runs: Mapping[str, str | None], digester: Digester) -> Work:
    """What is due of one cell, of which `same` are the plans in the parts that share it. runs: of every cell of the plan."""
    cell = same[0].cell
    after, start = None, None
    if cell.source is not None:
        source = cell.source.cell
        after, start = (source.id, cell.source.step), runs.get(source.id) or present_run(source, digester)
    elif cell.file is not None:
        start = str(cell.file.located())
    run = same[0].run or present_run(cell, digester)
    return Work(cell, run, stages_of(same), after, start)


def stages_of(same: Sequence[Planned]) -> tuple[str, ...]:
    """What is due of one cell, its training as one stage and first."""
    return _merged(same[0].due if len(same) == 1 else tuple(due for planned in same for due in planned.due))


@functools.lru_cache(maxsize=4096)  # thousands of cells want the same
def _merged(due: tuple[Due, ...]) -> tuple[str, ...]:
    stages = dict.fromkeys(each.stage for each in due)
    steps = {step for stage in stages for step in trained(stage)}
    train = ["train:" + ",".join(map(str, sorted(steps)))] if steps else []
    return (*train, *(stage for stage in stages if not stage.startswith("train:")))


def present_run(cell: Cell, digester: Digester | None = None) -> str:
    """The run that the present code makes of a cell."""
    return provenance.run_id(provenance.train_code(cell.settings), cell.settings, digester)


def evaluations_only(work: Sequence[Work]) -> list[Work]:
    """What can be measured as things stand: the evaluations of milestones that are there, and no training."""
    found = []
    for item in work:
        missing = {step for stage in item.stages for step in trained(stage)}
        ready = tuple(
            s for s in item.stages if (n := parse(s)).kind == "evaluate" and n.steps[0] not in missing
        )
        if ready:
            found.append(replace(item, stages=ready, after=None))
    return found
