"""The official SiT loop and SDE sampler (willisma/SiT: train.py, transport/) and CBDM's loop and guided DDIM (qym7/CBDM-pytorch: main.py,
diffusion.py; the DDIM is its fork MediaBrain-SJTU/OC_LT's), their sequence of operations in our own words.

What it does that we do not: rows come one by one from a DataLoader on the host, t is drawn on the CPU, EMA walks over the named
parameters one tensor at a time, the loss is read on the host at every step, and the SDE's drift asks the network twice. The
network is ours, so that only the loop differs; `--ref-repo` takes theirs as well (theirs.py).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

Model = Callable[[Tensor, Tensor, Tensor], Tensor]  # (x, t, y) -> prediction
Encode = Callable[[Tensor], tuple[Tensor, Tensor]]  # host batch on the device -> mean, deviation


@dataclass(frozen=True)
class Fed:
    """The numbers of a step that are given and not drawn: x0 (data), noise (B, C, H, W), clock and labels (B,), dropped ones null."""

    data: Tensor
    noise: Tensor
    t: Tensor
    y: Tensor


class Rows(Dataset[tuple[Tensor, Tensor]]):
    """One image or latent at a time, as a folder of files gives them."""

    def __init__(self, rows: Tensor, labels: Tensor) -> None:
        self.rows, self.labels = rows, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        return self.rows[index], self.labels[index]


def batches(rows: Tensor, labels: Tensor, batch: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Host batches without end, shuffled anew each epoch. In this process, where its time is counted."""
    loader = DataLoader(Rows(rows, labels), batch_size=batch, shuffle=True, drop_last=True)
    while True:
        yield from loader


