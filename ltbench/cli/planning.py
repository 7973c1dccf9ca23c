"""The verbs that answer before anything runs: validate, schema, plan."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ltbench.cli.options import (
    AsJson,
    Ask,
    Changes,
    Filters,
    Plugins,
    ScratchAt,
    Smoke,
    SpecName,
    StoreAt,
    WithMethods,
    place,
)
from ltbench.cli.output import clip, dump, out, plural, say, table
from ltbench.errors import SpecError

if TYPE_CHECKING:
    from ltbench.cost.estimate import Cost, GridCost
    from ltbench.cost.machine import Machine
    from ltbench.plan import Plan
    from ltbench.plan.planned import Planned
    from ltbench.spec.resolved import Spec

On = Annotated[
    str | None,
    typer.Option(
        "--on", metavar="DEVICE", help="What the cost is for: cpu, a100, 'RTX 6000 Ada'. [this machine]"
    ),
]
Limit = Annotated[str | None, typer.Option(metavar="TIME", help="Longest job there: 24h, 12:00:00.")]
Slots = Annotated[
    int | None,
    typer.Option(
        min=1,
        metavar="N",
        help="Cells at a time there. [workers of run; of a profile at_once x pack, else all; else 1]",
    ),
]
ForProfile = Annotated[
    str | None,
    typer.Option("--profile", metavar="NAME", help="Device, time limit and slots of a cluster's profile."),
]
All = Annotated[bool, typer.Option("--all", "-a", help="One line per cell.")]


def validate(
    spec: SpecName,
    set_: Changes = None,
    with_: WithMethods = None,
    smoke: Smoke = False,
    json: AsJson = False,
    plugins: Plugins = None,
) -> None:
    """Check a spec: every mistake at once, each with its place in the file. Exit code 2 when there is one.

    \b
    Example:
      python harness.py validate benchmarks/quickstart.yaml
      python harness.py validate mine.yaml --json          (for editors)
    """
    place(plugins=plugins)
    from ltbench.cli import targets
    from ltbench.spec.starts import check_files

    try:
        benchmark = targets.load(spec, set_ or [], with_ or [], smoke=smoke)
        cells = targets.cells_of(benchmark)
        check_files(cells)
    except SpecError as error:
        if not json:
            raise
        dump({"valid": False, "problems": [vars(problem) for problem in error.problems]})
        raise typer.Exit(error.exit_code) from None
    if json:
        dump({"valid": True, "name": benchmark.name, "cells": len(cells), "problems": []})
        return
    out(f"{benchmark.file}: valid; {benchmark.name} has {plural(len(cells), 'cell')}")
    for missing in sorted({cell.missing for cell in cells if cell.missing}):
        say(f"note: {missing}")


def schema() -> None:
    """Print the JSON schema of a spec, for editors.

    \b
    Example:
      python harness.py schema > spec.schema.json
    """
    from ltbench.spec.json_schema import spec_schema

    dump(spec_schema())


def plan(
    spec: SpecName,
    filter_: Filters = None,
    set_: Changes = None,
    with_: WithMethods = None,
    smoke: Smoke = False,
    all_: All = False,
    ask: Ask = True,
    on: On = None,
    limit: Limit = None,
    slots: Slots = None,
    profile: ForProfile = None,
    json: AsJson = False,
    store: StoreAt = None,
    scratch: ScratchAt = None,
    plugins: Plugins = None,
) -> None:
    """What a run of this benchmark would do: cells by state and reason, and what that costs. Starts nothing.

    Each figure of the cost is measured (by `calibrate`, or told by records), scaled from another measurement by the operations
    of both, or estimated from operations and an assumed rate, which is printed. What was spent so far stands beside its prediction.

    \b
    Example:
      python harness.py plan quickstart
      python harness.py plan quickstart --all --filter method=ccua
      python harness.py plan table1 --on a100 --limit 24h --slots 8
    """
    from ltbench import caches, provenance
    from ltbench import plan as plans
    from ltbench.cli import agreed, asking, costing, stores, targets

    place(store, scratch, plugins)
    benchmark = targets.load(spec, set_ or [], with_ or [], smoke=smoke)
    cells, house = targets.cells_of(benchmark, filter_ or []), stores.open_store(write=False)
    with provenance.kept_in(caches.root()):
        if ask:
            asking.find_out(cells, house)
        found = plans.plan(benchmark, house, cells)
        asking.warn(found, house)
        targets.check_starts(found)
        cost, bad = costing.cost_of(found, house, costing.machine_of(benchmark, on, limit, slots, profile))
        code = agreed.code(cells) if json else {}
    for line in bad:
        say(line)
    if json:
        dump(
            {
                **found.json(),
                "code": code,
                "to_do": totals(found),
                "recipes": recipes(found.spec),
                "cost": cost.json(),
            }
        )
        return
    if _print(found):
        costing.show_cost(cost, spec)
    costing.show_actual(cost.actual)
    if all_:
        _print_cells(found, cost)


def recipes(benchmark: Spec) -> list[dict[str, Any]]:
    """Every training recipe that a benchmark names, by part, and all that it does otherwise: {key: [value, the recipe's]}."""
    found = [
        {
            "part": part.name,
            "preset": recipe.preset,
            "deviations": {k: list(v) for k, v in recipe.deviations.items()},
        }
        for part in benchmark.parts
        for recipe in part.recipes.values()
        if recipe.preset is not None
    ]
    return [entry for place, entry in enumerate(found) if entry not in found[:place]]


def recipe_lines(benchmark: Spec) -> list[str]:
    """The same for people, a line each; parts that train alike share it."""
    said: dict[str, list[str]] = {}
    for part in benchmark.parts:
        for recipe in part.recipes.values():
            if (text := recipe.said()) is not None and part.name not in said.setdefault(text, []):
                said[text].append(part.name)
    everywhere = len(benchmark.parts) == 1 or (
        len(said) == 1 and len(next(iter(said.values()))) == len(benchmark.parts)
    )
    return [
        f"trained as {text}" if everywhere else f"{', '.join(parts)}: trained as {text}"
        for text, parts in said.items()
    ]


def totals(found: Plan) -> dict[str, Any]:
    """What is still to be done, each cell once: trainings, steps at most, evaluations, generated images."""
    from ltbench.stages.names import parse

    sums = {"trainings": 0, "steps": 0, "evaluations": 0, "generated_images": 0}
    images = _samples(found)
    for stages, cells in Counter(found.stages()).items():
        for stage in map(parse, stages):
            if stage.kind == "train":
                sums["trainings"] += cells
                sums["steps"] += cells * stage.steps[-1]
            else:
                sums["evaluations"] += cells
                sums["generated_images"] += cells * images[stage.evaluation]
    return sums


def _samples(found: Plan) -> dict[str, int]:
    """Images that each evaluation makes at most; a search makes those of its rounds first."""
    from ltbench.searching import rounds

    grids = {id(item.cell.evaluations): item.cell.evaluations for item in found.cells}
    described = {key: each for evaluations in grids.values() for key, each in evaluations.items()}
    return {key: sum(images for _, images in rounds(each)) for key, each in described.items()}


def _print(found: Plan) -> bool:
    """States and sums; whether there is anything to do."""
    out(f"{found.spec.name}: {found.spec.title}")
    rows = [
        (count, state, "" if state == "done" else clip(why, 120)) for state, why, count in found.reasons()
    ]
    table(("cells", "state", "why"), [*rows, (len(found.cells), "all", "")], right=("cells",))
    for line in recipe_lines(found.spec):
        out(line)
    due = totals(found)
    if not due["trainings"] and not due["evaluations"]:
        out("nothing to do")
        return False
    out(
        f"to do: {plural(due['trainings'], 'training')} (up to {due['steps']:,} steps), "
        f"{plural(due['evaluations'], 'evaluation')} ({due['generated_images']:,} images)"
    )
    return True


def _print_cells(found: Plan, cost: GridCost) -> None:
    out()
    several, machine = len(found.spec.parts) > 1, cost.machine
    timed = ("jobs",) if machine.limit is not None else ()
    figures = (machine.unit, "wall", *timed, "store", "scratch", "files")
    # one reason for all of them stands above already
    why = ("why",) if len({item.reason for item, _ in cost.cells}) > 1 else ()
    table(
        ("cell", "label", "seed", "state", "records", *figures, "figure is", *why),
        (
            (*_line(item, several), *_cost(each, machine), *([_why(item)] * len(why)))
            for item, each in cost.cells
        ),
        right=("records", *figures),
        keep=("cell", "records", *figures),
    )


def _line(item: Planned, several: bool) -> tuple[object, ...]:
    label = f"{item.cell.part} {item.cell.label}" if several else item.cell.label
    return (item.cell.id[:12], label, item.cell.seed, item.state, f"{item.done}/{item.total}")


def _why(item: Planned) -> str:
    return "" if item.state == "done" else clip(item.reason, 80)


def _cost(cost: Cost, machine: Machine) -> tuple[object, ...]:
    """Of what is to be done for one cell."""
    from ltbench.cli.costing import bytes_text, hours_text
    from ltbench.cli.output import duration

    timed = (cost.segments,) if machine.limit is not None else ()
    if not cost.seconds:
        return ("", "", *("" for _ in timed), "", "", "", "")
    return (
        hours_text(machine.hours(cost.seconds)),
        duration(cost.seconds),
        *timed,
        bytes_text(cost.store.bytes),
        bytes_text(cost.scratch.bytes),
        cost.store.files + cost.scratch.files,
        cost.basis,
    )
