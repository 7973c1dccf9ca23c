"""S2: the staged guidance search on curves that are known: what it makes beside the final evaluation alone, and whether it finds the best.

Each curve is a parabola over the logarithm of w, measured as a Fréchet distance of n images is: with noise that neighbours share in
part, since all values see the same noise, and with a bias of C / n that falls with w, since guided images vary less. The coarse
sampler's curve is another: at another level, steeper or flatter, its best a grid step beside (either way, by chance) or in place.
The search that runs is the engine's (ltbench/stages/search.py); only the measurement is replaced, and counts what it is asked for.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import numpy as np
from turns import agree, goal  # beside this file

from ltbench.cost.work import calls
from ltbench.stages.search import search

CURVES = 200
GOAL = 1.5  # times the network calls of the final evaluation
EIGHT = (1, 1.5, 2, 3, 4, 5, 7.5, 10)  # of benchmarks/guidance_imagenet_lt.yaml
THIRTEEN = tuple(1 + i / 4 for i in range(13))  # of benchmarks/bases/cifar_lt.yaml
SHIFTS = (0, 1)  # grid steps that the coarse sampler's best lies beside
NOISE = 0.25  # relative error of a Fréchet distance of 100 images; it falls with the root of their number
SHARED = 0.5  # correlation of the errors of neighbours on the grid
TILT = 0.15  # of the bias, per unit of log w


@dataclass(frozen=True)
class World:
    """What is searched: values of w, images and network calls of the final evaluation, C of the bias, the largest best value."""

    values: tuple[float, ...]
    images: int
    sampler: Mapping[str, Any]
    bias: float
    largest: float


SDE = {"sampler": "sde-euler", "steps": 250, "last_step": "mean"}
WORLDS = {
    "paper": World(EIGHT, 50_000, SDE, 40_000, 8),
    "cifar": World(THIRTEEN, 50_000, {"sampler": "euler", "steps": 100}, 40_000, 3),
    "small": World(EIGHT, 2_000, SDE, 400, 8),
}
EULER = {"sampler": "euler", "steps": 20}
# (world, name) -> settings of the search. The first of a world is how it was done without a coarse round.
SEARCHES: dict[tuple[str, str], dict[str, Any]] = {
    ("paper", "before, 10000, top 1"): {"samples": 10_000, "keep": 1},
    ("paper", "coarse 5000, 3 on 7000"): {"coarse": EULER, "samples": 5_000, "keep": 3, "kept_samples": 7_000},
    ("paper", "coarse 5000, 3 on 10000"): {"coarse": EULER, "samples": 5_000, "keep": 3, "kept_samples": 10_000},
    ("cifar", "before, 10000, top 1"): {"samples": 10_000, "keep": 1},
    ("cifar", "coarse 5000, 5 on 10000"): {"coarse": EULER, "samples": 5_000, "keep": 5, "kept_samples": 10_000},
    ("cifar", "coarse 3000, 3 on 5500"): {"coarse": EULER, "samples": 3_000, "keep": 3, "kept_samples": 5_500},
    ("small", "before, 400, top 1"): {"samples": 400, "keep": 1},
    ("small", "coarse 200, 3 on 280"): {"coarse": EULER, "samples": 200, "keep": 3, "kept_samples": 280},
}  # fmt: skip
CHEAP = ("paper", "coarse 5000, 3 on 7000")  # the one that the goal is set for


def measure(curves: int = CURVES) -> dict[str, Any]:
    """Per search: network calls over those of the final evaluation, and how often its winner is the best value or a step beside."""
    found: dict[str, Any] = {"curves": curves}
    for (place, name), how in SEARCHES.items():
        told: dict[str, Any] = {}
        for shift in SHIFTS if "coarse" in how else (0,):
            runs = [_run(WORLDS[place], seed, how, shift) for seed in range(curves)]
            steps = np.array([off for off, _, _ in runs])
            told[f"shift {shift}"] = {
                "same_winner": round(float((steps == 0).mean()), 3),
                "within_one_step": round(float((steps <= 1).mean()), 3),
                "worse_than_best_percent": round(100 * float(np.mean([worse for _, worse, _ in runs])), 2),
            }
            told["calls_over_final"] = round(runs[0][2], 3)
            if (place, name) == CHEAP:
                agree(f"{name}, shift {shift}: steps from the best value", float(np.quantile(steps, 0.95)), 1)
        if (place, name) == CHEAP:
            told["calls_over_final"] = goal(told["calls_over_final"], at_most=GOAL)
        found.setdefault(place, {})[name] = told
    return found


class Curve:
    """One curve of a world, and the errors of its measurements."""

    def __init__(self, world: World, seed: int, shift: int) -> None:
        numbers = np.random.default_rng(seed)
        self.world = world
        self.centre, self.depth = math.log(numbers.uniform(1.2, world.largest)), numbers.uniform(5, 20)
        self.beside = shift * int(numbers.choice((-1, 1)))
        self.level, self.steeper = numbers.uniform(0, 6), numbers.uniform(0.7, 1.4)
        self.numbers = numbers
        self.errors: dict[tuple[bool, int], np.ndarray] = {}

    def truth(self, i: int) -> float:
        return 8 + self.depth * (self._log(i) - self.centre) ** 2

    def coarse(self, i: int) -> float:
        return 8 + self.level + self.steeper * (self.truth(i - self.beside) - 8)

    def measured(self, coarse: bool, i: int, n: int) -> float:
        value = self.coarse(i) if coarse else self.truth(i)
        error = self._errors(coarse, n)[i] * NOISE / math.sqrt(n / 100)
        return value * (1 + error) + self.world.bias / n * (1 - TILT * self._log(i))

    def _errors(self, coarse: bool, n: int) -> np.ndarray:
        """Of all values at once; each shares a part with the one before."""
        if (coarse, n) not in self.errors:
            drawn = self.numbers.standard_normal(len(self.world.values))
            for i in range(1, len(drawn)):
                drawn[i] = SHARED * drawn[i - 1] + math.sqrt(1 - SHARED**2) * drawn[i]
            self.errors[coarse, n] = drawn
        return self.errors[coarse, n]

    def _log(self, i: int) -> float:
        """log w of the i-th value; the grid goes on beyond its ends as it ends."""
        logs = [math.log(w) for w in self.world.values]
        if i < 0:
            return logs[0] + i * (logs[1] - logs[0])
        over = max(0, i - len(logs) + 1)
        return logs[i - over] + over * (logs[-1] - logs[-2])


def _run(world: World, seed: int, how: Mapping[str, Any], shift: int) -> tuple[int, float, float]:
    """(grid steps from the best value, how much worse the chosen one is, network calls over the final evaluation's) on one curve."""
    curve = Curve(world, seed, shift)
    most: dict[tuple[float, int, int], int] = {}

    def body(evaluation: Mapping[str, Any]) -> dict[str, Any]:
        w, n = float(evaluation["guidance"]), int(evaluation["samples"])
        series = w, int(evaluation["seed"]), _calls(evaluation)
        most[series] = max(n, most.get(series, 0))  # a larger sample begins with the smaller one
        coarse = any(evaluation[key] != world.sampler[key] for key in ("sampler", "steps"))
        value = curve.measured(coarse, world.values.index(w), n)
        row = {"metric": "FD", "group": "all", "value": value, "better": "lower", "se": None}
        return {"evaluation": dict(evaluation), "rows": [row]}

    chosen = world.values.index(_chosen(_description(world, how), body))
    truths = [curve.truth(i) for i in range(len(world.values))]
    best = int(np.argmin(truths))
    made = sum(each * n for (_, _, each), n in most.items())
    final = world.images * _calls(world.sampler)
    return abs(chosen - best), truths[chosen] / truths[best] - 1, made / final


def _calls(evaluation: Mapping[str, Any]) -> int:
    number = calls(evaluation["sampler"], evaluation["steps"], evaluation.get("last_step"))
    assert number is not None, "no sampler here chooses its own steps"
    return number


def _chosen(description: Mapping[str, Any], body: Any) -> float:
    """What the engine's search chooses by these measurements."""
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
    search(stage, 1, "search", description, body)
    return chosen[0]


def _description(world: World, how: Mapping[str, Any]) -> dict[str, Any]:
    asked = {"guidance": list(world.values), **how, "metric": "FD", "group": "all", "seed": 1}
    plain = {"protocol": "adm-50k", **world.sampler, "samples": world.images, "seed": 0}
    return {**plain, "search": asked}
