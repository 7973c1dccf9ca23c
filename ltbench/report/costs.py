"""What the methods of a benchmark cost: speed, memory, hours and operations, in blocks within which they may be compared.

A block holds trainings of one kind of step (network, batch, precision and whatever else decides how long it takes, but the method)
on one device, by as many threads or ranks, executed one way. A ratio is taken inside a block only. Speed and memory are those that
training records noted, else of a calibration; operations follow from the settings and from the passes that a calibration counted.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from ltbench import plugins
from ltbench.canonical import canonical_json, digest
from ltbench.cost.work import declared_rows
from ltbench.report.axes import Planned, RowPlan, flat, rows_of, seed_of, setting_text
from ltbench.report.compute import spent
from ltbench.report.cost_table import CostBlock, CostRow, Costs, Known, Where
from ltbench.report.cost_values import (
    Line,
    Stretch,
    asks,
    by_seed,
    calibration_source,
    memory_of,
    product,
    record_source,
    scaled,
    speed_of,
    stretches_of,
    train_hours_of,
    where_calibrated,
)
from ltbench.report.select import Record

NO_PASSES = "its passes were never counted (calibrate counts them)"


@dataclass
class _Pace:
    """What decides how long a step takes, but the method and its passes: equal ones may be compared."""

    what: dict[str, Any]
    order: int
    lines: dict[Where, list[Line]] = field(default_factory=dict)

    def rank(self, where: Where) -> tuple[Any, ...]:
        """Blocks that have a baseline first, and of these the longest."""
        lines = self.lines[where]
        plain = any(_plain(line.row) for line in lines)
        return (not plain, -len(lines), where.device, where.execution, where.ranks, where.threads)

    @property
    def head(self) -> bytes:
        """What a block's heading says of it."""
        what, recipe = self.what, self.what["recipe"]
        return canonical_json(
            [what["network"], recipe["batch"], recipe["precision"], what["data"], what["latents"]]
        )

    @property
    def operations(self) -> float:
        """Of a training step, per image and network row."""
        from ltbench.cost.size import BACKWARD, Shape, forward_operations

        augmented = self.what["recipe"].get("augment", "none") != "none"
        return BACKWARD * forward_operations(
            self.what["network"], Shape(**self.what["data"], augmented=augmented)
        )


def build_costs(
    planned: Sequence[Planned],
    records: Iterable[Record],
    calibrations: Sequence[Mapping[str, Any]],
    states: Mapping[str, Mapping[str, str]],
) -> Costs | None:
    """None where nothing tells of any cost. Depends on no order but the plan's.

    calibrations: {"name", "what", "device", "threads", "result", "date"} of training steps. states: as in `Inputs`.
    """
    of_cell: dict[str, list[Record]] = {}
    for record in records:
        told = record.get("envelope") or {}
        if told.get("seconds") is not None and told.get("device"):
            of_cell.setdefault(record["body"]["cell"], []).append(record)
    if not any(cell["cell"] in of_cell for cell in planned) and not calibrations:
        return None
    house = _House(of_cell, sorted(calibrations, key=lambda each: (each["date"], each["name"])), states)
    for origin, row in _rows(planned):
        house.place(origin, row)
    return house.costs() if house.paces else None


def _rows(planned: Sequence[Planned]) -> Iterator[tuple[str, RowPlan]]:
    """(origin, row) of every part; a cell that two parts share counts in the first."""
    parts: dict[tuple[str, bytes], dict[str, Planned]] = {}
    seen: set[str] = set()
    for cell in planned:
        if cell["cell"] not in seen:
            seen.add(cell["cell"])
            key = cell["part"], canonical_json(cell["settings"]["dataset"])
            parts.setdefault(key, {})[cell["cell"]] = cell
    for key, cells in parts.items():
        for row in rows_of(list(cells.values()))[1]:
            yield _origin(key, parts), row


def _origin(key: tuple[str, bytes], parts: Mapping[tuple[str, bytes], Mapping[str, Planned]]) -> str:
    """ "part, data set: " as far as there are several."""
    cell = next(iter(parts[key].values()))
    data = cell["settings"]["dataset"]
    several = len({part for part, _ in parts}) > 1
    words = [str(cell.get("part_title") or key[0])] if several else []
    if sum(part == key[0] for part, _ in parts) > 1:
        imbalance = data.get("imbalance")
        words.append(str(data["name"]) + (f" {imbalance:g}" if imbalance is not None else ""))
    return f"{', '.join(words)}: " if words else ""


