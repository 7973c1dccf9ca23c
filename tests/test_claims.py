"""Claims: one worker per stage, the dead replaced at once, the silent after their lease, the superseded ignored."""

from __future__ import annotations

import os
import re
import time
from pathlib import Path
from typing import Any

import pytest

from ltbench import files
from ltbench.store import Claim, Held, Run, claims, sealed
from tests import store_faults as faults
from tests.claims_world import (
    LEASE,
    LONG,
    PATIENT,
    again,
    end,
    held,
    in_another_process,
    rewrite_owner,
    won,
)
from tests.store_world import make


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return make(tmp_path, LEASE)


# --- who gets it -------------------------------------------------------------------------------------------------------


def test_the_second_is_told_who_works(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(claims, "_uptime", lambda: 7.0)
    claim = won(run.claim("train"))
    second = held(again(run).claim("train"))
    assert not second
    assert re.fullmatch(
        rf"running on \S+ \(attempt 1, pid {os.getpid()}, last beat 0 s ago\)", second.message
    )
    assert second.same_kernel
    assert claim.still_mine()
    assert isinstance(run.claim("evaluate-000000560-0123456789ab"), Claim)  # another stage is another matter
    assert run.stages() == ["evaluate-000000560-0123456789ab", "train"]


@pytest.mark.faults
def test_exactly_one_owner_per_stage(run: Run, tmp_path: Path) -> None:
    stages = [f"stage-{number}" for number in range(50)]

    def contend(number: int) -> None:
        mine = again(run)
        (tmp_path / f"ready{number}").touch()
        faults.until((tmp_path / "go").exists)
        owned = [stage for stage in stages if mine.claim(stage)]
        files.write_once(tmp_path / f"owned{number}", "\n".join(owned).encode())
        faults.until((tmp_path / "stop").exists)  # stay alive: the dead are replaced

    with faults.children(lambda number=number: contend(number) for number in range(8)) as pids:
        faults.until(lambda: len(list(tmp_path.glob("ready*"))) == 8)
        (tmp_path / "go").touch()
        faults.until(lambda: len(list(tmp_path.glob("owned*"))) == 8)
        (tmp_path / "stop").touch()
        assert [faults.wait(pid) for pid in pids] == [0] * 8
    owned = sorted(stage for path in tmp_path.glob("owned*") for stage in path.read_text().split())
    assert owned == sorted(stages)
    assert sorted(path.name for path in (run.dir / "claims").iterdir()) == sorted(
        f"{stage}.1.json" for stage in stages
    )


def test_a_dead_owner_is_replaced_at_once_even_before_it_is_reaped(run: Run) -> None:
    pid = faults.fork(lambda: run.claim("train"))
    os.waitid(os.P_PID, pid, os.WEXITED | os.WNOWAIT)
    assert Path(f"/proc/{pid}").exists()  # a zombie
    assert run.state("train").state == "lost"  # type: ignore[union-attr]
    assert won(run.claim("train")).attempt == 2
    faults.wait(pid)


def test_a_reused_process_number_is_not_the_owner(run: Run) -> None:
    pid = in_another_process(lambda: run.claim("train"))
    try:
        assert held(run.claim("train")).attempt == 1
        rewrite_owner(run, start=1)  # the number now belongs to a process that started at another time
        assert won(run.claim("train")).attempt == 2
    finally:
        end(pid)


def test_a_container_with_other_process_numbers_is_not_asked_about_ours(run: Run) -> None:
    won(run.claim("train"))
    boot = files.kernel().partition("/")[0]
    rewrite_owner(
        run, kernel=f"{boot}/1", pid=2**22 + 1
    )  # same boot, another pid namespace, a pid that we do not see
    assert not held(run.claim("train")).same_kernel


def test_a_requeued_job_replaces_its_former_self_at_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run = again(run, lease=LONG)
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    won(run.claim("train"))
    held(run.claim("train"))
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    assert won(run.claim("train")).attempt == 2  # although the former self lives on this very machine
    rewrite_owner(run, attempt=2, kernel="another/1")
    monkeypatch.setenv("SLURM_JOB_ID", "78")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "5")
    held(run.claim("train"))
    monkeypatch.setenv("SLURM_JOB_ID", "77")
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    held(run.claim("train"))
    monkeypatch.setenv("SLURM_RESTART_COUNT", "2")
    assert won(run.claim("train")).attempt == 3


@pytest.mark.parametrize("outcome", ["done", "failed", "preempted"])
def test_a_released_stage_is_free(run: Run, outcome: Any) -> None:
    claim = won(run.claim("train"))
    claim.beat(step=3)
    claim.release(outcome)
    claim.release("done")  # the first counts
    assert not claim.beat(step=4)
    state = run.state("train")
    assert state is not None
    assert state.state == {"done": "released"}.get(outcome, outcome)
    assert won(run.claim("train")).attempt == 2
    with pytest.raises(ValueError, match="not 'over'"):
        claim.release("over")  # type: ignore[arg-type]


def test_leaving_the_block_releases(run: Run) -> None:
    with won(run.claim("train")):
        pass
    for error, outcome in (
        (RuntimeError, "failed"),
        (KeyboardInterrupt, "preempted"),
        (SystemExit, "preempted"),
    ):
        with pytest.raises(error), won(run.claim("train")):
            raise error
        state = run.state("train")
        assert state is not None
        assert state.state == outcome


