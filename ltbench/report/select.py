"""Which record speaks for a planned cell at a step under an evaluation, when the store holds several."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

Record = Mapping[str, Any]
Key = tuple[str, int, str]  # cell, step, evaluation id


@dataclass
class Selected:
    """One evaluation record per key, and what was passed over for it."""

    chosen: dict[Key, Record] = field(default_factory=dict)
    others: dict[Key, list[Record]] = field(default_factory=dict)
    train: dict[tuple[str, int], Record] = field(default_factory=dict)


def select(records: Iterable[Record]) -> Selected:
    """The latest record of every (cell, step, evaluation); equal bodies count once. The order of `records` does not matter.

    Latest is by the attempt's end, then by attempt, then by digest: two runs of one cell differ in code or device, both are
    real, and the table says that there is another.
    """
    evaluations: dict[Key, dict[str, Record]] = defaultdict(dict)
    trains: dict[tuple[str, int], dict[str, Record]] = defaultdict(dict)
    for record in records:
        body = record["body"]
        if body["kind"] == "evaluation":
            key = (body["cell"], int(body["step"]), body["evaluation"]["id"])
            _keep_latest(evaluations[key], record)
        elif body["kind"] == "train":
            _keep_latest(trains[body["cell"], int(body["step"])], record)
    found = Selected()
    for key in sorted(evaluations):
        ranked = sorted(evaluations[key].values(), key=_age)
        found.chosen[key] = ranked[-1]
        if len(ranked) > 1:
            found.others[key] = ranked[:-1]
    for key in sorted(trains):
        found.train[key] = max(trains[key].values(), key=_age)
    return found


def _keep_latest(known: dict[str, Record], record: Record) -> None:
    """Equal bodies from two stores or attempts are one record; its envelope is the latest."""
    digest = record["digest"]
    if digest not in known or _age(record) > _age(known[digest]):
        known[digest] = record


def _age(record: Record) -> tuple[float, int, str]:
    envelope = record.get("envelope") or {}
    return float(envelope.get("finished") or 0.0), int(envelope.get("attempt") or 0), record["digest"]
