"""Features on disk: nothing is made twice, nothing stale or damaged is used, and no split changes a bit."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from ltbench import collect
from ltbench.collect import Collector, Preempted, Sampling, shown_classes
from ltbench.generate import Block, labels_of
from ltbench.protocols import class_groups, sampled_classes
from ltbench.shards import Shards

SHAPE = (1, 4, 4)
EVALUATION: dict[str, Any] = {
    "protocol": "small-data",
    "samples": 45,
    "classes": "all",
    "labels": "balanced",
    "sampler": "euler",
    "steps": 3,
    "guidance": 1.5,
    "block": 10,
    "seed": 0,
    "quantise": "round",
    "extractor": {"name": "mean", "sha256": "a" * 64},
    "reference": "r",
    "crop": "center",
    "metrics": ["FD"],
    "estimators": {},
}


class Mean:
    """Features that can be recomputed by hand: the pixels' mean and the first pixel."""

    def __init__(self, sha: str = "a" * 64) -> None:
        self.identity = {"name": "mean", "sha256": sha}
        self.seen = 0

    def features(self, images: Tensor) -> dict[str, Tensor]:
        assert len(images) == 10, "the extractor sees whole blocks"
        self.seen += len(images)
        flat = images.flatten(1).float()
        return {"pool": torch.stack([flat.mean(1), flat[:, 0]], 1), "logits": flat[:, :3]}


def picture(k: int) -> Tensor:
    return torch.linspace(-1, 1, 16).roll(k).reshape(SHAPE) * (k % 7 + 1) / 8


