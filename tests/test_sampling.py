"""Samplers against Gaussian data, for which the exact network and the exact result are known in closed form."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from ltbench.diffusion import DiscreteDDPM, LinearFlow, process_for
from ltbench.errors import UsageError
from ltbench.networks import build_network
from ltbench.sampling import ddim_grid, nfe, sample
from tests.sampling_oracles import MU, NULL, STD, Oracle, draw, exact_noise, exact_velocity, noise_of

torch.set_num_threads(1)


def order_of(error: Callable[[int], float]) -> float:
    """Power of 1/steps by which an error falls between 100 and 200 steps."""
    return math.log2(error(100) / error(200))


ENDS = torch.tensor([0.0, 1.0], dtype=torch.float64).view(2, 1, 1, 1)
"""Two one-pixel noises: where an affine sampler takes them gives its mean and its standard deviation."""


@pytest.mark.parametrize(("sampler", "order", "close"), [("euler", 1, 5e-3), ("heun", 2, 5e-5)])
def test_flow_samplers_reach_mean_and_std_at_their_order(sampler: str, order: int, close: float) -> None:
    def moments(steps: int) -> tuple[float, float]:
        zero, one = draw(Oracle(exact_velocity), LinearFlow(), sampler, steps, ENDS).flatten().tolist()
        return zero, one - zero

    mean, std = moments(200)
    assert mean == pytest.approx(
        MU, abs=1e-12
    )  # the path of the mean is straight, so any step is exact on it
    assert std == pytest.approx(STD, abs=close)
    assert order_of(lambda steps: moments(steps)[1] - STD) == pytest.approx(order, abs=0.05)


@pytest.mark.parametrize(("sampler", "order"), [("euler", 1), ("heun", 2)])
def test_flow_samplers_keep_their_order_on_a_nonlinear_ode(sampler: str, order: int) -> None:
    # dx/ds = -2 s x^2 has the solution x(1) = x(0) / (1 + x(0)): both x and the clock must be read where they are
    network = Oracle(lambda x, s, y: -2 * s.view(-1, 1, 1, 1) * x**2)

    def error(steps: int) -> float:
        return draw(network, LinearFlow(), sampler, steps, 3 * ENDS[1:]).item() - 3 / 4

    assert order_of(error) == pytest.approx(order, abs=0.05)


def test_flow_samplers_move_every_pixel_of_every_row() -> None:
    noise = noise_of()
    result = draw(Oracle(exact_velocity), LinearFlow(), "heun", 200, noise)
    torch.testing.assert_close(result, MU + STD * noise, atol=1e-3, rtol=0)


@pytest.mark.parametrize("steps", [2, 10, 100, 1000])
def test_ddim_on_standard_normal_data_multiplies_by_the_known_factors(steps: int) -> None:
    alpha_bar, noise = DiscreteDDPM().alpha_bar.tolist(), noise_of()
    factor, grid = 1.0, list(range(0, 1000, 1000 // steps))[::-1]
    for t, lower in zip(
        grid, [*grid[1:], 0], strict=True
    ):  # the last step, 0 to 0, has factor ab + (1 - ab) = 1
        a, b = alpha_bar[t], alpha_bar[lower]
        factor *= math.sqrt(a * b) + math.sqrt((1 - a) * (1 - b))
    result = draw(Oracle(exact_noise(0, 1)), DiscreteDDPM(), "ddim", steps, noise)
    torch.testing.assert_close(result, factor * noise, atol=1e-9, rtol=1e-9)
    if steps == 1000:
        assert factor == pytest.approx(1, abs=2e-3)


def test_ddim_reaches_mean_and_std_at_first_order() -> None:
    # the chain stops at alpha_bar[0], so the exact end is sqrt(ab0) MU with variance ab0 STD^2 + 1 - ab0
    a = DiscreteDDPM().alpha_bar[0].item()
    mean, std = math.sqrt(a) * MU, math.sqrt(a * STD**2 + 1 - a)
    errors = []
    for steps in (50, 100, 200):
        zero, one = draw(Oracle(exact_noise(MU, STD)), DiscreteDDPM(), "ddim", steps, ENDS).flatten().tolist()
        errors.append((abs(zero - mean), abs(one - zero - std)))
    for which in (0, 1):
        assert errors[2][which] < 0.02
        assert errors[0][which] > errors[1][which] > errors[2][which]
    assert math.log2(errors[1][1] / errors[2][1]) == pytest.approx(1, abs=0.3)


def test_ddim_grid_is_the_released_one() -> None:
    assert ddim_grid(100)[:2] == [990, 980]
    assert len(ddim_grid(100)) == 100
    assert ddim_grid(10) == [900, 800, 700, 600, 500, 400, 300, 200, 100, 0]
    network = Oracle(exact_noise(0, 1))
    draw(network, DiscreteDDPM(), "ddim", 10, noise_of(dtype=torch.float32))
    assert [t.unique().item() for t, *_ in network.calls] == [900, 800, 700, 600, 500, 400, 300, 200, 100]
    assert {t.dtype for t, *_ in network.calls} == {torch.int64}


def test_the_last_ddim_step_is_the_identity_whatever_the_network_says() -> None:
    process, x, out, t = DiscreteDDPM(), noise_of(), 5 * noise_of().flip(0), torch.zeros(3, dtype=torch.int64)
    again = process.diffuse(process.to_x0(out, x, t), process.to_eps(out, x, t), t)
    torch.testing.assert_close(again, x, atol=1e-14, rtol=0)


@pytest.mark.parametrize("guidance", [0.0, 0.5, 1.0, 1.5, 7.5])
@pytest.mark.parametrize("sampler", ["euler", "heun"])
def test_guidance_is_u_plus_w_times_c_minus_u(sampler: str, guidance: float) -> None:
    velocity = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)  # of class 0, class 1, null
    network = Oracle(lambda x, s, y: velocity[y].view(-1, 1, 1, 1).expand_as(x))
    noise = noise_of()
    result = draw(network, LinearFlow(), sampler, 4, noise, guidance)
    expected = [0.5 + guidance * (velocity[k % 2].item() - 0.5) for k in range(3)]
    torch.testing.assert_close(
        result - noise, torch.tensor(expected, dtype=torch.float64).view(3, 1, 1, 1).expand(3, 1, 4, 4)
    )


@pytest.mark.parametrize(("sampler", "pipeline"), [("euler", "sit"), ("heun", "sit"), ("ddim", "ddpm")])
@pytest.mark.parametrize("guidance", [0.0, 1.0, 1.5])
def test_nfe_counts_the_rows_the_network_sees(sampler: str, pipeline: str, guidance: float) -> None:
    network = Oracle(lambda x, t, y: 0 * x)
    draw(network, process_for(pipeline), sampler, 20, noise_of(), guidance)
    assert network.rows == 3 * nfe(sampler, 20, guidance)
    labels = torch.cat([y for _, y, *_ in network.calls])
    assert (guidance == 1) == bool((labels != NULL).all())
    assert (guidance == 0) == bool((labels == NULL).all())


def test_nfe_by_hand() -> None:
    assert [nfe(name, 20, 1.0) for name in ("euler", "heun", "ddim")] == [20, 40, 19]
    assert [nfe(name, 20, 1.5) for name in ("euler", "heun", "ddim")] == [40, 80, 38]
    for name in ("dopri5", "dopri"):
        with pytest.raises(UsageError, match="not known beforehand"):
            nfe(name, 20, 1.0)


def trained_looking(name: str) -> nn.Module:
    """A real network whose zero layers have been filled, so that its output depends on everything."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = build_network(name, channels=1, resolution=8, classes=NULL, dropout=0.1)
        with torch.no_grad():
            for parameter in network.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
    return network


