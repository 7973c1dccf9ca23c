"""Kernel distance with its error and subsets, and the Inception score: closed forms, brute force, replicates."""

from __future__ import annotations

import numpy as np
import pytest

from ltbench.metrics import inception_score as cs
from ltbench.metrics import kernel as kd
from ltbench.metrics.arrays import TooFew
from ltbench.metrics.inception_score import ADM, ISRule, inception_score
from ltbench.metrics.sets import folds_of


def normal(seed, n, d, scale=1.0, shift=0.0):
    return np.random.default_rng(seed).normal(size=(n, d)) * scale + shift


# kernel distance


def by_matrix(a, b):
    def k(x, y):
        return (x @ y.T / x.shape[1] + 1) ** 3

    def within(x):
        return k(x, x)[~np.eye(len(x), dtype=bool)].mean()

    return within(a) + within(b) - 2 * k(a, b).mean()


def test_the_error_is_the_jackknife_of_values_without_one_image():
    a, b = normal(0, 12, 4), normal(1, 9, 4, 1.4)
    found = kd.estimate(a, b, block=5)
    variance = 0.0
    for x, left in (
        (a, [by_matrix(np.delete(a, i, 0), b) for i in range(12)]),
        (b, [by_matrix(a, np.delete(b, i, 0)) for i in range(9)]),
    ):
        variance += (len(x) - 1) * np.var(left)
    assert found.value == pytest.approx(by_matrix(a, b), rel=1e-10)
    assert found.se == pytest.approx(np.sqrt(variance), rel=1e-10)
    assert (found.corrected, found.folds) == (None, None)
    assert kd.estimate(a[:2], b).se is None


@pytest.mark.parametrize("block", [1, 7, 4096])
def test_fold_values_are_those_of_the_images_left(block):
    a, b = normal(0, 33, 4), normal(1, 41, 4, 1.4)
    fa, fb = folds_of(np.arange(33) % 3), folds_of(np.arange(41) % 4)
    found = kd.estimate(a, b, fa, fb, block=block)
    assert found.folds == pytest.approx([by_matrix(a[fa != f], b[fb != f]) for f in range(10)], rel=1e-9)
    assert found.value == pytest.approx(by_matrix(a, b), rel=1e-9)
    assert kd.estimate(a, b, np.zeros(33, int), fb).folds is None  # nine folds are empty


def test_the_kernel_error_matches_replicates_where_sets_differ_and_errs_upward_where_not():
    def errors(shift):
        found = [
            kd.estimate(normal(2 * i, 150, 8), normal(2 * i + 1, 100, 8, 1.0, shift)) for i in range(200)
        ]
        return np.mean([one.se for one in found]), np.std([one.value for one in found], ddof=1)

    se, spread = errors(0.8)
    assert se == pytest.approx(spread, rel=0.3)
    se, spread = errors(0.0)
    assert 0.9 * spread < se < 1.6 * spread


def test_subsets_of_whole_sets_are_the_full_estimator():
    a, b = normal(0, 40, 4), normal(1, 40, 4, 1.4)
    assert kd.kernel_subsets(a, b, 3, size=40).value == pytest.approx(by_matrix(a, b), rel=1e-9)
    assert [kd.subset_size(*sizes) for sizes in ((50_000, 50_000), (500, 9000), (9000, 301))] == [
        1000,
        250,
        150,
    ]
    assert kd.kernel_subsets(a, b, 5) == kd.kernel_subsets(a, b, 5)
    assert kd.kernel_subsets(a, b, 5, seed=1) != kd.kernel_subsets(a, b, 5)
    with pytest.raises(TooFew, match="41"):
        kd.kernel_subsets(a, b, size=41)
    with pytest.raises(TooFew):
        kd.kernel_subsets(a[:3], b)


# Inception score


