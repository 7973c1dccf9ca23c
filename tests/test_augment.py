"""`augment: ada`: the moves against arrays and a loop over pixels, what the network is told, and the engine around both."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from ltbench import seeds
from ltbench.augment import Moves, draw_moves, move
from ltbench.draws import Drawer, resident
from ltbench.errors import SpecError
from ltbench.evaluate import build_sampler
from ltbench.methods import Unsupported, load_method
from ltbench.networks import build_network
from ltbench.parts import build_parts, seeded
from ltbench.sampling import sample
from ltbench.spec import load
from ltbench.spec.cells import expand
from ltbench.trainer import Trainer
from tests.test_methods_conformance import SUPPORTED, options
from tests.toy import NETWORKS, PIPELINES, Toy, parts, settings

both = pytest.mark.parametrize("pipeline", PIPELINES)
FIELDS = [field.name for field in dataclasses.fields(Moves)]
IMAGES = torch.randn(1, 2, 11, 11, generator=torch.Generator().manual_seed(0))


def moves(n: int = 1, **given: Any) -> Moves:
    return Moves(**{name: np.full(n, given.get(name, 0.0)) for name in FIELDS})


def moved(x: Tensor, what: Moves) -> Tensor:
    return move(x, torch.from_numpy(what.inverse()))


def drawn(n: int, p: float, seed: int = 0) -> Moves:
    stream = seeds.stream(seed, "augment", 1, 0)
    return draw_moves(stream, np.arange(n) % 2 == 1, p)


# --- the moves ------------------------------------------------------------------------------------------------------


def test_flips_quarter_turns_and_whole_pixel_shifts_are_exact() -> None:
    x, array = IMAGES, IMAGES.numpy()
    assert torch.equal(moved(x, moves()), x)
    assert torch.equal(moved(x, moves(flip_x=1.0)), x.flip(3))
    assert torch.equal(moved(x, moves(flip_y=1.0)), x.flip(2))
    for quarters in (-2, -1, 1, 2):
        turned = np.rot90(array, quarters, axes=(2, 3))  # counter-clockwise
        assert np.array_equal(moved(x, moves(turn=quarters * np.pi / 2)).numpy(), turned)
    for dx, dy in ((1, 0), (0, 3), (-4, 2), (10, -10)):
        padded = np.pad(array, ((0, 0), (0, 0), (10, 10), (10, 10)), mode="reflect")
        shifted = padded[:, :, 10 - dy : 21 - dy, 10 - dx : 21 - dx]
        found = moved(x, moves(shift_x=8 * dx / 11, shift_y=8 * dy / 11))
        assert np.array_equal(found.numpy(), shifted), (dx, dy)


def test_scale_and_stretch_have_the_published_size() -> None:
    """A ramp across 41 pixels keeps its middle and changes its slope by 2^(0.2 a)."""
    ramp = torch.arange(41.0).expand(1, 1, 41, 41) - 20

    def slope(**given: float) -> float:
        return float(moved(ramp, moves(**given))[0, 0, 20, 21])

    assert slope(scale=2.0) == pytest.approx(2**-0.4, abs=1e-4)
    assert slope(stretch=3.0) == pytest.approx(2**-0.6, abs=1e-4)
    assert slope(stretch=3.0, axis=np.pi / 2) == pytest.approx(2**0.6, abs=1e-4)
    assert slope(scale=1.0, stretch=-1.0) == pytest.approx(1.0, abs=1e-4)


def keys(d: float) -> float:
    """Cubic convolution of Keys with a = -1/2."""
    d = abs(d)
    if d <= 1:
        return 1.5 * d**3 - 2.5 * d**2 + 1
    return -0.5 * d**3 + 2.5 * d**2 - 4 * d + 2 if d < 2 else 0.0


def by_hand(image: np.ndarray, what: Moves, row: int) -> np.ndarray:
    """One image (R, R), pixel by pixel: the released chain of 3 x 3 maps in pixel coordinates, inverted numerically."""
    one = {name: float(getattr(what, name)[row]) for name in FIELDS}
    side = len(image)
    middle = (side - 1) / 2

    def turn(a: float) -> np.ndarray:
        return np.array([[np.cos(a), -np.sin(a), 0], [np.sin(a), np.cos(a), 0], [0, 0, 1]])

    def shift(x: float, y: float) -> np.ndarray:
        return np.array([[1, 0, x], [0, 1, y], [0, 0, 1.0]])

    s, a = 2 ** (0.2 * one["scale"]), 2 ** (0.2 * one["stretch"])
    chain = [
        shift(middle, middle),
        np.diag([1 - 2 * one["flip_x"], 1, 1]),
        np.diag([1, 1 - 2 * one["flip_y"], 1]),
        np.diag([s, s, 1]),
        turn(-one["turn"]),
        turn(one["axis"]),
        np.diag([a, 1 / a, 1]),
        turn(-one["axis"]),
        shift(side / 8 * one["shift_x"], side / 8 * one["shift_y"]),
        shift(-middle, -middle),
    ]
    back = np.linalg.inv(np.linalg.multi_dot(chain))
    far = 12 * side
    padded = np.pad(image, far, mode="reflect")
    out = np.zeros_like(image)
    for r in range(side):
        for c in range(side):
            x, y, _ = back @ (c, r, 1.0)
            left, top = int(np.floor(x)), int(np.floor(y))
            for i in range(top - 1, top + 3):
                for j in range(left - 1, left + 3):
                    out[r, c] += padded[far + i, far + j] * keys(y - i) * keys(x - j)
    return out


def test_every_move_is_the_loop_over_pixels() -> None:
    what = drawn(12, 1.0)
    x = torch.randn(12, 1, 7, 7, generator=torch.Generator().manual_seed(1))
    found = moved(x, what)
    for row in range(12):
        expected = by_hand(x[row, 0].double().numpy(), what, row)
        np.testing.assert_allclose(
            found[row, 0].numpy(), expected, atol=2e-3
        )  # 1/65536 of a pixel, and float32


def test_channels_and_rows_do_not_mix_and_one_pixel_is_itself() -> None:
    what = drawn(4, 1.0)
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(2))
    whole = moved(x, what)
    for row in range(4):
        alone = Moves(**{name: getattr(what, name)[row : row + 1] for name in FIELDS})
        assert torch.equal(moved(x[row : row + 1], alone), whole[row : row + 1])
    assert torch.equal(moved(x[:, 1:2], what), whole[:, 1:2])
    torch.testing.assert_close(moved(x[:, :, :1, :1], what), x[:, :, :1, :1])


# --- what is drawn and told -----------------------------------------------------------------------------------------


def test_gates_and_sizes_have_their_distributions() -> None:
    n, p = 20_000, 0.12
    what = drawn(n, p)
    for name, share in (("flip_y", p / 2), ("scale", p), ("turn", p), ("stretch", p), ("shift_x", p)):
        hits = int((getattr(what, name) != 0).sum())
        assert stats.binomtest(hits, n, share).pvalue > 1e-4, name
    assert ((what.stretch != 0) == (what.axis != 0)).all()
    assert ((what.shift_x != 0) == (what.shift_y != 0)).all()
    together = ((what.scale != 0) & (what.turn != 0)).sum()
    assert stats.binomtest(int(together), n, p * p).pvalue > 1e-4
    for name in ("scale", "stretch", "shift_x", "shift_y"):
        values = getattr(what, name)
        assert stats.kstest(values[values != 0], "norm").pvalue > 1e-4, name
    for name in ("turn", "axis"):
        values = getattr(what, name)
        assert stats.kstest(values[values != 0], stats.uniform(-np.pi, 2 * np.pi).cdf).pvalue > 1e-4, name


def test_the_label_by_hand() -> None:
    what = moves(
        flip_x=1.0, flip_y=1.0, scale=-0.3, turn=0.5, axis=2.0, stretch=1.5, shift_x=0.1, shift_y=-0.7
    )
    expected = [1, 1, -0.3, np.cos(0.5) - 1, np.sin(0.5), 1.5 * np.cos(2), 1.5 * np.sin(2), 0.1, -0.7]
    np.testing.assert_allclose(what.label()[0], expected, rtol=1e-6)
    assert not moves().label().any()


def from_label(label: Tensor, sign: float) -> Moves:
    """What was done, read back from the nine numbers, which leave the sign of the stretch open."""
    a = label.double().numpy().T
    stretch, axis = sign * np.hypot(a[5], a[6]), np.arctan2(sign * a[6], sign * a[5])
    return Moves(a[0], a[1], a[2], np.arctan2(a[4], a[3] + 1), axis, stretch, a[7], a[8])


def drawer(pipeline: str = "sit", **train: Any) -> Drawer:
    return parts(pipeline, pipeline, augment="ada", **train).drawer


@both
def test_the_label_is_what_was_done_to_the_image(pipeline: str) -> None:
    made = drawer(pipeline, augment_probability=0.9).draw(3, range(3))
    assert made.augment is not None
    assert made.augment.shape == (12, 9)
    assert made.augment.dtype == torch.float32
    raw = drawer().data.images.gather(made.index, torch.zeros(12, dtype=torch.bool))
    gaps = [
        (made.x0 - moved(raw, from_label(made.augment, sign))).abs().flatten(1).amax(1) for sign in (1, -1)
    ]
    assert torch.minimum(*gaps).max() < 1e-3  # float32 numbers
    assert (made.augment != 0).any(0).all(), "every number is used"
    assert torch.equal(made.augment[:, 0].bool(), made.flipped)
    process = parts(pipeline, pipeline).drawer.process
    assert torch.equal(made.xt, process.diffuse(made.x0, made.eps, made.t))


@both
def test_with_probability_zero_it_is_the_plain_flip_bit_for_bit(pipeline: str) -> None:
    plain = parts(pipeline, pipeline).drawer.draw(2, range(3))
    made = drawer(pipeline, augment_probability=0.0).draw(2, range(3))
    for field in ("x0", "eps", "xt", "target", "t", "y_in", "index", "flipped"):
        assert torch.equal(getattr(made, field), getattr(plain, field)), field
    assert made.augment is not None
    assert torch.equal(made.augment[:, 0], plain.flipped.float())
    assert not made.augment[:, 1:].any()
    assert plain.augment is None
    assert plain.flipped.any()


def test_everything_else_of_a_draw_stays_as_it_was() -> None:
    plain, made = parts("sit", "sit").drawer.draw(2, range(3)), drawer().draw(2, range(3))
    for field in ("eps", "t", "dropped", "y_in", "index", "flipped"):
        assert torch.equal(getattr(made, field), getattr(plain, field)), field
    assert not torch.equal(made.x0, plain.x0)


def test_a_local_batch_has_its_own_numbers_every_step() -> None:
    made = drawer(augment_probability=1.0)
    whole = made.draw(5, range(3))
    assert whole.augment is not None
    for shard in range(3):
        alone = made.draw(5, [shard])
        rows = slice(4 * shard, 4 * shard + 4)
        assert torch.equal(alone.augment, whole.augment[rows])  # type: ignore[arg-type]
        assert torch.equal(alone.x0, whole.x0[rows])
    other = made.draw(6, range(3)).augment
    assert len(torch.cat([whole.augment, other]).unique(dim=0)) == 24  # type: ignore[list-item]


def test_an_encoder_sees_the_same_view_in_bytes() -> None:
    made = dataclasses.replace(drawer(augment_probability=1.0), pixels=True).draw(1, range(3))
    assert made.pixels is not None
    assert made.pixels.dtype == torch.uint8
    wanted = ((made.x0 + 1) * 127.5).clamp(0, 255)
    assert (made.pixels.float() - wanted).abs().max() <= 0.51


def test_pictures_of_another_size_move_alike() -> None:
    """The shift is a share of the side: a picture twice as large goes twice as many pixels."""
    made = dataclasses.replace(drawer(augment_probability=1.0), pixels=True)
    large = made.data.images.rows.tensor.repeat_interleave(2, 2).repeat_interleave(2, 3)
    big = dataclasses.replace(
        made, data=resident(made.data.images.rows.tensor, made.data.labels, pixels=large)
    )
    small, seen = made.draw(1, range(3)).pixels, big.draw(1, range(3)).pixels
    assert small is not None
    assert seen is not None
    assert seen.shape[2:] == (32, 32)
    shrunk = torch.nn.functional.avg_pool2d(seen.float(), 2)
    correlation = np.corrcoef(shrunk.flatten().numpy(), small.flatten().numpy())[0, 1]
    assert correlation > 0.93


def test_the_reference_batch_is_moved_by_numbers_of_its_own() -> None:
    plain = dataclasses.replace(parts("sit", "sit").drawer, reference=True).draw(1, range(3))
    made = dataclasses.replace(drawer(augment_probability=0.0), reference=True).draw(1, range(3))
    always = dataclasses.replace(drawer(augment_probability=1.0), reference=True).draw(1, range(3))
    assert plain.reference is not None
    assert made.reference is not None
    assert always.reference is not None
    assert torch.equal(plain.reference.x0, made.reference.x0)
    assert torch.equal(plain.reference.y, always.reference.y)
    assert not torch.equal(plain.reference.x0, always.reference.x0)


# --- networks -------------------------------------------------------------------------------------------------------


def build(pipeline: str, augmented: bool) -> Any:
    network = NETWORKS[pipeline]
    return seeded(
        3, lambda: build_network(network, channels=1, resolution=16, classes=6, augmented=augmented)
    )


@both
def test_a_network_that_is_told_has_one_map_more_and_starts_as_the_plain_one(pipeline: str) -> None:
    plain, told = build(pipeline, False).state_dict(), build(pipeline, True).state_dict()
    assert set(told) - set(plain) == {"embed_augment.weight"}
    assert told["embed_augment.weight"].shape[1] == 9
    assert all(torch.equal(plain[name], told[name]) for name in plain)


@both
def test_zeros_and_nothing_are_the_same_and_labels_matter(pipeline: str) -> None:
    net, made = build(pipeline, True), drawer(pipeline).draw(1, range(3))
    for p in net.parameters():
        torch.nn.init.normal_(p, std=0.05)
    without = net(made.xt, made.t, made.y)[0]
    assert torch.equal(net(made.xt, made.t, made.y, augment=torch.zeros(12, 9))[0], without)
    assert not torch.equal(net(made.xt, made.t, made.y, augment=made.augment)[0], without)
    with pytest.raises(ValueError, match="built without"):
        build(pipeline, False)(made.xt, made.t, made.y, augment=made.augment)
    with pytest.raises(ValueError, match=r"shape \(12, 8\), not \(12, 9\)"):
        net(made.xt, made.t, made.y, augment=torch.zeros(12, 8))


@both
def test_the_embedding_is_added_to_the_condition(pipeline: str) -> None:
    """One unit of one number shifts the condition by that column; doubling it doubles the shift."""
    net = build(pipeline, True)
    condition = torch.randn(2, net.embed_augment.out_features)
    label = torch.zeros(2, 9)
    label[1, 4] = 2.0
    found = net.with_augment(condition, label)
    torch.testing.assert_close(found[1], condition[1] + 2 * net.embed_augment.weight[:, 4])
    assert torch.equal(found[0], condition[0])


# --- training and sampling ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "pipeline"), SUPPORTED)
def test_every_method_tells_its_network_in_every_pass(name: str, pipeline: str) -> None:
    built = parts(pipeline, {"name": name, **options(name, pipeline)}, augment="ada", dropout=0.1)
    made = built.drawer.draw(1, range(3))
    told: list[Tensor] = []
    net = built.objective.network
    net.register_forward_pre_hook(lambda module, args, more: told.append(more["augment"]), with_kwargs=True)
    seeded(1, lambda: [torch.nn.init.normal_(p, std=0.05) for p in net.parameters()])
    sum(term.mean() for term in built.objective(made).values()).backward()
    (labels,) = told
    assert made.augment is not None
    assert torch.equal(labels[:12], made.augment)
    known = {tuple(row) for row in made.augment.tolist()}
    assert all(tuple(row) in known for row in labels.tolist())
    gradient = net.embed_augment.weight.grad  # type: ignore[union-attr]
    assert gradient is not None
    assert gradient.abs().sum() > 0


@both
def test_a_row_that_is_run_again_is_told_its_own_moves(pipeline: str) -> None:
    tap = {"sit": "N/4", "ddpm": "mid"}[pipeline]
    built = parts(pipeline, {"name": "ccua", "tap": tap}, augment="ada", augment_probability=1.0)
    made = built.drawer.draw(1, range(3))
    calls: list[tuple[Tensor, Tensor]] = []
    built.objective.network.register_forward_pre_hook(
        lambda module, args, more: calls.append((args[0], more["augment"])), with_kwargs=True
    )
    built.objective(made)
    ((x, labels),) = calls
    assert made.augment is not None
    kept = ~made.dropped
    assert torch.equal(x[12:], made.xt[kept])
    assert torch.equal(labels[12:], made.augment[kept])


@both
def test_micro_batches_and_resumed_runs_change_nothing(pipeline: str) -> None:
    def fresh(micro: int = 12) -> Trainer:
        return Trainer(parts(pipeline, pipeline, augment="ada", dropout=0.1), micro, 3)

    norms = []
    for micro in (12, 4):
        trainer = fresh(micro)
        trainer.advance()
        norms.append(torch.cat([p.grad.flatten() for p in trainer.named.values()]))
    torch.testing.assert_close(norms[0], norms[1], rtol=1e-4, atol=1e-6)
    whole, before, after = fresh(), fresh(), fresh()
    for _ in range(4):
        whole.advance()
    before.advance()
    before.advance()
    tensors, state = before.state()
    after.load({file: {k: v.clone() for k, v in inside.items()} for file, inside in tensors.items()}, state)
    while after.step < 4:
        after.advance()
    (left, one), (right, two) = whole.state(), after.state()
    assert one == two
    assert "network.embed_augment.weight" in left["model"]
    for file, inside in left.items():
        assert all(torch.equal(value, right[file][name]) for name, value in inside.items())


@both
def test_sampling_does_not_read_the_embedding(pipeline: str) -> None:
    trainer = Trainer(parts(pipeline, pipeline, augment="ada"), 12, 3)
    trainer.advance()
    weights = dict(trainer.ema.shadow)
    assert "embed_augment.weight" in weights
    made = settings(pipeline, pipeline, augment="ada", augment_probability=0.12)
    images = []
    for scale in (1.0, 100.0):
        weights["embed_augment.weight"] = scale * weights["embed_augment.weight"]
        net = build_sampler(made, Toy(), weights, torch.device("cpu"))
        images.append(
            sample(
                net,
                trainer.parts.task.process,
                sampler={"sit": "euler", "ddpm": "ddim"}[pipeline],
                steps=4,
                guidance=2.0,
                noise=torch.randn(3, 1, 16, 16, generator=torch.Generator().manual_seed(0)),
                labels=torch.arange(3),
                null=6,
            )
        )
    assert torch.equal(images[0], images[1])


def test_kept_tokens_are_refused_in_one_sentence() -> None:
    made = {"name": "repa", "encoder": "random", "hidden": 16, "cache": True}
    with pytest.raises(Unsupported, match="no image is seen twice alike"):
        build_parts(settings("sit", made, augment="ada"), Toy(), load_method("repa"), torch.device("cpu"))
    assert build_parts(settings("sit", made), Toy(), load_method("repa"), torch.device("cpu"))


# --- specs ----------------------------------------------------------------------------------------------------------

SPEC = """\
name: mine
dataset: {name: digits, imbalance: 0.1}
pipeline: sit
network: SiT-N/2
train: {batch: 24, milestones: [10]}
grid: {method: [sit]}
"""


def cells(folder: Path, *changes: str) -> list[Any]:
    path = folder / "spec.yaml"
    path.write_text(SPEC)
    return expand(load(path, changes=changes))


def test_identity_holds_augmentation_only_where_it_is(tmp_path: Path) -> None:
    (plain,) = cells(tmp_path)
    (said,) = cells(tmp_path, "train.augment=none")
    (ada,) = cells(tmp_path, "train.augment=ada")
    (other,) = cells(tmp_path, "train.augment=ada", "train.augment_probability=0.3")
    assert plain.id == said.id
    assert "augment" not in plain.identity["train"]
    assert ada.identity["train"]["augment"] == "ada"
    assert len({plain.id, ada.id, other.id}) == 3
    assert ada.settings["train"]["augment_probability"] == 0.12


def test_augmentation_is_an_axis_and_the_label_says_so(tmp_path: Path) -> None:
    found = cells(tmp_path, "grid={method: [sit], train.augment: [none, ada]}")
    assert [cell.label for cell in found] == ["sit (augment=none)", "sit (augment=ada)"]


def test_the_cbdm_rows_with_ada_are_a_preset(tmp_path: Path) -> None:
    found = cells(
        tmp_path,
        "pipeline=ddpm",
        "network=UNet-16",
        "grid.method=[ddpm]",
        "train={preset: cbdm-ada, milestones: [10]}",
    )
    train = found[0].settings["train"]
    assert (train["augment"], train["augment_probability"], train["batch"]) == ("ada", 0.12, 48)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (["train.augment=ada", "train.flip=false"], "mirrors half of the images itself"),
        (["train.augment_probability=0.3"], "one of augment: ada"),
        (["train.augment=adaa"], "did you mean 'ada'"),
        (["train.augment=ada", "train.augment_probability=1.5"], "at most 1"),
    ],
)
def test_what_does_not_fit_is_refused(tmp_path: Path, changes: list[str], words: str) -> None:
    with pytest.raises(SpecError) as caught:
        cells(tmp_path, *changes)
    (problem,) = caught.value.problems
    assert words in str(problem)
