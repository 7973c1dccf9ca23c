"""What a report is made from, gathered: planned cells, the store's records of them, how unfinished ones stand."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from ltbench.canonical import canonical_json
from ltbench.errors import UsageError
from ltbench.files import Unreadable
from ltbench.plan import Plan
from ltbench.spec.cells import Cell
from ltbench.status import Row, of_plan

if TYPE_CHECKING:
    from collections.abc import Sequence

    from ltbench.report.table import Inputs
    from ltbench.store import Records, Run, Store


def gather(found: Plan, store: Store) -> Inputs:
    """Everything `ltbench.report` wants to know about a planned benchmark."""
    from ltbench.report.table import Inputs

    rows = {row.cell: row for row in of_plan(found)}
    held = {cell: _held(store, cell) for cell in rows}
    titles = {part.name: part.title for part in found.spec.parts if part.title != found.spec.title}
    unsupported = {cell: row.reason for cell, row in rows.items() if row.cause == "unsupported"}
    return Inputs(
        name=found.spec.name,
        title=found.spec.title,
        planned=[
            {**_planned(item.cell, titles.get(item.cell.part), unsupported), "benchmark": found.spec.name}
            for item in found.cells
        ],
        records=[plain for runs in held.values() for records, why in runs for plain in _plain(records, why)],
        problems=[
            line for cell, runs in held.items() for line in _problems(cell, [records for records, _ in runs])
        ],
        states={
            cell: _state(row)
            for cell, row in rows.items()
            if row.state in ("running", "failed", "partial") or row.cause == "impossible"
        },
        externals=_externals(found, store),
        calibrations=_calibrations(found, store),
        benchmarks=(found.spec.name,),
    )


def gather_all(plans: Sequence[Plan], store: Store, name: str) -> Inputs:
    """One report's inputs from several benchmarks; a record or a damaged file that they share counts once."""
    found = [gather(plan, store) for plan in plans]
    records = {id_: record for each in found for id_, record in _by_place(each.records)}
    externals = {id_: record for each in found for id_, record in _by_place(each.externals)}
    return replace(
        found[0],
        name=name,
        planned=[cell for each in found for cell in each.planned],
        records=list(records.values()),
        externals=list(externals.values()),
        states={cell: state for each in found for cell, state in each.states.items()},
        problems=list(dict.fromkeys(line for each in found for line in each.problems)),
        calibrations=list({c["name"]: c for each in found for c in each.calibrations}.values()),
        benchmarks=tuple(dict.fromkeys(name for each in found for name in each.benchmarks)),
    )


def _calibrations(found: Plan, store: Store) -> list[dict[str, Any]]:
    """Those of training steps that could be of this benchmark: of its networks. A damaged one is `plan`'s to name."""
    from ltbench.cost.calibrations import read_all

    networks = {item.cell.settings["network"] for item in found.cells}
    return [
        {
            "name": each.name,
            "what": each.what,
            "device": each.device,
            "threads": each.threads,
            "result": each.result,
            "date": each.envelope.get("date") or "",
        }
        for each in read_all(store)[0]
        if each.kind == "train" and each.what["network"] in networks
    ]


def _by_place(records: Sequence[Any]) -> list[tuple[tuple[Any, ...], Any]]:
    """Records of one body may stand in two attempts, and each has its own envelope."""
    return [
        ((record["digest"], record["body"]["run"], (record.get("envelope") or {}).get("attempt")), record)
        for record in records
    ]


def _externals(found: Plan, store: Store) -> list[dict[str, Any]]:
    """Records of what was not trained here, of the benchmark's data sets and protocols."""
    cells = [item.cell for item in found.cells]
    protocols = {each["protocol"] for cell in cells for each in cell.evaluations.values()}
    return [
        record
        for cell in external_cells(cells, store)
        for record in records_of(store, cell)
        if record["body"]["evaluation"].get("protocol") in protocols
    ]


def external_cells(cells: Sequence[Cell], store: Store) -> list[str]:
    """Ids of what was not trained here and may stand in a report of `cells`: it is of their data sets."""
    datasets = {canonical_json(cell.settings["dataset"]) for cell in cells}
    own = {cell.id for cell in cells}
    return [cell for cell in store.cells() if cell not in own and _is_external(store, cell, datasets)]


def _is_external(store: Store, cell: str, datasets: set[bytes]) -> bool:
    try:
        settings = store.cell(cell)["settings"]
    except Unreadable:
        return False  # the store's own check names it
    except UsageError:
        return False  # cancelled before it had begun: a failure is all there is of it
    return "external" in settings and canonical_json(settings["dataset"]) in datasets


def _planned(cell: Cell, title: str | None, unsupported: dict[str, str]) -> dict[str, Any]:
    described = [{"id": key, **value} for key, value in cell.evaluations.items()]
    return {
        "cell": cell.id,
        "label": cell.label,
        "part": cell.part,
        "part_title": title,
        "settings": cell.settings,
        "milestones": list(cell.milestones),
        "evaluations": [each for each in described if "illustrate" not in each],
        "illustrations": [each for each in described if "illustrate" in each],
        "unsupported": unsupported.get(cell.id),
        "recipe": cell.recipe,
    }


def records_of(store: Store, cell: str) -> list[dict[str, Any]]:
    """The records of every run of a cell that count: code that moved on empties no table, it is footnoted."""
    return [plain for records, why in _held(store, cell) for plain in _plain(records, why)]


def _held(store: Store, cell: str) -> list[tuple[Records, str | None]]:
    """The records of each run of a cell, and why somebody accepted that run for other code."""
    return [(run.records(), _acceptance(run)) for run in store.runs(cell)]


def _acceptance(run: Run) -> str | None:
    try:
        return (run.accepted() or {}).get("because")
    except Unreadable:
        return None  # accepts nothing; the store's own check names it


def _plain(records: Records, why: str | None) -> list[dict[str, Any]]:
    accepted = {} if why is None else {"accepted": why}
    return [
        {"body": each.body, "digest": each.digest, "envelope": each.envelope, **accepted} for each in records
    ]


def _problems(cell: str, found: Sequence[Records]) -> list[str]:
    """Records that cannot be trusted, by the names that are the same on every machine."""
    damaged = [
        f"{cell[:8]}, {item.path.name}: {item.reason}" for records in found for item in records.damaged
    ]
    later = "another layer of the store has a later record of it"
    damaged += [f"{cell[:8]}, {r.path.name}: {later}" for records in found for r in records.shadowed]
    two = "one attempt wrote two different bodies for it; neither counts"
    return damaged + [
        f"{cell[:8]}, {record.path.name}: {two}" for records in found for record in records.conflicts
    ]


def _state(row: Row) -> dict[str, str]:
    """`running 63 %`, `failed nan`: what an empty entry of the table says."""
    from ltbench.report.words import INTERRUPTED

    if row.state == "running" and row.progress is not None:
        text = f"running {row.progress:.0%}"
    elif row.cause == "impossible":
        text = "cannot run here"
    elif row.state == "partial":
        text = INTERRUPTED
    else:
        text = f"{row.state} {row.cause}" if row.cause else row.state
    return {"text": text, "detail": row.reason}
