"""The one table object that every view prints. Plain frozen values; `assemble.py` makes it from planned cells and records."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

from ltbench.report.identity import ROW_KEYS

if TYPE_CHECKING:
    from ltbench.report.cost_table import Costs
    from ltbench.report.published import Publication
    from ltbench.report.sheet import Sheet


@dataclass(frozen=True)
class Column:
    """One metric on one group. All values of a column share name, sample counts and direction, or they are refused."""

    metric: str  # kind: FD, KD, precision ...
    name: str  # as the record names it, with the extractor: FD[fashion-cnn-v1@1a2b3c4d]
    group: str  # all, head, body, tail
    better: str  # lower | higher | zero | "" where no record says
    scale: float  # a printed value is scale * value
    k: int | None
    n_gen: int | None
    n_ref: int | None
    n_floor: int | None
    estimator: str | None = None  # None: the records are older than the naming of estimators

    @cached_property
    def identity(self) -> tuple[Any, ...]:
        """What its values share: of every value it is asked."""
        return tuple(getattr(self, key) for key in ROW_KEYS)


class SeedValue(NamedTuple):
    """One number of one network, with its sampling noise, and the record it came from. A table has tens of thousands."""

    seed: int | None  # of training; None for an external row
    value: float
    cell: str
    digest: str
    se: float | None = None  # standard error of `value` over samples; knows nothing of training again
    corrected: float | None = None  # jackknife bias-corrected value
    folds: tuple[float, ...] | None = None  # the value with fold f left out; the same folds for every method
    n: int | None = None  # generated images behind it


@dataclass(frozen=True)
class Difference:
    """One row minus another in one column: means over their common seeds. `differences.py` has the rule.

    value: unscaled; where closer to zero is better, the difference of the distances from zero. error: its standard error,
    None where none is known. verdict: better | worse | tie | differs (a metric without a direction) | "" (no error).
    """

    value: float
    error: float | None
    seeds: int
    source: str  # what the error is over: "seeds", "folds" or ""
    verdict: str


class Missing(NamedTuple):
    """A planned number that is not there. `text` fits a table cell; `detail` is the whole story."""

    label: str
    seed: int | None
    cell: str
    text: str
    detail: str = ""


@dataclass(frozen=True)
class Entry:
    """One table cell: the mean over the seeds that exist, never hiding those that do not."""

    mean: float | None  # unscaled
    sd: (
        float | None
    )  # sample standard deviation over seeds (n - 1); None below two, where `se` speaks instead
    planned: int
    values: tuple[SeedValue, ...]
    missing: tuple[Missing, ...]
    mark: str = ""  # "best", "second", "tie" or ""
    notes: tuple[int, ...] = ()

    @cached_property
    def by_seed(self) -> Mapping[int, SeedValue]:
        """The values that have a seed: of a baseline it is asked for every row."""
        return {value.seed: value for value in self.values if value.seed is not None}

    @property
    def n(self) -> int:
        """How many seeds the mean is over."""
        return len(self.values)

    @property
    def se(self) -> float | None:
        """Sampling error of the only network; None with more, whose spread is `sd`."""
        return self.values[0].se if self.n == 1 else None

    @property
    def corrected(self) -> float | None:
        """Mean of the bias-corrected values; None unless every seed has one."""
        known = [value.corrected for value in self.values if value.corrected is not None]
        return math.fsum(known) / self.n if known and len(known) == self.n else None


@dataclass(frozen=True)
class External:
    """Where an external row comes from. note: its footnote. keys: where `select.Selected` keeps its records."""

    name: str
    kind: str  # samples | checkpoint
    sha256: str
    step: int  # of training, as declared; 0: not declared
    keys: tuple[tuple[str, int, str], ...]
    note: str


@dataclass(frozen=True)
class Row:
    """One method at one setting of the other axes, over its seeds."""

    label: str
    method: str
    axes: tuple[str, ...]  # values in the order of Section.axes; the label names them too
    cells: tuple[tuple[int | None, str], ...]  # (seed, cell id), by seed
    notes: tuple[int, ...] = ()
    # the row of the pipeline's plain objective at the same settings; None: this is it, or there is none
    baseline: int | None = None
    external: External | None = None  # not trained here: never ranked, never part of a difference


@dataclass(frozen=True)
class Section:
    """One part of the benchmark under one evaluation: what may be compared."""

    part: str
    title: str
    setup: str  # network, batch, images seen at `shown`: whatever all rows share
    dataset: Mapping[str, Any]
    evaluation: Mapping[str, Any]  # without its metrics; "id" is `identity.section_id`
    ids: tuple[str, ...]  # of the evaluations that meet here: they differ only in their metrics
    axes: tuple[str, ...]  # settings besides method and seed that differ between rows: "resample", "train.lr"
    columns: tuple[Column, ...]
    rows: tuple[Row, ...]
    steps: tuple[int, ...]
    shown: int  # the step that views print; CSV and figures have all
    entries: Mapping[tuple[int, int, int], Entry]  # (row, column, step)
    floors: Mapping[tuple[int, int], float]  # (column, step); absent where no record has one
    missing: tuple[Missing, ...]  # planned cells without a value at `shown`
    seeds_planned: int
    chosen_by: str  # how guidance was chosen, a sentence; "" where all of it was planned
    guidance: Mapping[tuple[str, int], float]  # (cell, step) -> w, where rows have their own
    # cell id -> where `select.Selected` keeps its records at `shown`
    keys: Mapping[str, tuple[tuple[str, int, str], ...]]
    differences: Mapping[tuple[int, int, int], Difference] = field(
        default_factory=dict
    )  # against the row's baseline

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
    paired: bool = False  # views print the differences against the baseline as tables of their own
    sheet: Sheet | None = None  # in a paper's form; views print it instead of a table per evaluation
    costs: Costs | None = None  # what the methods cost; None: nothing tells
    undrawn: tuple[
        str, ...
    ] = ()  # pictures that the definition asks for and no record holds, a sentence each

    def labels(self) -> list[str]:
        """Row labels in order of appearance, once each: the order of colours in figures."""
        return list(dict.fromkeys(row.label for section in self.sections for row in section.rows))


@dataclass(frozen=True)
class Inputs:
    """What a report is made from, as plain JSON values.

    planned: {"cell", "label", "part", "settings", "milestones": [int], "evaluations": [evaluation with "id"],
              "unsupported": text or None, "part_title", "recipe": text or None, "illustrations": [evaluation with "id"],
              "benchmark": its spec's name (the last four may be absent)}, in spec order.
    benchmarks: names of the specs that it is of.
    records: record files {"body", "digest", "envelope"}, in any order; "accepted": why its run was accepted for other code, if it was.
    externals: evaluation records of what was not trained here: "cell" is the digest of body["external"] {"name", "declared",
               "sha256", "kind"}, body["settings"] has the "dataset" and whatever was declared.
    states: cell id -> {"text": "running 63 %", "detail": ...} for cells that are not simply waiting.
    published: the numbers that a definition's sheet sets beside ours.
    problems: what could not be used, one line each (a damaged record and why): printed below the table.
    calibrations: of training steps: {"name", "what", "device", "threads", "result", "date"}, in any order.
    """

    name: str
    title: str
    planned: Sequence[Mapping[str, Any]]
    records: Sequence[Mapping[str, Any]]
    states: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    problems: Sequence[str] = ()
    externals: Sequence[Mapping[str, Any]] = ()
    published: Publication | None = None
    calibrations: Sequence[Mapping[str, Any]] = ()
    benchmarks: Sequence[str] = ()
