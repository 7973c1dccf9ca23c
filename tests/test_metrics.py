"""Metrics against closed forms, brute force and other libraries."""

from __future__ import annotations

import math
import warnings
from itertools import pairwise

import numpy as np
import pytest
import scipy.linalg
from hypothesis import given, settings
from hypothesis import strategies as st

from ltbench.errors import LtbenchError
from ltbench.groups import groups
from ltbench.metrics.arrays import TooFew
from ltbench.metrics.frechet import frechet
from ltbench.metrics.kernel import kernel
from ltbench.metrics.naming import extractor_id, metric_name
from ltbench.metrics.neighbours import precision_recall

CNN = "fashion-cnn-v1@1a2b3c4d" + 56 * "0"


def normal(seed, n, d, scale=1.0, shift=0.0):
    return np.random.default_rng(seed).normal(size=(n, d)) * scale + shift


# groups


@pytest.mark.parametrize(
    ("classes", "sizes"),
    [
        (3, (1, 1, 1)),
        (10, (3, 4, 3)),
        (100, (33, 34, 33)),
        (200, (66, 68, 66)),
        (365, (121, 123, 121)),
        (1000, (333, 334, 333)),
    ],
)
def test_groups_are_thirds(classes, sizes):
    found = groups(list(range(classes, 0, -1)))
    assert tuple(len(found[g]) for g in ("head", "body", "tail")) == sizes
    assert [k for ids in found.values() for k in ids] == list(range(classes))


def test_groups_rank_by_count_and_break_ties_by_id():
    assert groups([5, 9, 5, 1, 9, 5]) == {"head": [1, 4], "body": [0, 2], "tail": [5, 3]}


@given(st.lists(st.integers(0, 5), min_size=3, max_size=40))
def test_groups_partition_the_classes_in_order_of_count(counts):
    found = groups(counts)
    order = [k for ids in found.values() for k in ids]
    assert sorted(order) == list(range(len(counts)))
    assert all(counts[a] > counts[b] or (counts[a] == counts[b] and a < b) for a, b in pairwise(order))


@pytest.mark.parametrize("counts", [[], [1, 2], [3, -1, 2]])
def test_groups_refuse_what_has_no_thirds(counts):
    with pytest.raises(LtbenchError):
        groups(counts)


# Fréchet distance


def by_sqrtm(a, b):
    s, t = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        root = scipy.linalg.sqrtm(s @ t)
    shift = a.mean(0) - b.mean(0)
    return float(shift @ shift + np.trace(s + t - 2 * np.real(root)))


@pytest.mark.parametrize(("n", "m"), [(300, 200), (40, 500), (500, 12), (24, 24), (25, 26), (5, 7)])
def test_frechet_agrees_with_sqrtm(n, m):
    a = normal(0, n, 24) @ normal(1, 24, 24)
    b = normal(2, m, 24, 1.7, 0.3) @ normal(3, 24, 24)
    # sqrtm of a singular product is itself only good to about the square root of eps
    assert frechet(a, b) == pytest.approx(by_sqrtm(a, b), rel=1e-9 if min(n, m) > 24 else 1e-5)


def test_frechet_in_one_dimension_and_with_commuting_covariances():
    a, b = normal(4, 200, 1, 2.0), normal(5, 300, 1, 0.5, 3.0)
    exact = (a.mean() - b.mean()) ** 2 + (a.std(ddof=1) - b.std(ddof=1)) ** 2
    assert frechet(a, b) == pytest.approx(exact, rel=1e-12)
    base = normal(6, 400, 6)
    base = (base - base.mean(0)) @ np.linalg.inv(scipy.linalg.sqrtm(np.cov(base, rowvar=False)).real)
    s, t, move = np.arange(1, 7), np.array([3, 1, 4, 1, 5, 9]), np.ones(6)
    turn = np.linalg.qr(normal(7, 6, 6))[0]
    assert frechet((base * s) @ turn, (base * t + move) @ turn) == pytest.approx(
        6 + ((s - t) ** 2).sum(), rel=1e-9
    )


