"""The Fréchet solve against scipy's sqrtm and torch-fidelity on the same statistics, and per-class distances, on one thread.

All sides get statistics that are made already, and ours the root of its reference too, which one evaluation makes once for all
milestones, groups and floors; what the root costs is printed. Sides take turns in one process, and process time is compared.
That they agree is asserted before anything is timed.
"""

from __future__ import annotations

import statistics
import time
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
from turns import agree, goal  # beside this file

from ltbench.metrics.frechet import Reference, between, estimate, root_of
from ltbench.metrics.inception_score import inception_score
from ltbench.metrics.kernel import kernel
from ltbench.metrics.moments import Gaussian, Moments
from ltbench.metrics.sets import folds_of

# Generated and real images and the width of a feature: Inception's, and what a CPU solves in seconds.
FULL, SMALL, TINY = (5_000, 6_000, 2048), (2_000, 2_500, 768), (300, 400, 64)
TURNS = 2
CLASSES, PER_CLASS, REAL_PER_CLASS = 1000, 50, 1300
MEASURED = 20  # classes that are timed; the rest is proportional
GOALS = {"over_scipy_sqrtm": 10.0, "over_torch_fidelity": 4.0}
APART = 1e-6  # relative
KERNEL, LOGITS = 1_000, 1008  # images and numbers
PER_CLASS_GOAL = 120.0  # CPU seconds, values alone


def measure(size: tuple[int, int, int] = SMALL, timed: int = MEASURED) -> dict[str, Any]:
    """Seconds of process time of each side, their ratios to ours, one distance with errors, and 1000 classes.

    size: generated images, real images, width of a feature. The goals are for Inception's 2048 (FULL). timed: classes.
    """
    n, m, d = size
    gen, ref = _features(0, n, d), _features(1, m, d)
    a, b = (Moments.of(x).gaussian() for x in (gen, ref))
    root, root_s = _timed(lambda: root_of(b.cov))
    sides: dict[str, Callable[[], float]] = {
        "ours": lambda: between(a, b, root),
        "scipy_sqrtm": lambda: _sqrtm(a, b),
        "torch_fidelity": lambda: _torch_fidelity(a, b),
    }
    left_out = _not_here(sides)
    apart = _most_apart(sides)
    times = {name: [_timed(side)[1] for _ in range(TURNS)] for name, side in sides.items()}
    ours = statistics.median(times["ours"])
    ratios = {
        f"over_{name}": _told(f"over_{name}", round(statistics.median(t) / ours, 1), d)
        for name, t in times.items()
        if name != "ours"
    }
    return {
        "n": n,
        "d": d,
        "relative_difference": float(f"{apart:.2g}"),
        "seconds": {name: round(statistics.median(t), 2) for name, t in times.items()},
        "reference_root_s": round(root_s, 2),
        "ratios": ratios,
        "left_out": left_out,
        "with_errors_s": round(_with_errors(gen, ref), 1),
        "per_class": _per_class(d, timed),
        **({} if "torch_fidelity" in left_out else {"others": _others(gen, ref)}),
    }


def _told(name: str, ratio: float, d: int) -> dict[str, Any]:
    return goal(ratio, at_least=GOALS[name]) if d == FULL[2] else {"value": ratio}


def _features(seed: int, n: int, d: int) -> np.ndarray:
    """(n, d) float32 like a pooled ReLU layer: not negative, correlated, with a long spectrum."""
    rng = np.random.default_rng(seed)
    mix = np.random.default_rng(9).normal(size=(d, d)) * np.exp(-np.arange(d) / 400) / 10
    return np.maximum(rng.normal(size=(n, d)) @ mix.T + 0.1 * seed, 0).astype(np.float32)


def _not_here(sides: dict[str, Callable[[], float]]) -> dict[str, str]:
    """Takes out and names the sides whose library is not installed."""
    missing = {}
    for name, module in (("scipy_sqrtm", "scipy"), ("torch_fidelity", "torch_fidelity")):
        try:
            __import__(module)
        except ImportError as error:
            missing[name] = str(error)
            del sides[name]
    return missing


