"""DiffROP and CORAL, and the rest of the test lists of CBDM and CCUA, against closed forms."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from scipy import stats
from torch import Tensor

from ltbench.methods import Draw, Objective, info_nce
from ltbench.networks import build_network
from ltbench.parts import seeded
from tests.toy import NETWORKS, PIPELINES, draw, dropping, method, network, task

both = pytest.mark.parametrize("pipeline", PIPELINES)


class Table:
    """A stand-in for a network: rows it is asked for get the prediction `of(t, y)`, constant over pixels."""

    training = False

    def __init__(self, of: Any) -> None:
        self.of = of

    def __call__(self, x: Tensor, t: Tensor, y: Tensor, taps: tuple[str, ...]) -> tuple[Tensor, list[Tensor]]:
        return 0 * x + self.of(t, y)[:, None, None, None], []


def relabelled(made: Draw, y: Tensor) -> Draw:
    return dropping(made, torch.zeros_like(made.dropped), y=y, y_in=y)


# --- DiffROP, batch form --------------------------------------------------------------------------------------------


@both
def test_equal_labels_give_the_weight_itself_without_gradient(pipeline: str) -> None:
    made = relabelled(draw(pipeline), torch.full((8,), 2))
    net = network(pipeline)
    term = Objective(net, method("diffrop", task(pipeline), weight=0.25))(made)["overlap"]
    assert term.item() == 0.25
    gradients = torch.autograd.grad(term, list(net.parameters()), allow_unused=True)
    assert all(g is None or g.abs().max() == 0 for g in gradients)


@both
@pytest.mark.parametrize("clock", ["data", "noise"])
def test_the_batch_form_is_its_closed_form(pipeline: str, clock: str) -> None:
    labels = torch.tensor([0, 1, 1, 2, 3, 3, 0, 5])
    made = relabelled(draw(pipeline), labels)
    f = torch.linspace(-1, 2, 7)
    diffrop = method("diffrop", task(pipeline), weight=0.3, clock=clock)
    found = diffrop.loss(Table(lambda t, y: f[y]), made)["overlap"]  # type: ignore[arg-type]
    pi = draw(pipeline).rng.permutation().tolist()
    level = made.level.tolist()
    values = []
    for group in (range(4), range(4, 8)):
        assert sorted(pi[i] for i in group) == list(group), "pairs stay inside a local batch"
        d = 0.0
        for i in group:
            weight = level[i] if clock == "noise" else 1 - level[i]
            if labels[i] != labels[pi[i]]:
                d += weight * float(f[labels[i]] - f[labels[pi[i]]]) ** 2 / 4
        values.append(0.3 / (1 + d))
    assert float(found) == pytest.approx(sum(values) / 2, rel=1e-5)


def test_two_images_with_known_outputs() -> None:
    """B = 2: if the permutation swaps them, d is the mean of both clocks times the square; else 0."""
    seen = set()
    for step in range(1, 12):
        made = relabelled(draw("sit", step, shards=1, local_batch=2), torch.tensor([0, 1]))
        diffrop = method("diffrop", task("sit"), weight=1.0)
        found = diffrop.loss(Table(lambda t, y: y.float() * 3), made)["overlap"]  # type: ignore[arg-type]
        swapped = draw("sit", step, shards=1, local_batch=2).rng.permutation().tolist() == [1, 0]
        d = float((1 - made.level).mean()) * 9 if swapped else 0.0
        assert float(found) == pytest.approx(1 / (1 + d), rel=1e-5)
        seen.add(swapped)
    assert seen == {True, False}, "fixed points of the permutation contribute 0"


def test_the_term_falls_as_outputs_part_and_labels_count_before_dropout() -> None:
    base = relabelled(draw("sit"), torch.arange(8) % 6)
    made = dropping(base, torch.ones(8, dtype=torch.bool))
    values = []
    for scale in (0.0, 0.5, 1.0, 4.0):
        net = Table(lambda t, y, s=scale: s * torch.arange(len(y)).float())
        made = dataclasses.replace(made, rng=draw("sit").rng)
        values.append(float(method("diffrop", task("sit")).loss(net, made)["overlap"]))  # type: ignore[arg-type]
    assert values[0] == pytest.approx(0.1)
    assert values == sorted(values, reverse=True)
    assert len(set(values)) == 4


# --- DiffROP, pair form ---------------------------------------------------------------------------------------------


@both
def test_the_pair_form_is_a_hinge_at_the_same_noisy_image(pipeline: str) -> None:
    f = torch.tensor(
        [0.0, 0.3, 0.9, 1.5, 4.0, -2.0, 0.1]
    )  # the last is the null label's, near enough to matter
    made = draw(pipeline, label_drop=0.4)
    diffrop = method("diffrop", task(pipeline), form="pair", clock="noise", weight=0.2, margin=0.5)
    terms = diffrop.loss(Table(lambda t, y: f[y]), made)  # type: ignore[arg-type]
    other = diffrop.another(dataclasses.replace(made, rng=draw(pipeline).rng))
    assert (other != made.y).all()
    hinge = 0.2 * (0.5 - made.level * (f[made.y] - f[other]) ** 2).clamp_min(0)
    expected = torch.where(made.dropped, torch.zeros(()), hinge)
    torch.testing.assert_close(terms["overlap"], expected)
    assert made.dropped.any()


@both
def test_both_passes_of_the_pair_form_are_trained(pipeline: str) -> None:
    shift = torch.arange(7.0).mul(0.01).requires_grad_()
    made = draw(pipeline, label_drop=0.0)
    diffrop = method("diffrop", task(pipeline), form="pair", clock="noise", weight=1.0)
    terms = diffrop.loss(Table(lambda t, y: shift[y]), made)  # type: ignore[arg-type]
    other = diffrop.another(dataclasses.replace(made, rng=draw(pipeline).rng))
    terms["overlap"].sum().backward()
    slope = -2 * made.level * (shift[made.y] - shift[other]).detach()
    expected = torch.zeros(7).index_add(0, made.y, slope).index_add(0, other, -slope)
    torch.testing.assert_close(shift.grad, expected, rtol=1e-4, atol=1e-7)


def test_the_other_class_is_uniform_over_other_classes_with_images() -> None:
    counts = torch.tensor([40, 0, 12, 8, 0, 3])
    diffrop = method("diffrop", task("sit", class_counts=counts), form="pair")
    tally = torch.zeros(6)
    for step in range(1, 41):
        made = draw("sit", step, shards=20, local_batch=4)
        made = dataclasses.replace(made, y=torch.full((80,), 3))
        tally += torch.bincount(diffrop.another(made), minlength=6)
    assert tally[[1, 3, 4]].sum() == 0
    assert stats.chisquare(tally[[0, 2, 5]].numpy()).pvalue > 1e-3


def test_a_single_class_has_no_other_and_the_pair_term_is_zero() -> None:
    only = task("sit", class_counts=torch.tensor([0, 0, 9, 0, 0, 0]))
    made = relabelled(draw("sit"), torch.full((8,), 2))
    net = network("sit")
    terms = Objective(net, method("diffrop", only, form="pair"))(made)
    assert terms["overlap"].abs().max() == 0


# --- CORAL ----------------------------------------------------------------------------------------------------------


def test_supcon_is_the_loop_over_anchors_and_positives() -> None:
    coral = method("coral", task("sit"), temperature=0.2)
    generator = torch.Generator().manual_seed(0)
    h = torch.randn(2, 7, 5, generator=generator)
    y = torch.tensor([[0, 0, 1, 1, 1, 2, 0], [3, 3, 3, 4, 5, 6, 7]])
    kept = torch.tensor([[True] * 7, [True, True, False, True, True, True, True]])
    found = coral.supcon(h, y, kept)
    for group in range(2):
        unit = h[group] / h[group].norm(dim=1, keepdim=True)
        rows = [i for i in range(7) if kept[group, i]]
        losses = []
        for i in rows:
            positives = [p for p in rows if p != i and y[group, p] == y[group, i]]
            if not positives:
                continue
            below = sum(math.exp(float(unit[i] @ unit[a]) / 0.2) for a in rows if a != i)
            logs = [math.log(math.exp(float(unit[i] @ unit[p]) / 0.2) / below) for p in positives]
            losses.append(-sum(logs) / len(logs))
        assert float(found[group]) == pytest.approx(sum(losses) / len(losses), rel=1e-5)


def test_supcon_closed_forms() -> None:
    coral = method("coral", task("sit"))
    same = torch.ones(1, 6, 3)
    y, kept = torch.tensor([[0, 0, 0, 1, 1, 1]]), torch.ones(1, 6, dtype=torch.bool)
    assert float(coral.supcon(same, y, kept)) == pytest.approx(math.log(5), abs=1e-5)
    apart = torch.tensor([[[1.0, 0], [1, 0], [0, 1], [0, 1]]])
    pairs = torch.tensor([[0, 0, 1, 1]])
    expected = math.log1p(2 * math.exp(-10))
    assert float(coral.supcon(apart, pairs, kept[:, :4])) == pytest.approx(expected, abs=1e-6)
    nobody = torch.arange(6)[None]
    h = torch.randn(1, 6, 3, requires_grad=True)
    for labels, who in ((nobody, kept), (y, torch.zeros_like(kept))):
        value = coral.supcon(h, labels, who)
        assert value.item() == 0
        assert torch.autograd.grad(value.sum(), h)[0].abs().max() == 0


@both
def test_coral_weighs_by_the_batch_mean_time_factor_and_skips_null_batches(pipeline: str) -> None:
    tap = {"sit": "N/2", "ddpm": "mid"}[pipeline]
    coral = seeded(0, lambda: method("coral", task(pipeline), tap=tap))
    net, made = network(pipeline), draw(pipeline, label_drop=0.0)
    objective = Objective(net, coral)
    found = objective(made)["contrast"]
    feats = net(made.xt, made.t, made.y_in, taps=(coral.taps[0],))[1][0]
    projected: Any = coral.project(feats.mean(1)).view(2, 4, -1)
    supcon = coral.supcon(projected, made.y.view(2, 4), torch.ones(2, 4, dtype=torch.bool))
    factor = ((1 - made.level) / 0.3).exp().view(2, 4).mean(1)
    torch.testing.assert_close(found, 0.5 * (factor * supcon).mean())
    null = draw(pipeline, label_drop=1.0)
    assert objective(null)["contrast"].item() == 0
    assert sorted(name for name, _ in coral.named_parameters()) == ["project.bias", "project.weight"]


# --- CBDM and CCUA, the rest of their lists -------------------------------------------------------------------------


@both
def test_cbdm_is_silent_when_the_drawn_label_is_the_own(pipeline: str) -> None:
    only = torch.tensor([0, 0, 5, 0, 0, 0])
    made = relabelled(draw(pipeline), torch.full((8,), 2))
    terms = Objective(network(pipeline), method("cbdm", task(pipeline, class_counts=only)))(made)
    assert terms["balance"].abs().max() < 1e-10
    assert terms["commit"].abs().max() < 1e-10


@pytest.mark.parametrize("g", [2, 3, 6])
def test_info_nce_of_a_simplex(g: int) -> None:
    simplex = torch.eye(g) - 1 / g
    expected = math.log1p((g - 1) * math.exp((-1 / (g - 1) - 1) / 0.1))
    assert info_nce(simplex[None], 0.1)[0].tolist() == pytest.approx([expected] * g, abs=2e-6)


@both
def test_ccua_aligns_nothing_where_all_labels_are_null(pipeline: str) -> None:
    tap = {"sit": "N/4", "ddpm": "mid"}[pipeline]
    made = draw(pipeline, label_drop=1.0)
    terms = Objective(network(pipeline), method("ccua", task(pipeline), tap=tap))(made)
    assert terms["align"].abs().max() == 0


def test_at_initialisation_sit_has_no_alignment_and_every_layer_the_same_spread() -> None:
    """adaLN-zero: every block passes its input on, so features are those of the patch embedding."""
    net = seeded(1, lambda: build_network("SiT-T/4", channels=1, resolution=16, classes=6))
    from ltbench.networks import resolve_tap

    named = task("sit", tap=lambda name: resolve_tap(name, net), tap_widths=net.tap_widths)
    made = draw("sit", shards=2, local_batch=4)
    found = [Objective(net, method("ccua", named, tap=tap))(made) for tap in ("N/4", "N/2", "3N/4", "N")]
    assert all(terms["align"].abs().max() == 0 for terms in found)
    assert all(torch.equal(found[0]["spread"], terms["spread"]) for terms in found)
    assert found[0]["spread"].max() > 0


@both
def test_baselines_start_at_the_size_of_their_target(pipeline: str) -> None:
    """A zero head predicts 0: the flow's loss is Var(data) + 1, noise prediction's is 1."""
    net = seeded(1, lambda: build_network(NETWORKS[pipeline], channels=1, resolution=16, classes=6))
    made = draw(pipeline, shards=16)
    loss = Objective(net, method(pipeline, task(pipeline)))(made)["denoise"]
    torch.testing.assert_close(loss, made.target.square().mean((1, 2, 3)), rtol=1e-3, atol=1e-3)
    expected = 1.0 + (float(made.x0.square().mean()) if pipeline == "sit" else 0.0)
    assert loss.mean().item() == pytest.approx(expected, rel=0.05)


def test_the_temperature_of_coral_is_that_of_cosines() -> None:
    h = torch.randn(1, 5, 4)
    y, kept = torch.tensor([[0, 0, 1, 1, 1]]), torch.ones(1, 5, dtype=torch.bool)
    coral = method("coral", task("sit"))
    scaled = h * torch.tensor([1.0, 7, 0.2, 3, 5])[None, :, None]
    torch.testing.assert_close(coral.supcon(h, y, kept), coral.supcon(scaled, y, kept), rtol=1e-4, atol=1e-5)
