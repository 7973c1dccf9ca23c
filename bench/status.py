"""CPU seconds of `status` on a grid of 10,000 cells in every state: a store of real files, read in fresh processes.

`python bench/status.py` writes the store below a temporary folder (a minute) and prints JSON; goal: under 2 s.
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from startup import CELLS, GRID, HARNESS, cpu_seconds

GOAL = 2.0  # CPU seconds
WINDOWS = 100  # points of a training curve
CLASSES = 100


def fill(folder: Path, cells: int = CELLS) -> Path:
    """A spec of `cells` cells, and a store in which of ten seven are done, one runs on another machine, one failed and one is
    new. Returns the spec's path. Nothing is synced to the disk: only the reading is measured."""
    from ltbench import plan, spec
    from ltbench.store import Store

    os.fsync = os.fdatasync = lambda handle: None
    path = folder / "wide.yaml"
    path.write_text(GRID.format(seeds=", ".join(map(str, range(cells // 4)))))
    store = Store.open(folder / "store", folder / "scratch")
    wanted = plan.expand(spec.load(path))
    plan.register([cell for n, cell in enumerate(wanted) if n % 10 < 9], store)
    for number, cell in enumerate(wanted):
        _begin(store, cell, number % 10)
    return path


def _begin(store: Any, cell: Any, kind: int) -> None:
    from ltbench import provenance

    if kind == 9:
        return
    code = provenance.train_code(cell.settings)
    run = store.run(cell.id, provenance.run_id(code, cell.settings))
    claim = run.claim("train")
    body = {"settings": cell.settings, "code": {part: entry["digest"] for part, entry in code.items()}}
    if kind < 7:
        for step in cell.milestones:
            _milestone(run, body, step, cell.evaluations)
        claim.release("done")
    elif kind == 7:
        _elsewhere(run)
    else:
        run.fail("train", 1, step=3, cause="oom", message="CUDA out of memory", traceback="", evidence={})
        claim.release("failed")


def _elsewhere(run: Any) -> None:
    """Move the claim to another machine: on this one its process would be looked up, and found to be us."""
    from ltbench.store import sealed

    path = run.dir / "claims" / "train.1.json"
    claim = sealed.read_sealed(path)
    claim["owner"] |= {"host": "node17", "kernel": "elsewhere"}
    path.write_bytes(sealed.seal(claim))
    beat = {"format": 1, "counter": 9, "step": 7, "total": 20, "loss": 0.5, "images_per_s": 640.0}
    (run.dir / "beats" / "train.1.json").write_bytes(sealed.seal(beat))


def _milestone(run: Any, body: dict[str, Any], step: int, evaluations: dict[str, Any]) -> None:
    from ltbench import provenance

    series = [0.1 * n for n in range(WINDOWS)]
    curve = {"step": list(range(WINDOWS)), "terms": {"denoise": series}, "loss": series, "grad_norm": series}
    envelope = {"attempt": 1, "host": "node17", "seconds": 1.0}
    run.put_record("train", step, {**body, "curve": curve}, envelope)
    measured = {**body["code"], "evaluation": provenance.evaluation_code()["evaluation"]["digest"]}
    names = [f"class {k}" for k in range(CLASSES)]
    for key, described in evaluations.items():
        told = {
            **body,
            "classes": names,
            "code": measured,
            "evaluation": {"id": key, **described},
            "rows": [],
        }
        told["per_class"] = {"metrics": {"FD": series[:CLASSES]}}
        run.put_record("evaluation", step, told, envelope, evaluation=key)


def measure(tries: int = 3) -> dict[str, Any]:
    """CPU seconds by command."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        path = fill(folder)
        env = {
            **os.environ,
            "LTBENCH_STORE": str(folder / "store"),
            "LTBENCH_SCRATCH": str(folder / "scratch"),
        }
        commands = {
            "status_spec": ["status", str(path)],
            "status_spec_json": ["status", str(path), "--json"],
            "status_spec_list": ["status", str(path), "--list"],
            "status_store": ["status"],
        }
        return {
            f"{what}_{CELLS}_cells": {
                "cpu_s": round(cpu_seconds([sys.executable, HARNESS, *words], env, tries), 3),
                "goal": GOAL,
            }
            for what, words in commands.items()
        }


if __name__ == "__main__":
    print(json.dumps(measure(), indent=1))
