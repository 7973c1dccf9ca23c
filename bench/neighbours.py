"""Precision and recall against torch-fidelity on the same features in one process: time, and peak memory beside the
features (of a process of its own, since a process that has freed memory hides what it takes again).

torch-fidelity's default path holds whole distance matrices, its `save_cpu_ram` path blocks of 10,000 rows; both give precision
and recall. Ours gives density and coverage too, and in the second line standard errors over 10 folds of both sets.
"""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from turns import agree, goal  # beside this file

from ltbench.metrics.neighbours import prdc
from ltbench.metrics.sets import folds_of

D, K, TURNS = 2048, 3, 2
# Images compared at D numbers, and images of ours alone at 16 numbers: what is kept beside the features does not depend on D, but
# for two blocks of rows. The goal is for 50,000.
FULL, SMALL = (4_000, 50_000), (2_000, 10_000)
GOAL_MB = 2_000
APART = 2  # images for which rounding in float32 may decide


def measure(device: str = "cpu", size: tuple[int, int] = SMALL, turns: int = TURNS) -> dict[str, Any]:
    """Time and memory of each side at n x n x D; ours alone at WIDE x WIDE."""
    torch.set_num_threads(1)
    n, wide = size
    found: dict[str, Any] = {"n": n, "d": D, "k": K, "dtype": "float32", "device": device}
    sets = _sets(n, D)
    apart = agree("precision or recall, in images", _most_apart(sets, device), APART)
    sides = _in_turns(sets, device, turns)
    ratio = sides["torch_fidelity"]["over_ours"]
    # With fewer images what ours gives besides, density and coverage, counts for more than the size of the matrices.
    bound = {"goal": goal(ratio, at_least=1.0)} if size == FULL else {}
    return {**found, "images_apart": apart, "sides": sides, "wide": _wide(wide, device), **bound}


Sets = tuple[np.ndarray, np.ndarray, np.ndarray]


def _sets(n: int, d: int) -> Sets:
    """Generated and reference features and the folds of both, without a temporary copy that would count as memory."""
    rng = np.random.default_rng(0)
    gen, ref = (rng.standard_normal((n, d), dtype=np.float32) for _ in range(2))
    gen *= np.float32(0.99)
    return gen, ref, folds_of(np.arange(n) % 10)


def _ours(sets: Sets, device: str) -> tuple[float, float]:
    found = prdc(sets[0], sets[1], k=K, dtype="float32", device=device)
    return found.precision.value, found.recall.value


def _ours_with_errors(sets: Sets, device: str) -> tuple[float, float]:
    gen, ref, folds = sets
    found = prdc(gen, ref, k=K, dtype="float32", folds_gen=folds, folds_ref=folds, device=device)
    return found.precision.value, found.recall.value


def _torch_fidelity(sets: Sets, device: str, save: bool = False) -> tuple[float, float]:
    """Its features come from the host and its matrices stay there, whatever the device."""
    from torch_fidelity.metric_prc import prc_features_to_metric

    features = (torch.from_numpy(part) for part in sets[:2])
    found = prc_features_to_metric(
        *features, prc_neighborhood=K, prc_batch_size=10_000, save_cpu_ram=save, verbose=False
    )
    return found["precision"], found["recall"]


def _torch_fidelity_saving(sets: Sets, device: str) -> tuple[float, float]:
    return _torch_fidelity(sets, device, save=True)


SIDES: dict[str, Callable[[Sets, str], tuple[float, float]]] = {
    "ours": _ours,
    "ours_with_errors": _ours_with_errors,
    "torch_fidelity": _torch_fidelity,
    "torch_fidelity_save_cpu_ram": _torch_fidelity_saving,
}


PEAKS = ("ours", "torch_fidelity")  # a process each


def _most_apart(sets: Sets, device: str) -> float:
    """Images by which precision or recall differ between the two: rounding in float32 may decide one."""
    gaps = np.subtract(_ours(sets, device), _torch_fidelity(sets, device))
    return round(float(np.abs(gaps).max() * len(sets[0])), 3)


def _in_turns(sets: Sets, device: str, turns: int) -> dict[str, dict[str, float]]:
    """Least seconds of the turns (CPU; wall with a GPU), their ratio to ours, and the memory of each side."""
    clock = time.process_time if device == "cpu" else time.perf_counter
    found = [
        {name: _seconds(side, sets, device, clock) for name, side in SIDES.items()} for _ in range(turns)
    ]
    least = {name: min(turn[name] for turn in found) for name in SIDES}
    return {
        name: {
            "seconds": round(least[name], 2),
            "over_ours": round(least[name] / least["ours"], 2),
            **(
                {"peak_mb": _peak_mb(name, len(sets[0]), sets[0].shape[1], device)[0]}
                if name in PEAKS
                else {}
            ),
        }
        for name in SIDES
    }


def _seconds(side: Callable[[Sets, str], Any], sets: Sets, device: str, clock: Callable[[], float]) -> float:
    start = clock()
    side(sets, device)  # ends in Python floats, so a GPU has finished
    return clock() - start


def _peak_mb(name: str, n: int, d: int, device: str) -> tuple[int, float]:
    """(MB by which the largest resident memory of a fresh process grows, CPU seconds) of one side."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_grow, (name, n, d, device))


def _grow(name: str, n: int, d: int, device: str) -> tuple[int, float]:
    torch.set_num_threads(1)
    SIDES[name](_sets(64, d), device)  # libraries load
    sets = _sets(n, d)
    before, start = _highest(), time.process_time()
    SIDES[name](sets, device)
    return round((_highest() - before) / 1e6), time.process_time() - start


def _highest() -> int:
    """The largest resident memory of this program, bytes (Linux). `ru_maxrss` would start at that of the parent process."""
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0]) * 1024


def _wide(n: int, device: str) -> dict[str, Any]:
    peak, seconds = _peak_mb("ours_with_errors", n, 16, device)
    full = round(n * n * 4 / 1e6)
    return {
        "n": n,
        "d": 16,
        "cpu_s": round(seconds, 1),
        "peak_mb": goal(peak, at_most=GOAL_MB),
        "goal_is_for_n": FULL[1],
        "one_full_matrix_mb": full,
    }
