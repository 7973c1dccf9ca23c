"""The cost section in the forms of a report: what the page's template takes, Markdown, LaTeX, lines of the CSV."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator
from typing import Any

from ltbench.report import cost_words, words
from ltbench.report.cost_table import KEYS, CostBlock, CostRow, Costs
from ltbench.report.latex_text import escape as tex
from ltbench.report.latex_text import with_notes

BARS = (
    "steps_per_s",
    "time_ratio",
    "operations_ratio",
)  # have a bar, as long as the value is of the largest in its block
LISTED = 500  # records below a block, at most


def page(costs: Costs) -> dict[str, Any]:
    """For `cost.html`."""
    return {
        "heading": cost_words.HEADING,
        "legend": cost_words.LEGEND,
        "blocks": [_page_block(block) for block in costs.blocks],
        "missing": cost_words.missing_lines(costs),
    }


def _page_block(block: CostBlock) -> dict[str, Any]:
    heads = cost_words.heads(block)
    most = {
        key: max((row.values[key].value or 0.0 for row in block.rows), default=0.0)
        for key in ("steps_per_s", "time_ratio")
    }
    # the two ratios are compared with each other, so their bars have one scale
    ratios = max(max((r.values[k].value or 0.0 for r in block.rows), default=0.0) for k in BARS[1:])
    most |= dict.fromkeys(BARS[1:], ratios)

    def cell(key: str, row: CostRow) -> dict[str, Any]:
        known = row.values[key]
        share = 0.0 if key not in BARS or not most[key] else (known.value or 0.0) / most[key]
        return {
            "value": cost_words.text(key, known),
            "gap": cost_words.gap(known),
            "tip": cost_words.tip(key, known),
            "bar": f"{100 * share:.1f}" if share else "",
        }

    behind = [each for row in block.rows for each in cost_words.sources(row)]
    return {
        "title": cost_words.title(block),
        "where": cost_words.where(block),
        "heads": [head for _, head in heads],
        "rows": [
            {"label": cost_words.label(row), "cells": [cell(key, row) for key, _ in heads]}
            for row in block.rows
        ],
        "remarks": cost_words.remarks(block),
        "gaps": cost_words.gaps(block),
        "sources": [
            {
                "name": source.name[:16] if source.seed is not None else source.name,
                "what": source.what,
                "whose": whose,
            }
            for source, whose in behind[:LISTED]
        ],
        "more": max(0, len(behind) - LISTED),
    }


def _below(block: CostBlock) -> list[str]:
    return [*cost_words.remarks(block), *cost_words.gaps(block)]


def latex(costs: Costs, name: str) -> str:
    """A `tabular` per block, to be \\input where a paper wants it."""
    lines = [f"% {tex(name)}: cost", r"% needs \usepackage{booktabs}"]
    lines += [f"% {tex(line)}" for line in (*cost_words.LEGEND, *cost_words.missing_lines(costs))]
    for block in costs.blocks:
        heads = cost_words.heads(block)
        table = [rf"\begin{{tabular}}{{l{'r' * len(heads)}}}", r"\toprule"]
        said = tex(f"{cost_words.title(block)}; {cost_words.where(block)}")
        table += [rf"\multicolumn{{{1 + len(heads)}}}{{l}}{{{said}}} \\", r"\midrule"]
        table += [" & ".join(["method", *(_stacked(head) for _, head in heads)]) + r" \\", r"\midrule"]
        table += [_tex_line([cost_words.label(row), *_texts(row, heads)]) for row in block.rows]
        table += [r"\bottomrule", r"\end{tabular}"]
        lines += ["", *with_notes(table, [tex(text) for text in _below(block)])]
    return "\n".join(lines) + "\n"


def _stacked(head: str) -> str:
    """A heading in short lines: ten columns of numbers are narrower than what stands over them."""
    lines = r"\\".join(map(tex, textwrap.wrap(head, 10)))
    return rf"\shortstack[r]{{{lines}}}"


def _tex_line(cells: list[str]) -> str:
    return " & ".join(map(tex, cells)) + r" \\"


def _texts(row: CostRow, heads: list[tuple[str, str]]) -> list[str]:
    return [cost_words.text(key, row.values[key]) or cost_words.gap(row.values[key]) for key, _ in heads]


def markdown(costs: Costs) -> list[str]:
    """Lines of a section, headings included."""
    from ltbench.report.render_markdown import escape, escape_block

    lines = [f"## {cost_words.HEADING}", ""]
    for block in costs.blocks:
        heads = cost_words.heads(block)
        lines += [f"**{escape(cost_words.title(block))}**; {escape(cost_words.where(block))}", ""]
        cells = [["method", *(head for _, head in heads)], [":---", *["---:"] * len(heads)]]
        cells[0] = [escape(head) for head in cells[0]]
        for row in block.rows:
            cells.append([escape(text) for text in (cost_words.label(row), *_texts(row, heads))])
        lines += [f"| {' | '.join(line)} |" for line in cells]
        lines += ["", *(f"- {escape_block(text)}" for text in _below(block)), ""]
    missing = cost_words.missing_lines(costs)
    lines += [f"**Not timed: {words.plural(len(missing), 'row')}**", ""] if missing else []
    lines += [f"- {escape_block(line)}" for line in missing] + ([""] if missing else [])
    return [*lines, *(f"{escape(line)}  " for line in cost_words.LEGEND), ""]


def csv_lines(costs: Costs) -> Iterator[dict[str, Any]]:
    """One line per number or gap, unrounded; `record` has every record's digest and calibration's name behind it."""
    for block in costs.blocks:
        base = {"kind": "cost", "setting": cost_words.title(block), "where": cost_words.where(block)}
        for row in block.rows:
            for key in KEYS:
                known = row.values[key]
                yield {
                    **base,
                    "label": row.label,
                    "method": row.method,
                    "metric": key,
                    "value": known.value,
                    "n": len(known.sources) or None,
                    "record": "; ".join(source.name for source in known.sources),
                    "missing": known.why,
                    "baseline": row.baseline if key.endswith("_ratio") else None,
                }
    for label, why in costs.missing:
        yield {"kind": "cost", "label": label, "missing": why}
