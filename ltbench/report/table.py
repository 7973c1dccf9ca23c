"""The one table object that every view prints. Plain frozen values; `assemble.py` makes it from planned cells and records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Column:
    """One metric on one group. All values of a column share name, sample counts and direction, or they are refused."""

    metric: str  # kind: FD, KD, precision ...
    name: str  # as the record names it, with the extractor: FD[fashion-cnn-v1@1a2b3c4d]
    group: str  # all, head, body, tail
    better: str  # lower | higher | "" where no record says
    scale: float  # a printed value is scale * value
    k: int | None
    n_gen: int | None
    n_ref: int | None
    n_floor: int | None


@dataclass(frozen=True)
class SeedValue:
    """One number and the record it came from."""

    seed: int
    value: float
    cell: str
    digest: str


@dataclass(frozen=True)
class Missing:
    """A planned number that is not there. `text` fits a table cell; `detail` is the whole story."""

    label: str
    seed: int
    cell: str
    text: str
    detail: str = ""


@dataclass(frozen=True)
class Entry:
    """One table cell: the mean over the seeds that exist, never hiding those that do not."""

    mean: float | None  # unscaled
    sd: float | None  # sample standard deviation over seeds (n - 1); None below two
    planned: int
    values: tuple[SeedValue, ...]
    missing: tuple[Missing, ...]
    mark: str = ""  # "best", "second" or ""
    notes: tuple[int, ...] = ()

    @property
    def n(self) -> int:
        """How many seeds the mean is over."""
        return len(self.values)


@dataclass(frozen=True)
class Row:
    """One method at one setting of the other axes, over its seeds."""

    label: str
    method: str
    axes: tuple[str, ...]  # values in the order of Section.axes; the label names them too
    cells: tuple[tuple[int, str], ...]  # (seed, cell id), by seed
    notes: tuple[int, ...] = ()


@dataclass(frozen=True)
class Section:
    """One part of the benchmark under one evaluation: what may be compared."""

    part: str
    title: str
    setup: str  # network, batch, images seen at `shown`: whatever all rows share
    dataset: Mapping[str, Any]
    evaluation: Mapping[str, Any]  # with its "id"
    axes: tuple[str, ...]  # settings besides method and seed that differ between rows: "resample", "train.lr"
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    steps: tuple[int, ...]
    shown: int  # the step that views print; CSV and figures have all
    entries: Mapping[tuple[int, int, int], Entry]  # (row, column, step)
    floors: Mapping[tuple[int, int], float]  # (column, step); absent where no record has one
    missing: tuple[Missing, ...]  # planned cells without a value at `shown`
    seeds_planned: int

    def entry(self, row: int, column: int, step: int | None = None) -> Entry:
        """The entry at `step`, by default the shown one."""
        return self.entries[row, column, self.shown if step is None else step]

    def metrics(self) -> list[str]:
        """Column names in order, once each."""
        return list(dict.fromkeys(column.name for column in self.columns))


@dataclass(frozen=True)
class Table:
    """Sections with their shared footnotes (numbered from 1), and the digests of every record that is in it."""

    name: str
    title: str
    sections: tuple[Section, ...]
    notes: tuple[str, ...]
    records: tuple[str, ...]
    decimals: Mapping[str, int] = field(default_factory=dict)

    def labels(self) -> list[str]:
        """Row labels in order of appearance, once each: the order of colours in figures."""
        return list(dict.fromkeys(row.label for section in self.sections for row in section.rows))


@dataclass(frozen=True)
class Inputs:
    """What a report is made from, as plain JSON values.

    planned: {"cell", "label", "part", "settings", "milestones": [int], "evaluations": [evaluation with "id"],
              "unsupported": text or None, "part_title": text or None (may be absent)}, in spec order.
    records: record files {"body", "digest", "envelope"}, in any order.
    states: cell id -> {"text": "running 63 %", "detail": ...} for cells that are not simply waiting.
    problems: what could not be used, one line each (a damaged record and why): printed below the table.
    """

    name: str
    title: str
    planned: Sequence[Mapping[str, Any]]
    records: Sequence[Mapping[str, Any]]
    states: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    problems: Sequence[str] = ()
