"""Terms that compare all pairs of a batch: our matrix products against a plain rendering of their B x B x D form.

OCLT's transfer weights, CCUA's UCL and Dispersive Loss at published sizes, forward and (for the losses) backward. The two sides
must agree before they are timed; then they take turns in one process, and the median of the turns' ratios is reported. pairs_mb: what the plain form's tensor of pairs alone holds, in megabytes.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from turns import goal, seconds  # beside this file

from ltbench.diffusion import process_for
from ltbench.methods import Draw, Rng, Task, dispersion, info_nce, load_method

TURNS = 2
# name -> (B, D): SiT-S/2's tokens at the seed's local batch and at Dispersive's, CBDM's U-Net middle and images at 32 pixels
LOSSES = {"12 x 98304": (12, 98_304), "32 x 98304": (32, 98_304), "64 x 4096": (64, 4096)}
IMAGES = {"48 x 3072": 48, "128 x 3072": 128}
TINY = {"8 x 4096": (8, 4096)}, {"16 x 3072": 16}
TEMPERATURE = 0.1
Work = Callable[[], Any]


def measure(
    device: torch.device,
    losses: dict[str, tuple[int, int]] = LOSSES,
    images: dict[str, int] = IMAGES,
) -> dict[str, Any]:
    """Per term and size: agreement, time of the plain form over ours, size of the tensor of pairs."""
    torch.set_num_threads(1)
    found: dict[str, Any] = {"ucl": {}, "dispersive": {}, "oclt_weights": {}}
    for name, (batch, width) in losses.items():
        h = _normal((batch, width), device)
        ucl = (lambda x: info_nce(x[None], TEMPERATURE)[0], lambda x: plain_ucl(x, TEMPERATURE))
        spread = (lambda x: dispersion(x[None], 1.0), lambda x: plain_dispersion(x, 1.0))
        found["ucl"][name] = _loss(h + 0.5, *ucl, device)
        found["dispersive"][name] = _loss(h, *spread, device)
    for name, batch in images.items():
        found["oclt_weights"][name] = _weights(batch, device)
    return found


# --- the plain forms ------------------------------------------------------------------------------------------------


def plain_ucl(h: Tensor, temperature: float) -> Tensor:
    """(B, D) -> (B,): every sample against a list of its own of the other B - 1."""
    batch = len(h)
    h = F.normalize(h, dim=1)
    others = torch.stack([torch.cat([h[:i], h[i + 1 :]]) for i in range(batch)])  # (B, B - 1, D)
    negative = (h[:, None] * others).sum(2) / temperature
    positive = (h * h).sum(1, keepdim=True) / temperature
    return -torch.cat([positive, negative], 1).log_softmax(1)[:, 0]


def plain_dispersion(z: Tensor, temperature: float) -> Tensor:
    """(B, D) -> (): log mean exp of minus the mean square of every difference."""
    squares = (z[:, None] - z[None]).square().mean(2)  # through (B, B, D)
    return (-squares / temperature).exp().mean().log()


def plain_weights(z: Tensor, x: Tensor, sigma: Tensor) -> Tensor:
    """Noisy (B, D), clean (B, D), noise (B,) -> (B, B): the posterior of OCLT, variance exploding."""
    squares = (z[:, None] - x[None]).square().sum(2)  # through (B, B, D)
    return (-squares / (2 * sigma[:, None] ** 2)).softmax(1)


# --- side by side ---------------------------------------------------------------------------------------------------


def _loss(
    h: Tensor, ours: Callable[[Tensor], Tensor], plain: Callable[[Tensor], Tensor], device: torch.device
) -> dict[str, Any]:
    x = h.requires_grad_()

    def both(form: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        value = form(x)
        return value.detach(), torch.autograd.grad(value.sum(), x)[0]

    (value, slope), (wanted, other) = both(ours), both(plain)
    torch.testing.assert_close(value.flatten(), wanted.flatten(), rtol=1e-3, atol=1e-5)
    # Both are tiny for so many numbers: what counts is their error beside the largest of them.
    assert (slope - other).abs().max() <= 1e-3 * other.abs().max(), "the gradients part"
    gap = float((value - wanted).abs().max())
    return {**_side_by_side(lambda: both(ours), lambda: both(plain), device), "gap": gap, **_pairs(*h.shape)}


def _weights(batch: int, device: torch.device) -> dict[str, Any]:
    made, oclt = _draw(batch, device), _oclt(device)
    images, labels = made.by_local_batch(made.x0), made.by_local_batch(made.y)
    process = oclt.task.process
    signal, noise = process.signal(made.t).double(), process.noise(made.t).double()
    z, x = made.xt.flatten(1).double() / signal[:, None], made.x0.flatten(1).double()
    ours = oclt.weights(made, images, labels)[0]
    torch.testing.assert_close(ours, plain_weights(z, x, noise / signal), rtol=1e-4, atol=1e-6)
    z32, x32, sigma = z.float(), x.float(), (noise / signal).float()  # as the released code runs it
    gap = float((ours - plain_weights(z32, x32, sigma)).abs().max())
    times = _side_by_side(
        lambda: oclt.weights(made, images, labels), lambda: plain_weights(z32, x32, sigma), device
    )
    return {**times, "gap": gap, **_pairs(batch, x.shape[1])}


def _oclt(device: torch.device) -> Any:
    counts = torch.arange(10, 0, -1, device=device)
    task = Task(
        process=process_for("ddpm"),
        pipeline="ddpm",
        null=10,
        class_counts=counts,
        class_prior=counts / counts.sum(),
        tap=lambda name: name,
        tap_widths={},
    )
    kind: Any = load_method("oclt")
    return kind(task, direction="full")


def _draw(batch: int, device: torch.device) -> Draw:
    """Images that look alike under much noise, so that the weights are spread over many of them."""
    process = process_for("ddpm")
    x0, eps = 0.05 * _normal((batch, 3, 32, 32), device, 1), _normal((batch, 3, 32, 32), device, 2)
    t = torch.linspace(400, 999, batch, device=device).long()
    y = torch.arange(batch, device=device) % 10
    nobody = torch.zeros(batch, dtype=torch.bool, device=device)
    return Draw(
        x0=x0,
        eps=eps,
        xt=process.diffuse(x0, eps, t),
        target=process.target(x0, eps, t),
        t=t,
        level=process.level(t).float(),
        y=y,
        dropped=nobody,
        kept=torch.arange(batch, device=device),
        kept_sizes=(batch,),
        y_in=y,
        index=y,
        flipped=nobody,
        rng=Rng(0, 1, [0], batch, device),
        local_batch=batch,
        dropout_seeds=(0,),
    )


def _side_by_side(ours: Work, plain: Work, device: torch.device) -> dict[str, Any]:
    # Both have been called before, to be compared.
    pairs = [(seconds(ours, 1, device), seconds(plain, 1, device)) for _ in range(TURNS)]
    ratio = round(statistics.median(b / a for a, b in pairs), 2)
    ours_ms = round(1e3 * statistics.median(a for a, _ in pairs), 3)
    return {"ours_ms": ours_ms, "plain_over_ours": ratio, "goal": goal(ratio, at_least=1.0)}


def _pairs(batch: int, width: int) -> dict[str, float]:
    return {"pairs_mb": round(batch * batch * width * 4 / 1e6, 1)}


def _normal(shape: tuple[int, ...], device: torch.device, seed: int = 0) -> Tensor:
    numbers = np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
    return torch.from_numpy(numbers).to(device)
