"""What training cost, from training records: speed and memory. Circumstances of a machine, so the device is part of the value's name."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from ltbench.errors import UsageError
from ltbench.report.axes import Planned, seed_of
from ltbench.report.definition import TRAIN_VALUES, SheetColumn
from ltbench.report.select import Record, Selected
from ltbench.report.table import Column, Entry, Missing, SeedValue


def train_column(column: SheetColumn) -> Column:
    """The column of a training value; it has no samples and no reference."""
    return Column(
        "train", column.name, "all", column.better or "", column.scale or 1.0, None, None, None, None
    )


def train_entry(
    cells: Sequence[Planned],
    step: int,
    what: str,
    selected: Selected,
    states: Mapping[str, Mapping[str, str]],
) -> Entry:
    """One value per seed, from the training record at `step`. Raises UsageError for an unknown value."""
    if what not in TRAIN_VALUES:
        raise UsageError(f"train: {what} is no value of a training", f"there are {', '.join(TRAIN_VALUES)}")
    values, missing = [], []
    for cell in cells:
        found = selected.train.get((cell["cell"], step))
        value = None if found is None else _value(what, found)
        if found is not None and value is not None:
            values.append(SeedValue(seed_of(cell), value, cell["cell"], found["digest"]))
        else:
            missing.append(_gap(cell, step, found, states))
    mean = statistics.fmean(v.value for v in values) if values else None
    sd = statistics.stdev([v.value for v in values]) if len(values) > 1 else None
    return Entry(mean, sd, len(cells), tuple(values), tuple(missing))


def _value(what: str, record: Record) -> float | None:
    """steps_per_s: the median of the speeds that the training noted. GB_per_image: its peak of memory over the batch, on the GPU."""
    envelope, batch = record.get("envelope") or {}, int(record["body"]["settings"]["train"]["batch"])
    if what == "steps_per_s":
        speeds = [float(rate) for _, rate in envelope.get("images_per_s") or []]
        return statistics.median(speeds) / batch if speeds else None
    peak: Any = envelope.get("memory_bytes")
    if peak is None or str(envelope.get("device", "")).startswith("cpu"):
        return None
    return float(peak) / 1e9 / batch


def _gap(cell: Planned, step: int, record: Record | None, states: Mapping[str, Mapping[str, str]]) -> Missing:
    gap = (str(cell["label"]), seed_of(cell), cell["cell"])
    if record is not None:
        return Missing(*gap, "n/a", "its training record holds no such value (memory is that of a GPU)")
    if cell.get("unsupported"):
        return Missing(*gap, "n/a", str(cell["unsupported"]))
    if step not in [int(milestone) for milestone in cell["milestones"]]:
        return Missing(*gap, "not planned", f"step {step} is no milestone of it")
    state = states.get(cell["cell"])
    return Missing(*gap, state["text"], state.get("detail") or "") if state else Missing(*gap, "not run")
