"""What six generators of known virtue score: which metric sees which fault (tests/six_generators.py)."""

from __future__ import annotations

import numpy as np
import pytest

from ltbench.metrics.frechet import frechet
from ltbench.metrics.memorisation import Against, copying
from ltbench.metrics.neighbours import prdc
from ltbench.metrics.sets import folds_of
from ltbench.metrics.vendi import vendi_ratio
from tests.six_generators import CLASSES, MANY, TRAIN, D, World

COPIERS = ("copies", "collapse", "mixtures")


@pytest.fixture(scope="module")
def world():
    return World()


@pytest.fixture(scope="module")
def scores(world):
    return {name: _scores(world, generated) for name, generated in world.generators.items()}


def _scores(world, gen):
    ref, train, held = world.reference, world.train, world.holdout
    found = copying(
        gen.values,
        train.values,
        held.values,
        gen_labels=gen.labels,
        train_labels=train.labels,
        holdout_labels=held.labels,
    )
    three = prdc(gen.values, ref.values, folds_gen=folds_of(gen.labels), folds_ref=folds_of(ref.labels))
    five = prdc(gen.values, ref.values, k=5)
    diversity = vendi_ratio(gen.values, ref.values, gen_labels=gen.labels, real_labels=ref.labels, most=200)
    for each in (found.ct, found.copied, found.authenticity):
        assert isinstance(each, Against)
    return {
        "precision": three.precision,
        "recall": three.recall,
        "density": five.density,
        "coverage": five.coverage,
        "ct": found.ct,
        "copied": found.copied,
        "authenticity": found.authenticity,
        "vendi": diversity.estimate,
        "FD": frechet(gen.values, ref.values),
        "FD to train": frechet(gen.values, train.values),
    }


def value(scores, name, metric):
    found = scores[name][metric]
    return (found.estimate if isinstance(found, Against) else found).value


def test_the_fixture_is_what_it_says(world):
    assert world.train.values.shape == (CLASSES * TRAIN, D)
    for generated in world.generators.values():
        assert np.bincount(generated.labels).tolist() == [MANY] * CLASSES


def test_copies_are_caught_by_every_measure_of_memorisation(scores):
    for name in COPIERS:
        assert value(scores, name, "ct") < -3, name
        assert value(scores, name, "copied") > 0.95, name
        assert value(scores, name, "authenticity") < 0.05, name


def test_an_honest_generator_is_not_accused(scores):
    assert abs(value(scores, "oracle", "ct")) < 3
    oracle = scores["oracle"]
    for metric in ("copied", "authenticity"):
        estimate = oracle[metric].estimate
        assert abs(estimate.value - oracle[metric].real) < 4 * estimate.se + 0.01, metric
    assert abs(oracle["ct"].real) < 3
    assert oracle["copied"].real == pytest.approx(0.05, abs=0.001)
    assert abs(value(scores, "oracle", "vendi") - 1) < 0.05


def test_half_copies_pass_everything_but_the_measures_of_memorisation(scores):
    for metric in ("precision", "recall", "density", "coverage"):
        assert value(scores, "half copies", metric) == pytest.approx(
            value(scores, "oracle", metric), abs=0.12
        )
    assert scores["half copies"]["FD"] < 3
    half = scores["half copies"]["ct"].estimate
    assert half.value + 3 * half.se < -3
    assert 0.4 < value(scores, "half copies", "copied") < 0.65
    assert value(scores, "half copies", "authenticity") < 0.4 < value(scores, "oracle", "authenticity")
    assert value(scores, "half copies", "vendi") < 0.5


def test_a_reference_of_training_images_prefers_the_copier(scores):
    """Why the reference is never the long-tailed training set."""
    assert scores["copies"]["FD to train"] < 1 < scores["oracle"]["FD to train"]
    assert scores["copies"]["FD"] > 5 > 1 > scores["oracle"]["FD"]


def test_density_explodes_on_mixtures_and_recall_sees_copies(scores):
    assert value(scores, "mixtures", "density") > 10
    assert value(scores, "mixtures", "precision") > 0.98
    for name in ("oracle", "half copies"):
        assert 0.7 < value(scores, name, "density") < 1.3
    for name in COPIERS:
        assert value(scores, name, "recall") < 0.05
    assert value(scores, "collapse", "coverage") < 0.1 < value(scores, "copies", "coverage")


def test_vendi_sees_collapse_and_blur(scores):
    order = [value(scores, name, "vendi") for name in ("collapse", "copies", "half copies", "oracle", "blur")]
    assert order == sorted(order)
    assert order[0] < 0.05 < order[1] < 0.2
    assert order[-1] > 1.2


def test_blur_is_authentic_and_only_its_sign_tells(scores):
    assert value(scores, "blur", "authenticity") > value(scores, "oracle", "authenticity")
    assert value(scores, "blur", "ct") > 3
    assert value(scores, "blur", "copied") < 0.05
    assert value(scores, "blur", "recall") > 0.9 > 0.6 > value(scores, "blur", "precision")


def test_generated_and_reference_in_each_others_place_are_noticed(world, scores):
    """torch-fidelity#58: for almost three years its precision was the recall."""
    collapse, ref = world.generators["collapse"], world.reference
    assert value(scores, "collapse", "precision") > 0.6
    assert value(scores, "collapse", "recall") == 0
    swapped = prdc(ref.values, collapse.values)
    assert swapped.precision.value == value(scores, "collapse", "recall")
    assert swapped.recall.value == value(scores, "collapse", "precision")
    assert swapped.coverage.value < 0.6 * prdc(ref.values, ref.values).coverage.value


def test_generated_and_held_out_in_each_others_place_turn_the_sign_of_ct(world, scores):
    copies, train, held = world.generators["copies"], world.train, world.holdout
    found = copying(
        held.values,
        train.values,
        copies.values,
        gen_labels=held.labels,
        train_labels=train.labels,
        holdout_labels=copies.labels,
    )
    assert isinstance(found.ct, Against)
    assert found.ct.estimate.value == pytest.approx(-value(scores, "copies", "ct"), rel=1e-12)
    assert found.ct.estimate.value > 3


@pytest.mark.parametrize("seed", [1, 2])
def test_the_pattern_does_not_hang_on_one_draw(seed):
    other = World(seed)
    train, held = other.train, other.holdout

    def ct(name):
        gen = other.generators[name]
        found = copying(
            gen.values,
            train.values,
            held.values,
            gen_labels=gen.labels,
            train_labels=train.labels,
            holdout_labels=held.labels,
        ).ct
        assert isinstance(found, Against)
        return found.estimate.value

    assert abs(ct("oracle")) < 3
    assert max(ct(name) for name in (*COPIERS, "half copies")) < -3
    assert ct("blur") > 3
