"""The speed book's helpers, that its sides are what they claim to be, and its two commands at sizes of no meaning."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from ltbench.errors import UsageError
from tests import checkouts

BENCH = Path(__file__).resolve().parents[1] / "bench"
CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def _beside() -> Iterator[None]:
    """Scripts of bench/ import each other by plain names; here, and nowhere else in a test run."""
    before = set(sys.modules)
    sys.path.insert(0, str(BENCH))
    yield
    sys.path.remove(str(BENCH))
    for name in set(sys.modules) - before:
        if str(getattr(sys.modules[name], "__file__", "")).startswith(str(BENCH)):
            del sys.modules[name]


def module(name: str) -> ModuleType:
    return __import__(name)


def test_a_ratio_is_the_median_of_the_turns_ratios() -> None:
    turns = module("turns").Turns({"ours": [1.0, 2.0, 10.0], "other": [2.0, 6.0, 10.0]})
    assert turns.ratio("other", "ours") == 2.0  # of 2, 3 and 1; the medians' ratio would be 3
    assert turns.told() == {"ours_ms": 2000.0, "other_ms": 6000.0, "other_over_ours": 2.0, "turns": 3}


def test_the_error_of_a_ratio_is_that_of_a_median() -> None:
    """Of normal ratios, beside the spread of medians over many such sets."""
    numbers = np.random.default_rng(0)
    draws = 1 + 0.1 * numbers.standard_normal((400, 25))
    made = [module("turns").Turns({"a": list(row), "b": [1.0] * len(row)}) for row in draws]
    told = np.mean([each.error("a", "b") for each in made])
    assert told == pytest.approx(np.std([each.ratio("a", "b") for each in made]), rel=0.15)
    goal = made[0].goal("a", "b", at_most=1.03)
    assert goal["error"] == made[0].error("a", "b") > 0
    assert "error" not in module("turns").Turns({"a": [1.0], "b": [1.0]}).goal("a", "b", at_most=1.0)


def test_sides_alternate_and_warm_up_before_anything_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    turns, calls = module("turns"), []
    sides = {"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}
    found = turns.in_turns(sides, CPU, turns=3, times=2, warm=1)
    assert "".join(calls) == "ab" + "aabb" + "bbaa" + "aabb"
    assert [len(each) for each in found.by_side.values()] == [3, 3]
    took = iter([0.1] * 100)
    monkeypatch.setattr(turns, "seconds", lambda *given: next(took))
    patient = turns.in_turns(sides, CPU, turns=2, warm=0, budget=0.95)
    assert len(patient.by_side["a"]) == 5  # 0.2 a turn


def test_goals_that_are_missed_are_named_by_their_place() -> None:
    turns = module("turns")
    found = {
        "a": {"x": turns.goal(2.0, at_least=1.9), "y": turns.goal(2.0, at_most=1.9)},
        "b": {"help": {"cpu_s": 0.4, "goal": 0.3}, "plan": {"cpu_s": 0.2, "goal": 0.3}},
        "c": {"goal": turns.goal(0.9, at_least=1.0)},
        "d": {"failed": "AssertionError", "met": False},
    }
    assert turns.missed(found) == ["a.y", "b.help", "c.goal", "d"]


def test_the_table_marks_what_missed_its_goal_and_what_another_run_may_decide() -> None:
    turns = module("turns")
    seconds = {"seconds": 2.0, "cpu_seconds": 1.0}
    found = {
        "T2": {"found": {"far": turns.goal(1.2, at_most=1.03, error=0.01)}, **seconds},
        "T1": {"found": {"near": turns.goal(0.99, at_least=1.0, error=0.02)}, **seconds},
        "E1": {"failed": "AssertionError: the sides are apart", "met": False, **seconds},
        **seconds,
    }
    text = module("summary").summary(found, {name: f"case {name}" for name in ("T1", "T2", "E1")})
    near, far = (next(line for line in text.splitlines() if name in line) for name in ("near", "far"))
    assert near.split()[1:] == [
        "0.99",
        "±",
        "0.02",
        ">=",
        "1",
        "MISSED,",
        "within",
        "two",
        "errors",
        "of",
        "it",
    ]
    assert far.split()[1:] == ["1.2", "±", "0.01", "<=", "1.03", "MISSED"]
    assert "FAILED  AssertionError: the sides are apart" in text
    assert text.endswith("2 goals missed, 1 of them by more than two standard errors; 1 cases failed: E1")


def test_the_book_has_every_case_of_the_reference() -> None:
    """Section 6 of reference/performance.md, and two more of the harness."""
    run = module("run")
    reference = [
        "T1",
        "T2",
        "T3",
        "T4",
        "T5",
        "T6",
        "S1",
        "S2",
        "E1",
        "E2",
        "D1",
        "D2",
        "H1",
        "H2",
        "H3",
        "C1",
    ]
    assert set(run.CASES) == {*reference, "E3", "H4"}
    for case in run.CASES.values():
        assert callable(module(case.module).measure), case.module


TINY_CASES: dict[str, Callable[[], Any]] = {
    "T1": lambda: module("steps").measure(CPU, module("steps").TINY, turns=1),
    "T2": lambda: module("ratios").measure(CPU, module("ratios").TINY, turns=1, only=("dispersive",)),
    "T4": lambda: module("unets").measure(CPU, module("unets").TINY, turns=1),
    "S1": lambda: module("sampling").measure(CPU, module("sampling").TINY, turns=1),
    "E1": lambda: module("metrics").measure(module("metrics").TINY, 2),
    "D1": lambda: module("data").measure(CPU, "SiT-N/8", module("data").SMALL),
    "D2": lambda: module("forms").measure(CPU, *module("forms").TINY),
    "C1": lambda: module("saves").measure(CPU, module("saves").TINY, turns=1),
    "H2": lambda: module("grids").measure(400, 100),
}


@pytest.mark.parametrize("name", TINY_CASES)
def test_cheap_cases_run_at_sizes_of_no_meaning(name: str) -> None:
    """Their agreement is asserted inside; nothing is asked of the times."""
    found = TINY_CASES[name]()
    assert list(module("turns").judged(found)) or name in ("E1", "C1", "H2")
    json.dumps(found)


def test_sides_that_part_are_not_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Another learning rate in the official loop: the case raises before any turn."""
    steps = module("steps")
    (world,) = steps.TINY.values()
    assert steps.trace_apart(world, "fp32", CPU, 3) <= 1e-5
    loop_of = steps.loop_of

    def faster(*given: Any) -> Any:
        loop = loop_of(*given)
        loop.optimizer.param_groups[0]["lr"] *= 1.5
        return loop

    monkeypatch.setattr(steps, "loop_of", faster)
    with pytest.raises(AssertionError, match=r"loss trace: the sides are .* apart"):
        steps.trace_apart(world, "fp32", CPU, 3)


