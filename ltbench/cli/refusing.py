"""What `submit` refuses before anything is queued: what the profile's machines cannot do, what jobs could not fetch, what costs too
much; and, as `run` does, what has no room on the disk."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from ltbench import files
from ltbench.cli.output import plural, say
from ltbench.errors import EnvironmentProblem, UsageError

if TYPE_CHECKING:
    from ltbench.cli.due import Looked
    from ltbench.cli.submitting import Asked
    from ltbench.cost.estimate import GridCost
    from ltbench.launch.slurm.resources import Wanted
    from ltbench.plan import Plan
    from ltbench.plan.work import Work
    from ltbench.profiles import Profile
    from ltbench.store import Store


def unable(work: Sequence[Work], profile: Profile) -> None:
    """What the profile's machines cannot do. Raises UsageError."""
    from ltbench.cli.running import Pool

    training = profile.resources("training")
    Pool(None, None, None, training.ranks, None).refuse_uneven([item.cell for item in work])
    wants = {item.cell.label for item in work if item.cell.settings["train"]["precision"] == "bf16"}
    if wants and training.gpus and not training.bf16:
        raise UsageError(
            f"the profile says that its GPUs do not compute in bf16, which {', '.join(sorted(wants)[:3])} would use",
            "use train.precision=fp32 (another cell), or another partition",
        )


def large(work: Sequence[Work], profile: Profile, house: Store) -> None:
    """Cells that do not fit the profile's GPUs. Raises UsageError."""
    training = profile.resources("training")
    if training.gpu_memory_gb is None or not training.gpus:
        return
    from ltbench.cost.calibrations import read_all
    from ltbench.cost.memory import training_memory

    known, _ = read_all(house)
    # Seeds of a row take the same.
    rows = {
        item.cell.label: item.cell
        for item in work
        if any(stage.startswith("train:") for stage in item.stages)
    }
    too_large = []
    for label, cell in rows.items():
        needed = training_memory(cell.settings, cell.options, known, training.ranks)
        if needed.bytes * training.pack_on_gpu > training.gpu_memory_gb * 1e9:
            too_large.append(f"{label}: {needed.bytes / 1e9:,.1f} GB ({needed.source})")
    if too_large:
        raise UsageError(
            f"a GPU of the profile has {training.gpu_memory_gb:g} GB (gpu_memory_gb), "
            f"{plural(training.pack_on_gpu, 'cell')} at a time; this needs more for each:\n"
            + "\n".join(too_large[:10]),
            "set train.micro_batch or train.recompute (the same cell), pack fewer, or use another partition; cells that fit: --filter",
        )


def missing(work: Sequence[Work], asked: Asked, waiting: Collection[str]) -> None:
    """Weights and data that jobs could not fetch; as a note in a dry run. waiting: cells whose data set a job is preparing.

    Raises EnvironmentProblem.
    """
    from ltbench import needs

    there = needs.missing_assets([item.cell for item in work if item.cell.id not in waiting], asked.spec)
    coming = [item.cell for item in work if item.cell.id in waiting]
    lacking = dict(there + needs.missing_assets(coming, asked.spec, but=("data",)))
    if not lacking:
        return
    lines = [f"{what}\n    {remedy}" for what, remedy in lacking.items()]
    problem = "jobs have no network, and this is not here:\n" + "\n".join(lines)
    if asked.dry_run:
        say(f"note: {problem}\nwithout --dry-run this is refused")
        return
    remedy = f"bring it, then submit: python harness.py fetch {asked.spec} --profile {asked.profile}"
    if "datasets prepare" in problem:
        remedy += f"; `datasets prepare ... --profile {asked.profile}` is a job, and cells submitted meanwhile wait for it"
    raise EnvironmentProblem(problem, remedy)


def cost_of(looked: Looked, profile: Profile, wanted: Sequence[Wanted]) -> GridCost:
    """The estimate for what is to be submitted."""
    from ltbench.cli import costing
    from ltbench.cost.machine import Machine, cpu_name
    from ltbench.launch.slurm import resources

    asked = profile.resources("training")
    device = (asked.gpu_type or "gpu") if asked.gpus else cpu_name()
    threads = max(
        1, asked.cores // (asked.ranks * asked.pack)
    )  # as a job shares its cores among packed cells
    machine = Machine(device, threads, asked.ranks, resources.slots(wanted, profile), asked.time * 60.0)
    cost, bad = costing.cost_of(_only(looked.found, wanted), looked.house, machine)
    for line in bad:
        say(f"note: {line}")
    return cost


def _only(found: Plan, wanted: Sequence[Wanted]) -> Plan:
    """The plan of what is to be submitted now."""
    ours = {(entry.cell, stage) for each in wanted for entry in each.cells() for stage in entry.stages}
    trains = {cell for cell, stage in ours if stage.startswith("train:")}
    cells = []
    for item in found.cells:
        due = tuple(
            each
            for each in item.due
            if (item.cell.id, each.stage) in ours
            or (each.stage.startswith("train:") and item.cell.id in trains)
        )
        cells.append(item if len(due) == len(item.due) else replace(item, due=due))
    return replace(found, cells=tuple(cells))


def hours(cost: GridCost, most: float | None) -> None:
    from ltbench.cli.costing import hours_text

    if most is not None and math.isnan(most):
        raise UsageError("--max-gpu-hours nan allows nothing and refuses nothing", "give a number of hours")
    if most is not None and cost.hours > most:
        raise UsageError(
            f"this is estimated at {hours_text(cost.hours)} {cost.machine.unit}; --max-gpu-hours allows {hours_text(most)}",
            "choose cells by --filter, or allow more; --dry-run shows the figures",
        )


def room(cost: GridCost, house: Store) -> None:
    """What the disks have no room for. A quota is not known here: a full one stops a job with its checkpoints safe.

    Raises EnvironmentProblem where one cell, not begun yet, would leave more than is free; says where all of them would.
    """
    from ltbench.cli.costing import bytes_text

    new = [(planned.cell.label, each) for planned, each in cost.cells if planned.run is None and each.steps]
    places = (
        (
            "LTBENCH_SCRATCH",
            house.scratch,
            cost.scratch.bytes,
            [(each.scratch.bytes, label) for label, each in new],
        ),
        ("LTBENCH_STORE", house.root, cost.store.bytes, [(each.store.bytes, label) for label, each in new]),
    )
    for variable, folder, whole, cells in places:
        free = files.free(folder)
        needed, label = max(cells, default=(0, ""))
        if free is None or whole <= free:
            continue
        there = f"{folder} has {bytes_text(free)} free"
        remedy = f"set {variable} to a larger disk, or keep fewer milestones"
        if needed > free:
            raise EnvironmentProblem(
                f"{there}, and a cell of {label} leaves {bytes_text(needed)} there", remedy
            )
        say(f"note: {there}, and all of this leaves {bytes_text(whole)} there: {remedy}")
