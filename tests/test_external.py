"""Weights of published code: their files read as data, their networks run by ours."""

from __future__ import annotations

import argparse
import collections
import fractions
import hashlib
import os
import zipfile
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from ltbench.external import External, WeightsMismatch, WeightsRefused, read_external
from ltbench.external.layouts import reverse_time
from ltbench.networks import build_network
from tests import released

SIT: dict[str, Any] = {"depth": 2, "width": 64, "patch": 4, "channels": 4, "size": 16, "classes": 5}
UNET: dict[str, Any] = {
    "base": 16,
    "multipliers": (1, 2, 2),
    "attention": (1,),
    "count": 1,
    "channels": 3,
    "classes": 5,
}


def sit(channels=4, classes=5):
    return build_network("SiT-N/4", channels=channels, resolution=16, classes=classes).eval()


def unet(name="UNet-16", classes=5):
    return build_network(name, channels=3, resolution=16, classes=classes).eval()


def ours(network, external: External):
    """Our network with the weights; the U-Net in double precision, so that only the mapping can differ."""
    network.load_state_dict(external.weights)
    return network


def close(found, expected):
    """Equal up to single precision, which the transformer's clock is computed in."""
    scale = expected.abs().max()
    assert (found.double() - expected).abs().max() < 2e-6 * scale


def doubled(state):
    return {name: tensor.double() for name, tensor in state.items()}


@pytest.fixture
def batch():
    rng = torch.Generator().manual_seed(9)
    x = torch.randn(3, 4, 16, 16, generator=rng, dtype=torch.float64)
    return (
        x,
        torch.tensor([0.0, 0.37, 1.0], dtype=torch.float64),
        torch.tensor([0, 4, 5]),
    )  # 5 is the null label


def save(tmp_path, value, name="weights.pt", **options):
    torch.save(value, tmp_path / name, **options)
    return tmp_path / name


# --- equal functions --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sigma", [True, False])
def test_a_sit_release_computes_the_same(tmp_path, batch, sigma):
    """CCUA-SiT's and DispLoss's files too: the same names and the same top level."""
    state = released.sit_state(**SIT, sigma=sigma)
    path = save(tmp_path, released.sit_file(state, released.sit_state(**SIT, sigma=sigma, seed=8)))
    network = sit()
    found = read_external(path, network)
    assert (found.family, found.state, found.step, found.dropped) == ("sit", "ema", None, {})
    assert found.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    x, t, y = batch
    expected = released.sit_forward(doubled(state), x, t, y, heads=2, patch=4)
    close(ours(network, found)(x.float(), t, y)[0], expected)


def test_a_repa_release_computes_the_same_with_time_and_sign_turned_round(tmp_path, batch):
    """v(x, s) = -v'(x, 1 - s), from reversed weights and an unchanged network."""
    state = released.repa_state(**SIT)
    args = {"path_type": "linear", "prediction": "v", "steps": 400_000}
    network = sit()
    found = read_external(save(tmp_path, released.sit_file(state, state, **args)), network)
    assert (found.family, found.step) == ("repa", 400_000)
    (names,) = found.dropped.values()
    assert len(names) == 12
    assert all(name.startswith("projectors.") for name in names)
    x, s, y = batch
    expected = -released.sit_forward(doubled(state), x, 1 - s, y, heads=2, patch=4)
    close(ours(network, found)(x.float(), s, y)[0], expected)
    plain = -released.sit_forward(doubled(state), x, s, y, heads=2, patch=4)
    assert (plain - expected).abs().max() > 0.05 * expected.abs().max()  # the clock matters here


def test_reversing_time_twice_is_nothing():
    network = sit()
    state = {name: tensor.detach() for name, tensor in network.state_dict().items()}
    again = reverse_time(reverse_time(state))
    for name in state:
        torch.testing.assert_close(again[name], state[name], atol=1e-6, rtol=0)


