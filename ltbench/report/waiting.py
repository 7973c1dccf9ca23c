"""Figures that a definition asks for, that the benchmark's plan allows, and that no record lets draw yet.

What can never be drawn of a benchmark (a metric that it does not measure, a curve over guidance of a single value) is not waited
for. Illustrations have their own story (`pictured.py`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ltbench.report.axes import Planned
from ltbench.report.definition import Definition
from ltbench.report.figure_kinds import (
    ClassQuality,
    FigureDefinition,
    GroupBars,
    GuidanceCurve,
    LossCurves,
    MetricSteps,
    QualityCost,
    Samples,
)
from ltbench.report.identity import family_id
from ltbench.report.select import Selected
from ltbench.report.table import Section
from ltbench.report.words import clean

_NEVER = ("n/a", "not planned")  # gaps that no run will fill


def waiting(
    sections: Sequence[Section], definition: Definition, selected: Selected, planned: Sequence[Planned]
) -> Iterator[str]:
    """A sentence per section that has such figures: which, and what they wait for."""
    evaluations = {cell["cell"]: cell["evaluations"] for cell in planned}
    told: set[tuple[str, str, str]] = set()
    for section in sections:
        lists: dict[str, dict[str, None]] = {}
        for wanted in definition.figures:
            what = _waits_for(wanted, section, selected, evaluations)
            if isinstance(wanted, GuidanceCurve):  # one for all sections that differ in their guidance only
                family = section.part, family_id(section.evaluation), wanted.metric
                what = "" if family in told else what
                told |= {family} if what else set()
            if what:
                lists.setdefault(what, {})[_words(wanted)] = None
        if lists:
            parts = "; ".join(f"from {what} on: {', '.join(figures)}" for what, figures in lists.items())
            yield clean(f"{section.title}, step {section.shown:,}: drawn {parts}.")


def _waits_for(
    wanted: FigureDefinition,
    section: Section,
    selected: Selected,
    evaluations: Mapping[str, Sequence[Mapping[str, Any]]],
) -> str:
    """What a figure lacks to be drawn, if it is to come; else ""."""
    if isinstance(wanted, GuidanceCurve):
        lacking = _weights_lacking(section, evaluations, selected) if _has(section, wanted.metric) else ()
        return f"records of w = {', '.join(f'{w:g}' for w in lacking)}" if lacking else ""
    if not _waits(wanted, section, selected):
        return ""
    return "the first trained milestone" if isinstance(wanted, LossCurves) else "the first record"


def _waits(wanted: FigureDefinition, section: Section, selected: Selected) -> bool:
    """Whether a figure lacks every record that it could be drawn from, and one is to come."""
    if not any(gap.text not in _NEVER for gap in section.missing):
        return False
    cells = [cell for row in section.rows if row.external is None for _, cell in row.cells]
    match wanted:
        case LossCurves():
            return not any(cell in cells for cell, _ in selected.train)
        case Samples():
            return not any(selected.at(*key) for cell in cells for key in section.keys[cell])
        case MetricSteps():
            return _has(section, wanted.metric) and not _measured(section, wanted.metric, section.steps)
        case GroupBars() | ClassQuality() | QualityCost():
            return _has(section, wanted.metric) and not _measured(section, wanted.metric, [section.shown])
    return False


def _has(section: Section, metric: str) -> bool:
    """Columns stand for what is measured or planned to be."""
    return any(column.metric == metric for column in section.columns)


def _measured(section: Section, metric: str, steps: Sequence[int]) -> bool:
    return any(
        section.entry(i, j, step).mean is not None
        for j, column in enumerate(section.columns)
        if column.metric == metric
        for i, row in enumerate(section.rows)
        if row.external is None
        for step in steps
    )


def _weights_lacking(
    section: Section, evaluations: Mapping[str, Sequence[Mapping[str, Any]]], selected: Selected
) -> tuple[float, ...]:
    """Planned values of w without a record at the shown step, while fewer than two have one: until then there is no curve."""
    family = family_id(section.evaluation)
    cells = [cell for row in section.rows if row.external is None for _, cell in row.cells]
    # the cells of a part have the same evaluations
    planned = {w for each in evaluations.get(cells[0], ()) if (w := _weight(each, family)) is not None}
    held: set[float] = set()
    for cell in cells:
        if len(planned) < 2 or len(held) > 1:
            return ()
        for where in selected.points.get((cell, section.shown), ()):
            for record in selected.at(cell, section.shown, where)[:1]:
                if (w := _weight(record["body"]["evaluation"], family)) is not None:
                    held.add(w)
    return tuple(sorted(planned - held)) if len(held) < 2 else ()


def _weight(evaluation: Mapping[str, Any], family: str) -> float | None:
    """Its guidance, if it differs from the section in nothing else."""
    w = evaluation.get("guidance")
    return None if w is None or family_id(evaluation) != family else float(w)


def _words(wanted: FigureDefinition) -> str:
    match wanted:
        case Samples():
            return "samples beside real images"
        case MetricSteps():
            return f"{wanted.metric} against training steps"
        case GroupBars():
            return f"{wanted.metric} of head, body and tail"
        case ClassQuality():
            return f"{wanted.metric} against class frequency"
        case QualityCost():
            return f"{wanted.metric} against the cost of training"
        case GuidanceCurve():
            return f"{wanted.metric} against guidance"
        case LossCurves():
            return "curves of the loss"
    return wanted.kind
