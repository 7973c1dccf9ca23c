"""Real images are looked at in parts: a stop costs one part, and the features are those of one look."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ltbench.collect import Preempted
from ltbench.datasets import build_dataset
from ltbench.reals import features_of, real_features
from ltbench.shards import Shards
from ltbench.sources import has_references, reference_key, references_root

SETTINGS = {"dataset": {"name": "digits", "imbalance": 0.1, "resolution": 16}}
EVALUATION: dict[str, Any] = {
    "protocol": "small-data",
    "reference": "r",
    "crop": "center",
    "quantise": "round",
    "metrics": ["FD"],
    "extractor": {"name": "mean", "sha256": "a" * 64},
}


class Mean:
    """Counts the images that it has seen."""

    identity = EVALUATION["extractor"]

    def __init__(self) -> None:
        self.seen = 0

    def features(self, images: Tensor) -> dict[str, Tensor]:
        self.seen += len(images)
        return {"pool": images.flatten(1).float().mean(1, keepdim=True)}


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ltbench.reals.CHUNK", 20)
    monkeypatch.setattr("ltbench.reals.PART", 60)


def test_a_stopped_look_goes_on_where_it_was(tmp_path: Path) -> None:
    data, shards = build_dataset(SETTINGS["dataset"]), Shards(references_root(tmp_path))
    key, extractor = reference_key(SETTINGS["dataset"], EVALUATION), Mean()
    asked = iter(
        [False] * 8
    )  # of the reference's 500 images: two parts of three chunks, and two chunks of the third
    with pytest.raises(Preempted):
        real_features(data, SETTINGS, EVALUATION, extractor, shards, stop=lambda: next(asked, True))
    assert extractor.seen == 160
    assert not has_references(tmp_path, key)
    found = real_features(data, SETTINGS, EVALUATION, extractor, shards)
    assert extractor.seen == 160 + (500 - 120) + 200
    whole = features_of(data.reference().images, Mean(), "round")
    assert np.array_equal(found["reference"]["pool"], whole["pool"])
    assert np.array_equal(found["reference"]["labels"], data.reference().labels)
    assert {name.partition("-")[0] for name in shards.names(key)} == {"reference", "holdout"}
    assert not any("-part-" in name for name in shards.names(key))
    assert has_references(tmp_path, key)
    again = Mean()
    real_features(data, SETTINGS, EVALUATION, again, shards)
    assert again.seen == 0


def test_unrounded_protocols_see_floats() -> None:
    images = np.full((3, 1, 4, 4), 51, dtype=np.uint8)
    assert np.allclose(features_of(images, Mean(), "none")["pool"], 0.2)
    assert torch.equal(torch.tensor(features_of(images, Mean(), "floor")["pool"]), torch.full((3, 1), 51.0))
