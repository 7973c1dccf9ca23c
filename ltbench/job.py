"""One stage of one cell, as one plain function with JSON-able arguments: what a worker, a SLURM task and a debugger call.

A stage whose output exists is skipped; a stage that another process runs is left to it; a stage that fails leaves a failure
file with its cause and evidence. The order of commits keeps every interruption harmless: milestone weights, then the
training record, then the checkpoint, then the deletion of an older one.
"""

from __future__ import annotations

import os
import platform
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from ltbench import provenance
from ltbench.checkpoint import (
    load_milestone,
    newest_checkpoint,
    prune_checkpoints,
    save_checkpoint,
    save_milestone,
)
from ltbench.datasets import Dataset, build_dataset
from ltbench.diffusion import process_for
from ltbench.errors import EnvironmentProblem, LtbenchError
from ltbench.evaluate import Evaluated, Tiles, build_sampler, evaluate, initial_noise, shown_classes, to_uint8
from ltbench.groups import groups
from ltbench.methods import load_method
from ltbench.sampling import sample
from ltbench.store import Claim, Held, Run, Store
from ltbench.tiles import grid_png
from ltbench.trainer import NonFinite, Trainer, build_parts, set_precision

Event = Callable[[dict[str, Any]], None]
PREVIEW = {"sit": ("euler", 10), "ddpm": ("ddim", 10)}  # sampler and steps of the fixed-noise grid
PREVIEW_COLUMNS, PREVIEW_GUIDANCE = 4, 2.0


@dataclass(frozen=True)
class Options:
    """What may differ between two executions of a stage without changing what it means.

    micro_batch: images per forward (None: the whole batch). checkpoint_seconds: least time between checkpoints.
    log_every, preview_every: steps (None: a preview at each milestone). threads: torch's (None: as they are).
    device: "cpu", "cuda", "cuda:1" ... (None: a GPU where there is one). lease: seconds after which a silent owner on
    another machine is taken for dead.
    """

    micro_batch: int | None = None
    checkpoint_seconds: float = 600.0
    log_every: int = 20
    preview_every: int | None = None
    threads: int | None = None
    device: str | None = None
    lease: float = 60.0


