"""Jobs of a real SLURM that are preempted, requeued, cancelled, killed and lost: what was computed is kept, and the records are those
of an undisturbed run. The jobs of a cluster run side by side; each test looks at one."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
import torch

from ltbench import plugins
from ltbench.checkpoint import load_milestone
from ltbench.launch.slurm.element import View
from ltbench.launch.slurm.settle import settle
from ltbench.store import sealed
from ltbench.store.claims import standing
from tests.rank_jobs import in_ranks
from tests.slurm_jobs import LAST, ROOT, Grid, Sent
from tests.slurm_world import SlurmWorld, slurm_world
from tests.test_job import House

pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1500)]
START = 600.0  # seconds for a dozen processes that import torch on a busy machine


@contextmanager
def a_grid(folder: Path, **settings: Any) -> Iterator[Grid]:
    before = dict(os.environ)
    with slurm_world(cpus=2, gpus=0, requeue_hold=10, **settings) as world:
        os.environ.update(world.env | {plugins.VARIABLE: ""})  # another grid has a method of the same name
        yield Grid(folder, world)
    os.environ.clear()
    os.environ.update(before)


def on(node: int) -> dict[str, Any]:
    """A preemptable job that has a node to itself."""
    return {"options": ["--partition=low", f"--nodelist=n{node}", "--exclusive"]}


def preempt(world: SlurmWorld, node: int, folder: Path) -> None:
    words = ("sbatch", "-p", "high", "-w", f"n{node}", "--exclusive", "-o", folder / "high.out")
    world.call(*words, "--wrap", "sleep 0.1", cwd=folder)


def processes(world: SlurmWorld, node: int, what: str, variable: str = "") -> list[int]:
    """Processes of jobs on a node whose command line holds `what`, and their environment `variable`."""
    wanted = {f"SLURM_CONF={world.conf}", f"SLURMD_NODENAME=n{node}", variable} - {""}
    found = []
    for path in Path("/proc").glob("[0-9]*"):
        try:
            variables = (path / "environ").read_bytes().decode(errors="replace").split("\0")
            command = (path / "cmdline").read_bytes().replace(b"\0", b" ").decode()
        except OSError:
            continue
        if wanted <= set(variables) and what in command:
            found.append(int(path.name))
    return found


def kill(pids: list[int]) -> None:
    """At once: none of them hears that another is dead."""
    assert pids
    for number in (signal.SIGSTOP, signal.SIGKILL):
        for pid in pids:
            with suppress(ProcessLookupError):  # it ended with another
                os.kill(pid, number)


@pytest.fixture(scope="module")
def fates(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grid]:
    """Every job has met its fate, and what can go on has gone on to its end. In kill_wait seconds a busy machine must save."""
    with a_grid(tmp_path_factory.mktemp("fates"), nodes=9, grace=60, kill_wait=30) as grid:
        world = grid.world
        names = ("preempted", "requeued", "scancelled", "worker", "step", "node", "limited")
        sent = {name: grid.send(name, **on(1 + i), job={"checkpoint_seconds": 0.0}) for i, name in enumerate(names)}  # fmt: skip
        measured = grid.send("measured", milestones=(2, LAST), measure=(2,), options=["--nodelist=n0"], evaluation={"sbatch": {"nodelist": "n0"}})  # fmt: skip
        lost = grid.send("hopeless", deaf=True, stuck_starts=2, **on(8))
        beside = ThreadPoolExecutor(1)
        given_up = beside.submit(hopeless, grid, lost)
        grid.follower = follow(grid, sent["requeued"])
        world.until(grid.trains(*sent.values()), START)
        limit(world, sent["limited"])
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
        again = grid.sent["worker again"] = grid.send_again(sent["worker"], **on(5))
        world.until(lambda: "requeued" in sent["limited"].log)
        world.until(lambda: set_limit(world, sent["limited"], 50))
        world.until(lambda: (1, 0, 0) in measured.submission.ended(), START)
        given_up.result()  # its own waits end, and say how the queue stands
        beside.shutdown()
        goes_on = [measured, again, *(sent[name] for name in ("limited", "preempted", "requeued", "node"))]
        grid.until_done(*goes_on)
        yield grid
        grid.follower.kill()
        grid.follower.wait()


def follow(grid: Grid, sent: Sent) -> subprocess.Popen[bytes]:
    """`logs CELL -f`, as a person on a login node runs it."""
    store = grid.house.store
    places = {
        "LTBENCH_STORE": str(store.root),
        "LTBENCH_SCRATCH": str(store.scratch),
        "PYTHONPATH": str(ROOT),
    }
    with (grid.folder / "followed").open("wb") as out:
        words = [sys.executable, str(ROOT / "harness.py"), "logs", sent.cell.id[:12], "-f"]
        return subprocess.Popen(words, env={**os.environ, **places}, stdout=out, stderr=subprocess.STDOUT)


def limit(world: SlurmWorld, sent: Sent) -> None:
    """Let a job that trains run into its time limit. SLURM looks every 30 seconds, and warns where it finds less than 50 left."""
    end = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(time.time() + 50))
    world.call("scontrol", "update", f"jobid={sent.name}", f"EndTime={end}")


def set_limit(world: SlurmWorld, sent: Sent, minutes: int) -> bool:
    world.call("scontrol", "update", f"jobid={sent.name}", f"TimeLimit={minutes}", check=False)
    return world.show(sent.name)["TimeLimit"] == f"00:{minutes:02d}:00"


def hopeless(grid: Grid, lost: Sent) -> None:
    """A job that is put back into the queue each time, and has kept nothing."""
    for restart in range(2):
        grid.world.until(lambda restart=restart: (0, 0, restart) in lost.submission.started())
        grid.world.call("scontrol", "requeue", lost.name)
    grid.until_ended(lost, "FAILED")


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
    assert sent.end(1)["reason"] == "done"
    assert "resuming from step" in sent.log
    assert fates.run(sent).failures() == []
    fates.assert_equal(sent)


def test_a_job_that_somebody_requeues_goes_on(fates: Grid) -> None:
    sent = fates.sent["requeued"]
    assert sent.end(1)["reason"] == "done"
    assert attempts(fates, sent) == 2
    assert "resuming from step" in sent.log
    fates.assert_equal(sent)


def test_a_node_that_is_lost_while_its_job_runs_on_leaves_one_set_of_records(fates: Grid) -> None:
    sent = fates.sent["node"]
    assert sent.end(1)["reason"] == "done"
    assert attempts(fates, sent) >= 2, "SLURM's restart count superseded the first at once, alive as it was"
    fates.assert_equal(sent)


def test_a_milestone_is_measured_in_a_job_of_its_own_while_the_training_goes_on(fates: Grid) -> None:
    sent = fates.sent["measured"]
    began = sealed.read_sealed(sent.submission.started()[1, 0, 0])
    ended = sealed.read_sealed(sent.submission.ended()[1, 0, 0])
    assert began["job_id"] == sent.submission.job(1) != sent.job
    assert ended["reason"] == "done"
    assert ended["time"] < sent.end()["time"]
    training, evaluation = (fates.world.show(str(sent.submission.job(number))) for number in (0, 1))
    assert training["StartTime"] < evaluation["StartTime"] < evaluation["EndTime"] < training["EndTime"]
    assert [record.step for record in fates.run(sent).records("evaluation")] == [2]
    fates.assert_equal(sent)


def test_a_job_that_keeps_nothing_start_after_start_ends(fates: Grid) -> None:
    sent = fates.sent["hopeless"]
    said = "started 2 times in a row and kept nothing new (0 steps or images are there)"
    assert (sent.end(2)["reason"], sent.end(2)["cause"]) == ("failed", "no-progress")
    assert said in sent.end(2)["message"]
    state = fates.run(sent).state("train")
    assert state is not None
    assert (state.state, state.cause) == ("failed", "no-progress")
    assert said in (state.message or "")
    assert said in sent.log


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
    assert "resuming from step" in fates.sent["worker again"].log
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
    with a_grid(tmp_path_factory.mktemp("bare"), nodes=3, grace=20, kill_wait=3, user_signal=False) as grid:
        waits = grid.send("waits", **on(0))
        at_once = grid.send("at once", requeue_at_once=True, **on(1))
        options = ["--partition=low", "--nodelist=n2"]
        pair = grid.send("pair", ranks=2, cpus=2, milestones=(6, 12), options=options)
        grid.world.until(grid.trains(waits, at_once, pair), START)
        for node in (0, 1):
            preempt(grid.world, node, grid.folder)
        kill(processes(grid.world, 2, "run_task", "SLURM_PROCID=1"))
        grid.until_ended(pair, "FAILED")
        settle(pair.submission, grid.house.store)
        again = grid.send_again(pair, options=options, ranks=2, cpus=2)
        grid.world.until(lambda: all("ends: preempted" in sent.log for sent in (waits, at_once)))
        grid.until_done(waits, at_once, again)
        yield grid


def test_after_a_bare_sigterm_a_job_saves_and_waits_and_slurm_requeues_it(bare: Grid) -> None:
    waits, at_once = bare.sent["waits"], bare.sent["at once"]
    late = "saved; SLURM requeued it"  # a machine so slow that its time of grace was over by then
    assert waits.end()["message"] in ("stopped; saved", late)
    assert at_once.end()["message"] in ("saved; requeued", late)
    for sent in (waits, at_once):
        assert "resuming from step" in sent.log
        assert sent.end(1)["reason"] == "done"
        bare.assert_equal(sent)


def test_a_rank_that_dies_ends_the_job_and_the_cell_goes_on(bare: Grid) -> None:
    pair = bare.sent["pair"]
    assert bare.run(pair).failures("train")[0]["cause"] == "killed"
    records = bare.run(pair).records("train")
    assert [(record.step, record.envelope["ranks"]) for record in records] == [(6, 2), (12, 2)]
    assert bare.house.bodies(pair.cell) == two_undisturbed(bare, pair)
    weights, others = (load_milestone(house.result(pair.cell).milestones, 12)[0] for house in (bare.house, bare.undisturbed(pair)))  # fmt: skip
    for name in (
        weights
    ):  # of one process, up to the order of sums: Adam at 1e-3 moves a weight by up to 12e-3 in 12 steps
        torch.testing.assert_close(weights[name], others[name], rtol=0, atol=1e-4)


def two_undisturbed(grid: Grid, sent: Sent) -> dict[str, str]:
    """The bodies that two ranks leave where neither dies."""
    other = House(grid.folder / "two")
    tag = sent.cell.settings["method"]["tag"]
    cell = other.cell(f"{{name: slow, tag: {tag}}}", milestones=str(list(sent.milestones)))
    done = in_ranks(other.folder / "ranks", lambda rank: other.run(cell, sent.stages[0]))
    assert [each["outcome"] for each in done] == ["done", "done"]
    return other.bodies(cell)


def test_logs_follow_a_cell_over_its_requeue_to_its_end(fates: Grid) -> None:
    """The last one of this cluster's: 15 seconds after a stage's end the next one is still waited for."""
    assert fates.follower is not None
    code, text = fates.follower.wait(300), (fates.folder / "followed").read_text()
    assert code == 0, text
    told = ("attempt 1 on", "DUE TO JOB REQUEUE", "attempt 1 on .*, preempted", "attempt 2 on", "resuming from step", f"step {LAST}", "ends: done")  # fmt: skip
    places = [found.start() if (found := re.search(words, text)) else -1 for words in told]
    assert -1 not in places, (told, places, text)
    assert places == sorted(places), text
    assert text.count("resuming from step") == text.count(f"reached  requeued, step {LAST}") == 1, "once each"


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
