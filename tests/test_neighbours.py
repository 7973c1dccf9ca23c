"""Neighbour metrics against brute force, hand-made examples, prdc and torch-fidelity."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from scipy.spatial.distance import cdist

from ltbench.metrics.arrays import TooFew
from ltbench.metrics.blocks import nearest
from ltbench.metrics.neighbours import KINDS, prdc
from ltbench.metrics.sets import folds_of


def normal(seed, n, d, scale=1.0, shift=0.0):
    return np.random.default_rng(seed).normal(size=(n, d)) * scale + shift


def grid(seed, n, low, high):
    return np.random.default_rng(seed).integers(low, high, (n, 3)).astype(float)  # many equal distances


def brute(gen, ref, k, strict=False):
    """The four shares from full matrices."""
    inside = np.less if strict else np.less_equal
    across = cdist(gen, ref, "sqeuclidean")
    ball = {
        name: np.sort(cdist(x, x, "sqeuclidean"), axis=1)[:, k] for name, x in (("gen", gen), ("ref", ref))
    }
    held, holds = inside(across, ball["ref"][None]), inside(across, ball["gen"][:, None])
    return held.any(1).mean(), holds.any(0).mean(), held.sum() / k / len(gen), held.any(0).mean()


def values(found):
    return tuple(getattr(found, kind).value for kind in KINDS)


def by_hand():
    ref = np.array([[0.0], [1.0], [2.0], [10.0]])  # radii at k = 1: 1, 1, 1, 8
    gen = np.array([[-1.0], [-1.5], [5.0], [19.0]])  # radii: 0.5, 0.5, 6, 14
    return gen, ref


def test_by_hand_in_one_dimension():
    gen, ref = by_hand()
    # -1 is on the border of 0's ball, 5 in 10's; of the balls only those of 0 and 10 hold anything
    assert values(prdc(gen, ref, k=1)) == (0.5, 1.0, 0.5, 0.5)
    # without the border -1 is nowhere, 0 holds nothing, and 5's ball (-1..11) still holds all of ref
    assert values(prdc(gen, ref, k=1, boundary="<")) == (0.25, 1.0, 0.25, 0.25)
    # at k = 2 the radii of ref are 2, 1, 2, 9 and hold -1 and -1.5 (0), 5 (10) and 19 (10, on its border)
    assert values(prdc(gen, ref, k=2)) == (1.0, 1.0, 4 / 2 / 4, 2 / 4)


def test_equal_and_distant_sets():
    a = normal(0, 60, 4)
    assert values(prdc(a, a)) == pytest.approx((1, 1, brute(a, a, 3)[2], 1))
    assert values(prdc(a, a + 100)) == (0, 0, 0, 0)
    copies = np.repeat(
        a, 5, axis=0
    )  # every radius at k = 3 is 0: only exact copies are inside, and only with "<="
    assert values(prdc(copies, np.vstack([copies, copies + 50]))) == (1, 0.5, 5 / 3, 0.5)
    assert values(prdc(copies, copies, boundary="<")) == (0, 0, 0, 0)


@pytest.mark.parametrize("boundary", ["<=", "<"])
@pytest.mark.parametrize("k", [1, 3])
def test_every_fold_is_brute_force_without_it_also_with_ties(k, boundary):
    """On a grid, moved so that equal distances differ in their last bits; folds of both sets, of one, of the other."""
    gen, ref = grid(1, 37, 0, 4), grid(2, 45, 1, 6)
    fold_gen, fold_ref = folds_of(np.arange(37) % 3), folds_of(np.arange(45) % 2)
    for use_gen, use_ref, block in ((1, 1, 7), (1, 0, 64), (0, 1, 16)):
        found = prdc(
            gen * 0.1 + 0.7,
            ref * 0.1 + 0.7,
            k=k,
            boundary=boundary,
            block=block,
            folds_gen=fold_gen if use_gen else None,
            folds_ref=fold_ref if use_ref else None,
        )
        assert values(found) == pytest.approx(brute(gen, ref, k, boundary == "<"), abs=1e-12)
        for fold in range(10):
            kept_gen = gen[fold_gen != fold] if use_gen else gen
            kept_ref = ref[fold_ref != fold] if use_ref else ref
            without = [getattr(found, kind).folds[fold] for kind in KINDS]
            assert without == pytest.approx(brute(kept_gen, kept_ref, k, boundary == "<"), abs=1e-12)


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_blocks_and_order_do_not_matter(dtype):
    gen, ref = normal(0, 130, 6, 0.9, 5.0), normal(1, 170, 6, 1.0, 5.0)
    gen[40:60] = gen[:20]  # duplicates
    ref[150:] = gen[:20]
    folds = {"folds_gen": np.arange(130) % 10, "folds_ref": np.arange(170) % 10}
    expected = prdc(gen, ref, dtype=dtype, block=4096, **folds)
    assert values(expected) == pytest.approx(brute(gen, ref, 3), abs=1e-12)
    for block in (23, 64):
        assert prdc(gen, ref, dtype=dtype, block=block, **folds) == expected
    turn = np.random.default_rng(2).permutation(130)
    moved = prdc(gen[turn], ref, dtype=dtype, **{**folds, "folds_gen": folds["folds_gen"][turn]})
    assert moved == expected
    assert values(prdc(gen.astype(np.float32), ref.astype(np.float32), dtype=dtype)) == values(expected)


@pytest.mark.parametrize("k", [3, 5])
def test_agrees_with_prdc_to_all_digits(k):
    from prdc import compute_prdc

    # prdc starts 8 workers, which is slow far below their 1,500 images
    gen, ref = normal(0, 300, 16, 0.9), normal(1, 250, 16, 1.0, 0.2)
    other = compute_prdc(real_features=ref, fake_features=gen, nearest_k=k)
    assert values(prdc(gen, ref, k=k, boundary="<")) == pytest.approx(
        [other[kind] for kind in KINDS], abs=1e-12
    )


@pytest.mark.parametrize("saving", [True, False])
def test_agrees_with_torch_fidelity_to_all_digits(saving):
    torch = pytest.importorskip("torch")
    metric = pytest.importorskip("torch_fidelity.metric_prc")
    gen, ref = normal(0, 300, 32, 0.9), normal(1, 500, 32, 1.0, 0.1)
    other = metric.prc_features_to_metric(
        torch.from_numpy(gen),
        torch.from_numpy(ref),
        prc_neighborhood=3,
        prc_batch_size=64,
        save_cpu_ram=saving,
        verbose=False,
    )
    found = prdc(gen, ref, k=3)
    assert (found.precision.value, found.recall.value) == pytest.approx(
        (other["precision"], other["recall"]), abs=1e-6
    )  # its mean is float32
    single = prdc(gen.astype(np.float32), ref.astype(np.float32), dtype="float32")
    assert values(single) == values(found)


def adm(gen, ref, k):
    """The rule of ADM's evaluator in NumPy: float16 distances, itself among its neighbours."""

    def distances(a, b):
        a, b = a.astype(np.float16), b.astype(np.float16)
        lengths = [np.square(x).astype(np.float64).sum(1).astype(np.float16) for x in (a, b)]
        product = (a.astype(np.float32) @ b.astype(np.float32).T).astype(np.float16)
        return np.maximum(lengths[0][:, None] - 2 * product + lengths[1][None], 0)

    ball_gen, ball_ref = (np.sort(distances(x, x), axis=1)[:, k] for x in (gen, ref))
    across = distances(gen, ref)
    return (across <= ball_ref[None]).any(1).mean(), (across <= ball_gen[:, None]).any(0).mean()


