"""Networks by name: published sizes, taps, gradients, independence of rows, and calls that are refused."""

from __future__ import annotations

import copy

import pytest
import torch

from ltbench.diffusion import process_for
from ltbench.errors import UsageError
from ltbench.networks import build_network, parameter_count, resolve_tap
from ltbench.networks.names import tap_widths
from ltbench.networks.unet import SelfAttention
from tests.nets import SMALL, batch, build

torch.set_num_threads(1)


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
    x0 = torch.rand((1, 1, 8, 8), generator=generator).expand(16, -1, -1, -1) * 2 - 1
    optimizer = torch.optim.Adam(network.parameters(), lr=3e-3)
    losses = []
    for _ in range(120):
        t, eps = process.time(torch.rand(16, generator=generator)), torch.randn(x0.shape, generator=generator)
        out, _ = network(process.diffuse(x0, eps, t), t, torch.zeros(16, dtype=torch.int64))
        loss = (out - process.target(x0, eps, t)).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 0.9
    assert sum(losses[-10:]) / 10 < 0.25


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
