"""Checkpoints: what is loaded is what was saved, to the last bit, or it is not loaded."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from ltbench import checkpoint, files
from ltbench.checkpoint import (
    CheckpointDamaged,
    CheckpointRefused,
    load_milestone,
    newest_checkpoint,
    prune_checkpoints,
    save_checkpoint,
    save_milestone,
    weights_sha256,
)
from ltbench.errors import LtbenchError
from ltbench.store import sealed
from tests import store_faults as faults
from tests.checkpoint_world import CELL, RUN, groups, load, loaded, save

torch.set_num_threads(1)


# --- round trips -------------------------------------------------------------------------------------------------------


def test_the_newest_comes_back(tmp_path: Path) -> None:
    assert load(tmp_path / "absent") is None
    assert load(tmp_path) is None
    for step in (20, 560, 100):
        path = save(tmp_path, step)
        assert path == tmp_path / f"step-{step:09d}.a1"
    assert sorted(child.name for child in path.iterdir()) == [
        "MANIFEST.json",
        "ema.safetensors",
        "method.safetensors",
        "model.safetensors",
        "optim.safetensors",
        "state.json",
    ]
    found = loaded(tmp_path)
    assert (found.step, found.attempt, found.quarantined) == (560, 1, ())
    save(tmp_path, 560, attempt=10)
    save(tmp_path, 560, attempt=9)
    assert loaded(tmp_path).attempt == 10


ODD = {
    "nan with a payload": torch.tensor([0x7FC12345, -1], dtype=torch.int32).view(torch.float32),
    "minus zero": torch.tensor(-0.0),
    "bf16 0-d": torch.tensor(1.5, dtype=torch.bfloat16),
    "half": torch.randn(3, generator=torch.Generator().manual_seed(0)).half(),
    "double": torch.tensor([math.pi], dtype=torch.float64),
    "bool": torch.tensor([True, False]),
    "bytes": torch.arange(256, dtype=torch.uint8),
    "int64 0-d": torch.tensor(2**62),
    "complex": torch.tensor([1 + 2j], dtype=torch.complex64),
    "empty": torch.zeros(0, 3),
    "transposed": torch.arange(6.0).reshape(2, 3).t(),
    "strided": torch.arange(10.0)[::3],
    "expanded": torch.tensor([1.0]).expand(4),
    "grad": torch.nn.Parameter(torch.ones(2)),
    "ünïcode.weight": torch.ones(1),
}


def test_odd_tensors_come_back_bit_for_bit(tmp_path: Path) -> None:
    shared = torch.arange(12.0)
    tensors = {**ODD, "tied 1": shared, "tied 2": shared, "slice": shared[3:7]}
    save_checkpoint(tmp_path, 1, {"model": tensors}, {}, cell=CELL, run=RUN, attempt=1)
    found = load(tmp_path)
    assert found is not None
    assert set(found.tensors["model"]) == set(tensors)
    for name, tensor in tensors.items():
        back = found.tensors["model"][name]
        assert (back.dtype, back.shape) == (tensor.dtype, tensor.shape), name
        flat = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        assert torch.equal(back.reshape(-1).view(torch.uint8), flat), name
        if back.is_floating_point():
            back.add_(1)  # what was loaded can be trained on


def test_equal_content_gives_equal_bytes_whatever_the_order(tmp_path: Path) -> None:
    def reverse(value: dict[str, Any]) -> dict[str, Any]:
        return dict(reversed(value.items()))

    one, two = groups(7), {name: reverse(group) for name, group in reversed(groups(7).items())}
    paths = [
        save_checkpoint(tmp_path / name, 7, tensors, state, cell=CELL, run=RUN, attempt=1)
        for name, tensors, state in (("one", one, {"a": 1, "b": 2}), ("two", two, {"b": 2, "a": 1}))
    ]
    for path in paths[0].iterdir():
        assert path.read_bytes() == (paths[1] / path.name).read_bytes()
    assert weights_sha256(one["model"]) == weights_sha256(two["model"])


def test_weights_sha256_tells_apart_what_differs() -> None:
    base = torch.tensor([1.0, 2.0])
    bits = base.view(torch.int32)
    variants = [
        {"w": base},
        {"v": base},
        {"w": base.reshape(2, 1)},
        {"w": bits},
        {"w": torch.tensor([1.0, 2.0000002])},
        {"w": base[:1], "w2": base[1:]},
        {"w": base, "z": torch.zeros(0)},
        {},
    ]
    assert len({weights_sha256(variant) for variant in variants}) == len(variants)
    assert weights_sha256({"w": base}) == weights_sha256({"w": torch.stack([base, base])[1]})


def test_saving_the_same_again_is_nothing_and_other_bytes_replace(tmp_path: Path) -> None:
    path = save(tmp_path, 5)
    before = path.stat().st_ino
    assert save(tmp_path, 5) == path
    assert path.stat().st_ino == before
    save_checkpoint(tmp_path, 5, groups(6), {}, cell=CELL, run=RUN, attempt=1)
    found = load(tmp_path)
    assert found is not None
    assert torch.equal(found.tensors["model"]["w"], groups(6)["model"]["w"])
    (path / "state.json").unlink()  # damaged, and made again
    save(tmp_path, 5)
    assert loaded(tmp_path).step == 5


def test_a_state_that_json_cannot_hold_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nan.*state\.loss\[1\]"):
        save_checkpoint(tmp_path, 1, {}, {"loss": [1.0, math.nan]}, cell=CELL, run=RUN, attempt=1)
    with pytest.raises(ValueError, match="tensor group"):
        save_checkpoint(tmp_path, 1, {"../x": {}}, {}, cell=CELL, run=RUN, attempt=1)
    assert load(tmp_path) is None


# --- refusal and damage ------------------------------------------------------------------------------------------------


def test_another_runs_checkpoint_is_refused(tmp_path: Path) -> None:
    save(tmp_path, 5, run="f" * 12)
    with pytest.raises(CheckpointRefused, match=f"run {'f' * 12}, not of {RUN}"):
        load(tmp_path)
    with pytest.raises(CheckpointRefused, match=f"cell {CELL}, not of other"):
        newest_checkpoint(tmp_path, cell="other", run=RUN)
    assert (tmp_path / "step-000000005.a1").is_dir()  # it is somebody's


def test_a_newer_format_is_refused(tmp_path: Path) -> None:
    path = save(tmp_path, 5) / "MANIFEST.json"
    path.write_bytes(sealed.seal(sealed.unseal(path.read_bytes()) | {"format": 2}))
    with pytest.raises(CheckpointRefused, match="format 2; this ltbench reads up to 1"):
        load(tmp_path)


def test_a_damaged_one_is_set_aside_and_the_one_before_is_used(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
    (tmp_path / "step-000000003.a1" / "ema.safetensors").unlink()
    with open(tmp_path / "step-000000002.a1" / "model.safetensors", "r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x77")
    found = loaded(tmp_path)
    assert found.step == 1
    assert [each.path.name for each in found.quarantined] == [
        "damaged-step-000000003.a1",
        "damaged-step-000000002.a1",
    ]
    assert "ema.safetensors" in str(found.quarantined[0])
    assert "sha256" in str(found.quarantined[1])
    assert loaded(tmp_path).quarantined == ()  # told once


def test_all_damaged_stops_and_stays_stopped(tmp_path: Path) -> None:
    for step in (1, 2):
        (save(tmp_path, step) / "state.json").write_text("{}")
    for _ in range(2):  # the second start must not take the empty folder for a fresh run
        with pytest.raises(CheckpointDamaged) as caught:
            load(tmp_path)
        assert [each.path.name for each in caught.value.quarantined] == [
            "damaged-step-000000002.a1",
            "damaged-step-000000001.a1",
        ] or len(caught.value.quarantined) == 2
        assert "from step 0" in str(caught.value)
        assert str(tmp_path) in str(caught.value)


def test_parts_of_another_step_are_noticed(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
    shutil.copy(tmp_path / "step-000000001.a1" / "model.safetensors", tmp_path / "step-000000002.a1")
    shutil.rmtree(tmp_path / "step-000000003.a1")
    shutil.copytree(tmp_path / "step-000000001.a1", tmp_path / "step-000000003.a1")
    found = loaded(tmp_path)
    assert found.step == 1
    assert "MANIFEST.json is of step 1" in str(found.quarantined[0])


def test_a_hostile_manifest_opens_nothing_outside(tmp_path: Path) -> None:
    path = save(tmp_path / "c", 5) / "MANIFEST.json"
    content = sealed.unseal(path.read_bytes())
    content["files"]["../../secret.safetensors"] = {"sha256": "0" * 64, "bytes": 1}
    path.write_bytes(sealed.seal(content))
    os.mkfifo(tmp_path / "secret.safetensors")
    with pytest.raises(CheckpointDamaged, match="lists no files of a checkpoint"):
        load(tmp_path / "c")


def test_nothing_is_unpickled(tmp_path: Path) -> None:
    code = (
        "import sys, pickle, pathlib, torch, ltbench.checkpoint as c\n"
        "def no(*a, **k): raise SystemExit('pickle was used')\n"
        "pickle.load = pickle.loads = pickle.dump = pickle.dumps = torch.load = torch.save = no\n"
        "f = pathlib.Path(sys.argv[1])\n"
        "c.save_checkpoint(f, 1, {'model': {'w': torch.ones(2)}}, {'a': 1}, cell='c', run='r', attempt=1)\n"
        "assert c.newest_checkpoint(f, cell='c', run='r').state == {'a': 1}\n"
    )
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True)


# --- pruning and milestones --------------------------------------------------------------------------------------------


def test_pruning_keeps_two_sound_ones(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4, 5):
        save(tmp_path, step)
    (tmp_path / "step-000000005.a1" / "MANIFEST.json").write_text("{}")  # not sound: does not count
    (tmp_path / "step-000000001.a1" / "state.json").unlink()
    (tmp_path / "step-000000001.a1").rename(tmp_path / "damaged-step-000000001.a1")
    assert sorted(path.name for path in prune_checkpoints(tmp_path)) == [
        "damaged-step-000000001.a1",
        "step-000000002.a1",
    ]
    assert sorted(os.listdir(tmp_path)) == ["step-000000003.a1", "step-000000004.a1", "step-000000005.a1"]
    assert prune_checkpoints(tmp_path) == []
    assert loaded(tmp_path).step == 4
    with pytest.raises(ValueError, match="at least 2"):
        prune_checkpoints(tmp_path, keep=1)


def test_a_run_that_goes_back_keeps_what_it_saves(tmp_path: Path) -> None:
    for step in (10, 540, 560):
        save(tmp_path, step)
    (tmp_path / "step-000000540.a1" / "state.json").unlink()
    found = newest_checkpoint(tmp_path, cell=CELL, run=RUN, at_most=279)
    assert found is not None
    assert (found.step, found.quarantined) == (10, ())  # what is later is not looked at
    for step in (100, 200, 270):
        save(tmp_path, step, attempt=2)
        prune_checkpoints(tmp_path, at_most=step)
    assert [path.name[5:14].lstrip("0") for path in sorted(tmp_path.iterdir())] == [
        "200",
        "270",
        "540",
        "560",
    ]
    assert loaded(tmp_path).step == 560
    (tmp_path / "step-000000560.a1" / "state.json").unlink()
    assert loaded(tmp_path).step == 270  # 540 and 560 are set aside
    assert (
        newest_checkpoint(tmp_path, cell=CELL, run=RUN, at_most=150) is None
    )  # and do not speak for earlier steps


def test_milestones_stay_and_are_verified(tmp_path: Path) -> None:
    ema = groups(3)["ema"]
    sha = save_milestone(tmp_path, 560, ema, {"settings": {"seed": 0}})
    assert sha == weights_sha256(ema)
    assert save_milestone(tmp_path, 560, ema, {"settings": {"seed": 0}}) == sha
    back, info = load_milestone(tmp_path, 560)
    assert weights_sha256(back) == sha
    assert info == {"settings": {"seed": 0}, "sha256": sha}
    other = save_milestone(tmp_path, 560, groups(4)["ema"], {})
    assert other != sha
    assert load_milestone(tmp_path, 560)[1] == {"sha256": other}
    with pytest.raises(LtbenchError, match=r"step-000000561 does not exist \(kept: step-000000560\)"):
        load_milestone(tmp_path, 561)
    path = tmp_path / "step-000000560" / "ema.safetensors"
    sound, rng = path.read_bytes(), random.Random(0)
    for number in range(30):
        path.write_bytes(faults.damage(sound, number, rng))
        with pytest.raises(CheckpointDamaged, match=r"ema\.safetensors"):
            load_milestone(tmp_path, 560)


def test_the_manifest_is_documented_json(tmp_path: Path) -> None:
    manifest = json.loads((save(tmp_path, 5, attempt=3) / "MANIFEST.json").read_text())
    assert {key: manifest[key] for key in ("format", "cell", "run", "step", "attempt")} == {
        "format": 1,
        "cell": CELL,
        "run": RUN,
        "step": 5,
        "attempt": 3,
    }
    for name, told in manifest["files"].items():
        data = (tmp_path / "step-000000005.a3" / name).read_bytes()
        assert told == {"sha256": files.sha256_bytes(data), "bytes": len(data)}
    assert checkpoint.MANIFEST not in manifest["files"]
