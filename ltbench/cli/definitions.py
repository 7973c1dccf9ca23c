"""From the name of a report to its definition, its benchmarks and the published numbers that it sets beside ours."""

from __future__ import annotations

import dataclasses
import difflib
import re
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ltbench.cli.output import say
from ltbench.cli.specs import CHECKOUT
from ltbench.errors import DriftError, UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ltbench.report.definition import Definition
    from ltbench.report.table import Inputs, Table

GENERAL = "summary"  # of any benchmark


@dataclass(frozen=True)
class Asked:
    """What is to be printed. name: of the files; "" means the benchmark's. benchmarks: specs, as a person would type them."""

    name: str
    benchmarks: tuple[str, ...]
    definition: Definition


def asked(name: str, as_: str | None = None) -> Asked:
    """What `report NAME [--as DEFINITION]` means.

    A definition that names its benchmarks is meant by its own name; every other NAME is a spec, shown by `as_`, else by a
    definition of the spec's name, else by `summary`. Raises UsageError with the nearest name.
    """
    file = _file(name) if as_ is None else None
    if file is not None:
        definition = _load(file)
        if definition.benchmarks:
            _known_benchmarks(file, definition.benchmarks)
            return Asked(definition.name, definition.benchmarks, definition)
        if not _is_spec(name):
            raise UsageError(
                f"reports/{file.name} is of any benchmark and names none", f"report SPEC --as {name}"
            )
    if file is None and as_ is None and not _is_spec(name):
        near = difflib.get_close_matches(name, [*_names(), *_specs()], 1)
        hint = (
            f"did you mean '{near[0]}'?"
            if near
            else f"definitions: {', '.join(_names())}; specs: {', '.join(_specs())}"
        )
        raise UsageError(f"'{name}' is neither a definition in reports/ nor a spec in benchmarks/", hint)
    found = of_benchmark(name, as_)
    return Asked("", (name,), found.definition)


def _known_benchmarks(file: Path, names: Sequence[str]) -> None:
    """Raises UsageError for a benchmark of a definition that is no spec, or that stands there twice."""
    for place, name in enumerate(names):
        if not _is_spec(name):
            near = difflib.get_close_matches(name, _specs(), 1)
            hint = f"did you mean '{near[0]}'?" if near else f"specs: {', '.join(_specs())}"
            raise UsageError(f"reports/{file.name}: its benchmark '{name}' is no spec in benchmarks/", hint)
        if name in names[:place]:
            raise UsageError(f"reports/{file.name}: names the benchmark '{name}' twice", "name it once")


def of_benchmark(benchmark: str, as_: str | None = None) -> Asked:
    """The definition that shows a benchmark: `as_`, else the one of the benchmark's name, else `summary`."""
    for wanted in (as_,) if as_ else (Path(benchmark).stem, GENERAL):
        if (file := _file(wanted)) is not None:
            return Asked("", (benchmark,), _load(file))
    near = difflib.get_close_matches(str(as_), _names(), 1)
    hint = f"did you mean '{near[0]}'?" if near else f"there are {', '.join(_names())}"
    raise UsageError(f"--as {as_}: there is no reports/{as_}.yaml", hint)


def every() -> list[str]:
    """The definitions that name their benchmarks, table2 before table10."""
    named = [name for name in _names() if (file := _file(name)) is not None and _load(file).benchmarks]
    return sorted(
        named, key=lambda name: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", name)]
    )


def with_published(inputs: Inputs, definition: Definition) -> Inputs:
    """The inputs with the published numbers that a sheet names, from results/published here or in the checkout."""
    if definition.sheet is None or definition.sheet.published is None:
        return inputs
    from ltbench.report.published import find_publication

    folders = [Path("results/published"), CHECKOUT / "results" / "published"]
    found = find_publication(definition.sheet.published, folders)
    _say_uncited(definition, found.bib, folders)
    return dataclasses.replace(inputs, published=found)


def _say_uncited(definition: Definition, source: str, folders: Sequence[Path]) -> None:
    """Keys that LaTeX would print as [?]: no references.bib has an entry of them."""
    from ltbench.report.citations import entries

    rows = () if definition.sheet is None else definition.sheet.rows
    asked = {key for text in (source, *(row.cite for row in rows)) if text for key in text.split(",")}
    files = [folder / "references.bib" for folder in folders]
    known = {each.key for file in files if file.is_file() for each in entries(file.read_text("utf-8"))}
    if missing := sorted(asked - known):
        say(f"note: \\cite of {', '.join(missing)}: no entry in results/published/references.bib")


def fail_on_drift(tables: Sequence[Table]) -> None:
    """Raises DriftError (exit 3) that names every cell outside its tolerance; else says how many were compared."""
    from ltbench.report.sheet_words import compared_text

    sheets = {table.name: table.sheet for table in tables if table.sheet is not None}
    if not sheets:
        raise UsageError(
            "--fail-on drift: this report has no published numbers",
            "take a definition with `sheet`, like table1",
        )
    lead = {name: f"{name}: " if len(sheets) > 1 else "" for name in sheets}
    drifted = [f"  {lead[name]}{line}" for name, sheet in sheets.items() for line in sheet.drifted()]
    if drifted:
        raise DriftError("\n".join([f"{len(drifted)} cells drifted", *drifted]))
    for name, sheet in sheets.items():
        say(lead[name] + compared_text(sheet))


def _load(file: Path) -> Definition:
    from ltbench.report.definition import load_definition

    return load_definition(file)


def _folders() -> tuple[Path, Path]:
    return Path("reports"), CHECKOUT / "reports"


def _file(name: str) -> Path | None:
    path = Path(name)
    if path.suffix == ".yaml" and path.parent.name == "reports" and path.is_file():
        return path
    if len(path.parts) > 1:
        return None
    files = (folder / f"{name.removesuffix('.yaml')}.yaml" for folder in _folders())
    return next((file for file in files if file.is_file()), None)


def _names() -> list[str]:
    return sorted({file.stem for folder in _folders() for file in folder.glob("*.yaml")})


def _specs() -> list[str]:
    from ltbench.cli.specs import folders

    return sorted({file.stem for folder in folders() for file in folder.glob("*.yaml")})


def _is_spec(name: str) -> bool:
    return Path(name).is_file() or name.removesuffix(".yaml") in _specs() or len(Path(name).parts) > 1