@dataclass
class Stage:
    """A claimed stage and all that its code needs around it."""

    run: Run
    claim: Claim
    settings: dict[str, Any]
    options: Options
    device: torch.device
    emit: Event
    stop: Callable[[], bool]
    started: float

    def notice(self, message: str) -> None:
        """A line for the person at the terminal."""
        self.emit({"type": "notice", "cell": self.run.cell, "message": message})

    def envelope(self, **more: Any) -> dict[str, Any]:
        """Circumstances of a record: they may differ between two runs whose bodies are equal."""
        seconds = time.time() - self.started
        return {
            "started": self.started,
            "finished": time.time(),
            "seconds": seconds,
            "gpu_hours": seconds / 3600 if self.device.type == "cuda" else 0.0,
            "attempt": self.claim.attempt,
            "host": platform.node(),
            "device": _device_name(self.device),
            "threads": torch.get_num_threads(),
            "memory_bytes": _peak_memory(self.device),
            **provenance.environment(),
            **more,
        }


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
    """Run `stage` ("train:280,560" or "evaluate:560:EVALUATION") of a run that `plan.register` has put into the store.

    Returns {"outcome": "done" | "failed" | "held" | "preempted", ...}; "failed" carries cause and message, "held" says who
    works on it. Raises only for a call that makes no sense (an unknown run, a malformed stage).
    """
    kind, _, rest = stage.partition(":")
    opts = Options(**(options or {}))
    if opts.threads is not None:
        torch.set_num_threads(opts.threads)
    place = _open(store, scratch, opts.lease).run(cell, run)
    settings = place.info()["settings"]
    name = "train" if kind == "train" else f"evaluate-{int(rest.split(':')[0]):09d}-{rest.split(':')[1]}"
    claim = place.claim(name)
    if isinstance(claim, Held):
        on_event({"type": "held", "cell": cell, "stage": stage, "message": str(claim)})
        return {"outcome": "held", "message": str(claim)}
    on_event({"type": "claimed", "cell": cell, "stage": stage, "attempt": claim.attempt})
    device = torch.device(opts.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    context = Stage(place, claim, settings, opts, device, on_event, stop, time.time())
    with claim:
        try:
            outcome = _dispatch(context, kind, rest)
        except (KeyboardInterrupt, SystemExit):
            raise
        except BaseException as error:
            outcome = _failed(context, name, error)
        claim.release("preempted" if outcome["outcome"] == "held" else outcome["outcome"])
        return outcome


@lru_cache(maxsize=4)
def _open(store: str, scratch: str, lease: float) -> Store:
    """Kept open: how long an owner on another machine has been silent is known only to who has watched it."""
    return Store.open(Path(store), Path(scratch), lease=lease)


def _dispatch(stage: Stage, kind: str, rest: str) -> dict[str, Any]:
    _require_same_code(stage)
    data = build_dataset(stage.settings["dataset"])
    if problem := data.missing():
        raise EnvironmentProblem(problem)
    set_precision(stage.settings["train"]["precision"])
    if kind == "train":
        return train(stage, data, sorted(int(step) for step in rest.split(",")))
    step, evaluation = rest.split(":")
    return evaluate_milestone(stage, data, int(step), evaluation)


def _require_same_code(stage: Stage) -> None:
    """Refuse to mix: code edited between the plan and the start of the job would write into the other code's run."""
    now = provenance.train_code(stage.settings)
    changed = provenance.changes(stage.run.info()["code"], now)
    accepted = (stage.run.accepted() or {}).get("code") or {}
    if changed and any(accepted.get(part) != now[part]["digest"] for part in now):
        raise LtbenchError(
            f"the code changed since this job was planned: {'; '.join(changed[:3])}",
            "Run the same command again.",
        )


def _failed(stage: Stage, name: str, error: BaseException) -> dict[str, Any]:
    """Write down why, in one line and in full; an error of the store itself is reported and not written into it."""
    cause = failure_cause(error)
    evidence = error.evidence if isinstance(error, NonFinite) else {}
    step = error.step if isinstance(error, NonFinite) else None
    message = str(error) or type(error).__name__
    if cause in ("plugin", "code"):
        message = f"{type(error).__name__}: {message}"
    fields = {
        "step": step,
        "cause": cause,
        "message": message,
        "traceback": "".join(traceback.format_exception(error))[-8000:],
        "evidence": evidence,
    }
    try:
        stage.run.fail(name, stage.claim.attempt, **fields)
    except LtbenchError as second:
        message = f"{message} (and the failure could not be recorded: {second.message})"
    return {"outcome": "failed", "cause": cause, "message": message, "step": step}


def failure_cause(error: BaseException) -> str:
    """nan, unsupported, oom, disk, data, plugin or code: the class by which failures are listed and retried."""
    if isinstance(error, NonFinite):
        return "nan"
    if isinstance(error, Unsupported):
        return "unsupported"
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return "oom"
    if isinstance(error, EnvironmentProblem | OSError):
        return "disk" if "space" in str(error) or "read-only" in str(error).lower() else "data"
    if isinstance(error, RuntimeError) and "can't allocate memory" in str(error):
        return "oom"
    files = [frame.filename for frame in traceback.extract_tb(error.__traceback__)]
    return "plugin" if any(_is_plugin_file(name) for name in files) else "code"


def _is_plugin_file(name: str) -> bool:
    import ltbench.methods

    folder = str(Path(name).resolve().parent)
    package = str(Path(ltbench.methods.__file__).parent)
    return folder != package and folder in {str(Path(p).resolve()) for p in ltbench.methods.__path__}


class Unsupported(LtbenchError):
    """The method says why it cannot run on this task; the table prints the reason as n/a."""


# --- training ---------------------------------------------------------------------------------------------------


def train(stage: Stage, data: Dataset, milestones: list[int]) -> dict[str, Any]:
    """Train up to the last milestone; every milestone leaves EMA weights, a preview and a record."""
    method = load_method(stage.settings["method"]["name"])
    parts = build_parts(stage.settings, data, method, stage.device)
    if reason := type(parts.objective.method).supports(parts.task):
        raise Unsupported(reason)
    trainer = Trainer(parts, stage.options.micro_batch or parts.recipe.batch, stage.options.log_every)
    _resume(stage, trainer, milestones)
    return _Loop(stage, data, trainer, milestones).run()


def _resume(stage: Stage, trainer: Trainer, milestones: list[int]) -> None:
    """Load the newest checkpoint from before every milestone that is still missing."""
    kept = {record.body["step"] for record in stage.run.records("train")}
    kept = {step for step in kept if (stage.run.milestones / f"step-{step:09d}").is_dir()}
    missing = [step for step in milestones if step not in kept]
    # A checkpoint is written after its milestone's weights and record: one at the milestone itself would not make them again.
    at_most = min(missing) - 1 if missing else None
    found = newest_checkpoint(stage.run.checkpoints, cell=stage.run.cell, run=stage.run.run, at_most=at_most)
    if found is None:
        return
    for damaged in found.quarantined:
        stage.notice(f"checkpoint step {damaged.path.name} is damaged ({damaged.reason}) and was set aside")
    trainer.load(found.tensors, found.state)
    stage.notice(f"resuming from step {trainer.step}")


class _Loop:
    """Steps, and what is kept when. A commit is fenced: a superseded attempt stops without writing."""

    def __init__(self, stage: Stage, data: Dataset, trainer: Trainer, milestones: list[int]) -> None:
        self.stage, self.data, self.trainer = stage, data, trainer
        self.milestones = set(milestones)
        self.last = max(milestones)
        self.saved_at = time.monotonic()
        self.saved_step = trainer.step
        self.point: dict[str, Any] = {}
        self.speed = _Speed(trainer.step, trainer.parts.recipe.batch)

    def run(self) -> dict[str, Any]:
        while self.trainer.step < self.last:
            if self.stage.stop():
                self._checkpoint()
                return {"outcome": "preempted", "step": self.trainer.step}
            try:
                self.point = self.trainer.advance() or self.point
            except NonFinite:
                self._checkpoint()  # the weights before the bad step: replaying it needs nothing else
                raise
            self._report()
            if not self._keep():
                return {
                    "outcome": "held",
                    "message": "superseded by a later attempt; stopped without writing",
                }
        return {"outcome": "done", "step": self.trainer.step}

    def _keep(self) -> bool:
        """Whatever this step leaves behind; False when another attempt has taken over."""
        step = self.trainer.step
        every = self.stage.options.preview_every
        due = time.monotonic() - self.saved_at >= self.stage.options.checkpoint_seconds
        if not (step in self.milestones or due or (every and step % every == 0)):
            return True
        if not self.stage.claim.still_mine():
            return False
        if step in self.milestones:
            self._milestone(step)
        elif every and step % every == 0:
            self._preview(step)
        if step in self.milestones or due:
            self._checkpoint()
        return True

    def _milestone(self, step: int) -> None:
        stage, parts = self.stage, self.trainer.parts
        sha = save_milestone(
            stage.run.milestones,
            step,
            self.trainer.ema.shadow,
            {"cell": stage.run.cell, "run": stage.run.run, "settings": stage.settings},
        )
        body = {
            **_context(stage, self.data, step),
            "kind": "train",
            "milestone": sha,
            "train_counts": parts.train_counts,
            "log_every": self.trainer.log_every,
            "curve": self.trainer.curve.columns(),
            "facts": {"preview": self._preview(step)},
        }
        stage.run.put_record("train", step, body, stage.envelope(images_per_s=self.speed.history))
        stage.emit({"type": "milestone", "cell": stage.run.cell, "step": step})

    def _preview(self, step: int) -> dict[str, Any]:
        """Head and tail classes from the EMA weights, always from the same noise."""
        settings, device = self.stage.settings, self.stage.device
        network = build_sampler(settings, self.data, self.trainer.ema.shadow, device)
        ranked = self.trainer.parts.groups
        rows = (ranked["head"][:3] + ranked["tail"][-3:]) or shown_classes(len(self.data.classes))
        noise = initial_noise(
            0, range(PREVIEW_COLUMNS), (self.data.channels, self.data.resolution, self.data.resolution)
        )
        sampler, steps = PREVIEW[settings["pipeline"]]
        images = sample(
            network,
            process_for(settings["pipeline"]),
            sampler=sampler,
            steps=steps,
            guidance=PREVIEW_GUIDANCE,
            noise=noise.repeat(len(rows), 1, 1, 1).to(device),
            labels=torch.tensor(rows, device=device).repeat_interleave(PREVIEW_COLUMNS),
            null=len(self.data.classes),
        )
        grid = to_uint8(images).reshape(len(rows), PREVIEW_COLUMNS, *images.shape[1:])
        return {"step": step, **put_tiles(self.stage.run, Tiles(grid, rows, list(range(PREVIEW_COLUMNS))))}

    def _checkpoint(self) -> None:
        if self.saved_step == self.trainer.step and self.saved_step:
            return
        tensors, state = self.trainer.state()
        run, attempt = self.stage.run, self.stage.claim.attempt
        save_checkpoint(
            run.checkpoints, self.trainer.step, tensors, state, cell=run.cell, run=run.run, attempt=attempt
        )
        prune_checkpoints(run.checkpoints, keep=2)
        self.saved_at, self.saved_step = time.monotonic(), self.trainer.step

    def _report(self) -> None:
        if not self.speed.tick(self.trainer.step):
            return
        progress = {
            "step": self.trainer.step,
            "total": self.last,
            "loss": self.point.get("loss"),
            "images_per_s": self.speed.rate,
        }
        self.stage.claim.beat(**progress)
        self.stage.emit({"type": "progress", "cell": self.stage.run.cell, "stage": "train", **progress})


class _Speed:
    """Images per second over the last half second or more."""

    def __init__(self, step: int, batch: int) -> None:
        self.batch, self.rate, self.history = batch, None, []
        self._step, self._time = step, time.monotonic()

    def tick(self, step: int) -> bool:
        now = time.monotonic()
        if now - self._time < 0.5:
            return False
        self.rate = (step - self._step) * self.batch / (now - self._time)
        self.history.append([step, round(self.rate, 1)])
        if len(self.history) > 512:
            self.history = self.history[::2]
        self._step, self._time = step, now
        return True


# --- evaluation -------------------------------------------------------------------------------------------------


def evaluate_milestone(stage: Stage, data: Dataset, step: int, evaluation_id: str) -> dict[str, Any]:
    """Evaluate the EMA weights of one milestone under one protocol, sampler and guidance value."""
    code = provenance.evaluation_code()["evaluation"]
    if _is_there(stage.run, step, evaluation_id, code["digest"]):
        return {"outcome": "done", "step": step}
    evaluation = stage.run.store.get_evaluation(evaluation_id)
    weights, info = load_milestone(stage.run.milestones, step)
    total = int(evaluation["samples"])

    def progress(done: int) -> None:
        state = {
            "step": done,
            "total": total,
            "loss": None,
            "images_per_s": done / (time.time() - stage.started),
        }
        stage.claim.beat(**state)
        stage.emit({"type": "progress", "cell": stage.run.cell, "stage": f"evaluate {step}", **state})

    counts = data.counts()
    ranked = groups(counts)
    found: Evaluated = evaluate(stage.settings, evaluation, weights, data, ranked, stage.device, progress)
    body = {
        **_context(stage, data, step),
        "kind": "evaluation",
        "milestone": info["sha256"],
        "evaluation": {"id": evaluation_id, **evaluation},
        "classes": list(data.classes),
        "train_counts": [int(n) for n in counts],
        "groups": ranked,
        **found.body,
        "facts": {
            "samples": put_tiles(stage.run, found.samples),
            "reference": put_tiles(stage.run, found.reference),
        },
    }
    body["code"] = {**body["code"], "evaluation": code["digest"]}
    if not stage.claim.still_mine():
        return {"outcome": "held", "message": "superseded by a later attempt; stopped without writing"}
    envelope = stage.envelope(evaluation_code=code)
    stage.run.put_record("evaluation", step, body, envelope, evaluation=evaluation_id)
    return {"outcome": "done", "step": step}


def _is_there(run: Run, step: int, evaluation: str, code: str) -> bool:
    """Whether another process has left this very record meanwhile."""
    return any(
        record.step == step and record.evaluation == evaluation and record.body["code"]["evaluation"] == code
        for record in run.records("evaluation")
    )


def put_tiles(run: Run, shown: Tiles) -> dict[str, Any]:
    """Keep a picture with the record; its JSON names the file, the tile's side in pixels, and what each tile is."""
    name = run.put_fact(grid_png(shown.images), "png")
    return {"file": name, "tile": int(shown.images.shape[-1]), "rows": shown.rows, "columns": shown.columns}


def _context(stage: Stage, data: Dataset, step: int) -> dict[str, Any]:
    code = stage.run.info()["code"]
    return {
        "format": 1,
        "cell": stage.run.cell,
        "run": stage.run.run,
        "settings": stage.settings,
        "code": {component: entry["digest"] for component, entry in code.items()},
        "step": step,
        "images_seen": step * int(stage.settings["train"]["batch"]),
        "data_sha256": data.sha256(),
    }


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({os.cpu_count()} cores)"


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
