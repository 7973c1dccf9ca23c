"""`report`: the table and the figures of a benchmark, from whatever the store holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from ltbench.cli.options import (
    AsJson,
    Changes,
    Filters,
    Plugins,
    ScratchAt,
    StoreAt,
    WithMethods,
    place,
)
from ltbench.cli.output import console, dump, out, say

if TYPE_CHECKING:
    from ltbench.cli.definitions import Asked
    from ltbench.plan import Plan
    from ltbench.report.build import Report
    from ltbench.store import Store

BUILD = Path("reports/build")


def report(
    spec: Annotated[
        str,
        typer.Argument(
            metavar="NAME",
            help="A definition in reports/ (table1), or a spec: its path or a name in benchmarks/.",
        ),
    ],
    format_: Annotated[
        str | None,
        typer.Option(
            "--format",
            metavar="md,tex,csv,html,png,pdf,svg",
            help="Which files; pdf and svg are the figures. [all but these two]",
        ),
    ] = None,
    as_: Annotated[
        str | None,
        typer.Option("--as", metavar="NAME", help="A definition in reports/. [the spec's own, else summary]"),
    ] = None,
    paper: Annotated[
        bool, typer.Option("--paper", help="Also the differences from the published numbers, with verdicts.")
    ] = False,
    fail_on: Annotated[
        Literal["drift"] | None,
        typer.Option(
            "--fail-on", help="drift: exit 3 where ours is outside the tolerance of a published number."
        ),
    ] = None,
    filter_: Filters = None,
    set_: Changes = None,
    with_: WithMethods = None,
    out_dir: Annotated[
        Path | None, typer.Option("--out", metavar="DIR", help="Where the files go. [reports/build/NAME]")
    ] = None,
    json: AsJson = False,
    store: StoreAt = None,
    scratch: ScratchAt = None,
    plugins: Plugins = None,
) -> None:
    """Print a table and write it as Markdown, LaTeX, CSV, HTML and figures.

    NAME is a definition in reports/, which names its benchmarks, or a benchmark. Reads the store only: it works at any moment, on any
    machine that has a copy, and says what is missing. Published numbers are there before anything has run.

    \b
    Example:
      python harness.py report table1 --paper
      python harness.py report quickstart --format md,tex --out paper/tables
    """
    from ltbench.cli import definitions, stores

    place(store, scratch, plugins)
    asked = definitions.asked(spec, as_)
    house = stores.open_store(write=False)
    found = [plans_of(name, house, set_ or [], with_ or [], filter_ or []) for name in asked.benchmarks]
    made = build(found, house, format_, asked, out_dir, quiet=json, paper=paper or fail_on is not None)
    if json:
        dump({"name": asked.name, "files": {name: str(path) for name, path in made.paths.items()}})
    if fail_on is not None:
        definitions.fail_on_drift(made.table)


def plans_of(
    spec: str, store: Store, changes: Sequence[str], methods: Sequence[str], filters: Sequence[str]
) -> Plan:
    """The plan of a benchmark as the flags change it."""
    from ltbench import plan as plans
    from ltbench.cli import targets

    benchmark = targets.load(spec, changes, methods)
    return plans.plan(benchmark, store, targets.cells_of(benchmark, filters))


def build(
    found: Plan | Sequence[Plan],
    store: Store,
    formats: str | None = None,
    asked: Asked | None = None,
    folder: Path | None = None,
    *,
    quiet: bool = False,
    paper: bool = False,
) -> Report:
    """Write the report, print its table (stdout; not if `quiet`) and its files (stderr).

    `asked`: which definition under which name; without it the benchmark's own, else `summary`. `paper`: with verdicts.
    """
    from ltbench.cli import definitions
    from ltbench.cli.inputs import gather_all
    from ltbench.report.build import PICTURES, USUAL, fetch_from, write_report
    from ltbench.report.figure_kinds import ILLUSTRATED

    plans = [found] if not isinstance(found, Sequence) else found
    asked = asked or definitions.of_benchmark(plans[0].spec.name)
    wanted = tuple(formats.replace(" ", "").split(",")) if formats else USUAL
    name = asked.name or plans[0].spec.name
    made = write_report(
        definitions.with_published(gather_all(plans, store, name), asked.definition),
        asked.definition,
        fetch_from(store),
        folder or BUILD / name,
        wanted,
        verdicts=paper,
    )
    if not quiet:
        made.terminal(console())
        out()
    for name, path in made.paths.items():
        if ":" not in name:
            say(f"{name:5} {path}")
    for kind in PICTURES:
        pictures = [path for name, path in made.paths.items() if name.startswith(f"{kind}:")]
        if pictures:
            say(f"{kind:5} {pictures[0].parent}/ ({len(pictures)} figures)")
    needs = [kind for kind in made.absent if kind in ILLUSTRATED]
    if needs:
        say(f"not drawn: {', '.join(needs)}; `evaluate SPEC --add 'illustrate: tail'` makes what they show")
    return made
