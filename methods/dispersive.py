"""Dispersive Loss (Wang and He, arXiv 2506.09027; raywang4/DispLoss).

    disperse = weight * log mean_ij exp( -|z_i - z_j|^2 / (dim z * temperature) )
over each local batch, diagonal included; z is the flattened output of one block of the ordinary (label-dropped) pass. No
normalisation, no time weight, no stop-gradient.

Paper and code: the paper's JAX code has weight 0.5, temperature 0.5, block N/4 (preset `jax`, `paper`); the released PyTorch
code, which the seed paper compares with, has 0.25, 1 and the last block (preset `torch`, `released`, `seed`). The
value soon rests at its floor, -log(local batch): expected.

Cost: 1 network pass; distances are one product of B x D and D x B.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from ltbench.methods import Draw, Method, Network, Task, dispersion, mean_square


class Dispersive(Method):
    """Dispersive Loss: hidden features of a batch repel each other, without positive pairs."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "ddpm": {"tap": "mid"},
        "torch": {"weight": 0.25, "temperature": 1.0, "tap": "N"},
        "released": {"weight": 0.25, "temperature": 1.0, "tap": "N"},
        "seed": {"weight": 0.25, "temperature": 1.0, "tap": "N"},
        "jax": {"weight": 0.5, "temperature": 0.5, "tap": "N/4"},
        "paper": {"weight": 0.5, "temperature": 0.5, "tap": "N/4"},
        "off": {"weight": 0.0},
    }

    def __init__(
        self,
        task: Task,
        *,
        weight: float = 0.25,  # weight of disperse
        temperature: float = 1.0,  # scale of the mean square distances
        tap: str = "N",  # block whose features repel each other
    ) -> None:
        super().__init__(task)
        self.weight, self.temperature = weight, temperature
        self.taps = (task.tap(tap),) if weight else ()

    def loss(self, net: Network, draw: Draw) -> dict[str, Tensor]:
        (out,) = self.run(net, draw, draw.y_in)
        terms = {"denoise": mean_square(out.pred, draw.target)}
        if self.weight:
            features = draw.by_local_batch(out.feats[0])
            terms["disperse"] = self.weight * dispersion(features, self.temperature).mean()
        return terms
