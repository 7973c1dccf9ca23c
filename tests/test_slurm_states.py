"""What SLURM's tools say of jobs, whichever of them answers: stand-ins on PATH, one per tool."""

from __future__ import annotations

import os
import stat
import time

import pytest

from ltbench.launch.slurm import queue_states
from ltbench.launch.slurm.queue_states import ENDED, State


@pytest.fixture
def tools(tmp_path, monkeypatch):
    """Put scripts on PATH in place of SLURM's tools; a tool that is not named is not installed."""

    def install(**scripts):
        for name, body in scripts.items():
            path = tmp_path / name
            path.write_text(f"#!/bin/sh\n{body}\n")
            path.chmod(path.stat().st_mode | stat.S_IXUSR)

    # /bin holds a real SLURM on machines that have one, so the shell's own folder cannot stay on PATH.
    monkeypatch.setenv("PATH", str(tmp_path))
    return install


def lines(*texts):
    return "\n".join(f"echo '{text}'" for text in texts)


NO_ACCOUNTING = "echo 'Slurm accounting storage is disabled' >&2; exit 1"


def test_without_accounting_squeue_answers(tools):
    tools(
        sacct=NO_ACCOUNTING,
        squeue=lines("7_0|RUNNING|None|n1", "7_1|PENDING|Priority|", "8|COMPLETED|None|n2"),
    )
    found = queue_states.ask(["7", "8"])
    assert found == {
        ("7", 0): State("RUNNING", "", "n1", "squeue"),
        ("7", 1): State("PENDING", "Priority", "", "squeue"),
        "8": State("COMPLETED", "", "n2", "squeue"),
    }
    assert [state.alive for state in found.values()] == [True, True, False]


def test_without_squeue_sacct_alone_answers_with_its_spellings(tools):
    tools(
        sacct=lines(
            "7_[0-2,5%2]|PENDING|None assigned",
            "7_3|CANCELLED by 1000|n1",
            "7_4|CANCELLED+|n1",
            "9|NODE_FAIL|n2",
        ),
        squeue="exit 1",
        scontrol="exit 1",
    )
    found = queue_states.ask(["7", "9"])
    assert sorted(key[1] for key in found if isinstance(key, tuple) and found[key].alive) == [0, 1, 2, 5]
    assert found["7", 3].word == found["7", 4].word == "CANCELLED"
    assert not found["9"].alive


def test_scontrol_is_the_last_to_be_asked(tools):
    tools(
        scontrol=lines(
            "JobId=12 ArrayJobId=7 ArrayTaskId=3 JobState=RUNNING Reason=None NodeList=n1",
            "JobId=7 ArrayJobId=7 ArrayTaskId=4-5,8%3 JobState=PENDING Reason=Resources NodeList=",
            "JobId=9 JobState=OUT_OF_MEMORY Reason=OutOfMemory NodeList=n2",
            "JobId=99 JobState=RUNNING Reason=None NodeList=n2",
        )
    )
    found = queue_states.ask(["7", "9"])
    assert set(found) == {("7", 3), ("7", 4), ("7", 5), ("7", 8), "9"}
    assert found["7", 8] == State("PENDING", "Resources", "", "scontrol")
    assert found["9"] == State("OUT_OF_MEMORY", "OutOfMemory", "n2", "scontrol")


def test_nobody_answers(tools):
    tools(sacct=NO_ACCOUNTING, squeue="exit 1")
    assert queue_states.ask(["7"]) is None
    assert queue_states.comments() is None
    assert queue_states.ask([]) == {}


def test_a_job_that_is_requeued_is_alive_although_accounting_calls_it_preempted(tools):
    tools(sacct=lines("7_0|PREEMPTED|n1"), squeue=lines("7_0|PENDING|BeginTime|"))
    assert queue_states.ask(["7"])["7", 0].word == "PENDING"


def test_a_job_that_everybody_has_forgotten_is_not_in_the_answer(tools):
    tools(sacct=NO_ACCOUNTING, squeue=lines("8_0|RUNNING|None|n1"))
    assert queue_states.ask(["7"]) == {}


@pytest.mark.parametrize(
    "word",
    ["SUSPENDED", "CONFIGURING", "REQUEUE_HOLD", "STOPPED", "SIGNALING", "STAGE_OUT", "PREEMPTED", "BRAND_NEW_IN_27_05", "COMPLETING", ""],
)  # fmt: skip
def test_an_unknown_state_is_alive(word, tools):
    tools(squeue=lines(f"7_0|{word}|None|n1"))
    assert queue_states.ask(["7"])["7", 0].alive


def test_known_ends_are_ends():
    for word in (
        "COMPLETED",
        "FAILED",
        "CANCELLED",
        "TIMEOUT",
        "NODE_FAIL",
        "OUT_OF_MEMORY",
        "BOOT_FAIL",
        "DEADLINE",
    ):
        assert word in ENDED
        assert not State(word).alive


def test_comments_name_jobs_of_ours_only(tools):
    tools(
        squeue=lines("7|ltbench-20260101-000000-abcdef012-0", "8|(null)", "9|mine"),
        sacct=lines("5_1|ltbench-x-1", "6|"),
    )
    assert queue_states.comments() == {"ltbench-20260101-000000-abcdef012-0": "7", "ltbench-x-1": "5"}


def test_a_tool_that_hangs_is_given_up(tools, monkeypatch):
    monkeypatch.setattr(queue_states, "PATIENCE", 0.2)
    tools(squeue=f"exec {os.path.realpath('/bin/sleep')} 600")
    assert queue_states.ask(["7"]) is None


def test_accounting_alone_does_not_end_a_job_that_it_has_not_heard_of(tools):
    tools(sacct=lines("7_0|COMPLETED|n1"), squeue="exit 1", scontrol="exit 1")
    assert queue_states.ask(["7", "9"]) is None, "9 may be in the queue since a second"
    assert queue_states.ask(["7"]) == {("7", 0): State("COMPLETED", "", "n1", "sacct")}


def test_a_controller_that_hangs_is_not_asked_again(tools, tmp_path):
    sleep = f"exec {os.path.realpath('/bin/sleep')} 600"
    tools(squeue=sleep, sacct=sleep, scontrol=f"echo asked > {tmp_path}/asked")
    begun = time.monotonic()
    assert queue_states.ask(["7"], patience=0.2) is None
    assert not (tmp_path / "asked").exists()
    assert time.monotonic() - begun < 500, "two commands, 0.2 s each, neither waited for to its end"
