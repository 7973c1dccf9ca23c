"""Fréchet distance and its sums: closed forms, sqrtm, every path against every other, and errors against replicates."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from ltbench.metrics.arrays import TooFew
from ltbench.metrics.frechet import (
    Reference,
    _by_covariances,
    _by_gram,
    _by_root,
    _gram_is_cheaper,
    between,
    estimate,
    frechet,
    root_of,
)
from ltbench.metrics.moments import Gaussian, Moments, all_of, fold_moments
from ltbench.metrics.sets import folds_of


def normal(seed, n, d, scale=1.0, shift=0.0):
    return np.random.default_rng(seed).normal(size=(n, d)) * scale + shift


# sums


def test_streamed_sums_are_numpys_whatever_the_blocks_the_order_and_the_shift():
    x = normal(0, 301, 7, 2.0, 50.0).astype(np.float32)
    exact = x.astype(np.float64)
    for block in (1, 7, 100, 4096):
        for shift in (None, np.zeros(7), exact[0]):
            found = Moments.of(x, shift, block)
            np.testing.assert_allclose(found.mean, exact.mean(0), rtol=1e-12)
            np.testing.assert_allclose(found.cov, np.cov(exact, rowvar=False), rtol=1e-9, atol=1e-9)
    turned = Moments.of(x[np.random.default_rng(1).permutation(301)], exact[0])
    np.testing.assert_allclose(turned.scatter, Moments.of(x, exact[0]).scatter, rtol=1e-12)


def test_a_good_shift_keeps_the_digits_that_no_shift_loses():
    x = normal(0, 500, 3, 1.0, 1e6)
    true = np.cov(x - 1e6, rowvar=False)
    assert np.abs(Moments.of(x).cov - true).max() < 1e-9
    assert np.abs(Moments.of(x, np.zeros(3)).cov - true).max() > 1e-7


@given(st.lists(st.integers(0, 3), min_size=12, max_size=80), st.integers(0, 100))
@settings(max_examples=40, deadline=None)
def test_parts_add_to_the_whole_and_leave_it_again(parts, seed):
    x, parts = normal(seed, len(parts), 4, 1.0, 3.0), np.array(parts)
    shift = x[0]
    whole, pieces = Moments.of(x, shift), fold_moments(x, parts, 4, shift)
    total = all_of(pieces)
    assert total.n == sum(piece.n for piece in pieces) == len(x)
    np.testing.assert_allclose(total.scatter, whole.scatter, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose((pieces[0] + pieces[1]).total, pieces[0].total + pieces[1].total)
    if (parts != 1).sum() > 2:
        left = whole - pieces[1]
        np.testing.assert_allclose(left.mean, x[parts != 1].mean(0), rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(left.cov, np.cov(x[parts != 1], rowvar=False), rtol=1e-9, atol=1e-9)


def test_sums_that_do_not_fit_are_refused():
    x = normal(0, 20, 3)
    one, other = Moments.of(x, np.zeros(3)), Moments.of(x, np.ones(3))
    with pytest.raises(ValueError, match="different shifts"):
        one + other
    with pytest.raises(ValueError, match="20 images cannot be taken from 5"):
        Moments.of(x[:5], np.zeros(3)) - one
    with pytest.raises(TooFew):
        Moments.of(x[:1]).gaussian()
    x[4, 1] = np.nan
    with pytest.raises(ValueError, match="1 images have NaN or infinite features, the first at 4"):
        Moments.of(x, np.zeros(3), block=3)


# the distance


def by_sqrtm(a, b):
    s, t = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        root = scipy.linalg.sqrtm(s @ t)
    shift = a.mean(0) - b.mean(0)
    return float(shift @ shift + np.trace(s + t - 2 * np.real(root)))


@pytest.mark.parametrize(("n", "m"), [(90, 80), (20, 80), (80, 20), (20, 30), (24, 24), (25, 25), (24, 90)])
def test_every_path_gives_sqrtms_distance_and_that_of_the_images_left(n, m):
    d = 24
    a, b = normal(0, n, d) @ normal(1, d, d), normal(2, m, d, 1.7, 0.3) @ normal(3, d, d)
    fa, fb = folds_of(np.arange(n) % 2), folds_of(np.arange(m) % 3)
    wanted = [None, *range(10)]
    values = [list(path(a, Reference(b, fb), fa, wanted)) for path in (_by_covariances, _by_root, _by_gram)]
    # the root of a singular product is itself only good to about the square root of eps
    tolerance = 1e-9 if min(n, m) > 2 * d else 1e-5
    left = [by_sqrtm(a, b), *(by_sqrtm(a[fa != f], b[fb != f]) for f in range(10))]
    for found in values:
        assert found == pytest.approx(left, rel=tolerance)
    found = estimate(a, Reference(b, fb), fa)
    assert [found.value, *(found.folds or ())] == pytest.approx(left, rel=tolerance)


def test_the_path_is_chosen_by_the_sizes():
    x = normal(0, 400, 16)
    for n, m, path in [
        (100, 90, "covariances"),
        (16, 16, "covariances"),
        (8, 12, "Gram"),
        (15, 400, "root"),
        (400, 15, "root"),
    ]:
        assert path in estimate(x[:n], Reference(x[:m])).estimator
    assert _gram_is_cheaper(50, 1300, 2048, 11)
    assert _gram_is_cheaper(50, 5000, 2048, 11)
    assert not _gram_is_cheaper(2000, 50_000, 2048, 11)


def test_known_gaussians_with_commuting_covariances():
    """|dm|^2 + sum (sqrt a - sqrt b)^2, in one basis; from moments alone, without an image."""
    turn = np.linalg.qr(normal(7, 6, 6))[0]
    s, t, move = np.arange(1.0, 7), np.array([3.0, 1, 4, 1, 5, 0]), np.arange(6.0)
    one = Gaussian(np.zeros(6), turn * s @ turn.T)
    two = Gaussian(move, turn * t @ turn.T)
    exact = move @ move + ((np.sqrt(s) - np.sqrt(t)) ** 2).sum()
    for a, b in ((one, two), (two, one)):  # two's covariance is singular: its root is not Cholesky's
        assert between(a, b, root_of(b.cov)) == pytest.approx(exact, rel=1e-7)


@given(st.integers(3, 40), st.integers(3, 40), st.integers(1, 12), st.floats(0.01, 100), st.integers(0, 1000))
@settings(max_examples=40, deadline=None)
def test_rotation_translation_and_scale(n, m, d, scale, seed):
    a, b = normal(seed, n, d), normal(seed + 1, m, d, 2.0, 1.0)
    turn = np.linalg.qr(normal(seed + 2, d, d))[0]
    value, size = frechet(a, b), float((a * a).sum() + (b * b).sum())
    assert frechet(scale * (a @ turn) + 3, scale * (b @ turn) + 3) == pytest.approx(
        scale**2 * value, rel=1e-6, abs=1e-7 * scale**2 * size
    )
    assert frechet(a.astype(np.float32), b.astype(np.float32)) == pytest.approx(
        value, rel=1e-4, abs=1e-5 * size
    )


def test_dead_and_copied_features_change_nothing():
    a, b = normal(0, 100, 6), normal(1, 120, 6, 1.5)
    wide = [np.hstack([x, np.zeros((len(x), 3))]) for x in (a, b)]  # singular covariances: no Cholesky factor
    assert frechet(*wide) == pytest.approx(frechet(a, b), rel=1e-7)


def test_a_reference_of_statistics_gives_the_value_and_the_error_of_the_generated_set():
    a, b = normal(0, 200, 8), normal(1, 300, 8, 1.2)
    known = Reference(statistics=Gaussian(b.mean(0), np.cov(b, rowvar=False)))
    for part in (a, a[:7]):  # 7 images in 8 dimensions
        folds = folds_of(np.zeros(len(part)))
        found = estimate(part, known, folds)
        assert found.value == pytest.approx(by_sqrtm(part, b), rel=1e-6)
    fixed, held = (
        estimate(a, known, folds_of(np.zeros(200))),
        estimate(a, Reference(b), folds_of(np.zeros(200))),
    )
    assert fixed.folds == pytest.approx(held.folds, rel=1e-9)
    assert "reference fixed" in fixed.estimator


# the jackknife


@pytest.mark.parametrize(("n", "d"), [(300, 8), (60, 80)])
def test_jackknife_errors_match_replicates_and_the_correction_removes_the_bias(n, d):
    """Covariances 1 and 1.5^2, means 0.3 apart: truth d (0.5^2 + 0.09), half of what 60 images in 80 dimensions give."""
    truth, folds = d * (0.25 + 0.09), folds_of(np.zeros(n))
    found = [
        estimate(normal(2 * i, n, d), Reference(normal(2 * i + 1, n, d, 1.5, 0.3), folds), folds)
        for i in range(80)
    ]
    values = np.array([one.value for one in found])
    spread, errors = values.std(ddof=1), np.mean([one.se for one in found])
    assert errors == pytest.approx(spread, rel=0.3)
    bias, left = values.mean() - truth, np.mean([one.corrected for one in found]) - truth
    assert bias > 3 * spread / np.sqrt(len(found))
    assert abs(left) < 0.35 * bias


def test_folds_that_cannot_be_left_out_give_no_error():
    a, b = normal(0, 9, 3), normal(1, 50, 3)
    short = estimate(a, Reference(b, folds_of(np.zeros(50))), folds_of(np.zeros(9)))
    assert (short.se, short.corrected, short.folds) == (None, None, None)
    assert "9 generated images leave one of 10 folds empty" in short.estimator
    assert estimate(b, Reference(a, folds_of(np.zeros(9))), folds_of(np.zeros(50))).se is None
    assert estimate(b, Reference(a), folds_of(np.zeros(50))).se is not None  # held fixed
    with pytest.raises(TooFew, match="second set has 1"):
        estimate(b, Reference(a[:1]))
    with pytest.raises(ValueError, match="3 dimensions"):
        estimate(normal(0, 9, 4), Reference(a))
    for wrong in (b[:9], b[:2]):
        bad = wrong.copy()
        bad[0, 0] = np.inf
        with pytest.raises(ValueError, match="NaN or infinite"):
            estimate(bad, Reference(b))