def test_adm_mode_is_adms_rule_and_differs_from_exact_distances():
    gen = np.maximum(normal(0, 250, 64, 0.9, 0.3), 0).astype(np.float32)
    ref = np.maximum(normal(1, 200, 64, 1.0, 0.3), 0).astype(np.float32)
    for block in (50, 1000):
        found = prdc(gen, ref, dtype="fp16-adm", block=block)
        assert (found.precision.value, found.recall.value) == adm(gen, ref, 3)
    assert values(found) != values(prdc(gen, ref))
    assert "fp16-adm" in found.recall.estimator


def test_adm_mode_falls_back_to_float32_where_float16_overflows():
    gen, ref = normal(0, 40, 8, 200.0), normal(1, 50, 8, 200.0)
    found = prdc(gen, ref, dtype="fp16-adm", block=16)
    assert "float16 overflowed" in found.precision.estimator
    assert values(found) == pytest.approx(brute(gen, ref, 3), abs=1e-12)


def test_standard_errors_are_near_the_spread_of_fresh_draws():
    """With folds of both sets the error is on the safe side, never far below."""
    n, folds = 200, np.arange(200) % 10
    found = [
        prdc(normal(2 * i, n, 4, 0.8), normal(2 * i + 1, n, 4), folds_gen=folds, folds_ref=folds)
        for i in range(40)
    ]
    for kind in KINDS:
        spread = np.std([getattr(one, kind).value for one in found], ddof=1)
        said = np.mean([getattr(one, kind).se for one in found])
        assert 0.8 * spread < said < 2.5 * spread, kind


