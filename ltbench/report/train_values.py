"""What training cost, from training records: speed and memory. Circumstances of a machine: values of two machines are not one value."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from ltbench.errors import UsageError
from ltbench.report.axes import Planned, seed_of
from ltbench.report.columns import most_common
from ltbench.report.cost_values import where_trained
from ltbench.report.cost_words import where_text
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
) -> tuple[Entry, str]:
    """(one value per seed from the training record at `step`, the machine that they are of); "" where there is no value.

    Seeds of another machine than most are refused. Raises UsageError for an unknown value.
    """
    if what not in TRAIN_VALUES:
        raise UsageError(f"train: {what} is no value of a training", f"there are {', '.join(TRAIN_VALUES)}")
    values: list[tuple[Planned, SeedValue, str]] = []
    missing = []
    for cell in cells:
        found = selected.train.get((cell["cell"], step))
        value = None if found is None else _value(what, found)
        if found is not None and value is not None:
            seed = SeedValue(seed_of(cell), value, cell["cell"], found["digest"])
            values.append((cell, seed, where_text(where_trained(found))))
        else:
            missing.append(_gap(cell, step, found, states))
    machine = most_common([where for *_, where in values]) if values else ""
    for cell, seed, where in values:
        if where != machine:
            told = f"refused, since the others ran on another machine ({machine}; here {where})"
            missing.append(Missing(str(cell["label"]), seed.seed, cell["cell"], "refused", told))
    kept = tuple(seed for _, seed, where in values if where == machine)
    mean = statistics.fmean(v.value for v in kept) if kept else None
    sd = statistics.stdev([v.value for v in kept]) if len(kept) > 1 else None
    return Entry(mean, sd, len(cells), kept, tuple(missing)), machine


def _value(what: str, record: Record) -> float | None:
    """steps_per_s: the median of the speeds that the training noted. GB_per_image: its peak of memory over the images of the batch that
    one GPU holds."""
    envelope, batch = record.get("envelope") or {}, int(record["body"]["settings"]["train"]["batch"])
    if what == "steps_per_s":
        speeds = [float(rate) for _, rate in envelope.get("images_per_s") or []]
        return statistics.median(speeds) / batch if speeds else None
    peak: Any = envelope.get("memory_bytes")
    where = where_trained(record)
    return float(peak) / 1e9 / (batch / where.ranks) if peak is not None and where.gpu else None


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
