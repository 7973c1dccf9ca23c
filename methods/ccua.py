"""CCUA: contrastive conditional-unconditional alignment (arXiv 2507.09052; its CCUA-SiT and CCUA-DDPM code).

Beside the ordinary pass, a pass under the null label at the same (x_t, t):
    spread = alpha * w_ucl * (logsumexp_j(cos(h_i, h_j) / temperature) - 1 / temperature)
    align  = gamma * w_al  * mean (f(y) - f(null))^2
h are features of the null pass, compared inside the local batch; align counts images whose label was kept, the others are 0.
Gradients flow through both branches, anchors and negatives. An image whose label was dropped has its ordinary pass in the
null pass already, so only kept images are run twice: the same loss.

Paper and code: the text weights by t/T (more towards noise), as the DDPM code does (`noise`). The SiT code multiplies by its
own clock, which runs from noise to data, so there both weights grow towards data (`data`, the default of the sit pipeline).
`noise_eps` is the paper's literal weight with the alignment measured in noise space; `one` leaves spread unweighted as
Algorithm 1 prints it. Published constants: alpha = gamma = 0.05 at block N/4 on ImageNet-LT, 1.0 at the bottleneck on TinyImageNet-LT.

Cost: 1.9 network passes at 10% dropped labels, where the released code makes 2.0, fused ("parallel") or serial.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ltbench.methods import Draw, Method, Network, Task, info_nce, mean_square


class CCUA(Method):
    """Unconditional features are spread, conditional and unconditional predictions aligned."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "ddpm": {"alpha": 1.0, "gamma": 1.0, "tap": "mid", "spread_weight": "noise", "align_weight": "noise"},
        "seed": {"alpha": 0.05, "gamma": 0.05, "tap": "N/4", "spread_weight": "data", "align_weight": "data"},
        "released": {
            "alpha": 0.05,
            "gamma": 0.05,
            "tap": "N/4",
            "spread_weight": "data",
            "align_weight": "data",
        },
        "paper": {"spread_weight": "noise", "align_weight": "noise_eps"},
        "off": {"alpha": 0.0, "gamma": 0.0},
    }
    single_pass: ClassVar[list[dict[str, Any]] | None] = [{"alpha": 0.0, "gamma": 0.0}]

    def __init__(
        self,
        task: Task,
        *,
        alpha: float = 0.05,  # weight of spread
        gamma: float = 0.05,  # weight of align
        temperature: float = 0.1,  # temperature of the contrast
        tap: str = "N/4",  # block whose null-pass features are spread
        spread_weight: Literal["data", "noise", "one"] = "data",  # how spread follows the noise level
        align_weight: Literal["data", "noise", "noise_eps"] = "data",  # how align follows the noise level
    ) -> None:
        super().__init__(task)
        self.alpha, self.gamma, self.temperature = alpha, gamma, temperature
        self.spread_weight, self.align_weight = spread_weight, align_weight
        self.taps = (task.tap(tap),) if alpha else ()

    def loss(self, net: Network, draw: Draw) -> dict[str, Tensor]:
        if self.alpha == 0 and self.gamma == 0:
            (out,) = self.run(net, draw, draw.y_in)
            return {"denoise": mean_square(out.pred, draw.target)}
        kept = draw.kept
        null, given = self.run(net, draw, torch.full_like(draw.y, self.task.null), (draw.y, kept))
        pred = null.pred.index_copy(0, kept, given.pred)
        terms = {"denoise": mean_square(pred, draw.target)}
        if self.alpha:
            contrast = info_nce(draw.by_local_batch(null.feats[0]), self.temperature).flatten()
            terms["spread"] = self.alpha * self._clock(self.spread_weight, draw.level) * contrast
        if self.gamma:
            terms["align"] = (
                self.gamma * self._clock(self.align_weight, draw.level) * self._gap(pred, null.pred, draw)
            )
        return terms

    def _gap(self, given: Tensor, null: Tensor, draw: Draw) -> Tensor:
        """(B,) mean square difference of the two predictions; exactly 0 where the label was dropped."""
        if self.align_weight == "noise_eps":
            process = self.task.process
            given, null = process.to_eps(given, draw.xt, draw.t), process.to_eps(null, draw.xt, draw.t)
        return mean_square(given, null)

    @staticmethod
    def _clock(kind: str, level: Tensor) -> Tensor:
        return {"data": 1 - level, "noise": level, "noise_eps": level, "one": torch.ones_like(level)}[kind]
