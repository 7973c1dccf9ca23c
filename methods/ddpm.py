"""DDPM: noise prediction (Ho et al., arXiv 2006.11239; w86763777/pytorch-ddpm). Baseline of the ddpm pipeline.

    denoise = mean (eps_theta(x_t, t, y) - eps)^2        x_t = sqrt(ab_t) x + sqrt(1 - ab_t) eps
t is uniform in 0..999, ab_t the product of 1 - beta, beta linear from 1e-4 to 0.02. The mean is over channels and pixels, one value per image. level = t / 1000.

Paper and code: texts write t in 0..T, every released code draws 0..T-1. Codes clip x0 after the posterior mean has been computed,
so that only the final image is clipped; ours clips that alone.

Cost: 1, the measure of the others.
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
