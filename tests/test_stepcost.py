"""`run --profile-step`: a step taken apart adds up, its parts have names, and nothing is left in the store."""

from __future__ import annotations

import gzip
import json

import pytest

from ltbench.cli import measuring
from ltbench.stepcost import attribution
from ltbench.stepcost.attribution import PREFIX, UNNAMED, WAITING, Event
from tests import cli_world

cli, here = cli_world.cli, cli_world.here  # fixtures

NEVER = '''
"""Runs nowhere."""

from ltbench.methods import Method


class Never(Method):
    """Runs nowhere."""

    @classmethod
    def supports(cls, task):
        return "it wants a network with ears"

    def loss(self, net, draw):
        raise AssertionError
'''

# A step whose block multiplies once, forwards and, by the same number, backwards; and something before the step.
EVENTS = [
    Event("aten::zeros", None, 9.0),
    Event(PREFIX + "step", None, 0.1),
    Event(PREFIX + "network: blocks", 1, 0.2),
    Event("aten::mm", 2, 3.0, sequence=7, kernels=(("gemm", 0.5),)),
    Event("autograd::engine::evaluate_function: MmBackward0", 1, 0.3, sequence=7, backward=True),
    Event("aten::mm", 4, 5.0, kernels=(("gemm", 1.0),)),
    Event("Optimizer.step#AdamW.step", 1, 0.4),
    Event("aten::add_", 6, 1.0),
]


def test_every_second_of_a_step_belongs_to_one_part():
    costs = attribution.on_host(EVENTS, steps=2)
    found = {(cost.part, cost.kind): (cost.seconds, cost.calls) for cost in costs}
    assert found == {
        ("network: blocks, backward", "matrix products"): (2.5, 0.5),
        ("network: blocks", "matrix products"): (1.5, 0.5),
        ("optimiser", "element by element"): (0.5, 0.5),
        ("optimiser", attribution.HOST): (0.2, 0.5),
        ("network: blocks, backward", attribution.TORCH): (0.15, 0.5),
        ("network: blocks", attribution.HOST): (0.1, 0.5),
        (attribution.REST, attribution.HOST): (0.05, 0.5),
    }
    assert [cost.seconds for cost in costs] == sorted((c.seconds for c in costs), reverse=True)
    inside = sum(event.seconds for event in EVENTS[1:])
    assert sum(seconds for _, seconds in attribution.by_part(costs)) == pytest.approx(inside / 2)


def test_on_a_gpu_kernels_count_and_what_is_left_is_waiting():
    """A kernel that no operation launched comes from a compiled block or a captured graph, and is not lost."""
    kernels = [("gemm", 0.5), ("gemm", 1.0), ("triton_fused", 0.25)]
    costs = attribution.on_device(EVENTS, kernels, steps=1, seconds=4.0)
    assert [(cost.part, cost.seconds) for cost in costs] == [
        (WAITING, 2.25),
        ("network: blocks, backward", 1.0),
        ("network: blocks", 0.5),
        (UNNAMED, 0.25),
    ]


def test_profile_step_names_the_parts_of_real_steps_and_leaves_the_store_alone(cli, here):
    (here / "never.py").write_text(NEVER)
    words = ("run", "little.yaml", "--profile-step", "--threads", "1", "--device", "cpu", "--with", "never")
    code, out, _ = cli(*words, "--plugins", here / "never.py", "--json")
    found = {each["method"]: each for each in json.loads(out)}
    assert code == 0
    assert list(found) == ["sit", "ccua", "never"], "the first cell of each method"
    assert found["never"]["outcome"] == "unsupported"
    assert "ears" in found["never"]["message"]
    assert not (here / "store").exists()
    for method in ("sit", "ccua"):
        result = found[method]["result"]
        parts = {each["part"]: each["share"] for each in result["parts"]}
        assert sum(parts.values()) == pytest.approx(1)
        assert sum(cost["share"] for cost in result["costs"]) == pytest.approx(1)
        for part in (
            "data: draw",
            "method: loss terms",
            "gradient norm and clipping",
            "optimiser",
            "EMA",
            "log",
        ):
            assert part in parts
        for part in ("network: blocks.mlp", "network: blocks.attention", "network: head"):
            assert {part, f"{part}, backward"} <= set(parts)
        calls = {(c["part"], c["kind"]): c["calls"] for c in result["costs"]}
        assert calls["EMA", attribution.HOST] == 1
        assert calls["data: draw", attribution.HOST] == 1
        with gzip.open(result["trace"]) as file:
            events = json.load(file)["traceEvents"]
        assert sum(event.get("name") == PREFIX + "step" for event in events) >= result["steps"]
    assert str(here / "scratch") in found["sit"]["result"]["trace"]


def test_profile_step_says_what_it_cannot_do(cli, here, monkeypatch):
    code, _, err = cli("run", "little.yaml", "--profile-step", "--filter", "cell=ffff")
    assert code == 2
    assert "no cell of little fits cell=ffff" in err
    code, _, err = cli("run", "little.yaml", "--profile-step", "--report", "--workers", "2")
    assert code == 2
    assert "goes without --workers, --report" in err

    def answers(module, words, questions, device, threads):
        for line in questions.splitlines():
            yield {"cell": json.loads(line)["cell"], "outcome": "unsupported", "message": "no ears"}

    monkeypatch.setattr(measuring, "answers", answers)
    code, out, err = cli("run", "little.yaml", "--profile-step", "--filter", "method=ccua")
    assert code == 2
    assert "ccua seed 0 is n/a: no ears" in err
    assert out.count("ccua") == 1, "its seeds take the same step"