def test_both_frechet_paths_agree_at_their_border():
    a, b = normal(8, 65, 64), normal(9, 500, 64, 1.3, 0.2)
    short = frechet(a, np.vstack([b]))
    padded = frechet(
        np.hstack([a, np.zeros((65, 8))]), np.hstack([b, np.zeros((500, 8))])
    )  # 65 < 72: low rank
    assert short == pytest.approx(padded, rel=1e-10)


@given(st.integers(2, 30), st.integers(2, 30), st.integers(1, 12), st.floats(0.01, 100), st.integers(0, 1000))
@settings(max_examples=60, deadline=None)
def test_frechet_is_a_symmetric_squared_distance(n, m, d, scale, seed):
    a, b = normal(seed, n, d), normal(seed + 1, m, d, 2.0, 1.0)
    size = (
        np.trace(np.atleast_2d(np.cov(a, rowvar=False)))
        + np.trace(np.atleast_2d(np.cov(b, rowvar=False)))
        + d
    )
    assert frechet(a, a) <= 1e-8 * size
    assert frechet(a, b) == pytest.approx(frechet(b, a), rel=1e-6, abs=1e-8 * size)
    assert frechet(a + 3, b + 3) == pytest.approx(frechet(a, b), rel=1e-6, abs=1e-8 * size)
    assert frechet(a * scale, b * scale) == pytest.approx(
        scale**2 * frechet(a, b), rel=1e-6, abs=1e-8 * scale**2 * size
    )
    assert frechet(a[::-1], b) == pytest.approx(frechet(a, b), rel=1e-6, abs=1e-8 * size)
    assert frechet(a.astype(np.float32), b.astype(np.float32)) == pytest.approx(
        frechet(a, b), rel=1e-4, abs=1e-5 * size
    )


# kernel distance


def by_double_loop(a, b):
    def k(x, y):
        return (float(np.dot(x, y)) / len(x) + 1) ** 3

    aa = [k(x, y) for i, x in enumerate(a) for j, y in enumerate(a) if i != j]
    bb = [k(x, y) for i, x in enumerate(b) for j, y in enumerate(b) if i != j]
    ab = [k(x, y) for x in a for y in b]
    return math.fsum(aa) / len(aa) + math.fsum(bb) / len(bb) - 2 * math.fsum(ab) / len(ab)


@pytest.mark.parametrize(("n", "m"), [(2, 2), (11, 7), (30, 45)])
def test_kernel_is_the_double_loop_whatever_the_block(n, m):
    a, b = normal(0, n, 5), normal(1, m, 5, 1.5, 0.5)
    expected = by_double_loop(a, b)
    for block in (1, 3, 16, 4096):
        assert kernel(a, b, block) == pytest.approx(expected, rel=1e-10)


def test_kernel_is_unbiased():
    draws = [kernel(normal(2 * i, 40, 8), normal(2 * i + 1, 25, 8)) for i in range(200)]
    assert abs(np.mean(draws)) < 3 * np.std(draws, ddof=1) / math.sqrt(len(draws))
    assert min(draws) < 0 < max(draws)


# precision and recall


def by_loops(gen, ref, k):
    def radius(points, i):
        return sorted(((points[i] - other) ** 2).sum() for j, other in enumerate(points) if j != i)[k - 1]

    def share(points, centres):
        radii = [radius(centres, j) for j in range(len(centres))]
        return np.mean(
            [any(((p - c) ** 2).sum() <= r for c, r in zip(centres, radii, strict=True)) for p in points]
        )

    return share(gen, ref), share(ref, gen)


