"""The U-Net of the DDPM family: pytorch-ddpm as modified by CBDM (qym7/CBDM-pytorch:model/model.py), which OCLT and CCUA share.

After arXiv 2006.11239, appendix B. The label embedding is added to the time embedding. A null label (y = K) is an embedding times
zero: the module always takes part, so that every parameter has a gradient, and no further row is learnt.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltbench.networks.base import Network, Recomputable, Region
from ltbench.networks.dropout import Dropout
from ltbench.networks.names import UNetSize

CLOCK_STEPS = 1000
# 32 groups at the published 128 channels; the small networks keep the group's size, not the count
CHANNELS_PER_GROUP = 4
SMALL_GAIN = 1e-5


def clock_table(steps: int, dim: int) -> Tensor:
    """Sines and cosines of t = 0..steps-1, interleaved, frequencies from 1 down to nearly 1/10000: (steps, dim) float32."""
    frequencies = torch.exp(-math.log(10_000) * torch.arange(0, dim, 2, dtype=torch.float64) / dim)
    angles = torch.arange(steps, dtype=torch.float64)[:, None] * frequencies
    return torch.stack([angles.sin(), angles.cos()], dim=-1).flatten(1).float()


def tokens(h: Tensor) -> Tensor:
    """Feature map (B, D, H, W) as tokens (B, H W, D), row-major."""
    return h.flatten(2).transpose(1, 2)


def conv(inside: int, outside: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(inside, outside, 3, stride=stride, padding=1)


class NormSwish(nn.GroupNorm, Region):
    """Group norm, then swish."""

    def forward(self, input: Tensor) -> Tensor:
        """(B, D, H, W) -> (B, D, H, W)."""
        return F.silu(super().forward(input))


class SelfAttention(nn.Module):
    """One-head self-attention over pixels with a residual, (B, D, H, W) -> (B, D, H, W)."""

    def __init__(self, width: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, width)
        self.qkv = nn.Conv2d(width, 3 * width, 1)
        self.proj = nn.Conv2d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        # Width innermost, as it is already in a channels-last network: else torch's fused kernels refuse, and (N, N) maps are kept.
        q, k, v = tokens(self.qkv(self.norm(x))).contiguous()[:, None].chunk(3, dim=3)
        mixed = F.scaled_dot_product_attention(q, k, v)[:, 0]  # (B, H W, D)
        return x + self.proj(mixed.transpose(1, 2).reshape(x.shape))


class ResBlock(Recomputable):
    """norm-swish-conv twice, the embedding added between, over a (projected) shortcut; then attention if asked for."""

    def __init__(
        self, inside: int, outside: int, *, embedding: int, groups: int, dropout: float, attention: bool
    ) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.GroupNorm(groups, inside), nn.SiLU(), conv(inside, outside))
        self.embed = nn.Sequential(nn.SiLU(), nn.Linear(embedding, outside))
        self.last = conv(outside, outside)
        self.second = nn.Sequential(nn.GroupNorm(groups, outside), nn.SiLU(), Dropout(dropout))
        self.shortcut = nn.Identity() if inside == outside else nn.Conv2d(inside, outside, 1)
        self.attention = SelfAttention(outside, groups) if attention else nn.Identity()

    def body(self, x: Tensor, condition: Tensor) -> Tensor:
        """x (B, Din, H, W), condition (B, E) -> (B, Dout, H, W)."""
        h = self.first(x) + self.embed(condition)[:, :, None, None]
        return self.attention(self.last(self.second(h)) + self.shortcut(x))


class Down(nn.Module):
    """One level on the way down: halving (but for the first level), then the residual blocks."""

    def __init__(
        self, inside: int, outside: int, *, shrink: bool, count: int, block: Callable[..., ResBlock]
    ) -> None:
        super().__init__()
        self.shrink = conv(inside, inside, stride=2) if shrink else None
        self.blocks = nn.ModuleList(block(inside if k == 0 else outside, outside) for k in range(count))

    def forward(self, h: Tensor, embedding: Tensor) -> list[Tensor]:
        """Everything the way up wants from this level, in order; the last is the level's output."""
        made = []
        if self.shrink is not None:
            h = self.shrink(h)
            made.append(h)
        for block in self.blocks:
            h = block(h, embedding)
            made.append(h)
        return made


class Up(nn.Module):
    """One level on the way up: doubling (but for the coarsest level), then residual blocks, each taking one skip."""

    def __init__(
        self, inside: int, outside: int, *, grow: bool, skips: list[int], block: Callable[..., ResBlock]
    ) -> None:
        super().__init__()
        self.grow = conv(inside, inside) if grow else None
        widths = [inside, *[outside] * (len(skips) - 1)]
        self.blocks = nn.ModuleList(
            block(width + skip, outside) for width, skip in zip(widths, skips, strict=True)
        )

    def forward(self, h: Tensor, skips: list[Tensor], embedding: Tensor) -> Tensor:
        """Takes its skips off the end of the list."""
        if self.grow is not None:
            h = self.grow(F.interpolate(h, scale_factor=2, mode="nearest"))
        for block in self.blocks:
            h = block(torch.cat([h, skips.pop()], dim=1), embedding)
        return h


