"""Networks: published sizes, what they are at initialisation, their taps, and formulas recomputed independently."""

from __future__ import annotations

import copy
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ltbench.diffusion import process_for
from ltbench.errors import UsageError
from ltbench.networks import Network, build_network, parameter_count, resolve_tap
from ltbench.networks.dropout import Dropout, dropout_streams
from ltbench.networks.names import tap_widths
from ltbench.networks.sit import Attention, SiT, grid_positions, sinusoids
from ltbench.networks.unet import SelfAttention, UNet, clock_table

torch.set_num_threads(1)
SMALL = ["SiT-N/4", "SiT-T/8", "UNet-16", "UNet-32"]


def build(name: str, *, seed: int = 0, filled: bool = False, **changes) -> Network:
    """A seeded network for (B, 1, 16, 16) images of 3 classes; `filled` moves every weight away from its initial zero."""
    options = {"channels": 1, "resolution": 16, "classes": 3, **changes}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = build_network(name, **options)
        if filled:
            with torch.no_grad():
                for parameter in network.parameters():
                    parameter.add_(0.05 * torch.randn_like(parameter))
    return network


def batch(network: Network, rows: int = 4, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Images, clock and labels (among them the null label) for this network."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn((rows, network.channels, network.resolution, network.resolution), generator=generator)
    process = process_for("ddpm" if isinstance(network, UNet) else "sit")
    t = process.time(torch.rand(rows, generator=generator))
    return x, t, torch.arange(rows) % (network.classes + 1)


# Published sizes ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "depth", "width", "millions"),
    [("S", 12, 384, "32.96"), ("B", 12, 768, "130.5"), ("L", 24, 1024, "458.1"), ("XL", 28, 1152, "675.1")],
)
def test_sit_parameter_counts_are_the_published_ones(
    name: str, depth: int, width: int, millions: str
) -> None:
    # Published counts (32x32x4 latents, 1000 classes, patch 2) hold two things that we do not train: a head with 2x the
    # channels (learn_sigma), whose second half the loss never sees, and the frozen positions.
    unused_head = 2 * 2 * 4 * (width + 1)
    frozen_positions = 16 * 16 * width
    count = (
        parameter_count(f"SiT-{name}/2", channels=4, resolution=32, classes=1000)
        + unused_head
        + frozen_positions
    )
    digits = len(millions.split(".")[1])
    assert f"{count / 1e6:.{digits}f}" == millions
    if name == "XL":
        assert count == 675_129_632  # as facebookresearch/DiT prints it for DiT-XL/2, the same architecture
    assert len(tap_widths(f"SiT-{name}/2", 32)) == depth


@pytest.mark.parametrize(
    ("resolution", "classes", "millions"), [(32, 10, "35.75"), (32, 100, "35.80"), (64, 200, "35.85")]
)
def test_unet_parameter_counts_are_the_published_ones(resolution: int, classes: int, millions: str) -> None:
    # 35.75 M is the unlabelled net; CIFAR-10's 10 x 512 label table does not change its four digits, CIFAR-100's does
    count = parameter_count("UNet-128", channels=3, resolution=resolution, classes=classes)
    assert f"{count / 1e6:.2f}" == millions
    assert count - 512 * classes == 35_746_307


def test_counting_allocates_nothing_and_draws_nothing() -> None:
    state = torch.get_rng_state()
    assert parameter_count("SiT-XL/2", channels=4, resolution=32, classes=1000) > 6e8
    assert torch.equal(torch.get_rng_state(), state)


def test_unet_has_attention_where_the_released_code_has_it() -> None:
    with torch.device("meta"):
        network = build_network("UNet-128", channels=3, resolution=32, classes=10)
    places = {
        name.rpartition(".")[0]
        for name, module in network.named_modules()
        if isinstance(module, SelfAttention)
    }
    # level 1 on the way down (2 blocks) and up (3 blocks; the coarsest level comes first), and the first middle block
    down, up = {f"down.1.blocks.{k}" for k in range(2)}, {f"up.2.blocks.{k}" for k in range(3)}
    assert places == {*down, *up, "middle.0"}
    groups = {module.num_groups for module in network.modules() if isinstance(module, torch.nn.GroupNorm)}
    assert groups == {32}