def test_memory_is_counted_in_blocks():
    """Nine thousand by as many would be 650 MB as a matrix; the process may grow by a tenth of that."""
    code = """
import resource, numpy as np
from ltbench.metrics.neighbours import prdc
folds = np.arange(9000) % 10
draw = np.random.default_rng(0).normal
prdc(draw(size=(3000, 4)), draw(size=(3000, 4)), folds_gen=folds[:3000], folds_ref=folds[:3000], block=1024)
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
prdc(draw(size=(9000, 4)), draw(size=(9000, 4)), folds_gen=folds, folds_ref=folds, block=1024)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""
    grown = int(
        subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout
    )
    assert grown < 9000 * 9000 * 8 / 10


def test_memory_maps_are_read_in_blocks(tmp_path):
    gen, ref = normal(0, 90, 5).astype(np.float32), normal(1, 80, 5).astype(np.float32)
    np.save(tmp_path / "gen.npy", gen)
    mapped = np.load(tmp_path / "gen.npy", mmap_mode="r")
    assert prdc(mapped, ref, block=16) == prdc(gen, ref, block=16)


def test_small_sets_have_a_value_and_a_reason_for_no_error():
    a, b = normal(0, 5, 3), normal(1, 40, 3)
    found = prdc(a, b, folds_gen=np.arange(5), folds_ref=np.arange(40) % 10)
    assert found.recall.se is not None
    found = prdc(a[:4], b, folds_gen=np.arange(4), folds_ref=np.arange(40) % 10)
    assert found.recall.se is None
    assert found.recall.folds is None
    assert "3 images remain, and k = 3 needs 4" in found.recall.estimator
    with pytest.raises(TooFew, match=r"k = 3 needs 4 images; the first set has 3"):
        prdc(a[:3], b)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": 0}, "k >= 1"),
        ({"boundary": "<<"}, "a boundary is"),
        ({"dtype": "float16"}, "float64, float32, fp16-adm"),
        ({"block": 0}, "1 row or more"),
        ({"folds_gen": np.arange(20)}, r"ints in 0\.\.9"),
        ({"folds_ref": np.zeros(3, dtype=int)}, "the reference set has 20 images"),
    ],
)
def test_bad_settings_are_refused_by_name(change, message):
    with pytest.raises(ValueError, match=message):
        prdc(normal(0, 20, 3), normal(1, 20, 3), **change)


def test_nearest_is_exact_and_zero_for_copies():
    a, b = normal(0, 70, 5, 1.0, 1000.0), normal(1, 50, 5, 1.0, 1000.0)
    a[:10] = b[:10]
    for block in (16, 100):
        index, distance = nearest(a, b, block)
        full = cdist(a, b)
        assert (index == full.argmin(1)).all()
        assert distance == pytest.approx(full.min(1), rel=1e-12)
        assert (distance[:10] == 0).all()
        index, distance = nearest(b, b, block, same=True)
        full = cdist(b, b) + np.diag(np.full(50, np.inf))
        assert (index == full.argmin(1)).all()
