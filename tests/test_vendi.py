"""Vendi score against closed forms and scipy's eigenvalues."""

from __future__ import annotations

import math

import numpy as np
import pytest
import scipy.linalg

from ltbench.metrics.arrays import TooFew
from ltbench.metrics.vendi import real_bandwidth, vendi, vendi_ratio


def normal(seed, n, d, scale=1.0, shift=0.0):
    return np.random.default_rng(seed).normal(size=(n, d)) * scale + shift


@pytest.mark.parametrize("kernel", ["cosine", "rbf"])
def test_equal_images_are_one_and_strangers_are_many(kernel):
    bandwidth = {} if kernel == "cosine" else {"bandwidth": 1e-3}
    for n, d in ((1, 7), (5, 7), (7, 7), (40, 7)):
        assert vendi(np.repeat(normal(0, 1, d), n, axis=0), kernel, **bandwidth) == pytest.approx(1, abs=1e-9)
        strangers = np.eye(min(n, d), d)
        assert vendi(strangers, kernel, **bandwidth) == pytest.approx(min(n, d), rel=1e-12)
    # three strangers with shares 1/2, 1/4, 1/4: exp of 1.5 log 2
    unequal = np.eye(3, 7)[[0, 0, 1, 2]]
    assert vendi(unequal, kernel, **bandwidth) == pytest.approx(2**1.5, rel=1e-12)


def test_two_images_in_closed_form():
    angle = 0.7
    pair = np.array([[1.0, 0.0], [3 * math.cos(angle), 3 * math.sin(angle)]])

    def score(k):
        p, q = (1 + k) / 2, (1 - k) / 2
        return math.exp(-p * math.log(p) - q * math.log(q))

    assert vendi(pair) == pytest.approx(score(math.cos(angle)), rel=1e-12)
    gap = ((pair[0] - pair[1]) ** 2).sum()
    assert vendi(pair, "rbf", 1.3) == pytest.approx(score(math.exp(-gap / (2 * 1.3**2))), rel=1e-12)
    assert vendi(pair, "rbf") == pytest.approx(
        score(math.exp(-2)), rel=1e-12
    )  # its own bandwidth: half the distance


@pytest.mark.parametrize(("n", "d"), [(30, 8), (8, 30), (12, 12)])
def test_agrees_with_scipys_general_eigenvalues(n, d):
    x = normal(0, n, d, 1.0, 0.5)
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    width = real_bandwidth(x)
    gaps = ((x[:, None] - x[None]) ** 2).sum(2)
    assert width == pytest.approx(np.median(np.sqrt(gaps[np.triu_indices(n, 1)])) / 2, rel=1e-12)
    for kernel, gram in (("cosine", unit @ unit.T), ("rbf", np.exp(-gaps / (2 * width**2)))):
        p = scipy.linalg.eigvals(gram / n).real
        p = p[p > 1e-12]
        assert vendi(x, kernel) == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-8)


def test_the_ratio_is_taken_per_class_at_equal_n():
    gen, gy = normal(0, 50, 6, 0.5), np.repeat([3, 1], [20, 30])
    real, ry = normal(1, 90, 6), np.repeat([1, 3], [25, 65])
    found = vendi_ratio(gen, real, gen_labels=gy, real_labels=ry)
    assert [(one.label, one.n) for one in found.classes] == [(1, 25), (3, 20)]
    a, b = gen[gy == 1][:25], real[ry == 1][:25]
    width = real_bandwidth(b)
    assert found.classes[0].ratio == vendi(a, "rbf", width) / vendi(b, "rbf", width)
    assert found.estimate.value == pytest.approx(np.mean([one.ratio for one in found.classes]))
    kept = (np.arange(25) + 1) % 10 != 4  # folds go by rank and label
    without = vendi(a[kept], "rbf", width) / vendi(b[kept], "rbf", width)
    assert found.classes[0].folds is not None
    assert found.classes[0].folds[4] == without
    assert found.estimate.folds is not None
    assert found.estimate.folds[4] == pytest.approx(
        np.mean([one.folds[4] for one in found.classes if one.folds])
    )
    assert vendi_ratio(gen, real, gen_labels=gy, real_labels=ry, most=10).classes[1].n == 10
    cosine = vendi_ratio(gen, real, gen_labels=gy, real_labels=ry, kernel="cosine")
    assert cosine.classes[0].ratio == vendi(a) / vendi(b)


def test_a_set_against_itself_is_one_and_the_scale_of_features_does_not_matter():
    x, labels = normal(0, 80, 5), np.arange(80) % 4
    same = vendi_ratio(x, x, gen_labels=labels, real_labels=labels)
    assert same.estimate.value == 1
    assert same.estimate.se == 0
    y = normal(1, 80, 5, 0.4)
    one, two = (
        vendi_ratio(s * y, s * x, gen_labels=labels, real_labels=labels).estimate.value for s in (1.0, 37.0)
    )
    assert one == pytest.approx(two, rel=1e-9)
    assert one < 0.7


def test_standard_errors_are_near_the_spread_of_fresh_draws():
    labels = np.arange(120) % 2
    found = [
        vendi_ratio(
            normal(2 * i, 120, 4, 0.8), normal(2 * i + 1, 120, 4), gen_labels=labels, real_labels=labels
        )
        for i in range(30)
    ]
    spread = np.std([one.estimate.value for one in found], ddof=1)
    said = np.mean([one.estimate.se for one in found])
    assert 0.6 * spread < said < 2 * spread


def test_small_classes_and_bad_input():
    x, labels = normal(0, 40, 5), np.repeat([0, 1], [37, 3])
    found = vendi_ratio(x, x, gen_labels=labels, real_labels=labels)
    assert found.estimate.se is not None  # 3 images, 2 remain
    labels = np.repeat([0, 1], [38, 2])
    found = vendi_ratio(x, x, gen_labels=labels, real_labels=labels)
    assert found.estimate.se is None
    assert "under 2 images remain of class 1" in found.estimate.estimator
    with pytest.raises(TooFew, match="class 1 has 1"):
        vendi_ratio(x, x, gen_labels=np.repeat([0, 1], [39, 1]), real_labels=labels)
    with pytest.raises(TooFew, match="class 1 has 0"):
        vendi_ratio(x, x, gen_labels=np.repeat([0, 2], [20, 20]), real_labels=labels)
    with pytest.raises(ValueError, match="no direction"):
        vendi(np.zeros((3, 2)))
    with pytest.raises(ValueError, match="'cosine' or 'rbf'"):
        vendi(x, "linear")  # pyright: ignore[reportArgumentType]
    with pytest.raises(ValueError, match="above 0"):
        vendi(x, "rbf", 0.0)
    with pytest.raises(ValueError, match="with labels of shape"):
        vendi_ratio(x, x, gen_labels=labels[:3], real_labels=labels)
