"""Jobs of a real SLURM that are preempted, requeued, cancelled, killed and lost: what was computed is kept, and the records are those
of an undisturbed run. The jobs of a cluster run side by side; each test looks at one."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from ltbench import plugins
from ltbench.launch.slurm.element import View
from ltbench.launch.slurm.settle import settle
from ltbench.store.claims import standing
from tests.slurm_jobs import Grid, Sent
from tests.slurm_world import SlurmWorld, slurm_world

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(600)]
START = 200.0  # seconds for six processes that import torch on a busy machine


@contextmanager
def a_grid(folder: Path, **settings: Any) -> Iterator[Grid]:
    before = dict(os.environ)
    with slurm_world(cpus=2, gpus=0, grace=12, kill_wait=3, **settings) as world:
        os.environ.update(world.env | {plugins.VARIABLE: ""})  # another grid has a method of the same name
        yield Grid(folder, world)
    os.environ.clear()
    os.environ.update(before)


def on(node: int) -> dict[str, Any]:
    """A preemptable job that has a node to itself."""
    return {"options": ["--partition=low", f"--nodelist=n{node}", "--exclusive"]}


def preempt(world: SlurmWorld, node: int, folder: Path) -> None:
    words = ("sbatch", "-p", "high", "-w", f"n{node}", "--exclusive", "-o", folder / "high.out")
    world.call(*words, "--wrap", "sleep 1", cwd=folder)


def processes(world: SlurmWorld, node: int, what: str) -> list[int]:
    """Processes of jobs on a node whose command line holds `what`."""
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            variables = (path / "environ").read_bytes().split(b"\0")
            command = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        ours = f"SLURM_CONF={world.conf}".encode() in variables
        if ours and f"SLURMD_NODENAME=n{node}".encode() in variables and what in command:
            found.append(int(path.name))
    return found


def kill(pids: list[int]) -> None:
    assert pids
    for pid in pids:
        with suppress(ProcessLookupError):  # it ended with another
            os.kill(pid, signal.SIGKILL)


@pytest.fixture(scope="module")
def fates(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grid]:
    """Every job has met its fate, and what can go on has gone on to its end."""
    with a_grid(tmp_path_factory.mktemp("fates"), nodes=7) as grid:
        world = grid.world
        limited = grid.send("limited", time=1, **on(0))
        names = ("preempted", "requeued", "scancelled", "worker", "step", "node")
        sent = {name: grid.send(name, **on(1 + i), job={"checkpoint_seconds": 0.0}) for i, name in enumerate(names)}  # fmt: skip
        world.until(grid.trains(*sent.values()), START)
        preempt(world, 1, grid.folder)
        world.call("scontrol", "requeue", sent["requeued"].name)
        world.call("scancel", sent["scancelled"].name)
        kill(processes(world, 4, "ltbench.launch.worker"))
        kill(processes(world, 5, "ltbench.launch") + processes(world, 5, "run_task"))
        world._daemons["n6"].kill()  # the node answers no more, and its job runs on: a double run
        world.call("scontrol", "update", "nodename=n6", "state=down", "reason=test")
        world.until(lambda: world.states()[sent["node"].name] == "PENDING")
        world.call("scontrol", "update", f"jobid={sent['node'].name}", "ReqNodeList=n4")
        over = {"scancelled": "CANCELLED", "worker": "FAILED", "step": "FAILED"}
        world.until(lambda: all(world.states().get(sent[name].name) == word for name, word in over.items()))
        world.until(lambda: "requeued" in limited.log, 60)
        world.until(lambda: world.states()[limited.name] == "PENDING")
        world.call(
            "scontrol", "update", f"jobid={limited.name}", "TimeLimit=10"
        )  # a minute is short on a busy machine
        goes_on = [limited, *(sent[name] for name in ("preempted", "requeued", "node"))]
        grid.until_done(*goes_on, seconds=200)
        yield grid


def attempts(grid: Grid, sent: Sent) -> int:
    now = standing(grid.run(sent).dir, "train", grid.house.store.watch, 60)
    return 0 if now is None else now.attempt


def test_a_preempted_job_saves_requeues_itself_and_goes_on(fates: Grid) -> None:
    sent = fates.sent["preempted"]
    assert (sent.end()["reason"], sent.end()["message"]) == ("preempted", "saved; requeued")
    assert sent.end(1)["reason"] == "done"
    assert "resuming from step" in sent.log
    assert attempts(fates, sent) == 2
    assert fates.run(sent).failures() == []
    fates.assert_equal(sent)


def test_a_job_at_its_time_limit_saves_and_goes_on(fates: Grid) -> None:
    sent = fates.sent["limited"]
    assert (sent.end()["reason"], sent.end()["outcome"]) == ("timeout", "preempted")
    assert sent.end(len(sent.submission.ended()) - 1)["reason"] == "done"
    fates.assert_equal(sent)


def test_a_job_that_somebody_requeues_goes_on(fates: Grid) -> None:
    sent = fates.sent["requeued"]
    assert sent.end(1)["reason"] == "done"
    assert "resuming from step" in sent.log
    fates.assert_equal(sent)


def test_a_node_that_is_lost_while_its_job_runs_on_leaves_one_set_of_records(fates: Grid) -> None:
    sent = fates.sent["node"]
    assert sent.end(1)["reason"] == "done"
    assert attempts(fates, sent) >= 2, "SLURM's restart count superseded the first at once, alive as it was"
    fates.assert_equal(sent)


def test_what_its_user_cancelled_stays_cancelled(fates: Grid) -> None:
    sent = fates.sent["scancelled"]
    assert fates.world.states()[sent.name] == "CANCELLED"
    assert "resuming" not in sent.log
    (settled,) = settle(sent.submission, fates.house.store)
    assert settled.cause == "cancelled"
    assert fates.run(sent).state("train").cause == "cancelled"  # pyright: ignore[reportOptionalMemberAccess]
    assert list(fates.run(sent).checkpoints.glob("step-*")), "and its work is kept"
    assert settle(sent.submission, fates.house.store) == []


def test_a_killed_worker_is_written_down_and_the_cell_goes_on_when_it_is_sent_again(fates: Grid) -> None:
    sent = fates.sent["worker"]
    assert (sent.end()["reason"], sent.end()["cause"]) == ("failed", "killed")
    assert "was killed by SIGKILL" in sent.end()["message"]
    (failure,) = fates.run(sent).failures("train")
    assert failure["cause"] == "killed"
    assert settle(sent.submission, fates.house.store) == [], "nothing is left to say"
    again = fates.send_again(sent)
    fates.until_done(again)
    assert "resuming from step" in again.log
    fates.assert_equal(sent)


def test_a_step_that_was_killed_whole_is_written_down_by_whoever_looks(fates: Grid) -> None:
    sent = fates.sent["step"]
    with pytest.raises(FileNotFoundError):
        sent.end()
    (settled,) = settle(sent.submission, fates.house.store)
    assert (settled.cause, settled.restart) == ("killed", 0)
    (failure,) = fates.run(sent).failures("train")
    assert failure["cause"] == "killed"
    assert failure["step"] >= 3
    assert sent.end()["cause"] == "killed"
    assert settle(sent.submission, fates.house.store) == []
    assert len(fates.run(sent).failures("train")) == 1


# --- a cluster that warns by SIGTERM alone ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grid]:
    with a_grid(tmp_path_factory.mktemp("bare"), nodes=3, user_signal=False) as grid:
        waits = grid.send("waits", **on(0))
        at_once = grid.send("at once", requeue_at_once=True, **on(1))
        pair = grid.send("pair", ranks=2, cpus=2, options=["--partition=low", "--nodelist=n2"])
        grid.world.until(grid.trains(waits, at_once, pair), START)
        for node in (0, 1):
            preempt(grid.world, node, grid.folder)
        kill(processes(grid.world, 2, "run_task")[-1:])
        grid.until_ended(pair, "FAILED")
        grid.world.until(lambda: all("ends: preempted" in sent.log for sent in (waits, at_once)))
        yield grid


def test_after_a_bare_sigterm_a_job_saves_and_waits_and_slurm_requeues_it(bare: Grid) -> None:
    waits, at_once = bare.sent["waits"], bare.sent["at once"]
    bare.until_done(waits, at_once, seconds=200)
    assert waits.end()["message"] == "SIGTERM; saved"
    assert at_once.end()["message"] == "saved; requeued"
    for sent in (waits, at_once):
        assert "resuming from step" in sent.log
        assert sent.end(1)["reason"] == "done"
        bare.assert_equal(sent)


def test_a_rank_that_dies_ends_the_job_and_the_cell_goes_on(bare: Grid) -> None:
    pair = bare.sent["pair"]
    settle(pair.submission, bare.house.store)
    assert bare.run(pair).failures("train")[0]["cause"] == "killed"
    again = bare.send_again(pair, ranks=2, cpus=2)
    bare.until_done(again)
    records = bare.run(pair).records("train")
    assert [(record.step, record.envelope["ranks"]) for record in records] == [(10, 2), (40, 2)]


# --- without a cluster ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "fate"),
    [
        ("JobState=RUNNING Restarts=0 PreemptTime=None", "running"),
        ("JobState=RUNNING Restarts=0 PreemptTime=2026-11-24T19:55:14", "preempted"),
        ("JobState=COMPLETING Restarts=0 PreemptTime=None ExitCode=0:15", "cancelled"),
        ("JobState=COMPLETING Restarts=1", "requeued"),
        (None, "unknown"),
    ],
)
def test_slurms_word_about_a_job_is_read(said: str | None, fate: str) -> None:
    assert View.read(said, 0).fate == fate
