"""Checkpoints under kills, damage and disk errors: the last good one is always there."""

from __future__ import annotations

import errno
import os
import random
import shutil
import signal
from pathlib import Path

import pytest
import torch

from ltbench import files
from ltbench.checkpoint import (
    CheckpointDamaged,
    load_milestone,
    prune_checkpoints,
    save_checkpoint,
    save_milestone,
    verify_checkpoint,
)
from tests import store_faults as faults
from tests.checkpoint_world import CELL, RUN, groups, loaded, save

torch.set_num_threads(1)


# --- damage ----------------------------------------------------------------------------------------------------------


@pytest.mark.faults
def test_every_mutation_is_noticed(tmp_path: Path) -> None:
    path, rng = save(tmp_path, 5), random.Random(0)
    parts = sorted(path.iterdir())
    sound = {part: part.read_bytes() for part in parts}
    for number in range(faults.scaled(1000)):
        part = rng.choice(parts)
        part.write_bytes(faults.damage(sound[part], number, rng))
        with pytest.raises(files.Unreadable):
            verify_checkpoint(path)
        part.write_bytes(sound[part])
    assert verify_checkpoint(path)["step"] == 5


@pytest.mark.faults
def test_after_any_mutation_the_previous_one_is_used(tmp_path: Path) -> None:
    save(tmp_path / "start", 1)
    save(tmp_path / "start", 2)
    rng = random.Random(1)
    for number in range(faults.scaled(60)):
        place = Path(shutil.copytree(tmp_path / "start", tmp_path / str(number)))
        part = rng.choice(sorted((place / "step-000000002.a1").iterdir()))
        part.write_bytes(faults.damage(part.read_bytes(), number, rng))
        found = loaded(place)
        assert (found.step, len(found.quarantined)) == (1, 1)


# --- kills and disk errors ---------------------------------------------------------------------------------------------


@pytest.mark.faults
def test_save_killed_at_every_call(tmp_path: Path) -> None:
    start = tmp_path / "start"
    save(start, 1)
    number, status = 0, -signal.SIGKILL
    while status == -signal.SIGKILL:
        number += 1
        place = Path(shutil.copytree(start, tmp_path / str(number)))
        status = faults.kill_at(
            lambda place=place: (save(place, 2), save_milestone(place / "m", 2, groups(2)["ema"], {})), number
        )
        found = loaded(place)
        assert found.step in (1, 2)
        assert found.quarantined == ()
        save(place, 3)
        assert not faults.leftovers(place / "m") or not (place / "m" / "step-000000002").exists()
        save_milestone(place / "m", 2, groups(2)["ema"], {})
        assert load_milestone(place / "m", 2)[1]["sha256"]
        assert not faults.leftovers(place)
        assert loaded(place).step == 3
    assert status == 0
    assert number > 40


@pytest.mark.faults
def test_prune_killed_at_every_call(tmp_path: Path) -> None:
    for step in (1, 2, 3, 4):
        save(tmp_path / "start", step)
    number, status = 0, -signal.SIGKILL
    while status == -signal.SIGKILL:
        number += 1
        place = Path(shutil.copytree(tmp_path / "start", tmp_path / str(number)))
        status = faults.kill_at(lambda place=place: prune_checkpoints(place), number)
        found = loaded(place)
        assert (found.step, found.quarantined) == (4, ())
        prune_checkpoints(place)
        assert sorted(name for name in os.listdir(place) if name[0] != ".") == [
            "step-000000003.a1",
            "step-000000004.a1",
        ]
    assert status == 0


@pytest.mark.faults
@pytest.mark.parametrize("code", faults.DISK_ERRORS)
@pytest.mark.parametrize("lasting", [False, True])
def test_save_meets_disk_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, lasting: bool
) -> None:
    monkeypatch.setattr("ltbench.files.problems._PAUSES", (0.0, 0.0, 0.0))
    save(tmp_path, 1)
    total = faults.calls_of(lambda: save(tmp_path, 2), only=faults.writes)
    passing = code in (errno.EIO, errno.ESTALE) and not lasting
    for number in range(1, total + 1):
        step = 10 + number
        failed = None
        with faults.counting(faults.error(code), number, lasting=lasting, only=faults.writes):
            try:
                save(tmp_path, step)
            except files.StorageProblem as problem:
                failed = problem
        assert (failed is None) == passing
        assert failed is None or failed.code == code
        assert not faults.leftovers(tmp_path)
        assert loaded(tmp_path).step in (step, step - 1, 2)
        prune_checkpoints(tmp_path)


def test_a_disk_that_lies_is_found_out_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 1)
    real = os.write
    monkeypatch.setattr(
        os,
        "write",
        lambda handle, data: real(handle, bytes(data).replace(b"\x00\x00\x80\x3f", b"\x00\x00\x80\x3e")),
    )
    with pytest.raises(CheckpointDamaged, match="reads back differently"):
        save_checkpoint(tmp_path, 2, {"model": {"w": torch.ones(8)}}, {}, cell=CELL, run=RUN, attempt=1)
    monkeypatch.setattr(os, "write", real)
    assert loaded(tmp_path).step == 1


FULL = """
import subprocess, sys, torch
from pathlib import Path
from ltbench import checkpoint, files
place = Path(sys.argv[1])
tensors = {"model": {"w": torch.arange(4096.0)}, "ema": {"w": torch.arange(4096.0)}}
def mount(size, *more):
    subprocess.run(["mount", "-t", "tmpfs", "-o", ",".join([f"size={size}k", *more]), "tmpfs", place], check=True)
def save(step):
    checkpoint.save_checkpoint(place / "c", step, tensors, {}, cell="c", run="r", attempt=1)
mount(64)
save(1)
refused = 0
for size in range(64, 164, 4):
    mount(size, "remount")
    try:
        save(2)
    except files.StorageProblem as problem:
        assert problem.exit_code == 4 and "No space left" in str(problem) and "free" in str(problem), problem
        refused += 1
        assert checkpoint.newest_checkpoint(place / "c", cell="c", run="r").step == 1, size
    else:
        assert checkpoint.newest_checkpoint(place / "c", cell="c", run="r").step == 2, size
        subprocess.run(["rm", "-r", place / "c" / "step-000000002.a1"], check=True)
    assert not list((place / "c").glob(".tmp-*")), size
assert 3 < refused < 25, refused
"""


@pytest.mark.faults
def test_disks_of_every_size_keep_the_last_checkpoint(tmp_path: Path) -> None:
    faults.in_own_mounts(FULL, tmp_path)
