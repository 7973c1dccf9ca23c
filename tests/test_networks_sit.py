"""SiT against its formulas recomputed independently, and what it is at initialisation."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from ltbench.diffusion import process_for
from ltbench.networks.sit import Attention, SiT, grid_positions, sinusoids
from ltbench.networks.unet import clock_table
from tests.nets import batch, build

torch.set_num_threads(1)


def test_sit_starts_at_zero_so_the_loss_is_the_variance_plus_one() -> None:
    network, process = build("SiT-T/4"), process_for("sit")
    x0 = 0.5 * torch.randn((2000, 1, 16, 16), generator=torch.Generator().manual_seed(2))
    eps = torch.randn(x0.shape, generator=torch.Generator().manual_seed(3))
    x, t, y = batch(network)
    assert torch.equal(network(x, t, y)[0], torch.zeros_like(x))
    zero_loss = process.target(x0, eps, torch.zeros(2000)).square().mean().item()
    assert zero_loss == pytest.approx(0.25 + 1, rel=0.01)


def test_sit_tokens_at_initialisation_ignore_clock_and_label() -> None:
    network = build("SiT-T/4")
    assert isinstance(network, SiT)
    x, t, y = batch(network)
    patches = x.unfold(2, 4, 4).unfold(3, 4, 4).reshape(4, 16, 16)  # (B, N, pixels of a patch)
    weight, bias = network.embed_patches.weight.flatten(1), network.embed_patches.bias
    embedded = patches @ weight.T + bias + grid_positions(4, 128)
    for clock, label in ((t, y), (t.flip(0), y), (t, y.flip(0))):
        for feature in network(x, clock, label, list(network.tap_widths))[1]:
            torch.testing.assert_close(feature, embedded, atol=1e-5, rtol=1e-5)
            assert torch.equal(feature, network(x, t, y, ["block1"])[1][0])


def test_sit_taps_are_the_raw_stream_after_each_block() -> None:
    network = build("SiT-T/4", filled=True)
    assert isinstance(network, SiT)
    x, t, y = batch(network)
    _, (first, second) = network(x, t, y, ["block1", "block2"])
    condition = network.embed_time(sinusoids(t, 256)) + network.embed_label(y)
    torch.testing.assert_close(network.blocks[1](first, condition), second, atol=1e-6, rtol=1e-6)


def test_sit_block_is_the_adaptive_layer_norm_of_the_paper() -> None:
    block = build("SiT-N/4", filled=True).get_submodule("blocks.0").double()
    x = torch.randn((2, 16, 64), dtype=torch.float64, generator=torch.Generator().manual_seed(4))
    condition = torch.randn((2, 64), dtype=torch.float64, generator=torch.Generator().manual_seed(5))
    linear = block.get_submodule("modulation.linear")
    six = (condition * condition.sigmoid()) @ linear.weight.T + linear.bias
    shift1, scale1, gate1, shift2, scale2, gate2 = six.view(2, 6, 1, 64).unbind(1)

    def normed(z: Tensor) -> Tensor:
        centred = z - z.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + 1e-6).sqrt()

    up, down = block.get_submodule("mlp.0"), block.get_submodule("mlp.2")
    h = x + gate1 * block.get_submodule("attention")(normed(x) * (1 + scale1) + shift1)
    inner = (normed(h) * (1 + scale2) + shift2) @ up.weight.T + up.bias
    gelu = 0.5 * inner * (1 + torch.tanh(math.sqrt(2 / math.pi) * (inner + 0.044715 * inner**3)))
    expected = h + gate2 * (gelu @ down.weight.T + down.bias)
    torch.testing.assert_close(block(x, condition), expected)


def test_attention_is_softmax_of_scaled_products_per_head() -> None:
    attention = Attention(12, 3).double()
    x = torch.randn((2, 5, 12), dtype=torch.float64, generator=torch.Generator().manual_seed(6))
    q, k, v = attention.qkv(x).split(12, dim=2)
    heads = []
    for head in range(3):
        part = slice(4 * head, 4 * head + 4)
        weights = (q[..., part] @ k[..., part].transpose(1, 2) / 2).softmax(dim=-1)  # sqrt(4) = 2
        heads.append(weights @ v[..., part])
    torch.testing.assert_close(attention(x), attention.proj(torch.cat(heads, dim=2)))


def test_unpatchify_puts_pixel_and_channel_where_the_patch_was_cut() -> None:
    network = build("SiT-N/4", channels=3, resolution=8)
    assert isinstance(network, SiT)
    patches = torch.arange(2 * 4 * 48, dtype=torch.float32).view(2, 4, 48)
    image = network._unpatchify(patches)
    assert image.shape == (2, 3, 8, 8)
    for row in range(8):
        for column in range(8):
            token, pixel = 2 * (row // 4) + column // 4, 4 * (row % 4) + column % 4
            assert image[1, :, row, column].tolist() == patches[1, token, 3 * pixel : 3 * pixel + 3].tolist()


def test_sit_initialisation_is_that_of_dit() -> None:
    network = build("SiT-T/4", classes=200)
    assert isinstance(network, SiT)
    assert network.embed_label.weight.shape == (201, 128)
    assert network.embed_label.weight.std().item() == pytest.approx(0.02, rel=0.03)
    first = network.embed_time[0]
    assert isinstance(first, torch.nn.Linear)
    assert first.weight.std().item() == pytest.approx(0.02, rel=0.03)
    # Xavier uniform: bound sqrt(6 / (fan in + fan out)), with a patch seen as 16 inputs
    bound = math.sqrt(6 / (16 + 128))
    assert 0.95 * bound < network.embed_patches.weight.abs().max().item() <= bound
    qkv = network.get_submodule("blocks.0.attention.qkv")
    assert 0.95 * math.sqrt(6 / 512) < qkv.weight.abs().max().item() <= math.sqrt(6 / 512)
    assert not any(parameter.any() for key, parameter in network.named_parameters() if "bias" in key)


def test_position_and_clock_tables_by_their_formulas() -> None:
    positions = grid_positions(3, 16)
    for token in range(9):
        row, column = divmod(token, 3)
        for j in range(4):
            omega = 10_000 ** (-j / 4)
            expected = [
                math.sin(column * omega),
                math.cos(column * omega),
                math.sin(row * omega),
                math.cos(row * omega),
            ]
            assert positions[token, j::4].tolist() == pytest.approx(expected, abs=1e-6)
    features = sinusoids(torch.tensor([0.0, 0.3]), 8)
    angles = [0.3 * 10_000 ** (-j / 4) for j in range(4)]
    assert features[0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]
    assert features[1].tolist() == pytest.approx(
        [math.cos(a) for a in angles] + [math.sin(a) for a in angles]
    )
    table = clock_table(1000, 8)
    assert table.shape == (1000, 8)
    for t in (0, 1, 999):
        expected = [wave(t * 10_000 ** (-2 * j / 8)) for j in range(4) for wave in (math.sin, math.cos)]
        assert table[t].tolist() == pytest.approx(expected, abs=1e-6)
