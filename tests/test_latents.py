"""Latents against diffusers' own encoding and decoding, and the cache of moments: complete, resumable, never stale."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch._dynamo.utils import counters

from ltbench import seeds, vaes
from ltbench.collect import Preempted
from ltbench.datasets import Images
from ltbench.errors import EnvironmentProblem, LtbenchError, UsageError
from ltbench.latents.codec import BATCH, Codec, CompiledDecoder, load_codec
from ltbench.places import Held, place
from tests import killing
from tests.latent_world import CPU, codec_at, latent_parts, moments, rows_of, saved, small_model, squares


@pytest.fixture
def images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Images:
    monkeypatch.setenv("LTBENCH_DATA", str(tmp_path))
    return squares()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("weights") / "small")


@pytest.fixture
def codec(folder: Path) -> Codec:
    torch.set_num_threads(1)
    return codec_at(folder)


# --- the codec --------------------------------------------------------------------------------------------------------


def test_moments_and_images_are_those_of_diffusers(codec: Codec, images: Images) -> None:
    x = torch.from_numpy(np.array(images.images[:5]))
    with torch.no_grad():
        posterior = small_model().encode(x.float() / 127.5 - 1).latent_dist
        z = posterior.mode() * 0.7
        theirs = small_model().decode(z / 0.7).sample
    found = codec.moments(x)
    torch.testing.assert_close(found, torch.stack([posterior.mean, posterior.std], 1), rtol=0, atol=1e-5)
    torch.testing.assert_close(codec.decode(z), theirs, rtol=0, atol=1e-5)


@pytest.mark.filterwarnings(
    "ignore:The .grad attribute of a Tensor:UserWarning"
)  # torch's tracing looks at it
def test_a_compiled_decoder_gives_the_same_images_from_one_shape(codec: Codec) -> None:
    told: list[str] = []
    decode = CompiledDecoder(codec, told.append, backend="aot_eager")
    z = torch.randn(2 * BATCH + 3, 4, 4, 4, generator=torch.Generator().manual_seed(0))
    plain, before = codec.decode(z), counters["stats"]["unique_graphs"]
    torch.testing.assert_close(decode(z), plain, rtol=1e-5, atol=1e-5)
    assert counters["stats"]["unique_graphs"] > before  # it was compiled
    assert not counters["graph_break"]
    with torch.compiler.set_stance("fail_on_recompile"):
        torch.testing.assert_close(decode(z[: BATCH + 5]), plain[: BATCH + 5], rtol=1e-5, atol=1e-5)
    assert torch.equal(codec.decode(z), plain)  # whoever else decodes sees nothing of it

    def missing(*_: object) -> object:
        raise RuntimeError("no C++ compiler here")

    torch.testing.assert_close(CompiledDecoder(codec, told.append, backend=missing)(z[:2]), plain[:2])
    (said,) = told
    assert said.startswith("the decoder is not compiled: ")
    assert "no C++ compiler here" in said


def test_the_published_scale_is_used_for_the_published_names_only(codec: Codec) -> None:
    assert codec.scale == 0.7, "of its own config"
    assert vaes.SCALE == 0.18215
    assert load_codec("tiny-vae", CPU).scale == 1.0


def test_attention_under_its_old_names_is_read(folder: Path, tmp_path: Path) -> None:
    """The published files of 2022 call the projections query, key, value and proj_attn, as 1 x 1 convolutions or matrices."""
    old = tmp_path / "old"
    saved(old)
    names = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}
    weights = load_file(old / vaes.WEIGHTS)
    for new, before in names.items():
        weights = {k.replace(f".{new}.", f".{before}."): v for k, v in weights.items()}
    assert any(".query." in key for key in weights)
    save_file(weights, old / vaes.WEIGHTS)
    x = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    assert torch.equal(codec_at(old).moments(x), codec_at(folder).moments(x))


def test_weights_that_lack_a_tensor_are_refused(tmp_path: Path) -> None:
    folder = saved(tmp_path / "cut")
    weights = load_file(folder / vaes.WEIGHTS)
    weights.pop("decoder.conv_out.bias")
    save_file(weights, folder / vaes.WEIGHTS)
    with pytest.raises(EnvironmentProblem, match=r"decoder\.conv_out\.bias"):
        codec_at(folder)


def test_tiny_vae_is_the_same_everywhere(images: Images) -> None:
    """Pinned: a change of its recipe would change cells under an unchanged id."""
    found = load_codec("tiny-vae", CPU).moments(torch.from_numpy(np.array(images.images[:2])))
    assert found.shape == (2, 2, 4, 4, 4)
    assert found[:, 1].mean() == pytest.approx(np.exp(-2), rel=1e-5)
    weight = load_codec("tiny-vae", CPU).model.encoder.conv_in.weight
    assert weight.flatten()[:3].tolist() == pytest.approx(
        (
            seeds.stream(0, "init", "tiny-vae", "encoder.conv_in.weight").standard_normal(
                (8, 3, 3, 3), np.float32
            )
            / 27**0.5
        )
        .flatten()[:3]
        .tolist(),
        rel=1e-6,
    )


# --- names ------------------------------------------------------------------------------------------------------------


def test_a_folder_is_named_by_its_content(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name, where = vaes.resolve(str(folder))
    assert name == f"small#{vaes.content(folder)[:12]}"
    assert where == str(folder)
    other = saved(tmp_path / "small", seed=1)
    assert vaes.resolve(str(other))[0] != name
    monkeypatch.setattr(vaes, "_SEEN", {})
    assert "not here" in (vaes.problem(name) or "")
    monkeypatch.setenv("LTBENCH_WEIGHTS", str(folder.parent))
    assert vaes.problem(name) is None
    assert vaes.network_shape({"latents": name}, 3, 64) == (4, 16, 16)
    monkeypatch.setenv("LTBENCH_WEIGHTS", str(other.parent))
    assert "another VAE" in (vaes.problem(name) or "")


def test_a_name_alone_is_answered_with_its_digits(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LTBENCH_WEIGHTS", str(folder.parent))
    with pytest.raises(UsageError, match=f"write small#{vaes.content(folder)[:12]}"):
        vaes.resolve("small")


@pytest.mark.parametrize(
    ("spoil", "said"),
    [
        (lambda f: (f / vaes.WEIGHTS).rename(f / "diffusion_pytorch_model.bin"), "pickle"),
        (lambda f: (f / "config.json").write_text("{"), "cannot be read"),
        (lambda f: _config(f, _class_name="AutoencoderTiny"), "no AutoencoderKL"),
        (lambda f: _config(f, in_channels=1), "not one of RGB"),
        (lambda f: _config(f, latents_mean=[0.0] * 4), "channel by channel"),
    ],
)
def test_a_folder_that_is_no_vae_is_refused(spoil: Any, said: str, tmp_path: Path) -> None:
    folder = saved(tmp_path / "spoilt")
    spoil(folder)
    with pytest.raises(UsageError, match=said):
        vaes.resolve(str(folder))


def _config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_a_published_name_takes_no_other_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    saved(tmp_path / "sd-vae-ft-mse")
    monkeypatch.setenv("LTBENCH_WEIGHTS", str(tmp_path))
    said = vaes.problem("sd-vae-ft-mse") or ""
    assert "not the weights" in said
    assert "stabilityai/sd-vae-ft-mse" in said


def test_bytes_are_those_of_the_reference() -> None:
    """performance.md: 16 KB an image and flip at 256 px, 9.2 GB for ImageNet-LT 0.01 (279,350 images)."""
    assert vaes.latents_bytes("sd-vae-ft-ema", 1, 256) == 2 * 16 * 1024
    assert vaes.latents_bytes("sd-vae-ft-ema", 279_350, 256) == pytest.approx(9.2e9, rel=0.01)


# --- the cache --------------------------------------------------------------------------------------------------------


def test_both_flips_of_every_image_are_kept(codec: Codec, images: Images, tmp_path: Path) -> None:
    made = moments(images, codec, tmp_path)
    assert [len(array) for array in made.arrays] == [16, 16, 13]
    kept = torch.from_numpy(np.concatenate(made.arrays))
    x = torch.from_numpy(np.array(images.images))
    wanted = torch.stack([codec.moments(x), codec.moments(x.flip(3))], 1)
    torch.testing.assert_close(kept.float(), wanted, rtol=2**-10, atol=1e-6)
    assert (kept[:, 0] != kept[:, 1]).any(), "a mirror image has latents of its own"


def test_what_is_there_is_found_without_the_vae(codec: Codec, images: Images, tmp_path: Path) -> None:
    made = moments(images, codec, tmp_path)
    found = moments(images, codec, tmp_path, load=_never)
    assert found.content == made.content
    assert all(np.array_equal(a, b) for a, b in zip(found.arrays, made.arrays, strict=True))


def _never() -> Codec:
    raise AssertionError("nothing is to be encoded")


def test_a_stop_keeps_finished_blocks(codec: Codec, images: Images, tmp_path: Path) -> None:
    asked = []
    with pytest.raises(Preempted):
        moments(images, codec, tmp_path, stop=lambda: asked.append(1) or len(asked) > 2)
    loaded = []
    moments(images, codec, tmp_path, load=lambda: loaded.append(1) or codec)
    assert len(loaded) == 1, "two of three blocks were there"


def test_a_flipped_bit_is_noticed_and_only_its_block_made_again(
    codec: Codec, images: Images, tmp_path: Path
) -> None:
    made = moments(images, codec, tmp_path)
    before = [np.array(array) for array in made.arrays]
    path = next(tmp_path.rglob("block-000001-*.safetensors"))
    data = bytearray(path.read_bytes())
    data[-5] ^= 4
    path.write_bytes(bytes(data))
    told, loaded = [], []
    again = moments(images, codec, tmp_path, notice=told.append, load=lambda: loaded.append(1) or codec)
    assert len(loaded) == 1
    assert "block-000001" in told[0]
    assert all(np.array_equal(a, b) for a, b in zip(again.arrays, before, strict=True))


@pytest.mark.parametrize("what", ["pixels", "vae"])
def test_other_pixels_or_another_vae_are_other_latents(
    what: str, codec: Codec, images: Images, tmp_path: Path
) -> None:
    made = moments(images, codec, tmp_path / "cache")
    if what == "pixels":
        changed = np.array(images.images)
        changed[3, 0, 0, 0] ^= 1
        images = Images(changed, images.labels, images.index)
    else:
        codec = codec_at(saved(tmp_path / "small", seed=1))
    assert moments(images, codec, tmp_path / "cache").content != made.content


def test_a_latent_that_float16_cannot_hold_is_an_error(codec: Codec, images: Images, tmp_path: Path) -> None:
    class Loud:
        def parameters(self) -> Any:
            return codec.model.parameters()

        def encode(self, x: torch.Tensor) -> Any:
            found = codec.model.encode(x)
            found.latent_dist.mean[1] *= 1e9
            return found

    with pytest.raises(LtbenchError, match="training image 1"):
        moments(images, Codec("loud", Loud(), 1.0, 0.0), tmp_path)


def test_encoding_that_is_killed_anywhere_ends_with_the_same_bytes(
    codec: Codec, images: Images, tmp_path: Path
) -> None:
    def work(root: Path = tmp_path / "killed") -> None:
        torch.set_num_threads(1)
        moments(images, codec, root, block=8)

    whole = moments(images, codec, tmp_path / "whole", block=8)
    begun = time.monotonic()
    calls = killing.count_calls(lambda: work(tmp_path / "counted"), tmp_path / "log")
    spent = time.monotonic() - begun
    timed, inside = killing.kill_until_done(work, tmp_path / "log", random.Random(4), spent, calls)
    assert timed + inside > 0
    found = moments(images, codec, tmp_path / "killed", block=8, load=_never)
    assert [a.tobytes() for a in found.arrays] == [a.tobytes() for a in whole.arrays]


# --- draws ------------------------------------------------------------------------------------------------------------


def test_a_draw_is_the_posteriors_sample_of_its_own_key(codec: Codec, images: Images, tmp_path: Path) -> None:
    made = moments(images, codec, tmp_path)
    all_moments = np.concatenate(made.arrays).astype(np.float32)
    drawer = latent_parts("sit", "sit", images, codec, rows_of(made)).drawer
    draw = drawer.draw(7, [0, 1, 2])
    for row, (i, flip) in enumerate(zip(draw.index.tolist(), draw.flipped.tolist(), strict=True)):
        shard, place_in = divmod(row, 4)
        noise = seeds.stream(0, "latents", 7, shard).standard_normal((4, 4, 8, 8), np.float32)[place_in]
        mean, deviation = all_moments[i, int(flip)]
        np.testing.assert_allclose(
            draw.x0[row].numpy(), 0.7 * (mean + deviation * noise), rtol=1e-6, atol=1e-7
        )
    again = drawer.draw(8, [0, 1, 2])
    assert not torch.equal(draw.x0, again.x0)
    assert draw.flipped.any()
    assert not draw.flipped.all()


def test_pixels_beside_latents_have_their_image_and_their_flip(
    codec: Codec, images: Images, tmp_path: Path
) -> None:
    """Brute force: each drawn latent without its noise is nearest to what the VAE makes of the pixels beside it."""
    made = moments(images, codec, tmp_path)
    still = Held(torch.from_numpy(np.concatenate(made.arrays)).flatten(0, 1))
    still.tensor[:, 1] = 0
    repa = {"name": "repa", "encoder": "random", "tap": "N", "hidden": 16}
    made_of = latent_parts("sit", repa, images, codec, still)
    draw = made_of.drawer.draw(3, [0, 1, 2])
    assert draw.pixels is not None
    assert draw.pixels.dtype == torch.uint8
    assert {True, False} == set(draw.flipped.tolist())
    seen = codec.moments(draw.pixels)[:, 0] * codec.scale
    distance = (draw.x0[:, None] - seen[None]).abs().amax((2, 3, 4))
    assert (distance.argmin(1) == torch.arange(12)).all()
    assert distance.diagonal().max() < 1e-2
    mirrored = codec.moments(draw.pixels.flip(3))[:, 0] * codec.scale
    assert ((draw.x0 - mirrored).abs().amax((1, 2, 3)) > 10 * distance.diagonal()).all()


def test_kept_tokens_are_those_of_the_pixels_drawn(codec: Codec, images: Images, tmp_path: Path) -> None:
    """REPA's cache is asked by (image, flip): the same tokens as encoding what lies beside the latents."""
    rows = rows_of(moments(images, codec, tmp_path))
    repa = {"name": "repa", "encoder": "random", "tap": "N", "hidden": 16}
    losses = [
        latent_parts("sit", {**repa, "cache": cache}, images, codec, rows).objective
        for cache in (False, True)
    ]
    draw = latent_parts("sit", {**repa, "cache": False}, images, codec, rows).drawer.draw(3, [0, 1, 2])
    one, two = (objective(draw) for objective in losses)
    assert one.keys() == two.keys()
    for term in one:
        torch.testing.assert_close(one[term], two[term], rtol=1e-5, atol=1e-6)