def test_w_one_is_the_plain_conditional_loop_bit_for_bit() -> None:
    network, noise, labels = (
        trained_looking("SiT-N/4"),
        noise_of(4, torch.float32)[..., :4].repeat(1, 1, 2, 2),
        torch.arange(4) % 2,
    )
    result = draw(network, LinearFlow(), "euler", 5, noise)
    network.eval()
    x = noise
    with torch.no_grad():
        for k in range(5):
            x = x + network(x, torch.full((4,), k / 5), labels)[0] / 5
    assert torch.equal(result, x)
    assert not torch.equal(result, draw(network, LinearFlow(), "euler", 5, noise, 1.5))


@pytest.mark.parametrize(("name", "sampler"), [("SiT-N/4", "heun"), ("UNet-16", "ddim")])
def test_image_k_depends_on_row_k_alone(name: str, sampler: str) -> None:
    network, noise = (
        trained_looking(name),
        torch.randn((4, 1, 8, 8), generator=torch.Generator().manual_seed(5)),
    )
    process = process_for("sit" if sampler == "heun" else "ddpm")
    labels = torch.tensor([0, 1, 1, 0])
    settings = {"sampler": sampler, "steps": 4, "guidance": 1.5, "null": NULL}
    together = sample(network, process, noise=noise, labels=labels, **settings)
    for row in range(4):
        alone = sample(network, process, noise=noise[[row]], labels=labels[[row]], **settings)
        torch.testing.assert_close(together[[row]], alone, atol=1e-4, rtol=1e-4)


