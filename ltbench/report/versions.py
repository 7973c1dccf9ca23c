"""A footnote where the records of a section were made with other versions of the packages that numbers depend on."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Record = Mapping[str, Any]


def mixed_versions(rows: Sequence[tuple[str, Sequence[Record]]]) -> tuple[str, list[int]] | None:
    """(footnote, places of the rows that it belongs on) for labelled rows with their records; None where all agree.

    The versions that most records share come first; rows with any others carry the note. Records that name none are left out.
    """
    held = {}
    for _, records in rows:
        for record in records:
            for name, version in _versions(record).items():
                held.setdefault(name, Counter())[version] += 1
    mixed = {name: counts for name, counts in sorted(held.items()) if len(counts) > 1}
    if not mixed:
        return None
    usual = {name: min(counts, key=lambda v, c=counts: (-c[v], v)) for name, counts in mixed.items()}
    places, others = [], {}
    for place, (label, records) in enumerate(rows):
        differing = {
            f"{name} {version}"
            for record in records
            for name, version in _versions(record).items()
            if usual.get(name, version) != version
        }
        if differing:
            places.append(place)
            others.setdefault(", ".join(sorted(differing)), []).append(label)
    most = ", ".join(f"{name} {version}" for name, version in usual.items())
    said = "; ".join(f"{text} in {', '.join(labels)}" for text, labels in sorted(others.items()))
    return f"Mixed versions: {most} in most records; {said}.", places


def _versions(record: Record) -> dict[str, str]:
    found = (record.get("envelope") or {}).get("versions") or {}
    return {str(name): str(version) for name, version in found.items()}


def changed_versions(records: Sequence[Any], now: Callable[[], Mapping[str, str]]) -> list[str]:
    """ "torch was 2.6.0 and is 2.7.1" for the last of some records of a store, against the versions here."""
    told = [record for record in records if record.envelope.get("versions")]
    if not told:
        return []
    last = max(told, key=lambda record: (float(record.envelope.get("finished") or 0.0), record.digest))
    then, here = last.envelope["versions"], now()
    return [
        f"{name} was {then[name]} and is {here.get(name, 'not installed')}"
        for name in sorted(then)
        if then[name] != here.get(name)
    ]
