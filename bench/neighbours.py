"""Precision and recall against torch-fidelity on the same features in one process: time, and peak memory beside the features.

torch-fidelity's default path holds whole distance matrices, its `save_cpu_ram` path blocks of 10,000 rows; both give precision
and recall. Ours gives density and coverage too, and in the second line standard errors over 10 folds of both sets.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from ltbench.metrics.neighbours import prdc
from ltbench.metrics.sets import folds_of

N, D, K, TURNS = 6_000, 2048, 3, 3
WIDE = 50_000  # at 16 dimensions: what is kept beside the features does not depend on D, but for one block of rows
GOAL_MB = 2_000
PAGE = 4096


def measure(device: str = "cpu") -> dict[str, Any]:
    """Time and memory of each side at N x N x D; ours alone at WIDE x WIDE."""
    torch.set_num_threads(1)
    gen, ref, folds = _sets(N, D)
    sides: dict[str, Callable[[], Any]] = {
        "ours": lambda: prdc(gen, ref, k=K, dtype="float32", device=device),
        "ours_with_errors": lambda: prdc(
            gen, ref, k=K, dtype="float32", folds_gen=folds, folds_ref=folds, device=device
        ),
        "torch_fidelity": lambda: _torch_fidelity(gen, ref, save=False),
        "torch_fidelity_save_cpu_ram": lambda: _torch_fidelity(gen, ref, save=True),
    }
    found: dict[str, Any] = {"n": N, "d": D, "k": K, "dtype": "float32", "device": device}
    found |= {"images_apart": _most_apart(sides), "sides": _in_turns(sides)}
    return found | {"wide": _wide(device)}


def _sets(n: int, d: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    gen, ref = (rng.normal(size=(n, d)).astype(np.float32) for _ in range(2))
    return gen * np.float32(0.99), ref, folds_of(np.arange(n) % 10)


def _torch_fidelity(gen: np.ndarray, ref: np.ndarray, save: bool) -> tuple[float, float]:
    from torch_fidelity.metric_prc import prc_features_to_metric

    sets = (torch.from_numpy(gen), torch.from_numpy(ref))
    found = prc_features_to_metric(
        *sets, prc_neighborhood=K, prc_batch_size=10_000, save_cpu_ram=save, verbose=False
    )
    return found["precision"], found["recall"]


def _most_apart(sides: dict[str, Callable[[], Any]]) -> float:
    """Images by which precision or recall differ between the two: rounding in float32 may decide one."""
    ours, theirs = sides["ours"](), sides["torch_fidelity"]()
    gaps = np.subtract((ours.precision.value, ours.recall.value), theirs)
    return round(float(np.abs(gaps).max() * N), 3)


def _in_turns(sides: dict[str, Callable[[], Any]]) -> dict[str, dict[str, float]]:
    """Least CPU seconds (wall seconds with a GPU) of TURNS turns and largest growth of memory, and the ratio to ours."""
    turns = [{name: _watched(work) for name, work in sides.items()} for _ in range(TURNS)]
    least = {name: min(turn[name][0] for turn in turns) for name in sides}
    return {
        name: {
            "seconds": round(least[name], 2),
            "over_ours": round(least[name] / least["ours"], 2),
            "peak_mb": round(max(turn[name][1] for turn in turns)),
        }
        for name in sides
    }


def _watched(work: Callable[[], Any]) -> tuple[float, float]:
    """(CPU seconds, growth of resident memory in MB at its highest) of one call."""
    before, highest, done = _resident(), 0, threading.Event()

    def watch() -> None:
        nonlocal highest
        while not done.wait(0.002):
            highest = max(highest, _resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.process_time()
    try:
        work()
    finally:
        seconds = time.process_time() - start
        done.set()
        watcher.join()
    return seconds, max(0, highest - before) / 1e6


def _resident() -> int:
    """Bytes of memory that this process holds (Linux)."""
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * PAGE


def _wide(device: str) -> dict[str, Any]:
    gen, ref, folds = _sets(WIDE, 16)
    seconds, peak = _watched(
        lambda: prdc(gen, ref, k=K, dtype="float32", folds_gen=folds, folds_ref=folds, device=device)
    )
    return {
        "n": WIDE,
        "d": 16,
        "seconds": round(seconds, 1),
        "peak_mb": round(peak),
        "goal_mb": GOAL_MB,
        "one_full_matrix_mb": round(WIDE * WIDE * 4 / 1e6),
    }
