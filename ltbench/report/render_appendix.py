"""An appendix as Markdown and as LaTeX for \\input; both say the same."""

from __future__ import annotations

from ltbench.report.appendix import Appendix, Block, Grid
from ltbench.report.latex_text import escape as tex
from ltbench.report.render_markdown import escape as md
from ltbench.report.render_markdown import escape_block


def render_markdown(made: Appendix) -> str:
    """Headings, sentences and tables; citations by their BibTeX keys."""
    lines = [f"# {md(made.title)}: appendix", ""]
    for block in made.blocks:
        lines += [f"## {md(block.title)}", ""]
        for text in block.texts:
            lines += [escape_block(text), ""]
        for grid in block.grids:
            lines += [_line(grid.head), _line(["---"] * len(grid.head), plain=True)]
            lines += [*map(_line, grid.rows), ""]
    lines += ["## Citations", ""]
    lines += [
        f"- {md(name)}: {', '.join(f'`{key}`' for key in keys) or 'none is known'}"
        for name, keys in made.cited.items()
    ]
    return "\n".join(lines) + "\n"


def _line(cells, plain: bool = False) -> str:
    return f"| {' | '.join(cell if plain else md(cell) for cell in cells)} |"


def render_latex(made: Appendix, bib: str) -> str:
    """Subsections without numbers, a tabular per table; `bib`: the name of the .bib file beside it."""
    lines = [
        f"% {tex(made.title)}: appendix",
        r"% needs \usepackage{booktabs} and \bibliography{" + bib + "}",
    ]
    for block in made.blocks:
        lines += ["", *_block(block)]
    lines += ["", r"\subsection*{Citations}"]
    cited = [
        f"{tex(name)} " + rf"\cite{{{','.join(keys)}}}" if keys else f"{tex(name)} (no citation is known)"
        for name, keys in made.cited.items()
    ]
    return "\n".join([*lines, "; ".join(cited) + "."]) + "\n"


def _block(block: Block) -> list[str]:
    lines = [rf"\subsection*{{{tex(block.title)}}}"]
    lines += [line for text in block.texts for line in (tex(text), "")]
    for grid in block.grids:
        lines += [*_tabular(grid), ""]
    return lines


def _tabular(grid: Grid) -> list[str]:
    """The last column takes what is left of the line where there are two of them, and breaks."""
    columns = r"lp{0.6\linewidth}" if len(grid.head) == 2 else "l" * len(grid.head)
    rows = [" & ".join(map(tex, row)) + r" \\" for row in grid.rows]
    head = " & ".join(map(tex, grid.head)) + r" \\"
    return [
        r"\smallskip{\footnotesize\noindent",
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        head,
        r"\midrule",
        *rows,
        r"\bottomrule",
        r"\end{tabular}\par}\medskip",
    ]


def render_bib(made: Appendix) -> str:
    """Every entry once, sorted by key."""
    return "\n\n".join(each.entry for each in made.bib) + "\n"
