"""Disks that lose power, have no room, answer late, or are slower than a job's warning."""

from __future__ import annotations

import json
import os
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from ltbench import files
from ltbench.checkpoint import load_milestone, newest_checkpoint, save_checkpoint, save_milestone
from ltbench.stages import train as training
from ltbench.store import Claim, Store, sealed
from tests import cli_world
from tests import store_faults as faults
from tests.faults.power import Disk, losing_power
from tests.test_job import House

cli, here = cli_world.cli, cli_world.here  # fixtures
pytestmark = pytest.mark.faults
IDS = {"cell": "c" * 64, "run": "b" * 12}


# --- power (F22) ----------------------------------------------------------------------------------------------------------


def at_every_loss(folder: Path, images: Path, check: Callable[[Path], None]) -> Callable[[Disk, str], None]:
    """Looks at what is left after a power loss at each change, on both kinds of disk."""

    def loss(disk: Disk, call: str) -> None:
        for hasty in (False, True):
            shutil.rmtree(images, ignore_errors=True)
            disk.put(images, hasty=hasty)
            check(images)

    return loss


def checkpoint(folder: Path, step: int) -> None:
    tensors = {"model": {"w": torch.full((8,), float(step))}, "ema": {"w": torch.zeros(8)}}
    save_checkpoint(folder, step, tensors, {"step": step}, attempt=1, **IDS)


def test_a_power_loss_at_any_moment_leaves_the_old_checkpoint_or_the_new(tmp_path: Path) -> None:
    folder = tmp_path / "disk" / "checkpoints"
    checkpoint(folder, 1)
    seen: list[int] = []

    def check(image: Path) -> None:
        found = newest_checkpoint(image / "checkpoints", cell=IDS["cell"], run=IDS["run"])
        assert found is not None
        assert found.quarantined == (), "a name that leads to nothing was made durable"
        assert float(found.tensors["model"]["w"][0]) == found.step
        seen.append(found.step)

    with losing_power(tmp_path / "disk", at_every_loss(folder, tmp_path / "image", check)):
        checkpoint(folder, 2)
    assert len(seen) > 20
    assert seen[-2:] == [2, 2], "on either disk what was said to be saved is there"
    assert 1 in seen


def test_a_power_loss_at_any_moment_loses_no_record_that_was_said_to_be_kept(tmp_path: Path) -> None:
    store = Store.open(tmp_path / "disk" / "store", tmp_path / "disk" / "scratch")
    run = store.run(*IDS.values())
    run.put_record("train", 1, {"x": 1}, {"attempt": 1})
    steps: list[list[int]] = []

    def check(image: Path) -> None:
        found = Store.open(image / "store", image / "scratch", write=False).run(*IDS.values()).records()
        assert found.damaged == []
        steps.append([record.step for record in found])

    with losing_power(tmp_path / "disk", at_every_loss(store.root, tmp_path / "image", check)):
        run.put_record("train", 2, {"x": 2}, {"attempt": 1})
    assert steps[-2:] == [[1, 2], [1, 2]]
    assert all(1 in found for found in steps)


# --- room (F23) -----------------------------------------------------------------------------------------------------------


