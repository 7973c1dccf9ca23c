"""From features to rows: groups, floors, folds, and what is said where a value cannot be had."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from ltbench.errors import LtbenchError, UsageError
from ltbench.groups import groups
from ltbench.metrics import frechet as fd
from ltbench.metrics import inception_score
from ltbench.metrics import kernel as kd
from ltbench.metrics.catalogue import CATALOGUE, DEFAULT, Estimators
from ltbench.metrics.frechet import frechet
from ltbench.metrics.inception_score import ISRule
from ltbench.metrics.kernel import kernel, kernel_subsets
from ltbench.metrics.measure import measure
from ltbench.metrics.moments import Gaussian
from ltbench.metrics.naming import KINDS
from ltbench.metrics.neighbours import prdc, precision_recall
from ltbench.metrics.sets import FeatureSet, folds_of, jackknife
from ltbench.metrics.statistics import Statistics, load_statistics

CNN = "fashion-cnn-v1@1a2b3c4d" + 56 * "0"
CUT = groups([100, 50, 20, 10, 5, 2])


def draw(seed, n, scale, classes=6):
    """n images of each class around centres far apart."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n * classes) % classes
    pool = rng.normal(size=(len(labels), 5)) * scale + 9.0 * np.eye(classes, 5)[labels]
    more = {
        "spatial": rng.normal(size=(len(labels), 3)),
        "logits": 4 * rng.normal(size=(len(labels), classes)),
    }
    return FeatureSet(pool, labels, **more)


def world(per_class=20, held=20):
    return draw(0, per_class, 0.7), draw(1, 50, 1.0), draw(2, held, 1.0)


def run(gen, ref, held, wanted=DEFAULT, estimators=Estimators(), cut=CUT, **more):  # noqa: B008
    return measure(gen, ref, held, cut, wanted, CNN, estimators, **more)


def row(result, metric, group):
    return next(r for r in result["rows"] if (r["metric"], r["group"]) == (metric, group))


def test_a_group_is_computed_on_its_own_classes_of_both_sets():
    gen, ref, held = world()
    result = run(gen, ref, held)
    assert len(result["rows"]) == 16
    a, b = gen.of([4, 5]), ref.of([4, 5])
    assert row(result, "FD", "tail")["value"] == pytest.approx(frechet(a.pool, b.pool), rel=1e-12)
    assert row(result, "KD", "tail")["value"] == pytest.approx(kernel(a.pool, b.pool), rel=1e-9)
    shares = row(result, "precision", "tail")["value"], row(result, "recall", "tail")["value"]
    assert shares == precision_recall(a.pool, b.pool)
    assert row(result, "FD", "all")["floor"] == pytest.approx(frechet(held.pool, ref.pool), rel=1e-12)
    found = row(result, "FD", "tail")
    assert [found[key] for key in ("n_gen", "n_ref", "n_floor", "better", "k")] == [
        40,
        100,
        40,
        "lower",
        None,
    ]
    assert row(result, "recall", "head")["k"] == 3
    assert row(result, "KD", "head")["scale"] == 1000
    assert found["name"] == "FD[fashion-cnn-v1@1a2b3c4d]"
    recalls = result["per_class"]["metrics"]["recall[fashion-cnn-v1@1a2b3c4d]"]
    assert recalls[5] == precision_recall(gen.of([5]).pool, ref.of([5]).pool)[1]
    assert result["per_class"]["n_gen"] == [20] * 6


def test_swapped_sets_are_caught():
    """A collapsed generator is precise and recalls nothing; the other way round the arguments are swapped."""
    ref, held = draw(1, 50, 1.0), draw(2, 20, 1.0)
    one = replace(
        draw(0, 20, 0.7),
        pool=9.0 * np.eye(6, 5)[np.arange(120) % 6] + 1e-3 * np.random.default_rng(3).normal(size=(120, 5)),
    )
    result = run(one, ref, held, ("precision", "recall"))
    assert row(result, "precision", "all")["value"] > 0.95
    assert row(result, "recall", "all")["value"] < 0.05