def test_an_older_repa_file_numbers_its_decoder_from_zero(tmp_path):
    state = released.repa_state(**SIT)
    old = {
        name.replace("blocks.1.", "decoder_blocks.0.") if name.startswith("blocks.1.") else name: tensor
        for name, tensor in state.items()
    }
    new = read_external(save(tmp_path, {"ema": state}, "new.pt"), sit()).weights
    for name, tensor in read_external(save(tmp_path, {"ema": old}, "old.pt"), sit()).weights.items():
        assert torch.equal(tensor, new[name])


def test_a_repa_file_without_projectors_needs_to_be_named(tmp_path):
    state = {n: t for n, t in released.repa_state(**SIT).items() if not n.startswith("projectors.")}
    path = save(tmp_path, state)
    as_sit, as_repa = read_external(path, sit()), read_external(path, sit(), family="repa")
    assert (as_sit.family, as_repa.family) == ("sit", "repa")
    assert torch.equal(as_sit.weights["head.weight"], -as_repa.weights["head.weight"])


@pytest.mark.parametrize("augmented", [False, True])
def test_a_cbdm_release_computes_the_same(tmp_path, augmented):
    """And CCUA-DDPM's and OC_LT's: the same U-Net. The embedding of augmentation flags is dropped: at sampling it adds 0."""
    state = released.unet_state(**UNET, augmented=augmented)
    path = save(tmp_path, released.cbdm_file(state, released.unet_state(**UNET, augmented=augmented, seed=5)))
    network = unet()
    found = read_external(path, network)
    assert (found.family, found.state, found.step) == ("ddpm", "ema_model", 200_000)
    assert list(found.dropped.values()) == ([["augm_embedding.weight"]] if augmented else [])
    x = torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    t = torch.tensor([0, 500, 999])
    network = ours(network, found).double()
    y = torch.tensor([0, 4, 2])
    expected = released.unet_forward(doubled(state), x, t, y, groups=4)
    torch.testing.assert_close(
        network(x, t, y)[0], expected, atol=1e-3, rtol=0
    )  # their clock is a float32 table
    network.get_buffer("clock").copy_(state["time_embedding.timembedding.0.weight"])
    torch.testing.assert_close(network(x, t, y)[0], expected, atol=1e-9, rtol=0)
    unconditional = released.unet_forward(doubled(state), x, t, None, groups=4)
    torch.testing.assert_close(network(x, t, torch.full((3,), 5))[0], unconditional, atol=1e-9, rtol=0)


def test_the_published_size_of_the_u_net_fits(tmp_path):
    state = released.unet_state(
        base=128, multipliers=(1, 2, 2, 2), attention=(1,), count=2, channels=3, classes=10
    )
    network = build_network("UNet-128", channels=3, resolution=32, classes=10).eval()
    found = read_external(save(tmp_path, {"ema_model": state}), network)
    network.load_state_dict(found.weights)
    network.get_buffer("clock").copy_(state["time_embedding.timembedding.0.weight"])
    x, t, y = torch.randn(1, 3, 32, 32), torch.tensor([321]), torch.tensor([7])
    with torch.no_grad():
        expected = released.unet_forward(state, x, t, y, groups=32)
        torch.testing.assert_close(network(x, t, y)[0], expected, atol=2e-4, rtol=2e-4)


def test_an_unconditional_release_serves_where_classes_are_settled_elsewhere(tmp_path):
    state = released.unet_state(**{**UNET, "classes": None})
    path = save(tmp_path, {"ema_model": state, "net_model": state})
    with pytest.raises(WeightsMismatch, match=r"missing: label_embedding\.weight, expected \(5, 64\)"):
        read_external(path, unet())
    found = read_external(path, unet(), any_classes=True)
    assert set(unet().state_dict()) - set(found.weights) == {"embed_label.weight"}


def test_another_number_of_classes_is_left_to_the_caller(tmp_path):
    path = save(tmp_path, {"ema": released.sit_state(**{**SIT, "classes": 9})})
    with pytest.raises(
        WeightsMismatch,
        match=r"misshapen: y_embedder\.embedding_table\.weight is \(10, 64\), expected \(6, 64\)",
    ):
        read_external(path, sit())
    assert read_external(path, sit(), any_classes=True).weights["embed_label.weight"].shape == (10, 64)


