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

from ltbench import plugins
from ltbench.launch.slurm import layout, queue_states
from ltbench.store import Store, sealed
from tests import cli_world, slurm_world
from tests.cli_world import ROOT

cli, here = cli_world.cli, cli_world.here  # fixtures
pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1500)]
PROFILE = """
partition: low
gpus: 0
cpus: 1
time: 20
signal_seconds: 60
"""
HELD = (
    PROFILE + "training: {sbatch: {hold: true}}\nhelper: {sbatch: {hold: true}}\n"
)  # jobs that stay in the queue
TINY = """
name: little
dataset: {name: digits, imbalance: 0.1, resolution: 16}
pipeline: sit
network: SiT-N/4
train: {batch: 32, local_batch: 8, milestones: [4]}
evaluate: [{protocol: small-data, sampler: euler, steps: 2, guidance: 1.5, samples: 40, block: 20}]
grid: {method: [sit], seed: [0, 1]}
"""
ONE = TINY.replace("seed: [0, 1]", "seed: [0]")
HELD_PACKED = "training: {pack: 2, sbatch: {hold: true}}\n"
EIGHT = TINY.replace("seed: [0, 1]", "seed: [7, 6, 5, 4, 3, 2, 1, 0]")
GREEDY = ONE.replace("[sit]", "[hungry]").replace("[4]}", "[4], checkpoint_seconds: 1e-9}")
GREEDY, UNMEASURED = (
    "\n".join(line for line in text.splitlines() if not line.startswith("evaluate")) for text in (GREEDY, ONE)
)
WAITING = """
import os
import time
from ltbench.methods import Method, mean_square


class Waiting(Method):
    \"\"\"The plain loss, once the file named WAIT_WHILE is gone.\"\"\"

    def loss(self, net, draw):
        while os.path.exists(os.environ.get("WAIT_WHILE", "")):
            time.sleep(0.05)
        (out,) = self.run(net, draw, draw.y_in)
        return {"denoise": mean_square(out.pred, draw.target)}
"""
SECRET = "canary-secret-of-the-submitter"
HUNGRY = """
import os
from ltbench.methods import Method, mean_square


class Hungry(Method):
    \"\"\"Has memory for two steps of more than 8 images, and says too much.\"\"\"

    def __init__(self, task):
        super().__init__(task)
        self.losses = 0

    def loss(self, net, draw):
        self.losses += len(draw.y) > 8
        if self.losses > 2:
            print(dict(os.environ), flush=True)
            try:
                bytearray(1 << 62)
            except MemoryError as error:
                raise MemoryError(f"no room for {os.environ['SOME_TOKEN']}") from error
        (out,) = self.run(net, draw, draw.y_in)
        return {"denoise": mean_square(out.pred, draw.target)}
"""


@pytest.fixture(scope="module")
def cluster():
    with slurm_world.slurm_world() as world:
        yield world


@pytest.fixture
def slurm(cluster, monkeypatch):
    """The cluster, with nothing in its queue before and after."""
    slurm_world.enter(cluster, monkeypatch)
    yield cluster
    cluster.call("scancel", "--user=root")
    cluster.until(cluster.idle)


@pytest.fixture
def submit(here, cli, slurm):
    """Submit little.yaml with a profile's text; (exit code, stdout, stderr)."""

    def go(profile, *words, spec=None):
        (here / "cluster.yaml").write_text(profile)
        (here / "little.yaml").write_text(spec or TINY)
        return cli("submit", "little.yaml", "--profile", "cluster.yaml", *words)

    return go


@pytest.fixture
def method(here, monkeypatch):
    """Drop a method in that jobs find as well."""

    def drop(name, text):
        (here / "more" / "methods").mkdir(parents=True)
        (here / "more" / "methods" / f"{name}.py").write_text(text)
        plugins.use([here / "more"])
        monkeypatch.setenv(plugins.VARIABLE, os.environ[plugins.VARIABLE])

    return drop


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


def test_a_grid_comes_back_finished_with_the_code_it_was_submitted_with(here, cli, slurm):
    """Two cells packed into one job, from a checkout that is another one by the time that it starts: the records of a run here."""
    checkout = here / "checkout"
    for name in ("ltbench", "methods", "datasets", "benchmarks"):
        shutil.copytree(ROOT / name, checkout / name, ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "harness.py", checkout)
    (here / "cluster.yaml").write_text(PROFILE.replace("cpus: 1", "cpus: 2") + HELD_PACKED)
    (here / "little.yaml").write_text(TINY)
    program = [
        sys.executable,
        "-P",
        checkout / "harness.py",
        "submit",
        "little.yaml",
        "--profile",
        "cluster.yaml",
    ]
    environment = {**os.environ, "PYTHONPATH": str(checkout)}
    done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr
    assert "submitted " in done.stdout
    for path in (
        checkout / "methods" / "sit.py",
        checkout / "ltbench" / "trainer.py",
        checkout / "ltbench" / "job.py",
    ):
        path.write_text("raise RuntimeError('edited since')\n")
    (submission,) = submissions(here)
    (training,) = (n for n in submission.arrays() if submission.array(n).resource["class"] == "training")
    assert [len(task) for task in submission.array(training).tasks] == [2]
    slurm.call("scontrol", "release", submission.job(training))
    slurm.until(slurm.idle)
    logs = {path.name: path.read_text()[-3000:] for path in submission.logs.glob("*.out")}
    assert "nothing to do" in cli("plan", "little.yaml")[1], logs
    assert [array["class"] for array in (submission.array(n).resource for n in submission.arrays())] == ["helper", "training", "evaluation", "evaluation"]  # fmt: skip
    again = cli("submit", "little.yaml", "--profile", "cluster.yaml")
    assert "nothing to submit; 2 of 2 cells done" in again[1]
    place = {"--store": here / "own" / "store", "--scratch": here / "own" / "scratch", "--threads": 1}
    assert cli("run", "little.yaml", *(word for pair in place.items() for word in pair))[0] == 0
    found = bodies(here / "store", here / "scratch")
    assert len(found) == 4
    assert found == bodies(here / "own" / "store", here / "own" / "scratch")


