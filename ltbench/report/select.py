"""Which records speak for a planned cell at a step under an evaluation, when the store holds several."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ltbench.report.identity import section_of

Record = Mapping[str, Any]
Key = tuple[str, int, str]  # cell, step, section id (`identity.section_id`)


@dataclass
class Selected:
    """What the store says, by key. `chosen`: the latest record of every evaluation of the key, the latest first; evaluations
    of one key differ only in which metrics they hold."""

    chosen: dict[Key, list[Record]] = field(default_factory=dict)
    others: dict[str, list[Record]] = field(
        default_factory=dict
    )  # passed over, by the digest of the one that counts
    named: dict[Key, Record] = field(default_factory=dict)  # by the evaluation id that a record states
    points: dict[tuple[str, int], list[str]] = field(
        default_factory=dict
    )  # the section ids of a (cell, step)
    train: dict[tuple[str, int], Record] = field(default_factory=dict)
    selections: dict[tuple[str, int], list[Record]] = field(
        default_factory=dict
    )  # of guidance; the latest of each rule and search, the latest first
    illustrations: dict[tuple[str, int], list[Record]] = field(
        default_factory=dict
    )  # the latest of each description, the latest first

    @property
    def empty(self) -> bool:
        """Whether the store says nothing."""
        return not (self.chosen or self.train or self.selections or self.illustrations)

    def at(self, cell: str, step: int, section: str) -> list[Record]:
        """The records of a key, the latest first; empty where there is none."""
        return self.chosen.get((cell, step, section), [])


def select(records: Iterable[Record]) -> Selected:
    """The latest record of every (cell, step, evaluation); equal bodies count once. The order of `records` does not matter.

    Latest is by the attempt's end, then by attempt, then by digest: two runs of one cell differ in code or device, both are
    real, and the table says that there is another.
    """
    evaluations: dict[tuple[Key, str], dict[str, Record]] = defaultdict(dict)
    trains: dict[tuple[str, int], dict[str, Record]] = defaultdict(dict)
    searches: dict[tuple[str, int, str, str], dict[str, Record]] = defaultdict(dict)
    pictured: dict[Key, dict[str, Record]] = defaultdict(dict)
    for record in records:
        body = record["body"]
        where = body["cell"], int(body["step"])
        if body["kind"] == "evaluation":
            _keep_latest(evaluations[(*where, section_of(record)), body["evaluation"]["id"]], record)
        elif body["kind"] == "train":
            _keep_latest(trains[where], record)
        elif body["kind"] == "selection":
            asked = "/".join(str(body[key]) for key in ("rule", "metric", "group"))
            _keep_latest(searches[(*where, asked, body["evaluation"]["id"])], record)
        elif body["kind"] == "illustration":
            _keep_latest(pictured[(*where, body["evaluation"]["id"])], record)
    found = Selected()
    _take_evaluations(found, evaluations)
    found.train = {key: max(trains[key].values(), key=age) for key in sorted(trains)}
    for key in sorted(searches):
        found.selections.setdefault(key[:2], []).append(max(searches[key].values(), key=age))
    for key in sorted(pictured):
        found.illustrations.setdefault(key[:2], []).append(max(pictured[key].values(), key=age))
    for several in (*found.selections.values(), *found.illustrations.values()):
        several.sort(key=age, reverse=True)
    return found


def _take_evaluations(found: Selected, evaluations: Mapping[tuple[Key, str], Mapping[str, Record]]) -> None:
    for key, name in sorted(evaluations):
        ranked = sorted(evaluations[key, name].values(), key=age)
        latest, cell, step = ranked[-1], key[0], key[1]
        found.chosen.setdefault(key, []).append(latest)
        found.named[cell, step, name] = latest
        if len(ranked) > 1:
            found.others[latest["digest"]] = ranked[:-1]
    for key in found.chosen:
        found.chosen[key].sort(key=age, reverse=True)
        found.points.setdefault(key[:2], []).append(key[2])


def _keep_latest(known: dict[str, Record], record: Record) -> None:
    """Equal bodies from two stores or attempts are one record; its envelope is the latest."""
    digest = record["digest"]
    if digest not in known or age(record) > age(known[digest]):
        known[digest] = record


def age(record: Record) -> tuple[float, int, str]:
    """Sorts records from the oldest to the latest."""
    envelope = record.get("envelope") or {}
    return float(envelope.get("finished") or 0.0), int(envelope.get("attempt") or 0), record["digest"]
