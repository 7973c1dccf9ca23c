"""The loop against a plain rendering of it, its exactness across interruptions, and what it does with a loss that is not finite."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from ltbench.curve import POINTS, Curve, window
from ltbench.methods import Objective
from ltbench.trainer import NonFinite, Trainer
from tests.toy import PIPELINES, network, parts

both = pytest.mark.parametrize("pipeline", PIPELINES)


def trainer(pipeline: str, method: str | None = None, micro: int = 12, **changes: Any) -> Trainer:
    return Trainer(parts(pipeline, method or pipeline, **changes), micro, 5)


def flat(tensors: dict[str, dict[str, Tensor]]) -> dict[str, Tensor]:
    return {f"{file}/{name}": value for file, inside in tensors.items() for name, value in inside.items()}


def assert_same(a: Trainer, b: Trainer) -> None:
    (left, state), (right, other) = a.state(), b.state()
    assert state == other
    left, right = flat(left), flat(right)
    assert left.keys() == right.keys()
    different = [name for name in left if not torch.equal(left[name], right[name])]
    assert not different


@both
def test_steps_equal_a_plain_loop(pipeline: str) -> None:
    """The same sequence of operations written out by hand, with clipping, warm-up and EMA."""
    ours = trainer(pipeline, warmup=3, clip_norm=0.5, optimizer="adam", lr=1e-2)
    net, drawer = ours.parts.objective.network, ours.parts.drawer
    plain = network(pipeline)
    plain.load_state_dict(net.state_dict())
    average = {name: p.detach().clone() for name, p in plain.state_dict().items()}
    optimizer = torch.optim.Adam(plain.parameters(), lr=1e-2)
    for step in range(1, 6):
        ours.advance()
        made = drawer.draw(step, range(3))
        optimizer.zero_grad()
        loss = ((plain(made.xt, made.t, made.y_in)[0] - made.target) ** 2).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(plain.parameters(), 0.5)
        optimizer.param_groups[0]["lr"] = 1e-2 * min(step - 1, 3) / 3
        optimizer.step()
        for name, value in plain.state_dict().items():
            average[name] = 0.9 * average[name] + 0.1 * value
    for name, value in plain.state_dict().items():
        # A key's bias has no gradient but rounding, which Adam divides by itself: there a hundredth of a step must agree, elsewhere a five-hundredth.
        near = 1e-4 if "qkv.bias" in name else 2e-5
        torch.testing.assert_close(net.state_dict()[name], value, rtol=1e-4, atol=near)
        torch.testing.assert_close(ours.ema.shadow[name], average[name], rtol=1e-4, atol=near)


@both
@pytest.mark.parametrize("method", ["cbdm", "ccua"])
def test_cut_and_continued_equals_uninterrupted_bit_for_bit(pipeline: str, method: str) -> None:
    options = {"tap": "mid"} if (pipeline, method) == ("ddpm", "ccua") else {}
    made = {"name": method, **options}
    whole = trainer(pipeline, made, dropout=0.1)
    for _ in range(9):
        whole.advance()
    for cut in (1, 4, 5, 8):
        before = trainer(pipeline, made, dropout=0.1)
        for _ in range(cut):
            before.advance()
        tensors, state = before.state()
        kept = {
            file: {name: value.clone() for name, value in inside.items()} for file, inside in tensors.items()
        }
        after = trainer(pipeline, made, dropout=0.1)
        after.load(kept, state)
        while after.step < 9:
            after.advance()
        assert_same(whole, after)


@both
def test_methods_start_from_the_same_weights_and_see_the_same_draws(pipeline: str) -> None:
    one, two = trainer(pipeline), trainer(pipeline, {"name": "cbdm"})
    a, b = one.parts.objective.network.state_dict(), two.parts.objective.network.state_dict()
    assert all(torch.equal(a[name], b[name]) for name in a)
    left, right = one.parts.drawer.draw(7, range(3)), two.parts.drawer.draw(7, range(3))
    assert torch.equal(left.xt, right.xt)
    assert torch.equal(left.y_in, right.y_in)


def test_seeds_differ() -> None:
    one, two = trainer("sit", seed=0), trainer("sit", seed=1)
    a, b = one.parts.objective.network.state_dict(), two.parts.objective.network.state_dict()
    assert any(not torch.equal(a[name], b[name]) for name in a)


class Poison:
    """Makes the loss of one step NaN, as often as asked; the rest of the objective is untouched."""

    def __init__(self, objective: Objective, bad_call: int, times: int) -> None:
        self.calls, self.bad_call, self.left = 0, bad_call, times
        self.inner = objective.method.loss
        objective.method.loss = self  # type: ignore[method-assign]

    def __call__(self, net: Any, draw: Any) -> dict[str, Tensor]:
        self.calls += 1
        terms = self.inner(net, draw)
        if self.calls >= self.bad_call and self.left > 0:
            self.left -= 1
            terms["denoise"] = terms["denoise"] + torch.tensor([float("nan"), *[0.0] * (len(draw.y) - 1)])
        return terms


def test_a_loss_that_is_not_finite_stops_before_the_weights_and_keeps_the_evidence() -> None:
    good, bad = trainer("sit"), trainer("sit")
    for _ in range(3):
        good.advance()
    Poison(bad.parts.objective, bad_call=4, times=10)
    for _ in range(3):
        bad.advance()
    with pytest.raises(NonFinite) as caught:
        bad.advance()
    assert caught.value.step == 4
    assert caught.value.evidence["terms"] == {"denoise": "nan"}
    (row,) = caught.value.evidence["rows"]
    assert row["index"] == int(good.parts.drawer.draw(4, range(3)).index[0])
    assert_same(good, bad)


def test_a_transient_fault_is_run_again_and_leaves_no_trace() -> None:
    good, bad = trainer("sit"), trainer("sit")
    Poison(bad.parts.objective, bad_call=3, times=1)
    for _ in range(6):
        good.advance()
        bad.advance()
    assert_same(good, bad)


@pytest.mark.parametrize("times", [1, 10])
def test_a_late_verdict_changes_nothing(times: int) -> None:
    """A GPU's host learns one step late that a step was not finite: the step is mended, or named, all the same."""
    good, bad = trainer("sit"), trainer("sit")
    bad.lag = True
    Poison(bad.parts.objective, bad_call=3, times=times)
    for _ in range(2):
        good.advance()
        bad.advance()
    assert bad.advance() is None  # the third is not known to be bad yet
    if times == 1:
        good.advance()
        while bad.step < 6:
            good.advance()
            bad.advance()
    else:
        with pytest.raises(NonFinite) as caught:
            bad.advance()
        assert (caught.value.step, bad.step) == (3, 2)
    assert_same(good, bad)


