"""One cell from the store: what it is, what it made, and how its stages and jobs fare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ltbench.cli.curves import line as curve_line
from ltbench.cli.output import clip, out, table
from ltbench.errors import LtbenchError, UsageError

if TYPE_CHECKING:
    from ltbench.launch.slurm.seen import Task
    from ltbench.store import Run, Store


def describe(store: Store, cell: str) -> dict[str, Any]:
    """Settings, runs, records, failures and files of a cell, as plain JSON."""
    known = content(store, cell)
    present, _ = present_code(known["settings"])
    return {
        "cell": cell,
        "identity": known["identity"],
        "settings": known["settings"],
        "present_run": present,
        "runs": [_run(run, run.run == present) for run in store.runs(cell)],
        "jobs": _jobs(store, cell),
    }


def content(store: Store, cell: str) -> dict[str, Any]:
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


def present_code(settings: Mapping[str, Any]) -> tuple[str | None, dict[str, Any] | str]:
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