def test_sampling_leaves_no_trace() -> None:
    network = Oracle(exact_velocity)
    network.part.eval()  # a frozen part inside a training network
    noise = noise_of(dtype=torch.float32)
    before, kept = torch.get_rng_state(), noise.clone()
    result = draw(network, LinearFlow(), "heun", 3, noise, 1.5)
    assert network.training
    assert not network.part.training
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(noise, kept)
    assert result.dtype == torch.float32
    assert not result.requires_grad
    assert all(not training and not grad for *_, training, grad in network.calls)


def test_modes_come_back_after_a_failure() -> None:
    def fail(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        raise ZeroDivisionError

    network = Oracle(fail)
    with pytest.raises(ZeroDivisionError):
        draw(network, LinearFlow(), "euler", 3, noise_of())
    assert network.training


@pytest.mark.parametrize(
    ("sampler", "pipeline", "steps", "message"),
    [
        ("dopri", "sit", 10, r"unknown sampler 'dopri'(.|\n)*euler, heun, dopri5"),
        ("ddim", "sit", 10, r"does not belong to pipeline 'sit'(.|\n)*euler, heun"),
        ("euler", "ddpm", 10, r"does not belong to pipeline 'ddpm'(.|\n)*ddim"),
        ("euler", "sit", 0, r"steps is 0"),
        ("euler", "sit", None, r"needs the key 'steps'"),
        ("dopri5", "sit", 50, r"leave steps out"),
        ("sde-euler", "sit", 1, r"needs 2"),
        ("ddim", "ddpm", 30, r"divides 1000(.|\n)*25, 40"),
        ("ddim", "ddpm", 1, r"divides 1000"),
        ("ddim-corrected", "ddpm", 1001, r"can take no more"),
        ("ddpm", "ddpm", 1001, r"1000 steps"),
    ],
)
def test_what_cannot_be_sampled_is_refused(
    sampler: str, pipeline: str, steps: int | None, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        draw(Oracle(exact_velocity), process_for(pipeline), sampler, steps, noise_of(), fresh=noise_of)


@pytest.mark.parametrize(("sampler", "pipeline", "steps"), [("sde-euler", "sit", 5), ("ddpm", "ddpm", 1000)])
def test_a_noisy_sampler_needs_its_noise(sampler: str, pipeline: str, steps: int) -> None:
    with pytest.raises(UsageError, match="draws noise at every step"):
        draw(Oracle(exact_velocity), process_for(pipeline), sampler, steps, noise_of())
