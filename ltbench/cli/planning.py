"""The verbs that answer before anything runs: validate, schema, plan."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ltbench.cli.asking import Ask
from ltbench.cli.options import (
    AsJson,
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
    from ltbench.plan import Plan, Planned
    from ltbench.spec.resolved import Spec

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
    from ltbench import spec

    dump(spec.schema())


def plan(
    spec: SpecName,
    filter_: Filters = None,
    set_: Changes = None,
    with_: WithMethods = None,
    smoke: Smoke = False,
    all_: All = False,
    ask: Ask = True,
    json: AsJson = False,
    store: StoreAt = None,
    scratch: ScratchAt = None,
    plugins: Plugins = None,
) -> None:
    """What a run of this benchmark would do: cells by state and reason, steps, evaluations. Starts nothing.

    \b
    Example:
      python harness.py plan quickstart
      python harness.py plan quickstart --all --filter method=ccua
    """
    from ltbench import plan as plans
    from ltbench.cli import asking, stores, targets

    place(store, scratch, plugins)
    benchmark = targets.load(spec, set_ or [], with_ or [], smoke=smoke)
    cells, house = targets.cells_of(benchmark, filter_ or []), stores.open_store(write=False)
    if ask:
        asking.find_out(cells, house)
    found = plans.plan(benchmark, house, cells)
    asking.warn(found, house)
    targets.check_starts(found)
    if json:
        dump({**found.json(), "to_do": totals(found), "recipes": recipes(found.spec)})
        return
    _print(found)
    if all_:
        _print_cells(found)


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
    steps, trainings, samples = 0, 0, []
    for work in found.work():
        for stage in work.stages:
            if stage.startswith("train:"):
                trainings += 1
                steps += int(stage.rpartition(",")[2].rpartition(":")[2])
            else:
                samples.append(_samples(found, stage.rpartition(":")[2]))
    return {
        "trainings": trainings,
        "steps": steps,
        "evaluations": len(samples),
        "generated_images": sum(samples),
    }


def _samples(found: Plan, evaluation: str) -> int:
    """Images that an evaluation makes at most; a search makes those of its rounds first."""
    known = (item.cell.evaluations.get(evaluation) for item in found.cells)
    described = next(each for each in known if each)
    return search_images(described) + described["samples"]


def search_images(described: Mapping[str, Any]) -> int:
    """Images that a search chooses by: the first of a finalist's are those of the first round."""
    if (how := described.get("search")) is None:
        return 0
    return len(how["guidance"]) * how["samples"] + how["keep"] * (described["samples"] - how["samples"])


def _print(found: Plan) -> None:
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
        return
    out(
        f"to do: {plural(due['trainings'], 'training')} (up to {due['steps']:,} steps), "
        f"{plural(due['evaluations'], 'evaluation')} ({due['generated_images']:,} images)"
    )


def _print_cells(found: Plan) -> None:
    out()
    several = len(found.spec.parts) > 1
    table(
        ("cell", "label", "seed", "state", "records", "why"),
        (_line(item, several) for item in found.cells),
        right=("records",),
        keep=("cell", "records"),
    )


def _line(item: Planned, several: bool) -> tuple[object, ...]:
    label = f"{item.cell.part} {item.cell.label}" if several else item.cell.label
    why = "" if item.state == "done" else clip(item.reason, 80)
    return (item.cell.id[:12], label, item.cell.seed, item.state, f"{item.done}/{item.total}", why)