@dataclass
class _House:
    """Everything that is known, and the lines as they are placed."""

    records: Mapping[str, Sequence[Record]]
    calibrations: Sequence[Mapping[str, Any]]
    states: Mapping[str, Mapping[str, str]]
    paces: dict[str, _Pace] = field(default_factory=dict)
    missing: list[tuple[str, str]] = field(default_factory=list)
    _passes: dict[bytes, Known] = field(default_factory=dict)  # by what decides them, which many rows share

    def place(self, origin: str, row: RowPlan) -> None:
        """Put a row into the block of every device that it ran or was calibrated on."""
        from ltbench.cost.calibrations import train_question

        what = train_question(row.cells[0]["settings"]).what
        if not {"batch", "precision", "label_drop"} <= what["recipe"].keys():
            self.missing.append((origin + row.label, "its settings do not tell how it was trained"))
            return
        found: dict[Where, list[Stretch]] = {}
        for cell in row.cells:
            for stretch in stretches_of(self.records.get(cell["cell"], ()), seed_of(cell)):
                found.setdefault(stretch.where, []).append(stretch)
        measured = {where_calibrated(c): c for c in self.calibrations if asks(c["what"]) == asks(what)}
        if not found and not measured:
            self.missing.append((origin + row.label, self._why(row)))
            return
        shared = asks(what, "method", "passes")
        pace = self.paces.setdefault(digest(shared), _Pace(shared, len(self.paces)))
        rows = self._rows_of(what)
        for where in {**found, **measured}:
            line = Line(row, origin, tuple(found.get(where, ())), measured.get(where), rows)
            pace.lines.setdefault(where, []).append(line)

    def _rows_of(self, what: Mapping[str, Any]) -> Known:
        """Network rows per image: the least that was counted, for some executions fill passes up; else as the method declares."""
        if what["method"]["name"] == what["pipeline"]:
            return Known(1.0)  # a pipeline's plain objective has its name
        if (key := _passes_key(what)) not in self._passes:
            self._passes[key] = self._counted_or_declared(what, key)
        return self._passes[key]

    def _counted_or_declared(self, what: Mapping[str, Any], key: bytes) -> Known:
        counted = [c for c in self.calibrations if _passes_key(c["what"]) == key]
        best = min(counted, key=lambda c: c["result"]["rows"], default=None)
        if best is None:
            plugin = self._methods.get(what["method"]["name"])  # records outlive plugins
            declared = declared_rows(what) if plugin is not None and plugin.problem is None else None
            return Known(None, NO_PASSES) if declared is None else Known(declared)
        return Known(float(best["result"]["rows"]), sources=(calibration_source(best),))

    @cached_property
    def _methods(self) -> Mapping[str, plugins.Plugin]:
        return plugins.find("methods")

    def _why(self, row: RowPlan) -> str:
        reasons = {}
        for cell in row.cells:
            if cell.get("unsupported"):
                reasons[f"n/a: {cell['unsupported']}"] = None
            elif state := self.states.get(cell["cell"]):
                reasons[state["text"]] = None
            else:
                reasons["no record tells what its training took, and it was not calibrated"] = None
        return "; ".join(reasons)

    def costs(self) -> Costs:
        blocks = []
        for pace in sorted(self.paces.values(), key=lambda pace: pace.order):
            counted: set[tuple[str, str]] = set()
            for where in sorted(pace.lines, key=pace.rank):
                made = [(line, self._values(pace, where, line, counted)) for line in pace.lines[where]]
                blocks.append(_block(pace, self._more(pace), where, _compared(pace, where, made)))
        return Costs(tuple(blocks), tuple(self.missing))

    def _more(self, pace: _Pace) -> tuple[str, ...]:
        """Settings in which this kind of step differs from others that a heading would not tell from it."""
        alike = [dict(flat(each.what["recipe"])) for each in self.paces.values() if each.head == pace.head]
        own = dict(flat(pace.what["recipe"]))
        return tuple(
            f"{key} {setting_text(own[key])}"
            for key in sorted(own)
            if len({canonical_json(each.get(key)) for each in alike}) > 1
        )

    def _values(
        self, pace: _Pace, where: Where, line: Line, counted: set[tuple[str, str]]
    ) -> dict[str, Known]:
        """All but the ratios. counted: (device, row) whose evaluations stand in an earlier block."""
        batch = pace.what["recipe"]["batch"]
        speed = speed_of(line, batch)
        per_image = scaled(line.rows, pace.operations)
        per_step = scaled(per_image, batch)
        return {
            "steps_per_s": scaled(speed, 1 / batch),
            "images_per_s": speed,
            "memory_bytes": memory_of(line),
            "train_hours": train_hours_of(line),
            "evaluation_hours": self._evaluation_hours(where, line, counted),
            "step_operations": per_step,
            "image_operations": per_image,
            "operations_per_s": product(speed, per_image),
        }

    def _evaluation_hours(self, where: Where, line: Line, counted: set[tuple[str, str]]) -> Known:
        cells = {cell["cell"]: seed_of(cell) for cell in line.row.cells}
        made = [r for cell in cells for r in self.records.get(cell, ()) if r["body"]["kind"] != "train"]
        if not made:
            return Known(None, "not evaluated")
        here = [r for r in made if str(r["envelope"]["device"]) == where.device]
        if not here:
            others = sorted({str(r["envelope"]["device"]) for r in made})
            return Known(None, f"evaluated on {', '.join(others)}")
        which = where.device, line.row.cells[0]["cell"]
        if which in counted:
            return Known(None, "counted in the block above")
        counted.add(which)
        uses = [use for (_, stage), use in spent(here).items() if stage != "training"]
        hours = math.fsum(use.gpu_hours if where.gpu else use.hours for use in uses)
        sources = sorted((record_source(r, cells[r["body"]["cell"]]) for r in here), key=by_seed)
        return Known(hours, sources=tuple(sources))