def test_folds_are_the_values_without_a_fold_of_both_sets():
    gen, ref, held = world()
    result = run(gen, ref, held, ("FD", "KD", "coverage", "CS"))
    a, b = gen.of([0, 1]), ref.of([0, 1])
    left = [
        (a.take(np.flatnonzero(a.folds() != f)), b.take(np.flatnonzero(b.folds() != f))) for f in range(10)
    ]
    expected = {
        "FD": [frechet(x.pool, y.pool) for x, y in left],
        "KD": [kernel(x.pool, y.pool) for x, y in left],
        "coverage": [prdc(x.pool, y.pool, k=3).coverage.value for x, y in left],
    }
    for kind, values in expected.items():
        found = row(result, kind, "head")
        assert found["folds"] == pytest.approx(values, rel=1e-8)
        assert found["se"] > 0
    found = row(result, "FD", "head")
    assert found["se"] == pytest.approx(jackknife(expected["FD"]))
    assert found["corrected"] == pytest.approx(
        found["value"] - 9 * (np.mean(expected["FD"]) - found["value"])
    )
    assert row(result, "KD", "head")["corrected"] is None
    assert row(result, "KD", "head")["se"] == pytest.approx(kd.estimate(a.pool, b.pool).se)


def test_every_kind_fills_its_row_in_the_form_of_a_record():
    gen, ref, held = world()
    assert set(CATALOGUE) == set(KINDS)
    result = run(gen, ref, held, tuple(CATALOGUE), train=draw(5, 8, 1.0))
    keys = [
        "group",
        "metric",
        "name",
        "value",
        "se",
        "corrected",
        "folds",
        "floor",
        "n_gen",
        "n_ref",
        "n_floor",
        "better",
        "k",
        "scale",
        "estimator",
    ]
    for found in result["rows"]:
        assert list(found) == keys, found
        assert found["value"] is not None
        assert found["floor"] is not None
        assert found["estimator"]
        assert found["folds"] is None or len(found["folds"]) == 10
    assert [r["metric"] for r in result["rows"] if r["se"] is None] == ["KD-subsets"] * 4
    json.dumps(result, allow_nan=False)
    for part in ("metrics", "se", "floor", "reason"):
        assert {len(values) for values in result["per_class"][part].values()} == {6}
        assert len(result["per_class"][part]) == sum(metric.per_class for metric in CATALOGUE.values())


def test_the_choices_of_a_protocol_reach_the_numbers():
    gen, ref, held = world()
    rule = ISRule(splits=None, chunk=50)
    chosen = Estimators(k=5, boundary="<", reference_cap=120, inception_score=rule, kd_subset=30)
    result = run(gen, ref, held, ("FD", "KD", "KD-subsets", "recall", "CS"), chosen)
    capped = ref.take(np.arange(120))  # class k % 6: the first 120 are 20 of each
    assert (
        row(result, "recall", "all")["value"] == prdc(gen.pool, capped.pool, k=5, boundary="<").recall.value
    )
    assert row(result, "recall", "all")["k"] == 5
    assert row(result, "KD", "all")["value"] == pytest.approx(kernel(gen.pool, capped.pool), rel=1e-9)
    assert [row(result, kind, "all")["n_ref"] for kind in ("FD", "KD", "recall")] == [300, 120, 120]
    subsets = kernel_subsets(gen.pool, capped.pool, size=30).value
    assert row(result, "KD-subsets", "all")["value"] == pytest.approx(subsets)
    score = inception_score.inception_score(gen.logits, rule, gen.labels)
    assert row(result, "CS", "all")["value"] == score
    assert row(result, "CS", "all")["floor"] == inception_score.inception_score(
        held.logits, rule, held.labels
    )


def test_the_floor_uses_as_many_real_images_as_there_are_generated_ones():
    gen, ref, held = world(per_class=8)
    part = held.of([0, 1]).pool[:16]
    assert row(run(gen, ref, held), "FD", "head")["floor"] == pytest.approx(
        frechet(part, ref.of([0, 1]).pool)
    )
    result = run(*world(held=7))
    assert row(result, "FD", "all")["n_floor"] == 42
    assert result["per_class"]["n_floor"] == [7] * 6


