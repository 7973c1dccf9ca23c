"""DDPM: noise prediction (Ho et al., arXiv 2006.11239; w86763777/pytorch-ddpm). Baseline of the ddpm pipeline.

denoise = mean (eps_theta(x_t, t, y) - eps)^2 over channels and pixels, one value per image.
"""

from __future__ import annotations

from torch import Tensor

from ltbench.methods import Draw, Method, Network, Task, mean_square


class DDPM(Method):
    """Noise prediction: |eps_theta - eps|^2, the plain objective of the ddpm pipeline."""

    @classmethod
    def supports(cls, task: Task) -> str | None:
        return None if task.pipeline == "ddpm" else "the baseline of the ddpm pipeline; sit is the one here"

    def loss(self, net: Network, draw: Draw) -> dict[str, Tensor]:
        (out,) = self.run(net, draw, draw.y_in)
        return {"denoise": mean_square(out.pred, draw.target)}
