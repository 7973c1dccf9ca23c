"""The same features through other libraries: agreement to 1e-6, without a network or weights. Skipped loudly where one is absent."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch

from ltbench.metrics.frechet import Reference, estimate, frechet
from ltbench.metrics.inception_score import inception_score
from ltbench.metrics.kernel import kernel, kernel_subsets
from ltbench.metrics.neighbours import precision_recall
from ltbench.metrics.sets import folds_of


def quietly(name):
    """Import an oracle; its own deprecation warnings are not ours."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return pytest.importorskip(
            name, reason=f"{name} is an oracle of these tests: pip install -e '.[test]'"
        )


def sets(n, m, d=64, dtype=np.float64):
    """Non-negative, correlated features like those of a pooled ReLU layer."""
    rng = np.random.default_rng(n + m)
    mix = rng.normal(size=(d, d)) / np.sqrt(d)
    gen = np.maximum(rng.normal(size=(n, d)) @ mix + 0.1, 0)
    ref = np.maximum(1.2 * rng.normal(size=(m, d)) @ mix, 0)
    return gen.astype(dtype), ref.astype(dtype)


SIZES = [(500, 400), (1000, 90)]


@pytest.mark.parametrize(("n", "m"), SIZES)
def test_frechet_agrees_with_torch_fidelity(n, m):
    fidelity = quietly("torch_fidelity.metric_fid")
    gen, ref = sets(n, m)
    stats = [fidelity.fid_features_to_statistics(torch.from_numpy(x)) for x in (gen, ref)]
    other = fidelity.fid_statistics_to_metric(*stats, verbose=False)["frechet_inception_distance"]
    assert frechet(gen, ref) == pytest.approx(other, rel=1e-6)
    left = [
        x[folds_of(np.zeros(len(x))) != 4] for x in (gen, ref)
    ]  # downdated sums against a library without folds
    stats = [fidelity.fid_features_to_statistics(torch.from_numpy(x)) for x in left]
    other = fidelity.fid_statistics_to_metric(*stats, verbose=False)["frechet_inception_distance"]
    found = estimate(gen, Reference(ref, folds_of(np.zeros(m))), folds_of(np.zeros(n)))
    assert found.folds is not None
    assert found.folds[4] == pytest.approx(other, rel=1e-6)


@pytest.mark.parametrize(("n", "m"), SIZES)
def test_frechet_agrees_with_pytorch_fid(n, m):
    fid_score = quietly("pytorch_fid.fid_score")
    gen, ref = sets(n, m)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other = fid_score.calculate_frechet_distance(
            gen.mean(0), np.cov(gen, rowvar=False), ref.mean(0), np.cov(ref, rowvar=False)
        )
    assert frechet(gen, ref) == pytest.approx(other, rel=1e-6)


@pytest.mark.parametrize(("n", "m"), SIZES)
def test_frechet_agrees_with_torchmetrics(n, m):
    fid = quietly("torchmetrics.image.fid")
    gen, ref = sets(n, m)
    (a, s), (b, t) = (
        (torch.from_numpy(x.mean(0)), torch.from_numpy(np.cov(x, rowvar=False))) for x in (gen, ref)
    )
    assert frechet(gen, ref) == pytest.approx(float(fid._compute_fid(a, s, b, t)), rel=1e-6)


def test_kernel_agrees_with_torch_fidelity_and_torchmetrics():
    fidelity, metrics = quietly("torch_fidelity.metric_kid"), quietly("torchmetrics.image.kid")
    gen, ref = sets(300, 260)
    for size in (130, 100):
        other = fidelity.kid_features_to_metric(
            torch.from_numpy(gen),
            torch.from_numpy(ref),
            kid_subsets=20,
            kid_subset_size=size,
            rng_seed=42,
            verbose=False,
        )["kernel_inception_distance_mean"]
        assert kernel_subsets(gen, ref, 20, size=size).value == pytest.approx(other, rel=1e-6)
    assert kernel_subsets(gen, ref, 20) == kernel_subsets(gen, ref, 20, size=130)
    other = float(metrics.poly_mmd(torch.from_numpy(gen[:260]), torch.from_numpy(ref)))
    assert kernel(gen[:260], ref) == pytest.approx(other, rel=1e-6)


def test_precision_and_recall_agree_with_torch_fidelity_which_takes_the_generated_set_first():
    fidelity = quietly("torch_fidelity.metric_prc")
    gen, ref = sets(300, 260, d=16)
    gen = 0.6 * gen + 0.4 * gen.mean(0)
    other = fidelity.prc_features_to_metric(
        torch.from_numpy(gen), torch.from_numpy(ref), prc_neighborhood=3, prc_batch_size=100, verbose=False
    )
    precision, recall = precision_recall(gen, ref, 3)
    assert (precision, recall) == pytest.approx((other["precision"], other["recall"]), rel=1e-6)
    assert precision > recall + 0.1  # so that a swap would be seen


def test_inception_score_agrees_with_torch_fidelity():
    fidelity = quietly("torch_fidelity.metric_isc")
    logits = 3 * np.random.default_rng(0).normal(size=(1003, 20))
    other = fidelity.isc_features_to_metric(torch.from_numpy(logits))["inception_score_mean"]
    assert inception_score(logits) == pytest.approx(other, rel=1e-9)


def test_float32_features_cost_less_than_a_millionth_here_where_others_lose_more():
    gen, ref = sets(500, 400, dtype=np.float32)
    assert frechet(gen, ref) == pytest.approx(
        frechet(gen.astype(np.float64), ref.astype(np.float64)), rel=1e-12
    )
