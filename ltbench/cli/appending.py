"""`report appendix SPEC`: what a paper's appendix says of a benchmark, as Markdown, LaTeX and BibTeX."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ltbench.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ltbench.spec.cells import Cell
    from ltbench.spec.resolved import Spec
    from ltbench.store import Store

FORMATS = ("md", "tex", "bib")


def write(
    spec: Spec, cells: Sequence[Cell], store: Store, folder: Path, formats: str | None = None
) -> dict[str, Path]:
    """Write `folder`/NAME-appendix.{md,tex,bib}, or those of `formats`; their paths. Raises UsageError for an unknown format."""
    from ltbench import files
    from ltbench.cli.inputs import records_of
    from ltbench.cli.specs import CHECKOUT
    from ltbench.report import appendix, render_appendix

    wanted = tuple(formats.replace(" ", "").split(",")) if formats else FORMATS
    if unknown := [name for name in wanted if name not in FORMATS]:
        raise UsageError(f"an appendix has no format {unknown[0]!r}; there are {', '.join(FORMATS)}")
    known = [root / appendix.REFERENCES for root in (Path(), CHECKOUT)]
    references = next((path.read_text(encoding="utf-8") for path in known if path.is_file()), "")
    ids = dict.fromkeys(cell.id for cell in cells)
    made = appendix.appendix(spec, cells, [r for cell in ids for r in records_of(store, cell)], references)
    name = f"{spec.name}-appendix"
    texts = {
        "md": render_appendix.render_markdown(made),
        "tex": render_appendix.render_latex(made, name),
        "bib": render_appendix.render_bib(made),
    }
    files.make_directory(folder)
    paths = {kind: folder / f"{name}.{kind}" for kind in wanted}
    for kind, path in paths.items():
        files.replace(path, texts[kind].encode())
    return paths
