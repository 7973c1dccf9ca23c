"""Networks by name, and the taps a name promises. No torch here: a name can be read and checked before anything is built.

`SiT-{N,T,S,B,L,XL}/P` are transformers on patches of P x P pixels; S, B, L and XL are the published sizes (willisma/SiT:
models.py), N and T are ours, for machines without an accelerator; SN, LN and XLN have the blocks of S (and B), L and XL and the
width of N, so that every tap of the published sizes exists: for smoke runs. `UNet-128` is the published U-Net of the CBDM family
(qym7/CBDM-pytorch:model/model.py, config/cifar100.txt); `UNet-32` and `UNet-16` are ours, one level and one block less; `UNet-8` is the published one
in all but width.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from ltbench.errors import UsageError


@dataclass(frozen=True)
class SiTSize:
    """`depth` blocks of width `width` with `heads` attention heads, on square patches of `patch` pixels."""

    depth: int
    width: int
    heads: int
    patch: int


@dataclass(frozen=True)
class UNetSize:
    """Width `channels` times `multipliers` per level (each level halves the image), `blocks` residual blocks per level on the
    way down, self-attention in the blocks of the levels in `attention`."""

    channels: int
    multipliers: tuple[int, ...]
    blocks: int
    attention: tuple[int, ...]


SIT_SIZES: dict[str, tuple[int, int, int]] = {
    "N": (2, 64, 2),
    "T": (4, 128, 4),
    "S": (12, 384, 6),
    "B": (12, 768, 12),
    "L": (24, 1024, 16),
    "XL": (28, 1152, 16),
    "SN": (12, 64, 2),
    "LN": (24, 64, 2),
    "XLN": (28, 64, 2),
}
UNET_SIZES: dict[str, UNetSize] = {
    "UNet-128": UNetSize(128, (1, 2, 2, 2), 2, (1,)),
    "UNet-32": UNetSize(32, (1, 2, 2), 1, (1,)),
    "UNet-16": UNetSize(16, (1, 2, 2), 1, (1,)),
    "UNet-8": UNetSize(8, (1, 2, 2, 2), 2, (1,)),
}
NETWORK_NAMES = (*(f"SiT-{size}/P" for size in SIT_SIZES), *UNET_SIZES)


def network_size(name: str, resolution: int) -> SiTSize | UNetSize:
    """The size behind a name, checked against a square image of `resolution` pixels.

    Raises UsageError if the name is unknown, the patch does not divide the resolution, or the U-Net has more levels than the
    resolution can be halved.
    """
    if name in UNET_SIZES:
        return _fitting_unet(name, resolution)
    parts = re.fullmatch(r"SiT-([A-Z]+)/([1-9][0-9]*)", name)
    if parts is None or parts[1] not in SIT_SIZES:
        raise UsageError(
            f"unknown network '{name}'",
            hint=f"networks are {', '.join(NETWORK_NAMES)}, where P is the patch size in pixels",
        )
    patch = int(parts[2])
    if resolution % patch:
        divisors = [str(p) for p in range(1, resolution + 1) if resolution % p == 0]
        raise UsageError(
            f"network '{name}' cuts patches of {patch} pixels, which do not divide the resolution {resolution}",
            hint=f"patch sizes that do: {', '.join(divisors)}",
        )
    return SiTSize(*SIT_SIZES[parts[1]], patch=patch)


def _fitting_unet(name: str, resolution: int) -> UNetSize:
    size = UNET_SIZES[name]
    factor = 2 ** (len(size.multipliers) - 1)
    if resolution % factor:
        raise UsageError(
            f"network '{name}' halves the image {len(size.multipliers) - 1} times, which resolution {resolution} does not allow",
            hint=f"use a resolution that is a multiple of {factor}",
        )
    return size


def tap_widths(name: str, resolution: int) -> dict[str, tuple[int, int]]:
    """Every tap of the network `name` at `resolution` and its (N tokens, D width), in the order of computation.

    SiT: block1..blockN. U-Net: down0.. and up0.. count levels, 0 being full resolution, so that down1 and up1 have the same
    shape; mid is the output of the middle blocks.
    """
    size = network_size(name, resolution)
    if isinstance(size, SiTSize):
        tokens = (resolution // size.patch) ** 2
        return {f"block{k}": (tokens, size.width) for k in range(1, size.depth + 1)}
    shapes = [
        ((resolution // 2**level) ** 2, size.channels * multiplier)
        for level, multiplier in enumerate(size.multipliers)
    ]
    down = {f"down{level}": shape for level, shape in enumerate(shapes)}
    up = {f"up{level}": shapes[level] for level in reversed(range(len(shapes)))}
    return {**down, "mid": shapes[-1], **up}
