"""One cell from the store: what it is, what it made, why it stands as it does."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ltbench.cli.curves import line as curve_line
from ltbench.cli.output import clip, out, plural, table
from ltbench.errors import LtbenchError, UsageError

if TYPE_CHECKING:
    from ltbench.launch.slurm.seen import Task
    from ltbench.store import Run, Store


def describe(store: Store, cell: str) -> dict[str, Any]:
    """Settings, runs, records, failures and files of a cell, as plain JSON."""
    content = _content(store, cell)
    present, _ = _present(content["settings"])
    return {
        "cell": cell,
        "identity": content["identity"],
        "settings": content["settings"],
        "present_run": present,
        "runs": [_run(run, run.run == present) for run in store.runs(cell)],
        "jobs": _jobs(store, cell),
    }


def _content(store: Store, cell: str) -> dict[str, Any]:
    """Identity and settings of a cell: of one that was submitted and has not begun, as its submission holds them. Raises UsageError
    for a cell that nobody knows."""
    try:
        return store.cell(cell)
    except UsageError:
        from ltbench.launch.slurm import seen

        for task in seen.look(store.scratch, ask=False).tasks.get(cell, []):
            entry = next(entry for entry in task.entries if entry.cell == cell)
            return {"identity": entry.identity, "settings": entry.settings}
        raise


def _jobs(store: Store, cell: str) -> list[dict[str, Any]]:
    """The tasks of submissions that have the cell, the newest first, with SLURM's word for them."""
    from ltbench.launch.slurm import seen

    return [
        {
            "job": task.name,
            "class": task.kind,
            "state": _state(task),
            "alive": task.alive,
            "reason": task.state.reason if task.state else "",
            "node": task.state.node if task.state else "",
            "requeues": task.restart,
            "cause": task.cause,
            "submission": task.submission.id,
            "log": str(task.log),
        }
        for task in seen.look(store.scratch).tasks.get(cell, [])
    ]


def _state(task: Task) -> str:
    """SLURM's word; of a job that it has forgotten, or does not answer for, how the job itself said that it ended."""
    told = (task.ended or {}).get("reason")
    return str(told) if told and not task.alive and task.state is None else task.word


def _present(settings: Mapping[str, Any]) -> tuple[str | None, dict[str, Any] | str]:
    """The run that the present code would make, and that code; or None and why there is none."""
    from ltbench import provenance

    try:
        code = provenance.train_code(settings)
    except LtbenchError as error:
        return None, error.message
    return provenance.run_id(code, settings), code


def _run(run: Run, present: bool) -> dict[str, Any]:
    found = run.records()
    return {
        "run": run.run,
        "present_code": present,
        "folder": str(run.dir),
        "layers": run.layers(),
        "checkpoints": _names(run.checkpoints),
        "milestones": _names(run.milestones),
        "accepted": (run.accepted() or {}).get("because"),
        "attempts": _attempts(run),
        "curves": _curves(found),
        "grids": _grids(run, found),
        "stages": {name: vars(state) for name in run.stages() if (state := run.state(name)) is not None},
        "records": [
            {
                "kind": record.kind,
                "step": record.step,
                "evaluation": record.evaluation,
                "file": str(record.path),
                "layer": run.store.layer_of(record.path),
                "about": _about(record.body),
                "values": _values(record.body),
                "execution": record.envelope.get("execution"),
                "execution_fallback": record.envelope.get("execution_fallback", ""),
            }
            for record in found
        ],
        "damaged": [f"{each.path}: {each.reason}" for each in run.damaged()],
        "superseded": [str(record.path) for record in found.superseded],
        "conflicts": [str(record.path) for record in found.conflicts],
        "shadowed": [str(record.path) for record in found.shadowed],
        "failures": run.failures(),
    }


def _attempts(run: Run) -> list[dict[str, Any]]:
    """Who has worked on each stage, first attempt first."""
    from ltbench.store import claims

    found = []
    for stage in run.stages():
        for attempt in range(1, claims.latest_attempt(run.dir, stage) + 1):
            owner, beat = claims.owner_of(run.dir, stage, attempt)
            told = {"host": None, "pid": None, "slurm_job": None, "slurm_restart": 0} | (
                owner.json() if owner else {}
            )
            found.append(
                {
                    "stage": stage,
                    "attempt": attempt,
                    **{key: told[key] for key in ("host", "pid", "slurm_job", "slurm_restart")},
                    "outcome": beat.get("outcome"),
                    "step": beat.get("step"),
                }
            )
    return found


def _curves(found: Sequence[Any]) -> dict[str, dict[str, list[Any]]]:
    """Name -> {"step", "value"}: the loss and its terms up to the last milestone, and every metric over all classes by step."""
    curves: dict[str, dict[str, list[Any]]] = {}
    trained = [record for record in found if record.kind == "train"]
    if trained and (curve := trained[-1].body.get("curve")):
        series = {"loss": curve.get("loss"), **curve.get("terms", {}), "grad_norm": curve.get("grad_norm")}
        for name, values in series.items():
            if values and "/" not in name:
                curves[name] = {"step": curve["step"], "value": values}
    for record in found:
        if record.kind == "evaluation":
            for name, value in _values(record.body).items():
                of = curves.setdefault(f"{name}, {_about(record.body)}", {"step": [], "value": []})
                of["step"].append(record.step)
                of["value"].append(value)
    return curves


def _grids(run: Run, found: Sequence[Any]) -> list[dict[str, Any]]:
    """The pictures that records hold: what they show, at which step, and their file (None where it is gone)."""
    pictures = []
    for record in found:
        for name, told in (record.body.get("facts") or {}).items():
            for value in told.values() if isinstance(told, dict) else [told]:
                if isinstance(value, str) and value.endswith(".png"):
                    pictures.append({"what": name, "step": record.step, "file": _fact(run, value)})
    return pictures


