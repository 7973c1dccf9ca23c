"""The records of one section: which columns they make, what stands in a cell, and what is refused and why."""

from __future__ import annotations

import math
import operator
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, TypeVar

from ltbench.metrics.naming import metric_name
from ltbench.protocols import PROTOCOLS
from ltbench.report.axes import Planned, RowPlan, SectionPlan
from ltbench.report.identity import ROW_KEYS, fixed_steps, groups_id
from ltbench.report.select import Key, Record, Selected, age
from ltbench.report.table import Column, External, SeedValue
from ltbench.store.rows import named

_STATED = operator.itemgetter(*ROW_KEYS)

Measured = tuple[Record, Mapping[str, Any]]  # a record and its row of one metric and group
Item = TypeVar("Item", str, int)


def group_names(evaluation: Mapping[str, Any], asked: Sequence[str]) -> list[str]:
    """The groups of an evaluation's columns: those `asked` for, unless it divides the classes otherwise or samples one group."""
    if evaluation["labels"] is None:  # images without a class belong to no group
        return ["all"]
    if evaluation.get("classes", "all") != "all":
        return [evaluation["classes"]]
    rule = evaluation.get("groups")
    if rule is None:
        return list(asked)
    return ["all", *(("many", "medium", "few") if rule == "shots" else rule)]


