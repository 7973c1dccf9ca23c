"""Evaluate one milestone of one cell: what `evaluate` measured becomes a record. Also its two helpers, which only leave
features behind: `sample` makes a share of the generated images, `reference` looks at the real ones."""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import cache, partial
from typing import Any

from torch import Tensor

from ltbench import provenance
from ltbench.checkpoint import load_milestone
from ltbench.collect import Preempted
from ltbench.datasets import Dataset
from ltbench.errors import LtbenchError
from ltbench.evaluate import (
    Bench,
    Milestone,
    collector_of,
    evaluate,
    planned_extractor,
    references,
    sampling_of,
)
from ltbench.execution import Executed, resolve
from ltbench.reals import real_features
from ltbench.stages.common import Stage, Superseded, context, present, put, put_tiles
from ltbench.stages.illustrate import illustrate_milestone
from ltbench.stages.search import search


def evaluate_milestone(stage: Stage, data: Dataset, step: int, evaluation_id: str) -> dict[str, Any]:
    """Evaluate the EMA weights of one milestone under one protocol, sampler and guidance value, or search the guidance."""
    evaluation = stage.run.store.get_evaluation(evaluation_id)
    try:
        if "illustrate" in evaluation:
            how = _milestone(stage, step), _bench(stage, step, int(evaluation["samples"]))
            illustrate_milestone(stage, data, step, evaluation, *how)
        elif "search" in evaluation:
            search(stage, step, evaluation_id, evaluation, partial(measured, stage, data, step))
        else:
            measured(stage, data, step, evaluation)
    except Preempted:
        return {"outcome": "preempted", "step": step}
    except Superseded as lost:
        return {"outcome": "held", "message": str(lost)}
    return {"outcome": "done", "step": step}


def measured(stage: Stage, data: Dataset, step: int, evaluation: Mapping[str, Any]) -> dict[str, Any]:
    """The body of the record of this evaluation by the present code: the one that is there, or measured and written now.

    Raises Preempted after a stop, Superseded when another attempt has taken over.
    """
    code = provenance.evaluation_code()["evaluation"]
    evaluation_id = stage.run.store.put_evaluation(dict(evaluation))
    known = present(stage.run, "evaluation", step, evaluation_id, code["digest"])
    if known is not None:
        return known
    milestone = _milestone(stage, step)
    bench = _bench(stage, step, int(evaluation["samples"]))
    stage.ran(Executed())  # a search measures one after another
    found = evaluate(stage.settings, evaluation, milestone, data, bench)
    body = {
        **context(stage, data, step),
        "kind": "evaluation",
        "milestone": milestone.sha256,
        **({"init": milestone.init} if milestone.init else {}),
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
    images = sampling_of(stage.settings, evaluation, milestone, data).images_key()
    put(stage, body, evaluation_id, images=images)
    return body


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
    place = references(_bench(stage, 0, 0))
    try:
        real_features(data, stage.settings, evaluation, extractor, place, stop=stage.stop)
    except Preempted:
        return {"outcome": "preempted"}
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
        execution=resolve(stage.options.execution, stage.device),
        stop=stage.stop,
        progress=progress,
        notice=stage.notice,
        ran=stage.ran,
    )


def _milestone(stage: Stage, step: int) -> Milestone:
    """What the training record says of the weights; they are read only if an image is missing."""
    known = next((record.body for record in stage.run.records("train") if record.step == step), None)

    @cache
    def load() -> Mapping[str, Tensor]:
        weights, info = load_milestone(stage.run.milestones, step)
        if known is not None and info["sha256"] != known["milestone"]:
            raise LtbenchError(
                f"the weights of milestone {step} are not those that its record names",
                f"Remove {stage.run.milestones} to train this run again.",
            )
        return weights

    code = stage.run.info()["code"]["network"]["digest"]
    if known is not None:
        return Milestone(known["milestone"], load, code, known.get("init"))
    info = load_milestone(stage.run.milestones, step)[1]
    return Milestone(info["sha256"], load, code, info.get("init"))
