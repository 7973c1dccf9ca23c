"""Evaluate one milestone of one cell: what `evaluate` measured becomes a record. Also its two helpers, which only leave
features behind: `sample` makes a share of the generated images, `reference` looks at the real ones."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import cache
from typing import Any

from torch import Tensor

from ltbench import provenance
from ltbench.checkpoint import load_milestone
from ltbench.collect import Preempted
from ltbench.datasets import Dataset
from ltbench.errors import LtbenchError
from ltbench.evaluate import Bench, Milestone, collector_of, evaluate, planned_extractor, references
from ltbench.reals import real_features
from ltbench.stages.common import Stage, context, put_tiles
from ltbench.store import Run


def evaluate_milestone(stage: Stage, data: Dataset, step: int, evaluation_id: str) -> dict[str, Any]:
    """Evaluate the EMA weights of one milestone under one protocol, sampler and guidance value."""
    code = provenance.evaluation_code()["evaluation"]
    if _is_there(stage.run, step, evaluation_id, code["digest"]):
        return {"outcome": "done", "step": step}
    evaluation = stage.run.store.get_evaluation(evaluation_id)
    milestone = _milestone(stage, step)
    bench = _bench(stage, step, int(evaluation["samples"]))
    try:
        found = evaluate(stage.settings, evaluation, milestone, data, bench)
    except Preempted:
        return {"outcome": "preempted", "step": step}
    body = {
        **context(stage, data, step),
        "kind": "evaluation",
        "milestone": milestone.sha256,
        "evaluation": {"id": evaluation_id, **evaluation},
        "classes": list(data.classes),
        "train_counts": [int(n) for n in data.counts()],
        "groups": found.groups,
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


def sample_part(
    stage: Stage, data: Dataset, step: int, evaluation_id: str, part: int, parts: int
) -> dict[str, Any]:
    """Make the features of every `parts`-th shard of generated images, for the evaluation that collects them."""
    evaluation = stage.run.store.get_evaluation(evaluation_id)
    count = int(evaluation["samples"])
    bench = _bench(stage, step, count)
    extractor = planned_extractor(evaluation, stage.device)
    collector = collector_of(stage.settings, evaluation, _milestone(stage, step), data, extractor, bench)
    try:
        collector.part(count, part, parts)
    except Preempted:
        return {"outcome": "preempted", "step": step}
    return {"outcome": "done", "step": step}


def look_at_reals(stage: Stage, data: Dataset, evaluation_id: str) -> dict[str, Any]:
    """Make the features of the real images that evaluations of this kind compare with."""
    evaluation = stage.run.store.get_evaluation(evaluation_id)
    extractor = planned_extractor(evaluation, stage.device)
    real_features(data, stage.settings, evaluation, extractor, references(_bench(stage, 0, 0)))
    return {"outcome": "done"}


def _bench(stage: Stage, step: int, total: int) -> Bench:
    def progress(done: int) -> None:
        seconds = time.time() - stage.started
        state = {"step": min(done, total), "total": total, "loss": None, "images_per_s": done / seconds}
        stage.claim.beat(**state)
        stage.emit({"type": "progress", "cell": stage.run.cell, "stage": f"evaluate {step}", **state})

    return Bench(
        scratch=stage.run.store.scratch,
        device=stage.device,
        keep_samples=stage.options.keep_samples,
        stop=stage.stop,
        progress=progress,
        notice=stage.notice,
    )


def _milestone(stage: Stage, step: int) -> Milestone:
    """What the training record says of the weights; they are read only if an image is missing."""
    known = [record.body["milestone"] for record in stage.run.records("train") if record.step == step]

    @cache
    def load() -> Mapping[str, Tensor]:
        weights, info = load_milestone(stage.run.milestones, step)
        if known and info["sha256"] not in known:
            raise LtbenchError(
                f"the weights of milestone {step} are not those that its record names",
                f"Remove {stage.run.milestones} to train this run again.",
            )
        return weights

    sha = known[0] if known else load_milestone(stage.run.milestones, step)[1]["sha256"]
    return Milestone(sha, load, stage.run.info()["code"]["network"]["digest"])


def _is_there(run: Run, step: int, evaluation: str, code: str) -> bool:
    """Whether another process has left this very record meanwhile."""
    return any(
        record.step == step and record.evaluation == evaluation and record.body["code"]["evaluation"] == code
        for record in run.records("evaluation")
    )
