"""A stand-in for `ltbench.job` that claims and writes real records into a real store, without training anything.

FAKE says what happens instead, by label: `ccua:1=nan,cbdm:0=crash`; `gate` waits
for a file of that name beside the store, or for a stop; `late` does so before the last step; `pause=0.1` makes every step take that long.
"""

from __future__ import annotations

import hashlib
import os
import time
from pathlib import Path

from ltbench import provenance
from ltbench.stages.names import milestones, stage_name
from ltbench.store import Held, Store

GROUPS = {"head": [0, 1, 2], "body": [3, 4, 5, 6], "tail": [7, 8, 9]}
COUNTS = [1000, 600, 360, 216, 130, 78, 47, 28, 17, 10]


def orders():
    """What FAKE asks for."""
    return dict(part.split("=") for part in os.environ.get("FAKE", "").split(",") if part)


def run_job(store, scratch, cell, run, stage, options, on_event, stop):
    run = Store.open(Path(store), Path(scratch)).run(cell, run)
    settings, code = run.info()["settings"], run.info()["code"]
    claim = run.claim(stage_name(stage))
    if isinstance(claim, Held):
        return {"outcome": "held", "message": claim.message}
    if any(record.stage == stage_name(stage) for record in run.records("evaluation")):
        claim.release("done")
        return {"outcome": "done"}
    on_event({"type": "claimed", "run": run.run, "attempt": claim.attempt})
    with claim:
        return work(run, settings, code, stage, on_event, stop, claim)


def work(run, settings, code, stage, on_event, stop, claim):
    told = (
        orders().get(f"{settings['method']['name']}:{settings['seed']}")
        if stage.startswith("train")
        else None
    )
    if told == "crash":
        os._exit(9)
    if told == "gate":
        wait(run, stop)
    if told == "nan":
        fields = {"step": 7, "cause": "nan", "message": "loss term 'denoise' is nan at step 7"}
        run.fail(stage_name(stage), claim.attempt, traceback="", evidence={"lr": 0.002}, **fields)
        claim.release("failed")
        return {"outcome": "failed", **fields}
    if stage.startswith("reference"):
        return {"outcome": "done"}  # there are no images here
    total = milestones(stage)[-1]
    for step in range(0, total + 1, max(1, total // 20)):
        if told == "late" and step == total:
            wait(run, stop)
        if stop():
            claim.release("preempted")
            return {"outcome": "preempted", "step": step}
        time.sleep(float(orders().get("pause", 0)))
        beat = {"step": step, "total": total, "loss": 1 / (step + 1), "images_per_s": 640.0}
        claim.beat(**beat, stage=stage)
        on_event({"type": "progress", "cell": run.cell, "stage": stage, **beat})
    for step in milestones(stage):
        put(run, settings, code, stage, step, claim.attempt)
    return {"outcome": "done"}


def wait(run, stop):
    """For the gate to open."""
    while not (run.store.root.parent / "gate").exists() and not stop():
        time.sleep(0.02)


def put(run, settings, code, stage, step, attempt):
    body = {
        "cell": run.cell,
        "run": run.run,
        "settings": settings,
        "code": {name: entry["digest"] for name, entry in code.items()},
        "step": step,
        "images_seen": step * 64,
        "milestone": hashlib.sha256(f"{run.cell}{step}".encode()).hexdigest(),
        "data_sha256": "0" * 64,
        "train_counts": COUNTS,
    }
    envelope = {"attempt": attempt, "finished": time.time(), "seconds": 1.0}
    if stage.startswith("train"):
        (run.milestones / f"step-{step:09d}").mkdir(parents=True, exist_ok=True)
        curve = {
            "step": [step],
            "terms": {"denoise": [0.5]},
            "loss": [0.5],
            "grad_norm": [1.0],
            "lr": [0.002],
        }
        run.put_record("train", step, {**body, "kind": "train", "log_every": 20, "curve": curve}, envelope)
        return
    evaluation = stage.rpartition(":")[2]
    description = run.store.get_evaluation(evaluation)
    digest = provenance.evaluation_code()["evaluation"]["digest"]
    body |= {
        "kind": "evaluation",
        "code": {**body["code"], "evaluation": digest},
        "evaluation": {"id": evaluation, **description},
        "classes": [f"class {k}" for k in range(10)],
        "groups": GROUPS,
        "nfe": 40,
        "rows": rows(settings, step, description["extractor"]),
        "per_class": {"metrics": {}, "floor": {}, "n_gen": [50] * 10, "n_ref": [200] * 10},
        "facts": {},
    }
    run.put_record("evaluation", step, body, envelope, evaluation=evaluation)


def rows(settings, step, extractor):
    """Numbers that depend on method, seed and step alone."""
    base = len(settings["method"]["name"]) + settings["seed"] / 10 + 1000 / step
    name = f"FD[{extractor['name']}@{extractor['sha256'][:8]}]"
    more = {"metric": "FD", "name": name, "floor": 1.0, "n_gen": 500, "n_ref": 2000, "n_floor": 500}
    return [
        {**more, "group": group, "value": base + i, "better": "lower", "k": None, "scale": 1}
        for i, group in enumerate(("head", "body", "tail", "all"))
    ]
