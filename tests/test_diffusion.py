"""Processes against closed forms: float64 products, exact inverses, and the definition of each path."""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from ltbench.diffusion import DiscreteDDPM, LinearFlow, Process, process_for
from ltbench.errors import UsageError

torch.set_num_threads(1)
PIPELINES = ["sit", "ddpm"]
TIMES = st.floats(0, 0.999)


@dataclass
class FakeDraw:
    x0: Tensor
    xt: Tensor
    t: Tensor
    target: Tensor


def draw_for(
    process: Process, u: Tensor, dtype: torch.dtype = torch.float64, seed: int = 0
) -> tuple[FakeDraw, Tensor]:
    """A draw of images (len(u), 3, 4, 4) at times u, and its noise."""
    generator = torch.Generator().manual_seed(seed)
    x0 = torch.rand((len(u), 3, 4, 4), generator=generator, dtype=dtype) * 2 - 1
    eps = torch.randn(x0.shape, generator=generator, dtype=dtype)
    t = process.time(u)
    return FakeDraw(x0, process.diffuse(x0, eps, t), t, process.target(x0, eps, t)), eps


def test_alpha_bar_is_the_exact_product() -> None:
    # arXiv 2006.11239, section 4: beta linear from 1e-4 to 0.02 over 1000 steps; in rationals, so without any rounding
    product, exact = Fraction(1), {}
    for t in range(1000):
        product *= 1 - (Fraction(1, 10_000) + Fraction(t, 999) * (Fraction(2, 100) - Fraction(1, 10_000)))
        product = product.limit_denominator(10**60)
        exact[t] = float(product)
    alpha_bar = DiscreteDDPM().alpha_bar
    assert alpha_bar.dtype == torch.float64
    for t in (0, 1, 900, 990, 999):
        assert alpha_bar[t].item() == pytest.approx(exact[t], rel=1e-12)
    assert exact[0] == 0.9999
    assert exact[999] == pytest.approx(4.036e-5, rel=1e-4)  # the figure commonly quoted for this schedule


def test_ddpm_is_variance_preserving_and_flow_is_a_straight_line() -> None:
    ddpm, t = DiscreteDDPM(), torch.arange(1000)
    torch.testing.assert_close(ddpm.signal(t) ** 2 + ddpm.noise(t) ** 2, torch.ones(1000))
    flow, s = LinearFlow(), torch.tensor([0.0, 0.25, 1.0])
    draw, eps = draw_for(flow, s)
    torch.testing.assert_close(draw.xt[0], eps[0], rtol=0, atol=0)
    torch.testing.assert_close(draw.xt[1], 0.25 * draw.x0[1] + 0.75 * eps[1])
    torch.testing.assert_close(draw.xt[2], draw.x0[2], rtol=0, atol=0)


def test_flow_target_is_the_derivative_of_the_path() -> None:
    flow, h = LinearFlow(), 1e-4
    s = torch.tensor([0.1, 0.5, 0.9], dtype=torch.float64)
    draw, eps = draw_for(flow, s)
    slope = (flow.diffuse(draw.x0, eps, s + h) - flow.diffuse(draw.x0, eps, s - h)) / (2 * h)
    torch.testing.assert_close(slope, draw.target, atol=1e-9, rtol=0)


@pytest.mark.parametrize("pipeline", PIPELINES)
@settings(deadline=None, max_examples=40)
@given(u=st.lists(TIMES, min_size=1, max_size=5), seed=st.integers(0, 2**31))
def test_predictions_convert_back_to_image_and_noise(pipeline: str, u: list[float], seed: int) -> None:
    process = process_for(pipeline)
    draw, eps = draw_for(process, torch.tensor(u, dtype=torch.float64), seed=seed)
    torch.testing.assert_close(process.to_x0(draw.target, draw.xt, draw.t), draw.x0, atol=1e-8, rtol=0)
    torch.testing.assert_close(process.to_eps(draw.target, draw.xt, draw.t), eps, atol=1e-8, rtol=0)


