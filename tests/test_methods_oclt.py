"""OCLT against its formulas written out pair by pair, in the paper's variance-exploding form."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from ltbench.methods import Draw, Objective
from tests.toy import COUNTS, PIPELINES, draw, dropping, method, network, task

both = pytest.mark.parametrize("pipeline", PIPELINES)


def noised(pipeline: str, t: float, *, shards: int = 2, g: int = 4, spread: float = 0.02) -> Draw:
    """A draw of nearly equal images at one time, so that borrowing is likely."""
    made = draw(pipeline, shards=shards, local_batch=g)
    process = task(pipeline).process
    clock = torch.full_like(made.t, int(t) if pipeline == "ddpm" else t)
    x0 = spread * made.x0
    return dataclasses.replace(
        made,
        x0=x0,
        t=clock,
        level=process.level(clock).float(),
        xt=process.diffuse(x0, made.eps, clock),
        target=process.target(x0, made.eps, clock),
    )


def targets(oclt: Any, made: Draw) -> tuple[Tensor, Tensor]:
    """The target that one loss regresses on, and (B,) whether each image moved."""
    pipeline = oclt.task.pipeline
    net = network(pipeline)
    objective = Objective(net, oclt)
    terms = objective(made)
    target = oclt._target(dataclasses.replace(made, rng=draw(pipeline, shards=2).rng))
    pred = net(made.xt, made.t, made.y_in)[0]
    torch.testing.assert_close(terms["denoise"], (pred - target).square().mean((1, 2, 3)))
    return target, objective.watched["watch/moved"].bool()


MIDDLE = {"sit": 0.3, "ddpm": 700}
CLEAN = {"sit": 0.999, "ddpm": 0}


@both
@pytest.mark.parametrize("level", ["middle", "clean"])
def test_weights_are_the_posterior_over_the_batch_pair_by_pair(pipeline: str, level: str) -> None:
    made = noised(pipeline, {"middle": MIDDLE, "clean": CLEAN}[level][pipeline])
    oclt = method("oclt", task(pipeline))
    found = oclt.weights(made, made.by_local_batch(made.x0), made.by_local_batch(made.y))
    process = oclt.task.process
    signal, noise = process.signal(made.t).double(), process.noise(made.t).double()
    for group in range(2):
        for i in range(4):
            row = group * 4 + i
            sigma = noise[row] / signal[row]  # the paper's z = x_t / signal, with noise sigma
            z = made.xt[row].double() / signal[row]
            logits = torch.stack(
                [-(z - made.x0[group * 4 + j].double()).square().sum() / (2 * sigma**2) for j in range(4)]
            )
            torch.testing.assert_close(found[group, i], logits.softmax(0), rtol=1e-6, atol=1e-9)


@both
def test_the_weighted_variant_multiplies_by_a_power_of_frequency(pipeline: str) -> None:
    made = noised(pipeline, MIDDLE[pipeline])
    images, labels = made.by_local_batch(made.x0), made.by_local_batch(made.y)
    plain = method("oclt", task(pipeline)).weights(made, images, labels)
    weighted = method("oclt", task(pipeline), direction="full", tr_tau=0.7).weights(made, images, labels)
    p = (torch.tensor(COUNTS).double() / sum(COUNTS))[labels]
    # the released form: (p_i p_j)^tau, normalised over j
    expected = plain * (p[:, :, None] * p[:, None, :]) ** 0.7
    torch.testing.assert_close(weighted, expected / expected.sum(2, keepdim=True))


@both
def test_a_batch_of_one_and_clean_images_keep_their_target_bit_for_bit(pipeline: str) -> None:
    alone = noised(pipeline, MIDDLE[pipeline], shards=3, g=1)
    oclt = method("oclt", task(pipeline), direction="full")
    assert torch.equal(oclt._target(alone), alone.target)
    clean = draw(pipeline)
    t = torch.full_like(clean.t, CLEAN[pipeline])
    process = oclt.task.process
    xt, target = process.diffuse(clean.x0, clean.eps, t), process.target(clean.x0, clean.eps, t)
    clean = dataclasses.replace(clean, t=t, xt=xt, target=target, level=process.level(t).float())
    assert torch.equal(oclt._target(clean), clean.target)


@pytest.mark.parametrize("u", [1 - 2.0**-24, 0.5, 0.0])
def test_the_ends_of_the_flow_are_finite(u: float) -> None:
    made = noised("sit", u)
    target, _ = targets(method("oclt", task("sit"), direction="full"), made)
    assert target.isfinite().all()


@both
def test_the_new_target_is_that_of_the_borrowed_image(pipeline: str) -> None:
    made = noised(pipeline, MIDDLE[pipeline])
    oclt = method("oclt", task(pipeline), direction="full")
    target, moved = targets(oclt, made)
    assert moved.any()
    process = oclt.task.process
    signal, noise = process.signal(made.t), process.noise(made.t)
    for i in range(8):
        candidates = []
        for j in range(i // 4 * 4, i // 4 * 4 + 4):
            if pipeline == "sit":
                candidates.append((made.x0[j] - made.xt[i]) / (1 - made.t[i]))
            else:
                candidates.append((made.xt[i] - signal[i] * made.x0[j]) / noise[i])
        gaps = torch.stack([(target[i] - c).abs().max() for c in candidates])
        assert gaps.min() < 2e-4
        assert (int(gaps.argmin()) != i % 4) == bool(moved[i])


@both
def test_directions_gate_by_class_frequency(pipeline: str) -> None:
    moved: dict[str, list[tuple[int, int]]] = {"t2h": [], "h2t": [], "full": []}
    for step in range(1, 30):
        base = noised(pipeline, MIDDLE[pipeline])
        for direction, seen in moved.items():
            made = dataclasses.replace(base, rng=draw(pipeline, step).rng)
            oclt = method("oclt", task(pipeline), direction=direction)
            target = oclt._target(made)
            for i, j in _sources(oclt, made, target):
                seen.append((int(made.y[i]), int(made.y[j])))
    # classes are sorted by count, so a smaller id is more frequent
    assert moved["t2h"]
    assert all(there <= here for here, there in moved["t2h"])
    assert moved["h2t"]
    assert all(there >= here for here, there in moved["h2t"])
    assert {there < here for here, there in moved["full"] if there != here} == {True, False}
    assert len(moved["full"]) >= max(len(moved["t2h"]), len(moved["h2t"]))


def _sources(oclt: Any, made: Draw, target: Tensor) -> list[tuple[int, int]]:
    """(image, the image it was sent to) of those that moved."""
    found = []
    for i in range(len(made.y)):
        if torch.equal(target[i], made.target[i]):
            continue
        group = range(i // 4 * 4, i // 4 * 4 + 4)
        towards = [oclt.task.process.target_toward(made.x0[j].expand_as(made.x0), made)[i] for j in group]
        found.append(
            (i, next(j for j, new in zip(group, towards, strict=True) if torch.equal(new, target[i])))
        )
    return found


@both
def test_with_balanced_counts_t2h_is_full(pipeline: str) -> None:
    made = noised(pipeline, MIDDLE[pipeline])
    even = task(pipeline, class_counts=torch.full((6,), 7))
    for step in range(1, 6):
        rngs = [draw(pipeline, step).rng for _ in range(3)]
        found = [
            method("oclt", even, direction=direction)._target(dataclasses.replace(made, rng=rng))
            for direction, rng in zip(("t2h", "h2t", "full"), rngs, strict=True)
        ]
        assert torch.equal(found[0], found[1])
        assert torch.equal(found[0], found[2])


@both
def test_the_mean_target_over_draws_is_that_of_the_posterior_mean(pipeline: str) -> None:
    made = noised(pipeline, MIDDLE[pipeline])
    oclt = method("oclt", task(pipeline), direction="full")
    repeats = 600
    total = torch.zeros_like(made.target).double()
    for step in range(1, repeats + 1):
        total += oclt._target(dataclasses.replace(made, rng=draw(pipeline, step).rng))
    images, labels = made.by_local_batch(made.x0), made.by_local_batch(made.y)
    w = oclt.weights(made, images, labels)
    mean = (w @ images.flatten(2).double()).view_as(made.x0).float()
    expected = oclt.task.process.target_toward(mean, made)
    spread = (total / repeats - expected).abs().mean()
    moved = (expected - made.target).abs().mean()
    assert spread < 0.15 * moved


@both
def test_the_cut_off_stops_transfer_at_and_above_a_level(pipeline: str) -> None:
    made = noised(pipeline, MIDDLE[pipeline])
    level = float(made.level[0])
    for cut, expected in ((level, False), (level + 0.01, True)):
        oclt = method("oclt", task(pipeline), direction="full", cut=cut)
        moved = [
            not torch.equal(
                oclt._target(dataclasses.replace(made, rng=draw(pipeline, step).rng)), made.target
            )
            for step in range(1, 6)
        ]
        assert any(moved) == expected


@both
def test_dropped_images_move_too_and_keep_the_null_label(pipeline: str) -> None:
    base = noised(pipeline, MIDDLE[pipeline])
    made = dropping(base, torch.ones_like(base.dropped))
    oclt = method("oclt", task(pipeline), direction="full")
    target, moved = targets(oclt, made)  # compares with the network under y_in
    assert moved.any()
    assert not torch.equal(target, made.target)


@both
def test_a_reference_batch_offers_itself_and_the_own_image_only(pipeline: str) -> None:
    made = noised(pipeline, MIDDLE[pipeline])
    assert made.reference is not None
    reference = made.reference._replace(x0=0.02 * made.reference.x0)
    made = dataclasses.replace(made, reference=reference)
    oclt = method("oclt", task(pipeline), direction="full", reference=True)
    assert oclt.needs_reference
    pool = torch.cat([made.by_local_batch(made.x0), made.by_local_batch(reference.x0)], 1)
    labels = torch.cat([made.by_local_batch(made.y), made.by_local_batch(reference.y)], 1)
    w = oclt.weights(made, pool, labels)
    assert w.shape == (2, 4, 8)
    torch.testing.assert_close(w.sum(2), torch.ones(2, 4).double())
    eye = torch.eye(4, dtype=torch.bool)
    assert (w[:, :, :4][:, ~eye] == 0).all()
    assert (w[:, :, 4:] > 0).any()
    seen = set()
    for step in range(1, 20):
        target = oclt._target(dataclasses.replace(made, rng=draw(pipeline, step).rng))
        for i in range(8):
            group = i // 4 * 4
            options = [made.x0[i], *reference.x0[group : group + 4]]
            new = [oclt.task.process.target_toward(x.expand_as(made.x0), made)[i] for x in options]
            seen.add(next(k for k, value in enumerate(new) if torch.equal(value, target[i])))
    assert seen == {0, 1, 2, 3, 4}


@both
def test_well_separated_images_keep_themselves_until_the_noise_is_high(pipeline: str) -> None:
    """sigma must exceed about distance / sqrt(2 ln B) before anything moves."""
    oclt = method("oclt", task(pipeline), direction="full")
    low, high = {"sit": (0.9, 0.02), "ddpm": (100, 999)}[pipeline]
    for t, floor, ceiling in ((low, 0.999, 1.0), (high, 0.0, 0.9)):
        made = noised(pipeline, t, spread=1.0)
        own = oclt.weights(made, made.by_local_batch(made.x0), made.by_local_batch(made.y)).diagonal(0, 1, 2)
        assert floor <= own.min()
        assert own.mean() <= ceiling + 1e-12


def test_distances_never_build_a_tensor_of_pairs_of_images() -> None:
    made = draw("sit", shards=1, local_batch=64)
    oclt = method("oclt", task("sit"), direction="full")
    sizes: list[int] = []

    class Largest(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
            out = func(*args, **(kwargs or {}))
            sizes.extend(
                x.numel() for x in (out if isinstance(out, tuple) else (out,)) if isinstance(x, Tensor)
            )
            return out

    with Largest():
        oclt._target(made)
    assert max(sizes) <= 64 * 256
    assert math.prod(made.x0.shape) == 64 * 256