def _most_apart(sides: dict[str, Callable[[], float]]) -> float:
    values = {name: side() for name, side in sides.items()}
    apart = max(abs(value / values["ours"] - 1) for value in values.values())
    return agree("Fréchet distances", apart, APART)


def _others(gen: np.ndarray, ref: np.ndarray) -> dict[str, Any]:
    """Kernel distance over all pairs of KERNEL images, and Inception score, beside torch-fidelity's on the same numbers."""
    import torch
    from torch_fidelity.metric_isc import isc_features_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric

    # Its subsets are of one size in both sets: one subset of all images is the estimator over all pairs.
    size = min(KERNEL, len(gen), len(ref))
    a, b = gen[:size], ref[:size]
    features = [torch.from_numpy(x).double() for x in (a, b)]
    whole = {"kid_subsets": 1, "kid_subset_size": size, "verbose": False}
    logits = np.random.default_rng(5).normal(size=(len(gen), LOGITS)).astype(np.float32)
    pairs: dict[str, tuple[Callable[[], float], Callable[[], float]]] = {
        "kernel_distance": (
            lambda: kernel(a, b),
            lambda: kid_features_to_metric(*features, **whole)["kernel_inception_distance_mean"],
        ),
        "inception_score": (
            lambda: inception_score(logits),
            lambda: isc_features_to_metric(torch.from_numpy(logits))["inception_score_mean"],
        ),
    }
    return {name: _beside(name, *sides) for name, sides in pairs.items()}


def _beside(name: str, ours: Callable[[], float], theirs: Callable[[], float]) -> dict[str, Any]:
    apart = agree(name, abs(theirs() / ours() - 1), APART)
    times = [(_timed(ours)[1], _timed(theirs)[1]) for _ in range(TURNS)]
    ratio = statistics.median(b / max(a, 1e-9) for a, b in times)
    return {"apart": apart, "torch_fidelity_over_ours": round(ratio, 2)}


def _sqrtm(a: Gaussian, b: Gaussian) -> float:
    import scipy.linalg  # an oracle, of the test extra

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        root = np.asarray(scipy.linalg.sqrtm(a.cov @ b.cov))
    shift = a.mean - b.mean
    return float(shift @ shift + np.trace(a.cov) + np.trace(b.cov) - 2 * np.trace(root).real)


def _torch_fidelity(a: Gaussian, b: Gaussian) -> float:
    from torch_fidelity.metric_fid import fid_statistics_to_metric

    stats = [{"mu": x.mean, "sigma": x.cov} for x in (a, b)]
    return fid_statistics_to_metric(*stats, verbose=False)["frechet_inception_distance"]


def _with_errors(gen: np.ndarray, ref: np.ndarray) -> float:
    """Seconds of one distance from features, sums included, with 10 folds of both sets."""
    folds = [folds_of(np.arange(len(x)) % 10) for x in (gen, ref)]
    return _timed(lambda: estimate(gen, Reference(ref, folds[1]), folds[0]))[1]


def _per_class(d: int, timed: int) -> dict[str, Any]:
    """Distances of 1000 classes: values alone, and as `measure` makes them, with errors and the floor."""
    gen, ref, held = (
        _features(seed, n, d) for seed, n in ((2, PER_CLASS), (3, REAL_PER_CLASS), (4, PER_CLASS))
    )
    folds = [folds_of(np.zeros(len(x))) for x in (gen, ref)]

    def alone() -> None:
        estimate(gen, Reference(ref))

    def complete() -> None:
        reference = Reference(ref, folds[1])
        estimate(gen, reference, folds[0])
        estimate(held, reference)

    found: dict[str, Any] = {
        "classes": CLASSES,
        "n_gen": PER_CLASS,
        "n_ref": REAL_PER_CLASS,
        "timed": timed,
    }
    for name, work in (("values_s", alone), ("with_errors_and_floor_s", complete)):
        work()
        seconds = _timed(lambda work=work: [work() for _ in range(timed)])[1]
        found[name] = round(seconds * CLASSES / timed, 1)
    return {**found, "goal": goal(found["values_s"], at_most=PER_CLASS_GOAL)} if d == FULL[2] else found


def _timed(work: Callable[[], Any]) -> tuple[Any, float]:
    start = time.process_time()
    result = work()
    return result, time.process_time() - start
