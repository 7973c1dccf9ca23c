"""A frozen autoencoder: pixels -> moments of the latent's posterior, latents -> images. diffusers' AutoencoderKL does the work.

Latents that a network sees are scale * (z - shift), scale 0.18215 for Stable Diffusion's (DiT, SiT and REPA alike).
Shape letters: B images, R their side, C h w the latent.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ltbench import seeds, vaes
from ltbench.compiled import compile_modules, compiler_failed, uncompile
from ltbench.errors import EnvironmentProblem, first_line

BATCH = (
    16  # images that one pass holds: fixed, so that a number depends on no batch size that a user may choose
)
Decode = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Codec:
    """An autoencoder on a device, without gradients."""

    name: str
    model: Any
    scale: float
    shift: float

    @torch.no_grad()
    def moments(self, pixels: Tensor) -> Tensor:
        """(B, 3, R, R) uint8 -> (B, 2, C, h, w) float32: mean and deviation of the posterior, before scale and shift."""
        found = self.model.encode(pixels.float() / 127.5 - 1.0).latent_dist
        return torch.stack([found.mean, found.std], dim=1)

    @torch.no_grad()
    def decode(self, latents: Tensor) -> Tensor:
        """(B, C, h, w) float32 as a network makes them -> (B, 3, R, R) float32, in about [-1, 1], unrounded."""
        parts = (latents / self.scale + self.shift).split(BATCH)
        return torch.cat([self.model.decode(part).sample for part in parts])


class CompiledDecoder:
    """`Codec.decode` by compiled blocks, channels innermost on a GPU. The passes of a block of images are filled up to one size.

    The decoder is a copy: whoever else decodes in this process gets the digits that it got before. Where its blocks cannot be compiled
    they are run as written, and `notice` hears why. backend: what compiles them.
    """

    def __init__(
        self, codec: Codec, notice: Callable[[str], None], *, backend: str | Callable[..., Any] = "inductor"
    ) -> None:
        from diffusers.models.attention_processor import Attention
        from diffusers.models.resnet import ResnetBlock2D

        shared = codec.model.encoder  # takes no part
        self._codec = replace(codec, model=copy.deepcopy(codec.model, {id(shared): shared}))
        self._notice, self.failed = notice, ""
        decoder = self._codec.model.decoder
        if next(decoder.parameters()).device.type == "cuda":
            decoder.to(memory_format=torch.channels_last)
        blocks = [module for module in decoder.modules() if isinstance(module, ResnetBlock2D | Attention)]
        compile_modules([*blocks, decoder.conv_norm_out], backend=backend)

    def __call__(self, latents: Tensor) -> Tensor:
        """(B, C, h, w) float32 -> (B, 3, R, R) float32."""
        size = min(BATCH, len(latents))
        missing = -len(latents) % size
        whole = torch.cat([latents, latents[:1].expand(missing, -1, -1, -1)])
        return self._decode(whole)[: len(latents)]

    def _decode(self, latents: Tensor) -> Tensor:
        try:
            return self._codec.decode(latents)
        except Exception as error:
            reason = None if self.failed else compiler_failed(error)
            if reason is None:
                raise
        self.failed = f"the decoder is not compiled: {reason}"
        self._notice(self.failed)
        uncompile(self._codec.model.decoder)
        return self._codec.decode(latents)


@lru_cache(maxsize=2)
def load_codec(name: str, device: torch.device) -> Codec:
    """The VAE of that name in float32 on `device`. Raises EnvironmentProblem where `vaes.problem` has a reason, or for weights
    that do not fit the config."""
    if reason := vaes.problem(name):
        raise EnvironmentProblem(reason)
    with torch.random.fork_rng(devices=[]):
        model = _tiny() if name == vaes.TINY else _read(name)
    config = model.config
    scale = vaes.SCALE if name.startswith("sd-vae-") and name in vaes.KNOWN else config.scaling_factor
    model = model.to(device).eval().requires_grad_(False)
    return Codec(name, model, float(scale), float(config.get("shift_factor") or 0.0))


def _read(name: str) -> Any:
    from diffusers.models.autoencoders.autoencoder_kl import (
        AutoencoderKL,
    )  # 7 s: only where latents are coded

    place = vaes.find(name)
    assert place is not None, "asked for its problem before"
    try:
        with _quiet():
            found: Any = AutoencoderKL.from_pretrained(
                str(place), use_safetensors=True, local_files_only=True, output_loading_info=True,
                torch_dtype=torch.float32, low_cpu_mem_usage=False,
            )  # fmt: skip
    except Exception as error:  # diffusers and safetensors fail in ways of their own
        raise EnvironmentProblem(
            f"{place}: the VAE cannot be loaded: {first_line(error)}", _whole(place)
        ) from error
    model, info = found
    wrong = [*info["missing_keys"], *info["mismatched_keys"]]
    if wrong:
        # diffusers leaves what it does not find at random, and only logs it.
        raise EnvironmentProblem(
            f"{place}: the weights lack {len(wrong)} tensors of the config, {wrong[0]} first", _whole(place)
        )
    return model


def _whole(place: Path) -> str:
    return f"get {place.name} again, config.json and {vaes.WEIGHTS} together"


@contextmanager
def _quiet() -> Iterator[None]:
    """diffusers logs at every load that `accelerate` could make it faster."""
    logger = logging.getLogger("diffusers")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


# --- tiny-vae ---------------------------------------------------------------------------------------------------------

TINY_CONFIG: dict[str, Any] = {
    "in_channels": 3,
    "out_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",) * 4,
    "up_block_types": ("UpDecoderBlock2D",) * 4,
    "block_out_channels": (8, 8, 8, 8),
    "layers_per_block": 1,
    "latent_channels": 4,
    "norm_num_groups": 4,
    "scaling_factor": 1.0,
}


def _tiny() -> Any:
    """Every weight normal / sqrt(fan in) from its own key; a posterior of deviation e^-2. It knows nothing of images."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

    model = AutoencoderKL(**TINY_CONFIG)
    with torch.no_grad():
        for name, p in model.named_parameters():
            if p.dim() > 1:
                numbers = seeds.stream(0, "init", vaes.TINY, name).standard_normal(tuple(p.shape), np.float32)
                p.copy_(torch.from_numpy(numbers) / p[0].numel() ** 0.5)
            else:
                p.fill_(float("norm" in name and name.endswith("weight")))
        quant: Any = model.quant_conv
        quant.weight[4:] = 0.0
        quant.bias[4:] = -4.0  # log variance
    return model
