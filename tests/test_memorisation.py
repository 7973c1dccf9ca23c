"""Measures of copying against scipy, brute force and hand-made examples."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.distance import cdist
from scipy.stats import mannwhitneyu, norm

from ltbench.metrics.arrays import TooFew
from ltbench.metrics.memorisation import Against, copying, rank_z


def normal(seed, n, d, scale=1.0, shift=0.0):
    return np.random.default_rng(seed).normal(size=(n, d)) * scale + shift


def by_class(seed, sizes, scale=1.0, d=4):
    labels = np.repeat(np.arange(len(sizes)), sizes)
    return normal(seed, len(labels), d, scale) + 6 * np.eye(len(sizes), d)[labels], labels


def measured(gen, train, holdout, **more):
    return copying(
        gen[0],
        train[0],
        holdout[0],
        gen_labels=gen[1],
        train_labels=train[1],
        holdout_labels=holdout[1],
        **more,
    )


def fine(measure) -> Against:
    assert isinstance(measure, Against), measure
    return measure


@given(
    st.lists(st.integers(0, 6), min_size=1, max_size=25),
    st.lists(st.integers(0, 6), min_size=1, max_size=25),
)
@settings(max_examples=60, deadline=None)
def test_rank_z_is_scipys_with_ties(a, b):
    x, y = np.array(a, dtype=float), np.array(b, dtype=float)
    if len(set(a + b)) == 1:
        assert rank_z(x, y) == 0  # scipy divides by 0 here
        return
    test = mannwhitneyu(x, y, method="asymptotic", use_continuity=False, alternative="less")
    assert norm.cdf(rank_z(x, y)) == pytest.approx(test.pvalue, rel=1e-9)
    assert rank_z(y, x) == pytest.approx(-rank_z(x, y), abs=1e-12)


def test_rank_z_has_unit_spread_when_nothing_differs():
    draws = [rank_z(normal(2 * i, 30, 1)[:, 0], normal(2 * i + 1, 20, 1)[:, 0]) for i in range(400)]
    assert abs(np.mean(draws)) < 0.15
    assert np.std(draws) == pytest.approx(1, abs=0.1)


def brute(gen, train, holdout):
    """C_T, copied and authenticity from full matrices and scipy."""
    (g, gy), (t, ty), (h, hy) = gen, train, holdout
    total, copied = 0.0, 0
    for one in np.unique(gy):
        own = t[ty == one]
        a, b = cdist(g[gy == one], own).min(1), cdist(h[hy == one], own).min(1)
        p = mannwhitneyu(a, b, method="asymptotic", use_continuity=False, alternative="less").pvalue
        total += len(b) * norm.ppf(p)
        near = np.sort(cdist(h[hy == one], t).min(1))
        copied += (cdist(g[gy == one], t).min(1) <= near[int(0.05 * (len(near) + 1)) - 1]).sum()
    apart = cdist(t, t) + np.diag(np.full(len(t), np.inf))
    across = cdist(g, t)
    authentic = across.min(1) > apart.min(1)[across.argmin(1)]
    return total / len(h), copied / len(g), authentic.mean()


def values(found):
    return [fine(each).estimate.value for each in (found.ct, found.copied, found.authenticity)]


def test_every_fold_is_brute_force_without_it():
    gen, train, holdout = by_class(0, [30, 40], 0.9), by_class(1, [20, 5]), by_class(2, [45, 60])
    fold_gen, fold_holdout = np.arange(70) % 10, np.arange(105) % 10
    found = measured(gen, train, holdout, folds_gen=fold_gen, folds_holdout=fold_holdout, block=16)
    assert values(found) == pytest.approx(brute(gen, train, holdout), rel=1e-9)
    for fold in range(10):
        less = [(x[f != fold], y[f != fold]) for (x, y), f in ((gen, fold_gen), (holdout, fold_holdout))]
        without = [(fine(m).estimate.folds or ())[fold] for m in (found.ct, found.copied, found.authenticity)]
        assert without == pytest.approx(brute(less[0], train, less[1]), rel=1e-9)
    ct = fine(found.ct)
    assert (ct.n_gen, ct.n_ref, ct.n_train) == (70, 105, 25)
    assert measured(gen, train, holdout, folds_gen=fold_gen, folds_holdout=fold_holdout) == found


def test_by_hand_in_one_dimension():
    train = np.array([[0.0], [10.0], [13.0]])  # nearest neighbours at 10, 3 and 3
    gen = np.array([[0.0], [9.0], [11.0], [6.0], [20.0]])  # nearest at 0, 1, 1, 4, 7
    holdout = np.arange(1.0, 20.0)[:, None] * 0.2 + 13  # nearest at 0.2, 0.4, ... 3.8
    one = [np.zeros(len(x), dtype=int) for x in (gen, train, holdout)]
    found = measured((gen, one[0]), (train, one[1]), (holdout, one[2]))
    # 6 lies 4 from 10, which lies 3 from 13; 20 lies 7 from 13, which lies 3 from 10
    assert fine(found.authenticity).estimate.value == 2 / 5
    # of 19 held-out images the nearest counts: 0.2 away; one generated image is as near
    assert fine(found.copied).estimate.value == 1 / 5
    assert fine(found.copied).real == pytest.approx(1 / 20)
    assert fine(found.authenticity).real == pytest.approx(4 / 19)  # those 3.2, 3.4, 3.6 and 3.8 away


def test_exact_copies_on_both_sides_are_ties():
    """Half the held-out images are training images themselves: copying is then no offence of the generator."""
    train = by_class(1, [30, 30])
    both = np.vstack([train[0], by_class(2, [30, 30])[0]]), np.tile(train[1], 2)
    found = measured(both, train, both)
    assert fine(found.ct).estimate.value == 0
    exact = measured(train, train, by_class(3, [40, 40]))
    assert fine(exact.copied).estimate.value == 1
    assert fine(exact.authenticity).estimate.value == 0


def test_a_copy_of_another_classs_image_is_a_copy():
    train, holdout = by_class(1, [20, 20]), by_class(2, [40, 40])
    swapped = train[0] + 1e-3, train[1][::-1]
    found = measured(swapped, train, holdout)
    assert fine(found.copied).estimate.value == 1
    assert fine(found.authenticity).estimate.value == 0


def test_thresholds_are_per_class_where_there_are_enough_images():
    """A dense class beside a sparse one: copies with noise in the sparse class are farther than all of the dense one."""
    gap = np.array([1e-3, 1.0])
    train = np.array([[0.0, 0], [50, 0]]), np.arange(2)

    def around(seed, n, scale):
        labels = np.repeat([0, 1], n)
        return train[0][labels] + normal(seed, 2 * n, 2) * (gap[labels] * scale)[:, None], labels

    fresh, copies = around(0, 200, 1.0), around(1, 200, 0.02)
    found = fine(measured(copies, train, fresh).copied)
    assert found.estimate.value > 0.95
    assert "per class" in found.estimate.estimator
    few = fresh[0][::20], fresh[1][::20]
    found = fine(measured(copies, train, few).copied)
    assert found.estimate.value < 0.6
    assert "one threshold for all classes" in found.estimate.estimator


def test_real_values_are_what_fresh_images_score():
    """Over many worlds the held-out value of each measure is the oracle's own."""
    gaps = []
    for seed in range(20):
        sizes = [60, 60, 60]
        sets = (by_class(seed * 3, sizes), by_class(seed * 3 + 1, [40, 9, 5]), by_class(seed * 3 + 2, sizes))
        found = measured(*sets)
        gaps.append(
            [fine(m).estimate.value - fine(m).real for m in (found.ct, found.copied, found.authenticity)]
        )
    mean, error = np.mean(gaps, axis=0), np.std(gaps, axis=0, ddof=1) / np.sqrt(20)
    assert (np.abs(mean) < 3 * error).all(), (mean, error)


