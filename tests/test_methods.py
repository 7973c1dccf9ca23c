"""Each method against the closed forms and golden values of its paper's mathematics, computed independently here."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from scipy import stats
from torch.utils._python_dispatch import TorchDispatchMode

from ltbench.methods import NetOut, Objective, dispersion, info_nce
from tests.toy import COUNTS, PIPELINES, draw, method, network, task

H = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]]).double()
both = pytest.mark.parametrize("pipeline", PIPELINES)


def test_info_nce_golden_values() -> None:
    """methods.md 9.2: per sample, their mean, and the mean under the weights 1/4, 1/2, 1."""
    found = info_nce(H[None], 0.1)[0]
    assert found.tolist() == pytest.approx([0.0521174669, 0.0521174669, 0.1015706992], abs=1e-10)
    assert found.mean().item() == pytest.approx(0.0686018776, abs=1e-10)
    weights = torch.tensor([0.25, 0.5, 1.0]).double()
    assert (weights * found).mean().item() == pytest.approx(0.0468862665, abs=1e-10)
    torch.testing.assert_close(info_nce(H[None].float(), 0.1)[0].double(), found, rtol=1e-5, atol=1e-7)


def plain_info_nce(h: torch.Tensor, temperature: float) -> torch.Tensor:
    """(g, n) -> (g,), the released form: every anchor is normalised and multiplied by each negative in turn."""
    losses = []
    for i in range(len(h)):
        anchor = h[i] / h[i].norm()
        logits = [(anchor @ (h[j] / h[j].norm())) / temperature for j in range(len(h)) if j != i]
        losses.append(-torch.stack([(anchor @ anchor) / temperature, *logits]).log_softmax(0)[0])
    return torch.stack(losses)


def plain_dispersion(z: torch.Tensor, temperature: float) -> torch.Tensor:
    """(g, n) -> (), through the differences of all pairs, a sample with itself among them."""
    return (-(z[:, None] - z[None]).square().mean(2) / temperature).exp().mean().log()


LAYOUTS = {
    "tokens": lambda x: x.flatten(3).transpose(2, 3).contiguous(),
    "a map seen as tokens": lambda x: x.flatten(3).transpose(2, 3),
    "a channels-last map": lambda x: (
        x.flatten(0, 1).to(memory_format=torch.channels_last).unflatten(0, x.shape[:2]).movedim(2, 4)
    ),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize(
    ("ours", "plain"), [(info_nce, plain_info_nce), (dispersion, plain_dispersion)], ids=["ucl", "dispersive"]
)
def test_terms_over_pairs_have_the_plain_values_and_gradients(
    ours: Any, plain: Any, dtype: torch.dtype, layout: str
) -> None:
    """However the features lie in memory, and with a weight of its own for each value, as losses have them."""
    generator = torch.Generator().manual_seed(4)
    x = torch.randn(2, 6, 5, 2, 4, generator=generator).double().add(1)
    there = x.clone().requires_grad_()
    wanted = torch.stack([plain(group.flatten(1), 0.5) for group in there])
    weights = torch.rand(wanted.shape, generator=generator).double()
    (slope,) = torch.autograd.grad((weights * wanted).sum(), there)
    here = x.to(dtype).requires_grad_()
    found = ours(LAYOUTS[layout](here), 0.5)
    (other,) = torch.autograd.grad((weights.to(dtype) * found).sum(), here)
    close = {"rtol": 1e-9, "atol": 1e-12} if dtype == torch.float64 else {"rtol": 2e-6, "atol": 1e-6}
    torch.testing.assert_close(found.double(), wanted, **close)
    torch.testing.assert_close(other.double() / slope.abs().max(), slope / slope.abs().max(), **close)


@pytest.mark.parametrize("term", [info_nce, dispersion])
def test_products_of_samples_are_never_made_in_tf32_and_copy_no_feature_map(term: Any) -> None:
    seen: list[tuple[str, bool]] = []

    class Look(TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            seen.append((func.name(), torch.backends.cuda.matmul.allow_tf32))
            return func(*args, **(kwargs or {}))

    features = torch.randn(1, 4, 8, 2, 2, requires_grad=True)
    before, torch.backends.cuda.matmul.allow_tf32 = torch.backends.cuda.matmul.allow_tf32, True
    try:
        with Look():
            term(features.flatten(3).transpose(2, 3), 0.5).sum().backward()
        assert torch.backends.cuda.matmul.allow_tf32, "the network's precision is its own again"
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before
    assert [tf32 for name, tf32 in seen if name == "aten::bmm"] == [False, False]
    assert not {"aten::clone", "aten::_to_copy"} & {name for name, _ in seen}


def test_info_nce_keeps_the_digits_of_nearly_orthogonal_features() -> None:
    """About 5e-4 at 12 samples: where the term stays through most of a training."""
    h = torch.eye(12)[None] + 1e-3
    found = info_nce(h, 0.1)
    torch.testing.assert_close(found.double(), info_nce(h.double(), 0.1), rtol=2e-5, atol=0)


@pytest.mark.parametrize("g", [2, 5, 12])
def test_info_nce_closed_forms(g: int) -> None:
    tau = 0.1
    same = torch.ones(1, g, 7, requires_grad=True)
    value = info_nce(same, tau)
    assert value.tolist()[0] == pytest.approx([math.log(g)] * g, abs=1e-5)
    (gradient,) = torch.autograd.grad(value.sum(), same)
    assert gradient.abs().max() < 1e-5
    orthogonal = torch.eye(g)[None] * 3.0
    assert info_nce(orthogonal, tau)[0, 0].item() == pytest.approx(
        math.log1p((g - 1) * math.exp(-1 / tau)), abs=2e-6
    )


def test_info_nce_is_the_pairwise_loop_and_ignores_scale() -> None:
    h = torch.randn(2, 6, 5, generator=torch.Generator().manual_seed(0))
    for group in range(2):
        unit = h[group] / h[group].norm(dim=1, keepdim=True)
        for i in range(6):
            others = [math.exp(float(unit[i] @ unit[j]) / 0.1) for j in range(6) if j != i]
            expected = -math.log(math.exp(10) / (math.exp(10) + sum(others)))
            assert info_nce(h, 0.1)[group, i].item() == pytest.approx(expected, rel=1e-3, abs=1e-5)
    scales = torch.tensor([0.1, 1, 5, 20, 3, 7.0])[None, :, None]
    torch.testing.assert_close(info_nce(h * scales, 0.1), info_nce(h, 0.1), rtol=1e-4, atol=1e-5)
    assert info_nce(torch.randn(3, 1, 4), 0.1).abs().max() < 1e-5


def test_dispersion_golden_values_and_closed_forms() -> None:
    assert dispersion(H[None], 1.0).item() == pytest.approx(-0.3788424047, abs=1e-10)
    assert dispersion(H[None], 0.5).item() == pytest.approx(-0.6407258749, abs=1e-10)
    collapsed = torch.full((1, 5, 3), 2.0, requires_grad=True)
    value = dispersion(collapsed, 1.0)
    assert value.item() == pytest.approx(0, abs=1e-6)
    assert torch.autograd.grad(value.sum(), collapsed)[0].abs().max() < 1e-6
    assert dispersion(torch.eye(6)[None] * 1e3, 1.0).item() == pytest.approx(-math.log(6), abs=1e-6)
    pair = torch.tensor([[[0.0, 0.0], [1.0, 3.0]]])
    assert dispersion(pair, 2.0).item() == pytest.approx(math.log((1 + math.exp(-5 / 2)) / 2), abs=1e-6)


def test_dispersion_invariances() -> None:
    z = torch.randn(1, 5, 4, generator=torch.Generator().manual_seed(1))
    rotation = torch.linalg.qr(torch.randn(4, 4, generator=torch.Generator().manual_seed(2)))[0]
    for moved in (z + 100.0, z @ rotation, z[:, torch.tensor([3, 1, 0, 4, 2])]):
        torch.testing.assert_close(dispersion(moved, 1.0), dispersion(z, 1.0), rtol=1e-4, atol=1e-5)
    assert (dispersion(2 * z, 1.0) - dispersion(z, 1.0)).abs() > 0.1


@both
def test_cbdm_value_is_1_25_of_the_gap_and_the_gradient_splits(pipeline: str) -> None:
    """With an affine stand-in for the network the two branches have gradients that can be written down."""
    made = draw(pipeline, label_drop=0.0)
    cbdm = method("cbdm", task(pipeline))
    shift = torch.randn(7, generator=torch.Generator().manual_seed(3)).requires_grad_()

    def net(
        x: torch.Tensor, t: torch.Tensor, y: torch.Tensor, taps: tuple[str, ...]
    ) -> tuple[torch.Tensor, list]:
        return 0 * x + shift[y][:, None, None, None], []

    net.training = False  # type: ignore[attr-defined]
    terms = cbdm.loss(net, made)  # type: ignore[arg-type]
    # The stream has been consumed: the same labels come again from an equal draw.
    drawn = draw(pipeline, label_drop=0.0).rng.categorical(torch.tensor(COUNTS) / sum(COUNTS))
    gap = (shift[made.y] - shift[drawn]).detach()
    torch.testing.assert_close(terms["balance"], made.level * gap**2)
    torch.testing.assert_close(terms["balance"] + terms["commit"], 1.25 * made.level * gap**2)
    (terms["balance"].sum() + terms["commit"].sum()).backward()
    expected = torch.zeros(7)
    expected.index_add_(0, made.y, 2 * made.level * gap)
    expected.index_add_(0, drawn, -0.25 * 2 * made.level * gap)
    torch.testing.assert_close(shift.grad, expected)


@both
def test_cbdm_is_silent_where_the_label_was_dropped_and_without_noise(pipeline: str) -> None:
    made = draw(pipeline, label_drop=0.5)
    terms = Objective(network(pipeline), method("cbdm", task(pipeline)))(made)
    assert made.dropped.any()
    assert terms["balance"][made.dropped].abs().max() == 0
    clean = dataclasses.replace(made, level=torch.zeros_like(made.level))
    silent = Objective(network(pipeline), method("cbdm", task(pipeline)))(clean)
    assert silent["balance"].abs().max() == 0
    assert silent["commit"].abs().max() == 0


@pytest.mark.parametrize("prior", ["empirical", "uniform"])
def test_cbdm_draws_labels_from_its_prior(prior: str) -> None:
    cbdm = method("cbdm", task("sit"), prior=prior)
    labels = torch.cat(
        [draw("sit", step, shards=50, local_batch=8).rng.categorical(cbdm.prior) for step in range(1, 21)]
    )
    seen = torch.bincount(labels, minlength=6).numpy()
    weights = COUNTS if prior == "empirical" else [1] * 6
    expected = [w / sum(weights) * len(labels) for w in weights]
    assert stats.chisquare(seen, expected).pvalue > 1e-3


@both
def test_ccua_skipping_rows_equals_the_plain_two_pass_form(pipeline: str) -> None:
    """The published form runs all rows twice; gradients and values agree."""
    made, options = draw(pipeline), {"alpha": 0.7, "gamma": 0.3}
    tap = {"sit": "N/4", "ddpm": "mid"}[pipeline]
    net = network(pipeline)
    ccua = method("ccua", task(pipeline), tap=tap, **options)
    ours = Objective(net, ccua)(made)
    name = task(pipeline).tap(tap)
    cond, _ = net(made.xt, made.t, made.y_in, taps=())
    null, feats = net(made.xt, made.t, torch.full_like(made.y, 6), taps=(name,))
    clock = 1 - made.level
    spread = torch.cat([_ucl(feats[0][i : i + 4]) for i in (0, 4)])
    plain = {
        "denoise": (cond - made.target).square().mean((1, 2, 3)),
        "spread": 0.7 * clock * spread,
        "align": 0.3 * clock * (cond - null).square().mean((1, 2, 3)),
    }
    for term, value in plain.items():
        torch.testing.assert_close(ours[term], value, rtol=1e-4, atol=1e-6)
    here = torch.autograd.grad(
        sum(v.mean() for v in ours.values()), list(net.parameters()), allow_unused=True
    )
    there = torch.autograd.grad(
        sum(v.mean() for v in plain.values()), list(net.parameters()), allow_unused=True
    )
    for a, b in zip(here, there, strict=True):
        if a is not None and b is not None:
            torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-6)


def _ucl(features: torch.Tensor) -> torch.Tensor:
    unit = torch.nn.functional.normalize(features.flatten(1), dim=1)
    logits = unit @ unit.T / 0.1
    return -(10.0 - torch.logsumexp(logits.fill_diagonal_(10.0), dim=1))


def test_ccua_runs_only_kept_rows_twice() -> None:
    made = draw("sit", shards=4, local_batch=8, label_drop=0.5)
    rows = []
    net = network("sit")
    net.register_forward_pre_hook(lambda module, args: rows.append(len(args[0])))
    Objective(net, method("ccua", task("sit")))(made)
    assert rows == [32 + int((~made.dropped).sum())]


@both
def test_ccua_clocks(pipeline: str) -> None:
    made = draw(pipeline, label_drop=0.0)
    net, tap = network(pipeline), {"sit": "N/4", "ddpm": "mid"}[pipeline]

    def term(name: str, **options: str) -> torch.Tensor:
        return Objective(net, method("ccua", task(pipeline), tap=tap, **options))(made)[name].detach()

    one = term("spread", spread_weight="one")
    torch.testing.assert_close(term("spread", spread_weight="noise"), one * made.level)
    torch.testing.assert_close(term("spread", spread_weight="data"), one * (1 - made.level))
    plain = term("align", align_weight="noise")
    in_noise = (
        plain * (1 - made.level) ** 2 if pipeline == "sit" else plain
    )  # |d eps| = s |d v| on the linear path
    torch.testing.assert_close(term("align", align_weight="noise_eps"), in_noise, rtol=1e-3, atol=1e-7)


def test_run_gives_passes_in_order_and_empty_rows_cost_nothing() -> None:
    made, net = draw("sit"), network("sit")
    ccua = method("ccua", task("sit"))
    none = torch.zeros(0, dtype=torch.long)
    first, second, empty = ccua.run(net, made, made.y, torch.full_like(made.y, 6), (made.y, none))
    torch.testing.assert_close(first.pred, net(made.xt, made.t, made.y)[0])
    torch.testing.assert_close(second.pred, net(made.xt, made.t, torch.full_like(made.y, 6))[0])
    assert isinstance(empty, NetOut)
    assert empty.pred.shape == (0, 1, 16, 16)
