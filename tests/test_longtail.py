"""The long-tailed construction against published totals, selections and a literal transcription of its definition."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ltbench.datasets.longtail import profile, require_images, select, smallest_imbalance
from ltbench.errors import UsageError

# (N, K, totals at imbalance 0.01, 0.001, 0.1): published step counts agree with the first two.
SOURCES = {
    "cifar10": (50_000, 10, (12_406, 9_324, 20_431)),
    "cifar100": (50_000, 100, (10_847, 7_361, 19_573)),
    "tiny": (100_000, 200, (21_549, 14_548, 39_072)),
    "places365": (1_803_460, 365, (388_960, 262_401, 705_527)),
    "imagenet": (1_281_167, 1000, (275_288, 185_239, 500_464)),
}


@pytest.mark.parametrize("name", SOURCES)
def test_totals_are_the_published_ones(name):
    images, classes, totals = SOURCES[name]
    assert tuple(sum(profile(images / classes, classes, r)) for r in (0.01, 0.001, 0.1)) == totals


def test_profiles_class_by_class():
    def at(name, imbalance):
        images, classes, _ = SOURCES[name]
        return profile(images / classes, classes, imbalance)

    assert at("cifar10", 0.01) == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert at("cifar10", 0.001) == [5000, 2320, 1077, 500, 232, 107, 50, 23, 10, 5]
    assert at("cifar100", 0.01)[:5] == [500, 477, 455, 434, 415]
    assert at("cifar100", 0.01)[-4:] == [5, 5, 5, 5]
    assert at("tiny", 0.01)[:3] + at("tiny", 0.01)[-3:] == [500, 488, 477, 5, 5, 5]
    assert at("places365", 0.01)[:3] + at("places365", 0.01)[-3:] == [4940, 4878, 4817, 50, 50, 49]
    assert at("places365", 0.001)[-1] == 4
    assert at("imagenet", 0.01)[:3] + at("imagenet", 0.01)[-1:] == [1281, 1275, 1269, 12]
    assert at("imagenet", 0.001).count(1) == 65
    assert at("cifar100", 0.001)[-20:] == [1] * 10 + [0] * 10
    assert at("tiny", 0.001)[-20:] == [0] * 20
    assert at("tiny", 0.001)[-21] == 1


def test_no_class_gets_more_than_the_source_holds():
    sizes = [900, 700, 600, 100]
    assert profile(1000, 4, 0.1, sizes) == [900, 464, 215, 100]
    with pytest.raises(ValueError, match="3 sizes for 4 classes"):
        profile(1000, 4, 0.1, sizes[:3])


@pytest.mark.parametrize("imbalance", [0, -0.1, 1.5, float("nan")])
def test_an_imbalance_outside_its_range_is_refused(imbalance):
    with pytest.raises(UsageError, match=r"imbalance is .*allowed: above 0"):
        profile(100, 10, imbalance)


def test_selection_of_cifar10():
    """Positions inside the class, from the released code's own index arrays."""
    labels = np.repeat(np.arange(10), 5000)
    counts = profile(5000.0, 10, 0.01)
    chosen = select(labels, counts)
    inside = np.split(chosen - labels[chosen] * 5000, np.cumsum(counts)[:-1])
    assert inside[0][:5].tolist() == [398, 3833, 4836, 4572, 636]
    assert inside[1][:5].tolist() == [597, 332, 521, 3935, 4800]
    assert inside[9][:5].tolist() == [2204, 3816, 2206, 2507, 1926]
    assert int(sum(part.sum() for part in inside)) == 30_953_231


@st.composite
def _sources(draw):
    classes = draw(st.integers(1, 6))
    labels = draw(st.lists(st.integers(0, classes - 1), min_size=1, max_size=60))
    large = draw(st.lists(st.integers(0, 12), min_size=classes, max_size=classes))
    small = [draw(st.integers(0, n)) for n in large]
    return np.array(labels), large, small


@settings(max_examples=100, deadline=None)
@given(_sources())
def test_selection_is_the_definition_and_subsets_are_nested(source):
    labels, large, small = source
    np.random.seed(0)  # the definition uses the global legacy generator
    expected = []
    for c, count in enumerate(large):
        indices = [i for i, label in enumerate(labels) if label == c]
        shuffled = np.array(indices, dtype=int)
        np.random.shuffle(shuffled)
        expected += list(shuffled[:count])
    kept = select(labels, large)
    assert kept.tolist() == expected
    assert kept.dtype == np.int64
    fewer = select(labels, small)
    for c in range(len(large)):
        inside, outside = fewer[labels[fewer] == c], kept[labels[kept] == c]
        assert inside.tolist() == outside[: len(inside)].tolist()


def test_selection_leaves_the_global_generator_alone_and_depends_on_its_seed():
    labels = np.repeat(np.arange(3), 50)
    np.random.seed(7)
    before = np.random.get_state()[1].copy()
    first = select(labels, [20, 10, 5])
    assert (np.random.get_state()[1] == before).all()
    assert first.tolist() != select(labels, [20, 10, 5], seed=1).tolist()


def test_a_label_without_a_count_is_refused():
    with pytest.raises(ValueError, match="labels run from 0 to 3, but there are counts for 3"):
        select(np.array([0, 3]), [1, 1, 1])


def test_an_empty_class_is_named_with_a_remedy():
    names = ["a", "b", "c"]
    with pytest.raises(UsageError) as caught:
        require_images(profile(20, 3, 0.001), names, 20, 0.001)
    assert "leaves 2 of 3 classes" in caught.value.message
    assert "b: 0.632, c: 0.02" in caught.value.message
    assert caught.value.hint is not None
    assert "imbalance 0.05 or more" in caught.value.hint
    require_images(profile(20, 3, 0.05), names, 20, 0.05)


@settings(max_examples=300, deadline=None)
@given(st.floats(1, 1e6), st.integers(2, 50))
def test_the_suggested_imbalance_works_and_is_the_smallest(n_max, classes):
    value = smallest_imbalance(n_max, classes)
    assert min(profile(n_max, classes, value)) >= 1
    unit = 10.0 ** (int(f"{value:.2e}".partition("e")[2]) - 2)
    below = float(f"{value - unit:.2e}")  # one unit of the third digit less
    assert int(n_max * below) < 1
