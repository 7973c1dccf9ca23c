"""Best and second best where the difference is real, and ties where it is not."""

from __future__ import annotations

import math
from collections.abc import Sequence

from ltbench.report.differences import difference
from ltbench.report.table import Column, Entry


def marks(entries: Sequence[Entry], column: Column) -> dict[int, str]:
    """{row: "best" | "second" | "tie"} for one column with a direction; the rule of `differences.difference` decides.

    Best is the row of the best mean, if it is better than every other row. If it is not, it and the rows that it is not better
    than are a tie. Second is the same among the rows without the best. A row that cannot be compared with the leader (no
    common seed, no error) is neither beaten nor tied, and keeps the leader from its mark. Where there is no best there is no
    second, and the last of two rows is never called second best. The order of rows does not matter.
    """
    if column.better not in ("lower", "higher", "zero"):
        return {}
    rows = [row for row, entry in enumerate(entries) if entry.values]
    found: dict[int, str] = {}
    for place in ("best", "second"):
        if len(rows) < 2:
            break
        leaders = _leaders(rows, entries, column)
        verdicts = [
            (row, (gap := difference(entries[leader], entries[row], column)) and gap.verdict)
            for leader in leaders
            for row in rows
            if row != leader
        ]
        if len(leaders) > 1 or any(verdict != "better" for _, verdict in verdicts):
            tied = {row for row, verdict in verdicts if verdict in ("tie", "worse")}
            return {**found, **dict.fromkeys(sorted({*leaders, *tied}), "tie")} if tied else found
        found[leaders[0]] = place
        rows.remove(leaders[0])
    return found


def _leaders(rows: Sequence[int], entries: Sequence[Entry], column: Column) -> list[int]:
    """The rows of the best mean: one, unless means are equal."""
    scores = {row: _score(entries[row], column) for row in rows}
    best = min(scores.values())
    return [row for row in rows if scores[row] == best]


def _score(entry: Entry, column: Column) -> float:
    """Lower is better: the mean, its negative, or the mean distance from zero."""
    turn = {"higher": -1.0}.get(column.better, 1.0)
    values = [abs(v.value) if column.better == "zero" else turn * v.value for v in entry.values]
    return math.fsum(values) / len(values)
