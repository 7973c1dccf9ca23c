"""OCLT: oriented calibration of long-tailed diffusion, "T2H" (Zhang et al., ICLR 2024; MediaBrain-SJTU/OC_LT).

Only the target of the regression changes. x_t of image i may as well have come from image j of the batch; j is drawn once from
    w_ij = softmax_j( -|x_t,i - signal x_j|^2 / (2 noise^2) + tr_tau * log p(y_j) )
(p: class frequencies) and kept if the class of j is at least as frequent (`t2h`), at most as frequent (`h2t`), or always (`full`); else j = i. Then
    denoise = mean (f(x_t, t, y_i) - target as if x_t had come from x_j)^2
under the ORIGINAL label, also for images whose label was dropped. `cut`: transfer only below that noise level.

Paper and code: the paper draws j from a class-balanced reference batch and uses t2h for conditional, h2t for unconditional models;
the code has neither reference batch nor resampling, draws j from the training batch, and its command line defaults to `full`
(its README passes t2h: preset `released`). Its weighted variant (`transfer_tr_tau`) has no gate and its cut-off spares `full`; here both
combine freely. `reference: true` is our reading of the paper: image i itself and a second, balanced batch are the candidates.
The code's weights are written for z = x_t / signal, which is the same softmax. Well separated images keep themselves up to high
noise: `watch/moved` logs the fraction that went elsewhere, by class group and noise level. On the sit pipeline the same with
signal s, noise 1 - s and the velocity (x_j - x_s) / (1 - s), our port. Under `augment: ada` images are borrowed as they were moved,
and the network is told the moves of image i: nobody published that combination.

Cost: 1 network pass; the weights are one product of B x D and D x B, where the released code builds B x B x D twice.

Cite: zhang2024oclt.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ltbench.methods import Draw, Method, Network, Task, mean_square


class OCLT(Method):
    """Oriented calibration: the target of an image may be borrowed from a more frequent class."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "released": {"direction": "t2h", "reference": False},
        "paper": {"direction": "t2h", "reference": True},
        "unconditional": {"direction": "h2t"},
        "weighted": {"direction": "full", "tr_tau": 1.0},
        "off": {"direction": "none"},
    }

    def __init__(
        self,
        task: Task,
        *,
        direction: Literal["t2h", "h2t", "full", "none"] = "t2h",  # tail to head, head to tail, any, off
        tr_tau: float = 0.0,  # power of class frequency in the weights
        cut: float | None = None,  # transfer only below this noise level
        reference: bool = False,  # draw from a class-balanced batch
    ) -> None:
        super().__init__(task)
        self.direction, self.tr_tau, self.cut = direction, tr_tau, cut
        self.needs_reference = reference and direction != "none"
        self.frequency = task.class_counts.double() / task.class_counts.sum()

    def loss(self, net: Network, draw: Draw) -> dict[str, Tensor]:
        target = draw.target if self.direction == "none" else self._target(draw)
        (out,) = self.run(net, draw, draw.y_in)
        return {"denoise": mean_square(out.pred, target)}

    @torch.no_grad()
    def _target(self, draw: Draw) -> Tensor:
        """(B, C, H, W): where nothing moves, `draw.target` bit for bit."""
        pool, labels = draw.by_local_batch(draw.x0), draw.by_local_batch(draw.y)
        if self.needs_reference:
            assert draw.reference is not None, "the engine draws what needs_reference asks for"
            pool = torch.cat([pool, draw.by_local_batch(draw.reference.x0)], 1)
            labels = torch.cat([labels, draw.by_local_batch(draw.reference.y)], 1)
        groups, n = labels.shape
        own = torch.arange(groups * n, device=labels.device).view(groups, n)[:, : draw.local_batch].flatten()
        picked = draw.rng.categorical(self.weights(draw, pool, labels).flatten(0, 1))
        source = picked + own // n * n
        p_here, p_there = self.frequency[draw.y], self.frequency[labels.flatten()[source]]
        allowed = {"t2h": p_there >= p_here, "h2t": p_there <= p_here}.get(self.direction, p_here > 0)
        if self.cut is not None:
            allowed &= draw.level < self.cut
        source = torch.where(allowed, source, own)
        self.watch("moved", source != own)
        return self.task.process.target_toward(pool.flatten(0, 1)[source], draw)

    def weights(self, draw: Draw, pool: Tensor, labels: Tensor) -> Tensor:
        """(G, g, n) float64: probability that each x_t of a local batch came from each image of its pool (G, n, C, H, W)."""
        # Squares of thousands of pixels over a noise of 0.01 differ in digits that float32 does not have.
        images = pool.flatten(2).double()
        centre = images.mean(1, keepdim=True)
        signal, noise = (
            draw.by_local_batch(scale(draw.t)).double()[:, :, None]
            for scale in (self.task.process.signal, self.task.process.noise)
        )
        noisy = draw.by_local_batch(draw.xt).flatten(2).double() - signal * centre
        images = images - centre
        # |noisy|^2 is the same for all candidates of a row and drops out.
        products = signal * (noisy @ images.transpose(1, 2))
        logits = (products - signal**2 * images.square().sum(2)[:, None] / 2) / noise**2
        if self.tr_tau:
            logits = logits + self.tr_tau * self.frequency[labels].log()[:, None]
        if self.needs_reference:
            g = draw.local_batch
            others = ~torch.eye(g, labels.shape[1], dtype=torch.bool, device=labels.device)
            others[:, g:] = False
            logits = logits.masked_fill(others, -torch.inf)
        return logits.softmax(2)
