"""What figures draw, as plain values: taken from the table object, and from records for what a table does not hold."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ltbench.report.guidance import selections_of
from ltbench.report.identity import ROW_KEYS, family_id
from ltbench.report.select import Record, Selected, age
from ltbench.report.table import Column, Section
from ltbench.report.words import BETTER, clean
from ltbench.searching import coarse_text
from ltbench.store.rows import named

if TYPE_CHECKING:
    pass

Fetch = Callable[[Record, str], bytes | None]  # a picture of a record by file name; None when it is gone


@dataclass(frozen=True)
class Line:
    """One method: x, the mean over seeds at each x, the spread where there are two or more, and the single values."""

    label: str
    x: tuple[float, ...]
    mean: tuple[float, ...]
    sd: tuple[float, ...]  # 0 where there is one seed
    points: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Panel:
    """One pair of axes."""

    title: str
    lines: tuple[Line, ...]
    floor: float | None = None


@dataclass(frozen=True)
class LinePlot:
    """Panels that share their y label."""

    panels: tuple[Panel, ...]
    x_label: str
    y_label: str


@dataclass(frozen=True)
class Bars:
    """values[label][group] = (mean, sd or 0), or absent. floors[group] may be absent."""

    groups: tuple[str, ...]
    values: Mapping[str, Mapping[str, tuple[float, float]]]
    floors: Mapping[str, float]
    y_label: str


@dataclass(frozen=True)
class ClassPlot:
    """Per-class values against the number of training images; classes ordered from most to fewest images."""

    names: tuple[str, ...]
    counts: tuple[int, ...]
    groups: tuple[str, ...]
    lines: tuple[Line, ...]  # x is the count
    floor: tuple[float | None, ...]
    y_label: str
    ranks: tuple[tuple[int, ...], ...] = ()  # of each line's values: places in `names`


def axis_label(column: Column) -> str:
    """ "KD[...] ×1000 (lower is better)" """
    scale = "" if column.scale == 1 else f" ×{column.scale:g}"
    better = f"\n({BETTER[column.better]})" if column.better in BETTER else ""
    return f"{column.name}{scale}{better}"


def metric_steps(section: Section, metric: str, groups: Sequence[str]) -> LinePlot | None:
    """A metric against training steps; None when no record holds it."""
    places = [j for j, c in enumerate(section.columns) if c.metric == metric and c.group in groups]
    panels = []
    for j in places:
        column, lines = section.columns[j], []
        for i in range(len(section.rows)):
            if section.rows[i].external:
                continue  # its steps are not these
            entries = [(step, section.entry(i, j, step)) for step in section.steps]
            known = [(step, entry) for step, entry in entries if entry.mean is not None]
            if known:
                lines.append(
                    Line(
                        clean(section.rows[i].label),
                        tuple(float(step) for step, _ in known),
                        tuple((entry.mean or 0.0) * column.scale for _, entry in known),
                        tuple((entry.sd or 0.0) * column.scale for _, entry in known),
                        tuple((float(s), value.value * column.scale) for s, e in known for value in e.values),
                    )
                )
        floor = section.floors.get((j, section.shown))
        panels.append(Panel(column.group, tuple(lines), None if floor is None else floor * column.scale))
    if not any(panel.lines for panel in panels):
        return None
    return LinePlot(tuple(panels), "training steps", axis_label(section.columns[places[0]]))


def guidance_curve(
    section: Section, selected: Selected, metric: str, groups: Sequence[str]
) -> LinePlot | None:
    """A metric against guidance at the shown step, from all stored points; None below two values of w.

    One panel per group with the evaluations of the section's family, and one per number of images and sampler that searches
    tried candidates on: a bias that falls with the number of images, or is a sampler's, must not look like an effect of w.
    """
    places = [j for j, c in enumerate(section.columns) if c.metric == metric and c.group in groups]
    found: dict[tuple[int, _Round], _Points] = {}  # column and round -> label -> w -> values
    for j in places:
        for i, row in enumerate(section.rows):
            label = clean(section.rows[i].label)
            for _, cell in () if row.external else row.cells:
                for round_, w, value in _guided(section, selected, cell, section.columns[j]):
                    of_row = found.setdefault((j, round_), {}).setdefault(label, {})
                    of_row.setdefault(w, []).append(value * section.columns[j].scale)
    panels = []
    for j, round_ in sorted(found, key=lambda key: (key[1], key[0])):
        points, (n, by) = found[j, round_], round_
        if len({w for of_row in points.values() for w in of_row}) > 1:
            floor = None if n else section.floors.get((j, section.shown))
            column = section.columns[j]
            title = f"{column.group}, search on {n} images{by and f', {by}'}" if n else column.group
            lines = tuple(_line(label, of_row) for label, of_row in points.items())
            panels.append(Panel(title, lines, None if floor is None else floor * column.scale))
    return LinePlot(tuple(panels), "guidance w", axis_label(section.columns[places[0]])) if panels else None


_Points = dict[str, dict[float, list[float]]]
_Round = tuple[
    int, str
]  # images of a search, and the sampler of its coarse round or ""; (0, "") of evaluations


def _guided(
    section: Section, selected: Selected, cell: str, column: Column
) -> Iterator[tuple[_Round, float, float]]:
    """(round, w, value) of a cell at the shown step."""
    family, step = family_id(section.evaluation), section.shown
    for where in selected.points.get((cell, step), []):
        for record in selected.at(cell, step, where)[:1]:
            if (w := record["body"]["evaluation"].get("guidance")) is None:
                continue
            if family_id(record["body"]["evaluation"]) == family:
                value = _value_in(selected.at(cell, step, where), column)
                if value is not None:
                    yield (0, ""), float(w), value
    for selection in selections_of(family, cell, step, selected)[:1]:
        if (selection["body"]["metric"], selection["body"]["group"]) == (column.metric, column.group):
            for each in selection["body"]["candidates"]:
                if each["value"] is not None:
                    yield (int(each["n"]), coarse_text(each)), float(each["guidance"]), float(each["value"])


def _value_in(records: Sequence[Record], column: Column) -> float | None:
    """The latest value of a column that fits it."""
    name = column.metric, column.group
    for record in records:
        for row in named(record["body"]["rows"], frozenset([name])).get(name, ()):
            known = all(row.get(key) == getattr(column, key) for key in ROW_KEYS)
            if known and row["value"] is not None:
                return float(row["value"])
    return None


def _line(label: str, of_row: Mapping[float, Sequence[float]]) -> Line:
    stats = [(w, *_mean_sd(of_row[w])) for w in sorted(of_row)]
    points = tuple((w, value) for w in sorted(of_row) for value in of_row[w])
    return Line(
        label,
        tuple(w for w, _, _ in stats),
        tuple(m for _, m, _ in stats),
        tuple(s for *_, s in stats),
        points,
    )


def group_bars(section: Section, metric: str) -> Bars | None:
    """Head, body and tail at the shown step; None when no record holds the metric."""
    places = {c.group: j for j, c in enumerate(section.columns) if c.metric == metric and c.group != "all"}
    values: dict[str, dict[str, tuple[float, float]]] = {}
    for i in range(len(section.rows)):
        for group, j in places.items():
            entry, scale = section.entry(i, j), section.columns[j].scale
            if entry.mean is not None:
                found = (entry.mean * scale, (entry.sd or 0.0) * scale)
                values.setdefault(clean(section.rows[i].label), {})[group] = found
    if not values:
        return None
    floors = {
        group: section.floors[j, section.shown] * section.columns[j].scale
        for group, j in places.items()
        if (j, section.shown) in section.floors
    }
    return Bars(tuple(places), values, floors, axis_label(section.columns[next(iter(places.values()))]))


def records_of(
    section: Section, selected: Selected, place: int, wanted: Callable[[Record], bool]
) -> list[Record]:
    """Of every seed of a row the latest record at the shown step that has what is wanted, by seed."""
    found = []
    for _, cell in section.rows[place].cells:
        known = [record for key in section.keys[cell] for record in selected.at(*key) if wanted(record)]
        found += sorted(known, key=age)[-1:]
    return found


def class_plot(section: Section, selected: Selected, metric: str) -> ClassPlot | None:
    """A per-class metric of every row at the shown step; None when no record holds it for any class."""
    column = next((c for c in section.columns if c.metric == metric), None)
    if column is None:
        return None
    name = column.name
    held = [
        records_of(section, selected, i, lambda record: name in _per_class(record))
        for i in range(len(section.rows))
    ]
    every = [record for records in held for record in records]
    if not every:
        return None
    body = every[0]["body"]
    order = ranked_classes(body)
    counts, lines, ranks = body["train_counts"], [], []
    for i in range(len(section.rows)):
        arrays = [
            _by_class(record, column.name) for record in held[i] if record["body"]["groups"] == body["groups"]
        ]
        known = [(c, [a[c] for a in arrays if a.get(c) is not None]) for c in order]
        known = [
            (c, [float(v) * column.scale for v in values if v is not None]) for c, values in known if values
        ]
        if known:
            stats = [_mean_sd(values) for _, values in known]
            x = tuple(float(counts[c]) for c, _ in known)
            points = tuple((float(counts[c]), value) for c, values in known for value in values)
            lines.append(
                Line(
                    clean(section.rows[i].label),
                    x,
                    tuple(m for m, _ in stats),
                    tuple(s for _, s in stats),
                    points,
                )
            )
            ranks.append(tuple(order.index(c) for c, _ in known))
    if not lines:
        return None
    floor = _by_class(every[0], column.name, "floor")
    return ClassPlot(
        tuple(clean(body["classes"][c]) for c in order),
        tuple(int(counts[c]) for c in order),
        tuple(group_of(body, c) for c in order),
        tuple(lines),
        tuple(None if (value := floor.get(c)) is None else value * column.scale for c in order),
        axis_label(column),
        tuple(ranks),
    )


def ranked_classes(body: Mapping[str, Any]) -> list[int]:
    """Class ids from most to fewest training images, ties by id. The groups of a record have no order: its keys are sorted."""
    counts = body["train_counts"]
    return sorted({c for ids in body["groups"].values() for c in ids}, key=lambda c: (-counts[c], c))


def group_of(body: Mapping[str, Any], one: int) -> str:
    return next((name for name, ids in body["groups"].items() if one in ids), "all")


def _per_class(record: Record) -> Mapping[str, Any]:
    return record["body"].get("per_class", {}).get("metrics", {})


def _by_class(record: Record, name: str, kind: str = "metrics") -> dict[int, float | None]:
    per_class = record["body"]["per_class"]
    values = per_class.get(kind, {}).get(name, [])
    return dict(zip(per_class.get("classes", range(len(values))), values, strict=False))


def loss_curves(section: Section, selected: Selected, terms: Sequence[str]) -> LinePlot | None:
    """Terms of the loss of every row, averaged over seeds, from the training record nearest to the shown step."""
    panels = []
    for term in terms:
        lines = []
        for i, row in enumerate(section.rows):
            curves = [
                dict(zip(curve["step"], curve["terms"][term], strict=True))
                for _, cell in row.cells
                if (curve := _curve(selected, cell, section.shown)) and term in curve["terms"]
            ]
            if line := _average(clean(section.rows[i].label), curves):
                lines.append(line)
        if lines:
            panels.append(Panel(term, tuple(lines)))
    return LinePlot(tuple(panels), "training steps", "loss term") if panels else None


def _curve(selected: Selected, cell: str, step: int) -> Mapping[str, Any] | None:
    """A record's curve goes back to step 0, so the latest one up to `step` has everything."""
    steps = [known for owner, known in selected.train if owner == cell and known <= step]
    return selected.train[cell, max(steps)]["body"]["curve"] if steps else None


def _average(label: str, curves: Sequence[Mapping[int, float | None]]) -> Line | None:
    """Over the seeds that have a value at a step; a window that saw no image of the group has none."""
    known = []
    for step in sorted({step for curve in curves for step in curve}):
        values = [
            value for curve in curves if (value := curve.get(step)) is not None and math.isfinite(value)
        ]
        if values:
            known.append((float(step), *_mean_sd(values)))
    if not known:
        return None
    return Line(
        label, tuple(x for x, _, _ in known), tuple(m for _, m, _ in known), tuple(s for _, _, s in known), ()
    )


def _mean_sd(values: Sequence[float]) -> tuple[float, float]:
    mean = math.fsum(values) / len(values)
    if len(values) < 2:
        return mean, 0.0
    return mean, math.sqrt(math.fsum((value - mean) ** 2 for value in values) / (len(values) - 1))