def test_missing_classes_are_errors_and_small_ones_are_null_with_a_reason():
    gen, ref, held = world()
    with pytest.raises(LtbenchError, match=r"1 of 6 classes have no generated image: 5"):
        run(gen.of(range(5)), ref, held)
    with pytest.raises(LtbenchError, match="no reference image"):
        run(gen, ref.of([0, 1, 3, 4, 5]), held)
    with pytest.raises(ValueError, match="no metric is called 'FID'"):
        run(gen, ref, held, ("FID",))
    few = gen.take(np.flatnonzero((gen.labels != 5) | (np.cumsum(gen.labels == 5) <= 3)))
    result = run(few, ref, held.take(np.arange(0)))
    per_class, name = result["per_class"], "recall[fashion-cnn-v1@1a2b3c4d]"
    assert per_class["metrics"][name][5] is None
    assert "needs 4 images; the first set has 3" in per_class["reason"][name][5]
    assert per_class["metrics"][name][4] is not None
    distance = "FD[fashion-cnn-v1@1a2b3c4d]"
    assert per_class["metrics"][distance][5] is not None
    assert per_class["se"][distance][5] is None  # 3 images are not in 10 folds
    found = row(result, "FD", "all")
    assert found["value"] is not None
    assert found["floor"] is None
    assert "needs 2 images" in found["floor_reason"]


def test_what_an_extractor_does_not_give_is_a_reason():
    gen, ref, held = (FeatureSet(part.pool, part.labels) for part in world())
    result = run(gen, ref, held, ("sFD", "CS", "CT", "FD"))
    assert row(result, "sFD", "all")["reason"] == "the extractor gives no spatial"
    assert row(result, "CS", "tail")["floor_reason"] == "the extractor gives no logits"
    assert "training images" in row(result, "CT", "tail")["reason"]
    assert row(result, "FD", "tail")["value"] > 0


def test_statistics_serve_as_a_reference_of_all_classes():
    gen, ref, held = world()
    known = Gaussian(ref.pool.mean(0), np.cov(ref.pool, rowvar=False))
    spatial = Gaussian(ref.spatial.mean(0), np.cov(ref.spatial, rowvar=False))
    result = run(gen, Statistics(known, spatial), held, ("FD", "sFD", "CS", "recall"))
    full = run(gen, ref, held, ("FD", "sFD", "CS"))
    for kind in ("FD", "sFD", "CS"):
        mine, other = row(result, kind, "all"), row(full, kind, "all")
        assert mine["value"] == pytest.approx(other["value"], rel=1e-9)
        assert mine["floor"] == pytest.approx(other["floor"], rel=1e-9)
        assert mine["se"] > 0
    assert row(result, "FD", "all")["n_ref"] is None
    assert "reference fixed" in row(result, "FD", "all")["estimator"]
    assert "all classes together" in row(result, "FD", "tail")["reason"]
    assert "no images" in row(result, "recall", "all")["reason"]
    carried = run(gen, Statistics(known, spatial, images=ref), held, ("FD", "recall"))
    assert (
        row(carried, "recall", "tail")["value"]
        == precision_recall(gen.of([4, 5]).pool, ref.of([4, 5]).pool)[1]
    )
    assert row(carried, "FD", "all")["value"] == row(result, "FD", "all")["value"]