def test_every_way_to_run_ccua_has_the_same_gradient() -> None:
    ccua = module("ccua")
    (found,) = ccua.measure(CPU, ccua.TINY, turns=1).values()
    assert set(found["gradients_apart"]) == {"skip", "serial", "full", "padded"}
    assert found["dropped"] == 1


def test_the_search_counts_what_it_makes() -> None:
    """Eight values on 10,000 images, the best on to 50,000, and 50,000 of another seed: no image twice. Then the same with a coarse
    round of 20 calls an image for 250."""
    found = module("searches").measure(5)["paper"]
    assert found["before, 10000, top 1"]["calls_over_final"] == (8 * 10 + 40 + 50) / 50
    ours = found["coarse 5000, 3 on 7000"]["calls_over_final"]
    assert ours["value"] == (8 * 5 * 20 / 250 + 3 * 7 + 50) / 50


def test_memory_grows_with_rows_and_ccua_keeps_two_passes() -> None:
    speed = module("speed")
    (found,) = speed.measure(CPU, speed.TINY).values()
    assert found["ccua"]["kept_mb_per_image"] > 1.9 * found["sit"]["kept_mb_per_image"] > 0


def test_run_tells_cases_and_goals_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    run = module("run")
    assert run.main(["--only", "S2", "features"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["S2"]["case"] == "searches"
    assert told["E2"]["found"]["apart"] <= 1e-4
    assert all(place.startswith("S2.") for place in told["missed"])


def test_a_case_that_fails_leaves_the_others(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    run, searches = module("run"), module("searches")

    def parts(*given: Any) -> None:
        raise AssertionError("the sides are apart")

    monkeypatch.setattr(searches, "measure", parts)
    assert run.main(["--only", "S2", "E2"]) == 1
    told = json.loads(capsys.readouterr().out)
    assert told["S2"]["failed"] == "AssertionError: the sides are apart"
    assert told["E2"]["found"]


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's tracing looks at it
def test_the_gpu_script_runs_every_part(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    gpu = module("gpu")
    assert gpu.main(["--tiny", "--out", str(tmp_path / "gpu.json")]) == 0
    told = json.loads((tmp_path / "gpu.json").read_text())
    assert told == json.loads(capsys.readouterr().out)
    assert {part.name for part in gpu.PARTS} <= told.keys()
    assert (told["skipped"], told["failed"]) == ({}, {})
    assert '"failed"' not in json.dumps([told[part.name] for part in gpu.PARTS])
    assert {"ms", "mfu", "execution", "compile_s", "fp32_trace_apart", "modes_apart"} <= told[
        "T1 T5 S/2 b48"
    ].keys()


MEASURING = """
import os, sys, time
from pathlib import Path
sys.path[:0] = {path!r}
import inside

def failing(book):
    raise ValueError("no such kernel")

parts = [inside.Part("first", 9, lambda book: {{"ms": 1.0}}), inside.Part("failing", 9, failing),
         inside.Part("hanging", 0.1, lambda book: time.sleep(60)), inside.Part("dying", 9, lambda book: os._exit(9)),
         inside.Part("long", 9999, lambda book: {{}}), inside.Part("last", 9, lambda book: {{"ms": 2.0}})]

class Book:
    def clean(self):
        pass

out, names, budget = Path(sys.argv[1]), sys.argv[2:-2], float(sys.argv[-1])
inside.run(Book(), [p for p in parts if p.name in names], inside.Journal(out, {{"device": "none"}}), budget)
"""


def test_parts_that_fail_hang_or_die_are_told_and_the_others_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inside, names = module("inside"), ["first", "failing", "hanging", "dying", "long", "last"]
    monkeypatch.setattr(inside, "GRACE", 0.2)
    script, out = tmp_path / "measuring.py", tmp_path / "gpu.json"
    script.write_text(MEASURING.format(path=[str(BENCH), str(BENCH.parent)]))
    inside.supervise([sys.executable, str(script), str(out), *names], names, 300.0, out)
    told = json.loads(out.read_text())
    assert (told["first"], told["last"], told["device"]) == ({"ms": 1.0}, {"ms": 2.0}, "none")
    assert told["failed"].keys() == {"failing", "hanging", "dying"}
    assert "in failing\n" in told["failed"]["failing"]
    assert told["failed"]["failing"].endswith("ValueError: no such kernel")
    assert told["failed"]["hanging"].endswith("0.2 s were allowed")
    assert told["failed"]["dying"] == "its process ended by itself with status 9"
    assert told["skipped"]["long"].startswith("needs 9999 s, ")
    assert "running" not in told


def test_without_a_gpu_the_script_says_what_to_do(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert module("gpu").main([]) == 4
    assert "--tiny" in capsys.readouterr().err


SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "train": ("sit", {"network": "SiT-N/4", "shape": (4, 8, 8)}),
    "sample": ("sit", {"network": "SiT-N/4", "shape": (4, 8, 8)}),
    "unet": ("cbdm", {"batch": 2, "local_batch": 2}),
}


@pytest.mark.parametrize("what", SMALL)
def test_the_users_own_checkout_takes_the_other_side(what: str, tmp_path: Path) -> None:
    kind, changes = SMALL[what]
    theirs = module("theirs")
    world = dataclasses.replace(theirs.WORLDS[kind], **changes)
    before, count = set(sys.modules), 1 if what == "unet" else 5
    found = theirs.measure(what, str(checkouts.write(tmp_path, kind)), CPU, turns=1, world=world, count=count)
    assert found["checkout"] == kind
    assert found.get("trace_apart", found.get("apart")) < 1e-3
    assert not {"models", "transport", "diffusion", "model"} & (set(sys.modules) - before)


def test_repas_sampler_gives_the_same_images(tmp_path: Path) -> None:
    theirs = module("theirs")
    world = dataclasses.replace(theirs.WORLDS["repa"], network="SiT-N/4", shape=(4, 8, 8))
    found = theirs.measure(
        "sample", str(checkouts.write(tmp_path, "repa")), CPU, turns=1, world=world, count=5
    )
    assert found["apart"] < 1e-3
    assert theirs.measure("unet", str(tmp_path / "repa"), CPU) is None


def test_a_folder_that_is_no_checkout_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is no checkout of SiT, REPA or CBDM"):
        module("theirs").measure("train", str(tmp_path), CPU)
