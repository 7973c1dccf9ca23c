"""`submit` on a real SLURM: the driver is gone, records appear, and nothing happens twice."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections import Counter

import pytest

from ltbench.launch.slurm import layout, queue_states
from ltbench.store import Store, sealed
from tests import cli_world, slurm_world
from tests.cli_world import ROOT

cli, here, slurm = cli_world.cli, cli_world.here, slurm_world.slurm  # fixtures
pytestmark = pytest.mark.slurm
PROFILE = """
partition: low
gpus: 0
cpus: 1
time: 20
signal_seconds: 60
"""
HELD = PROFILE + "training: {sbatch: {hold: true}}\n"  # jobs that stay in the queue
TINY = cli_world.SPEC.replace("method: [sit, ccua]", "method: [sit]").replace("[20, 40]", "[4, 8]")
EIGHT = TINY.replace("seed: [0, 1]", "seed: [7, 6, 5, 4, 3, 2, 1, 0]")


@pytest.fixture
def submit(here, cli, slurm):
    """Submit little.yaml with a profile's text; (exit code, stdout, stderr)."""

    def go(profile, *words, spec=None):
        (here / "cluster.yaml").write_text(profile)
        (here / "little.yaml").write_text(spec or TINY)
        return cli("submit", "little.yaml", "--profile", "cluster.yaml", *words)

    return go


def submissions(here):
    """Oldest first."""
    return list(layout.submissions(here / "scratch"))[::-1]


def queued(here):
    """How many living jobs have each (cell, stage)."""
    found = Counter()
    for submission in submissions(here):
        for number in submission.arrays():
            job, array = submission.job(number), submission.array(number)
            states = queue_states.ask([job]) if job else {}
            for index in array.indices:
                state = states.get((job, index))
                if state is not None and state.alive:
                    found.update(
                        (entry.cell, stage) for entry in array.tasks[index] for stage in entry.stages
                    )
    return found


def bodies(root, scratch):
    """The bodies of all records by what they are of."""
    store = Store.open(root, scratch, write=False)
    return {
        (cell, record.kind, record.step, record.evaluation): json.dumps(record.body, sort_keys=True)
        for cell in store.cells()
        for run in store.runs(cell)
        for record in run.records()
    }


def test_a_grid_comes_back_finished_and_equal_to_a_run_on_this_machine(here, submit, cli, slurm):
    code, out, err = submit(PROFILE)
    assert code == 0, err
    assert "submitted " in out
    slurm.until(slurm.idle, 240)
    logs = {path.name: path.read_text()[-3000:] for path in submissions(here)[0].logs.glob("*.out")}
    assert "nothing to do" in cli("plan", "little.yaml")[1], logs
    assert "nothing to submit; 2 of 2 cells done" in submit(PROFILE)[1]
    place = {"--store": here / "own" / "store", "--scratch": here / "own" / "scratch", "--threads": 1}
    assert cli("run", "little.yaml", *(word for pair in place.items() for word in pair))[0] == 0
    found = bodies(here / "store", here / "scratch")
    assert len(found) == 8
    assert found == bodies(here / "own" / "store", here / "own" / "scratch")


def test_arrays_are_chunked_and_seed_0_goes_first(here, submit, slurm):
    code, out, err = submit(HELD, spec=EIGHT)
    assert code == 0, err
    (submission,) = submissions(here)
    arrays = [submission.array(number) for number in submission.arrays()]
    trainings = [each for each in arrays if each.resource["class"] == "training"]
    assert [len(each.tasks) for each in trainings] == [5, 3]  # the cluster's MaxArraySize is 5
    assert [entry.seed for each in trainings for task in each.tasks for entry in task] == list(range(8))
    wanted = queued(here)
    assert set(wanted.values()) == {1}
    assert len({cell for cell, stage in wanted if stage.startswith("train:")}) == 8
    assert len(list(submission.folder.glob("*.json"))) == 1 + 2 * len(arrays)
    code, out, _ = submit(HELD, spec=EIGHT)
    assert (code, len(submissions(here))) == (0, 1)
    assert "nothing to submit; 0 of 8 cells done, 8 on the way" in out
    assert queued(here) == wanted
    comments = slurm.call("squeue", "-h", "-o", "%k").split()
    assert set(comments) == {submission.token(each.number) for each in arrays}


def test_what_left_the_queue_comes_back_and_nothing_else(here, submit, slurm):
    submit(HELD, spec=EIGHT)
    (first,) = submissions(here)
    number = next(n for n in first.arrays() if first.array(n).resource["class"] == "training")
    for index in (1, 3):
        first.cancel(number, index)
        slurm.call("scancel", f"{first.job(number)}_{index}")
    slurm.until(lambda: sum(stage.startswith("train:") for _, stage in queued(here)) == 6)
    (here / "cluster.yaml").write_text(HELD)
    assert submit(HELD, "--watchdog", "--round", f"{first.id}.{number}", spec=EIGHT)[0] == 0
    assert len(submissions(here)) == 1  # a watchdog leaves alone what a person cancelled
    code, _, err = submit(HELD, spec=EIGHT)
    assert code == 0, err
    _, second = submissions(here)
    again = [entry.seed for n in second.arrays() for task in second.array(n).tasks for entry in task]
    assert sorted(set(again)) == [1, 3]
    assert {n for key, n in queued(here).items() if key[1].startswith("train:")} == {1}
    assert "helper" not in [second.array(n).resource["class"] for n in second.arrays()]