def test_the_reference_batch_has_numbers_of_its_own(codec: Codec, images: Images, tmp_path: Path) -> None:
    import dataclasses

    drawer = latent_parts("sit", "sit", images, codec, rows_of(moments(images, codec, tmp_path))).drawer
    draw = dataclasses.replace(drawer, reference=True).draw(5, [0, 1, 2])
    assert draw.reference is not None
    assert draw.reference.x0.shape == draw.x0.shape
    assert torch.equal(draw.x0, drawer.draw(5, [0, 1, 2]).x0), "and takes none of the batch's"


def test_shards_drawn_apart_are_those_drawn_together(codec: Codec, images: Images, tmp_path: Path) -> None:
    drawer = latent_parts("ddpm", "ddpm", images, codec, rows_of(moments(images, codec, tmp_path))).drawer
    together = drawer.draw(2, [0, 1, 2]).x0
    assert torch.equal(together, torch.cat([drawer.draw(2, [s]).x0 for s in range(3)]))


def test_settings_and_latents_come_together(codec: Codec, images: Images) -> None:
    from ltbench.methods import load_method
    from ltbench.parts import build_parts
    from tests import toy
    from tests.latent_world import SquaresHere

    made = toy.settings("sit", "sit")
    made["dataset"]["latents"] = codec.name
    with pytest.raises(ValueError, match="exactly where"):
        build_parts(made, SquaresHere(images), load_method("sit"), CPU)


def test_a_single_block_in_memory_is_held(codec: Codec) -> None:
    assert isinstance(place([np.zeros((3, 2), np.float16)], CPU), Held)
