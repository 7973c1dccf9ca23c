"""How long it takes to plan, write and dry-run submit 10,000 cells: CPU seconds of one process, and the files that it leaves.

python bench/submit.py [CELLS]
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from pathlib import Path

SPEC = """
name: large
dataset: {{name: fashion_mnist, imbalance: 0.01, resolution: 16}}
pipeline: sit
network: SiT-N/4
train: {{batch: 32, milestones: [20, 40]}}
evaluate: [{{protocol: small-data, sampler: euler, steps: 10, guidance: [1.5, 2.0], samples: 50, block: 50}}]
grid:
  method: [sit, ccua, cbdm, oclt]
  train.lr: [1e-4, 2e-4, 3e-4, 4e-4, 5e-4]
  seed: {seeds}
"""
METHODS, RATES = 4, 5


def measure(cells: int, folder: Path) -> dict[str, float | int]:
    """CPU seconds by part; files and bytes of the submission."""
    begun = time.process_time()
    from ltbench import needs, spec
    from ltbench import plan as plans
    from ltbench.launch.slurm import layout, resources, submit, task
    from ltbench.plan.helpers import with_helpers
    from ltbench.profiles import Profile
    from ltbench.store import Store

    laps = [("imports", time.process_time())]

    def lap(name: str) -> None:
        laps.append((name, time.process_time()))

    path = folder / "large.yaml"
    path.write_text(SPEC.format(seeds=list(range(cells // (METHODS * RATES)))))
    benchmark = spec.load(path)
    store = Store.open(folder / "store", folder / "scratch")
    found = plans.plan(benchmark, store)
    work = with_helpers(found, submit.in_flight(store).rest(found.work()), store.scratch)
    lap("plan")
    assert needs.missing_assets([item.cell for item in work]) == [], "nothing is fetched in a bench"
    lap("needs")
    profile = Profile.from_plain({"gpus": 1})
    labels = [f"{item.cell.label} seed {item.cell.seed}" for item in work]
    wanted, _ = resources.arrays(work, labels, profile, 1001)
    lap("divide")
    submission = layout.create(store.scratch, {"benchmark": benchmark.name, "resolved": profile.plain()})
    sender = submit.Sender(submission, profile, benchmark.name, task.run_task, {})
    arrays = [sender.write(each) for each in wanted]
    lap("write")
    texts = [sender.text(array.number, each) for array, each in zip(arrays, wanted, strict=True)]
    submission.put_jobs({array.number: str(array.number) for array in arrays})  # as once sbatch has answered
    lap("scripts")
    times = [begun, *(now for _, now in laps[:-1])]
    files = [place for place in submission.folder.rglob("*") if place.is_file()]
    assert sum(len(each.indices) for each in wanted if each.job_class == "training") == cells, (
        "a cell is missing"
    )
    return {
        **{name: round(now - before, 3) for (name, now), before in zip(laps, times, strict=True)},
        "cpu_seconds": round(time.process_time(), 3),
        "cells": cells,
        "arrays": len(texts),
        "files": len(files),
        "bytes": sum(place.stat().st_size for place in files),
    }


def goals(found: dict[str, float | int]) -> dict[str, dict[str, float | bool]]:
    """As turns.goal tells them, which would import torch here."""
    bounds = {"cpu_seconds": 3, "files": 20}
    return {
        name: {"value": found[name], "at_most": most, "met": found[name] <= most}
        for name, most in bounds.items()
    }


def main() -> int:
    """Measure, print JSON; 1 above 3 CPU seconds or 20 files."""
    cells = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    os.environ.pop("LTBENCH_PLUGINS", None)
    with tempfile.TemporaryDirectory() as folder:
        found = measure(cells, Path(folder))
    told = goals(found)
    print(json.dumps({**found, "goals": told}, indent=1))
    return int(not all(goal["met"] for goal in told.values()))


if __name__ == "__main__":
    sys.exit(main())
