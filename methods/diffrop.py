"""DiffROP: push the predictions of different classes apart (Yan et al., arXiv 2402.10821; no method code was published).

`form: batch` is what CCUA's authors ran as DiffROP (CCUA-SiT, their Table 12). Within each local batch, pi a permutation of it,
    overlap = weight / (1 + d),    d = mean_i( clock_i * [y_i != y_pi(i)] * mean (f_i - f_pi(i))^2 )
one scalar per local batch; f are the outputs of the ordinary pass, so of other images, noise and times too; true labels are
compared, before label dropout; gradients flow everywhere. Equal labels give exactly `weight`, without gradient.

`form: pair` is our reading of the paper, which separates the reverse kernels of two classes at the SAME x_t. A second pass
under another class's label c (uniform over the other classes that have images) and a hinge; 0 where the label was dropped:
    overlap_i = weight * max(0, margin - clock_i * mean (f(x_t, y_i) - f(x_t, c_i))^2)

Paper and code: `clock: data` weights by 1 - level, which is SiT's own clock and what CCUA-SiT multiplies by; `noise` weights by level. Weight
0.1 is the command line's default and the only published value. CCUA's SiT script leaves it switched on for every method.

Cost: 1 network pass for `batch`; for `pair` a second one of the rows whose label was kept, 1.9 at 10% dropped labels.
"""

from __future__ import annotations

from typing import Any, ClassVar, Literal

import torch
from torch import Tensor

from ltbench.methods import Draw, Method, Network, Task, mean_square


class DiffROP(Method):
    """Predictions for images of different classes are pushed apart."""

    presets: ClassVar[dict[str, dict[str, Any]]] = {
        "seed": {"form": "batch", "weight": 0.1, "clock": "data"},
        "paper": {"form": "pair", "weight": 0.1, "clock": "noise"},
        "off": {"weight": 0.0},
    }
    single_pass: ClassVar[list[dict[str, Any]] | None] = [{"weight": 0.0}, {"form": "batch"}]

    def __init__(
        self,
        task: Task,
        *,
        weight: float = 0.1,  # weight of overlap
        form: Literal["batch", "pair"] = "batch",  # as CCUA's authors ran it; our reading of the paper
        clock: Literal["data", "noise"] = "data",  # which end the distances are weighted towards
        margin: float = 1.0,  # where the hinge ends; form pair only
    ) -> None:
        super().__init__(task)
        self.weight, self.form, self.clock, self.margin = weight, form, clock, margin
        self.present = task.class_counts.nonzero().squeeze(1)

    def loss(self, net: Network, draw: Draw) -> dict[str, Tensor]:
        if self.weight and self.form == "pair":
            return self._pair(net, draw)
        (out,) = self.run(net, draw, draw.y_in)
        terms = {"denoise": mean_square(out.pred, draw.target)}
        if self.weight:
            other = draw.rng.permutation()
            apart = (draw.y != draw.y[other]) * mean_square(out.pred, out.pred[other])
            distance = draw.by_local_batch(self._clock(draw) * apart).mean(1)
            terms["overlap"] = (self.weight / (1 + distance)).mean()
        return terms

    def _pair(self, net: Network, draw: Draw) -> dict[str, Tensor]:
        other = self.another(draw)
        # With one class alone, `another` gives a row its own label and there is nothing to part.
        rows = draw.kept if len(self.present) > 1 else draw.kept[:0]
        out, second = self.run(net, draw, draw.y_in, (other, rows))
        apart = self._clock(draw)[rows] * mean_square(out.pred[rows], second.pred)
        overlap = self.weight * (self.margin - apart).clamp_min(0)
        return {
            "denoise": mean_square(out.pred, draw.target),
            "overlap": torch.zeros_like(draw.level).index_copy(0, rows, overlap),
        }

    def another(self, draw: Draw) -> Tensor:
        """(B,) labels, uniform over the classes that have images, without the row's own; its own if there is no other."""
        n = len(self.present)
        step = 1 + (draw.rng.uniform().double() * (n - 1)).long()
        return self.present[(torch.searchsorted(self.present, draw.y) + step) % n]

    def _clock(self, draw: Draw) -> Tensor:
        return draw.level if self.clock == "noise" else 1 - draw.level
