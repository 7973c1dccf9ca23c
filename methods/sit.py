"""SiT: flow matching with velocity prediction (Ma et al., arXiv 2401.08740; willisma/SiT). Baseline of the sit pipeline.

    denoise = mean (v(x_s, s, y) - (x1 - x0))^2        x_s = s x1 + (1 - s) x0
x1 is an image, x0 noise, s uniform in [0, 1]. The mean is over channels and pixels, one value per image. No time weight, no stop-gradient. level = 1 - s.

Paper and code: the released network predicts a second half of channels that its velocity loss drops (`learn_sigma`); ours does not
have them. The paper's numbers are those of XL/2 under an SDE sampler, the code samples an ODE by default.

Cost: 1, the measure of the others.
"""

from __future__ import annotations

from torch import Tensor

from ltbench.methods import Draw, Method, Network, Task, mean_square


class SiT(Method):
    """Flow matching: |v - (data - noise)|^2, the plain objective of the sit pipeline."""

    @classmethod
    def supports(cls, task: Task) -> str | None:
        return None if task.pipeline == "sit" else "the baseline of the sit pipeline; ddpm is the one here"

    def loss(self, net: Network, draw: Draw) -> dict[str, Tensor]:
        (out,) = self.run(net, draw, draw.y_in)
        return {"denoise": mean_square(out.pred, draw.target)}
