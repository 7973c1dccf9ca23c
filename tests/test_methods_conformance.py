"""The contract, checked for every file in methods/ on every pipeline that it supports. A dropped-in file needs no test here."""

from __future__ import annotations

import ast
from typing import Any

import pytest
import torch

from ltbench import plugins
from ltbench.methods import Method, Objective, load_method
from ltbench.parts import seeded
from tests.toy import PIPELINES, draw, network, parts, task

NAMES = [name for name, plugin in plugins.find("methods").items() if plugin.problem is None]


def options(name: str, pipeline: str) -> dict[str, Any]:
    """The method's defaults on a pipeline (signature, then the preset named like it), small and offline (preset `check`)."""
    presets = plugins.get("methods", name).presets or {}
    return {**presets.get(pipeline, {}), **presets.get("check", {})}


def build(name: str, pipeline: str, **task_changes: Any) -> Method:
    """The method with its defaults on a tiny task; weights of its own are seeded, as the trainer seeds them."""
    the_task = task(pipeline, **task_changes)
    return seeded(1, lambda: load_method(name)(the_task, **options(name, pipeline)))


def off(name: str) -> dict[str, Any]:
    """What switches a method off: its preset `off`, else every weight at 0."""
    plugin = plugins.get("methods", name)
    weights = {p.name: 0.0 for p in plugin.parameters if p.name in ("weight", "alpha", "gamma", "tau")}
    return (plugin.presets or {}).get("off", weights)


SUPPORTED = [
    (name, pipe) for pipe in PIPELINES for name in NAMES if load_method(name).supports(task(pipe)) is None
]
every = pytest.mark.parametrize(("name", "pipeline"), SUPPORTED)


@every
def test_terms_are_finite_named_and_shaped(name: str, pipeline: str) -> None:
    objective = Objective(network(pipeline), build(name, pipeline))
    terms = objective(draw(pipeline))
    assert all(term.isfinite().all() for term in terms.values())
    assert all(term.dtype == torch.float32 for term in terms.values())


@every
def test_gradients_reach_every_parameter(name: str, pipeline: str) -> None:
    objective = Objective(network(pipeline), build(name, pipeline))
    sum(term.mean() for term in objective(draw(pipeline)).values()).backward()
    silent = [n for n, p in objective.named_parameters() if p.requires_grad and p.grad is None]
    assert not silent


@every
def test_switched_off_equals_the_baseline_bit_for_bit(name: str, pipeline: str) -> None:
    """Loss, gradient and rows of the network: no pass is asked for that the baseline does not make."""
    quiet = load_method(name)(task(pipeline), **{**options(name, pipeline), **off(name)})
    baseline = load_method(pipeline)(task(pipeline))
    net = network(pipeline)
    rows: list[int] = []
    net.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    sums, gradients = [], []
    for strategy in (quiet, baseline):
        total = sum(Objective(net, strategy)(draw(pipeline)).values())
        sums.append(total)
        gradients.append(torch.autograd.grad(total.sum(), list(net.parameters())))
    assert torch.equal(*sums)
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))
    assert rows == [8, 8]


@every
def test_fused_passes_equal_serial_ones(name: str, pipeline: str) -> None:
    gradients = []
    for passes in ("fused", "serial"):
        objective = Objective(
            network(pipeline, dropout=0.2), build(name, pipeline, passes=passes, dropout=0.2)
        )
        loss = sum(term.mean() for term in objective(draw(pipeline)).values())
        loss.backward()
        gradients.append(torch.cat([p.grad.flatten() for p in objective.parameters() if p.grad is not None]))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)


@every
def test_without_dropout_fused_passes_equal_serial_ones_to_1e_6(name: str, pipeline: str) -> None:
    found = []
    for passes in ("fused", "serial"):
        objective = Objective(network(pipeline), build(name, pipeline, passes=passes))
        loss = sum(term.mean() for term in objective(draw(pipeline)).values())
        loss.backward()
        gradient = torch.cat([p.grad.flatten() for p in objective.parameters() if p.grad is not None])
        found.append((loss.detach(), gradient))
    (loss, fused), (other, serial) = found
    assert abs(loss - other) <= 1e-6 * abs(other)
    assert (fused - serial).norm() <= 1e-6 * serial.norm()


@every
def test_a_method_draws_only_from_its_own_stream(name: str, pipeline: str) -> None:
    objective = Objective(network(pipeline), build(name, pipeline))
    before = torch.random.get_rng_state()
    first = objective(draw(pipeline))
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(12345)
    again = objective(draw(pipeline))
    assert all(torch.equal(first[term], again[term]) for term in first)


@every
@pytest.mark.parametrize("case", ["one image", "all dropped", "none dropped"])
def test_edges_of_a_batch(name: str, pipeline: str, case: str) -> None:
    objective = Objective(network(pipeline), build(name, pipeline))
    shape = {"shards": 3, "local_batch": 1} if case == "one image" else {}
    drop = {"all dropped": 1.0, "none dropped": 0.0}.get(case, 0.3)
    terms = objective(draw(pipeline, label_drop=drop, **shape))
    sum(term.mean() for term in terms.values()).backward()
    assert all(term.isfinite().all() for term in terms.values())
    assert all(p.grad.isfinite().all() for p in objective.parameters() if p.grad is not None)


@every
def test_the_draw_is_left_as_it_was(name: str, pipeline: str) -> None:
    made, untouched = draw(pipeline), draw(pipeline)
    Objective(network(pipeline), build(name, pipeline))(made)
    for field, value in vars(untouched).items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, getattr(made, field)), field


@every
def test_a_micro_batch_of_all_equals_several(name: str, pipeline: str) -> None:
    """The seed's 48 images in one forward, or its four local batches of 12 in turn: the same gradient, dropout included."""
    from ltbench.trainer import Trainer

    gradients = []
    for micro in (48, 12):
        sizes = {"batch": 48, "local_batch": 12, "dropout": 0.2}
        trainer = Trainer(parts(pipeline, {"name": name, **options(name, pipeline)}, **sizes), micro, 10)
        trainer.advance()
        gradients.append(torch.cat([p.grad.flatten() for p in trainer.named.values()]))
    whole, parted = gradients
    assert (whole - parted).norm() <= 1e-5 * whole.norm()  # sums of 48 in another order, in float32


@every
def test_bfloat16_passes_give_float32_terms(name: str, pipeline: str) -> None:
    objective = Objective(network(pipeline), build(name, pipeline, bfloat16=True))
    terms = objective(draw(pipeline))
    assert all(term.dtype == torch.float32 and term.isfinite().all() for term in terms.values())


@pytest.mark.parametrize("name", NAMES)
def test_a_plugin_runs_somewhere_or_says_why_not(name: str) -> None:
    reasons = [load_method(name).supports(task(pipeline)) for pipeline in PIPELINES]
    assert None in reasons
    assert all(reason is None or reason.strip() for reason in reasons)


@pytest.mark.parametrize("name", NAMES)
def test_a_plugin_reads_alone(name: str) -> None:
    tree = ast.parse(plugins.get("methods", name).path.read_text())
    modules = [node.module or "" for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)]
    modules += [alias.name for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names]
    assert [m for m in modules if m.startswith("ltbench") and m != "ltbench.methods"] == []