@pytest.mark.parametrize("word", ["USR2", "TERM"])
def test_a_signal_before_python_listens_ends_no_job(here, submit, cli, slurm, word):
    """A preemption can come while an interpreter still loads its libraries from a slow file system."""
    python = here / "slow-python"
    python.write_text(
        f"#!/bin/sh\ntouch '{here}/begun'\nwhile [ ! -e '{here}/go' ]; do sleep 0.1; done\nexec '{sys.executable}' \"$@\"\n"
    )
    python.chmod(0o755)
    code, _, err = submit(PROFILE + f"python: {python}\n", spec=UNMEASURED)
    assert code == 0, err
    slurm.until((here / "begun").exists)
    (submission,) = submissions(here)
    slurm.call("scancel", f"--signal={word}", submission.job(0))
    (here / "go").touch()
    slurm.until(slurm.idle)
    assert "nothing to do" in cli("plan", "little.yaml")[1], submission.log(0, 0).read_text()


def test_a_cell_without_memory_goes_on_with_a_smaller_micro_batch(
    here, submit, cli, slurm, method, monkeypatch
):
    monkeypatch.setenv("SOME_TOKEN", SECRET)
    method("hungry", HUNGRY)
    code, _, err = submit(PROFILE, spec=GREEDY)
    assert code == 0, err
    slurm.until(slurm.idle)
    code, out, _ = cli("status", "little.yaml", "--json")
    (cell,) = json.loads(out)["cells"]
    assert (cell["state"], cell["cause"]) == ("failed", "oom")
    assert "left alone: oom 1" in cli("retry", "little.yaml", "--class", "node")[2]
    code, out, err = cli("retry", "little.yaml", "--class", "oom", "--micro-batch", "8")
    assert code == 0, err
    slurm.until(slurm.idle)
    first, second = submissions(here)
    assert "resuming from step 2" in second.log(0, 0).read_text()
    assert "nothing to do" in cli("plan", "little.yaml")[1]
    ((key, _),) = bodies(here / "store", here / "scratch").items()
    assert key[0] == cell["cell"] == first.array(0).tasks[0][0].cell
    files = [path for path in here.rglob("*") if path.is_file() and SECRET.encode() in path.read_bytes()]
    assert files == []
    assert "[hidden]" in first.log(0, 0).read_text()


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
    assert len([path for path in submission.folder.rglob("*") if path.is_file()]) == 2 + len(arrays)
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
        timeout=400,
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


def test_a_watchdog_brings_back_what_was_lost_and_ends_by_itself(here, submit, slurm, method, monkeypatch):
    """The evaluations wait from the start, as where jobs may not submit: what waits for a training that died goes with it."""
    profile = PROFILE + "watchdog_minutes: 600\nsubmit_from_jobs: false\n"
    method("waiting", WAITING)
    monkeypatch.setenv("WAIT_WHILE", str(here / "wait"))
    (here / "wait").touch()
    spec = ONE.replace("[sit]", "[waiting]")
    code, _, err = submit(profile, "--watchdog", spec=spec)
    assert code == 0, err
    (first,) = submissions(here)

    def of_class(name):
        known = [(s, n) for s in submissions(here) for n in s.arrays()]
        return [s.job(n) for s, n in known if s.array(n).resource["class"] == name]

    (dog,), (training,), (evaluation,) = map(of_class, ("watchdog", "training", "evaluation"))
    tasks = [first.array(n).tasks[0][0].stages for n in first.arrays()[1:3]]
    assert [[stage.partition(":")[0] for stage in stages] for stages in tasks] == [["train"], ["evaluate"]]
    assert f"aftercorr:{training}" in slurm.show(evaluation)["Dependency"]
    assert slurm.show(dog)["JobState"] == "PENDING"
    assert "a watchdog is in the queue already" in submit(profile, "--watchdog", spec=spec)[2]
    number = next(n for n in first.arrays() if first.array(n).resource["class"] == "training")
    slurm.until(lambda: (number, 0, 0) in first.started())
    os.kill(sealed.read_sealed(first.started()[number, 0, 0])["pid"], signal.SIGKILL)
    (here / "wait").unlink()
    slurm.until(lambda: not queue_states.ask([training])[training, 0].alive)
    slurm.call("scontrol", "update", f"JobId={dog}", "StartTime=now")
    slurm.until(lambda: [len(list(filter(None, of_class(c)))) for c in ("watchdog", "training")] == [2, 2])
    alone = ["BeginTime"]  # the second watchdog
    slurm.until(lambda: slurm.call("squeue", "-h", "-o", "%r").splitlines() == alone)
    slurm.call("scontrol", "update", f"JobId={of_class('watchdog')[1]}", "StartTime=now")
    slurm.until(slurm.idle)
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