@pytest.mark.parametrize("k", [1, 3, 5])
def test_precision_recall_is_brute_force_also_with_ties(k):
    for seed in range(6):
        gen = (
            np.random.default_rng(seed).integers(0, 4, (23, 3)).astype(float)
        )  # a grid: many equal distances
        ref = np.random.default_rng(seed + 50).integers(1, 6, (31, 3)).astype(float)
        assert precision_recall(gen, ref, k) == by_loops(gen, ref, k)
        for block in (5, 64):
            assert precision_recall(gen, ref, k, block) == by_loops(gen, ref, k)
            moved = precision_recall(
                gen * 0.1 + 0.7, ref * 0.1 + 0.7, k, block
            )  # the ties are now only equal up to rounding
            assert moved == by_loops(gen, ref, k)


def test_precision_recall_agrees_with_prdc():
    from prdc import compute_prdc

    gen, ref = normal(0, 120, 16, 0.8), normal(1, 90, 16, 1.0, 0.4)
    other = compute_prdc(real_features=ref, fake_features=gen, nearest_k=3)
    assert precision_recall(gen, ref, 3) == pytest.approx((other["precision"], other["recall"]), abs=1e-12)


def test_precision_recall_by_hand_in_one_dimension():
    ref = np.array([[0.0], [1.0], [2.0], [10.0]])  # radii at k = 1: 1, 1, 1, 8
    gen = np.array([[-1.0], [-1.5], [5.0], [19.0]])  # radii: 0.5, 0.5, 6, 14
    # -1 touches 0's ball, -1.5 is in none, 5 is in 10's ball (2..18), 19 is in none
    # 0, 1, 2, 10 are all inside 5's ball (-1..11)
    assert precision_recall(gen, ref, 1) == (0.5, 1.0)
    assert precision_recall(ref, gen, 1) == (1.0, 0.5)


def test_a_collapsed_generator_is_precise_and_recalls_nothing():
    ref = normal(0, 400, 8)
    collapsed = ref[:1] + normal(1, 200, 8, 1e-3)
    precision, recall = precision_recall(collapsed, ref)
    assert precision > 0.95
    assert recall < 0.02


def test_equal_and_distant_sets():
    a = normal(0, 50, 4)
    assert precision_recall(a, a) == (1.0, 1.0)
    assert precision_recall(a, a + 100) == (0.0, 0.0)
    copies = np.repeat(a, 5, axis=0)  # every radius at k = 3 is 0: only exact copies are inside
    assert precision_recall(copies, np.vstack([copies, copies + 50])) == (1.0, 0.5)


@pytest.mark.parametrize("metric", [frechet, kernel, precision_recall])
def test_bad_features_are_refused_by_name(metric):
    good = normal(0, 20, 4)
    with pytest.raises(TooFew, match="needs"):
        metric(good[:1], good)
    with pytest.raises(ValueError, match="4 and 3 dimensions"):
        metric(good, good[:, :3])
    bad = good.copy()
    bad[3, 1] = np.nan
    with pytest.raises(ValueError, match="1 images of the second set have NaN"):
        metric(good, bad)


# names


def test_reserved_names_belong_to_one_file_of_weights():
    inception = "inception-2015-12-05@6726825d"
    for digits in ("", 56 * "a"):
        names = [metric_name(k, inception + digits) for k in ("FD", "sFD", "CS", "KD", "recall")]
        assert names == ["FID", "sFID", "IS", "KID", "recall"]
    for pretender in (
        CNN,
        "inception-2015-12-05@00000000",
        "fashion-cnn-v1@6726825d",
        "x@inception-2015-12-05@0726825d",
    ):
        name, _, sha256 = pretender.rpartition("@")
        for kind in ("FD", "sFD", "CS", "KD", "precision", "recall"):
            assert metric_name(kind, pretender) == f"{kind}[{name}@{sha256[:8]}]"
    assert extractor_id({"name": "x", "sha256": "1a2b3c4d5e"}) == "x@1a2b3c4d"
    with pytest.raises(ValueError, match="no metric"):
        metric_name("FID", CNN)
    for nameless in ("fashion-cnn-v1", "x@abc", "@1a2b3c4d", "x@1A2B3C4D"):
        with pytest.raises(ValueError, match="8 hex"):
            metric_name("FD", nameless)
