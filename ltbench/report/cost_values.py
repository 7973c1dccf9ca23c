"""What records and calibrations tell of the cost of one row of a report on one device."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from ltbench.report.axes import RowPlan
from ltbench.report.cost_table import Known, Source, Where
from ltbench.report.select import Record

NO_SPEED = "the training ended before a speed was noted"
CALIBRATED = "calibrated, not trained here"


@dataclass(frozen=True)
class Stretch:
    """One attempt at training a cell, as its last record tells it."""

    where: Where
    record: Record
    seed: int

    @property
    def told(self) -> Mapping[str, Any]:
        return self.record["envelope"]

    @property
    def images_per_s(self) -> float | None:
        rates = [float(rate) for _, rate in self.told.get("images_per_s") or ()]
        return statistics.median(rates) if rates else None

    def source(self, value: float) -> Source:
        return record_source(self.record, self.seed, value)

    @property
    def hours(self) -> float:
        return (
            float(self.told.get("gpu_hours") or 0.0) if self.where.gpu else float(self.told["seconds"]) / 3600
        )


@dataclass(frozen=True)
class Line:
    """A row of the plan on one device, before it is compared."""

    row: RowPlan
    origin: str  # "part, data set: ", as far as there are several
    stretches: tuple[Stretch, ...]
    calibration: Mapping[str, Any] | None
    rows: Known  # network rows per image


def record_source(record: Record, seed: int, value: float | None = None) -> Source:
    """A record as the source of a number."""
    body = record["body"]
    what = "training" if body["kind"] == "train" else str(body["kind"])
    return Source(record["digest"], f"{what}, step {body['step']:,}", seed, value)


def calibration_source(calibration: Mapping[str, Any], value: float | None = None) -> Source:
    """A calibration as the source of a number."""
    return Source(calibration["name"], "calibration", None, value)


def stretches_of(records: Iterable[Record], seed: int) -> Iterator[Stretch]:
    """The attempts at a cell; of each its last record, which tells the whole of it."""
    last: dict[tuple[Any, ...], Record] = {}
    for record in sorted((r for r in records if r["body"]["kind"] == "train"), key=lambda r: r["digest"]):
        told = record["envelope"]
        key = record["body"]["run"], told.get("host"), told.get("started") or told.get("attempt")
        if key not in last or told["seconds"] > last[key]["envelope"]["seconds"]:
            last[key] = record
    for record in sorted(last.values(), key=lambda r: (r["body"]["step"], r["digest"])):
        yield Stretch(where_trained(record), record, seed)


def where_trained(record: Record) -> Where:
    """What a training ran on, by its record."""
    told = record.get("envelope") or {}
    device = str(told.get("device") or "unknown device")
    threads = int(told.get("threads") or 0) if device.startswith("cpu") else 0
    return Where(device, threads, int(told.get("ranks") or 1), _executed(told, told))


def where_calibrated(calibration: Mapping[str, Any]) -> Where:
    device = calibration["device"]
    threads = int(calibration["threads"]) if device.startswith("cpu") else 0
    return Where(device, threads, 1, _executed(calibration["result"], calibration["what"]))


def _executed(ran: Mapping[str, Any], how: Mapping[str, Any]) -> str:
    """What was really done, "" where nobody says. how: tells of `recompute`."""
    told = str(ran.get("execution") or "")
    return ", ".join(filter(None, [told, "activations made again" if how.get("recompute") else ""]))


def asks(what: Mapping[str, Any], *without: str) -> dict[str, Any]:
    """What a step is, however many images a forward holds and whether activations are kept."""
    left = {"micro_batch", "recompute", *without}
    known = {key: value for key, value in what.items() if key not in left}
    return {**known, "recipe": {key: value for key, value in what["recipe"].items() if key not in left}}


def by_seed(source: Source) -> tuple[int, str]:
    return (-1 if source.seed is None else source.seed, source.name)


def speed_of(line: Line, batch: int) -> Known:
    """Images a second: the median over the attempts, each of which noted many."""
    noted = [(stretch, rate) for stretch in line.stretches if (rate := stretch.images_per_s)]
    if noted:
        sources = [s.source(rate) for s, rate in noted]
        return Known(
            statistics.median(rate for _, rate in noted), sources=tuple(sorted(sources, key=by_seed))
        )
    if line.calibration is None:
        return Known(None, NO_SPEED)
    rate = batch / line.calibration["result"]["seconds_per_step"]
    return Known(rate, sources=(calibration_source(line.calibration, rate),))


def memory_of(line: Line) -> Known:
    """The largest peak."""
    peaks = [s.source(float(s.told["memory_bytes"])) for s in line.stretches if s.told.get("memory_bytes")]
    if not peaks and line.calibration is not None and line.calibration["result"].get("memory_bytes"):
        peaks = [calibration_source(line.calibration, float(line.calibration["result"]["memory_bytes"]))]
    if not peaks:
        return Known(None, "no record notes it")
    return Known(max(s.value or 0.0 for s in peaks), sources=tuple(sorted(peaks, key=by_seed)))


def train_hours_of(line: Line) -> Known:
    """All attempts together."""
    if not line.stretches:
        return Known(None, CALIBRATED)
    sources = sorted((s.source(s.hours) for s in line.stretches), key=by_seed)
    return Known(math.fsum(s.value or 0.0 for s in sources), sources=tuple(sources))


def scaled(known: Known, factor: float) -> Known:
    if known.value is None:
        return known
    each = (replace(s, value=None if s.value is None else s.value * factor) for s in known.sources)
    return Known(known.value * factor, sources=tuple(each))


def product(one: Known, other: Known) -> Known:
    if one.value is None or other.value is None:
        return Known(None, one.why or other.why)
    sources = dict.fromkeys(replace(s, value=None) for s in (*one.sources, *other.sources))
    return Known(one.value * other.value, sources=tuple(sources))
