"""Why one cell stands as it does: its failures, what changed since its runs were made, and taking older results as good."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ltbench.cli.cell import content, present_code
from ltbench.cli.output import clip, out, plural
from ltbench.errors import LtbenchError, UsageError

if TYPE_CHECKING:
    from ltbench.store import Run, Store


def reasons(store: Store, cell: str) -> dict[str, Any]:
    """Why a cell stands as it does: failures of the present run, and per run which code, defaults and versions changed since."""
    from ltbench.provenance import surroundings
    from ltbench.report.versions import changed_versions

    settings = content(store, cell)["settings"]
    present, code = present_code(settings)
    runs = store.runs(cell)
    failures = [
        {**failure, "later": _later(run, failure)}
        for run in runs
        if run.run == present
        for failure in run.failures()
    ]
    changed = {
        run.run: _run_changes(run, code, settings)
        for run in runs
        if run.run != present and isinstance(code, dict)
    }
    return {
        "cell": cell,
        "present_run": present,
        "exists": present in {run.run for run in runs},
        "unusable": code if isinstance(code, str) else None,
        "failures": failures,
        "changed": changed,
        "evaluations": {run.run: lines for run in runs if (lines := _evaluation_changes(run))},
        "versions": {
            run.run: lines
            for run in runs
            if (lines := changed_versions(run.records(), surroundings.versions))
        },
        "accepted": {run.run: (run.accepted() or {}).get("because") for run in runs},
        "elsewhere": {run.run: line for run in runs if run.run == present and (line := _elsewhere(run))},
        "outgrown": [run.run for run in runs if isinstance(code, dict) and _is_outgrown(run, code)],
        "records": sum(len(run.records()) for run in runs),
    }


def _is_outgrown(run: Run, code: Mapping[str, Any]) -> bool:
    """Whether a run was accepted, but for other code than the present."""
    from ltbench import provenance

    kept = (run.accepted() or {}).get("code") or {}
    now = {part: entry["digest"] for part, entry in {**code, **provenance.evaluation_code()}.items()}
    return any(now.get(part) != digest for part, digest in kept.items() if part != "illustration")


def _elsewhere(run: Run) -> str:
    """Of milestones whose weights are where they were trained, and not here."""
    from ltbench import elsewhere

    trained = [
        record for record in run.records("train") if not (run.milestones / f"step-{record.step:09d}").is_dir()
    ]
    return elsewhere.sentence(elsewhere.origins(run, trained))


def _run_changes(run: Run, code: Mapping[str, Any], settings: Mapping[str, Any]) -> list[str]:
    """Code and defaults of training that are other than when a run was made."""
    from ltbench.plan.changes import settings_changes
    from ltbench.provenance.changes import changes

    try:
        info = run.info()
    except LtbenchError as problem:
        return [f"it cannot be compared: {problem.message}"]
    return changes(info["code"], dict(code)) + settings_changes(info["settings"], dict(settings))


def _stale_evaluations(run: Run) -> list[Any]:
    """The evaluations, selections and illustrations of a run that other code made than the present."""
    from ltbench import provenance

    measured = [record for record in run.records() if record.kind != "train"]
    now = {kind: provenance.measuring_code(kind)["digest"] for kind in {record.kind for record in measured}}
    return [record for record in measured if record.evaluation_code != now[record.kind]]


def _evaluation_changes(run: Run) -> list[str]:
    from ltbench.plan.changes import evaluation_change

    stale = _stale_evaluations(run)
    return list(dict.fromkeys(evaluation_change(r.kind, r.envelope.get("evaluation_code")) for r in stale))


def _later(run: Run, failure: Mapping[str, Any]) -> str | None:
    """How a later attempt at the stage that failed fares; None when there was none."""
    now = run.state(failure["stage"])
    if now is None or now.attempt <= failure["attempt"]:
        return None
    return f"attempt {now.attempt} came after it: {now.state.replace('released', 'done')}"


def tell_reasons(found: Mapping[str, Any]) -> None:
    """Print what `reasons` found."""
    cell = found["cell"][:12]
    if found["unusable"]:
        out(f"{cell}: the present code cannot run it: {found['unusable']}")
    for failure in found["failures"]:
        _tell_failure(failure)
    for run, lines in found["changed"].items():
        out(f"{cell}: run {run} was made by other code{_acceptance(found, run)}")
        for line in lines or ["only what no digest sees"]:
            out(f"  {line}")
    for run, lines in found["evaluations"].items():
        out(f"{cell}: run {run} was measured by other code{_acceptance(found, run)}")
        for line in lines:
            out(f"  {line}")
    for run, lines in found["versions"].items():
        out(f"{cell}: run {run} was made with other versions: {'; '.join(lines)}")
    good = {run for run, note in found["accepted"].items() if note and run not in found["outgrown"]}
    stale = found["changed"] and not found["exists"] and not good
    if stale or set(found["evaluations"]) - good:
        out(f'next: run it again, or keep the old: python harness.py accept {cell} --because "..."')
    for line in found["elsewhere"].values():
        out(
            f"{cell}: {line}; what is on record is complete without them, new measures and pictures are made there"
        )
    if not found["failures"] and not found["changed"] and not found["evaluations"]:
        if found["exists"]:
            out(f"{cell}: no failure, and its code is the present one")
        elif found["records"]:
            out(f"{cell}: {plural(found['records'], 'record')} of it stay in the store")
        else:
            out(f"{cell}: not begun yet")


def _acceptance(found: Mapping[str, Any], run: str) -> str:
    """ " (accepted: only a comment)", and where that was for other code than the present one; "" for a run that nobody accepted."""
    note, outgrown = found["accepted"].get(run), run in found["outgrown"]
    return f" (accepted{' for code that has changed since' if outgrown else ''}: {note})" if note else ""


def _tell_failure(failure: Mapping[str, Any]) -> None:
    step = "" if failure.get("step") is None else f" at step {failure['step']}"
    out(f"{failure['stage']}, attempt {failure['attempt']}: failed{step} ({failure['cause']})")
    out(f"  {failure.get('message')}")
    if failure["later"]:
        out(f"  {failure['later']}")
    for line in (failure.get("traceback") or "").strip().splitlines()[-15:]:
        out(f"  | {line}")
    for key, value in (failure.get("evidence") or {}).items():
        if value not in (None, ""):
            out(f"  {key}: {clip(str(value), 300)}")


def accept(store: Store, cell: str, because: str) -> dict[str, Any]:
    """Mark the newest run that other code trained or measured as good for the present code. Raises UsageError when there is none."""
    from ltbench import provenance

    settings = store.cell(cell)["settings"]
    present, code = present_code(settings)
    if isinstance(code, str):
        raise UsageError(f"the present code cannot run cell {cell[:12]}: {code}")
    older = [
        run
        for run in store.runs(cell)
        if (run.run != present and run.records("evaluation")) or _stale_evaluations(run)
    ]
    if not older:
        raise UsageError(
            f"cell {cell[:12]} has no results of other code: nothing to accept",
            "`why CELL` says how it stands",
        )
    chosen = max(older, key=_finished)
    now = {**code, **provenance.evaluation_code()}
    now |= {"illustration": provenance.measuring_code("illustration")}
    chosen.accept(because, {component: entry["digest"] for component, entry in now.items()})
    return {"cell": cell, "run": chosen.run, "because": because, "of": plural(len(older), "run")}


def _finished(run: Run) -> float:
    """When the last record of a run was finished, by its own envelope."""
    ends: Sequence[float] = [float(record.envelope.get("finished") or 0.0) for record in run.records()]
    return max(ends, default=0.0)
