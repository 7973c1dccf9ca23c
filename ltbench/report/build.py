"""A report: the table of a benchmark in every asked-for form, written under one folder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from ltbench.errors import LtbenchError, UsageError
from ltbench.files import make_directory, replace
from ltbench.report.assemble import build_table
from ltbench.report.definition import Definition
from ltbench.report.figure_data import Fetch
from ltbench.report.select import Record, select
from ltbench.report.table import Inputs, Table

if TYPE_CHECKING:
    from rich.console import Console

    from ltbench.report.render_html import Picture
    from ltbench.store import Store

FORMATS = ("md", "tex", "csv", "html", "png", "pdf", "svg")
USUAL = ("md", "tex", "csv", "html", "png")  # what a report is made of unless told otherwise
PICTURES = ("png", "pdf", "svg")
TEXTS = ("md", "tex", "csv")


@dataclass(frozen=True)
class Report:
    """The table object, what it was made from, and the files that were written, by format (pictures as "png:NAME", "pdf:NAME")."""

    table: Table
    inputs: Inputs
    definition: Definition
    paths: dict[str, Path] = field(default_factory=dict)

    def terminal(self, console: Console) -> None:
        """Print the table."""
        from ltbench.report.render_terminal import render_terminal

        render_terminal(self.table, console)


def fetch_from(store: Store) -> Fetch:
    """Pictures of records from the store that holds them; a missing or damaged one leaves a gap in a figure, not an error."""

    def fetch(record: Record, name: str) -> bytes | None:
        try:
            return store.run(record["body"]["cell"], record["body"]["run"]).facts.read(name)
        except (LtbenchError, ValueError):
            return None

    return fetch


def write_report(
    inputs: Inputs,
    definition: Definition,
    fetch: Fetch,
    out: Path,
    formats: Sequence[str] = USUAL,
    *,
    verdicts: bool = False,
    told: Callable[[str], None] | None = None,
) -> Report:
    """Assemble, render and write `out`/NAME.{md,tex,csv,html}, `out`/NAME-cost.tex where costs are known, and `out`/figures/*.{png,pdf,svg}, each replaced atomically.

    `fetch` gives the pictures that records name (`fetch_from(store)`). Equal records give equal bytes, in whatever order they are listed.
    `verdicts`: lines with the difference from published numbers. `told` hears how far the drawing is, if that takes long.
    Raises UsageError for an unknown format.
    """
    if unknown := [name for name in formats if name not in FORMATS]:
        raise UsageError(f"no report format is called {unknown[0]!r}; there are {', '.join(FORMATS)}")
    selected = select([*inputs.records, *inputs.externals])
    table = build_table(inputs, definition, verdicts=verdicts, selected=selected)
    make_directory(out)  # before the drawing: one that cannot be made is said at once
    pictures: list[Picture] = []
    if {*PICTURES, "html"} & set(formats):
        from ltbench.report.pictures import draw_all

        pictures = draw_all(table, definition, selected, fetch, formats, told)
    paths: dict[str, Path] = {}
    for name in formats:
        if name in TEXTS:
            paths[name] = _write(out / f"{inputs.name}.{name}", _text(name, table).encode())
    if "tex" in formats and table.costs is not None:
        from ltbench.report import render_cost

        text = render_cost.latex(table.costs, inputs.name)
        paths["cost.tex"] = _write(out / f"{inputs.name}-cost.tex", text.encode())
    if "html" in formats:
        from ltbench.report.render_html import render_html

        held = [
            *(r for found in selected.chosen.values() for r in found),
            *selected.train.values(),
        ]
        page = render_html(table, pictures, held)
        paths["html"] = _write(out / f"{inputs.name}.html", page.encode())
    for name in (name for name in PICTURES if name in formats):
        make_directory(out / "figures")
        for picture in pictures:
            data = picture.png if name == "png" else picture.vectors[name]
            paths[f"{name}:{picture.name}"] = _write(out / "figures" / f"{picture.name}.{name}", data)
    return Report(table, inputs, definition, paths)


def _text(kind: str, table: Table) -> str:
    """The table as one of TEXTS; the others' code is not imported."""
    if kind == "md":
        from ltbench.report.render_markdown import render_markdown as render
    elif kind == "tex":
        from ltbench.report.render_latex import render_latex as render
    else:
        from ltbench.report.render_csv import render_csv as render
    return render(table)


def _write(path: Path, data: bytes) -> Path:
    replace(path, data)
    return path
