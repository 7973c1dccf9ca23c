"""Train one cell up to its last milestone: steps, and what is kept when.

The order of commits keeps every interruption harmless: milestone weights, then the training record, then the checkpoint, then
the deletion of an older one.
"""

from __future__ import annotations

import math
import time
import traceback
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from ltbench import seeds
from ltbench.checkpoint import newest_checkpoint, prune_checkpoints, save_checkpoint, save_milestone
from ltbench.collect import Preempted, shown_classes
from ltbench.compiled import load_compiler
from ltbench.datasets import Dataset
from ltbench.diffusion import process_for
from ltbench.draws import Latents
from ltbench.errors import EnvironmentProblem, UsageError
from ltbench.evaluate import Tiles
from ltbench.execution import resolve
from ltbench.generate import build_sampler, decoder_of, initial_noise, shape_of, to_uint8
from ltbench.guard import Guard, seed_globals
from ltbench.methods import load_method
from ltbench.parts import Recipe, build_parts
from ltbench.sampling import sample
from ltbench.spec.choices import micro_batches
from ltbench.stages.common import Stage, context, put_tiles
from ltbench.stages.encode import latents_of
from ltbench.start import start
from ltbench.trainer import NonFinite, Trainer

PREVIEW = {"sit": ("euler", 10), "ddpm": ("ddim", 10)}  # sampler and steps of the fixed-noise grid
SIGNAL_PAUSE = 0.5  # seconds: the signal that ended a child may still be on its way to us
UNANSWERED = 30.0  # seconds
SAFE = 2.0  # times what a save takes: the disk may be twice as slow when a whole partition is preempted and saves at once
PREVIEW_COLUMNS, PREVIEW_GUIDANCE = 4, 2.0


def train(stage: Stage, data: Dataset, milestones: list[int]) -> dict[str, Any]:
    """Train up to the last milestone; every milestone leaves EMA weights, a preview and a record."""
    data.train()  # what its libraries set when they are imported is not the method's doing
    try:
        latents = latents_of(stage, data)
    except Preempted:
        return {"outcome": "preempted"}
    if resolve(stage.options.execution, stage.device).compiled:
        load_compiler(stage.device)
    guard = Guard()
    try:
        with guard:
            return _train(stage, data, milestones, guard, latents)
    finally:
        stage.tainted = guard.tainted
        if guard.changed:
            stage.notice(f"the method left changed, and it was put back: {'; '.join(guard.changed)}")


def _train(
    stage: Stage, data: Dataset, milestones: list[int], guard: Guard, latents: Latents | None
) -> dict[str, Any]:
    seed_globals(0)  # what a file draws on import must not depend on the cell that imports it first
    method = load_method(stage.settings["method"]["name"])
    seed_globals(_outside(stage, 0))
    how = resolve(stage.options.execution, stage.device)
    parts = build_parts(
        stage.settings, data, method, stage.device, latents, stage.notice, how, stage.options.recompute
    )
    micro_batch = _micro_batch(stage.options.micro_batch, parts.recipe)
    trainer = Trainer(
        parts,
        micro_batch,
        stage.options.log_every,
        ranks=stage.ranks,
        execution=how,
        notice=stage.notice,
    )
    try:
        _resume(stage, trainer, milestones)
        if "init" in stage.settings and trainer.origin is None:
            start(trainer, stage.settings["init"], stage.run.store, stage.options.start)
        guard.check()
        return _Loop(stage, data, trainer, milestones, guard).run()
    finally:
        trainer.close()  # a thread that is left would be taken for the method's


def _micro_batch(asked: int | None, recipe: Recipe) -> int:
    """Images per forward: memory, not results, so a cell may go on with another one. Raises UsageError for what does not fit."""
    allowed = micro_batches(recipe.batch, recipe.local_batch)
    if asked is not None and asked not in allowed:
        raise UsageError(
            f"micro_batch {asked} is not a whole number of local batches ({recipe.local_batch}) that divides batch {recipe.batch}",
            f"allowed: {', '.join(map(str, allowed))}",
        )
    return asked or recipe.batch


def _outside(stage: Stage, step: int) -> int:
    """The seed of the generators that no method may use: one that does still repeats, resumed or not."""
    return seeds.torch_seed(stage.settings["seed"], "method", "outside", step)


