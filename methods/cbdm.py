"""CBDM: class-balancing diffusion models (Qin et al., CVPR 2023, arXiv 2305.00562; qym7/CBDM-pytorch).

A second pass at the same (x_t, t) under labels y' drawn from `prior`; for images whose label was kept
    balance = tau * level *         mean (h - sg h')^2     the first pass is drawn to the other
    commit  = tau * level * gamma * mean (sg h - h')^2     the second follows, gamma times as strongly
and 0 for images whose label was dropped, which stay in the denominator.

Paper and code: the paper weights by tau * t with tau = 1e-3, the code by tau * t / T with tau = 1, which is the same number.
The code draws y' from the long-tailed training frequencies when training from scratch (`prior: empirical`) and uniformly
only when fine-tuning; the paper leaves the label set open. On the sit pipeline, for which nobody published code, the same
form is taken in velocity space with level = 1 - s.

Cost: a second pass, with gradients, of the rows whose label was kept: 1.9 at 10% dropped labels, about 1.8 times the activations.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ltbench.methods import Draw, Method, Network, Task, mean_square


class CBDM(Method):
    """Class-balancing: predictions under the true and under a drawn label are pulled together."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "released": {"tau": 1.0, "gamma": 0.25, "prior": "empirical"},
        "finetune": {"tau": 1.0, "gamma": 0.25, "prior": "uniform"},
        "off": {"tau": 0.0},
    }
    single_pass: ClassVar[list[dict[str, Any]] | None] = [{"tau": 0.0}]

    def __init__(
        self,
        task: Task,
        *,
        tau: float = 1.0,  # weight of both terms, times the noise level
        gamma: float = 0.25,  # share of the term that moves the second pass
        prior: Literal["empirical", "uniform"] = "empirical",  # where y' is drawn from
    ) -> None:
        super().__init__(task)
        self.tau, self.gamma = tau, gamma
        counts = task.class_counts if prior == "empirical" else torch.ones_like(task.class_counts)
        self.prior = (counts.double() / counts.sum()).float()

    def loss(self, net: Network, draw: Draw) -> dict[str, Tensor]:
        if self.tau == 0:
            (out,) = self.run(net, draw, draw.y_in)
            return {"denoise": mean_square(out.pred, draw.target)}
        kept = draw.kept
        other = draw.rng.categorical(self.prior)
        out, drawn = self.run(net, draw, draw.y_in, (other, kept))
        h, weight = out.pred[kept], self.tau * draw.level[kept]
        nothing = torch.zeros_like(draw.level)
        return {
            "denoise": mean_square(out.pred, draw.target),
            "balance": nothing.index_copy(0, kept, weight * mean_square(h, drawn.pred.detach())),
            "commit": nothing.index_copy(0, kept, weight * self.gamma * mean_square(h.detach(), drawn.pred)),
        }
