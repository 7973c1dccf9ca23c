"""The U-Net against the released graph written flat, and what it is at initialisation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from ltbench.networks import Network
from ltbench.networks.unet import SelfAttention, clock_table
from tests.nets import batch, build

torch.set_num_threads(1)


def test_unet_starts_near_zero_so_the_loss_is_one() -> None:
    network = build("UNet-16")
    x, t, y = batch(network, rows=64)
    out = network(x, t, y)[0]
    assert 0 < out.abs().max().item() < 1e-3
    eps = torch.randn((4000, 1, 16, 16), generator=torch.Generator().manual_seed(7))
    assert (out.mean() - eps).square().mean().item() == pytest.approx(1.0, abs=0.01)


def test_unet_last_convolutions_have_gain_1e_5_and_the_rest_one() -> None:
    network = build("UNet-32")
    for key, parameter in network.named_parameters():
        if parameter.ndim < 2 or "embed_label" in key:
            continue
        area = math.prod(parameter.shape[2:])
        fan_out = parameter.shape[0] // 3 if "qkv" in key else parameter.shape[0]
        bound = math.sqrt(6 / (area * (parameter.shape[1] + fan_out)))
        gain = 1e-5 if ".last." in key or key.startswith("outlet") else 1.0
        assert 0.9 * bound * gain < parameter.abs().max().item() <= bound * gain * (1 + 1e-6), key


def test_unet_null_label_is_an_embedding_times_zero() -> None:
    network = build("UNet-16", filled=True)
    x, t, _ = batch(network)
    null = torch.full((4,), 3)
    out = network(x, t, null)[0]
    out.square().sum().backward()
    table = network.get_submodule("embed_label").weight
    assert table.shape[0] == 3  # no row of its own
    assert table.grad is not None  # the module took part, as DDP needs
    assert not table.grad.any()
    with torch.no_grad():
        table.zero_()
        torch.testing.assert_close(network(x, t, torch.tensor([0, 1, 2, 0]))[0], out)


def test_unet_refuses_a_clock_that_is_not_its_own() -> None:
    network = build("UNet-16")
    x, _, y = batch(network)
    with pytest.raises(ValueError, match="integer clock of DiscreteDDPM"):
        network(x, torch.rand(4), y)


def test_unet_attention_is_softmax_over_pixels() -> None:
    attention = SelfAttention(8, 2).double()
    x = torch.randn((2, 8, 3, 3), dtype=torch.float64, generator=torch.Generator().manual_seed(8))
    q, k, v = attention.qkv(attention.norm(x)).flatten(2).chunk(3, dim=1)  # (B, D, N)
    weights = (torch.einsum("bdn,bdm->bnm", q, k) / math.sqrt(8)).softmax(dim=-1)
    mixed = torch.einsum("bnm,bdm->bdn", weights, v).view(2, 8, 3, 3)
    torch.testing.assert_close(attention(x), x + attention.proj(mixed))


def test_unet_mid_tap_is_the_output_of_the_middle_blocks() -> None:
    network = build("UNet-16", filled=True)
    caught = []
    network.get_submodule("middle.1").register_forward_hook(lambda _m, _i, output: caught.append(output))
    x, t, y = batch(network)
    _, (mid,) = network(x, t, y, ["mid"])
    assert torch.equal(mid, caught[0].permute(0, 2, 3, 1).reshape(4, 16, 32))


@pytest.mark.parametrize(("name", "count"), [("UNet-16", 64), ("SiT-N/2", 64)])
def test_no_map_of_all_pairs_of_tokens_is_kept_for_the_backward_pass(name: str, count: int) -> None:
    network = build(name, filled=True, channels=2)
    x, t, y = batch(network, rows=3)
    kept: list[tuple[int, ...]] = []

    def look(saved: Tensor) -> Tensor:
        kept.append(tuple(saved.shape))
        return saved

    with torch.autograd.graph.saved_tensors_hooks(look, lambda saved: saved):
        network(x, t, y)
    heads = [shape for shape in kept if len(shape) == 4 and shape[2:] == (count, count)]
    assert any(len(shape) == 4 and shape[2] == count for shape in kept)
    assert not heads


def unet_by_hand(network: Network, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """The released U-Net's forward, written flat from weights alone; groups of 4 channels at the base width."""
    groups = network.get_submodule("last_norm").num_groups

    def at(name: str) -> torch.nn.Module:
        return network.get_submodule(name)

    def block(name: str, h: Tensor) -> Tensor:
        b = at(name)
        first = functional.group_norm(h, groups, b.first[0].weight, b.first[0].bias)
        out = b.first[2](first * first.sigmoid())
        out = out + b.embed[1](embedding * embedding.sigmoid())[:, :, None, None]
        second = functional.group_norm(out, groups, b.second[0].weight, b.second[0].bias)
        out = b.last(second * second.sigmoid()) + b.shortcut(h)
        return b.attention(out)

    time = at("embed_time.0")(clock_table(1000, network.get_submodule("inlet").out_channels)[t])
    embedding = at("embed_time.2")(time * time.sigmoid())
    embedding = embedding + torch.stack(
        [
            at("embed_label").weight[k] if k < network.classes else torch.zeros_like(embedding[0])
            for k in y.tolist()
        ]
    )
    skips = [at("inlet")(x)]
    for level in range(3):
        if level:
            skips.append(at(f"down.{level}.shrink")(skips[-1]))
        skips.append(block(f"down.{level}.blocks.0", skips[-1]))
    h = block("middle.1", block("middle.0", skips[-1]))
    for turn in range(3):
        if turn:
            doubled = h.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)
            h = at(f"up.{turn}.grow")(doubled)
        for k in range(2):
            h = block(f"up.{turn}.blocks.{k}", torch.cat([h, skips.pop()], dim=1))
    assert not skips
    last = network.get_submodule("last_norm")
    norm = functional.group_norm(h, groups, last.weight, last.bias)
    return at("outlet")(norm * norm.sigmoid())


@pytest.mark.parametrize("name", ["UNet-16", "UNet-32"])
def test_unet_forward_is_the_released_graph(name: str) -> None:
    network = build(name, filled=True)
    x, t, y = batch(network)
    with torch.no_grad():
        torch.testing.assert_close(network(x, t, y)[0], unet_by_hand(network, x, t, y), atol=1e-5, rtol=1e-5)
    assert network.get_submodule("last_norm").num_groups == int(name[5:]) // 4