def _resume(stage: Stage, trainer: Trainer, milestones: list[int]) -> None:
    """Load the newest checkpoint from before every milestone that is still missing: the leader's choice, on every rank."""
    step = stage.ranks.tell(_resume_newest(stage, trainer, milestones) if stage.ranks.leads else None)
    if stage.ranks.leads or step is None:
        return
    found = newest_checkpoint(stage.run.checkpoints, cell=stage.run.cell, run=stage.run.run, at_most=step)
    if found is None or found.step != step:
        raise EnvironmentProblem(
            f"rank {stage.ranks.rank} cannot read the checkpoint of step {step} that the others resume from",
            f"all ranks must see {stage.run.checkpoints}",
        )
    trainer.load(found.tensors, found.state)


def _resume_newest(stage: Stage, trainer: Trainer, milestones: list[int]) -> int | None:
    kept = {record.body["step"] for record in stage.run.records("train")}
    kept = {step for step in kept if (stage.run.milestones / f"step-{step:09d}").is_dir()}
    missing = [step for step in milestones if step not in kept]
    # A checkpoint is written after its milestone's weights and record: one at the milestone itself would not make them again.
    at_most = min(missing) - 1 if missing else None
    found = newest_checkpoint(stage.run.checkpoints, cell=stage.run.cell, run=stage.run.run, at_most=at_most)
    if found is None:
        return None
    for damaged in found.quarantined:
        stage.notice(f"checkpoint step {damaged.path.name} is damaged ({damaged.reason}) and was set aside")
    trainer.load(found.tensors, found.state)
    stage.notice(f"resuming from step {trainer.step}")
    return trainer.step


