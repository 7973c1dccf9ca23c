"""What keeps a SLURM job honest, without a SLURM: headway, caches, staged data, the call it runs, its memory, its log."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from ltbench import caches
from ltbench.checkpoint import save_checkpoint, save_milestone
from ltbench.errors import UsageError
from ltbench.launch import local, memory
from ltbench.launch.slurm import headway, layout, queue_states, sbatch, submit, task
from ltbench.launch.slurm.element import Element
from ltbench.launch.slurm.layout import Entry, Submission
from ltbench.launch.slurm.log import Log
from ltbench.profiles import Profile
from ltbench.store import Claim, Store, owner
from tests import test_launch

launch = test_launch.launch  # a fixture
ENTRY = Entry("c" * 64, "sit, seed 0", 0, "a" * 12, ("train:10,40", "evaluate:10:aaaaaaaaaaaa"))
PROFILE = Profile.model_validate({"gpus": 0, "time": 30, "stuck_starts": 3})


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store", tmp_path / "scratch")


@pytest.fixture
def submission(store: Store) -> Submission:
    info = {
        "benchmark": "b",
        "resolved": PROFILE.plain(),
        "store": str(store.root),
        "scratch": str(store.scratch),
    }
    return layout.create(store.scratch, info)


def starts(submission: Submission, *kept: int, reason: str = "preempted") -> Element:
    """The element in its next start, after starts that found so much kept."""
    for restart, steps in enumerate(kept):
        submission.put_started(0, 0, restart, node="n0", kept=steps)
        submission.put_ended(0, 0, restart, reason=reason)
    return Element(submission, 0, 0, len(kept), "9_0")


def said(element: Element, now: int) -> str | None:
    return headway.problem(element, now, PROFILE, PROFILE.resources("training"))


# --- who submits -------------------------------------------------------------------------------------------------------


def test_a_driver_at_work_is_waited_for_and_its_number_alone_is_none(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_states, "comments", dict)
    with subprocess.Popen(["sleep", "300"]) as other:
        try:
            driver = replace(owner.here(), pid=other.pid, start=owner.process_start(other.pid))
            assert driver.start is not None
            ended_long_ago = replace(driver, start=driver.start - 1)
            for each, goes_on in ((driver, False), (ended_long_ago, True), (owner.here(), True)):
                made = layout.create(store.scratch, {"benchmark": "b", "driver": each.json()})
                made.add_array({"class": "training"}, [[ENTRY]])
                if goes_on:
                    assert submit.adopt(made) == []
                else:
                    with pytest.raises(UsageError, match=f"process {other.pid} .* is submitting b right now"):
                        submit.adopt(made)
        finally:
            other.kill()


def test_a_node_is_not_blamed_for_what_was_preempted_on_it(
    store: Store, submission: Submission, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(queue_states, "ask", lambda _: {})
    submission.add_array({"class": "training"}, [[ENTRY]])
    submission.put_job(0, "9")
    for restart, node in enumerate(
        ("n0", "n0", "n1", "n1", "n2")
    ):  # each but the last was lost without a word
        submission.put_started(0, 0, restart, node=node, kept=restart)
    assert submit.failing_nodes(store.scratch, PROFILE) == ["n0", "n1"]
    said = "slurmstepd-n0: error: *** JOB 9 ON n0 CANCELLED AT 2026-11-25T18:08:37 DUE TO PREEMPTION ***\n"
    submission.log(0, 0).write_text(said + said.replace("n0", "n1").replace("PREEMPTION", "NODE FAILURE"))
    assert submit.failing_nodes(store.scratch, PROFILE) == ["n1"]


# --- headway ----------------------------------------------------------------------------------------------------------


def test_three_starts_that_keep_nothing_are_enough(submission: Submission) -> None:
    assert said(starts(submission, 0, 0), 0) is None
    message = said(starts(submission, 0, 0, 0), 0)
    assert message is not None
    assert message.startswith("started 3 times in a row and kept nothing new (0 steps or images are there)")
    assert "lower train.checkpoint_seconds" in message


@pytest.mark.parametrize(("kept", "now"), [((0, 0, 1), 1), ((5, 5, 5), 6), ((0, 1, 2, 3), 3)])
def test_a_step_more_is_headway(submission: Submission, kept: tuple[int, ...], now: int) -> None:
    assert said(starts(submission, *kept), now) is None


def test_only_the_last_starts_count_and_they_may_be_in_the_middle_of_a_training(
    submission: Submission,
) -> None:
    assert "(70 steps" in (said(starts(submission, 0, 20, 70, 70, 70), 70) or "")


def test_a_time_limit_that_is_too_short_is_called_so(submission: Submission) -> None:
    message = said(starts(submission, 0, 0, 0, reason="timeout"), 0)
    assert message is not None
    assert "the time limit of 30 minutes, with its warning 180 s before" in message
    assert "raise time in the profile" in message


def test_what_is_kept_are_steps_in_checkpoints_and_images_measured(store: Store) -> None:
    run = store.run(ENTRY.cell, ENTRY.run)
    assert headway.kept([ENTRY], store) == 0
    weights = {"net": {"w": torch.zeros(1)}}
    save_milestone(run.milestones, 10, weights["net"], {})
    assert headway.kept([ENTRY], store) == 10
    for step in (30, 35):
        save_checkpoint(run.checkpoints, step, weights, {}, cell=run.cell, run=run.run, attempt=2)
    (run.checkpoints / ".step-000000039.half").mkdir()
    assert headway.kept([ENTRY], store) == 35
    claim = run.claim("evaluate-000000010-aaaaaaaaaaaa")
    assert isinstance(claim, Claim)
    claim.beat(step=20, total=40)
    claim.release("preempted")
    assert headway.kept([ENTRY], store) == 55


def test_a_job_that_gives_up_says_so_in_the_store(
    store: Store, submission: Submission, monkeypatch: pytest.MonkeyPatch
) -> None:
    submission.add_array({"class": "training"}, [[ENTRY]])
    starts(submission, 0, 0, 0)
    for name, value in {
        "ARRAY_JOB_ID": "9",
        "JOB_ID": "9",
        "ARRAY_TASK_ID": "0",
        "RESTART_COUNT": "3",
    }.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    monkeypatch.setattr(Entry, "register", lambda entry, store: None)
    monkeypatch.setattr(caches, "use", lambda scratch, *, offline: None)
    monkeypatch.setattr(local, "LocalRun", lambda *_: pytest.fail("it must not go on"))
    element = Element.here(str(submission.folder), "0")
    assert task._Task(element, task.Heard()).run() == 1
    state = store.run(ENTRY.cell, ENTRY.run).state("train")
    assert state is not None
    assert (state.state, state.cause) == ("failed", headway.CAUSE)
    assert "kept nothing new" in (state.message or "")
    assert store.run(ENTRY.cell, ENTRY.run).failures("evaluate-000000010-aaaaaaaaaaaa") == []


def test_giving_up_leaves_alone_what_is_over_or_somebody_elses(store: Store) -> None:
    run = store.run(ENTRY.cell, ENTRY.run)
    claim = run.claim("train")
    assert isinstance(claim, Claim)
    headway.give_up([ENTRY], store, "no")
    claim.release("done")
    headway.give_up([ENTRY], store, "no")
    assert run.failures() == []


# --- what a job finds -------------------------------------------------------------------------------------------------


def test_a_job_keeps_caches_on_scratch_and_asks_no_network(
    store: Store, submission: Submission, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    submission.add_array({"class": "training"}, [[ENTRY]])
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("TORCH_HOME", "/site/torch")
    monkeypatch.setattr(os, "environ", dict(os.environ))
    for name in ("HF_HOME", "TRITON_CACHE_DIR", caches.MARK):
        os.environ.pop(name, None)
    task._Task(Element(submission, 0, 0, 0, "9_0"), task.Heard())._open()
    assert os.environ["HF_HOME"] == str(store.scratch / "caches" / "huggingface")
    assert os.environ["TRITON_CACHE_DIR"] == str(store.scratch / "caches" / "triton")
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert os.environ["TORCH_HOME"] == "/site/torch", "what the site or the user says stays"


def setup(submission: Submission, profile: Profile, environment: dict[str, str]) -> list[str]:
    call = sbatch.Call(task.run_task, submission.folder, 0)
    return sbatch._setup(call, submission, profile, profile.resources("training"), environment)


def in_bash(lines: list[str], **environment: str) -> str:
    done = subprocess.run(
        ["bash", "-c", "\n".join(lines)],
        env={"PATH": os.environ["PATH"], **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_data_is_staged_on_the_node_and_found_there(submission: Submission, tmp_path: Path) -> None:
    data, more = tmp_path / "data", tmp_path / "more"
    (data / "digits").mkdir(parents=True)
    (data / "digits" / "a.npz").write_text("images")
    profile = Profile.model_validate({"gpus": 0, "staging": "$TMPDIR/data"})
    lines = setup(submission, profile, {"LTBENCH_DATA": f"{data}:{more}"})
    node = tmp_path / "node"
    ids = {"SLURM_ARRAY_JOB_ID": "9", "SLURM_ARRAY_TASK_ID": "0"}
    out = in_bash([*lines, 'echo "$LTBENCH_DATA"'], TMPDIR=str(node), **ids)
    assert out.strip() == f"{node}/data:{data}:{more}"
    assert (node / "data" / "digits" / "a.npz").read_text() == "images"
    in_bash(lines, TMPDIR=str(node), **ids)  # again, on a node that has it
    assert not any("STAGED" in line for line in setup(submission, profile, {}))


@pytest.mark.parametrize("planted", ["cut", "foreign", "link"])
def test_a_job_runs_the_call_of_its_script_whatever_lies_in_its_place(
    submission: Submission, tmp_path: Path, planted: str
) -> None:
    place = submission.calls / "9_4_submitted.pkl"
    if planted == "cut":
        place.write_bytes(b"\x80\x05\x95")
    elif planted == "foreign":
        place.write_bytes(b"cos\nsystem\n(S'true'\ntR.")
        place.chmod(0o666)
    else:
        (tmp_path / "elsewhere").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
        place.symlink_to(tmp_path / "elsewhere")
    lines = setup(submission, PROFILE, {})
    in_bash(lines, SLURM_ARRAY_JOB_ID="9", SLURM_ARRAY_TASK_ID="4")
    (text,) = re.findall(r"echo '([A-Za-z0-9+/=]+)'", "\n".join(lines))
    expected = subprocess.run(["base64", "-d"], input=text.encode(), capture_output=True, check=True).stdout
    assert place.read_bytes() == expected
    assert not place.is_symlink()
    assert [path.name for path in submission.calls.iterdir()] == [place.name]


def test_a_job_whose_call_cannot_be_written_does_not_begin(submission: Submission) -> None:
    (submission.calls / "9_4_submitted.pkl").mkdir()
    lines = setup(submission, PROFILE, {})
    with pytest.raises(AssertionError, match="9_4_submitted"):
        in_bash([*lines, "echo began"], SLURM_ARRAY_JOB_ID="9", SLURM_ARRAY_TASK_ID="4")


# --- memory -----------------------------------------------------------------------------------------------------------


def cgroup(folder: Path, monkeypatch: pytest.MonkeyPatch, version: int, count: int) -> Path:
    """A control group of this process as the kernel shows it; its file of events."""
    own = {1: "11:memory:/slurm/job_9\n4:cpu,cpuacct:/x\n", 2: "0::/slurm/job_9\n"}[version]
    (folder / "cgroup").write_text(own)
    events = {
        1: folder / "fs/memory/slurm/job_9/memory.oom_control",
        2: folder / "fs/slurm/job_9/memory.events",
    }[version]
    events.parent.mkdir(parents=True, exist_ok=True)
    events.write_text(
        f"oom_kill_disable 0\nunder_oom 0\noom_kill {count}\n"
        if version == 1
        else f"low 0\noom 7\noom_kill {count}\n"
    )
    monkeypatch.setattr(memory, "OWN", folder / "cgroup")
    monkeypatch.setattr(memory, "ROOT", folder / "fs")
    return events


@pytest.mark.parametrize("version", [1, 2])
def test_kills_for_memory_are_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int) -> None:
    events = cgroup(tmp_path, monkeypatch, version, 3)
    assert memory.oom_kills() == 3
    if version == 2:  # the innermost group has no file where the memory controller was not handed down to it
        (tmp_path / "cgroup").write_text("0::/slurm/job_9/step_0/user/task_0\n")
        assert memory.oom_kills() == 3
    events.write_text("nothing\n")
    assert memory.oom_kills() is None
    events.unlink()
    assert memory.oom_kills() is None
    monkeypatch.setattr(memory, "OWN", tmp_path / "none")
    assert memory.oom_kills() is None


@pytest.mark.parametrize(("counted", "cause"), [(True, "oom"), (False, "killed")])
def test_a_worker_that_the_kernel_killed_for_memory_is_of_that_class(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    launch: Any,
    counted: bool,
    cause: str,
) -> None:
    events = cgroup(tmp_path, monkeypatch, 2, 5)
    real, asked = local.oom_kills, []

    def counts() -> int | None:
        if asked and counted:  # the kernel has counted by the time the worker is missed
            events.write_text("oom_kill 6\n")
        asked.append(1)
        return real()

    monkeypatch.setattr(local, "oom_kills", counts)
    run = launch("kill")
    assert [outcome.cause for outcome in run.outcomes] == [cause]
    assert run.recorded[0][1]["cause"] == cause
    assert run.recorded[0][1]["evidence"]["returncode"] == -signal.SIGKILL


# --- secrets ----------------------------------------------------------------------------------------------------------


def test_no_secret_reaches_a_jobs_log_or_files(
    submission: Submission, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    token = "hf_" + "q" * 30
    Log().note(f"failed: 401 for https://user:{token}@host/x")
    submission.put_ended(0, 0, 0, reason="failed", message=f"no {token}")
    monkeypatch.setattr(Store, "open", lambda *_: (_ for _ in ()).throw(RuntimeError(f"token {token}")))
    submission.add_array({"class": "training"}, [[ENTRY]])
    assert task._Task(Element(submission, 0, 0, 1, "9_0"), task.Heard()).run() == 1
    written = capsys.readouterr().err + "".join(
        path.read_text() for path in submission.folder.rglob("*") if path.is_file()
    )
    assert "RuntimeError: token [hidden]" in written
    assert token not in written
