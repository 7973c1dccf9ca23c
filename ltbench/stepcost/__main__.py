"""Takes training steps of real cells apart.

    python -m ltbench.stepcost DEVICE THREADS STEPS SECONDS < CELLS

reads one JSON line {"cell", "settings", "micro_batch", "recompute", "execution", "trace"} per cell, warms its trainer up, times steps as they are,
profiles STEPS more, writes the profiler's trace to the path `trace`, and prints one JSON line {"cell", "outcome", "message",
"result"}. As in ltbench.calibrate, whose trainer it uses: each in a fork that has SECONDS, and no store is touched.
"""

from __future__ import annotations

import statistics
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from ltbench import files
from ltbench.calibrate import WARM_UP, answer_all, device_name, guarded, timed, trial
from ltbench.stepcost import attribution
from ltbench.stepcost.ranges import name_parts
from ltbench.trainer import Trainer, set_precision

TIMED = 10  # steps without the profiler


def main(argv: Sequence[str]) -> None:
    """The cells of standard input, one after another."""
    device, threads, steps, seconds = argv

    def apart(asked: dict[str, Any]) -> dict[str, Any]:
        def work() -> dict[str, Any]:
            torch.set_num_threads(int(threads))
            result = take_apart(asked, torch.device(device), int(steps))
            return {"outcome": "done", "message": "", "result": result}

        return {"cell": asked["cell"], **guarded(work)}

    answer_all(apart, lambda asked: {"cell": asked["cell"]}, float(seconds))


def take_apart(asked: dict[str, Any], device: torch.device, steps: int) -> dict[str, Any]:
    """{"device", "threads", "precision", "execution", "data", "steps", "seconds_per_step", "steps_per_s" and "images_per_s" without the profiler,
    "profiled_seconds_per_step", "parts", "costs", "trace"}."""
    settings = asked["settings"]
    set_precision(settings["train"]["precision"])
    trainer, data = trial(settings, asked["micro_batch"], device, asked["execution"], asked["recompute"])
    try:
        for _ in range(WARM_UP[device.type]):
            trainer.advance()
        walls, _ = timed(trainer.advance, TIMED, device)
        plain = statistics.median(walls)
        costs, whole = _profiled(trainer, device, steps, plain, Path(asked["trace"]))
    finally:
        trainer.close()
    return {
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "precision": settings["train"]["precision"],
        "data": data,
        "execution": trainer.executed.name,
        "steps": steps,
        "seconds_per_step": plain,
        "steps_per_s": 1 / plain,
        "images_per_s": settings["train"]["batch"] / plain,
        "profiled_seconds_per_step": whole,
        "parts": [
            {"part": part, "seconds": seconds, "share": seconds / sum(cost.seconds for cost in costs)}
            for part, seconds in attribution.by_part(costs)
        ],
        "costs": [cost.json(sum(cost.seconds for cost in costs)) for cost in costs],
        "trace": asked["trace"],
    }


def _profiled(
    trainer: Trainer, device: torch.device, steps: int, plain: float, trace: Path
) -> tuple[list[attribution.Cost], float]:
    """(costs of a step, seconds of a profiled one). plain: seconds of one without the profiler."""
    name_parts(trainer)
    cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if cuda else [])]
    trainer.advance()  # whatever the ranges make torch do once
    with profile(activities=activities) as profiler:
        walls, _ = timed(trainer.advance, steps, device)
    files.make_directory(trace.parent)
    beside = trace.with_name(f".{trace.name}")  # torch packs what ends in .gz
    profiler.export_chrome_trace(str(beside))
    beside.replace(trace)
    events, kernels = attribution.read(profiler.events() or (), cuda)
    whole = statistics.mean(walls)
    if cuda:
        return attribution.on_device(events, kernels, steps, plain), whole
    return attribution.on_host(events, steps), whole


if __name__ == "__main__":
    main(sys.argv[1:])
