"""The flow's SDE against exact Gaussian moments, the released double-evaluation form, REPA's clock, and counted network calls."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from torch import Tensor

from ltbench.diffusion import LinearFlow
from ltbench.errors import UsageError
from ltbench.sampling import nfe
from tests.sampling_oracles import MU, NULL, STD, Oracle, draw, exact_velocity, moments

torch.set_num_threads(1)
FORMS = ("sigma", "linear", "SBDM", "constant", "decreasing", "increasing-decreasing")
FLOW = LinearFlow()
AT_START = dict.fromkeys(FORMS, 1e-9) | {"SBDM": 1e-5}  # it takes noise for x at s = 1e-3


def velocity_of(mean: float, std: float) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    def formula(x: Tensor, s: Tensor, y: Tensor) -> Tensor:
        s = s.view(-1, 1, 1, 1)
        return mean + (s * std**2 - (1 - s)) / (s**2 * std**2 + (1 - s) ** 2) * (x - s * mean)

    return formula


def wavy(x: Tensor, s: Tensor, y: Tensor) -> Tensor:
    """No flow of anything: it only must depend on everything, and differ between classes."""
    return torch.sin(2 * x + s.view(-1, 1, 1, 1)) + 0.3 * y.view(-1, 1, 1, 1)


def diffusion(form: str, s: float, norm: float = 1.0) -> float:
    """g(s) by arXiv 2401.08740 and the released table."""
    table = {
        "sigma": 1 - s,
        "linear": 1 - s,
        "constant": 1.0,
        "increasing-decreasing": math.sin(math.pi * s) ** 2,
    }
    if form == "SBDM":
        return norm * ((1 - s) ** 2 / s + (1 - s))
    if form == "decreasing":
        return 0.25 * (norm * math.cos(math.pi * s) + 1) ** 2
    return norm * table[form]


def noises(count: int, rows: int = 3) -> list[Tensor]:
    generator = torch.Generator().manual_seed(11)
    return [torch.randn((rows, 1, 4, 4), generator=generator, dtype=torch.float64) for _ in range(count)]


def test_golden_of_methods_9_2() -> None:
    # their figures, 1.9998 and .4927, come from finitely many samples: at 20,000 of them the deviation of a mean is .0035,
    # of a standard deviation .0025; ours are exact for the sampler
    mean, std = moments(velocity_of(2, 0.5), FLOW, "sde-euler", 250, 249)
    assert mean == pytest.approx(2, abs=1e-12)
    assert std == pytest.approx(0.4927, abs=0.0025)
    assert std < 0.497, "a noiseless last step loses variance"
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64).view(2, 1, 1, 1)
    zero, one = draw(Oracle(velocity_of(2, 0.5)), FLOW, "heun", 50, ends).flatten().tolist()
    assert zero == pytest.approx(1.998, abs=0.0035)
    assert one - zero == pytest.approx(0.5002, abs=0.0025)


@pytest.mark.parametrize("form", FORMS)
def test_euler_maruyama_recovers_the_gaussian_at_weak_order_one(form: str) -> None:
    options = {"diffusion": form, "last_step": "none"}
    errors = []
    for steps in (101, 201, 401):
        mean, std = moments(exact_velocity, FLOW, "sde-euler", steps, steps - 1, options=options)
        assert mean == pytest.approx(MU, abs=AT_START[form])
        errors.append(abs(std - STD))
    assert errors[-1] < 2e-3
    order = math.log2(errors[1] / errors[2])
    # with SBDM the end and the beginning both contract: its first-order term vanishes on Gaussian data
    assert order == pytest.approx(2 if form == "SBDM" else 1, abs=0.25)


@pytest.mark.parametrize("form", FORMS)
def test_sde_heun_recovers_the_gaussian(form: str) -> None:
    # the noiseless last step of size h costs variance of order h, so the size shrinks with the steps
    options = {"diffusion": form, "last_step": "euler", "last_step_size": 1 / 400}
    mean, std = moments(exact_velocity, FLOW, "sde-heun", 400, 399, options=options)
    assert mean == pytest.approx(MU, abs=AT_START[form])
    assert std == pytest.approx(STD, abs=6e-3)


def released(
    network: Oracle, x: Tensor, noise: list[Tensor], form: str, last: str, norm: float, *, heun: bool
) -> Tensor:
    """The released loops in their own shape: the network is asked for v and asked again for the score, on a linspace grid."""
    labels = torch.arange(len(x)) % NULL

    def velocity(x: Tensor, s: Tensor) -> Tensor:
        return network(x, s.expand(len(x)), labels)[0]

    def drift(x: Tensor, s: Tensor) -> Tensor:
        score = (-s * velocity(x, s) + x) / -((1 - s) ** 2 + s * (1 - s))  # by the path's general formula
        return velocity(x, s) + diffusion(form, s.item(), norm) * score

    size = 0.0 if last == "none" else 0.04
    start = 1e-3 if form == "SBDM" else 0.0
    times = torch.linspace(start, 1 - size, len(noise) + 1, dtype=torch.float64)
    dt = times[1] - times[0]
    for s, w in zip(times[:-1], noise, strict=True):
        kick = math.sqrt(2 * diffusion(form, s.item(), norm)) * w * torch.sqrt(dt)
        if heun:
            xhat = x + kick
            k1 = drift(xhat, s)
            x = xhat + 0.5 * dt * (k1 + drift(xhat + dt * k1, s + dt))
        else:
            x = x + drift(x, s) * dt + kick
    end = times[-1]
    if last == "mean":
        return x + drift(x, end) * size
    if last == "euler":
        return x + velocity(x, end) * size
    if last == "tweedie":
        score = (end * velocity(x, end) - x) / (1 - end)
        return x / end + (1 - end) ** 2 / end * score
    return x


CASES = [("sde-euler", last) for last in ("mean", "euler", "tweedie", "none")]
CASES += [("sde-heun", last) for last in ("mean", "euler", "tweedie")]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize(("sampler", "last"), CASES)
def test_one_evaluation_gives_the_images_of_the_released_two(form: str, sampler: str, last: str) -> None:
    steps, norm = 12, 0.8
    x, *noise = noises(steps)
    options = {"diffusion": form, "last_step": last, "diffusion_norm": norm}
    ours, theirs, supply = Oracle(wavy), Oracle(wavy), iter(noise)
    result = draw(ours, FLOW, sampler, steps, x, fresh=lambda: next(supply), options=options)
    expected = released(theirs, x, noise, form, last, norm, heun=sampler == "sde-heun")
    scale = expected.abs().max().item()
    torch.testing.assert_close(result, expected, atol=1e-12 * max(scale, 1), rtol=1e-11)
    assert next(supply, None) is None
    # 1 network call per Euler step, 2 per Heun step, 1 for a last step; the released form makes two per drift
    per_step = 2 if sampler == "sde-heun" else 1
    assert len(ours.calls) == per_step * (steps - 1) + (last != "none")
    drifts = per_step * (steps - 1) + (last == "mean")
    assert len(theirs.calls) == 2 * drifts + (last in ("euler", "tweedie"))


def test_the_released_250_steps_cost_250_calls() -> None:
    assert nfe("sde-euler", 250, 1.0) == 250
    assert nfe("sde-heun", 250, 1.0) == 2 * 249 + 1
    assert nfe("sde-euler", 250, 1.5) == 500
    assert nfe("sde-euler", 250, 1.0, options={"last_step": "none"}) == 249


@pytest.mark.parametrize("guidance", [1.0, 1.8])
def test_repa_is_diffusion_sigma_on_another_clock(guidance: float) -> None:
    # its loop: r from 1 to .04 and 0, d = v' - r score, noise sqrt(2 r), v' = eps - x0 = -v, guided where low <= r <= high
    steps, low, high = 14, 0.0, 0.7
    x, *noise = noises(steps)
    labels = torch.arange(len(x)) % NULL
    supply = iter(noise)
    schedule = {"name": "interval", "low": low, "high": high}
    result = draw(
        Oracle(wavy), FLOW, "sde-euler", steps, x, guidance, fresh=lambda: next(supply), schedule=schedule
    )
    times = [*torch.linspace(1, 0.04, steps, dtype=torch.float64).tolist(), 0.0]
    for k, (r, after) in enumerate(pairwise(times)):

        def drift(y: Tensor, x: Tensor = x, r: float = r) -> Tensor:
            v = -wavy(x, torch.full((len(x),), 1 - r, dtype=torch.float64), y)
            score = (-(1 - r) * v - x) / r
            return v - r * score

        d = conditional = drift(labels)
        if low <= r <= high:
            unconditional = drift(torch.full_like(labels, NULL))
            d = unconditional + guidance * (conditional - unconditional)
        x = x + d * (after - r)
        if k < steps - 1:
            x = x + math.sqrt(2 * r) * math.sqrt(r - after) * noise[k]
    torch.testing.assert_close(result, x, atol=1e-11, rtol=1e-11)


def test_tweedie_is_the_euler_last_step_on_this_path() -> None:
    x, *noise = noises(8)
    ends = []
    for last in ("tweedie", "euler"):
        supply = iter(noise)
        options = {"last_step": last}
        ends.append(
            draw(Oracle(wavy), FLOW, "sde-euler", 8, x, fresh=lambda s=supply: next(s), options=options)
        )
    torch.testing.assert_close(ends[0], ends[1], atol=1e-12, rtol=0)


@pytest.mark.parametrize(
    ("sampler", "options", "message"),
    [
        ("sde-heun", {"last_step": "none"}, "0/0"),
        ("sde-euler", {"last_step": "none", "last_step_size": 0.04}, "no last step"),
        ("euler", {"diffusion": "sigma"}, "takes no diffusion; it belongs to sde-euler, sde-heun"),
        ("sde-euler", {"rtol": 1e-3}, "takes no rtol; it belongs to dopri5"),
    ],
)
def test_settings_that_do_not_fit_are_refused(sampler: str, options: dict[str, object], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        draw(Oracle(wavy), FLOW, sampler, 5, noises(1)[0], fresh=lambda: noises(1)[0], options=options)