def test_inception_score_closed_forms():
    assert inception_score(np.zeros((100, 7))) == pytest.approx(1)
    certain = 1e4 * np.eye(5)[np.arange(200) % 5]
    assert inception_score(certain, ISRule(splits=1)) == pytest.approx(5)
    assert inception_score(certain[np.zeros(200, int)]) == pytest.approx(1)
    # two classes, each certain with p: log score = log 2 - entropy
    p = np.array([0.9, 0.1])
    logits = np.log(np.where((np.arange(40) % 2)[:, None] == 0, p, p[::-1]))
    entropy = -(p * np.log(p)).sum()
    assert inception_score(logits, ISRule(splits=1)) == pytest.approx(2 * np.exp(-entropy))
    assert inception_score(logits + 300, ISRule(splits=1)) == pytest.approx(2 * np.exp(-entropy))


def test_sorted_and_shuffled_labels_give_the_same_score():
    labels = np.arange(600) % 6
    logits = 3 * np.eye(6)[labels] + normal(0, 600, 6)
    order = np.argsort(labels, kind="stable")
    mixed, by_class = (
        inception_score(logits, labels=labels),
        inception_score(logits[order], labels=labels[order]),
    )
    assert mixed == by_class
    assert inception_score(logits[order]) == pytest.approx(mixed, rel=0.05)  # the shuffle alone
    unshuffled = np.mean([inception_score(part, ISRule(splits=1)) for part in np.split(logits[order], 10)])
    assert unshuffled < 0.7 * mixed  # what a sorted file gives where nobody shuffles


def test_chunks_are_adms_or_torch_fidelitys():
    assert ADM.bounds(12_000) == [(0, 5000), (5000, 10_000), (10_000, 12_000)]
    assert ISRule(splits=3).bounds(10) == [(0, 3), (3, 6), (6, 10)]
    assert ISRule().bounds(50_000) == ADM.bounds(50_000)
    logits = normal(0, 230, 5, 2.0)
    order = np.random.RandomState(2020).permutation(230)
    by_hand = np.mean([inception_score(logits[order[i : i + 100]], ISRule(splits=1)) for i in (0, 100, 200)])
    assert inception_score(logits, ISRule(splits=None, chunk=100)) == pytest.approx(by_hand)
    for wrong in ({"splits": None}, {"chunk": 10}, {"splits": 0}):
        with pytest.raises(ValueError, match="either splits or chunk"):
            ISRule(**wrong)


def test_inception_score_folds_and_error():
    labels = np.arange(300) % 5
    folds = folds_of(labels)
    found = cs.estimate(normal(0, 300, 5, 2.0), ISRule(splits=2), labels, folds)
    logits = normal(0, 300, 5, 2.0)
    order = cs._shuffled(300, ISRule(splits=2), labels)
    left = [
        inception_score(logits[order][folds[order] != 3][rows], ISRule(splits=1))
        for rows in (slice(0, 135), slice(135, 270))
    ]
    assert found.folds is not None
    assert found.folds[3] == pytest.approx(np.mean(left))
    draws = [cs.estimate(normal(i, 300, 5, 2.0), ISRule(splits=2), labels, folds) for i in range(100)]
    assert np.mean([one.se for one in draws]) == pytest.approx(
        np.std([one.value for one in draws], ddof=1), rel=0.3
    )
    truth = inception_score(normal(999, 200_000, 5, 2.0), ISRule(splits=1))
    bias = np.mean([one.value for one in draws]) - truth
    assert abs(np.mean([one.corrected for one in draws]) - truth) < 0.5 * abs(bias)


def test_too_few_images_and_bad_logits_are_refused():
    with pytest.raises(TooFew, match="10 splits"):
        inception_score(np.zeros((9, 3)))
    with pytest.raises(TooFew):
        inception_score(np.zeros((0, 3)), ADM)
    with pytest.raises(ValueError, match="finite"):
        inception_score(np.full((20, 3), np.nan))
    short = cs.estimate(np.zeros((10, 3)), ISRule(), np.zeros(10), folds_of(np.zeros(10)))
    assert short.value == pytest.approx(1)
    assert short.se is None