def _fact(run: Run, name: str) -> str | None:
    try:
        return str(run.facts.file(name))
    except (LtbenchError, ValueError):
        return None


def _names(folder: Any) -> list[str]:
    return sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []


def _about(body: Mapping[str, Any]) -> str:
    """What a record is of: how the images were made, or what was chosen and by what; "" of training."""
    from ltbench.protocols import sampling_text

    if "evaluation" not in body:
        return ""
    how = body["evaluation"]
    text = f"{how['protocol']}, {sampling_text(how)}"
    if body["kind"] == "selection":
        return f"{text}: {body['chosen']:g} by {body['metric']}, {body['group']}"
    if body["kind"] == "illustration":
        return f"{text}: pictures of {', '.join(body['names'])}"
    return f"{text}, {how['samples']} images, seed {how['seed']}"


def _values(body: Mapping[str, Any]) -> dict[str, Any]:
    """The numbers over all classes of an evaluation, the last loss of a training record."""
    if body.get("kind") == "train":
        losses = body.get("curve", {}).get("loss") or [None]
        return {"loss": losses[-1]}
    return {row["name"]: row["value"] for row in body.get("rows", ()) if row.get("group") == "all"}


def tell(found: Mapping[str, Any]) -> None:
    """Print what `describe` found."""
    from ltbench.status import name_of

    out(f"cell {found['cell']}")
    seed = found["settings"].get("seed")
    out(name_of(found["settings"]) + ("" if seed is None else f" seed {seed}"))
    out()
    table(("setting", "value"), _flat(found["settings"]))
    for run in found["runs"]:
        out()
        _tell_run(run)
    if not found["runs"]:
        out("\nno run yet")
    if found["jobs"]:
        out()
        table(
            ("job", "class", "state", "requeues", "node", "why", "log"),
            (
                (
                    j["job"],
                    j["class"],
                    j["state"],
                    j["requeues"],
                    j["node"],
                    j["cause"] or j["reason"],
                    j["log"],
                )
                for j in found["jobs"]
            ),
        )
    out(f"\nnext: python harness.py logs {found['cell'][:12]}")


def _flat(settings: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    rows: list[tuple[str, Any]] = []
    for key, value in settings.items():
        rows += _flat(value, f"{prefix}{key}.") if isinstance(value, Mapping) else [(f"{prefix}{key}", value)]
    return rows


def _tell_run(run: Mapping[str, Any]) -> None:
    code = "the present code" if run["present_code"] else "other code than the present"
    out(f"run {run['run']}, {code}: {run['folder']}")
    read_only = [layer for layer in run["layers"] if layer != "own"]
    for layer in read_only:
        out(
            f"  also in the read-only layer {layer}"
            if "own" in run["layers"]
            else f"  from the read-only layer {layer}"
        )
    if run["accepted"]:
        out(f"accepted because {run['accepted']}")
    table(
        ("  stage", "state", "attempt", "on", "cause"),
        (
            (
                f"  {name}",
                state["state"].replace("released", "over"),
                state["attempt"],
                _place(run, name),
                clip(_cause(state), 120),
            )
            for name, state in run["stages"].items()
        ),
    )
    if run["curves"]:
        table(
            ("  against the step", "first", "", "last"),
            (curve_line(f"  {name}", own["step"], own["value"]) for name, own in run["curves"].items()),
        )
    if run["records"]:
        heads = ("  record", "step", "of", "run as", "values over all classes")
        lines = [
            (
                f"  {each['kind']}",
                each["step"],
                each["about"],
                each["execution"] or "",
                _numbers(each["values"]),
                each["layer"],
            )
            for each in run["records"]
        ]
        # Where everything is one's own, a column that says so is noise.
        table((*heads, "layer"), lines) if read_only else table(heads, [line[:-1] for line in lines])
    for each in run["records"]:
        if each["execution_fallback"]:
            out(f"  {each['kind']} at step {each['step']}: {each['execution_fallback']}")
    for word in ("damaged", "superseded", "conflicts", "shadowed"):
        for line in run[word]:
            out(f"  {word}: {line}")
    for each in run["grids"]:
        out(f"  picture: {each['what']} at step {each['step']}: {each['file'] or 'its file is gone'}")
    out(f"  milestones: {', '.join(run['milestones']) or 'none'}")
    out(f"  checkpoints: {', '.join(run['checkpoints']) or 'none'}")


def _place(run: Mapping[str, Any], stage: str) -> str:
    """Where each attempt at a stage ran: `node1 (job 12), node2 (job 12, requeue 1)`."""
    said = []
    for each in run["attempts"]:
        if each["stage"] == stage:
            again = f", requeue {each['slurm_restart']}" if each["slurm_restart"] else ""
            job = f" (job {each['slurm_job']}{again})" if each["slurm_job"] else ""
            said.append(f"{each['host'] or '?'}{job}")
    return ", ".join(dict.fromkeys(said[-3:]))


def _cause(state: Mapping[str, Any]) -> str:
    return f"{state['cause']}: {state['message'] or ''}" if state.get("cause") else ""


def _numbers(values: Mapping[str, Any]) -> str:
    return "  ".join(f"{name} {value:.4g}" for name, value in values.items() if value is not None)


# --- why ------------------------------------------------------------------------------------------------------------


def reasons(store: Store, cell: str) -> dict[str, Any]:
    """Why a cell stands as it does: failures of the present run, and per run which code, defaults and versions changed since."""
    from ltbench.provenance import surroundings
    from ltbench.report.versions import changed_versions

    settings = _content(store, cell)["settings"]
    present, code = _present(settings)
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
    present, code = _present(settings)
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