class UNet(Network):
    """The U-Net of a `UNetSize`, for the integer clock of DiscreteDDPM.

    Taps are (B, H W, D) tokens: down{i} and up{i} are what level i gives on the way down and up, before its resampling; mid is
    the output of the middle blocks.
    """

    channels_last: ClassVar[bool] = True

    def __init__(
        self,
        size: UNetSize,
        *,
        channels: int,
        resolution: int,
        classes: int,
        dropout: float,
        tap_widths: dict[str, tuple[int, int]],
        augmented: bool = False,
    ) -> None:
        super().__init__(channels=channels, resolution=resolution, classes=classes, tap_widths=tap_widths)
        base, embedding = size.channels, 4 * size.channels
        widths = [base * multiplier for multiplier in size.multipliers]
        groups = base // CHANNELS_PER_GROUP
        block = partial(ResBlock, embedding=embedding, groups=groups, dropout=dropout)
        self.clock: Tensor
        self.register_buffer("clock", clock_table(CLOCK_STEPS, base), persistent=False)
        self.embed_time = nn.Sequential(
            nn.Linear(base, embedding), nn.SiLU(), nn.Linear(embedding, embedding)
        )
        self.embed_label = nn.Embedding(classes, embedding)
        self.inlet = conv(channels, base)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()  # up runs from the coarsest level to the finest
        skips, width = [base], base
        for level, wide in enumerate(widths):
            level_block = partial(block, attention=level in size.attention)
            self.down.append(Down(width, wide, shrink=level > 0, count=size.blocks, block=level_block))
            skips += [width] * (level > 0) + [wide] * size.blocks
            width = wide
        self.middle = nn.ModuleList(block(width, width, attention=first) for first in (True, False))
        for level in reversed(range(len(widths))):
            level_block = partial(block, attention=level in size.attention)
            taken = [skips.pop() for _ in range(size.blocks + 1)]
            self.up.append(
                Up(width, widths[level], grow=level < len(widths) - 1, skips=taken, block=level_block)
            )
            width = widths[level]
        self.last_norm = NormSwish(groups, base)
        self.outlet = conv(base, channels)
        self._initialise()
        if augmented:
            self.add_augment(embedding)

    @torch.no_grad()
    def _initialise(self) -> None:
        """Xavier everywhere, biases zero, and a gain of 1e-5 on the last convolution of every residual block and of the net.

        The attention's output projection keeps gain 1: the released code asks for 1e-5 there too, but the residual block that
        holds it initialises it again. Label embeddings stay at torch's N(0, 1), as released.
        """
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        for module in self.modules():
            if isinstance(module, SelfAttention):
                for part in module.qkv.weight.chunk(3):  # three maps, each with a fan of its own
                    nn.init.xavier_uniform_(part)
            if isinstance(module, ResBlock):
                nn.init.xavier_uniform_(module.last.weight, gain=SMALL_GAIN)
        nn.init.xavier_uniform_(self.outlet.weight, gain=SMALL_GAIN)

    def forward(
        self, x: Tensor, t: Tensor, y: Tensor, taps: Sequence[str] = (), augment: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        self.check_call(x, taps, augment)
        embedding = self.with_augment(self._embed(t, y), augment)
        found = {}
        skips = [self.inlet(x)]
        for level, stage in enumerate(self.down):
            skips += stage(skips[-1], embedding)
            found[f"down{level}"] = skips[-1]
        h = skips[-1]
        for block in self.middle:
            h = block(h, embedding)
        found["mid"] = h
        for level, stage in zip(reversed(range(len(self.up))), self.up, strict=True):
            h = stage(h, skips, embedding)
            found[f"up{level}"] = h
        return self.outlet(self.last_norm(h)), [tokens(found[tap]) for tap in taps]

    def _embed(self, t: Tensor, y: Tensor) -> Tensor:
        """Clock (B,) int64 and label (B,) -> (B, E); a label above K is an IndexError, as in any table."""
        if t.is_floating_point():
            raise ValueError(
                f"the U-Net reads the integer clock of DiscreteDDPM (0..{CLOCK_STEPS - 1}), got {t.dtype}"
            )
        labelled = y != self.classes
        label = self.embed_label(torch.where(labelled, y, 0)) * labelled[:, None]
        return self.embed_time(self.clock[t]) + label