def test_a_forked_child_does_not_end_our_claim(run: Run) -> None:
    with won(run.claim("train")) as claim:

        def leave() -> None:
            claim.release("failed")
            assert not claim.beat(step=9)

        assert faults.wait(faults.fork(leave)) == 0
        assert isinstance(again(run).claim("train"), Held)


def test_stage_names_cannot_leave_the_folder(run: Run) -> None:
    for bad in ("../x", "a/b", "", "A", "a.1", "x" * 99):
        with pytest.raises(ValueError, match="lower-case"):
            run.claim(bad)


# --- beats and leases --------------------------------------------------------------------------------------------------


def test_beats_are_limited_and_tell_progress(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: clock)
    claim = won(run.claim("train"))
    assert not claim.beat(step=1)  # within a second of the claim's own beat
    monkeypatch.setattr(time, "monotonic", lambda: clock + 2)
    assert claim.beat(step=2, total=10, loss=float("nan"))
    assert not claim.beat(step=3)
    state = run.state("train")
    assert state is not None
    assert state.progress is not None
    assert (state.state, state.progress["step"], state.progress["counter"]) == ("running", 2, 2)
    assert state.progress["loss"] == "nan"


def test_a_full_disk_does_not_stop_the_work_through_its_beats(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    claim = won(run.claim("train"))
    clock = time.monotonic()
    monkeypatch.setattr(time, "monotonic", lambda: clock + 2)
    with faults.counting(faults.error(28), 1, lasting=True, only=faults.writes):
        assert not claim.beat(step=2)
        claim.release("preempted")
    assert claim.still_mine()
    assert won(run.claim("train")).attempt == 2  # that the release could not be written holds nobody up


def test_the_block_beats_by_itself(run: Run) -> None:
    with won(again(run, lease=0.6).claim("train")):
        path = run.dir / "beats" / "train.1.json"
        first = sealed.read_sealed(path)["counter"]
        faults.until(lambda: sealed.read_sealed(path)["counter"] > first)


def test_an_owner_elsewhere_that_beats_keeps_its_claim(run: Run) -> None:
    claim = won(run.claim("train"))
    rewrite_owner(run, kernel="another/1", pid=1)
    contender, counters = again(run), iter(range(2, 1000))
    end_at = time.monotonic() + 3 * LEASE
    while time.monotonic() < end_at:
        content = {"format": 1, "counter": next(counters), "uptime": 0.0}
        files.replace(run.dir / "beats" / "train.1.json", sealed.seal(content), durable=False)
        assert held(contender.claim("train")).beat_age is not None
        time.sleep(LEASE / 8)
    assert claim.still_mine()


def test_a_silent_owner_elsewhere_is_replaced_after_the_lease_and_not_before(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    won(run.claim("train"))
    rewrite_owner(run, kernel="another/1")
    contender, clock = again(run), [time.monotonic()]
    monkeypatch.setattr(time, "monotonic", lambda: clock[0])
    first = held(contender.claim("train"))
    assert first.beat_age == 0.0
    clock[0] += 0.9 * LEASE
    held(contender.claim("train"))
    state = contender.state("train")
    assert state is not None
    assert (state.state, state.sure) == ("running", False)
    clock[0] += 0.2 * LEASE
    assert won(contender.claim("train")).attempt == 2
    # One look of a fresh process is no proof, however long the silence has been.
    rewrite_owner(run, attempt=2, kernel="another/1")
    held(again(run).claim("train"))


def test_patience_waits_for_the_lease(run: Run) -> None:
    won(run.claim("train"))
    rewrite_owner(run, kernel="another/1")
    held(again(run, lease=LONG).claim("train", patience=LEASE / 4))
    assert won(again(run).claim("train", patience=PATIENT)).attempt == 2


def test_a_beat_that_comes_at_the_last_look_counts(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an NFS client with an old directory in its cache would otherwise miss."""
    won(run.claim("train"))
    rewrite_owner(run, kernel="another/1")
    contender = again(run)
    held(contender.claim("train"))
    clock, real = time.monotonic(), files.replace
    monkeypatch.setattr(time, "monotonic", lambda: clock + 2 * LEASE)

    def replace_and_reveal(path: Path, data: bytes, *, durable: bool = True) -> None:
        real(path, data, durable=durable)
        if path.name.startswith(".tmp-"):
            real(run.dir / "beats" / "train.1.json", sealed.seal({"format": 1, "counter": 99, "uptime": 0.0}))

    monkeypatch.setattr("ltbench.files.folders.replace", replace_and_reveal)
    held(contender.claim("train"))


def test_an_unreadable_claim_or_beat_is_replaced_after_the_lease(run: Run) -> None:
    won(run.claim("train"))
    for folder in ("claims", "beats"):
        (run.dir / folder / "train.1.json").write_text('{"tor')
    contender = again(run)
    assert "unknown host" in held(contender.claim("train")).message
    assert won(contender.claim("train", patience=PATIENT)).attempt == 2


def test_no_wall_clock_decides(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse() -> float:
        raise AssertionError("a claim asked for the wall clock")

    monkeypatch.setattr(time, "time", refuse)
    won(run.claim("train"))
    for path in run.dir.glob("*/*"):
        os.utime(path, (0, 0))
    rewrite_owner(run, kernel="another/1")
    contender = again(run)
    held(contender.claim("train"))
    assert won(contender.claim("train", patience=PATIENT)).attempt == 2
