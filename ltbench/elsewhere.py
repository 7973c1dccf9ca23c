"""Milestones that were trained where this store is not: their records came in an archive or lie in a read-only layer.

Their weights can be anywhere but here, so that whatever needs them is not a reason to train here again.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from ltbench.files import Unreadable
from ltbench.store import Run
from ltbench.store.records import Glimpse, Record


def origins(run: Run, trained: Iterable[Record | Glimpse]) -> dict[int, str]:
    """Of training records of a run: step -> where it came from; without those that were made in this store."""
    return {record.step: origin for record in trained if (origin := _origin(run, record))}


def _origin(run: Run, record: Record | Glimpse) -> str:
    path = record.path if isinstance(record, Record) else Path(record.place)
    layer = run.store.layer_of(path)
    if layer != "own":
        return f"the store {layer}"
    try:
        imported = record.envelope.get("imported")
    except (FileNotFoundError, Unreadable):
        return ""  # the store's own check names it
    return f"the archive {imported['from']}" if isinstance(imported, dict) and "from" in imported else ""


def sentence(origins: Mapping[int, str]) -> str:
    """What `plan`, `status` and `why` say of such steps; "" of none."""
    if not origins:
        return ""
    steps = ", ".join(f"{step:,}" for step in sorted(origins))
    known = " and ".join(sorted(set(origins.values())))
    return f"the weights of step {steps} are not here but where it was trained (its record is from {known})"
