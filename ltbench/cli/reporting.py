"""`report`: the table and the figures of a benchmark, from whatever the store holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
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
    from ltbench.report.memory import Memory
    from ltbench.report.pins import Moved, Pins
    from ltbench.store import Store

BUILD = Path("reports/build")
APPENDIX = "appendix"

Name = Annotated[
    str | None,
    typer.Argument(
        metavar="[appendix] NAME",
        help="A definition in reports/ (table1), or a spec: its path or a name in benchmarks/.",
        show_default=False,
    ),
]
Of = Annotated[str | None, typer.Argument(hidden=True)]
Every = Annotated[bool, typer.Option("--all", help="Every definition in reports/ that names its benchmarks.")]
Formats = Annotated[
    str | None,
    typer.Option(
        "--format",
        metavar="md,tex,csv,html,png,pdf,svg",
        help="Which files; pdf and svg are the figures. [all but these two]",
    ),
]
Definition = Annotated[
    str | None,
    typer.Option("--as", metavar="NAME", help="A definition in reports/. [the spec's own, else summary]"),
]
Paper = Annotated[
    bool, typer.Option("--paper", help="Also the differences from the published numbers, with verdicts.")
]
FailOn = Annotated[
    Literal["drift"] | None,
    typer.Option(
        "--fail-on", help="drift: exit 3 where ours is outside the tolerance of a published number."
    ),
]
Lock = Annotated[
    Path | None,
    typer.Option("--lock", metavar="FILE", help="Pin every printed number and the records behind it."),
]
Check = Annotated[
    Path | None,
    typer.Option("--check", metavar="FILE", help="List what moved since --lock; exit code 3 if anything."),
]
Folder = Annotated[
    Path | None, typer.Option("--out", metavar="DIR", help="Where the files go. [reports/build/NAME]")
]


def report(
    spec: Name = None,
    of: Of = None,
    all_: Every = False,
    format_: Formats = None,
    as_: Definition = None,
    paper: Paper = False,
    fail_on: FailOn = None,
    lock: Lock = None,
    check: Check = None,
    filter_: Filters = None,
    set_: Changes = None,
    with_: WithMethods = None,
    out_dir: Folder = None,
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
    from ltbench.cli import locking, stores
    from ltbench.report import memory

    locking.one_of(lock, check)
    if spec is None or all_:
        _one_of(spec, as_, all_)
    named = memory.name()
    place(store, scratch, plugins)
    change = Change(tuple(set_ or ()), tuple(with_ or ()), tuple(filter_ or ()))
    if spec == APPENDIX:
        _of_tables({"--paper": paper, "--fail-on": fail_on, "--lock": lock, "--check": check})
        if of is None:
            raise UsageError(
                f"{APPENDIX} of what?",
                "`report appendix SPEC` has two words, as in `report appendix quickstart`",
            )
        _appendix(of, as_, change, format_, out_dir, json)
        return
    if of is not None:
        raise UsageError(
            f"report takes one name, not {spec} and {of}", "`report appendix SPEC` has two words"
        )
    wanted = Wanted(spec, as_, format_, out_dir, paper, fail_on, lock, check, json, change)
    if wanted.plain and memory.recall(named):
        return
    with (
        memory.remembering(named) as seen,
        provenance.kept_in(memory.root()),
        stores.open_store(write=False).looking() as house,
    ):
        stores.say_if_missing(house)
        done = _all(wanted, house)
    if wanted.plain:
        _remember(seen, wanted, *done)
    _fail(wanted, done)


@dataclass(frozen=True)
class Change:
    """How the flags change a benchmark: --set, --with, --filter."""

    changes: tuple[str, ...] = ()
    methods: tuple[str, ...] = ()
    filters: tuple[str, ...] = ()


@dataclass(frozen=True)
class Wanted:
    """What the command asked for. spec: None for every definition. plain: one report that nothing else depends on."""

    spec: str | None
    as_: str | None
    formats: str | None
    folder: Path | None
    paper: bool
    fail_on: str | None
    lock: Path | None
    check: Path | None
    json: bool
    change: Change

    @property
    def all(self) -> bool:
        return self.spec is None

    @property
    def plain(self) -> bool:
        return self.lock is None and self.check is None and self.fail_on is None and not self.all


@dataclass(frozen=True)
class Done:
    """One report that was made. moved: what differs from the lock, None where nothing was compared."""

    asked: Asked
    plans: list[Plan]
    made: Report
    moved: Moved | None

    def json(self) -> dict[str, Any]:
        """As `--json` tells it."""
        files = {name: str(path) for name, path in self.made.paths.items()}
        told = {"name": self.asked.name or self.made.table.name, "files": files}
        return told if self.moved is None else {**told, "moved": self.moved.lines}


def _all(wanted: Wanted, house: Store) -> list[Done]:
    """Make every report that was asked for, and say what came of them."""
    from ltbench.cli import definitions, locking

    known = locking.pinned_by(wanted.check, wanted.lock)
    names = definitions.every() if wanted.spec is None else [wanted.spec]
    done = [_one(name, house, wanted, known) for name in names]
    if wanted.json:
        told = [each.json() for each in done]
        dump(told if wanted.all else told[0])
    if wanted.check is not None and wanted.all:
        locking.unchecked(wanted.check, known, [each.made for each in done])
    return done


def _one(name: str, house: Store, wanted: Wanted, known: Mapping[str, Pins]) -> Done:
    """Make one report, and hold it against what was pinned."""
    from ltbench.cli import definitions, locking

    asked = definitions.asked(name, wanted.as_)
    found = [plans_of(each, house, wanted.change) for each in asked.benchmarks]
    folder = wanted.folder / name if wanted.folder is not None and wanted.all else wanted.folder
    paper = wanted.paper or wanted.fail_on is not None
    made = build(found, house, wanted.formats, asked, folder, quiet=wanted.json, paper=paper)
    moved = locking.settle(
        made, wanted.as_, wanted.lock, wanted.check, known, of_all=wanted.all, quiet=wanted.json
    )
    return Done(asked, found, made, moved)


def _remember(seen: Memory, wanted: Wanted, done: Done) -> None:
    """Keep a report in which nothing can change without a file changing that was read: all its cells are done."""
    if all(set(each.counts()) <= {"done", "n/a"} for each in done.plans):
        for name in done.asked.benchmarks:
            seen.also(*_places(name, wanted.as_ or str(wanted.spec)))
        seen.keep(list(done.made.paths.values()))


def _fail(wanted: Wanted, done: Sequence[Done]) -> None:
    """Exit code 3 for what moved since it was pinned, or lies outside a tolerance if that was asked."""
    from ltbench.cli import definitions

    if any(each.moved for each in done):
        raise typer.Exit(3)
    if wanted.fail_on is not None:
        definitions.fail_on_drift([each.made.table for each in done])


def _one_of(spec: str | None, as_: str | None, all_: bool) -> None:
    """Raises UsageError unless the words say what is to be reported."""
    if not all_:
        raise UsageError("report what?", "`report NAME`, or `report --all` for every table of reports/")
    if spec is not None or as_ is not None:
        other = spec or f"--as {as_}"
        raise UsageError(f"--all is every definition, {other} is one", "give one of them")


def _of_tables(given: Mapping[str, object]) -> None:
    """Refuse what an appendix would not heed."""
    if unheeded := [name for name, value in given.items() if value]:
        raise UsageError(
            f"an appendix has no {unheeded[0]}: that is of tables", "leave it out, or leave out `appendix`"
        )


def _places(spec: str, definition: str) -> list[Path]:
    """Where a spec or a definition of these names could come to lie, and would then be the one that is meant."""
    from ltbench.cli.specs import CHECKOUT

    roots, names = (Path(), CHECKOUT), (Path(spec).stem, Path(definition).stem, "summary")
    specs = [Path(spec), *(root / "benchmarks" / f"{Path(spec).stem}.yaml" for root in roots)]
    return specs + [root / "reports" / f"{name}.yaml" for root in roots for name in names]


def _appendix(
    name: str, as_: str | None, change: Change, formats: str | None, folder: Path | None, json: bool
) -> None:
    """Write the appendix of every benchmark of a report."""
    from ltbench.cli import appending, definitions, stores, targets

    house, paths = stores.open_store(write=False), {}
    for each in definitions.asked(name, as_).benchmarks:
        spec = targets.load(each, change.changes, change.methods)
        cells = targets.cells_of(spec, change.filters)
        made = appending.write(spec, cells, house, folder or BUILD / spec.name, formats)
        paths |= {f"{spec.name}:{kind}": str(path) for kind, path in made.items()}
    if json:
        dump({"name": name, "files": paths})
        return
    for path in paths.values():
        out(path)


def plans_of(spec: str, store: Store, change: Change) -> Plan:
    """The plan of a benchmark as the flags change it."""
    from ltbench import plan as plans
    from ltbench.cli import targets

    benchmark = targets.load(spec, change.changes, change.methods)
    return plans.plan(benchmark, store, targets.cells_of(benchmark, change.filters))


def _in_passing(text: str) -> None:
    """To the person who waits, and not to the next one, who is told what is remembered."""
    from ltbench.report import memory

    with memory.aside():
        say(text)


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
        told=_in_passing,
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