# --- comparing ------------------------------------------------------------------------------------------------------


def _compared(pace: _Pace, where: Where, made: Sequence[tuple[Line, dict[str, Known]]]) -> Iterator[CostRow]:
    twice = {a.row.label for a, _ in made for b, _ in made if a is not b and a.row.label == b.row.label}

    def label(line: Line) -> str:
        return (line.origin if line.row.label in twice else "") + line.row.label

    for line, values in made:
        found = _baseline(line, made)
        ratios = {
            "time_ratio": _time_ratio(pace, where, values, found),
            "operations_ratio": line.rows,
        }
        baseline = None if found is None else label(found[0])
        runs, planned = len({s.record["body"]["cell"] for s in line.stretches}), len(line.row.cells)
        yield CostRow(label(line), line.row.method, {**values, **ratios}, runs, planned, baseline)


def _baseline(
    line: Line, made: Sequence[tuple[Line, dict[str, Known]]]
) -> tuple[Line, dict[str, Known]] | None:
    """The pipeline's plain objective in the same block, the most alike in what decides no time."""
    plain = [each for each in made if _plain(each[0].row) and each[1]["steps_per_s"].value is not None]
    own = dict(flat(_beside(line.row)))

    def unlike(each: tuple[Line, dict[str, Known]]) -> int:
        theirs = dict(flat(_beside(each[0].row)))
        return sum(own.get(key) != theirs.get(key) for key in {*own, *theirs})

    return min(plain, key=unlike, default=None)


def _passes_key(what: Mapping[str, Any]) -> bytes:
    """What decides how many network rows an image takes."""
    same = ("pipeline", "method", "label_drop", "label_drop_mode")
    return canonical_json([{**what, **what["recipe"]}.get(name) for name in same])


def _plain(row: RowPlan) -> bool:
    return row.method == row.cells[0]["settings"]["pipeline"]


def _beside(row: RowPlan) -> dict[str, Any]:
    return {k: v for k, v in row.cells[0]["settings"].items() if k not in ("method", "seed")}


def _time_ratio(
    pace: _Pace,
    where: Where,
    values: Mapping[str, Known],
    found: tuple[Line, Mapping[str, Known]] | None,
) -> Known:
    own = values["steps_per_s"]
    if own.value is None:
        return Known(None, own.why)
    if found is not None:
        theirs = found[1]["steps_per_s"]
        assert theirs.value is not None, "a baseline is one that has a speed"
        sources = dict.fromkeys(replace(s, value=None) for s in (*own.sources, *theirs.sources))
        return Known(theirs.value / own.value, sources=tuple(sources))
    elsewhere = sorted(
        {w.device for w, lines in pace.lines.items() if any(_plain(each.row) for each in lines)}
    )
    name = pace.what["pipeline"]
    if not elsewhere:
        return Known(None, f"the baseline {name} was not timed at these settings")
    if elsewhere == [where.device]:
        return Known(
            None, f"the baseline {name} ran otherwise (threads, ranks or execution), which is not compared"
        )
    return Known(
        None,
        f"the baseline {name} was timed on {', '.join(elsewhere)}; times of two devices are not compared",
    )


def _block(pace: _Pace, more: tuple[str, ...], where: Where, rows: Iterable[CostRow]) -> CostBlock:
    recipe, what = pace.what["recipe"], pace.what
    return CostBlock(
        network=what["network"],
        batch=recipe["batch"],
        precision=recipe["precision"],
        data=what["data"],
        latents=what["latents"],
        more=more,
        where=where,
        rows=tuple(rows),
    )