@dataclass
class Pool:
    """The records that one section is made from."""

    plan: SectionPlan
    selected: Selected
    externals: Sequence[RowPlan]
    shown: int
    # What is asked again for every column of a table; by a record's digest, unless said.
    _whole: dict[int | None, dict[tuple[str, str], list[Measured]]] = field(default_factory=dict)  # by step
    _held: dict[tuple[str, int], list[Record]] = field(default_factory=dict)  # by cell and step
    _each: dict[int | None, list[Record]] = field(default_factory=dict)  # by step
    _groups: dict[str, str] = field(default_factory=dict)
    _rows: dict[str, dict[tuple[str, str], list[Measured]]] = field(default_factory=dict)
    _joined: dict[tuple[str, int], dict[tuple[str, str], list[Measured]]] = field(
        default_factory=dict
    )  # by cell and step
    _apart: dict[str, list[str]] = field(default_factory=dict)
    _names: frozenset[tuple[str, str]] = frozenset()  # metric and group of the columns

    def records(self, cell: Planned, step: int) -> list[Record]:
        """What the store holds for a cell at a step under this section's evaluation, the latest first."""
        place = cell["cell"], step
        if (known := self._held.get(place)) is None:
            keys = self.keys(cell, step)
            found = (record for key in keys for record in self.selected.at(*key))
            known = self._held[place] = sorted(found, key=age, reverse=True)
        return known

    @cached_property
    def _external(self) -> dict[str, External]:
        return {row.cells[0]["cell"]: row.external for row in self.externals if row.external}

    def keys(self, cell: Planned, step: int) -> tuple[Key, ...]:
        """Where `Selected` keeps them. What is external has no milestones and stands at the shown step."""
        if external := self._external.get(cell["cell"]):
            return external.keys if step == self.shown else ()
        if self.plan.picks is None:
            return ((cell["cell"], step, self.plan.evaluation["id"]),)
        pick = self.plan.picks.get((cell["cell"], step))
        return () if pick is None else ((cell["cell"], step, pick),)

    def every(self, step: int | None = None) -> Sequence[Record]:
        """All of them in the plan's order, or those of one step; the external ones last."""
        if step not in self._each:
            self._each[step] = list(self._every(step))
        return self._each[step]

    def _every(self, step: int | None) -> Iterator[Record]:
        for cell in (*self.plan.cells, *(row.cells[0] for row in self.externals)):
            for milestone in sorted(int(known) for known in cell["milestones"]):
                if step in (None, milestone):
                    yield from self.records(cell, milestone)

    # --- what they share ---

    @cached_property
    def groups(self) -> str:
        """The group definition that most records share."""
        return most_common([self.groups_of(record) for record in _own(self.every())])

    @cached_property
    def nfe(self) -> str:
        """The evaluations per image that most records share, as text."""
        return most_common([nfe_text(record) for record in _own(self.every())])

    @cached_property
    def real(self) -> dict[str, str]:
        """The sets of real images, by sha256, that most records compare with: {"reference": ..., "holdout": ...}."""
        known = [record["body"].get("real") or {} for record in _own(self.every())]
        names = dict.fromkeys(name for sets in known for name in sets)
        return {name: most_common([sets[name] for sets in known if name in sets]) for name in names}

    def groups_of(self, record: Record) -> str:
        """`groups_id`, computed once per record."""
        if record["digest"] not in self._groups:
            self._groups[record["digest"]] = groups_id(record)
        return self._groups[record["digest"]]

    def _main(self, found: Sequence[Measured]) -> list[Mapping[str, Any]]:
        """The rows of the commonest identity; of equally common ones the first in the alphabet."""
        alike: dict[tuple[tuple[Any, ...], str], list[Mapping[str, Any]]] = {}
        for record, row in found:
            alike.setdefault((identity_of(row), self.groups_of(record)), []).append(row)
        return alike[min(alike, key=lambda key: (-len(alike[key]), repr((*key[0], key[1]))))]

    def rows(self, record: Record, metric: str, group: str) -> list[Measured]:
        """A record's rows of one metric and group of the table."""
        return self._named(record).get((metric, group), [])

    def all_rows(self, metric: str, group: str, step: int | None = None) -> list[Measured]:
        """The rows of one metric and group in all records, or those of one step."""
        records = self.every(step)
        if len(records) == len(self.every()):
            step = None  # a table of one step asks for nothing else
        if (found := self._whole.get(step)) is None:
            found = self._whole[step] = {name: [] for name in self._names}
            for record in records:
                for name, rows in self._named(record).items():
                    found[name] += rows
        return found.get((metric, group), [])

    def _named(self, record: Record) -> dict[tuple[str, str], list[Measured]]:
        known = self._rows.get(record["digest"])
        if known is None:  # those of the table only: a record may hold hundreds
            found = named(record["body"]["rows"], self._names)
            known = self._rows[record["digest"]] = {}
            for name, rows in found.items():
                known[name] = [(record, row) for row in rows]
        return known

    # --- columns ---

    def columns(self, kinds: Sequence[str] | None, groups: Sequence[str]) -> tuple[Column, ...]:
        """Metrics x groups; each column is what most records say it is, and the rest will be refused.

        Of the definition's `kinds` those that are measured here, and whatever else was asked for beyond the protocol's own.
        """
        kinds, groups = self._kinds(kinds), group_names(self.plan.evaluation, groups)
        self._names = frozenset((kind, group) for kind in kinds for group in groups)
        return tuple(
            self._column(kind, group, self.all_rows(kind, group)) for kind in kinds for group in groups
        )

    def _kinds(self, wanted: Sequence[str] | None) -> list[str]:
        planned = self._planned()
        if planned is None:  # planned by code that did not say what it measures
            held = dict.fromkeys(row["metric"] for record in self.every() for row in record["body"]["rows"])
            return list(held) if wanted is None else [k for k in wanted if k in held] or list(wanted)
        if wanted is None:
            return planned
        protocol = PROTOCOLS.get(self.plan.evaluation["protocol"])
        usual = () if protocol is None else protocol.metrics
        return [*(k for k in wanted if k in planned), *(k for k in planned if k not in (*wanted, *usual))]

    def _planned(self) -> list[str] | None:
        """What the evaluations of this section measure, in their order; None where one does not say."""
        own = [e for cell in self.plan.cells for e in cell["evaluations"] if e["id"] in self.plan.ids]
        if not own or any("metrics" not in evaluation for evaluation in own):
            return None
        return list(dict.fromkeys(kind for evaluation in own for kind in evaluation["metrics"]))

    def _column(self, kind: str, group: str, found: Sequence[Measured]) -> Column:
        if not found:
            extractor = self.plan.evaluation["extractor"]
            name = metric_name(kind, f"{extractor['name']}@{extractor['sha256']}")
            return Column(kind, name, group, "", 1, None, None, None, None)
        found = [each for each in found if "external" not in each[0]["body"]] or found  # what is ours decides
        like = self._main(found)
        row, n_floor = like[0], most_common([row["n_floor"] for row in like])
        return Column(
            metric=kind,
            n_floor=n_floor,
            estimator=row.get("estimator"),
            **{key: row[key] for key in ("name", "group", "better", "scale", "k", "n_gen", "n_ref")},
        )

    # --- values ---

    def measured(self, cell: Planned, step: int, column: Column) -> list[Measured]:
        """Every value of a column that the records of a cell give: those that fit the column first, then the latest first."""
        found = self.of(cell, step).get((column.metric, column.group), [])
        if len(found) < 2:
            return found
        return sorted(found, key=lambda each: bool(self.differences(*each, column)))  # a stable sort

    def of(self, cell: Planned, step: int) -> dict[tuple[str, str], list[Measured]]:
        """The rows of all records of a cell at a step, by metric and group."""
        place = cell["cell"], step
        if (known := self._joined.get(place)) is None:
            records = self.records(cell, step)
            known = self._named(records[0]) if len(records) == 1 else {}
            for name in self._names if len(records) > 1 else ():
                known[name] = [each for record in records for each in self.rows(record, *name)]
            self._joined[place] = known
        return known

    def differences(self, record: Record, row: Mapping[str, Any], column: Column) -> list[str]:
        """What keeps a value out of its column, in words; what the column has comes first."""
        apart = self._apart_of(record)
        if identity_of(row) == column.identity:
            return apart
        texts = [
            f"{key} ({_said(getattr(column, key))}, here {_said(row.get(key))})"
            for key in ROW_KEYS
            if row.get(key) != getattr(column, key)
        ]
        return texts + apart

    def _apart_of(self, record: Record) -> list[str]:
        """What keeps all values of a record out of the section's columns."""
        if (known := self._apart.get(record["digest"])) is None:
            known = self._apart[record["digest"]] = list(self._differs(record))
        return known

    def _differs(self, record: Record) -> Iterator[str]:
        if (groups := self.groups_of(record)) != self.groups:
            yield f"group classes ({self.groups}, here {groups})"
        for name, sha256 in (record["body"].get("real") or {}).items():
            if self.real.get(name, sha256) != sha256:
                yield f"{name} images ({self.real[name][:8]}, here {sha256[:8]})"
        # An adaptive sampler spends what it needs, and w = 1 needs half of what other guidance does.
        fixed = fixed_steps(self.plan.evaluation) and self.plan.picks is None
        held = fixed and "external" not in record["body"]
        if held and (nfe := nfe_text(record)) != self.nfe:
            yield f"evaluations per image ({self.nfe}, here {nfe})"


