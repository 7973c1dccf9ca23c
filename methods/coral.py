"""CORAL: supervised contrast on a projected bottleneck (NeurIPS 2025; SankarLab/coral-lt-diffusion).

    contrast = weight * mean_i( exp((1 - level_i) / decay) ) * SupCon
    SupCon   = mean_i  -1/|P(i)| sum_{p in P(i)} log softmax_{a != i}( c_ia / temperature )_p
over anchors i that have a positive; c are cosines of the projected, token-averaged features of one block, P(i) the other images of the class of i; the time factor
is averaged over the local batch, then multiplied. Gradients flow through all of them; one scalar per local batch.

Paper and code: released are temperature 0.1, weight 0.5, decay 0.3, one linear layer to 128, the U-Net's middle, on top of CBDM's trainer with its own term
off; batches run under the null label are skipped. Here images whose label was dropped are neither anchors nor candidates, which
is the same where a whole batch is dropped. Its second head (logvar) enters no loss and is left out. Anchors whose loss is 0 do
not count, as in pytorch-metric-learning's reducer. On the sit pipeline the block is N/2, our port.

Cost: 1 network pass and one linear layer on token means.

Cite: rodriguez2025coral.
"""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltbench.methods import Draw, Method, Network, Task, mean_square


class CORAL(Method):
    """Images of one class are drawn together and classes apart in a projection of the network's middle."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "ddpm": {"tap": "mid"},
        "released": {"weight": 0.5, "temperature": 0.1, "decay": 0.3, "width": 128},
        "off": {"weight": 0.0},
    }

    def __init__(
        self,
        task: Task,
        *,
        weight: float = 0.5,  # weight of contrast
        temperature: float = 0.1,  # temperature of the contrast
        decay: float = 0.3,  # scale of the time factor: smaller favours clean images
        width: int = 128,  # width of the projection
        tap: str = "N/2",  # block that is projected
    ) -> None:
        super().__init__(task)
        self.weight, self.temperature, self.decay = weight, temperature, decay
        if weight:
            self.taps = (task.tap(tap),)
            self.project = nn.Linear(task.tap_widths[self.taps[0]][1], width)

    def loss(self, net: Network, draw: Draw) -> dict[str, Tensor]:
        (out,) = self.run(net, draw, draw.y_in)
        terms = {"denoise": mean_square(out.pred, draw.target)}
        if self.weight:
            h = draw.by_local_batch(self.project(out.feats[0].mean(1)))
            contrast = self.supcon(h, draw.by_local_batch(draw.y), draw.by_local_batch(~draw.dropped))
            time = draw.by_local_batch(((1 - draw.level) / self.decay).exp()).mean(1)
            terms["contrast"] = (self.weight * time * contrast).mean()
        return terms

    def supcon(self, h: Tensor, y: Tensor, kept: Tensor) -> Tensor:
        """(G, g, D) features, (G, g) labels, (G, g) bool -> (G,); 0 where no two kept images of a local batch share a class."""
        h = F.normalize(h, dim=2)
        others = ~torch.eye(h.shape[1], dtype=torch.bool, device=h.device) & kept[:, :, None] & kept[:, None]
        cosine = h @ h.transpose(1, 2) / self.temperature
        # A finite stand-in for minus infinity: a row without candidates has a value and a gradient of 0, not of NaN.
        log_p = cosine - cosine.masked_fill(~others, -1e4).logsumexp(2, keepdim=True)
        positive = (others & (y[:, :, None] == y[:, None])).float()
        anchors = -(positive * log_p).sum(2) / positive.sum(2).clamp_min(1)
        return anchors.sum(1) / (anchors > 0).sum(1).clamp_min(1)
