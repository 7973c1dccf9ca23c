"""Evaluate one milestone of one cell: what `evaluate` measured becomes a record."""

from __future__ import annotations

import time
from typing import Any

from ltbench import provenance
from ltbench.checkpoint import load_milestone
from ltbench.datasets import Dataset
from ltbench.evaluate import Evaluated, evaluate
from ltbench.groups import groups
from ltbench.stages.common import Stage, context, put_tiles
from ltbench.store import Run


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
        **context(stage, data, step),
        "kind": "evaluation",
        "milestone": info["sha256"],
        **({"init": info["init"]} if "init" in info else {}),
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