class _Loop:
    """Steps, and what is kept when. A commit is fenced: a superseded attempt stops without writing.

    Of several ranks the leader alone keeps and reports. What ends the loop is agreed on at each step boundary, the last one
    included: no rank is done before the leader's files are.
    """

    def __init__(
        self, stage: Stage, data: Dataset, trainer: Trainer, milestones: list[int], guard: Guard
    ) -> None:
        self.stage, self.data, self.trainer, self.guard = stage, data, trainer, guard
        self.milestones = set(milestones)
        self.origin = {} if trainer.origin is None else {"init": trainer.origin}
        self.last = max(milestones)
        self.saved_at = time.monotonic()
        self.saved_step = trainer.step
        self.warned = self.late = False
        self.point: dict[str, Any] = {}
        self.speed = _Speed(trainer.step, trainer.parts.recipe.batch)

    def run(self) -> dict[str, Any]:
        kept = True
        while True:
            going = self.trainer.step < self.last
            stopped, superseded = self.stage.ranks.any(going and self.stage.stop(), not kept)
            if superseded:
                return {
                    "outcome": "held",
                    "message": "superseded by a later attempt; stopped without writing",
                }
            if not going:
                return {"outcome": "done", "step": self.trainer.step}
            if stopped:
                self._finite(self.trainer.settle)
                self._checkpoint()
                return {"outcome": "preempted", "step": self.trainer.step}
            seed_globals(_outside(self.stage, self.trainer.step + 1))
            due = self._due(self.trainer.step + 1)
            try:
                self.point = self._finite(partial(self.trainer.advance, settle=bool(due))) or self.point
            except NonFinite:
                raise
            except Exception as error:
                self.guard.check()  # a changed setting explains what it broke
                if not self._broken_by_stop(error):
                    raise
                message = f"stopped in step {self.trainer.step + 1}: {type(error).__name__}: {error}"
                return {"outcome": "preempted", "step": self.trainer.step, "message": message}
            self.guard.check()
            if self.stage.ranks.leads:
                self._report()
                kept = self._keep(due)

    def _finite(self, step: Callable[[], dict[str, Any] | None]) -> dict[str, Any] | None:
        """Do it; of a step that is not finite, keep the weights from before: replaying it needs nothing else."""
        try:
            return step()
        except NonFinite:
            self._checkpoint()
            raise

    def _broken_by_stop(self, error: Exception) -> bool:
        """Whether a step failed because a stop was asked for: SLURM's SIGTERM also ends what a method or a data set has started.

        Then the state from before the step is kept. A real fault shows again when the cell goes on.
        """
        # Gradients are made before anything changes; an error of later code leaves half a step.
        untouched = "_gradients" in {frame.name for frame in traceback.extract_tb(error.__traceback__)}
        if self.stage.ranks.size > 1 or not untouched:
            return False
        time.sleep(SIGNAL_PAUSE)
        if not self.stage.stop():
            return False
        self._checkpoint()
        return True

    def _due(self, step: int) -> set[str]:
        """What this step is to leave behind."""
        every = self.stage.options.preview_every
        late = time.monotonic() - self.saved_at >= self.stage.options.checkpoint_seconds
        if step in self.milestones:
            return {"milestone", "checkpoint"}
        shown = bool(every and step % every == 0)
        return {name for name, wanted in (("preview", shown), ("checkpoint", late)) if wanted}

    def _keep(self, due: set[str]) -> bool:
        """Leave it behind; False when another attempt has taken over."""
        step = self.trainer.step
        if not due:
            return True
        if not self.stage.claim.still_mine():
            return False
        if "milestone" in due:
            self._milestone(step)
        if "preview" in due:
            self._preview(step)
        if "checkpoint" in due:
            self._checkpoint()
        return True

    def _milestone(self, step: int) -> None:
        stage, parts = self.stage, self.trainer.parts
        sha = save_milestone(
            stage.run.milestones,
            step,
            self.trainer.ema.shadow,
            {"cell": stage.run.cell, "run": stage.run.run, "settings": stage.settings, **self.origin},
        )
        body = {
            **context(stage, self.data, step),
            "kind": "train",
            "milestone": sha,
            **self.origin,
            "train_counts": parts.train_counts,
            "log_every": self.trainer.log_every,
            "curve": self.trainer.curve.columns(),
            "facts": {"preview": self._preview(step)},
        }
        stage.ran(self.trainer.executed)
        stage.run.put_record("train", step, body, stage.envelope(images_per_s=self.speed.history))
        stage.emit({"type": "milestone", "cell": stage.run.cell, "step": step})

    def _preview(self, step: int) -> dict[str, Any]:
        """Head and tail classes from the EMA weights, always from the same noise."""
        settings, device = self.stage.settings, self.stage.device
        network = build_sampler(settings, self.data, self.trainer.ema.shadow, device)
        ranked = self.trainer.parts.groups
        rows = (ranked["head"][:3] + ranked["tail"][-3:]) or shown_classes(range(len(self.data.classes)))
        noise = initial_noise(0, range(PREVIEW_COLUMNS), shape_of(settings, self.data))
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
        decode = decoder_of(settings, device)
        images = images if decode is None else decode(images)
        grid = to_uint8(images).cpu().numpy().reshape(len(rows), PREVIEW_COLUMNS, *images.shape[1:])
        return {"step": step, **put_tiles(self.stage.run, Tiles(grid, rows, list(range(PREVIEW_COLUMNS))))}

    def _checkpoint(self) -> None:
        if not self.stage.ranks.leads or (self.saved_step == self.trainer.step and self.saved_step):
            return
        tensors, state = self.trainer.state()
        run, attempt, begun = self.stage.run, self.stage.claim.attempt, time.monotonic()
        save_checkpoint(
            run.checkpoints, self.trainer.step, tensors, state, cell=run.cell, run=run.run, attempt=attempt
        )
        prune_checkpoints(run.checkpoints, keep=2, at_most=self.trainer.step)
        self.saved_at, self.saved_step = time.monotonic(), self.trainer.step
        self._warn_of_grace(self.saved_at - begun)

    def _warn_of_grace(self, took: float) -> None:
        """Said once: a job that is killed while it saves goes on from the checkpoint before."""
        grace = self.stage.options.grace
        if grace is None or SAFE * took <= grace or self.warned:
            return
        self.warned = True
        self.stage.notice(
            f"WARNING: a checkpoint took {took:.1f} s to save, and the job is told {grace:g} s before its end: a save that is not over "
            f"by then counts for nothing. Set signal_seconds: {max(60, math.ceil(1.5 * SAFE * took))} or more in the profile"
        )

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
        self._say_unanswered()
        self.stage.emit({"type": "progress", "cell": self.stage.run.cell, "stage": "train", **progress})

    def _say_unanswered(self) -> None:
        """Said once each time that the store hangs."""
        late = self.stage.claim.unanswered
        if late > UNANSWERED and not self.late:
            self.stage.notice(
                f"the store has not answered for {late:.0f} s; training goes on to its next checkpoint"
            )
        self.late = late > UNANSWERED


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
