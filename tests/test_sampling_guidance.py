"""Guidance by noise level and by channel, and the adaptive ODE sampler."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ltbench.diffusion import LinearFlow, process_for
from ltbench.errors import LtbenchError
from ltbench.sampling import Guidance, count_rows, nfe
from tests.sampling_oracles import MU, NULL, STD, Oracle, draw, exact_velocity, noise_of

torch.set_num_threads(1)
FLOW = LinearFlow()
LINEAR = {"name": "linear"}
COSINE = {"name": "cosine"}
INTERVAL = {"name": "interval", "low": 0.3, "high": 0.7}


def gamma(value: float) -> dict[str, Any]:
    return {"name": "gamma", "gamma": value}


def by_class(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """2 for the null label, y + 3 for class y: c - u is y + 1."""
    return torch.where(y == NULL, 2.0, y + 3.0).view(-1, 1, 1, 1).expand_as(x).to(x.dtype)


@pytest.mark.parametrize(
    ("schedule", "at_noise", "at_half", "at_data"),
    [
        (None, 4.0, 4.0, 4.0),
        (LINEAR, 0.0, 2.0, 4.0),
        (gamma(100.0), 0.04, 0.4, 4.0),
        (gamma(0.25), 0.0, 2.0, 3.0),
        (COSINE, 1.0, 4.0, 7.0),
        (INTERVAL, 1.0, 4.0, 1.0),
    ],
)
def test_schedules_at_noise_half_way_and_data(
    schedule: dict[str, Any] | None, at_noise: float, at_half: float, at_data: float
) -> None:
    strength = Guidance(4.0, schedule)
    assert [strength.at(level) for level in (1.0, 0.5, 0.0)] == pytest.approx([at_noise, at_half, at_data])
    assert strength.at(1.1) == strength.at(1.0)
    assert strength.at(-0.1) == strength.at(0.0)


@pytest.mark.parametrize("level", [0.1, 0.37, 0.9])
def test_schedules_in_the_omega_of_the_ddpm_trees(level: float) -> None:
    # omega = w - 1 with t/T = level: linear (1 - t/T)(omega + 1) - 1; gamma (g^(1 - t/T)/g)(omega + 1) - 1, and for g < 1
    # (1 - g^(1 - t/T))(omega + 1) - 1
    omega = 1.5
    assert Guidance(omega + 1, LINEAR).at(level) - 1 == pytest.approx((1 - level) * (omega + 1) - 1)
    expected = 100 ** (1 - level) / 100 * (omega + 1) - 1
    assert Guidance(omega + 1, gamma(100)).at(level) - 1 == pytest.approx(expected)
    expected = (1 - 0.2 ** (1 - level)) * (omega + 1) - 1
    assert Guidance(omega + 1, gamma(0.2)).at(level) - 1 == pytest.approx(expected)


def test_cosine_guides_by_omega_on_average() -> None:
    levels = [(k + 0.5) / 1000 for k in range(1000)]
    assert sum(Guidance(2.5, COSINE).at(v) for v in levels) / 1000 == pytest.approx(2.5)


def test_an_interval_holds_its_ends_whatever_the_rounding() -> None:
    strength = Guidance(2.0, {"name": "interval", "low": 0.1, "high": 0.7})
    inside = [k for k in range(21) if strength.at(1 - k / 20) == 2.0]
    assert inside == list(range(6, 19))  # levels 0.7 ... 0.1


@pytest.mark.parametrize("schedule", [None, LINEAR, gamma(100.0), gamma(0.5), COSINE, INTERVAL])
@pytest.mark.parametrize(
    ("sampler", "pipeline", "steps"),
    [
        ("euler", "sit", 10),
        ("heun", "sit", 10),
        ("sde-euler", "sit", 10),
        ("sde-heun", "sit", 10),
        ("ddim", "ddpm", 10),
        ("ddim-corrected", "ddpm", 7),
        ("ddpm", "ddpm", 1000),
    ],
)
def test_rows_foretold_are_rows_counted(
    sampler: str, pipeline: str, steps: int, schedule: dict[str, Any] | None
) -> None:
    network = Oracle(lambda x, t, y: 0 * x)
    for w in (0.0, 1.0, 2.0):
        network.rows = 0
        with count_rows(network) as counted:
            draw(
                network,
                process_for(pipeline),
                sampler,
                steps,
                noise_of(),
                w,
                schedule=schedule,
                fresh=noise_of,
            )
        assert counted.rows == network.rows == 3 * nfe(sampler, steps, w, schedule=schedule)
    assert not network._forward_pre_hooks


def test_euler_adds_up_the_schedule() -> None:
    # the answer is u + w (c - u) with c - u = y + 1 for class y, whatever x and t
    noise, steps = noise_of(), 8
    result = draw(Oracle(by_class), FLOW, "euler", steps, noise, 3.0, schedule=LINEAR)
    w = sum(3.0 * k / steps for k in range(steps)) / steps
    expected = torch.tensor([2 + w * (k % NULL + 1) for k in range(3)], dtype=torch.float64)
    torch.testing.assert_close(result - noise, expected.view(3, 1, 1, 1).expand(3, 1, 4, 4))


def test_ddim_reads_the_level_off_its_own_clock() -> None:
    seen: list[float] = []

    def formula(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        if len(x) == 6:  # both halves: guided
            seen.append(t[0].item() / 1000)
        return 0 * x

    draw(Oracle(formula), process_for("ddpm"), "ddim", 10, noise_of(), 2.0, schedule=INTERVAL)
    assert seen == [0.7, 0.6, 0.5, 0.4, 0.3]


def test_three_channels_are_guided_and_the_fourth_stays_conditional() -> None:
    noise = torch.randn((3, 4, 2, 2), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    for w in (0.0, 2.5):
        moved = draw(Oracle(by_class), FLOW, "euler", 4, noise, w, guidance_channels=3) - noise
        everywhere = draw(Oracle(by_class), FLOW, "euler", 4, noise, w) - noise
        plain = draw(Oracle(by_class), FLOW, "euler", 4, noise, 1.0) - noise
        torch.testing.assert_close(moved[:, :3], everywhere[:, :3])
        torch.testing.assert_close(moved[:, 3:], plain[:, 3:])
        assert not torch.allclose(everywhere, plain)


@pytest.mark.parametrize("w", [0.0, 2.5])
def test_on_a_picture_of_three_channels_three_are_all(w: float) -> None:
    noise = noise_of().repeat(1, 3, 1, 1)
    one = draw(Oracle(by_class), FLOW, "heun", 4, noise, w, guidance_channels=3)
    assert torch.equal(one, draw(Oracle(by_class), FLOW, "heun", 4, noise, w))


@pytest.mark.parametrize("schedule", [INTERVAL, COSINE])
def test_w_one_under_a_schedule_is_plain_conditional_sampling(schedule: dict[str, Any]) -> None:
    plain = draw(Oracle(by_class), FLOW, "heun", 6, noise_of())
    assert torch.equal(plain, draw(Oracle(by_class), FLOW, "heun", 6, noise_of(), 1.0, schedule=schedule))


# --- dopri5 ---------------------------------------------------------------------------------------------------------


def adaptive(rtol: float, noise: Tensor, guidance: float = 1.0) -> tuple[Tensor, Oracle]:
    network = Oracle(exact_velocity)
    options = {"rtol": rtol, "atol": rtol / 1000}
    return draw(network, FLOW, "dopri5", None, noise, guidance, options=options), network


def test_dopri5_keeps_its_tolerance_and_pays_for_a_smaller_one() -> None:
    noise = noise_of()
    calls = []
    for rtol in (1e-3, 1e-6, 1e-9):
        result, network = adaptive(rtol, noise)
        assert (result - (MU + STD * noise)).abs().max() < 20 * rtol
        calls.append(len(network.calls))
        # f0, one for the first step's size, six per attempted step
        assert (len(network.calls) - 2) % 6 == 0
    assert calls[0] < calls[1] < calls[2]
    assert all(not training and not grad for *_, training, grad in network.calls)


def test_dopri5_is_by_default_as_released() -> None:
    noise = noise_of()
    default = draw(Oracle(exact_velocity), FLOW, "dopri5", None, noise)
    assert torch.equal(default, adaptive(1e-3, noise)[0])


def test_dopri5_shares_its_steps_among_the_rows_of_a_call() -> None:
    noise = noise_of(2)
    noise[1] *= 50  # its row asks for smaller steps
    together, network = adaptive(1e-3, noise)
    alone, single = adaptive(1e-3, noise[:1])
    assert len(network.calls) != len(single.calls)
    assert not torch.equal(together[:1], alone)
    torch.testing.assert_close(together[:1], alone, atol=1e-2, rtol=0)
    again, _ = adaptive(1e-3, noise)
    assert torch.equal(together, again)


def test_dopri5_counts_guided_rows_twice() -> None:
    noise = noise_of()
    with count_rows(network := Oracle(exact_velocity)) as counted:
        draw(network, FLOW, "dopri5", None, noise, 2.0)
    assert counted.rows == 6 * len(network.calls)


def test_dopri5_says_why_it_stopped() -> None:
    network = Oracle(lambda x, s, y: x * math.nan)
    with pytest.raises(LtbenchError, match="dopri5 stopped"):
        draw(network, FLOW, "dopri5", None, noise_of())