def test_what_has_no_room_is_refused_before_it_begins(
    here: Path, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (cost,) = [json.loads(cli("plan", "little.yaml", "--json")[1])["cost"]]
    one, whole = cost["cells"][0]["scratch"]["bytes"], cost["scratch"]["bytes"]
    monkeypatch.setattr(files, "free", lambda path: one - 1)
    code, _, err = cli("run", "little.yaml", "--job", "cli_jobs:run_job")
    assert code == 4
    assert "scratch has" in err
    assert "set LTBENCH_SCRATCH to a larger disk" in err
    assert list((here / "store").rglob("claims/*")) == [], "nothing was begun"
    monkeypatch.setattr(files, "free", lambda path: whole - 1)
    code, _, err = cli("run", "little.yaml", "--job", "cli_jobs:run_job")
    assert (code, "note: " in err, "all of this leaves" in err) == (0, True, True)
    assert files.free(here) == whole - 1
    monkeypatch.undo()
    found = os.statvfs(here)
    assert files.free(here / "not" / "there" / "yet") == pytest.approx(
        found.f_bavail * found.f_frsize, rel=0.1
    )


# --- a client that answers from its cache (F28) ----------------------------------------------------------------------------


def test_a_name_that_this_node_does_not_see_yet_is_asked_for_at_the_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A node may answer from its cache for a minute that a milestone is not there; a change of its own in the folder ends that."""
    save_milestone(tmp_path, 4, {"w": torch.ones(3)}, {})
    cached, real_stat, real_rename = {tmp_path / "step-000000004"}, os.stat, os.rename

    def stat(path: Any, *args: Any, **kwargs: Any) -> os.stat_result:
        if isinstance(path, str | Path) and Path(path) in cached:
            raise FileNotFoundError(2, "No such file or directory", str(path))
        return real_stat(path, *args, **kwargs)

    def rename(old: Any, new: Any, *args: Any, **kwargs: Any) -> None:
        real_rename(old, new, *args, **kwargs)
        cached.difference_update([each for each in cached if each.parent == Path(new).parent])

    monkeypatch.setattr(os, "stat", stat)
    monkeypatch.setattr(os, "lstat", stat)
    monkeypatch.setattr(os, "rename", rename)
    monkeypatch.setattr(os, "replace", rename)
    assert not (tmp_path / "step-000000004").is_dir(), "the cache"
    ema, _ = load_milestone(tmp_path, 4)
    assert torch.equal(ema["w"], torch.ones(3))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["step-000000004"]


# --- a save that takes longer than the warning (F07) ------------------------------------------------------------------------


def test_a_save_that_the_warning_leaves_no_time_for_is_said_once_with_what_to_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.set_num_threads(1)
    house = House(tmp_path)
    clock = [0.0]
    real = training.save_checkpoint

    def slow(*args: Any, **kwargs: Any) -> Path:
        clock[0] += 50.0
        return real(*args, **kwargs)

    monkeypatch.setattr(training, "save_checkpoint", slow)
    monkeypatch.setattr(training.time, "monotonic", lambda: clock[0])
    assert house.run(house.cell(), "train:4,8", grace=60.0, checkpoint_seconds=0.0)["outcome"] == "done"
    (warning,) = [event for event in house.events if "WARNING" in event.get("message", "")]
    assert "took 50.0 s to save" in warning["message"]
    assert "signal_seconds: 150 or more" in warning["message"]


# --- a file server that hangs (F29) -----------------------------------------------------------------------------------------


def test_work_goes_on_while_the_store_hangs_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = Store.open(tmp_path / "store", tmp_path / "scratch").run(*IDS.values())
    claim = run.claim("train")
    assert isinstance(claim, Claim)
    hangs, answers, real = threading.Event(), threading.Event(), files.replace

    def replace(path: Path, data: bytes, **how: Any) -> None:
        if path.parent.name == "beats" and not answers.is_set():
            hangs.set()
            answers.wait(120)
        real(path, data, **how)

    said: list[str] = []
    stage: Any = SimpleNamespace(claim=claim, notice=said.append)
    loop = training._Loop.__new__(training._Loop)
    loop.stage, loop.late = stage, False
    monkeypatch.setattr(training, "UNANSWERED", 0.0)
    with claim:
        monkeypatch.setattr(files, "replace", replace)
        try:
            claim.beat(step=7)
            assert hangs.wait(300)
            for step in range(8, 12):  # nothing of this waits for the store
                assert not claim.beat(step=step)
                loop._say_unanswered()
            assert claim.unanswered > 0
        finally:
            answers.set()
    assert [text.startswith("the store has not answered for 0 s; training goes on") for text in said] == [
        True
    ]
    assert claim.unanswered == 0
    (beat,) = (run.dir / "beats").iterdir()
    assert sealed.read_sealed(beat)["step"] == 11
    assert run.claim("train", patience=0).attempt == 2


# --- half-written files beside complete results (F41) --------------------------------------------------------------------------


def test_what_a_killed_process_left_beside_complete_results_is_swept(here: Path, cli: Any) -> None:
    """Killed between a record's link and the end of its temporary name: the cell is done, and nobody claims it again."""
    words = (
        "run",
        "little.yaml",
        "--filter",
        "seed=0",
        "--filter",
        "method=sit",
        "--job",
        "cli_jobs:run_job",
    )
    assert cli(*words)[0] == 0
    record = next((here / "store").rglob("records/train-*"))
    beat = next((here / "store").rglob("beats/train.1.json"))
    dead = faults.fork(lambda: [os.link(path, files.temporary_beside(path)) for path in (record, beat)])
    assert faults.wait(dead) == 0
    assert len(faults.leftovers(here / "store")) == 2
    assert cli(*words)[0] == 0
    assert faults.leftovers(here / "store") == []
