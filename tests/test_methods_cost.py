"""CCUA against its published form, two whole passes: operations counted, and gradients to 1e-6."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from ltbench.methods import Draw, Method, Objective
from tests.test_methods_conformance import build
from tests.toy import PIPELINES, draw, dropping, method, network, task

both = pytest.mark.parametrize("pipeline", PIPELINES)
TAP = {"sit": "N/4", "ddpm": "mid"}


def tenth_dropped(pipeline: str) -> Draw:
    """40 rows, of which 4 lost their label: the rate of every published recipe, exactly."""
    made = draw(pipeline, shards=4, local_batch=10, label_drop=0.0)
    dropped = torch.arange(40) % 10 == 3
    return dropping(made, dropped)


def operations(strategy: Method, pipeline: str) -> int:
    """Floating point operations of one loss and its gradient, as torch counts them."""
    objective = Objective(network(pipeline), strategy)
    with FlopCounterMode(display=False) as counter:
        terms = objective(tenth_dropped(pipeline))
        torch.stack([term.mean() for term in terms.values()]).sum().backward()
    return counter.get_total_flops()


@both
@pytest.mark.parametrize("passes", ["fused", "serial"])
def test_ccua_costs_at_most_1_90_of_the_baseline(pipeline: str, passes: Any) -> None:
    ours = operations(build("ccua", pipeline, passes=passes), pipeline)
    plain = operations(build(pipeline, pipeline), pipeline)
    assert 1.85 < ours / plain < 1.90 * 1.05
    if (
        pipeline == "sit"
    ):  # the contrast itself is a product of 10 x 10 x D per local batch: nothing beside the network
        without = method("ccua", task(pipeline, passes=passes), tap=TAP[pipeline], alpha=0.0)
        assert operations(without, pipeline) / plain == pytest.approx(1.90, abs=0.01)


@both
def test_cbdm_and_pairs_cost_as_much_and_the_rest_one_pass(pipeline: str) -> None:
    plain = operations(build(pipeline, pipeline), pipeline)
    for name, options in (("cbdm", {}), ("diffrop", {"form": "pair"})):
        ratio = operations(method(name, task(pipeline), **options), pipeline) / plain
        assert ratio == pytest.approx(1.90, abs=0.01), name
    for name, options in (("diffrop", {}), ("dispersive", {"tap": {"sit": "N", "ddpm": "mid"}[pipeline]})):
        assert operations(method(name, task(pipeline), **options), pipeline) / plain < 1.02, name


@both
def test_ccua_has_the_gradient_of_two_whole_passes(pipeline: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The published form runs every row under its label (or null, where dropped) and every row under null."""
    monkeypatch.setattr(
        Tensor, "float", lambda x: x
    )  # passes give float32 whatever they get; here float64 throughout
    made, options = in_double(tenth_dropped(pipeline)), {"alpha": 0.7, "gamma": 0.3}
    net = network(pipeline).double()
    name = task(pipeline).tap(TAP[pipeline])
    ours = Objective(net, method("ccua", task(pipeline), tap=TAP[pipeline], **options))(made)
    cond, _ = net(made.xt, made.t, made.y_in, taps=())
    null, feats = net(made.xt, made.t, torch.full_like(made.y, 6), taps=(name,))
    clock = 1 - made.level
    plain = {
        "denoise": (cond - made.target).square().mean((1, 2, 3)),
        "spread": 0.7 * clock * torch.cat([ucl(feats[0][i : i + 10]) for i in range(0, 40, 10)]),
        "align": 0.3 * clock * (cond - null).square().mean((1, 2, 3)),
    }
    found = []
    for terms in (ours, plain):
        loss = torch.stack([term.mean() for term in terms.values()]).sum()
        found.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, list(net.parameters()))]))
    assert (found[0] - found[1]).abs().max() < 1e-6
    assert (found[0] - found[1]).norm() < 1e-6 * found[1].norm()
    for term, value in plain.items():
        torch.testing.assert_close(ours[term], value, rtol=1e-6, atol=1e-9)


def ucl(features: Tensor) -> Tensor:
    unit = torch.nn.functional.normalize(features.flatten(1), dim=1)
    return torch.logsumexp((unit @ unit.T / 0.1).fill_diagonal_(10.0), dim=1) - 10.0


def in_double(made: Draw) -> Draw:
    wide = {
        f: v.double() for f, v in vars(made).items() if isinstance(v, Tensor) and v.dtype == torch.float32
    }
    return dataclasses.replace(made, **wide)
