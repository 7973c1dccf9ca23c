"""The two noising processes: how an image becomes noise, what the network is asked for, and how to read its answer.

`LinearFlow` is SiT's linear path with velocity prediction (arXiv 2401.08740, Eq. 6; willisma/SiT:transport/path.py);
`DiscreteDDPM` is the chain of arXiv 2006.11239, Eq. 4 and 14 (w86763777/pytorch-ddpm:diffusion.py). Everything else in the
engine speaks to them through `Process`, so a loss never asks which pipeline it is in. Their clocks run in opposite directions:
weights are therefore written in `level`, which is 0 for clean data and 1 for noise in both.

Shapes: B batch, C channels, H W. A clock `t` is (B,) and is spread over every further axis of the images beside it.
Coefficients are taken in float64 where a table gives them, and cast to the images' dtype: results have the images' dtype.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from ltbench.errors import UsageError


class Noised(Protocol):
    """What `target_toward` reads from a training draw: x0, xt and target are (B, C, H, W), t is (B,)."""

    @property
    def x0(self) -> Tensor: ...
    @property
    def xt(self) -> Tensor: ...
    @property
    def t(self) -> Tensor: ...
    @property
    def target(self) -> Tensor: ...


def spread(values: Tensor, like: Tensor) -> Tensor:
    """(B,) values as a (B, 1, ..., 1) tensor with the dtype, device and rank of `like` (B, ...)."""
    return values.to(like).reshape(-1, *(1,) * (like.ndim - 1))


class Process(ABC):
    """A Gaussian path x_t = signal(t) x0 + noise(t) eps from data to noise, and the quantity a network predicts on it."""

    name: ClassVar[str]

    @abstractmethod
    def time(self, u: Tensor) -> Tensor:
        """Uniform numbers (B,) in [0, 1) become this process's own clock (B,), distributed as in training."""

    @abstractmethod
    def signal(self, t: Tensor) -> Tensor:
        """(B,) float factor of x0 in xt."""

    @abstractmethod
    def noise(self, t: Tensor) -> Tensor:
        """(B,) float factor of eps in xt, which is its standard deviation."""

    @abstractmethod
    def level(self, t: Tensor) -> Tensor:
        """(B,) float canonical noise level: 0 is clean data, 1 is pure noise, whatever way the clock runs."""

    @abstractmethod
    def diffuse(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """The noisy image xt (B, C, H, W) from x0, eps (B, C, H, W) and clock t (B,)."""

    @abstractmethod
    def target(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        """What the network should answer, (B, C, H, W)."""

    @abstractmethod
    def to_x0(self, out: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """The clean image (B, C, H, W) that the network's answer `out` at `xt` implies; not clipped."""

    @abstractmethod
    def to_eps(self, out: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        """The noise (B, C, H, W) that the network's answer `out` at `xt` implies."""

    @abstractmethod
    def target_toward(self, x0_new: Tensor, draw: Noised) -> Tensor:
        """The target (B, C, H, W) if `draw.xt` had come from `x0_new`: rows with x0_new = x0 keep `draw.target` bit for bit.

        Written as a correction of the true target, because the direct form (for the flow (x0_new - xt) / (1 - s)) cancels
        catastrophically near clean data. Diverges where noise(t) is 0, which `time` never returns.
        """


class LinearFlow(Process):
    """SiT's clock s in [0, 1]: 0 is noise, 1 is data; xs = s x0 + (1 - s) eps; the target is the velocity x0 - eps."""

    name = "sit"

    def time(self, u: Tensor) -> Tensor:
        return u

    def signal(self, t: Tensor) -> Tensor:
        return t

    def noise(self, t: Tensor) -> Tensor:
        return 1 - t

    def level(self, t: Tensor) -> Tensor:
        return 1 - t

    def diffuse(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        return spread(t, x0) * x0 + spread(1 - t, x0) * eps

    def target(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        return x0 - eps

    def to_x0(self, out: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        return xt + spread(1 - t, xt) * out

    def to_eps(self, out: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        return xt - spread(t, xt) * out

    def target_toward(self, x0_new: Tensor, draw: Noised) -> Tensor:
        return draw.target + (x0_new - draw.x0) / spread(1 - draw.t, draw.x0)


class DiscreteDDPM(Process):
    """Integer clock t in 0..T-1, noise growing with t; T = 1000, beta linear from 1e-4 to 0.02; the target is eps.

    `alpha_bar` (T,) float64 is the running product of 1 - beta: alpha_bar[0] = 0.9999, so even t = 0 carries noise of std .01.
    """

    name = "ddpm"
    steps: ClassVar[int] = 1000

    def __init__(self) -> None:
        beta = torch.linspace(1e-4, 0.02, self.steps, dtype=torch.float64, device="cpu")
        self.alpha_bar = torch.cumprod(1 - beta, dim=0)
        self._tables = {torch.device("cpu"): (self.alpha_bar.sqrt(), (1 - self.alpha_bar).sqrt())}

    def _table(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """(signal, noise), each (T,) float64, on `device`; kept there, so that a training step copies nothing."""
        if device not in self._tables:
            signal, noise = self._tables[torch.device("cpu")]
            self._tables[device] = (signal.to(device), noise.to(device))
        return self._tables[device]

    def time(self, u: Tensor) -> Tensor:
        # in float64, so that the largest float32 below one cannot round up to T
        return (u.double() * self.steps).long()

    def signal(self, t: Tensor) -> Tensor:
        return self._table(t.device)[0][t].float()

    def noise(self, t: Tensor) -> Tensor:
        return self._table(t.device)[1][t].float()

    def level(self, t: Tensor) -> Tensor:
        return t.float() / self.steps

    def diffuse(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        signal, noise = self._spread_table(t, x0)
        return signal * x0 + noise * eps

    def target(self, x0: Tensor, eps: Tensor, t: Tensor) -> Tensor:
        return eps

    def to_x0(self, out: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        signal, noise = self._spread_table(t, xt)
        return (xt - noise * out) / signal

    def to_eps(self, out: Tensor, xt: Tensor, t: Tensor) -> Tensor:
        return out

    def target_toward(self, x0_new: Tensor, draw: Noised) -> Tensor:
        signal, noise = self._spread_table(draw.t, draw.x0)
        return draw.target + (draw.x0 - x0_new) * (signal / noise)

    def _spread_table(self, t: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
        """signal and noise as (B, 1, ..., 1) in the dtype of `like`, straight from the float64 table."""
        signal, noise = self._table(t.device)
        return spread(signal[t], like), spread(noise[t], like)


PROCESSES: dict[str, type[Process]] = {process.name: process for process in (LinearFlow, DiscreteDDPM)}


def process_for(pipeline: str) -> Process:
    """The process of a pipeline, "sit" or "ddpm". Raises UsageError for any other name."""
    if pipeline not in PROCESSES:
        raise UsageError(f"unknown pipeline '{pipeline}'", hint=f"pipelines are: {', '.join(PROCESSES)}")
    return PROCESSES[pipeline]()