def test_what_a_late_verdict_leaves_open_is_settled_when_looked_at() -> None:
    now, late = trainer("sit"), trainer("sit")
    late.lag = True
    for _ in range(3):
        now.advance()
        late.advance()
    late.settle()
    assert all(torch.equal(now.ema.shadow[name], value) for name, value in late.ema.shadow.items())
    assert now.curve.state() == late.curve.state()


@both
def test_the_curve_holds_group_means_of_per_image_terms(pipeline: str) -> None:
    made = trainer(pipeline, lr=0.0)
    for _ in range(4):
        assert made.advance() is None
    point = made.advance()
    assert point is not None
    sums: dict[int, list[float]] = {}
    losses = []
    for step in range(1, 6):
        drawn = made.parts.drawer.draw(step, range(3))
        with torch.no_grad():
            term = made.parts.objective(drawn)["denoise"].double()
        losses.append(float(term.mean()))
        for y, value in zip(drawn.y.tolist(), term.tolist(), strict=True):
            sums.setdefault(y // 2, []).append(value)
    assert point["terms"]["denoise"] == pytest.approx(sum(losses) / 5, rel=1e-6)
    for number, group in enumerate(("head", "body", "tail")):
        expected = sum(sums[number]) / len(sums[number]) if number in sums else None
        assert point["terms"][f"denoise/{group}"] == (pytest.approx(expected, rel=1e-6) if expected else None)


def test_windows_depend_on_the_step_alone_and_stay_few() -> None:
    ends = [step for step in range(1, 40 * POINTS * 20) if step % window(step, 20) == 0]
    assert ends[:3] == [20, 40, 60]
    assert len(ends) < POINTS * 4
    assert ends[-1] - ends[-2] == 20 * 64


def test_a_group_without_images_in_a_window_is_none() -> None:
    curve = Curve(torch.tensor([0, 1, 2]), every=1)
    curve.add({"a": torch.tensor([1.0, 3.0])}, torch.tensor([0, 0]), 1.0)
    point = curve.close_step(1, torch.tensor(2.0), 0.1)
    assert point is not None
    assert point["terms"] == {"a": 2.0, "a/head": 2.0, "a/body": None, "a/tail": None}
    assert curve.columns()["grad_norm"] == [2.0]