@pytest.mark.parametrize("pipeline", PIPELINES)
@settings(deadline=None, max_examples=40)
@given(u=st.lists(TIMES, min_size=1, max_size=5), seed=st.integers(0, 2**31))
def test_target_toward_another_image_explains_the_same_noisy_image(
    pipeline: str, u: list[float], seed: int
) -> None:
    process = process_for(pipeline)
    draw, _ = draw_for(process, torch.tensor(u, dtype=torch.float64), seed=seed)
    other = draw.x0.roll(1, dims=-1) + 0.1
    target = process.target_toward(other, draw)
    # from the same xt, this target must lead to the other image, with a noise that diffuses it back to xt
    torch.testing.assert_close(process.to_x0(target, draw.xt, draw.t), other, atol=1e-8, rtol=0)
    eps = process.to_eps(target, draw.xt, draw.t)
    torch.testing.assert_close(process.diffuse(other, eps, draw.t), draw.xt, atol=1e-8, rtol=0)


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_target_toward_the_same_image_is_the_target_bit_for_bit(pipeline: str) -> None:
    process = process_for(pipeline)
    u = torch.tensor(
        [0.0, 0.3, 0.9, 1 - 2**-24]
    )  # up to the clock's very end, where the direct formula cancels
    draw, _ = draw_for(process, u, dtype=torch.float32)
    assert torch.equal(process.target_toward(draw.x0.clone(), draw), draw.target)


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_level_runs_from_clean_to_noise_and_agrees_with_the_path(pipeline: str) -> None:
    process = process_for(pipeline)
    t = process.time(torch.linspace(0, 0.999, 500))
    level = process.level(t)
    assert level.dtype == torch.float32
    assert 0 <= level.min() < 0.01
    assert 0.99 < level.max() <= 1
    order = level.argsort()
    assert (process.noise(t)[order].diff() >= 0).all()
    assert (process.signal(t)[order].diff() <= 0).all()


def test_levels_are_the_documented_ones() -> None:
    assert LinearFlow().level(torch.tensor([0.0, 0.25, 1.0])).tolist() == [1.0, 0.75, 0.0]
    torch.testing.assert_close(
        DiscreteDDPM().level(torch.tensor([0, 250, 999])), torch.tensor([0.0, 0.25, 0.999])
    )


def test_ddpm_clock_is_uniform_over_all_thousand_steps() -> None:
    middles = (torch.arange(1000, dtype=torch.float64) + 0.5) / 1000
    assert DiscreteDDPM().time(middles.float()).tolist() == list(range(1000))
    ends = DiscreteDDPM().time(torch.tensor([0.0, 1 - 2**-24]))
    assert ends.dtype == torch.int64
    assert ends.tolist() == [0, 999]


@pytest.mark.parametrize("pipeline", PIPELINES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_results_keep_the_images_dtype_and_shape(pipeline: str, dtype: torch.dtype) -> None:
    process = process_for(pipeline)
    draw, eps = draw_for(process, torch.tensor([0.2, 0.7]), dtype=dtype)
    results = [
        draw.xt,
        draw.target,
        process.to_x0(eps, draw.xt, draw.t),
        process.to_eps(eps, draw.xt, draw.t),
        process.target_toward(eps, draw),
    ]
    assert {(result.dtype, result.shape) for result in results} == {(dtype, draw.x0.shape)}


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_rows_do_not_mix_and_any_rank_is_taken(pipeline: str) -> None:
    process = process_for(pipeline)
    draw, eps = draw_for(process, torch.tensor([0.1, 0.6, 0.9]))
    for row in range(3):
        one = slice(row, row + 1)
        assert torch.equal(process.diffuse(draw.x0[one], eps[one], draw.t[one]), draw.xt[one])
    flat = process.diffuse(draw.x0.flatten(1), eps.flatten(1), draw.t)
    assert torch.equal(flat, draw.xt.flatten(1))


def test_processes_by_name() -> None:
    assert [process_for(name).name for name in PIPELINES] == PIPELINES
    with pytest.raises(UsageError, match=r"unknown pipeline 'edm'(.|\n)*sit, ddpm"):
        process_for("edm")