@pytest.mark.parametrize(
    ("name", "resolution", "message"),
    [
        ("SiT-T/5", 16, r"patches of 5 pixels(.|\n)*1, 2, 4, 8, 16"),
        ("SiT-Q/4", 16, r"unknown network 'SiT-Q/4'(.|\n)*SiT-T/P(.|\n)*UNet-16"),
        ("unet-16", 16, r"unknown network 'unet-16'"),
        ("UNet-16", 18, r"halves the image 2 times(.|\n)*multiple of 4"),
    ],
)
def test_a_network_that_cannot_be_built_says_why(name: str, resolution: int, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        build_network(name, channels=1, resolution=resolution, classes=3)


# Every network ----------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SMALL)
@pytest.mark.parametrize("resolution", [16, 32])
def test_taps_have_the_shapes_they_promise_in_the_order_asked_for(name: str, resolution: int) -> None:
    network = build(name, resolution=resolution)
    x, t, y = batch(network)
    asked = list(network.tap_widths)[::-1]
    prediction, features = network(x, t, y, asked)
    assert prediction.shape == x.shape
    assert prediction.dtype == torch.float32
    assert [tuple(feature.shape) for feature in features] == [(4, *network.tap_widths[tap]) for tap in asked]
    assert network(x, t, y)[1] == []


@pytest.mark.parametrize("name", SMALL)
def test_gradients_reach_every_parameter(name: str) -> None:
    network = build(name, filled=True)
    x, t, y = batch(network)
    network(x, t, y)[0].square().mean().backward()
    dead = [
        key
        for key, parameter in network.named_parameters()
        if parameter.grad is None or not parameter.grad.any()
    ]
    assert dead == []
    used = network.get_submodule("embed_label").weight.grad.abs().sum(dim=1) > 0
    assert used.all()  # every class, and SiT's null row, is in the batch


@pytest.mark.parametrize("name", SMALL)
def test_rows_do_not_mix_and_label_and_clock_matter(name: str) -> None:
    network = build(name, filled=True).eval()
    x, t, y = batch(network)
    with torch.no_grad():
        together = network(x, t, y)[0]
        rows = torch.cat([network(x[[k]], t[[k]], y[[k]])[0] for k in range(4)])
        other_label = network(x, t, (y + 1) % 4)[0]
        other_clock = network(x, t.flip(0), y)[0]
    torch.testing.assert_close(together, rows, atol=1e-5, rtol=1e-5)
    for other in (other_label, other_clock):
        assert ((other - together).abs().amax(dim=(1, 2, 3)) > 1e-4).all()


@pytest.mark.parametrize("name", SMALL)
def test_weights_follow_the_seed_and_hold_no_derived_tables(name: str) -> None:
    one, same, other = (build(name, seed=seed).state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[key], same[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)
    network = build(name)
    assert set(one) == {key for key, _ in network.named_parameters()}
    clone = copy.deepcopy(network).eval()
    x, t, y = batch(network)
    assert torch.equal(clone(x, t, y)[0], network.eval()(x, t, y)[0])


@pytest.mark.parametrize("name", SMALL)
def test_wrong_calls_are_explained(name: str) -> None:
    network = build(name)
    x, t, y = batch(network)
    with pytest.raises(ValueError, match=r"\(4, 1, 8, 16\); this network takes \(B, 1, 16, 16\)"):
        network(x[:, :, :8], t, y)
    with pytest.raises(ValueError, match=r"no tap block99; this network has (block1|down0)"):
        network(x, t, y, ["block99"])
    with pytest.raises(IndexError):
        network(x, t, y + 1)


@pytest.mark.parametrize(("name", "pipeline"), [("SiT-N/4", "sit"), ("UNet-16", "ddpm")])
def test_one_image_can_be_learnt_by_heart(name: str, pipeline: str) -> None:
    network, process = build(name, resolution=8, classes=1), process_for(pipeline)
    generator = torch.Generator().manual_seed(0)
    x0 = torch.rand((1, 1, 8, 8), generator=generator).expand(32, -1, -1, -1) * 2 - 1
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(200):
        t, eps = process.time(torch.rand(32, generator=generator)), torch.randn(x0.shape, generator=generator)
        out, _ = network(process.diffuse(x0, eps, t), t, torch.zeros(32, dtype=torch.int64))
        loss = (out - process.target(x0, eps, t)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 0.9
    assert sum(losses[-10:]) / 10 < 0.15


# Taps by name -----------------------------------------------------------------------------------------------------------------


def test_relative_taps_count_as_the_released_code_does() -> None:
    with torch.device("meta"):
        twelve = build_network("SiT-S/2", channels=4, resolution=32, classes=10)
    resolved = [resolve_tap(name, twelve) for name in ("N/8", "N/4", "N/2", "3N/4", "N", "block3")]
    assert resolved == ["block2", "block4", "block7", "block10", "block12", "block3"]
    four = build("SiT-T/8")
    assert [resolve_tap(name, four) for name in ("N/8", "N/4", "N/2", "3N/4", "N")] == [
        "block1",
        "block2",
        "block3",
        "block4",
        "block4",
    ]


@pytest.mark.parametrize(
    ("network", "tap", "message"),
    [
        ("SiT-N/4", "mid", r"no tap 'mid'(.|\n)*block1, block2, N/8, N/4, N/2, 3N/4, N"),
        ("SiT-N/4", "block3", r"no tap 'block3'"),
        ("UNet-16", "N/4", r"no tap 'N/4'(.|\n)*down0, down1, down2, mid, up2, up1, up0$"),
    ],
)
def test_an_unknown_tap_lists_what_exists(network: str, tap: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        resolve_tap(tap, build(network))
    assert resolve_tap("mid", build("UNet-16")) == "mid"


# SiT --------------------------------------------------------------------------------------------------------------------------


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


# U-Net ------------------------------------------------------------------------------------------------------------------------


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


# Dropout ----------------------------------------------------------------------------------------------------------------------


def streams(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]


@settings(deadline=None, max_examples=30)
@given(slices=st.integers(1, 5), rows=st.integers(1, 4), p=st.floats(0.05, 0.9), seed=st.integers(0, 2**31))
def test_masks_do_not_depend_on_how_rows_are_grouped(slices: int, rows: int, p: float, seed: int) -> None:
    layers = [Dropout(p), Dropout(p)]
    x = torch.randn((slices * rows, 3, 5), generator=torch.Generator().manual_seed(seed))

    def run(part: Tensor, generators: list[torch.Generator]) -> Tensor:
        with dropout_streams(generators):
            return layers[1](layers[0](part) + 1)

    seeds = [seed + k for k in range(slices)]
    together = run(x, streams(*seeds))
    apart = torch.cat([run(part, streams(seeds[k])) for k, part in enumerate(x.split(rows))])
    assert torch.equal(together, apart)


@pytest.mark.parametrize("name", ["SiT-N/4", "UNet-16"])
def test_a_whole_network_drops_the_same_units_however_rows_are_grouped(name: str) -> None:
    network = build(name, filled=True, dropout=0.2)
    x, t, y = batch(network, rows=6)

    def run(rows: slice, *seeds: int) -> Tensor:
        with dropout_streams(streams(*seeds)), torch.no_grad():
            return network(x[rows], t[rows], y[rows])[0]

    together = run(slice(0, 6), 10, 11, 12)
    apart = torch.cat([run(slice(2 * k, 2 * k + 2), 10 + k) for k in range(3)])
    torch.testing.assert_close(together, apart, atol=1e-5, rtol=1e-5)
    assert (together - run(slice(0, 6), 20, 21, 22)).abs().max() > 1e-2
    assert (together - network.eval()(x, t, y)[0]).abs().max() > 1e-2


def test_dropout_keeps_the_mean_and_the_share() -> None:
    with dropout_streams(streams(0)):
        out = Dropout(0.3)(torch.ones(4, 50_000))
    assert (out == 0).float().mean().item() == pytest.approx(0.3, abs=0.01)
    assert out.mean().item() == pytest.approx(1.0, abs=0.01)
    torch.testing.assert_close(out.max(), torch.tensor(1 / 0.7))


def test_dropout_is_off_in_eval_and_at_zero_and_never_uses_the_global_stream() -> None:
    x, state = torch.ones(4, 3), torch.get_rng_state()
    assert torch.equal(Dropout(0.5).eval()(x), x)
    assert torch.equal(Dropout(0.0)(x), x)
    with pytest.raises(RuntimeError, match="dropout_streams"):
        Dropout(0.5)(x)
    with (
        dropout_streams(streams(0, 1, 2)),
        pytest.raises(ValueError, match=r"4 batch rows .* 3 dropout streams"),
    ):
        Dropout(0.5)(x)
    with dropout_streams(streams(0)):
        with dropout_streams(streams(1)):
            inner = Dropout(0.5)(x)
        outer = Dropout(0.5)(x)
    with dropout_streams(streams(1)):
        assert torch.equal(Dropout(0.5)(x), inner)
    with dropout_streams(streams(0)):
        assert torch.equal(Dropout(0.5)(x), outer)
    with pytest.raises(RuntimeError, match="dropout_streams"):
        Dropout(0.5)(x)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("p", [-0.1, 1.0])
def test_dropout_wants_a_probability_below_one(p: float) -> None:
    with pytest.raises(ValueError, match=r"probability in \[0, 1\)"):
        Dropout(p)
