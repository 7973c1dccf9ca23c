"""`report`: the table and the figures of a benchmark, from whatever the store holds."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

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
    from ltbench.cli.definitions import Asked
    from ltbench.plan import Plan
    from ltbench.report.build import Report
    from ltbench.store import Store

BUILD = Path("reports/build")
APPENDIX = "appendix"


def report(
    spec: Annotated[
        str | None,
        typer.Argument(
            metavar="[appendix] NAME",
            help="A definition in reports/ (table1), or a spec: its path or a name in benchmarks/.",
            show_default=False,
        ),
    ] = None,
    of: Annotated[str | None, typer.Argument(hidden=True)] = None,
    all_: Annotated[
        bool, typer.Option("--all", help="Every definition in reports/ that names its benchmarks.")
    ] = False,
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
    """Print a table and write it as Markdown, LaTeX, CSV, HTML and figures.

    NAME is a definition in reports/, which names its benchmarks, or a benchmark. Reads the store only: it works at any moment, on any
    machine that has a copy, and says what is missing. Published numbers are there before anything has run.

    \b
    Example:
      python harness.py report table1 --paper
      python harness.py report quickstart --format md,tex --out paper/tables
      python harness.py report appendix quickstart
      python harness.py report quickstart --lock paper.lock
      python harness.py report quickstart --check paper.lock
      python harness.py report --all --lock paper.lock
    """
    from ltbench import provenance
    from ltbench.cli import definitions, locking, stores
    from ltbench.report import memory

    locking.one_of(lock, check)
    if spec is None or all_:
        _one_of(spec, as_, all_)
    named = memory.name()
    place(store, scratch, plugins)
    if spec is not None and spec == APPENDIX and of is not None:
        _appendix(of, as_, set_ or [], with_ or [], filter_ or [], format_, out_dir, json)
        return
    if of is not None:
        raise UsageError(
            f"report takes one name, not {spec} and {of}", "`report appendix SPEC` has two words"
        )
    plain = lock is None and check is None and fail_on is None and not all_
    if plain and memory.recall(named):
        return
    known = locking.pinned_by(check, lock)
    told: list[dict[str, Any]] = []
    done: list[tuple[Asked, list[Plan], Report]] = []
    drift = False
    house = stores.open_store(write=False)
    with memory.remembering(named) as seen, house.looking(), provenance.kept_in(memory.root()):
        for each in definitions.every() if spec is None else [spec]:
            asked = definitions.asked(each, as_)
            found = [
                plans_of(name, house, set_ or [], with_ or [], filter_ or []) for name in asked.benchmarks
            ]
            folder = out_dir / each if out_dir is not None and all_ else out_dir
            made = build(found, house, format_, asked, folder, quiet=json, paper=paper or fail_on is not None)
            moved = locking.settle(made, as_, lock, check, known, of_all=all_, quiet=json)
            done.append((asked, found, made))
            drift = drift or bool(moved)
            files = {name: str(path) for name, path in made.paths.items()}
            told.append({"name": asked.name or made.table.name, "files": files,
                         **({} if moved is None else {"moved": moved.lines})})  # fmt: skip
        if json:
            dump(told if all_ else told[0])
        if check is not None and all_:
            locking.unchecked(check, known, [made for _, _, made in done])
    if plain:
        ((asked, found, made),) = done
        if all(set(each.counts()) <= {"done", "n/a"} for each in found):
            # Whatever is not done may change without a file changing that was read.
            for name in asked.benchmarks:
                seen.also(*_places(name, as_ or str(spec)))
            seen.keep(list(made.paths.values()))
    if drift:
        raise typer.Exit(3)
    if fail_on is not None:
        definitions.fail_on_drift([made.table for _, _, made in done])


def _one_of(spec: str | None, as_: str | None, all_: bool) -> None:
    """Raises UsageError unless the words say what is to be reported."""
    if not all_:
        raise UsageError("report what?", "`report NAME`, or `report --all` for every table of reports/")
    if spec is not None or as_ is not None:
        other = spec or f"--as {as_}"
        raise UsageError(f"--all is every definition, {other} is one", "give one of them")


def _places(spec: str, definition: str) -> list[Path]:
    """Where a spec or a definition of these names could come to lie, and would then be the one that is meant."""
    from ltbench.cli.specs import CHECKOUT

    roots, names = (Path(), CHECKOUT), (Path(spec).stem, Path(definition).stem, "summary")
    specs = [Path(spec), *(root / "benchmarks" / f"{Path(spec).stem}.yaml" for root in roots)]
    return specs + [root / "reports" / f"{name}.yaml" for root in roots for name in names]


def _appendix(
    name: str,
    as_: str | None,
    changes: Sequence[str],
    methods: Sequence[str],
    filters: Sequence[str],
    formats: str | None,
    folder: Path | None,
    json: bool,
) -> None:
    """Write the appendix of every benchmark of a report."""
    from ltbench.cli import appending, definitions, stores, targets

    house, paths = stores.open_store(write=False), {}
    for each in definitions.asked(name, as_).benchmarks:
        spec = targets.load(each, changes, methods)
        made = appending.write(
            spec, targets.cells_of(spec, filters), house, folder or BUILD / spec.name, formats
        )
        paths |= {f"{spec.name}:{kind}": str(path) for kind, path in made.items()}
    if json:
        dump({"name": name, "files": paths})
        return
    for path in paths.values():
        out(path)


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
    return made
