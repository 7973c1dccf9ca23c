"""What is not as before, in words: code that makes records, defaults of settings, and values that no cell of the store has yet."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from ltbench import provenance
from ltbench.plan.planned import Planned
from ltbench.provenance.changes import changes
from ltbench.spec.types import spell


def evaluation_change(kind: str, old: dict[str, Any] | None) -> str:
    """What changed in the code that makes records of a kind, as far as the record's envelope tells."""
    what = "illustration" if kind == "illustration" else "evaluation"
    said = changes({what: old}, {what: provenance.measuring_code(kind)}) if old else []
    return f"{what} code changed: {said[0]}" if said else f"{what} code changed"


def settings_changes(old: dict[str, Any], new: dict[str, Any], above: str = "") -> list[str]:
    """Values that differ between two settings of one identity, i.e. defaults that have changed."""
    said = []
    for key in sorted({*old, *new}) if old != new else ():
        before, after = old.get(key), new.get(key)
        if isinstance(before, dict) and isinstance(after, dict):
            said += settings_changes(before, after, f"{above}{key}.")
        elif key not in old:
            said.append(f"{above}{key} is new, with default {spell(after)}")
        elif key not in new:
            said.append(f"{above}{key} is gone")
        elif before != after:
            said.append(f"the default of {above}{key} was {spell(before)} and is {spell(after)}")
    return said


def novelty(planned: Sequence[Planned]) -> Iterator[Planned]:
    """Says of a new cell which value of an axis nothing in the store has yet: `seed 2 is new`."""
    if not any(item.state == "new" for item in planned):
        yield from planned
        return
    known: dict[str, dict[str, set[str]]] = {}
    seen: set[tuple[str, str, int]] = set()  # thousands of cells have the values of the spec's few lists
    for item in planned:
        if item.state != "new":
            part = item.cell.part
            axes = known.setdefault(part, {axis: set() for axis in item.cell.axes})
            for axis, value in item.cell.axes.items():
                if (key := (part, axis, id(value))) not in seen:
                    seen.add(key)
                    axes[axis].add(spell(value))
    for item in planned:
        part = known.get(item.cell.part)
        if item.state == "new" and part and item.cell.missing is None and item.cause is None:
            fresh = [f"{axis} {spell(v)}" for axis, v in item.cell.axes.items() if spell(v) not in part[axis]]
            yield replace(item, reason=" and ".join(fresh) + " is new") if fresh else item
        else:
            yield item