@pytest.mark.parametrize("moment", ["after", "before"])
def test_a_driver_killed_between_sbatch_and_its_bookkeeping_is_healed(
    here, submit, slurm, monkeypatch, moment
):
    real = shutil.which("sbatch")
    shims = here / "shims"
    shims.mkdir()
    (shims / "sbatch").write_text(
        f'#!/bin/bash\nif [ {moment} = after ]; then {real} "$@" > {here}/answer; fi\nkill -KILL $PPID\nsleep 1\n'
    )
    (shims / "sbatch").chmod(0o755)
    (here / "cluster.yaml").write_text(HELD)
    (here / "little.yaml").write_text(EIGHT)
    words = ["submit", "little.yaml", "--profile", "cluster.yaml"]
    killed = subprocess.run(
        [sys.executable, ROOT / "harness.py", *words],
        env={**os.environ, "PATH": f"{shims}:{os.environ['PATH']}"},
        capture_output=True,
        timeout=60,
    )
    assert killed.returncode == -signal.SIGKILL
    (first,) = submissions(here)
    assert [first.job(number) for number in first.arrays()] == [None] * len(first.arrays())
    code, _, err = submit(HELD, spec=EIGHT)
    assert code == 0, err
    assert ("taken over from a command that was killed" in err) == (moment == "after")
    wanted = queued(here)
    trained = Counter({key: n for key, n in wanted.items() if key[1].startswith("train:")})
    assert len(trained) == 8
    assert set(wanted.values()) == {1}
    known = {s.job(n) for s in submissions(here) for n in s.arrays()} - {None}
    assert set(slurm.call("squeue", "-h", "-o", "%F").split()) == known  # no orphan


def test_evaluations_are_queued_at_once_where_jobs_may_not_submit(here, submit, cli, slurm):
    spec = TINY.replace("seed: [0, 1]", "seed: [0]").replace("[4, 8]", "[4]")
    code, _, err = submit(PROFILE + "submit_from_jobs: false\n", spec=spec)
    assert code == 0, err
    (submission,) = submissions(here)
    by_class = {submission.array(n).resource["class"]: n for n in submission.arrays()}
    assert set(by_class) == {"helper", "training", "evaluation"}
    training, evaluation = (
        submission.array(by_class[name]).tasks[0][0] for name in ("training", "evaluation")
    )
    assert training.stages == ("train:4",)
    assert [stage.partition(":")[0] for stage in evaluation.stages] == ["evaluate"]
    waits = slurm.show(submission.job(by_class["evaluation"]) or "")["Dependency"]
    assert f"aftercorr:{submission.job(by_class['training'])}" in waits
    slurm.until(slurm.idle, 200)
    assert "nothing to do" in cli("plan", "little.yaml")[1]


def test_a_watchdog_brings_back_what_was_lost_and_ends_by_itself(here, submit, slurm):
    spec = TINY.replace("seed: [0, 1]", "seed: [0]").replace("[4, 8]", "[4]")
    profile = PROFILE + "watchdog_minutes: 600\n"
    code, _, err = submit(profile, "--watchdog", spec=spec)
    assert code == 0, err
    (first,) = submissions(here)

    def of_class(name):
        known = [(s, n) for s in submissions(here) for n in s.arrays()]
        return [s.job(n) for s, n in known if s.array(n).resource["class"] == name]

    (dog,), (training,) = of_class("watchdog"), of_class("training")
    assert slurm.show(dog)["JobState"] == "PENDING"
    assert "a watchdog is in the queue already" in submit(profile, "--watchdog", spec=spec)[2]
    number = next(n for n in first.arrays() if first.array(n).resource["class"] == "training")
    slurm.until(lambda: (number, 0, 0) in first.started())
    os.kill(sealed.read_sealed(first.started()[number, 0, 0])["pid"], signal.SIGKILL)
    slurm.until(lambda: not queue_states.ask([training])[training, 0].alive)
    slurm.call("scontrol", "update", f"JobId={dog}", "StartTime=now")
    slurm.until(lambda: len(of_class("watchdog")) == 2, 120)
    assert len(of_class("training")) == 2
    slurm.until(
        lambda: slurm.call("squeue", "-h", "-o", "%i %r").endswith("BeginTime"), 200
    )  # the second alone
    slurm.call("scontrol", "update", f"JobId={of_class('watchdog')[1]}", "StartTime=now")
    slurm.until(slurm.idle, 120)
    assert len(of_class("watchdog")) == 2
    logs = "".join(path.read_text() for s in submissions(here) for path in s.logs.glob("*.out"))
    assert "nothing is left to watch" in logs, logs[-3000:]
    assert "nothing to submit; 1 of 1 cell done" in submit(profile, spec=spec)[1]


def test_without_an_answer_of_slurm_nothing_is_submitted(here, submit, slurm):
    submit(HELD)
    daemon = slurm._daemons["slurmctld"]
    daemon.send_signal(signal.SIGSTOP)
    try:
        slurm_time = queue_states.PATIENCE
        queue_states.PATIENCE = 2
        code, _, err = submit(HELD)
    finally:
        queue_states.PATIENCE = slurm_time
        daemon.send_signal(signal.SIGCONT)
    assert code == 4
    assert "SLURM does not answer" in err
    assert len(submissions(here)) == 1


def test_what_sbatch_refuses_is_said_and_leaves_no_job(here, submit, slurm):
    code, _, err = submit(PROFILE.replace("low", "nowhere"))
    assert code == 4
    assert "sbatch refused the job" in err
    assert "invalid partition" in err
    assert slurm.idle()
    code, _, err = submit(HELD)
    assert code == 0, err
    assert set(queued(here).values()) == {1}
