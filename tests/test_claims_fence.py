"""What becomes of claims: the fence against the superseded, failures, states, kills and disk errors."""

from __future__ import annotations

import contextlib
import errno
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from ltbench import files
from ltbench.store import Run
from ltbench.store import owner as owners
from tests import store_faults as faults
from tests.claims_world import (
    LEASE,
    PATIENT,
    again,
    end,
    in_another_process,
    on_another_machine,
    won,
)
from tests.store_world import make


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return make(tmp_path, LEASE)


# --- the fence ---------------------------------------------------------------------------------------------------------


def body(value: float) -> dict[str, Any]:
    return {"curve": {"loss": [value]}}


def test_a_stopped_owner_that_wakes_up_is_ignored(run: Run, tmp_path: Path) -> None:
    """SIGSTOP on another machine, takeover after the lease, SIGCONT: the sleeper learns it, and what it writes is void."""

    def sleeper() -> None:
        on_another_machine()
        mine = again(run)
        with won(mine.claim("train")) as claim:
            mine.put_record("train", 10, body(1.0), {"attempt": claim.attempt})
            (tmp_path / "asleep").touch()
            faults.until((tmp_path / "awake").exists)
            assert not claim.still_mine()
            mine.put_record("train", 20, body(666.0), {"attempt": claim.attempt})  # as if it had not asked

    with faults.children([sleeper]) as (pid,):
        faults.until((tmp_path / "asleep").exists)
        os.kill(pid, signal.SIGSTOP)
        claim = won(run.claim("train", patience=PATIENT))
        assert claim.attempt == 2
        (tmp_path / "awake").touch()
        os.kill(pid, signal.SIGCONT)
        assert faults.wait(pid) == 0
    found = run.records("train")
    assert [(record.step, record.body["curve"]["loss"]) for record in found] == [(10, [1.0])]
    assert [record.body["curve"]["loss"] for record in found.superseded] == [[666.0]]
    run.put_record("train", 20, body(2.0), {"attempt": 2})
    assert [record.body["curve"]["loss"] for record in run.records("train")] == [[1.0], [2.0]]


def test_a_zombie_whose_bytes_are_right_does_no_harm(run: Run) -> None:
    won(run.claim("train")).release("preempted")
    won(run.claim("train"))
    path = run.put_record(
        "train", 10, body(1.0), {"attempt": 1}
    )  # late, but the same bytes as the successor's
    assert run.records("train") == []
    assert run.put_record("train", 10, body(1.0), {"attempt": 2}) == path
    assert [(record.attempt, record.step) for record in run.records("train")] == [(2, 10)]
    run.put_record("train", 10, body(1.0), {"attempt": 1})
    assert [record.attempt for record in run.records("train")] == [2]


def test_what_earlier_attempts_made_in_time_counts(run: Run) -> None:
    for attempt in (1, 2, 3):
        claim = won(run.claim("train"))
        assert claim.attempt == attempt
        run.put_record("train", 10 * attempt, body(attempt), {"attempt": attempt})
        claim.release("preempted")
    assert [record.step for record in run.records("train")] == [10, 20, 30]
    assert run.records("train").superseded == []


# --- failures and states -----------------------------------------------------------------------------------------------


def test_a_failure_is_kept_with_its_evidence(run: Run) -> None:
    claim = won(run.claim("train"))
    run.fail(
        "train", claim.attempt, cause="nan", step=7, message="loss is nan", evidence={"loss": float("nan")}
    )
    run.fail("train", claim.attempt, cause="code", step=7, message="the handler broke as well")
    claim.release("failed")
    (failure,) = run.failures("train")
    assert (failure["cause"], failure["step"], failure["evidence"]) == ("nan", 7, {"loss": "nan"})
    state = run.state("train")
    assert state is not None
    assert (state.state, state.cause, state.message, state.attempt) == ("failed", "nan", "loss is nan", 1)
    second = won(run.claim("train"))
    state = run.state("train")
    assert state is not None
    assert (state.state, state.attempt) == ("running", 2)
    second.release("done")
    with pytest.raises(ValueError, match="is not one of nan, "):
        run.fail("train", 2, cause="bad luck")


def test_states(run: Run) -> None:
    assert run.state("train") is None
    pid = in_another_process(lambda: run.claim("train"))
    state = run.state("train")
    assert state is not None
    assert (state.state, state.sure) == ("running", True)
    end(pid)
    state = run.state("train")
    assert state is not None
    assert (state.state, state.attempt) == ("lost", 1)


# --- kills and disk errors ---------------------------------------------------------------------------------------------


@pytest.mark.faults
def test_a_claim_killed_anywhere_is_all_or_nothing(run: Run) -> None:
    number, status = 0, -signal.SIGKILL
    while status == -signal.SIGKILL:
        number += 1
        stage = f"stage-{number}"
        status = faults.kill_at(lambda stage=stage: run.claim(stage), number)
        claim = won(run.claim(stage))
        assert claim.attempt in (1, 2)
        assert claim.still_mine()
    assert status == 0
    assert number > 10
    assert not faults.leftovers(run.dir)  # the claims have swept


@pytest.mark.faults
def test_a_claim_meets_disk_errors(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ltbench.files.problems._PAUSES", (0.0, 0.0, 0.0))
    total = faults.calls_of(lambda: run.claim("dry"))
    for code in faults.DISK_ERRORS:
        for number in range(1, total + 1):
            stage = f"stage-{code}-{number}"
            with faults.counting(faults.error(code), number, only=faults.writes):
                claim = None
                with contextlib.suppress(files.StorageProblem):
                    claim = run.claim(stage)
            if claim is not None:
                assert won(claim).still_mine()
                continue
            assert code not in (errno.EIO, errno.ESTALE), "one passing error is to be ridden out"
            assert won(run.claim(stage)).attempt in (1, 2)  # a claim made and never granted holds nobody up


@pytest.mark.skipif(sys.platform != "linux", reason="the process table is Linux's")
def test_the_process_table_is_read_right() -> None:
    mine = owners.process_start(os.getpid())
    with open("/proc/uptime") as uptime:
        since_boot = float(uptime.read().split()[0])
    assert mine is not None
    started = mine / os.sysconf("SC_CLK_TCK")
    assert 0 < started <= since_boot
    assert owners.process_start(2**22 + 5) is None
