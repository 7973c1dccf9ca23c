"""Quality against the hours of training, and which of the points no other beats in both."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ltbench.report.figure_data import axis_label
from ltbench.report.select import Selected
from ltbench.report.table import Section
from ltbench.report.words import clean


@dataclass(frozen=True)
class CostLine:
    """One method over its milestones: hours (in the plot's unit), the mean of the metric, its spread over seeds (0 for one), steps."""

    label: str
    hours: tuple[float, ...]
    mean: tuple[float, ...]
    sd: tuple[float, ...]
    steps: tuple[int, ...]


@dataclass(frozen=True)
class CostPlot:
    """front: (line, point) of the Pareto front, cheapest first. unit: of the hours, in words. devices: what trained. unknown: labels of rows
    whose records do not tell what they cost."""

    lines: tuple[CostLine, ...]
    front: tuple[tuple[int, int], ...]
    unit: str
    devices: tuple[str, ...]
    unknown: tuple[str, ...]
    floor: float | None
    better: str
    y_label: str


def cost_plot(section: Section, selected: Selected, metric: str, group: str) -> CostPlot | None:
    """None when no row has both a value and a cost."""
    places = [j for j, c in enumerate(section.columns) if (c.metric, c.group) == (metric, group)]
    if not places:
        return None
    j = places[0]
    column = section.columns[j]
    spent = {
        cell: {step: _spent(selected, cell, step) for step in section.steps}
        for row in section.rows
        if row.external is None
        for _, cell in row.cells
    }
    known = [each for of_cell in spent.values() for each in of_cell.values() if each]
    gpu = any(each["gpu"] for each in known)
    lines, unknown = [], []
    for i, row in enumerate(section.rows):
        if row.external is not None:
            continue
        line = _line(section, i, j, [spent[cell] for _, cell in row.cells], gpu)
        if line is not None:
            lines.append(line)
        elif any(section.entry(i, j, step).mean is not None for step in section.steps):
            unknown.append(clean(row.label))
    if not lines:
        return None
    every = [(a, b) for a, line in enumerate(lines) for b in range(len(line.hours))]
    unit, per_hour = _unit([hour for line in lines for hour in line.hours], gpu)
    lines = [replace(line, hours=tuple(hour * per_hour for hour in line.hours)) for line in lines]
    front = pareto([(lines[a].hours[b], lines[a].mean[b]) for a, b in every], column.better)
    floor = section.floors.get((j, section.shown))
    return CostPlot(
        tuple(lines),
        tuple(every[n] for n in front),
        unit,
        tuple(sorted({device for each in known for device in each["devices"]})),
        tuple(unknown),
        None if floor is None else floor * column.scale,
        column.better,
        axis_label(column),
    )


def _unit(hours: Sequence[float], gpu: bool) -> tuple[str, float]:
    """The unit in which the longest is at least 1, and how many make an hour."""
    name, per_hour = next(
        ((n, per) for n, per in (("hours", 1), ("minutes", 60)) if max(hours) * per >= 1), ("seconds", 3600)
    )
    return (f"GPU-{name} of training" if gpu else f"{name} of training (CPU, wall clock)"), float(per_hour)


def _spent(selected: Selected, cell: str, step: int) -> dict[str, Any] | None:
    """Hours up to a milestone: of each attempt that left a record, what its last one tells. None where no record tells."""
    seconds: dict[int, float] = {}
    hours: dict[int, float] = {}
    devices = set()
    for (owner, at), record in selected.train.items():
        told = record.get("envelope") or {}
        if owner != cell or at > step or not isinstance(told.get("seconds"), int | float):
            continue
        attempt = int(told.get("attempt") or 1)
        seconds[attempt] = max(seconds.get(attempt, 0.0), float(told["seconds"]))
        hours[attempt] = max(hours.get(attempt, 0.0), float(told.get("gpu_hours") or 0))
        devices.add(clean(str(told.get("device") or "unknown device")))
    if not seconds or (cell, step) not in selected.train:
        return None
    return {"wall": sum(seconds.values()) / 3600, "gpu": sum(hours.values()), "devices": devices}


def _line(
    section: Section, i: int, j: int, cells: Sequence[Mapping[int, dict[str, Any] | None]], gpu: bool
) -> CostLine | None:
    """Means over seeds. A seed on a CPU has no place among GPU-hours."""
    points = []
    for step in section.steps:
        entry = section.entry(i, j, step)
        costs = [each["gpu" if gpu else "wall"] for of in cells if (each := of.get(step))]
        costs = [cost for cost in costs if cost > 0]
        if entry.mean is not None and costs:
            scale = section.columns[j].scale
            mean = math.fsum(costs) / len(costs)
            points.append((mean, entry.mean * scale, (entry.sd or 0.0) * scale, int(step)))
    if not points:
        return None
    hours, means, sds, steps = zip(*points, strict=True)
    return CostLine(clean(section.rows[i].label), hours, means, sds, steps)


def pareto(points: Sequence[tuple[float, float]], better: str) -> list[int]:
    """Which of the (cost, value) points no other matches or beats in both while beating it in one, cheapest first.

    better: lower, higher or zero, of the value; cost is better lower. Equal points are all kept.
    """
    signed = [(cost, {"lower": v, "higher": -v, "zero": abs(v)}.get(better, v)) for cost, v in points]
    order = sorted(range(len(points)), key=lambda n: (*signed[n], n))
    front: list[int] = []
    best = math.inf
    for n in order:
        if signed[n][1] < best or (front and signed[n] == signed[front[-1]]):
            front.append(n)
            best = signed[n][1]
    return front