def identity_of(row: Mapping[str, Any]) -> tuple[Any, ...]:
    """What a row says of itself by ROW_KEYS; None for what it leaves out."""
    try:
        return _STATED(row)
    except KeyError:
        return tuple(map(row.get, ROW_KEYS))


def _own(records: Iterable[Record]) -> list[Record]:
    """Those of what was trained here; all, where there are only others."""
    known = list(records)
    return [record for record in known if "external" not in record["body"]] or known


def seed_value(seed: int | None, cell: str, record: Record, row: Mapping[str, Any]) -> SeedValue:
    """Older records have neither errors nor folds."""
    folds = row.get("folds") or ()
    sound = bool(folds) and None not in folds and all(map(math.isfinite, folds))
    kept = tuple(map(float, folds)) if sound else None
    value = float(row["value"])
    return SeedValue(
        seed, value, cell, record["digest"], row.get("se"), row.get("corrected"), kept, row["n_gen"]
    )


def most_common(items: Sequence[Item]) -> Item:
    """The commonest of some texts or numbers; of equally common ones the first in the alphabet, or the least."""
    counts = Counter(items)
    return min(counts, key=lambda item: (-counts[item], item))


def nfe_text(record: Record) -> str:
    """Evaluations of the network per image, as recorded: "40", "93.25"."""
    found = record["body"].get("nfe")
    return "not named" if found is None else f"{found:.6g}"


def _said(value: Any) -> str:
    return "not named" if value is None else str(value)
