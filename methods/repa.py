"""REPA: representation alignment (Yu et al., ICLR 2025, arXiv 2410.06940; sihyun-yu/REPA).

    align_i = -weight * mean over encoders and tokens n of cos( P(h)_in , z_in )
h is the output of one block of the ordinary (label-dropped) pass, z the tokens of a frozen encoder of the clean image, P a trained
projector per encoder: Linear - SiLU - Linear - SiLU - Linear on every token. No time weight; dropped images take part; no gradient
reaches the encoder. The projector is trained and checkpointed with the network and plays no part in sampling.

Paper and code: weight 0.5, DINOv2 ViT-B/14, hidden 2048. Depth 8 for L/XL (preset `paper`); for B the paper's table and the
code disagree, its authors settled on block 4 of 12, which N/4 is here. The released recipe also clips to norm 1, trains in fp16
and flips no image: those are settings of `train`, equal for all rows here. The encoder has seen other data (LVD-142M): say so.
Encoder tokens are resized to the network's grid, by area means or bilinearly, where the two differ (in the released code they
never do). Encoders: timm:NAME, timm:NAME@FILE#SHA, lite0, random, or a list. `cache: true` keeps the tokens of the training set, per
image and flip, in memory: n * 2 * N * Z * 4 bytes, half of it without flips. On the ddpm pipeline h is the U-Net's middle, our port.

Cost: 1 network pass, and the encoder's without gradient unless its tokens are kept: DINOv2-B is about 23 GMAC per image, 6% more for
XL/2 but 130% for S/2, whose projector alone adds 28%.
"""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltbench.methods import Draw, Method, Network, Task, mean_square


class REPA(Method):
    """Features of an early block are aligned with a frozen, pretrained encoder's tokens of the clean image."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "ddpm": {"tap": "mid"},
        "paper": {"weight": 0.5, "tap": "block8", "hidden": 2048},
        "released": {"weight": 0.5, "tap": "N/4", "hidden": 2048},
        "check": {"encoder": "random", "hidden": 16},
        "off": {"weight": 0.0},
    }

    def __init__(
        self,
        task: Task,
        *,
        weight: float = 0.5,  # weight of align
        tap: str = "N/4",  # block that is aligned
        encoder: str | tuple[str, ...] = "timm:vit_base_patch14_dinov2.lvd142m",  # frozen; one projector each
        hidden: int = 2048,  # width of the projector
        cache: bool = False,  # keep the training set's tokens in memory
    ) -> None:
        super().__init__(task)
        self.weight = weight
        self.encoders, self.projectors = [], nn.ModuleList()
        if weight == 0:
            return
        self.taps, self.needs_pixels = (task.tap(tap),), not cache  # kept tokens are found by image and flip
        tokens, width = task.tap_widths[self.taps[0]]
        side = math.isqrt(tokens)
        for name in (encoder,) if isinstance(encoder, str) else encoder:
            self.encoders.append(task.encoder(name, (side, side), cache=cache))
            self.projectors.append(_projector(width, hidden, self.encoders[-1].width))

    def prepare(self, draw: Draw) -> None:
        """Tokens that are to be kept are encoded when an image first needs them."""
        for encode in self.encoders:
            encode.prepare(draw)

    def loss(self, net: Network, draw: Draw) -> dict[str, Tensor]:
        (out,) = self.run(net, draw, draw.y_in)
        terms = {"denoise": mean_square(out.pred, draw.target)}
        if self.weight:
            pairs = zip(self.projectors, self.encoders, strict=True)
            cosines = [self.similarity(project(out.feats[0]), encode(draw)) for project, encode in pairs]
            terms["align"] = -self.weight * torch.stack(cosines).mean(0)
        return terms

    @staticmethod
    def similarity(ours: Tensor, theirs: Tensor) -> Tensor:
        """(B, N, Z) twice -> (B,) cosine of tokens at the same place, averaged over places."""
        return (F.normalize(ours, dim=2) * F.normalize(theirs.detach(), dim=2)).sum(2).mean(1)


def _projector(width: int, hidden: int, out: int) -> nn.Module:
    layers = [nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, hidden), nn.SiLU()]
    return nn.Sequential(*layers, nn.Linear(hidden, out))
