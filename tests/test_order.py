"""Data order and draws are pure functions of (seed, step, shard)."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from ltbench import seeds
from ltbench.order import Order, largest_remainder, resampled, resampled_prior
from tests.toy import COUNTS, PIPELINES, Toy, draw

LABELS = np.repeat(np.arange(6), COUNTS)


def order(batch: int = 12, seed: int = 0, resample: Any = None) -> Order:
    return Order(LABELS, 6, seed=seed, batch=batch, resample=resample)


def test_an_epoch_visits_every_image_once_and_epochs_differ() -> None:
    size = len(LABELS)
    stream = np.concatenate([order(batch=7).indices(step) for step in range(1, 2 * size // 7 + 2)])
    first, second = stream[:size], stream[size : 2 * size]
    assert sorted(first) == sorted(second) == list(range(size))
    assert not np.array_equal(first, second)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=12), st.sampled_from([None, 0.1]))
def test_any_interruption_leaves_the_order_alone(stops: list[int], resample: float | None) -> None:
    """However often and wherever a run is cut, step k sees what an uninterrupted run shows it."""
    whole = order(resample=resample)
    uninterrupted = {step: whole.indices(step) for step in range(1, 61)}
    for stop in stops:
        assert np.array_equal(order(resample=resample).indices(stop), uninterrupted[stop])


def test_batch_size_cuts_one_stream() -> None:
    small = np.concatenate([order(batch=6).indices(step) for step in range(1, 9)])
    large = np.concatenate([order(batch=12).indices(step) for step in range(1, 5)])
    assert np.array_equal(small, large)


def test_resampling_holds_its_class_counts_exactly_every_epoch() -> None:
    size, made = len(LABELS), order(batch=1, resample=0.1)
    prior = 0.1 ** (np.arange(6) / 5)
    prior /= prior.sum()
    np.testing.assert_allclose(made.prior, prior, rtol=1e-12)
    for epoch in range(3):
        picked = [int(made.indices(epoch * size + k)[0]) for k in range(1, size + 1)]
        counts = np.bincount(LABELS[picked], minlength=6)
        assert np.abs(counts - prior * size).max() < 1
        assert counts.sum() == size


def test_resampling_is_uniform_with_replacement_inside_a_class() -> None:
    made = order(batch=len(LABELS), resample=1.0)
    seen = np.concatenate([made.indices(step) for step in range(1, 401)])
    tail = np.bincount(seen[LABELS[seen] == 5] - sum(COUNTS[:5]), minlength=3)
    assert stats.chisquare(tail).pvalue > 1e-3
    assert tail.sum() == pytest.approx(400 * len(LABELS) / 6, rel=0.05)


def test_resampling_ranks_by_count_not_by_label() -> None:
    np.testing.assert_allclose(resampled_prior(np.array([3, 9, 5]), 0.01), np.array([0.01, 1, 0.1]) / 1.11)


LAST = {"factor": 0.1, "remainder": "last"}


@pytest.mark.parametrize("resample", [0.1, LAST])
def test_a_class_without_images_is_never_drawn(resample: Any) -> None:
    """The others share the epoch as if it were not there; the released remainder goes to the rarest that has images."""
    prior, quota = resampled(np.array([20, 0, 10, 5, 0]), 35, resample)
    other, same = resampled(np.array([20, 10, 5]), 35, resample)
    assert prior.tolist() == [other[0], 0, other[1], other[2], 0]
    assert quota.tolist() == [same[0], 0, same[1], same[2], 0]
    labels = np.repeat([0, 2, 3], [20, 10, 5])
    made = Order(labels, 5, seed=0, batch=35, resample=resample)
    assert np.bincount(labels[made.indices(1)], minlength=5).tolist() == quota.tolist()


def test_the_released_remainder_goes_to_the_last_class() -> None:
    """methods.md 9.2: N = 100, C = 5, f = 0.1 gives floors 46 26 14 8 4 and a remainder of 2."""
    counts = np.array([40, 25, 17, 11, 7])
    prior, quota = resampled(counts, 100, LAST)
    assert quota.tolist() == [46, 26, 14, 8, 6]
    np.testing.assert_allclose(prior, quota / 100)
    exact = resampled(counts, 100, 0.1)[1]
    assert exact.sum() == 100
    assert (exact - [46, 26, 14, 8, 4]).tolist() == [0, 0, 1, 0, 1]  # of 46.37 26.08 14.66 8.25 4.64
    turned = resampled(counts[::-1], 100, LAST)[1]
    assert turned.tolist() == [6, 8, 14, 26, 46], "the last class is the rarest, wherever it stands"


@pytest.mark.parametrize(
    ("size", "classes", "extra"),
    [(275_288, 1000, 507), (21_549, 200, 103), (10_847, 100, 46), (12_406, 10, 6)],
)
def test_published_sets_have_the_published_remainders(size: int, classes: int, extra: int) -> None:
    counts = np.arange(classes, 0, -1)
    plain = np.floor(resampled_prior(counts, 0.1) * size).astype(int)
    quota = resampled(counts, size, LAST)[1]
    assert size - plain.sum() == extra
    assert (quota - plain).tolist() == [0] * (classes - 1) + [extra]


@given(st.integers(1, 60), st.integers(1, 30))
def test_whole_shares_leave_no_remainder(classes: int, each: int) -> None:
    quota = resampled(np.ones(classes, dtype=int), classes * each, {"factor": 1.0, "remainder": "last"})[1]
    assert quota.tolist() == [each] * classes


def test_an_epoch_holds_the_released_counts_and_continues_alike() -> None:
    size, made = len(LABELS), order(batch=1, resample=LAST)
    wanted = resampled(np.array(COUNTS), size, LAST)[1]
    for epoch in range(2):
        picked = [int(made.indices(epoch * size + k)[0]) for k in range(1, size + 1)]
        assert np.bincount(LABELS[picked], minlength=6).tolist() == wanted.tolist()
    assert np.array_equal(order(resample=LAST).indices(9), order(resample=LAST).indices(9))
    assert not np.array_equal(order(resample=LAST).indices(1), order(resample=0.1).indices(1))


@given(st.lists(st.floats(0.001, 1), min_size=1, max_size=30), st.integers(0, 500))
def test_largest_remainder_sums_and_stays_within_one(weights: list[float], total: int) -> None:
    shares = np.array(weights) / sum(weights)
    parts = largest_remainder(shares, total)
    assert parts.sum() == total
    assert np.abs(parts - shares * total).max() < 1


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_a_shard_is_drawn_alike_alone_and_among_others(pipeline: str) -> None:
    together, alone = draw(pipeline, 3, shards=3), _only(pipeline, 3, 1)
    for name in ("x0", "eps", "xt", "target", "t", "y", "y_in", "dropped", "index", "flipped"):
        assert torch.equal(getattr(together, name)[4:8], getattr(alone, name)), name
    assert torch.equal(together.rng.uniform()[4:8], alone.rng.uniform())
    assert together.dropout_seeds[1] == alone.dropout_seeds[0]


def _only(pipeline: str, step: int, shard: int):
    from ltbench.diffusion import process_for
    from ltbench.draws import Drawer, resident

    data = Toy().train()
    made = Order(data.labels, 6, seed=0, batch=12, resample=None)
    data = resident(torch.from_numpy(data.images), torch.from_numpy(data.labels))
    return Drawer(data, made, process_for(pipeline), 6, 0, 4, 0.3, "sample", True).draw(step, [shard])


@pytest.mark.parametrize("pipeline", PIPELINES)
def test_a_draw_is_what_it_says(pipeline: str) -> None:
    made = draw(pipeline, shards=40, local_batch=8)
    assert torch.equal(made.y_in, torch.where(made.dropped, 6, made.y))
    assert 0.2 < made.dropped.float().mean() < 0.4
    assert 0.4 < made.flipped.float().mean() < 0.6
    assert abs(made.eps.mean()) < 0.02
    assert abs(made.eps.std() - 1) < 0.02
    images = torch.from_numpy(Toy().train().images)[made.index]
    images = torch.where(made.flipped[:, None, None, None], images.flip(3), images)
    torch.testing.assert_close(made.x0, images / 127.5 - 1)
    assert stats.kstest(made.level.numpy(), "uniform").pvalue > 1e-3
    assert made.by_local_batch(made.y).shape == (40, 8)


def test_streams_are_apart_and_keys_matter() -> None:
    first = seeds.stream(0, "noise", 1, 0).random(4)
    for other in (
        seeds.stream(1, "noise", 1, 0),
        seeds.stream(0, "time", 1, 0),
        seeds.stream(0, "noise", 10),
    ):
        assert not np.array_equal(first, other.random(4))
    assert np.array_equal(first, seeds.stream(0, "noise", 1, 0).random(4))
    with pytest.raises(ValueError, match="unknown random stream 'nose'"):
        seeds.stream(0, "nose")
    assert sorted(seeds.permutation(3, "data", 0, n=100)) == list(range(100))


def test_batch_mode_drops_whole_local_batches() -> None:
    from ltbench.diffusion import process_for
    from ltbench.draws import Drawer, resident

    data = Toy().train()
    made = Order(data.labels, 6, seed=0, batch=80, resample=None)
    data = resident(torch.from_numpy(data.images), torch.from_numpy(data.labels))
    drawer = Drawer(data, made, process_for("ddpm"), 6, 0, 4, 0.4, "batch", False)
    dropped = dataclasses.replace(drawer).draw(1, range(20)).dropped.reshape(20, 4)
    assert (dropped.all(1) | ~dropped.any(1)).all()
    assert 2 <= int(dropped.all(1).sum()) <= 15
