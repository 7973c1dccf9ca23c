"""Template: per-image loss, rarer classes weigh more. (Say here whose idea it is: authors, arXiv id, repository.)

loss = mean over images of  w(y) * mean (f(x_t, t, y) - target)^2,   w(y) = n(y)^-power / sum_c p(c) n(c)^-power

n(c) is the number of training images of class c, p(c) its share of a batch, so w is 1 on average. power = 0 is the baseline,
power = 1 lets every class count the same. (Say here where paper and released code part.)
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from ltbench.methods import Draw, Method, Network, Task, mean_square


class Template(Method):
    """Class-frequency weighting: rare classes count more in the loss."""

    # Named sets of parameters. `off` is the one that makes the method equal to its baseline: `methods check` tries it.
    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "balanced": {"power": 1.0},
        "off": {"power": 0.0},
    }

    def __init__(
        self,
        task: Task,
        *,
        power: float = 0.5,  # 0: every image counts the same; 1: every class does
    ) -> None:
        super().__init__(task)
        weights = task.class_counts.clamp_min(1).double() ** -power  # an absent class has no image to weigh
        self.weights = (weights / (weights * task.class_prior).sum()).float() if power else None

    def loss(self, net: Network, draw: Draw) -> dict[str, Tensor]:
        # One pass under the labels as the engine dropped them; draw.y holds the true ones.
        (out,) = self.run(net, draw, draw.y_in)
        error = mean_square(out.pred, draw.target)  # (B,)
        if self.weights is None:
            return {"denoise": error}
        return {"denoise": self.weights[draw.y] * error}