def test_our_own_weights_and_safetensors(tmp_path):
    network = sit()
    save_file(network.state_dict(), tmp_path / "own.safetensors")
    found = read_external(tmp_path / "own.safetensors", network)
    assert found.family == "ltbench"
    assert all(torch.equal(found.weights[name], tensor) for name, tensor in network.state_dict().items())


def test_half_precision_wrappers_and_the_live_weights(tmp_path):
    """DDP's prefix, fp16 storage, `weights: model`."""
    live = {f"module.{name}": tensor.half() for name, tensor in released.sit_state(**SIT).items()}
    path = save(tmp_path, {"ema": released.sit_state(**SIT, seed=3), "model": live})
    found = read_external(path, sit(), weights="model")
    assert found.state == "model"
    assert found.weights["head.bias"].dtype == torch.float32
    with pytest.raises(WeightsMismatch, match=r"no state dict ema or ema_model.*holds model") as caught:
        read_external(save(tmp_path, {"model": live}, "live.pt"), sit())
    assert "weights: model" in str(caught.value.hint)


# --- what does not fit ------------------------------------------------------------------------------------------------


def test_everything_wrong_is_said_at_once(tmp_path):
    state = released.sit_state(**SIT)
    del state["blocks.1.attn.proj.bias"], state["t_embedder.mlp.0.weight"]
    state["blocks.0.attn.q_norm.weight"] = torch.ones(32)
    state["blocks.0.mlp.fc1.weight"] = torch.ones(128, 64)
    state["blocks.0.mlp.fc2.bias"][3] = torch.nan
    state["pos_embed"] = state["pos_embed"].flip(1)
    with pytest.raises(WeightsMismatch) as caught:
        read_external(save(tmp_path, {"ema": state}), sit())
    message = caught.value.message
    for line in (
        "missing: blocks.1.attn.proj.bias, expected (64,)",
        "missing: t_embedder.mlp.0.weight, expected (64, 256)",
        "unexpected: blocks.0.attn.q_norm.weight (32,)",
        "misshapen: blocks.0.mlp.fc1.weight is (128, 64), expected (256, 64)",
        "not finite: blocks.0.mlp.fc2.bias",
        "other values: pos_embed",
    ):
        assert line in message
    assert len(message.splitlines()) == 7


def test_another_size_is_named(tmp_path):
    path = save(tmp_path, {"ema": released.sit_state(**{**SIT, "depth": 12, "width": 384, "patch": 2})})
    with pytest.raises(WeightsMismatch) as caught:
        read_external(path, sit())
    assert caught.value.hint == "the file looks like SiT-S/2 for 4 channels"


def test_another_kind_of_network_and_an_unknown_family(tmp_path):
    path = save(tmp_path, {"ema": released.sit_state(**SIT)})
    with pytest.raises(WeightsMismatch, match="family sit are a SiT's, and the network is a UNet"):
        read_external(path, unet())
    with pytest.raises(WeightsMismatch, match=r"no family known here; they begin with conv1\.weight"):
        read_external(save(tmp_path, {"conv1.weight": torch.ones(1)}, "r.pt"), sit())


@pytest.mark.parametrize(
    ("state", "args", "said"),
    [
        (released.sit_state(**SIT), {"path_type": "GVP"}, "path_type 'GVP' (expected Linear)"),
        (released.sit_state(**SIT), {"prediction": "noise"}, "prediction 'noise' (expected velocity)"),
        (
            released.repa_state(**SIT),
            {"path_type": "cosine", "prediction": "v"},
            "path_type 'cosine' (expected linear)",
        ),
    ],
)
def test_weights_of_another_process_are_refused(tmp_path, state, args, said):
    with pytest.raises(WeightsMismatch) as caught:
        read_external(save(tmp_path, released.sit_file(state, state, **args)), sit())
    assert said in caught.value.message


