"""A report of the checks as text."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ltbench.conformance import Cost, Report, Row


UNSUPPORTED = "not supported"


def report_text(report: Report, width: int) -> str:
    """One line per check with its outcome on each pipeline and why, then the costs, then the sum."""
    by_check: dict[str, dict[str, Row]] = {}
    for row in report.rows:
        by_check.setdefault(row.check, {})[row.pipeline] = row
    pipelines = sorted({row.pipeline for row in report.rows} - {""}, reverse=True)
    lines = [f"{report.name}  ({report.file})", ""]
    lines += _table(["check", "outcome", "why"], _file_rows(by_check), width)
    if pipelines:
        rows = [_row(name, found, pipelines) for name, found in by_check.items() if "" not in found]
        lines += ["", *_table(["check", *pipelines, "why"], rows, width)]
    if report.costs:
        lines += ["", *map(cost_line, report.costs)]
    outcomes = [row.outcome for row in report.rows]
    counts = ", ".join(f"{outcomes.count(o)} {o}" for o in ("passed", "failed", "n.a.") if o in outcomes)
    return "\n".join([*lines, "", f"{counts} in {report.seconds:.0f} s"])


def cost_line(cost: Cost) -> str:
    """`cost on sit: 1.9 network rows per image, no own parameters, 1.72 times the baseline's time (1.70 to 1.75)`."""
    own = f"{cost.parameters:,} own parameters" if cost.parameters else "no own parameters"
    line = f"cost on {cost.pipeline}: {cost.rows:g} network rows per image (baseline 1), {own}"
    if cost.time_ratio is None or cost.spread is None:
        return line
    return f"{line}, {cost.time_ratio:.2f} x baseline time ({cost.spread[0]:.2f} to {cost.spread[1]:.2f})"


def _file_rows(by_check: dict[str, dict[str, Row]]) -> Iterator[list[str]]:
    for name, found in by_check.items():
        if "" in found:
            yield [name, _loud(found[""].outcome), found[""].why]


def _row(name: str, found: dict[str, Row], pipelines: Sequence[str]) -> list[str]:
    """A reason that holds on every pipeline is said once; else each with its pipeline's name."""
    # Why a pipeline is not supported is said where supports() was asked, and not again on every line.
    why = {p: found[p].why for p in pipelines if p in found and found[p].why not in ("", UNSUPPORTED)}
    same = len(set(why.values())) == 1 and len(why) == len(pipelines)
    words = next(iter(why.values())) if same else "; ".join(f"{p}: {text}" for p, text in why.items())
    return [name, *(_loud(found[p].outcome) if p in found else "" for p in pipelines), words]


def _loud(outcome: str) -> str:
    return "FAILED" if outcome == "failed" else outcome


def _table(head: Sequence[str], rows: Iterator[list[str]] | list[list[str]], width: int) -> list[str]:
    """Columns as wide as their content; the last one takes what is left and wraps."""
    body = [list(head), *rows]
    sizes = [max(len(row[i]) for row in body) for i in range(len(head) - 1)]
    left = sum(sizes) + 2 * len(sizes)
    lines = []
    for row in body:
        start = "".join(f"{cell:<{size}}  " for cell, size in zip(row[:-1], sizes, strict=True))
        wrapped = textwrap.wrap(row[-1], max(24, width - left)) or [""]
        lines += [(start + wrapped[0]).rstrip(), *(" " * left + more for more in wrapped[1:])]
    return lines