class Loop:
    """One training run. `encode`: what makes a host batch (B, ...) the mean and deviation of a latent."""

    def __init__(
        self,
        model: nn.Module,
        forward: Model,
        loader: Iterator[tuple[Tensor, Tensor]],
        encode: Encode,
        *,
        null: int,
        device: torch.device,
        scale: float,
        lr: float = 1e-4,
        decay: float = 0.9999,
        drop: float = 0.1,
    ) -> None:
        self.model, self.forward, self.loader, self.encode = model, forward, loader, encode
        self.null, self.device, self.scale, self.decay, self.drop = null, device, scale, decay, drop
        self.ema = copy.deepcopy(model).requires_grad_(False)
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=lr, weight_decay=0)
        self.model.train()
        self.running = 0.0

    def step(self, fed: Fed | None = None) -> float:
        """One step of the loop; its loss, on the host."""
        data, noise, t, y = self._draw() if fed is None else (fed.data, fed.noise, fed.t, fed.y)
        loss = self.loss(data, noise, t, y)
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()
        self._average()
        told = loss.item()
        self.running += told
        return told

    def loss(self, data: Tensor, noise: Tensor, t: Tensor, y: Tensor) -> Tensor:
        """The mean square error of the velocity."""
        at = t[:, None, None, None]
        noisy, velocity = at * data + (1 - at) * noise, data - noise
        return ((self.forward(noisy, t, y) - velocity) ** 2).mean(dim=(1, 2, 3)).mean()

    def _draw(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        x, y = next(self.loader)
        x, y = x.to(self.device), y.to(self.device)
        with torch.no_grad():
            mean, deviation = self.encode(x)
            data = (mean + deviation * torch.randn_like(mean)).mul_(self.scale)
        noise = torch.randn_like(data)
        t = torch.rand((len(data),)).to(data)
        dropped = torch.rand(len(y), device=self.device) < self.drop
        return data, noise, t, torch.where(dropped, self.null, y)

    @torch.no_grad()
    def _average(self) -> None:
        averaged = dict(self.ema.named_parameters())
        for name, p in dict(self.model.named_parameters()).items():
            averaged[name].mul_(self.decay).add_(p.data, alpha=1 - self.decay)


def from_moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Latents that were encoded before: (B, 2, C, h, w)."""
    mean, deviation = x.float().unbind(1)
    return mean, deviation


@torch.no_grad()
def sde(
    model: Model, x: Tensor, y: Tensor, kick: Callable[[], Tensor], *, steps: int, guidance: float, null: int
) -> list[Tensor]:
    """All states of the Euler-Maruyama SDE with diffusion `sigma` and a last step `Mean` of 0.04, guidance on both halves.

    The drift asks the guided network for the velocity and again for the score. The batch carries a second copy of itself through
    all steps, as forward_with_cfg wants it. kick: the noise of a step (B, C, H, W).
    """
    labels = torch.cat([y, torch.full_like(y, null)])

    def guided(x: Tensor, t: Tensor) -> Tensor:
        half = x[: len(x) // 2]
        answer = model(torch.cat([half, half]), t, labels)
        given, none = answer[:, :3].chunk(2)  # of a latent's four channels three are guided
        mixed = none + guidance * (given - none)
        return torch.cat([torch.cat([mixed, mixed]), answer[:, 3:]], dim=1)

    def score(x: Tensor, t: Tensor) -> Tensor:
        at = t[:, None, None, None]
        return (at * guided(x, t) - x) / (1 - at)

    def drift(x: Tensor, t: Tensor) -> Tensor:
        return guided(x, t) + (1 - t[:, None, None, None]) * score(x, t)

    x, last = torch.cat([x, x]), 0.04
    times = torch.linspace(0.0, 1 - last, steps)
    width, states = times[1] - times[0], []
    for s in times[:-1]:
        noise = kick()
        t = torch.ones(len(x)).to(x) * s
        moved = x + drift(x, t) * width
        x = moved + torch.sqrt(2 * (1 - t[:, None, None, None])) * torch.cat([noise, noise]) * torch.sqrt(
            width
        )
        states.append(x)
    states.append(x + drift(x, torch.ones(len(x)).to(x) * (1 - last)) * last)
    return [state.chunk(2)[0] for state in states]


class UNetLoop:
    """CBDM's training run of the plain objective on a U-Net. `forward`: (x, t, y or None) -> noise.

    Rows from the host, clock and noise on the device, the label of a whole batch dropped by a number that the host reads, moments
    gathered from float64 tables, a global clip, EMA through two state dicts, and three numbers read for the log at every step.
    """

    def __init__(
        self,
        model: nn.Module,
        forward: Callable[[Tensor, Tensor, Tensor | None], Tensor],
        loader: Iterator[tuple[Tensor, Tensor]],
        *,
        device: torch.device,
        lr: float = 2e-4,
        decay: float = 0.9999,
    ) -> None:
        self.model, self.forward, self.loader = model, forward, loader
        self.device, self.decay = device, decay
        self.average = copy.deepcopy(model)
        self.optimizer = torch.optim.Adam(model.parameters(), lr=lr)
        bars = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000).double(), 0).to(device)
        self.signal, self.noise = bars.sqrt(), (1 - bars).sqrt()
        self.logged: list[float] = []
        self.model.train()

    def step(self, fed: Fed | None = None) -> float:
        """One step; its loss, on the host. What is fed has labels of its own, dropped one by one."""
        self.optimizer.zero_grad()
        y: Tensor | None
        if fed is None:
            x, y = (part.to(self.device) for part in next(self.loader))
            t = torch.randint(1000, (len(x),), device=self.device)
            eps = torch.randn_like(x)
            y = None if torch.rand(1)[0] < 0.1 else y
        else:
            x, t, eps, y = fed.data, fed.t, fed.noise, fed.y
        signal, noise = (
            table.gather(0, t).float()[:, None, None, None] for table in (self.signal, self.noise)
        )
        loss = nn.functional.mse_loss(
            self.forward(signal * x + noise * eps, t, y), eps, reduction="none"
        ).mean()
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        self.optimizer.step()
        source, target = self.model.state_dict(), self.average.state_dict()
        for key in source:
            target[key].data.copy_(target[key].data * self.decay + source[key].data * (1 - self.decay))
        self.logged = [loss.item(), loss.item(), 0.0]  # loss, loss_ddpm, loss_reg
        return self.logged[0]

    def loss(self, x: Tensor, eps: Tensor, t: Tensor, y: Tensor | None) -> Tensor:
        """The mean square error of the noise."""
        signal, noise = (
            table.gather(0, t).float()[:, None, None, None] for table in (self.signal, self.noise)
        )
        noisy = signal * x + noise * eps
        return nn.functional.mse_loss(self.forward(noisy, t, y), eps, reduction="none").mean()


@torch.no_grad()
def ddim(
    model: Model, x: Tensor, y: Tensor, alpha_bar: Tensor, *, steps: int, omega: float, null: int
) -> Tensor:
    """DDIM on the released grid, the label and the null label in a call each, coefficients gathered from float64 tables per step."""
    skip = len(alpha_bar) // steps
    grid = list(range(0, len(alpha_bar), skip))[::-1]
    for now, lower in zip(grid, [*grid[1:], 0], strict=True):
        t = x.new_ones(len(x), dtype=torch.long) * now
        eps = model(x, t, y)
        eps = eps + omega * (eps - model(x, t, torch.full_like(y, null)))
        at, before = (alpha_bar.gather(0, k)[:, None, None, None] for k in (t, torch.full_like(t, lower)))
        image = (1 / at).sqrt().float() * x - (1 / at - 1).sqrt().float() * eps
        x = before.sqrt().float() * image + (1 - before).sqrt().float() * eps
    return x
