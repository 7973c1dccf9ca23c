"""The discrete chain's other samplers: corrected DDIM and the 1000 ancestral steps, in closed form."""

from __future__ import annotations

import math

import pytest
import torch

from ltbench.diffusion import DiscreteDDPM
from ltbench.sampling import corrected_grid, nfe
from tests.sampling_oracles import MU, STD, Oracle, draw, exact_noise, moments, noise_of

torch.set_num_threads(1)
CHAIN = DiscreteDDPM()
ALPHA_BAR = CHAIN.alpha_bar.tolist()
ENDS = torch.tensor([0.0, 1.0], dtype=torch.float64).view(2, 1, 1, 1)


def test_the_corrected_grid_begins_at_the_noisiest_time_and_is_even() -> None:
    assert corrected_grid(100) == list(range(999, 0, -10))
    assert corrected_grid(10) == [999, 899, 799, 699, 599, 499, 399, 299, 199, 99]
    assert corrected_grid(1) == [999]
    assert corrected_grid(1000) == list(range(999, -1, -1))
    for steps in range(1, 1001):
        grid = corrected_grid(steps)
        gaps = [a - b for a, b in zip(grid, [*grid[1:], -1], strict=True)]
        assert len(grid) == steps
        assert grid[0] == 999
        assert max(gaps) - min(gaps) <= 1, steps
        assert min(gaps) >= 1


@pytest.mark.parametrize("steps", [1, 7, 10, 100])
def test_corrected_ddim_on_standard_normal_data_multiplies_by_the_known_factors(steps: int) -> None:
    factor, grid = 1.0, corrected_grid(steps)
    for t, lower in zip(grid, [*grid[1:], None], strict=True):
        a, b = ALPHA_BAR[t], 1.0 if lower is None else ALPHA_BAR[lower]
        factor *= math.sqrt(a * b) + math.sqrt((1 - a) * (1 - b))
    network, noise = Oracle(exact_noise(0, 1)), noise_of()
    result = draw(network, CHAIN, "ddim-corrected", steps, noise)
    torch.testing.assert_close(result, factor * noise, atol=1e-9, rtol=1e-9)
    assert [t.unique().item() for t, *_ in network.calls] == grid
    assert nfe("ddim-corrected", steps, 1.0) == len(network.calls) == steps


def test_corrected_ddim_really_ends_at_the_image() -> None:
    # data of a single value: whatever the noise, x0 is that value; the released grid stays a noise of .01 and more away from it
    exact = exact_noise(MU, 1e-6)
    corrected = draw(Oracle(exact), CHAIN, "ddim-corrected", 10, noise_of())
    released = draw(Oracle(exact), CHAIN, "ddim", 10, noise_of())
    torch.testing.assert_close(corrected, torch.full_like(corrected, MU), atol=1e-5, rtol=0)
    assert (released - MU).abs().mean() > 1e-3


def test_corrected_ddim_reaches_mean_and_std_at_first_order() -> None:
    def errors(sampler: str, steps: int) -> tuple[float, float]:
        zero, one = draw(Oracle(exact_noise(MU, STD)), CHAIN, sampler, steps, ENDS).flatten().tolist()
        return abs(zero - MU), abs(one - zero - STD)

    for steps in (10, 100):  # noise is taken for x at 999, not for x at 900 or 990
        assert errors("ddim-corrected", steps)[0] < errors("ddim", steps)[0] < 0.004
    coarse, fine = errors("ddim-corrected", 100), errors("ddim-corrected", 200)
    assert math.log2(coarse[1] / fine[1]) == pytest.approx(1, abs=0.05)
    assert fine[1] < 0.008


@pytest.mark.parametrize("steps", [1000, 100, 7, 4])
def test_ddpm_keeps_standard_normal_data_exactly(steps: int) -> None:
    # x0 ~ N(0, 1): beta_t is the true variance of the lower x given x_t, whatever steps are left out, so every marginal is N(0, 1),
    # and the last, noiseless step multiplies by sqrt(alpha_bar) of its time
    mean, std = moments(exact_noise(0, 1), CHAIN, "ddpm", steps, steps - 1)
    assert mean == 0
    assert std == pytest.approx(math.sqrt(ALPHA_BAR[corrected_grid(steps)[-1]]), abs=1e-10)


def test_a_short_ddpm_calls_the_times_of_its_grid_and_draws_noise_between_them() -> None:
    network, drawn = Oracle(exact_noise(0, 1)), []
    draw(network, CHAIN, "ddpm", 10, noise_of(), fresh=lambda: drawn.append(1) or noise_of())
    assert [t.unique().item() for t, *_ in network.calls] == corrected_grid(10)
    assert len(drawn) == 9
    assert nfe("ddpm", 10, 1.0) == 10


def test_ddpm_on_other_gaussian_data() -> None:
    # variance recursion by hand: x_{t-1} = c x0hat + d x_t + sqrt(beta) z with x0hat affine in x_t
    beta = torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64).tolist()
    mean, variance = 0.0, 1.0
    for t in reversed(range(1000)):
        a, before = ALPHA_BAR[t], ALPHA_BAR[t - 1] if t else 1.0
        slope = math.sqrt(a) * STD**2 / (a * STD**2 + 1 - a)  # E[x0 | x_t] = MU + slope (x_t - sqrt(a) MU)
        c = math.sqrt(before) * beta[t] / (1 - a)
        d = math.sqrt(1 - beta[t]) * (1 - before) / (1 - a)
        mean = c * (MU + slope * (mean - math.sqrt(a) * MU)) + d * mean
        variance = (c * slope + d) ** 2 * variance + (beta[t] if t else 0)
    found = moments(exact_noise(MU, STD), CHAIN, "ddpm", 1000, 999)
    assert found == pytest.approx((mean, math.sqrt(variance)), abs=1e-9)
    assert found[0] == pytest.approx(MU, abs=1e-2)
    assert found[1] == pytest.approx(STD, abs=1e-2)


def test_ddpm_calls_every_time_once_and_clips_nothing() -> None:
    network = Oracle(exact_noise(5, 0.1))  # far outside [-1, 1]: a clipped x0 would pull the images back
    result = draw(
        network,
        CHAIN,
        "ddpm",
        1000,
        noise_of(dtype=torch.float32),
        fresh=lambda: noise_of(dtype=torch.float32),
    )
    assert [t.unique().item() for t, *_ in network.calls] == list(range(999, -1, -1))
    assert {t.dtype for t, *_ in network.calls} == {torch.int64}
    assert nfe("ddpm", 1000, 1.0) == 1000
    assert result.mean().item() == pytest.approx(5, abs=0.3)
