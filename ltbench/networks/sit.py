"""SiT: a transformer on image patches, conditioned by adaptive layer norms that start at zero.

arXiv 2401.08740, after DiT (arXiv 2212.09748); willisma/SiT:models.py. Differences, none of which touch the function learnt:
no second half of output channels (`learn_sigma`, dropped unused by the velocity loss), label dropping is the engine's, and the
frozen positions are a buffer that is not saved, as they follow from the size. The clock enters unscaled, as in the released code.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltbench.networks.base import Network, Recomputable, Region
from ltbench.networks.dropout import Dropout
from ltbench.networks.names import SiTSize

FREQUENCIES = 256
MLP_RATIO = 4
MAX_PERIOD = 10_000.0


def sinusoids(t: Tensor, dim: int) -> Tensor:
    """Cosines then sines of t (B,) at dim/2 frequencies from 1 down to nearly 1/10000: (B, dim) float32."""
    half = dim // 2
    frequencies = torch.exp(
        -math.log(MAX_PERIOD) * torch.arange(half, dtype=torch.float32, device=t.device) / half
    )
    angles = t.float()[:, None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=1)


def grid_positions(side: int, width: int) -> Tensor:
    """Fixed 2-D sin-cos positions of a side x side grid, row-major: (side^2, width) float32.

    The first half of the width encodes the column, the second the row, each as sines then cosines (MAE's layout).
    """
    if width % 4:
        raise ValueError(f"positions need a width that is a multiple of 4, got {width}")
    quarter = width // 4
    omega = MAX_PERIOD ** -(torch.arange(quarter, dtype=torch.float64) / quarter)
    angles = torch.arange(side, dtype=torch.float64)[:, None] * omega
    line = torch.cat([angles.sin(), angles.cos()], dim=1)  # (side, width / 2)
    return torch.cat([line.repeat(side, 1), line.repeat_interleave(side, dim=0)], dim=1).float()


class Modulation(nn.Module):
    """Condition (B, D) -> `parts` tensors (B, 1, D) that shift, scale or gate tokens; zero at first (adaLN-zero)."""

    def __init__(self, width: int, parts: int) -> None:
        super().__init__()
        self.parts = parts
        self.linear = nn.Linear(width, parts * width)

    def forward(self, condition: Tensor) -> tuple[Tensor, ...]:
        return self.linear(F.silu(condition))[:, None].chunk(self.parts, dim=2)


def layer_norm(width: int) -> nn.LayerNorm:
    return nn.LayerNorm(width, elementwise_affine=False, eps=1e-6)


class ModulatedNorm(Region):
    """Layer norm, scaled and shifted by the condition."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = layer_norm(width)

    def forward(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        """x (B, N, D), shift and scale (B, 1, D) -> (B, N, D)."""
        return self.norm(x) * (1 + scale) + shift


class Attention(nn.Module):
    """Multi-head self-attention over tokens, (B, N, D) -> (B, N, D)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        rows, tokens, width = x.shape
        q, k, v = self.qkv(x).view(rows, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v)  # (B, heads, N, D / heads)
        return self.proj(mixed.transpose(1, 2).reshape(rows, tokens, width))


class Block(Recomputable):
    """Attention and MLP on the residual stream, each shifted, scaled and gated by the condition (adaLN-zero, DiT section 3.2)."""

    def __init__(self, width: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.norm1, self.norm2 = layer_norm(width), layer_norm(width)
        self.attention = Attention(width, heads)
        self.mlp = nn.Sequential(
            nn.Linear(width, MLP_RATIO * width),
            nn.GELU(approximate="tanh"),
            nn.Linear(MLP_RATIO * width, width),
        )
        self.dropout = Dropout(dropout)
        self.modulation = Modulation(width, 6)

    def body(self, x: Tensor, condition: Tensor) -> Tensor:
        """x (B, N, D), condition (B, D) -> (B, N, D)."""
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(condition)
        x = x + gate1 * self.dropout(self.attention(self.norm1(x) * (1 + scale1) + shift1))
        return x + gate2 * self.dropout(self.mlp(self.norm2(x) * (1 + scale2) + shift2))


class SiT(Network):
    """The transformer of a `SiTSize`; taps block1..blockN are the raw residual stream after that block, (B, N, D)."""

    def __init__(
        self,
        size: SiTSize,
        *,
        channels: int,
        resolution: int,
        classes: int,
        dropout: float,
        tap_widths: dict[str, tuple[int, int]],
        augmented: bool = False,
    ) -> None:
        super().__init__(channels=channels, resolution=resolution, classes=classes, tap_widths=tap_widths)
        width, self.patch = size.width, size.patch
        self.side = resolution // size.patch
        self.embed_patches = nn.Conv2d(channels, width, kernel_size=size.patch, stride=size.patch)
        self.embed_time = nn.Sequential(nn.Linear(FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        self.embed_label = nn.Embedding(classes + 1, width)
        self.positions: Tensor
        self.register_buffer("positions", grid_positions(self.side, width), persistent=False)
        self.blocks = nn.ModuleList(Block(width, size.heads, dropout) for _ in range(size.depth))
        self.norm = ModulatedNorm(width)
        self.modulation = Modulation(width, 2)
        self.head = nn.Linear(width, size.patch**2 * channels)
        self._initialise()
        if augmented:
            self.add_augment(width)

    @torch.no_grad()
    def _initialise(self) -> None:
        """DiT's initialisation: Xavier everywhere, small embeddings, and zero wherever a block or the head joins in."""
        for module in self.modules():
            if isinstance(module, nn.Linear | nn.Conv2d) and module.bias is not None:
                # flat, so that the patch convolution has the fan of a linear map; a view, so it is filled in place
                nn.init.xavier_uniform_(module.weight.flatten(1))
                nn.init.zeros_(module.bias)
        for layer in (
            self.head,
            *(module.linear for module in self.modules() if isinstance(module, Modulation)),
        ):
            nn.init.zeros_(layer.weight)
            nn.init.zeros_(layer.bias)
        nn.init.normal_(self.embed_label.weight, std=0.02)
        for layer in self.embed_time:
            if isinstance(layer, nn.Linear):
                nn.init.normal_(layer.weight, std=0.02)

    def forward(
        self, x: Tensor, t: Tensor, y: Tensor, taps: Sequence[str] = (), augment: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        self.check_call(x, taps, augment)
        condition = self.embed_time(sinusoids(t, FREQUENCIES)) + self.embed_label(y)  # (B, D)
        condition = self.with_augment(condition, augment)
        tokens = self.embed_patches(x).flatten(2).transpose(1, 2) + self.positions  # (B, N, D)
        found = {}
        for number, block in enumerate(self.blocks, start=1):
            tokens = block(tokens, condition)
            found[f"block{number}"] = tokens
        shift, scale = self.modulation(condition)
        patches = self.head(self.norm(tokens, shift, scale))
        return self._unpatchify(patches), [found[tap] for tap in taps]

    def _unpatchify(self, patches: Tensor) -> Tensor:
        """(B, N, P P C), pixels before channels, -> (B, C, H, W)."""
        grid = patches.view(len(patches), self.side, self.side, self.patch, self.patch, self.channels)
        return grid.permute(0, 5, 1, 3, 2, 4).reshape(
            len(patches), self.channels, self.resolution, self.resolution
        )