class House:
    """A folder, an extractor and a sampler that counts the blocks that it made."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.made, self.notices = folder, [], []
        self.extractor = Mean()
        self.fail_at: int | None = None

    def make(self, wanted: Iterable[int]) -> Iterator[Block]:
        for number in wanted:
            if number == self.fail_at:
                raise RuntimeError("the sampler broke")
            self.made.append(number)
            images = torch.stack([picture(k) for k in range(number * 10, number * 10 + 10)])
            yield Block(number, images, np.zeros(10, np.int64), 6)

    def collector(self, evaluation: dict[str, Any] | None = None, **more: Any) -> Collector:
        evaluation = {**EVALUATION, **(evaluation or {})}
        fixed = {
            "milestone": "m",
            "precision": "fp32",
            "code": {"sampling": "s", "network": "n"},
            **more.pop("sampling", {}),
        }
        sampling = Sampling(evaluation, pipeline="sit", network="SiT-N/4", ids=range(5), null=5, shape=SHAPE, **fixed)  # fmt: skip
        shards = {name: Shards(self.folder / name, self.notices.append) for name in ("features", "samples")}
        code = more.pop("extractor_code", "e")
        return Collector(sampling, self.extractor, code, self.make, **shards, **more)


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ltbench.collect.SHARD_IMAGES", 20)


def test_what_is_collected_is_what_the_extractor_sees(tmp_path: Path) -> None:
    found = House(tmp_path).collector().collect(45)
    images = [((picture(k) * 127.5 + 127.5).round().clamp(0, 255)).flatten() for k in range(45)]
    expected = torch.stack([torch.stack([x.mean(), x[0]]) for x in images])
    assert np.allclose(found.arrays["pool"], expected, rtol=1e-6)
    assert found.labels.tolist() == [k % 5 for k in range(45)]
    assert found.nfe == [6] * 5
    assert found.shown_numbers.tolist() == list(range(40))  # the first 8 of each of 5 classes
    assert np.array_equal(found.shown[13].flatten(), images[13].numpy().astype(np.uint8))


def test_the_same_question_samples_nothing_and_a_larger_one_only_the_rest(tmp_path: Path) -> None:
    house = House(tmp_path)
    small = house.collector().collect(25)
    assert house.made == [0, 1, 2]
    assert house.collector().collect(25).arrays["pool"].tobytes() == small.arrays["pool"].tobytes()
    assert house.made == [0, 1, 2]
    large = house.collector().collect(45)
    assert house.made == [0, 1, 2, 3, 4]
    assert np.array_equal(large.arrays["pool"][:25], small.arrays["pool"])
    again = House(tmp_path / "other").collector().collect(45)
    for name, array in large.arrays.items():
        assert array.tobytes() == again.arrays[name].tobytes()
    assert len(list((tmp_path / "features").rglob("*.safetensors"))) == 3  # the shorter second shard is gone


CHANGES: list[dict[str, Any]] = [
    {"evaluation": {"seed": 1}},
    {"evaluation": {"guidance": 2.0}},
    {"evaluation": {"quantise": "floor"}},
    {"evaluation": {"block": 5}},
    {"evaluation": {"some_new_setting": 1}},
    {"sampling": {"milestone": "other weights"}},
    {"sampling": {"precision": "bf16"}},
    {"sampling": {"code": {"sampling": "edited", "network": "n"}}},
    {"extractor_code": "edited"},
]


@pytest.mark.parametrize("change", CHANGES, ids=str)
def test_whatever_can_change_a_feature_misses_the_cache(tmp_path: Path, change: dict[str, Any]) -> None:
    house = House(tmp_path)
    keys = {house.collector()._key, house.collector(**change)._key}
    assert len(keys) == 2


def test_other_weights_of_the_extractor_miss_the_cache(tmp_path: Path) -> None:
    house = House(tmp_path)
    house.collector().collect(20)
    house.extractor = Mean("b" * 64)
    house.collector().collect(20)
    assert house.made == [0, 1, 0, 1]


@pytest.mark.parametrize(
    "change", [{"samples": 20}, {"metrics": ["KD"]}, {"protocol": "mine"}, {"groups": "shots"}], ids=str
)
def test_what_is_measured_does_not_miss_the_cache(tmp_path: Path, change: dict[str, Any]) -> None:
    house = House(tmp_path)
    house.collector().collect(20)
    house.collector(change).collect(20)
    assert house.made == [0, 1]


@pytest.mark.parametrize("damage", ["flip", "cut", "empty"])
def test_a_damaged_file_is_named_and_made_again(tmp_path: Path, damage: str) -> None:
    house = House(tmp_path)
    before = house.collector().collect(45)
    victim = sorted((tmp_path / "features").rglob("shard-000001-*"))[0]
    data = bytearray(victim.read_bytes())
    data[-3] ^= 4
    victim.write_bytes({"flip": bytes(data), "cut": bytes(data[:-9]), "empty": b""}[damage])
    after = house.collector().collect(45)
    assert house.made == [0, 1, 2, 3, 4, 2, 3]
    assert after.arrays["pool"].tobytes() == before.arrays["pool"].tobytes()
    (notice,) = house.notices
    assert victim.name in notice


def test_parts_made_by_others_are_only_read(tmp_path: Path) -> None:
    whole = House(tmp_path / "whole").collector().collect(45)
    for parts in (2, 3, 7):
        folder = tmp_path / str(parts)
        for part in reversed(range(parts)):
            House(folder).collector().part(45, part, parts)
        last = House(folder)
        found = last.collector().collect(45)
        assert last.made == []
        for name, array in whole.arrays.items():
            assert array.tobytes() == found.arrays[name].tobytes()
        assert np.array_equal(whole.shown, found.shown)


def test_a_stop_keeps_every_finished_block(tmp_path: Path) -> None:
    house = House(tmp_path)
    asked = iter([False, True])
    with pytest.raises(Preempted):
        # blocks 0 and 1 fill the first shard, which needs no asking after its last block
        house.collector(stop=lambda: next(asked, True)).collect(60)
    assert house.made == [0, 1, 2]
    found = house.collector().collect(60)
    assert house.made == [0, 1, 2, 3, 4, 5]
    assert len(found.arrays["pool"]) == 60


def test_an_error_keeps_every_finished_block(tmp_path: Path) -> None:
    house = House(tmp_path)
    house.fail_at = 3
    with pytest.raises(RuntimeError, match="broke"):
        house.collector().collect(60)
    house.fail_at = None
    house.collector().collect(60)
    assert house.made == [0, 1, 2, 3, 4, 5]


def test_a_kill_loses_no_finished_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ltbench.collect.SHARD_IMAGES", 60)
    monkeypatch.setattr("ltbench.collect.KEEP_SECONDS", 0.0)
    whole = House(tmp_path / "whole").collector().collect(60)
    pid = os.fork()
    if pid == 0:  # dies in the middle of block 4, without a word to anybody
        house = House(tmp_path)
        plain = house.extractor.features

        def features(images: Tensor) -> dict[str, Tensor]:
            if len(house.made) == 5:
                os.kill(os.getpid(), signal.SIGKILL)
            return plain(images)

        house.extractor.features = features
        house.collector().collect(60)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == -signal.SIGKILL
    again = House(tmp_path)
    found = again.collector().collect(60)
    assert again.made == [4, 5]
    for name, array in whole.arrays.items():
        assert array.tobytes() == found.arrays[name].tobytes()
    assert len(list((tmp_path / "features").rglob("*.safetensors"))) == 1


def test_a_slow_disk_is_written_to_more_rarely(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ltbench.collect.SHARD_IMAGES", 200)
    now, put, kept = [0.0], collect._put, []

    def slow(place: Shards, key: str, number: int, blocks: int, arrays: Any) -> None:
        put(place, key, number, blocks, arrays)
        kept.append(blocks)
        now[0] += 1.0

    monkeypatch.setattr(collect.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(collect, "_put", slow)
    house = House(tmp_path)
    plain = house.extractor.features

    def features(images: Tensor) -> dict[str, Tensor]:
        now[0] += 3.0
        return plain(images)

    house.extractor.features = features
    house.collector().collect(200)
    assert kept == [1, 8, 15, 20]  # a write of a second is made every twenty, the last one when all is there


def test_kept_samples_serve_another_extractor(tmp_path: Path) -> None:
    house = House(tmp_path)
    first = house.collector(keep_samples=True).collect(25)
    house.extractor = Mean("b" * 64)
    second = house.collector().collect(25)
    assert house.made == [0, 1, 2]
    assert first.arrays["pool"].tobytes() == second.arrays["pool"].tobytes()
    assert second.nfe == first.nfe
    longer = house.collector(keep_samples=True).collect(60)
    assert house.made == [0, 1, 2, 3, 4, 5]
    house.extractor = Mean("c" * 64)
    assert house.collector().collect(60).arrays["pool"].tobytes() == longer.arrays["pool"].tobytes()
    assert house.made == [0, 1, 2, 3, 4, 5]


def test_unrounded_images_reach_the_extractor_unrounded(tmp_path: Path) -> None:
    found = House(tmp_path).collector({"quantise": "none"}, keep_samples=True).collect(20)
    expected = torch.stack([((picture(k) + 1) / 2).clamp(0, 1).mean() for k in range(20)])
    assert np.allclose(found.arrays["pool"][:, 0], expected, atol=1e-7)
    assert found.shown.dtype == np.uint8
    assert found.shown[3].max() == round(float(((picture(3) + 1) / 2).clamp(0, 1).max()) * 255)


def test_images_for_figures_are_the_first_of_each_class_under_drawn_labels(tmp_path: Path) -> None:
    found = House(tmp_path).collector({"labels": "uniform", "seed": 4}).collect(60)
    labels = labels_of(range(60), {"labels": "uniform", "seed": 4}, range(5), 5)
    expected = sorted(int(k) for c in range(5) for k in np.flatnonzero(labels == c)[:8])
    assert found.shown_numbers.tolist() == expected


def test_shown_classes_are_the_ends_of_a_long_list() -> None:
    assert shown_classes(range(10)) == list(range(10))
    assert shown_classes(range(100)) == [0, 1, 2, 3, 4, 5, 94, 95, 96, 97, 98, 99]


def test_groups_of_an_evaluation() -> None:
    counts = [500, 150, 100, 50, 20, 19]
    assert class_groups({}, counts) == {"head": [0, 1], "body": [2, 3], "tail": [4, 5]}
    assert class_groups({"groups": "shots"}, counts) == {"many": [0, 1], "medium": [2, 3, 4], "few": [5]}
    assert class_groups({"groups": {"odd": [1, 3, 5]}}, counts) == {"odd": [1, 3, 5]}
    assert class_groups({"classes": "tail"}, counts) == {"tail": [4, 5]}
    assert sampled_classes({"classes": "tail"}, [5, 9, 1, 7, 3, 2]) == [2, 5]