def test_standard_errors_are_near_the_spread_of_fresh_draws():
    train = by_class(1000, [40, 9])
    found = [measured(by_class(2 * i, [80, 80]), train, by_class(2 * i + 1, [80, 80])) for i in range(40)]
    for name in ("ct", "copied", "authenticity"):
        spread = np.std([fine(getattr(one, name)).estimate.value for one in found], ddof=1)
        said = np.mean([fine(getattr(one, name)).estimate.se for one in found])
        assert 0.6 * spread < said < 2 * spread, (name, spread, said)


def test_classes_of_five_images_and_of_one():
    found = measured(by_class(0, [50, 50]), by_class(1, [5, 1]), by_class(2, [50, 50]))
    for measure in (found.ct, found.copied, found.authenticity):
        assert np.isfinite(
            [fine(measure).estimate.value, fine(measure).estimate.se, fine(measure).real]
        ).all()
    lone = measured(by_class(0, [50]), by_class(1, [1]), by_class(2, [50]))
    assert abs(fine(lone.ct).estimate.value) < 5
    assert "needs 2 training images; there is 1" in str(lone.authenticity)
    assert isinstance(lone.authenticity, TooFew)


def test_few_generated_or_held_out_images_give_reasons():
    train, holdout = by_class(1, [9, 9]), by_class(2, [5, 5])
    found = measured(by_class(0, [6, 6]), train, holdout)
    assert fine(found.ct).estimate.se is not None
    assert "need 19 of them; there are 10" in str(found.copied)
    assert isinstance(found.copied, TooFew)
    single = fine(measured(by_class(0, [30, 1]), train, holdout).ct)
    assert single.estimate.se is None
    assert "class 1 has 0 and" in single.estimate.estimator
    missing = measured(by_class(0, [6, 6]), by_class(1, [9]), holdout)
    for measure in (missing.ct, missing.copied, missing.authenticity):
        assert isinstance(measure, TooFew)
        assert "1 training image of every generated class; there is none of 1" in str(measure)


def test_bad_input_is_refused_by_name():
    sets = [by_class(seed, [20, 20]) for seed in range(3)]
    with pytest.raises(ValueError, match="dimensions; they must agree"):
        measured(sets[0], sets[1], (sets[2][0][:, :3], sets[2][1]))
    with pytest.raises(ValueError, match="40 training images with labels of shape"):
        measured(sets[0], (sets[1][0], sets[1][1][:5]), sets[2])
    bad = sets[0][0].copy()
    bad[0, 0] = np.inf
    with pytest.raises(ValueError, match="1 images of the generated set"):
        measured((bad, sets[0][1]), sets[1], sets[2])
    with pytest.raises(ValueError, match=r"ints in 0\.\.9"):
        measured(*sets, folds_gen=np.arange(40))