# --- files that cannot be trusted -------------------------------------------------------------------------------------


class Bomb:
    def __reduce__(self):
        return os.mkdir, (os.environ["BOMB"],)


@pytest.mark.parametrize("zipped", [True, False])
def test_code_in_a_file_is_named_and_not_run(tmp_path, monkeypatch, zipped):
    monkeypatch.setenv("BOMB", str(tmp_path / "it-ran"))
    value = {"ema": released.sit_state(**SIT), "args": Bomb()}
    path = save(tmp_path, value, _use_new_zipfile_serialization=zipped)
    with pytest.raises(WeightsRefused, match=r"asks for (posix|nt)\.mkdir"):
        read_external(path, sit())
    assert not (tmp_path / "it-ran").exists()


def test_every_global_that_a_file_needs_is_named(tmp_path):
    value = {"ema": released.sit_state(**SIT), "a": fractions.Fraction(1, 2), "b": collections.deque()}
    with pytest.raises(WeightsRefused, match=r"asks for collections\.deque, fractions\.Fraction") as caught:
        read_external(save(tmp_path, value), sit())
    assert "state_dict" in str(caught.value.hint)


def test_arguments_are_data(tmp_path):
    """A namespace comes back as values; argparse's own class is never made, and what hides inside one is refused."""
    state = released.sit_state(**SIT)
    with pytest.raises(WeightsRefused, match=r"fractions\.Fraction"):
        read_external(save(tmp_path, released.sit_file(state, state, lr=fractions.Fraction(1, 2))), sit())
    made = []

    class Loud(argparse.Namespace):
        def __init__(self, **kwargs):
            made.append(kwargs)
            super().__init__(**kwargs)

    path = save(tmp_path, released.sit_file(state, state))
    original, argparse.Namespace = argparse.Namespace, Loud
    try:
        read_external(path, sit())
    finally:
        argparse.Namespace = original
    assert made == []


def test_another_file_than_the_one_named_is_refused_unparsed(tmp_path):
    path = tmp_path / "weights.pt"
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(WeightsRefused, match="has sha256 "):
        read_external(path, sit(), sha256="0" * 64)
    with pytest.raises(WeightsRefused, match="cannot be read"):
        read_external(path, sit(), sha256=hashlib.sha256(path.read_bytes()).hexdigest().upper())


def test_a_flipped_bit_is_noticed_without_a_named_sum(tmp_path):
    state = released.sit_state(**SIT)
    path = save(tmp_path, {"ema": state})
    with zipfile.ZipFile(path) as archive:
        biggest = max(archive.infolist(), key=lambda info: info.file_size)
    data = bytearray(path.read_bytes())
    data[biggest.header_offset + 1000] ^= 1
    path.write_bytes(data)
    with pytest.raises(WeightsRefused, match="does not match its checksum"):
        read_external(path, sit())


@pytest.mark.parametrize(
    ("name", "data", "said"),
    [
        ("weights.ckpt", b"", "no weights file"),
        ("weights.pt", None, "there is no file"),
        ("weights.pt", b"", "cannot be read"),
        ("weights.pth", b"\x80\x02K\x01.", "cannot be read|not a mapping"),
        ("weights.safetensors", b"\xff" * 64, "cannot be read"),
    ],
)
def test_a_file_that_is_none(tmp_path, name, data, said):
    if data is not None:
        (tmp_path / name).write_bytes(data)
    with pytest.raises(WeightsRefused, match=said):
        read_external(tmp_path / name, sit())


def test_a_tensor_alone_is_no_weights_file(tmp_path):
    with pytest.raises(WeightsRefused, match="holds Tensor, not a mapping"):
        read_external(save(tmp_path, torch.ones(2)), sit())
    with pytest.raises(WeightsMismatch, match="no state dict ema or ema_model; it holds epoch"):
        read_external(save(tmp_path, {"epoch": 3}, "e.pt"), sit())
