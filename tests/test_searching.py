"""A search for the guidance on curves that are known: what it makes, what it keeps, what it says, and what leaves its id alone."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import SimpleNamespace
from typing import Any

import pytest

from ltbench.cost.work import calls
from ltbench.protocols import evaluation_id, sampling_text
from ltbench.searching import kept, rounds, rule, told
from ltbench.stages.search import search

GRID = [1.0, 1.5, 2.0, 3.0, 4.0, 5.0, 7.5, 10.0]
PLAIN = {"protocol": "adm-50k", "sampler": "sde-euler", "steps": 250, "samples": 500, "seed": 0}
PLAIN |= {
    "metrics": ["FD", "KD"],
    "diffusion": "sigma",
    "diffusion_norm": 1.0,
    "last_step": "mean",
    "last_step_size": 0.04,
}
HOW = {"guidance": GRID, "samples": 50, "keep": 3, "metric": "FD", "group": "all", "seed": 1}
EULER = {"sampler": "euler", "steps": 20}
COARSE = {**HOW, "coarse": EULER, "kept_samples": 70}


def described(how: Mapping[str, Any]) -> dict[str, Any]:
    return {**PLAIN, "guidance": None, "search": dict(how)}


def made(how: Mapping[str, Any], value: Callable[[str, float], float]) -> tuple[list[Any], dict[str, Any]]:
    """The evaluations that a search asked for, in order, and its record; `value` of (sampler, w) is what they find."""
    asked: list[dict[str, Any]] = []
    put: list[dict[str, Any]] = []

    def measure(evaluation: Mapping[str, Any]) -> dict[str, Any]:
        asked.append(dict(evaluation))
        found = value(evaluation["sampler"], evaluation["guidance"])
        row = {"metric": "FD", "group": "all", "value": found, "better": "lower", "se": None}
        return {"evaluation": dict(evaluation), "rows": [row]}

    run = SimpleNamespace(
        records=lambda kind: [],
        put_record=lambda kind, step, told, envelope, evaluation: put.append(told),
        cell="cell",
        run="run",
    )
    stage: Any = SimpleNamespace(
        run=run, claim=SimpleNamespace(still_mine=lambda: True), envelope=lambda **more: {}
    )
    search(stage, 1, "search", described(how), measure)
    return asked, put[0]


def work(evaluations: list[tuple[dict[str, Any], int]]) -> int:
    return sum(n * (calls(e["sampler"], e["steps"], e.get("last_step")) or 0) for e, n in evaluations)


@pytest.mark.parametrize("how", [HOW, COARSE, {**HOW, "kept_samples": 50}])
def test_plan_counts_what_a_search_makes(how: dict[str, Any]) -> None:
    """Image k of one sampling is made once, in whichever round it is asked for first."""
    asked, _ = made(how, lambda _, w: abs(w - 3))
    most: dict[tuple[Any, ...], tuple[dict[str, Any], int]] = {}
    for each in asked:
        series = each["sampler"], each["guidance"], each["seed"]
        most[series] = each, max(each["samples"], most.get(series, (each, 0))[1])
    assert work(rounds(described(how))) == work(list(most.values()))


def test_the_paper_sized_search_costs_half_a_final_evaluation() -> None:
    how = {**COARSE, "samples": 5000, "kept_samples": 7000}
    whole = {**described(how), "samples": 50_000}
    final = rounds(whole)[-1:]
    assert 1.4 < work(rounds(whole)) / work(final) < 1.5


@pytest.mark.parametrize("shift", [-1, 0, 1])
def test_a_coarse_sampler_with_another_optimum_does_not_choose(shift: int) -> None:
    """Its curve lies a grid step beside: the truth is among the neighbours, though the curve is so skewed that the three best of
    the coarse round are all on one side."""
    truth = 3

    def value(sampler: str, w: float) -> float:
        i = GRID.index(w) - truth
        return float(i * i) if sampler != "euler" else (10.0 * (shift - i) if i < shift else float(i - shift))

    asked, body = made(COARSE, value)
    assert body["chosen"] == GRID[truth]
    finalists = asked[len(GRID) : -1]
    assert [GRID.index(each["guidance"]) - truth - shift for each in finalists] == [-1, 0, 1]
    common = {"protocol": "adm-50k", "seed": 1, "metrics": ["FD"]}
    for each in asked[: len(GRID)]:
        assert each == {**common, **EULER, "samples": 50, "guidance": each["guidance"]}
    for each in finalists:
        assert each == {**PLAIN, **common, "samples": 70, "guidance": each["guidance"]}
    assert asked[-1] == {**PLAIN, "guidance": GRID[truth]}, "reported on images that chose nothing"


def test_every_point_says_which_sampler_measured_it() -> None:
    asked, body = made(COARSE, lambda sampler, w: abs(w - 4) + (sampler == "euler"))
    points = body["candidates"]
    assert [p["evaluation"] for p in points] == [evaluation_id(each) for each in asked[:-1]]
    assert [{k: p[k] for k in EULER} for p in points[: len(GRID)]] == [EULER] * len(GRID)
    assert all("sampler" not in p and p["n"] == 70 for p in points[len(GRID) :])
    assert body["rule"] == "coarse-euler20-50-around3-70-seed1"
    assert sampling_text(described(COARSE)).endswith("7.5, 10, first by euler 20 steps")


def test_neighbours_at_the_end_of_the_grid_and_in_even_numbers() -> None:
    found = [(w, v) for w, v in zip([3.0, 1.0, 2.0, 4.0], [9.0, 1.0, 5.0, 2.0], strict=True)]
    how = {"coarse": EULER, "keep": 3}
    assert kept(found, how) == [1.0, 2.0, 3.0]
    inner = [(1.0, 3.0), (2.0, 0.0), (3.0, 2.0), (4.0, 1.0)]
    assert kept(inner, {**how, "keep": 2}) == [2.0, 3.0], "of two neighbours the better"
    assert kept(inner, {"keep": 2}) == [2.0, 4.0], "without a coarse sampler the best"


def test_what_is_not_asked_for_changes_neither_name_nor_id() -> None:
    """The rule and the description of searches as they were before there was a coarse round."""
    assert rule(described(HOW)) == "staged-50-top3-500-seed1"
    assert told(described(HOW)) == "8 values on 50 images each, the best 3 on 500"
    assert told(described(COARSE)) == (
        "8 values on 50 images each by euler 20 steps, the nearest 3 on 70 by its own sampler"
    )
