"""What lines of a sheet must share to be compared: what differs is refused, or marked and kept out of the ranking."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ltbench.canonical import canonical_json, digest
from ltbench.protocols import sampled_in
from ltbench.report.axes import Planned, compared, flat, setting_text
from ltbench.report.columns import most_common, nfe_text
from ltbench.report.identity import ROW_KEYS, differing, fixed_steps, groups_id
from ltbench.report.select import Record
from ltbench.report.table import Column, Entry, Section

# How an evaluation measures, beside what its column says: other values are other metrics.
MEASURED = (
    "protocol",
    "samples",
    "classes",
    "extractor",
    "reference",
    "crop",
    "quantise",
    "estimators",
    "groups",
)
_NOT_HELD = ("seed", "dataset.name")
_NAMES = {"resample": "resampling", "init": "initialisation", "dataset.imbalance": "training set's imbalance"}


@dataclass(frozen=True)
class Facts:
    """Of one line in one column: how it was trained, how it was sampled and measured. machine: what a speed is of; "" of other values,
    and where nothing ran yet."""

    training: Mapping[str, Any]
    evaluation: Mapping[str, Any]
    machine: str = ""

    @property
    def key(self) -> str:
        """Lines of one key may be ranked against each other."""
        return digest([dict(self.training), dict(self.evaluation), self.machine])


def facts_of(cell: Planned, step: int, evaluation: Mapping[str, Any], varies: Iterable[str]) -> Facts:
    """The settings of a planned cell that all rows of a table should share, the images seen at `step`, and the evaluation."""
    skip = {*_NOT_HELD, *varies}
    known = {
        name: value
        for name, value in flat(compared(cell["settings"]))
        if name not in skip and not name.startswith("method.")
    }
    known["images seen"] = int(cell["settings"]["train"]["batch"]) * step
    shared = {
        key: plain_value(value)
        for key, value in evaluation.items()
        if key not in ("id", "metrics", "search") and key not in skip - set(_NOT_HELD)
    }
    if evaluation and "precision" not in skip:  # one that an evaluation leaves open follows the training
        shared["precision"] = sampled_in(evaluation, cell["settings"]["train"].get("precision"))
    return Facts(known, shared)


def plain_value(value: Any) -> Any:
    """A part of an evaluation with a name and parameters, as a guidance schedule is, as "cosine" or "interval, low 0.2"."""
    if not isinstance(value, Mapping) or "name" not in value or "sha256" in value:
        return value
    stated = [
        f"{key} {setting_text(each)}"
        for key, each in sorted(value.items())
        if key != "name" and each is not None
    ]
    return ", ".join([str(value["name"]), *stated])


def training_differences(line: Facts, base: Facts) -> list[str]:
    """ "resampling (none, here 0.1)" for every setting of the training; what the baseline has comes first."""
    names = sorted({*line.training, *base.training})
    return [
        f"{_NAMES.get(name, name)} ({_said(name, base)}, here {_said(name, line)})"
        for name in names
        if canonical_json(line.training.get(name)) != canonical_json(base.training.get(name))
    ]


def _said(name: str, facts: Facts) -> str:
    value = facts.training.get(name)
    if name == "images seen":
        return f"{value:,}"
    return "from scratch" if name == "init" and value is None else setting_text(value)


def sampling_differences(line: Facts, base: Facts) -> list[str]:
    """The same for what images an evaluation draws; how it measures them is `Measure`."""
    names = sorted({*line.evaluation, *base.evaluation} - set(MEASURED))
    return differing(line.evaluation, base.evaluation, names)


def machine_differences(line: Facts, base: Facts) -> list[str]:
    """The same for what two speeds were measured on."""
    if "" in (line.machine, base.machine) or line.machine == base.machine:
        return []
    return [f"machine ({base.machine}; here {line.machine})"]


@dataclass(frozen=True)
class Measure:
    """How a value was measured: it must be the same for every value of a column."""

    column: Column
    evaluation: Mapping[str, Any]
    groups: str
    real: str
    nfe: str  # "" where it may differ: an adaptive sampler, or guidance that each row chose

    @property
    def key(self) -> str:
        """Equal for values of one measure."""
        kept = {key: self.evaluation[key] for key in MEASURED if key in self.evaluation}
        known = [getattr(self.column, key) for key in ROW_KEYS]
        return canonical_json([known, kept, self.groups, self.real, self.nfe]).decode()


def measure_of(
    entry: Entry, column: Column, section: Section, records: Mapping[str, Record]
) -> Measure | None:
    """Of an entry with a value; by the first of its records, for a section has refused what differs inside it."""
    record = next((records[value.digest] for value in entry.values if value.digest in records), None)
    if record is None:
        return None
    real = digest(record["body"].get("real") or {})[:8]
    held = fixed_steps(section.evaluation) and not section.chosen_by
    nfe = nfe_text(record) if held else ""
    return Measure(column, section.evaluation, groups_id(record), real, nfe)


def commonest(measures: Sequence[Measure]) -> Measure | None:
    """The one that most values share."""
    if not measures:
        return None
    main = most_common([each.key for each in measures])
    return next(each for each in measures if each.key == main)


def measure_differences(here: Measure, there: Measure) -> list[str]:
    """Why a value is refused, in words; `there` is what its column has."""
    found = [
        f"{key} ({_named(getattr(there.column, key))}, here {_named(getattr(here.column, key))})"
        for key in ROW_KEYS
        if getattr(there.column, key) != getattr(here.column, key)
    ]
    known = sorted(key for key in MEASURED if key in {**here.evaluation, **there.evaluation})
    found += differing(here.evaluation, there.evaluation, known)
    for name, one, other in (
        ("group classes", there.groups, here.groups),
        ("real images", there.real, here.real),
        ("evaluations per image", there.nfe, here.nfe),
    ):
        if one != other and "" not in (one, other):
            found.append(f"{name} ({one}, here {other})")
    return found


def _named(value: Any) -> str:
    return "not named" if value is None else str(value)
