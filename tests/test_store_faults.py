"""Records under kills, disk errors and many writers: nothing acknowledged is lost, nothing torn is believed."""

from __future__ import annotations

import errno
import itertools
import os
import random
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import pytest

from ltbench import files
from ltbench.store import Run, Store
from tests import store_faults as faults
from tests.store_world import CELL, RUN, make


def body(step: int, value: float = 1.0) -> dict[str, Any]:
    return {"curve": {"step": [step], "loss": [value] * 50}}


def put(run: Run, step: int, writer: int = 0) -> Path:
    return run.put_record("train", step, body(step), {"attempt": 1, "writer": writer})


def steps(run: Run) -> list[int]:
    found = run.records("train")
    assert found.damaged == []
    return [record.step for record in found]


def reopened(folder: Path) -> Run:
    return Store.open(folder / "store", folder / "scratch").run(CELL, RUN)


@pytest.mark.faults
@pytest.mark.parametrize("link", [True, False])
def test_put_record_killed_at_every_call(tmp_path: Path, link: bool) -> None:
    start = tmp_path / "start"
    put(make(start), 1)
    number, status = 0, -signal.SIGKILL
    while status == -signal.SIGKILL:
        number += 1
        place = Path(shutil.copytree(start, tmp_path / str(number)))
        run = reopened(place)
        run.store.link = link
        status = faults.kill_at(lambda run=run: put(run, 2), number)
        found = run.records("train")
        assert [record.step for record in found] in ([1], [1, 2])
        # Without link() a torn file may stand under its final name; it is known for what it is.
        assert not found.damaged or not link
        put(run, 2)
        assert steps(run) == [1, 2]
    assert status == 0
    assert number >= 6


@pytest.mark.faults
def test_a_new_store_killed_at_every_call_opens_again(tmp_path: Path) -> None:
    number, status = 0, -signal.SIGKILL
    while status == -signal.SIGKILL:
        number += 1
        place = tmp_path / str(number)
        place.mkdir()
        status = faults.kill_at(lambda place=place: put(make(place), 1), number)
        run = make(place)
        put(run, 1)
        assert steps(run) == [1]
        assert run.store.damaged() == []
    assert status == 0
    assert number > 40


@pytest.mark.faults
@pytest.mark.parametrize("code", faults.DISK_ERRORS)
@pytest.mark.parametrize("lasting", [False, True])
def test_put_record_meets_disk_errors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int, lasting: bool
) -> None:
    monkeypatch.setattr("ltbench.files.problems._PAUSES", (0.0, 0.0, 0.0))
    run = make(tmp_path)
    put(run, 1)
    total = faults.calls_of(lambda: put(run, 2), only=faults.writes)
    passing = code in (errno.EIO, errno.ESTALE) and not lasting
    for number in range(1, total + 1):
        step = 10 + number
        with faults.counting(faults.error(code), number, lasting=lasting, only=faults.writes):
            try:
                put(run, step)
            except files.StorageProblem as problem:
                failed = problem
            else:
                failed = None
        assert (failed is None) == passing
        assert failed is None or (failed.code == code and failed.exit_code == 4)
        assert not faults.leftovers(run.dir)
        put(run, step)
        assert step in steps(run)


@pytest.mark.faults
def test_eight_writers_lose_tear_and_double_nothing(tmp_path: Path) -> None:
    run = make(tmp_path)

    def write(writer: int) -> None:
        mine = reopened(tmp_path)
        for number in range(250):
            put(mine, number if number % 10 == 0 else 1000 * writer + number, writer)

    pids = [faults.fork(lambda writer=writer: write(writer)) for writer in range(1, 9)]
    assert [faults.wait(pid) for pid in pids] == [0] * 8
    shared = set(range(0, 250, 10))
    expected = shared | {
        1000 * writer + number for writer in range(1, 9) for number in range(250) if number % 10
    }
    assert len(expected) == 25 + 8 * 225
    assert steps(run) == sorted(expected)
    assert not faults.leftovers(tmp_path)


@pytest.mark.faults
def test_killed_writers_disturb_neither_writers_nor_readers(tmp_path: Path) -> None:
    store, rng, promises = make(tmp_path).store, random.Random(0), 0

    def write(run: Run, writer: int, acknowledged: Path) -> None:
        handle = os.open(acknowledged, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        for number in itertools.count(100_000 * writer):
            put(run, number, writer)
            os.write(handle, b"%09d\n" % number)

    for round_ in range(faults.scaled(5)):
        run, acknowledged = store.run(CELL, f"{round_:012x}"), tmp_path / f"acknowledged{round_}"
        acknowledged.touch()
        writers = [lambda run=run, n=n, file=acknowledged: write(run, n, file) for n in range(4)]
        with faults.children(writers) as pids:
            if round_ % 2:  # else sometimes before anything was promised
                faults.until(lambda file=acknowledged: file.stat().st_size)
            else:
                time.sleep(0.02)
            steps(run)  # a reader at any moment: nothing damaged
            for pid in pids:
                time.sleep(rng.uniform(0.0, 0.01))
                os.kill(pid, signal.SIGKILL)
            assert [faults.wait(pid) for pid in pids] == [-signal.SIGKILL] * 4
        promised = {int(line) for line in acknowledged.read_text().split()}
        assert promised <= set(steps(run))
        assert run.claim("train")
        assert not faults.leftovers(run.dir)
        promises += len(promised)
    assert promises > 0, "no record was acknowledged: the test tested nothing"
