"""One stage of one cell, as one plain function with JSON-able arguments: what a worker, a SLURM task and a debugger call.

A stage whose output exists is skipped; a stage that another process runs is left to it; a stage that fails leaves a failure
file with its cause and evidence.
"""

from __future__ import annotations

import errno
import time
import traceback
from collections.abc import Callable, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

import ltbench.methods
from ltbench import provenance, redact, vaes
from ltbench.datasets import build_dataset
from ltbench.distributed import Ranks, from_environment, join
from ltbench.errors import EnvironmentProblem, LtbenchError
from ltbench.files import StorageProblem
from ltbench.guard import ProcessChanged
from ltbench.methods import ContractBroken, Unsupported
from ltbench.provenance.changes import changes
from ltbench.stages.common import Event, Followed, Options, Stage
from ltbench.stages.encode import encode
from ltbench.stages.evaluate import evaluate_milestone, look_at_reals, sample_part
from ltbench.stages.names import stage_name
from ltbench.stages.train import train
from ltbench.start import StartProblem
from ltbench.store import Claim, Held, Run, Store
from ltbench.trainer import NonFinite, set_precision

DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EROFS)


def run_job(
    store: str,
    scratch: str,
    cell: str,
    run: str,
    stage: str,
    options: Mapping[str, Any] | None = None,
    on_event: Event = lambda event: None,
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Any]:
    """Run `stage` (as ltbench/stages/names.py spells it) of a run that `plan.register` has put into the store.

    Where torchrun or srun started several ranks on this node (`ltbench.distributed`), each calls this with the same arguments:
    they train together, rank 0 claims and writes, and all return the same outcome. An evaluation is rank 0's alone.

    Returns {"outcome": "done" | "failed" | "held" | "preempted", ...}; "failed" carries cause and message, "held" says who
    works on it; "retire" asks for a fresh process before the next job, and after a failure of several ranks for an end of
    this one, which is what the others notice. "peer": the message is another rank's. Raises only for a call that makes no
    sense (an unknown run, a malformed stage).
    """
    kind, _, rest = stage.partition(":")
    opts = Options(**(options or {}))
    if opts.threads is not None:
        torch.set_num_threads(opts.threads)
    place = _open(store, scratch, opts.lease).run(cell, run)
    settings = place.info()["settings"]
    name = stage_name(stage)
    device = torch.device(opts.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    world = from_environment()
    if world is not None and kind != "train":
        if world.rank:
            return {"outcome": "done", "message": "rank 0 evaluates"}
        world = None
    ranks, device = join(world, device)
    on_event = on_event if ranks.leads else _unheard
    claim = _claim(place, name, ranks)
    if isinstance(claim, str):
        on_event({"type": "held", "cell": cell, "stage": stage, "message": claim})
        outcome = {"outcome": "held", "message": claim}
    else:
        on_event({"type": "claimed", "cell": cell, "stage": stage, "attempt": claim.attempt})
        context = Stage(place, claim, settings, opts, device, on_event, stop, time.time(), ranks)
        outcome = _run(context, name, kind, rest)
    if outcome["outcome"] != "failed":  # a broken group is left by ending the process
        ranks.close()
    return outcome


def _unheard(event: dict[str, Any]) -> None:
    """What a rank other than the leader reports: the leader says the same."""


def _claim(place: Run, name: str, ranks: Ranks) -> Claim | Followed | str:
    """The leader's claim; what the others hold instead; or, for all of them, who has the stage already."""
    claim = place.claim(name) if ranks.leads else None
    told = ranks.tell(str(claim) if isinstance(claim, Held) else claim and claim.attempt)
    if isinstance(told, str):
        return told
    return claim if isinstance(claim, Claim) else Followed(told)


def _run(context: Stage, name: str, kind: str, rest: str) -> dict[str, Any]:
    with context.claim as claim:
        try:
            outcome = _dispatch(context, kind, rest)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            outcome = _failed(context, name, error)
        claim.release("preempted" if outcome["outcome"] == "held" else outcome["outcome"])
        return {**outcome, "retire": True} if context.tainted else outcome


@lru_cache(maxsize=4)
def _open(store: str, scratch: str, lease: float) -> Store:
    """Kept open: how long an owner on another machine has been silent is known only to who has watched it."""
    return Store.open(Path(store), Path(scratch), lease=lease)


def _dispatch(stage: Stage, kind: str, rest: str) -> dict[str, Any]:
    _require_same_code(stage)
    data = build_dataset(stage.settings["dataset"])
    if problem := data.missing():
        raise EnvironmentProblem(problem)
    if name := vaes.named(stage.settings["dataset"]):
        if stage.options.vae is not None:
            vaes.remember(name, Path(stage.options.vae))
        if problem := vaes.problem(name):
            raise EnvironmentProblem(problem)
    set_precision(stage.settings["train"]["precision"])
    if kind == "encode":
        return encode(stage, data, rest)
    if kind == "train":
        return train(stage, data, sorted(int(step) for step in rest.split(",")))
    if kind == "reference":
        return look_at_reals(stage, data, rest)
    step, evaluation, *share = rest.split(":")
    if kind == "sample":
        part, parts = map(int, share[0].split("/"))
        return sample_part(stage, data, int(step), evaluation, part, parts)
    return evaluate_milestone(stage, data, int(step), evaluation)


def _require_same_code(stage: Stage) -> None:
    """Refuse to mix: code edited between the plan and the start of the job would write into the other code's run."""
    now = provenance.train_code(stage.settings)
    changed = changes(stage.run.info()["code"], now)
    accepted = (stage.run.accepted() or {}).get("code") or {}
    if changed and any(accepted.get(part) != now[part]["digest"] for part in now):
        raise LtbenchError(
            f"the code changed since this job was planned: {'; '.join(changed[:3])}",
            "Run the same command again.",
        )


def _failed(stage: Stage, name: str, error: BaseException) -> dict[str, Any]:
    """Write down why, in one line and in full; an error of the store itself is reported and not written into it.

    Of several ranks the first to fail writes; a rank that ended without a word is written down by the leader.
    """
    cause = failure_cause(error)
    evidence = error.evidence if isinstance(error, NonFinite) else {}
    step = error.step if isinstance(error, NonFinite) else None
    message = str(error) or type(error).__name__
    if cause in ("plugin", "code"):
        message = f"{type(error).__name__}: {message}"
    message = redact.clean(message)  # it goes to the driver, to files of a submission, and to a terminal
    told = stage.ranks.first_failure(error, cause, message)
    if told is not None:
        cause, message = told.cause, told.message
    elif stage.ranks.size > 1:
        evidence = {**evidence, "rank": stage.ranks.rank}
    fields = {
        "step": step,
        "cause": cause,
        "message": message,
        "traceback": "".join(
            traceback.format_exception(error)
        ),  # whole: a secret cut in two is not recognised
        "evidence": evidence,
    }
    if told is None or (told.silent and stage.ranks.leads):
        try:
            stage.run.fail(name, stage.claim.attempt, **fields)
        except LtbenchError as second:
            message = f"{message} (and the failure could not be recorded: {second.message})"
    outcome = {"outcome": "failed", "cause": cause, "message": message, "step": step}
    return outcome if stage.ranks.size == 1 else {**outcome, "retire": True, "peer": told is not None}


def failure_cause(error: BaseException) -> str:
    """nan, unsupported, oom, disk, data, plugin or code: the class by which failures are listed and retried."""
    if isinstance(error, NonFinite):
        return "nan"
    if isinstance(error, Unsupported):
        return "unsupported"
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return "oom"
    if isinstance(error, StorageProblem):
        return "disk"
    if isinstance(error, EnvironmentProblem):
        return "data"
    if isinstance(error, OSError) and not _from_plugin(
        error
    ):  # a plugin's own files are no reason to end a run
        return "disk" if error.errno in DISK_FULL else "data"
    if isinstance(error, RuntimeError) and "can't allocate memory" in str(error):
        return "oom"
    if isinstance(error, StartProblem):
        return "data"
    if isinstance(error, ProcessChanged | ContractBroken):
        return "plugin"
    return "plugin" if _from_plugin(error) else "code"


def _from_plugin(error: BaseException) -> bool:
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    return any(_is_plugin_file(name) for name in files)


def _is_plugin_file(name: str) -> bool:
    folder = str(Path(name).resolve().parent)
    package = str(Path(ltbench.methods.__file__).parent)
    return folder != package and folder in {str(Path(p).resolve()) for p in ltbench.methods.__path__}
