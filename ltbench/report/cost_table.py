"""The frozen values of a report's cost section; `costs.py` makes them, every view prints them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

KEYS = (
    *("steps_per_s", "images_per_s", "time_ratio", "operations_ratio", "memory_bytes"),
    *("train_hours", "evaluation_hours", "step_operations", "image_operations", "operations_per_s"),
)


@dataclass(frozen=True)
class Source:
    """Where a number is from: a record by its digest or a calibration by its name; what it is, its seed and number if it has any."""

    name: str
    what: str
    seed: int | None = None
    value: float | None = None


@dataclass(frozen=True)
class Known:
    """A number with its sources, or why there is none. Seconds, bytes, hours of devices (on a CPU of processes), operations."""

    value: float | None
    why: str = ""
    sources: tuple[Source, ...] = ()


@dataclass(frozen=True)
class Where:
    """What a training ran on. threads: 0 on a GPU, where they decide nothing. execution: how it was really run, "" in older records."""

    device: str
    threads: int
    ranks: int
    execution: str

    @property
    def gpu(self) -> bool:
        return not self.device.startswith("cpu")


@dataclass(frozen=True)
class CostRow:
    """One row of the plan in one block. values: by KEYS. runs: of `planned` cells, how many trained here; 0: it was calibrated.

    baseline: the label of the row that ratios are taken to.
    """

    label: str
    method: str
    values: Mapping[str, Known]
    runs: int
    planned: int
    baseline: str | None = None


@dataclass(frozen=True)
class CostBlock:
    """network, batch, precision: what all rows share. more: other settings, where blocks differ in them."""

    network: str
    batch: int
    precision: str
    data: Mapping[str, int]
    latents: bool
    more: tuple[str, ...]
    where: Where
    rows: tuple[CostRow, ...]


@dataclass(frozen=True)
class Costs:
    """missing: (row, why nothing is known of its cost)."""

    blocks: tuple[CostBlock, ...]
    missing: tuple[tuple[str, str], ...]
