"""REPA: the loss against its closed forms, what it sees, and where its projector lives."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ltbench.encoders import Tokens
from ltbench.errors import EnvironmentProblem
from ltbench.methods import Draw, Objective, load_method
from ltbench.networks import build_network, resolve_tap
from ltbench.parts import build_parts, seeded
from ltbench.trainer import Trainer
from tests.toy import PIPELINES, Toy, draw, encoder, method, network, parts, settings, task

both = pytest.mark.parametrize("pipeline", PIPELINES)
SMALL = {"encoder": "random", "hidden": 16}
TAP = {"sit": "N/4", "ddpm": "mid"}


def repa(pipeline: str, **options: Any) -> Any:
    made = {"tap": TAP[pipeline], **SMALL, **options}
    return seeded(0, lambda: method("repa", task(pipeline), **made))


class Answers:
    """An encoder that answers as it is told."""

    def __init__(self, answer: Callable[[Draw], Tensor]) -> None:
        self.answer = answer

    def prepare(self, draw: Draw) -> None: ...

    def __call__(self, draw: Draw) -> Tensor:
        return self.answer(draw)


def align(pipeline: str, made: Draw, **options: Any) -> Tensor:
    net = network(pipeline)
    return Objective(net, repa(pipeline, **options))(made)["align"].detach()


def replace_tokens(method: Any, tokens: Tensor) -> None:
    """Let the encoder answer `tokens` and the projector pass features through."""
    method.encoders = [Answers(lambda draw: tokens)]
    method.projectors = nn.ModuleList([nn.Identity()])


def features(pipeline: str, made: Draw, name: str) -> Tensor:
    return network(pipeline)(made.xt, made.t, made.y_in, taps=(name,))[1][0].detach()


@both
def test_equal_tokens_give_minus_the_weight_and_orthogonal_ones_zero(pipeline: str) -> None:
    made, ours = draw(pipeline), repa(pipeline, weight=0.7)
    h = features(pipeline, made, ours.taps[0])
    net = network(pipeline)
    for scale in (1.0, 30.0, 1e-3):  # cosines do not see the size
        replace_tokens(ours, scale * h)
        torch.testing.assert_close(
            Objective(net, ours)(made)["align"].detach(), torch.full((8,), -0.7), rtol=1e-4, atol=1e-4
        )
    turned = torch.stack([-h[..., 1::2], h[..., ::2]], -1).flatten(2)
    replace_tokens(ours, turned)
    assert Objective(net, ours)(made)["align"].abs().max() < 1e-5


@both
def test_the_term_is_the_mean_cosine_of_projected_tokens(pipeline: str) -> None:
    made, ours = draw(pipeline), repa(pipeline)
    found = Objective(network(pipeline), ours)(made)["align"]
    h = ours.projectors[0](features(pipeline, made, ours.taps[0]))
    side = int(h.shape[1] ** 0.5)
    z = encoder("random", (side, side))(made)
    for b in range(8):
        cosines = [torch.dot(h[b, n] / h[b, n].norm(), z[b, n] / z[b, n].norm()) for n in range(h.shape[1])]
        torch.testing.assert_close(found[b], -0.5 * torch.stack(cosines).mean(), rtol=1e-4, atol=1e-6)


def test_a_projector_is_three_linear_layers_with_silu_on_every_token() -> None:
    (projector,) = seeded(0, lambda: method("repa", task("sit"), encoder="random")).projectors
    assert [type(layer).__name__ for layer in projector] == ["Linear", "SiLU", "Linear", "SiLU", "Linear"]
    assert [(m.in_features, m.out_features) for m in projector if isinstance(m, nn.Linear)] == [
        (64, 2048),
        (2048, 2048),
        (2048, 64),
    ]


@both
def test_several_encoders_have_a_projector_each_and_are_averaged(pipeline: str) -> None:
    made, ours = draw(pipeline), repa(pipeline, encoder=("random", "lite0"))
    assert [p[-1].out_features for p in ours.projectors] == [64, 112]
    net = network(pipeline)
    together = Objective(net, ours)(made)["align"].detach()
    apart = []
    for k in range(2):
        one = repa(pipeline)
        one.encoders, one.projectors = [ours.encoders[k]], nn.ModuleList([ours.projectors[k]])
        apart.append(Objective(net, one)(made)["align"].detach())
    torch.testing.assert_close(together, (apart[0] + apart[1]) / 2)


@both
def test_it_sees_the_clean_image_mirrored_like_the_networks_and_dropped_ones_too(pipeline: str) -> None:
    made = draw(pipeline, label_drop=1.0)
    assert made.pixels is not None
    assert made.flipped.any()
    assert not made.flipped.all()
    torch.testing.assert_close(made.pixels.float() / 127.5 - 1, made.x0)
    term = align(pipeline, made)
    assert (term.abs() > 0).all()
    noisier = dataclasses.replace(made, pixels=made.pixels.flip(3))
    assert not torch.equal(align(pipeline, noisier), term)


@both
def test_no_gradient_reaches_the_encoder_and_none_of_it_is_kept(pipeline: str) -> None:
    weight = torch.ones(64, requires_grad=True)
    ours = repa(pipeline)
    plain: Tokens = ours.encoders[0]
    ours.encoders = [Answers(lambda draw: plain(draw) * weight)]
    objective = Objective(network(pipeline), ours)
    objective(draw(pipeline))["align"].sum().backward()
    assert weight.grad is None
    names = [name for name in objective.state_dict() if name.startswith("method.")]
    assert names == [f"method.projectors.0.{k}.{what}" for k in (0, 2, 4) for what in ("weight", "bias")]


def test_at_initialisation_of_sit_the_clock_and_the_label_do_not_matter() -> None:
    """adaLN-zero: before training the tap is a function of x_t alone."""
    net = seeded(1, lambda: build_network("SiT-N/4", channels=1, resolution=16, classes=6))
    ours, made = repa("sit"), draw("sit")
    assert resolve_tap("N/4", net) == ours.taps[0]
    other = dataclasses.replace(made, t=made.t.flip(0), y_in=torch.full_like(made.y_in, 6))
    assert torch.equal(Objective(net, ours)(made)["align"], Objective(net, ours)(other)["align"])


@pytest.mark.parametrize("grid", [(2, 2), (4, 4), (8, 8), (16, 16)])
def test_token_grids_may_differ_and_keep_left_and_right(grid: tuple[int, int]) -> None:
    """A half-black picture: the tokens of the two halves stay on their sides on every grid."""
    made = draw("sit", shards=1, local_batch=1)
    half = torch.zeros(1, 1, 16, 16, dtype=torch.uint8)
    half[..., 8:] = 255
    tokens = encoder("random", grid)(dataclasses.replace(made, pixels=half)).view(*grid, -1)
    white = encoder("random", grid)(dataclasses.replace(made, pixels=torch.full_like(half, 255)))
    black = encoder("random", grid)(dataclasses.replace(made, pixels=torch.zeros_like(half)))
    middle = grid[0] // 2
    torch.testing.assert_close(tokens[middle, -1], white.view(*grid, -1)[middle, -1], rtol=0.3, atol=0.3)
    torch.testing.assert_close(tokens[middle, 0], black.view(*grid, -1)[middle, 0], rtol=0.3, atol=0.3)
    assert (tokens[middle, 0] - tokens[middle, -1]).abs().max() > 1


def test_switched_off_it_asks_for_nothing() -> None:
    quiet = method("repa", task("sit"), weight=0.0)  # the default encoder is not even looked for
    assert (quiet.taps, quiet.needs_pixels, list(quiet.parameters())) == ((), False, [])


def test_an_encoder_that_cannot_be_had_is_one_line_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    made = settings("sit", {"name": "repa", "encoder": "timm:no_such_model"})
    with pytest.raises(EnvironmentProblem, match="no_such_model") as caught:
        build_parts(made, Toy(), load_method("repa"), torch.device("cpu"))
    assert "\n" not in str(caught.value)


@both
def test_the_projector_is_trained_and_is_in_the_checkpoint_and_the_optimiser_but_not_in_the_ema(
    pipeline: str,
) -> None:
    trainer = Trainer(parts(pipeline, {"name": "repa", "tap": TAP[pipeline], **SMALL}), 12, 5)
    weight = trainer.named["method.projectors.0.0.weight"]
    before = weight.detach().clone()
    trainer.advance()
    assert not torch.equal(before, weight)
    tensors, _ = trainer.state()
    ours = {f"method.projectors.0.{k}.{what}" for k in (0, 2, 4) for what in ("weight", "bias")}
    assert ours <= set(tensors["model"])
    assert {f"{name}/exp_avg" for name in ours} <= set(tensors["optim"])
    assert not any("projectors" in name for name in tensors["ema"])


@both
def test_gradients_with_a_cache_equal_those_without(pipeline: str) -> None:
    gradients = []
    for cache in (False, True):
        options = {"name": "repa", "tap": TAP[pipeline], "cache": cache, **SMALL}
        trainer = Trainer(parts(pipeline, options, lr=0.0), 12, 2)
        for _ in range(4):
            trainer.advance()
        gradients.append(torch.cat([p.grad.flatten() for p in trainer.named.values() if p.grad is not None]))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)
