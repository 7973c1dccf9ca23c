"""Real images are looked at in parts: a stop costs one part, and the features are those of one look."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from torch import Tensor

from ltbench.collect import Preempted
from ltbench.datasets import Images, build_dataset
from ltbench.errors import LtbenchError
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
    assert all(isinstance(found[name]["pool"], np.memmap) for name in ("reference", "holdout")), (
        "not in memory"
    )
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


def test_joined_parts_are_one_file_of_the_format(tmp_path: Path) -> None:
    shards, numbers = Shards(tmp_path), np.random.default_rng(0)
    parts = [
        {
            "pool": numbers.random((rows, 5), np.float32),
            "half": numbers.random((rows, 2, 3), np.float32).astype(np.float16),
            "number": numbers.integers(0, 9, rows),
        }
        for rows in (3, 1, 4)
    ]
    for i, part in enumerate(parts):
        shards.write("k", f"p-{i}", part)
    names = ["p-0", "p-1", "p-2"]
    path = shards.join("k", "whole", names)
    whole = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    for found in (load_file(path), shards.read("k", "whole"), shards.mapped("k", "whole")):
        assert found is not None
        assert set(found) == set(whole)
        assert all(
            np.array_equal(found[name], whole[name]) and found[name].dtype == whole[name].dtype
            for name in whole
        )
    assert shards.write("k", "whole", whole) == path, "the bytes that it would have been written with at once"
    shards.remove("k", "p-1")
    with pytest.raises(LtbenchError, match="p-1 was removed or damaged"):
        shards.join("k", "again", names)
    assert sorted(shards.names("k")) == ["p-0", "p-2", "whole"]
    assert not [path for path in (tmp_path / "k").iterdir() if path.name.startswith(".tmp")]


def test_hashing_looks_at_mapped_images_piece_by_piece(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = np.random.default_rng(0).integers(0, 256, (10, 3, 4, 4), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    labels = np.arange(10)
    told = hashlib.sha256(b"(10, 3, 4, 4)" + images.tobytes() + labels.astype("<i8").tobytes()).hexdigest()
    monkeypatch.setattr("ltbench.datasets.HASH_BYTES", 3 * images[0].nbytes)
    looked, plain = [], np.ascontiguousarray
    monkeypatch.setattr(np, "ascontiguousarray", lambda part: looked.append(len(part)) or plain(part))
    mapped = np.load(tmp_path / "images.npy", mmap_mode="r")
    assert Images(mapped, labels, labels).sha256() == told
    assert looked == [3, 3, 3, 1]
