"""What a report is made from, gathered: planned cells, the store's records of them, how unfinished ones stand."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from ltbench.plan import Cell, Plan
from ltbench.status import Row, of_plan

if TYPE_CHECKING:
    from ltbench.report.table import Inputs
    from ltbench.store import Store


def gather(found: Plan, store: Store) -> Inputs:
    """Everything `ltbench.report` wants to know about a planned benchmark."""
    from ltbench.report.table import Inputs

    rows = {row.cell: row for row in of_plan(found)}
    unsupported = {cell: row.reason for cell, row in rows.items() if row.cause == "unsupported"}
    return Inputs(
        name=found.spec.name,
        title=found.spec.title,
        planned=[_planned(item.cell, unsupported) for item in found.cells],
        records=[record for cell in rows for record in _records(store, cell)],
        states={
            cell: _state(row) for cell, row in rows.items() if row.state in ("running", "failed", "partial")
        },
    )


def _planned(cell: Cell, unsupported: dict[str, str]) -> dict[str, Any]:
    return {
        "cell": cell.id,
        "label": cell.label,
        "part": cell.part,
        "settings": cell.settings,
        "milestones": list(cell.milestones),
        "evaluations": [{"id": key, **value} for key, value in cell.evaluations.items()],
        "unsupported": unsupported.get(cell.id),
    }


def _records(store: Store, cell: str) -> list[dict[str, Any]]:
    """The records of every run of a cell that count: code that moved on empties no table, it is footnoted."""
    return [
        {"body": record.body, "digest": record.digest, "envelope": record.envelope}
        for run in store.runs(cell)
        for record in run.records()
    ]


def _state(row: Row) -> dict[str, str]:
    """`running 63 %`, `failed nan`: what an empty entry of the table says."""
    if row.state == "running" and row.progress is not None:
        text = f"running {row.progress:.0%}"
    elif row.state == "partial":
        text = "interrupted"
    else:
        text = f"{row.state} {row.cause}" if row.cause else row.state
    return {"text": text, "detail": row.reason}