def test_statistics_files_are_read_and_bad_ones_refused(tmp_path):
    x = draw(1, 50, 1.0)
    held = {
        "mu": x.pool.mean(0),
        "sigma": np.cov(x.pool, rowvar=False),
        "arr_0": np.zeros((2, 4, 4, 3), np.uint8),
    }
    np.savez(tmp_path / "ref.npz", **held, mu_s=x.spatial.mean(0), sigma_s=np.cov(x.spatial, rowvar=False))
    known = load_statistics(tmp_path / "ref.npz")
    assert known.spatial is not None
    assert np.array_equal(known.pool.cov, held["sigma"])
    skewed, negative = held["sigma"].copy(), held["sigma"].copy()
    skewed[0, 1] += 1
    negative[0, 0] = -1
    for name, wrong in {
        "no sigma": {"mu": held["mu"]},
        "neither mu": {"arr_0": held["arr_0"]},
        "shapes": {"mu": held["mu"][:3], "sigma": held["sigma"]},
        "NaN": {"mu": held["mu"] * np.nan, "sigma": held["sigma"]},
        "not symmetric": {"mu": held["mu"], "sigma": skewed},
        "negative": {"mu": held["mu"], "sigma": negative},
        "cannot be read": {"mu": np.array([{}]), "sigma": held["sigma"]},
    }.items():
        np.savez(tmp_path / "bad.npz", **wrong)
        with pytest.raises(UsageError, match=name):
            load_statistics(tmp_path / "bad.npz")
    (tmp_path / "cut.npz").write_bytes((tmp_path / "ref.npz").read_bytes()[:200])
    for path in ("cut.npz", "none.npz"):
        with pytest.raises(UsageError, match="cannot be read"):
            load_statistics(tmp_path / path)


def test_the_order_of_images_does_not_matter():
    """Beyond ranks within a class, which choose the folds: the order of classes is free."""
    gen, ref, held = world()
    by_class = gen.take(np.argsort(gen.labels, kind="stable"))
    wanted = ("FD", "KD", "recall", "CS")
    for a, b in zip(
        run(gen, ref, held, wanted)["rows"], run(by_class, ref, held, wanted)["rows"], strict=True
    ):
        for key in ("value", "se", "corrected", "folds"):
            assert a[key] == (b[key] if b[key] is None else pytest.approx(b[key], rel=1e-9))
    one, two = (row(run(part, ref, held, ("CS",)), "CS", "all")["value"] for part in (gen, by_class))
    assert one == two


def test_folds_depend_on_label_and_rank_alone():
    labels = np.random.default_rng(0).integers(0, 7, 300)
    folds = folds_of(labels)
    for k in range(7):
        inside = folds[labels == k]
        assert np.array_equal(inside, (np.arange(len(inside)) + inside[0]) % 10)
        assert np.ptp(np.bincount(inside, minlength=10)) <= 1
    order = np.argsort(labels, kind="stable")
    assert np.array_equal(folds_of(labels[order]), folds[order])
    assert np.bincount(folds_of(np.arange(1000)), minlength=10).tolist() == [100] * 10  # one image per class
    assert np.bincount(folds_of(np.arange(21) % 3)).tolist() == [3] + 9 * [2]  # a group of 7 images per class


def test_sets_need_one_row_per_image():
    with pytest.raises(ValueError, match="one row per image"):
        FeatureSet(np.zeros((3, 2)), np.zeros(4))
    with pytest.raises(ValueError, match="logits"):
        FeatureSet(np.zeros((3, 2)), np.zeros(3), logits=np.zeros((2, 2)))


def test_a_group_reads_only_its_rows_of_a_memmap(tmp_path):
    held = np.memmap(tmp_path / "pool", np.float32, "w+", shape=(60, 4))
    held[:] = np.random.default_rng(0).normal(size=(60, 4))
    part = FeatureSet(held, np.arange(60) % 6)
    assert part.of(range(6)) is part
    assert part.of([2]).pool.shape == (10, 4)
    by_class = FeatureSet(held, np.arange(60) // 10).of([2, 3])
    assert np.shares_memory(by_class.pool, held), "a set sorted by class, as references are, is not copied"
    assert (by_class.labels.tolist(), len(by_class.of([7]))) == ([2] * 10 + [3] * 10, 0)
    assert np.array_equal(by_class.pool, held[20:40])
    assert fd.estimate(part.pool, fd.Reference(held[:30])).value == pytest.approx(
        frechet(np.array(held), np.array(held[:30]))
    )


def test_metrics_and_groups_import_no_torch():
    code = "import ltbench.groups, ltbench.metrics.measure, sys; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    code = "import ltbench.groups, sys; assert 'numpy' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
