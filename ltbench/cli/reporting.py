"""`report`: the table and the figures of a benchmark, from whatever the store holds."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
from ltbench.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from ltbench.plan import Plan
    from ltbench.report.build import Report
    from ltbench.report.definition import Definition
    from ltbench.store import Store

BUILD = Path("reports/build")


def report(
    spec: Annotated[
        str,
        typer.Argument(
            metavar="[appendix] SPEC", help="A spec: its path, or the name of a file in benchmarks/."
        ),
    ],
    of: Annotated[str | None, typer.Argument(hidden=True)] = None,
    format_: Annotated[
        str | None, typer.Option("--format", metavar="md,tex,csv,html,png", help="Which files. [all]")
    ] = None,
    as_: Annotated[
        str | None,
        typer.Option("--as", metavar="NAME", help="A definition in reports/. [the spec's own, else summary]"),
    ] = None,
    lock: Annotated[
        Path | None,
        typer.Option("--lock", metavar="FILE", help="Pin every printed number and the records behind it."),
    ] = None,
    check: Annotated[
        Path | None,
        typer.Option(
            "--check", metavar="FILE", help="List what moved since --lock; exit code 3 if anything."
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
    """Print a benchmark's table and write it as Markdown, LaTeX, CSV, HTML and figures.

    Reads the store only: it works at any moment, on any machine that has a copy, and says what is missing.

    \b
    Example:
      python harness.py report quickstart
      python harness.py report quickstart --format md,tex --out paper/tables
      python harness.py report appendix quickstart
      python harness.py report quickstart --lock paper.lock
      python harness.py report quickstart --check paper.lock
    """
    from ltbench import plan as plans
    from ltbench.cli import appending, locking, memory, stores, targets

    wanted = _what(spec, of)
    locking.one_of(lock, check)
    place(store, scratch, plugins)
    plain = of is None and lock is None and check is None
    if plain and memory.recall():
        return
    with memory.remembering() as seen:
        benchmark = targets.load(wanted, set_ or [], with_ or [])
        house = stores.open_store(write=False)
        cells = targets.cells_of(benchmark, filter_ or [])
        if of is not None:
            paths = appending.write(benchmark, cells, house, out_dir or BUILD / benchmark.name, format_)
            _say_files(benchmark.name, paths, json)
            return
        found = plans.plan(benchmark, house, cells)
        made = build(found, house, format_, as_, out_dir, quiet=json)
        moved = locking.settle(made, as_, lock, check, quiet=json)
        if json:
            files = {name: str(path) for name, path in made.paths.items()}
            dump(
                {"name": benchmark.name, "files": files, **({} if moved is None else {"moved": moved.lines})}
            )
    if plain and set(found.counts()) <= {"done", "n/a"}:  # whatever else may change without a file changing
        seen.also(*_places(wanted, as_ or benchmark.name))
        seen.keep(list(made.paths.values()))
    if moved:
        raise typer.Exit(3)


def _places(spec: str, definition: str) -> list[Path]:
    """Where a spec or a definition of these names could come to lie, and would then be the one that is meant."""
    from ltbench.cli.specs import CHECKOUT

    named = [Path(spec), *(root / "benchmarks" / f"{spec}.yaml" for root in (Path(), CHECKOUT))]
    return named + [
        root / "reports" / f"{name}.yaml" for root in (Path(), CHECKOUT) for name in (definition, "summary")
    ]


def _say_files(name: str, paths: Mapping[str, Path], json: bool) -> None:
    if json:
        dump({"name": name, "files": {kind: str(path) for kind, path in paths.items()}})
        return
    for path in paths.values():
        out(str(path))


def _what(spec: str, of: str | None) -> str:
    """The spec that was meant. `report appendix` alone is the report of a spec of that name."""
    from ltbench.cli.appending import WORD

    if of is not None and spec != WORD:
        raise UsageError(
            f"report takes one spec, not {spec} and {of}", "`report appendix SPEC` has two words"
        )
    return spec if of is None else of


def build(
    found: Plan,
    store: Store,
    formats: str | None = None,
    definition: str | None = None,
    folder: Path | None = None,
    *,
    quiet: bool = False,
) -> Report:
    """Write the report, print its table (stdout; not if `quiet`) and its files (stderr)."""
    from ltbench.cli.inputs import gather
    from ltbench.report.build import FORMATS, fetch_from, write_report

    wanted = tuple(formats.replace(" ", "").split(",")) if formats else FORMATS
    made = write_report(
        gather(found, store),
        _definition(found.spec.name, definition),
        fetch_from(store),
        folder or BUILD / found.spec.name,
        wanted,
    )
    if not quiet:
        made.terminal(console())
        out()
    for name, path in made.paths.items():
        if not name.startswith("png:"):
            say(f"{name:5} {path}")
    pictures = [path for name, path in made.paths.items() if name.startswith("png:")]
    if pictures:
        say(f"png   {pictures[0].parent}/ ({len(pictures)} figures)")
    return made


def _definition(benchmark: str, name: str | None) -> Definition:
    """reports/NAME.yaml here or in the checkout: the asked-for one, else the benchmark's own, else `summary`."""
    from ltbench.cli.specs import CHECKOUT
    from ltbench.report.definition import load_definition

    folders = (Path("reports"), CHECKOUT / "reports")
    for wanted in (name,) if name else (benchmark, "summary"):
        for folder in folders:
            file = folder / f"{wanted}.yaml"
            if file.is_file():
                return load_definition(file)
    known = sorted({file.stem for folder in folders for file in folder.glob("*.yaml")})
    raise UsageError(f"--as {name}: there is no reports/{name}.yaml", f"there are {', '.join(known)}")
