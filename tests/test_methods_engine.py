"""What the engine owes every method: its numbers, its second batch, its log, and exactness across interruptions."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from ltbench import plugins
from ltbench.curve import Curve
from ltbench.draws import Drawer, resident
from ltbench.errors import UsageError
from ltbench.methods import Draw, Method, Network, Objective, Rng, Task, load_method, mean_square
from ltbench.parts import build_parts, seeded
from ltbench.trainer import Trainer
from tests.toy import COUNTS, PIPELINES, Toy, draw, encoder, network, parts, settings, small, task, variants

both = pytest.mark.parametrize("pipeline", PIPELINES)
CPU = torch.device("cpu")
NAMES = [name for name, plugin in plugins.find("methods").items() if plugin.problem is None]


every = pytest.mark.parametrize(("name", "pipeline", "options"), variants())


# --- exactness ------------------------------------------------------------------------------------------------------


@every
def test_cut_and_continued_equals_uninterrupted_bit_for_bit(
    name: str, pipeline: str, options: dict[str, Any]
) -> None:
    """Weights, projectors, optimiser, EMA and every logged number, from a cut inside an open log window."""

    def fresh() -> Trainer:
        return Trainer(parts(pipeline, {**small(name, pipeline), **options}, dropout=0.1), 12, 3)

    whole, before, after = fresh(), fresh(), fresh()
    for _ in range(5):
        whole.advance()
    for _ in range(2):
        before.advance()
    tensors, state = before.state()
    after.load({file: {k: v.clone() for k, v in inside.items()} for file, inside in tensors.items()}, state)
    while after.step < 5:
        after.advance()
    (left, one), (right, two) = whole.state(), after.state()
    assert one == two
    for file, inside in left.items():
        assert inside.keys() == right[file].keys()
        assert [k for k in inside if not torch.equal(inside[k], right[file][k])] == []


@every
@pytest.mark.parametrize("case", ["one class", "absent classes"])
def test_odd_batches_have_finite_terms_and_gradients(
    name: str, pipeline: str, options: dict[str, Any], case: str
) -> None:
    made = draw(pipeline)
    counts = torch.tensor(COUNTS)
    if case == "one class":
        y, counts = torch.full_like(made.y, 4), torch.tensor([0, 0, 0, 0, 9, 0])
    else:
        y, counts = made.y % 2 * 3, torch.tensor([40, 0, 0, 8, 0, 0])
    assert made.reference is not None
    made = dataclasses.replace(
        made,
        y=y,
        y_in=torch.where(made.dropped, 6, y),
        reference=made.reference._replace(y=y),
    )
    the_task = task(pipeline, class_counts=counts, class_prior=counts / counts.sum())
    arguments = {**small(name, pipeline), **options}
    arguments.pop("name")
    objective = Objective(network(pipeline), seeded(1, lambda: load_method(name)(the_task, **arguments)))
    sum(term.mean() for term in objective(made).values()).backward()
    silent = [n for n, p in objective.named_parameters() if p.requires_grad and p.grad is None]
    assert not silent
    assert all(p.grad.isfinite().all() for p in objective.parameters() if p.grad is not None)


@pytest.mark.parametrize("name", NAMES)
def test_every_preset_builds_on_a_pipeline_or_names_the_taps_there_are(name: str) -> None:
    presets = plugins.get("methods", name).presets or {}
    check = presets.get("check", {})
    for label, preset in presets.items():
        refused = []
        for pipeline in PIPELINES:
            made = {**presets.get(pipeline, {}), **preset, **check}
            try:
                load_method(name)(task(pipeline), **made)
            except UsageError as error:
                refused.append(error.message)
        assert all("has no tap" in message for message in refused)
        # block8 is for networks deeper than those of the tests
        assert len(refused) < 2 or preset.get("tap") == "block8", label


# --- randomness -----------------------------------------------------------------------------------------------------


def rng(step: int, shards: list[int], g: int = 4) -> Rng:
    return Rng(0, step, shards, g, CPU)


def test_permutations_stay_inside_local_batches_and_belong_to_them() -> None:
    rows = rng(1, [0, 1, 2]).permutation()
    for k in range(3):
        assert sorted(rows[4 * k : 4 * k + 4].tolist()) == list(range(4 * k, 4 * k + 4))
        alone = rng(1, [k]).permutation()
        assert torch.equal(alone + 4 * k, rows[4 * k : 4 * k + 4])


def test_all_permutations_are_equally_likely() -> None:
    tally: dict[tuple[int, ...], int] = {}
    for step in range(60):
        rows = rng(step, list(range(20)), 3).permutation().view(20, 3)
        for k, row in enumerate(rows):
            key = tuple((row - 3 * k).tolist())
            tally[key] = tally.get(key, 0) + 1
    assert len(tally) == 6
    assert stats.chisquare(list(tally.values())).pvalue > 1e-3


def test_categorical_takes_a_row_of_probabilities_per_image() -> None:
    rows = torch.tensor([[0.1, 0.2, 0.7, 0.0], [0.0, 1.0, 0.0, 0.0], [0.5, 0.0, 0.0, 0.5]]).repeat(40, 1)
    found = torch.stack([rng(step, list(range(30))).categorical(rows) for step in range(40)])
    for k in range(3):
        seen = np.bincount(found[:, k::3].flatten().numpy(), minlength=4)
        wanted = rows[k].numpy()
        assert seen[wanted == 0].sum() == 0
        if (wanted > 0).sum() > 1:
            expected = wanted[wanted > 0] / wanted.sum() * seen.sum()
            assert stats.chisquare(seen[wanted > 0], expected).pvalue > 1e-3
    shared = rng(3, [0, 1]).categorical(rows[0])
    assert torch.equal(shared, rng(3, [0, 1]).categorical(rows[0].repeat(8, 1)))


def test_the_largest_uniform_number_never_picks_what_is_impossible(monkeypatch: pytest.MonkeyPatch) -> None:
    """Probabilities that sum a little short of 1, and a number beyond their sum."""
    made = rng(1, [0])
    monkeypatch.setattr(made, "uniform", lambda: torch.full((4,), 1 - 2.0**-24))
    short = torch.tensor([0.5, 0.4999, 0.0, 0.0])
    assert made.categorical(short).tolist() == [1, 1, 1, 1]
    rows = torch.stack([short, short.flip(0), torch.tensor([1.0, 0, 0, 0]), short])
    assert made.categorical(rows).tolist() == [1, 3, 0, 1]


# --- the second batch and the pixels --------------------------------------------------------------------------------


def drawer(**changes: Any) -> Drawer:
    made = parts("sit", "sit").drawer
    return dataclasses.replace(made, **changes)


@pytest.mark.parametrize("g", [2, 6, 12])
def test_the_reference_batch_is_balanced_in_every_local_batch(g: int) -> None:
    made = drawer(reference=True, local_batch=g)
    tally = torch.zeros(6)
    for step in range(1, 40):
        reference = made.draw(step, range(12 // g)).reference
        assert reference is not None
        counts = torch.stack([torch.bincount(y, minlength=6) for y in reference.y.view(-1, g)])
        assert counts.max() - counts.min() <= 1
        tally += counts.sum(0)
    assert stats.chisquare(tally.numpy()).pvalue > 1e-3


def test_the_reference_batch_has_its_own_stream_and_belongs_to_its_local_batch() -> None:
    made, plain = drawer(reference=True), drawer()
    both_shards, second = made.draw(3, [0, 1]), made.draw(3, [1])
    assert both_shards.reference is not None
    assert second.reference is not None
    assert torch.equal(both_shards.reference.x0[4:], second.reference.x0)
    without = plain.draw(3, [0, 1])
    assert without.reference is None
    assert without.pixels is None
    assert torch.equal(without.xt, both_shards.xt)
    assert torch.equal(without.y_in, both_shards.y_in)
    images = (made.data.images.rows.tensor.float() / 127.5 - 1).flatten(1)
    for x, y in zip(both_shards.reference.x0, both_shards.reference.y, strict=True):
        same = (images == x.flatten()).all(1) | (images == x.flip(2).flatten()).all(1)
        assert made.data.labels[same].tolist() == [int(y)]


def test_a_class_without_images_is_in_no_reference_batch() -> None:
    made = drawer(reference=True, local_batch=6)
    keep = made.data.labels != 2
    made = dataclasses.replace(
        made, data=resident(made.data.images.rows.tensor[keep], made.data.labels[keep])
    )
    for step in range(1, 5):
        reference = made._reference(step, [0])
        assert sorted(set(reference.y.tolist())) == [0, 1, 3, 4, 5]


def test_pixels_are_separate_where_a_data_set_has_them() -> None:
    made = drawer(pixels=True)
    raw = torch.arange(len(made.data.labels), dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 8, 8)
    raw = raw.clone()
    raw[..., 0] = 200
    made = dataclasses.replace(
        made, data=resident(made.data.images.rows.tensor, made.data.labels, pixels=raw)
    )
    drawn = made.draw(1, [0, 1, 2])
    assert drawn.pixels is not None
    assert drawn.pixels.shape == (12, 3, 8, 8)
    assert torch.equal(drawn.pixels[:, 0, 0, 3], drawn.index.to(torch.uint8))
    marked = drawn.pixels[:, 0, 0, :] == 200
    assert torch.equal(marked[:, 7], drawn.flipped)
    assert torch.equal(marked[:, 0], ~drawn.flipped)


@both
def test_the_engine_draws_only_what_the_method_asks_for(pipeline: str) -> None:
    plain = parts(pipeline, pipeline).drawer
    assert (plain.pixels, plain.reference) == (False, False)
    transfer = parts(pipeline, {"name": "oclt", "reference": True}).drawer
    assert (transfer.pixels, transfer.reference) == (False, True)
    aligned = parts(pipeline, small("repa", pipeline)).drawer
    assert (aligned.pixels, aligned.reference) == (True, False)


# --- what a method watches ------------------------------------------------------------------------------------------


class Watching(Method):
    """A baseline that watches its own noise level."""

    def loss(self, net: Network, draw: Draw) -> dict[str, Tensor]:
        (out,) = self.run(net, draw, draw.y_in)
        self.watch("level", draw.level.clone().requires_grad_())
        return {"denoise": mean_square(out.pred, draw.target)}


class Wrong(Watching):
    def loss(self, net: Network, draw: Draw) -> dict[str, Tensor]:
        self.watch("mean", draw.level.mean())
        return super().loss(net, draw)


def test_what_is_watched_is_logged_by_group_and_level_and_is_no_part_of_the_loss() -> None:
    trainer = Trainer(build_parts(settings("sit", "sit"), Toy(), Watching, CPU), 4, 4)
    plain = Trainer(parts("sit", "sit"), 4, 4)
    levels, groups = [], []
    point = None
    for step in range(1, 5):
        point = trainer.advance()
        plain.advance()
        drawn = trainer.parts.drawer.draw(step, range(3))
        levels += drawn.level.tolist()
        groups += (drawn.y // 2).tolist()
    assert point is not None
    found = point["terms"]
    assert found["watch/level"] == pytest.approx(np.mean(levels))
    for k in range(5):
        inside = [v for v in levels if int(v * 5) == k]
        assert found[f"watch/level/level{k}"] == (pytest.approx(np.mean(inside)) if inside else None)
    for k, group in enumerate(("head", "body", "tail")):
        inside = [v for v, g in zip(levels, groups, strict=True) if g == k]
        assert found[f"watch/level/{group}"] == (pytest.approx(np.mean(inside)) if inside else None)
    assert point["loss"] == found["denoise"]
    left, right = trainer.state()[0]["model"], plain.state()[0]["model"]
    assert all(torch.equal(left[name], right[name]) for name in left)


def test_the_last_level_bin_holds_pure_noise() -> None:
    curve = Curve(torch.tensor([0, 1, 2]), every=1)
    curve.add({"watch/a": torch.tensor([1.0, 3.0])}, torch.tensor([0, 1]), 1.0, torch.tensor([1.0, 0.0]))
    point = curve.close_step(1, torch.tensor(0.0), 0.1)
    assert point is not None
    assert point["terms"]["watch/a/level4"] == 1.0
    assert point["terms"]["watch/a/level0"] == 3.0
    assert point["terms"]["watch/a/level2"] is None
    assert point["loss"] == 0


def test_watching_a_scalar_is_a_taught_error() -> None:
    with pytest.raises(ValueError, match=r"watch\('mean'\) takes a \(8,\) tensor"):
        Objective(network("sit"), Wrong(task("sit")))(draw("sit"))


def test_a_watched_value_does_not_outlive_its_forward() -> None:
    objective = Objective(network("sit"), Watching(task("sit")))
    objective(draw("sit"))
    assert set(objective.watched) == {"watch/level"}
    assert not objective.watched["watch/level"].requires_grad
    objective.method.loss = lambda net, draw: {"denoise": draw.level}  # type: ignore[method-assign]
    objective(draw("sit"))
    assert objective.watched == {}


@both
def test_oclt_logs_the_fraction_transferred_against_the_noise_level(pipeline: str) -> None:
    trainer = Trainer(parts(pipeline, {"name": "oclt", "direction": "full"}), 12, 12)
    point = None
    for _ in range(12):
        point = trainer.advance()
    assert point is not None
    found = point["terms"]
    assert found["watch/moved/level0"] in (0, None)
    assert found["watch/moved/level4"] > 0.2
    assert {f"watch/moved/{group}" for group in ("head", "body", "tail")} <= set(found)


def test_a_task_without_encoders_says_so() -> None:
    bare = task("sit")
    fields = {f.name: getattr(bare, f.name) for f in dataclasses.fields(Task) if f.name != "encoder"}
    with pytest.raises(UsageError, match="no encoder 'lite0' here"):
        Task(**fields).encoder("lite0", (4, 4))
    assert encoder("random", (4, 4)).width == 64
