"""S2: the staged guidance search on curves that are known: what it makes beside trying every value in full, and whether it finds the best.

Each curve is a parabola over the logarithm of w plus the bias and the noise that a Fréchet distance of n images has. The search that
runs is the engine's (ltbench/stages/search.py); only the measurement is replaced, and counts what it is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from types import SimpleNamespace
from typing import Any

import numpy as np
from turns import agree, goal  # beside this file

from ltbench.stages.search import search

CURVES = 200
# That of benchmarks/guidance_imagenet_lt.yaml.
VALUES = (1, 1.5, 2, 3, 4, 5, 7.5, 10)
SEARCHES = {"10000 of 50000, top 1": (10_000, 1), "5000 of 50000, top 2": (5_000, 2)}
FULL = 50_000
GOAL = 1.5  # times what the final evaluation makes


def measure(curves: int = CURVES) -> dict[str, Any]:
    """Per search: images made over trying all values in full, over the final evaluation, and winners that are a step or more off."""
    found = {}
    for name, (samples, keep) in SEARCHES.items():
        runs = [_run(seed, samples, keep) for seed in range(curves)]
        steps = np.array([abs(VALUES.index(chosen) - VALUES.index(best)) for chosen, best, _ in runs])
        made = runs[0][2]
        agree(f"{name}: grid steps from the best value", float(np.quantile(steps, 0.95)), 1)
        exhaustive = FULL * len(VALUES) + FULL
        found[name] = {
            "images_over_exhaustive": round(made / exhaustive, 3),
            "same_winner": round(float((steps == 0).mean()), 3),
            "within_one_step": round(float((steps <= 1).mean()), 3),
            "images_over_final": goal(round(made / FULL, 2), at_most=GOAL),
        }
    return {"curves": curves, "values": len(VALUES), **found}


def _run(seed: int, samples: int, keep: int) -> tuple[float, float, int]:
    """(value that the search chose, value that is truly best, images made) on one curve."""
    numbers = np.random.default_rng(seed)
    centre, depth = math.log(numbers.uniform(1.2, 8)), numbers.uniform(5, 20)
    noise = {(w, n): numbers.standard_normal() for w in VALUES for n in (samples, FULL)}

    def truth(w: float) -> float:
        return 8 + depth * (math.log(w) - centre) ** 2

    most: dict[tuple[float, int], int] = {}

    def body(evaluation: Mapping[str, Any]) -> dict[str, Any]:
        w, n = float(evaluation["guidance"]), int(evaluation["samples"])
        series = (w, int(evaluation["seed"]))
        most[series] = max(n, most.get(series, 0))  # a larger sample begins with the smaller one
        value = truth(w) * (1 + 0.25 * noise[(w, n)] / math.sqrt(n / 100)) + 40_000 / n
        row = {"metric": "FD", "group": "all", "value": value, "better": "lower", "se": None}
        return {"evaluation": dict(evaluation), "rows": [row]}

    chosen: list[float] = []
    stage: Any = SimpleNamespace(
        run=SimpleNamespace(
            records=lambda kind: [],
            put_record=lambda kind, step, told, envelope, evaluation: chosen.append(told["chosen"]),
            cell="cell",
            run="run",
        ),
        claim=SimpleNamespace(still_mine=lambda: True),
        envelope=lambda **more: {},
    )
    search(stage, 1, "search", _description(samples, keep), body)
    return chosen[0], min(VALUES, key=truth), sum(most.values())


def _description(samples: int, keep: int) -> dict[str, Any]:
    how = {
        "guidance": list(VALUES),
        "samples": samples,
        "keep": keep,
        "metric": "FD",
        "group": "all",
        "seed": 1,
    }
    plain = {"protocol": "adm-50k", "sampler": "euler", "steps": 50, "samples": FULL, "seed": 0}
    return {**plain, "search": how}
