"""The local launcher against jobs that misbehave in every way a plugin can: nothing else is touched, nothing is lost."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from ltbench.errors import EnvironmentProblem
from ltbench.launch.devices import Seats
from ltbench.launch.local import LocalRun, Settings
from ltbench.launch.process import CappedLog, WorkerProcess
from ltbench.launch.work import CellWork, Queue
from ltbench.stages.names import milestones, stage_name

TESTS = Path(__file__).parent


class Notes:
    """A watcher that keeps everything."""

    def __init__(self):
        self.said, self.events, self.holds, self.hellos = [], [], [], []

    def hello(self, worker, message):
        self.hellos.append(message)

    def started(self, worker, job):
        pass

    def event(self, worker, job, event):
        self.events.append(event)

    def ended(self, worker, job, outcome):
        pass

    def held(self, worker, job, event):
        self.holds.append((job.cell, event))

    def note(self, text):
        self.said.append(text)

    def tick(self, done, total, waiting):
        pass


@pytest.fixture
def launch(tmp_path, monkeypatch):
    """Run cells with the stand-in job; returns the run with `.notes`, `.recorded` and `.diary` beside its outcomes."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), str(TESTS.parent)]))

    def go(
        *cells,
        workers=1,
        ranks=1,
        stages=("train:3",),
        entry="launch_jobs:run_job",
        options=None,
        asked=None,
        **settings,
    ):
        work = [
            CellWork(cell, cell, seed=0, stages=tuple(stages), run="r" * 12, options=options or {})
            for cell in cells
        ]
        seats = Seats((None,) * workers * ranks, 1, ranks)
        where = Settings(tmp_path, tmp_path, tmp_path / "logs", seats, entry=entry, **settings)
        notes, recorded = Notes(), []
        run = LocalRun(work, where, notes, lambda job, failure: recorded.append((job, failure)), asked)
        run.notes, run.recorded = notes, recorded
        run.run()
        run.ends = {(o.cell, o.stage): o for o in run.outcomes}
        diary = tmp_path / "diary.jsonl"
        run.diary = [json.loads(line) for line in diary.read_text().splitlines()] if diary.exists() else []
        return run

    return go


def only(run):
    (outcome,) = run.outcomes
    return outcome


def test_stages_are_read_and_named():
    assert milestones("train:280,560") == (280, 560)
    assert milestones("evaluate:560:1a2b3c4d5e6f") == (560,)
    assert stage_name("train:280,560") == "train"
    assert stage_name("evaluate:560:1a2b3c4d5e6f") == "evaluate-000000560-1a2b3c4d5e6f"
    for wrong in ("train", "train:", "evaluate:x:1", "sample:3"):
        with pytest.raises(Exception, match="is not a stage"):
            milestones(wrong)


def test_queue_takes_seed_zero_first_and_early_milestones_first():
    late = CellWork("b", "b", 1, ("train:2,4", "evaluate:4:e", "evaluate:2:e"), "r" * 12)
    early = CellWork("a", "a", 0, ("train:2,4", "evaluate:4:e", "evaluate:2:e"), "r" * 12)
    queue, order = Queue([late, early]), []
    while queue:
        job = queue.next()
        order.append((job.cell, job.stage))
        queue.done(job)
    stages = ["train:2,4", "evaluate:2:e", "evaluate:4:e"]
    assert order == [("a", stage) for stage in stages] + [("b", stage) for stage in stages]


def test_an_evaluation_waits_for_its_own_training_only():
    queue = Queue(
        [
            CellWork("a", "a", 0, ("train:2", "evaluate:2:e"), "r" * 12),
            CellWork("b", "b", 1, ("evaluate:9:e",), "r" * 12),
        ]
    )
    assert queue.next().stage == "train:2"
    assert queue.next().stage == "evaluate:9:e", "b is trained already, so its evaluation can start"
    assert queue.next() is None, "a's evaluation has no milestone yet"
    queue.milestone("a", 2)
    assert queue.next().stage == "evaluate:2:e"


def test_evaluations_wait_for_the_real_images_and_for_their_shares():
    stages = ("train:2", "evaluate:2:e", "evaluate:2:f", "sample:2:e:0/2", "sample:2:e:1/2", "reference:e")
    queue = Queue([CellWork("a", "a", 1, stages, "r" * 12), CellWork("b", "b", 0, ("train:2",), "r" * 12)])
    jobs = [queue.next() for _ in range(3)]
    assert [job.stage for job in jobs] == ["reference:e", "train:2", "train:2"]
    assert jobs[1].cell == "b", "seed 0 first"
    queue.milestone("a", 2)
    shares = [queue.next() for _ in range(2)]
    assert [job.stage for job in shares] == ["sample:2:e:0/2", "sample:2:e:1/2"]
    assert queue.next() is None, "the real images are not looked at yet"
    queue.done(jobs[0])
    assert queue.next().stage == "evaluate:2:f", "nobody makes shares of f"
    queue.done(shares[0])
    assert queue.next() is None
    assert queue.drop(shares[1]) == [], "what a share did not do the evaluation does"
    assert queue.next().stage == "evaluate:2:e"


def test_a_held_stage_goes_behind_the_others_and_comes_back():
    queue = Queue([CellWork(name, name, 0, ("train:1",), "r" * 12) for name in "abc"])
    first = queue.next(now=0.0)
    queue.held(first, now=0.0)
    assert [queue.next(now=9.0).cell for _ in "abc"] == ["b", "c", "a"]


def test_cells_run_on_two_workers_and_report(launch):
    run = launch("meet-1", "meet-2", workers=2, stages=("train:3", "evaluate:3:e"))
    assert [o.outcome for o in run.outcomes] == ["done"] * 4
    assert len({line["pid"] for line in run.diary}) == 2, "both workers had work"
    assert len(run.notes.hellos) == 2
    progress = [event for event in run.notes.events if event["type"] == "progress"]
    assert len(progress) == 12
    for cell in ("meet-1", "meet-2"):
        mine = [(line["stage"], line["what"]) for line in run.diary if line["cell"] == cell]
        wanted = [(stage, what) for stage in ("train:3", "evaluate:3:e") for what in ("start", "done")]
        assert mine == wanted


@pytest.mark.parametrize(
    ("cell", "cause", "message"),
    [
        ("crash", "killed", "killed by SIGSEGV at step 7"),
        ("exit", "plugin", "exited with code 5"),
        ("kill", "killed", "killed by SIGKILL"),
        ("sysexit", "plugin", "sys.exit('enough')"),
        ("raise", "code", "ValueError: a bug of the job"),
    ],
)
def test_a_worker_that_ends_badly_is_one_failed_stage(launch, cell, cause, message):
    run = launch(cell, "ok")
    bad = run.ends[cell, "train:3"]
    assert (bad.outcome, bad.cause) == ("failed", cause)
    assert message in bad.message
    assert run.ends["ok", "train:3"].outcome == "done", "the other cell goes on"
    ((job, failure),) = run.recorded
    assert (job.cell, job.work.run, job.claim["attempt"]) == (cell, "r" * 12, 1)
    if cell == "exit":
        assert "last words" in failure["evidence"]["output"]


def test_a_failure_the_job_recorded_is_not_recorded_twice(launch):
    run = launch("nan", stages=("train:2,4", "evaluate:2:e", "evaluate:4:e"))
    assert run.recorded == []
    assert run.ends["nan", "train:2,4"].cause == "nan"
    assert run.ends["nan", "evaluate:4:e"].outcome == "unreached"


def test_a_milestone_reached_before_the_failure_is_still_evaluated(launch):
    run = launch("milestone", stages=("train:2,4", "evaluate:2:e", "evaluate:4:e"))
    ends = {stage: outcome.outcome for (_, stage), outcome in run.ends.items()}
    assert ends == {"train:2,4": "failed", "evaluate:2:e": "done", "evaluate:4:e": "unreached"}


def test_a_held_cell_lets_the_others_go_first_and_is_then_taken(launch):
    run = launch("held", "ok-1", "ok-2")
    assert [o.cell for o in run.outcomes] == ["ok-1", "ok-2", "held"]
    assert run.notes.holds[0][1]["owner"] == "other-host pid 42"


def test_output_of_plugins_never_reaches_the_protocol(launch):
    run = launch("flood")
    assert only(run).outcome == "done"
    log = (run.settings.logs / "worker-0.log").read_bytes()
    assert log.count(b"x" * 9999) == log.count(b"y" * 9999) == 200
    assert b"forged" in log


def test_the_log_is_capped(tmp_path):
    log = CappedLog(tmp_path / "a.log", cap=10)
    for _ in range(5):
        log.write(b"abcd")
    log.close()
    assert log.path.read_bytes().startswith(b"abcdabcdab\n[the log is full")
    assert log.path.read_bytes().count(b"full") == 1


def test_a_plugin_that_reads_stdin_gets_nothing(launch):
    assert only(launch("stdin")).message == "''"


def test_a_forked_child_does_not_become_a_second_worker(launch):
    run = launch("fork", "look")
    assert [o.outcome for o in run.outcomes] == ["done", "done"]
    assert run.ends["look", "train:3"].message == "over"


def test_children_of_a_dead_worker_are_killed(launch, tmp_path):
    launch("children")
    pid = int((tmp_path / "child.pid").read_text())
    assert eventually(lambda: not alive(pid))


def test_a_silent_worker_is_named_and_then_killed(launch):
    run = launch("deaf", "ok", silence=0.5, hang=4.0)
    bad = run.ends["deaf", "train:3"]
    assert bad.outcome == "failed"
    assert bad.message.startswith("hung")
    assert any("has said nothing" in text for text in run.notes.said)
    assert "do_deaf" in (run.settings.logs / "worker-0.log").read_text(), "its stacks are in its log"
    assert run.ends["ok", "train:3"].outcome == "done"


def test_a_full_disk_stops_the_run_instead_of_failing_every_cell(launch):
    run = launch("full", "ok-1", "ok-2")
    assert run.environment.startswith("the store's disk is full")
    assert [o.outcome for o in run.outcomes] == ["failed", "unreached", "unreached"]


def test_an_entry_that_cannot_be_imported_is_an_environment_problem(launch):
    with pytest.raises(EnvironmentProblem, match="cannot import no_such_module:f"):
        launch("ok", entry="no_such_module:f")


def test_threads_and_devices_reach_the_worker(launch, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,6")
    told = json.loads(only(launch("env")).message)
    assert told == {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "5,6"}


# -- signals: the driver in a process of its own --------------------------------------------------------------------

DRIVER = """
    import sys
    from pathlib import Path
    sys.path.insert(0, {tests!r})
    from test_launch import Notes
    from ltbench.launch.devices import Seats
    from ltbench.launch.local import LocalRun, Settings
    from ltbench.launch.work import CellWork
    where = Path(sys.argv[1])
    work = [CellWork(cell, cell, 0, ("train:3", "evaluate:3:e"), "r" * 12) for cell in sys.argv[2:]]
    settings = Settings(where, where, where / "logs", Seats((None, None), 1), entry="launch_jobs:run_job")
    notes = Notes()
    notes.note = (where / "said").write_text
    run = LocalRun(work, settings, notes, lambda job, failure: print("RECORDED", job.cell))
    for outcome in run.run():
        print(outcome.cell, outcome.stage, outcome.outcome, outcome.message)
    print("stopped by", run.stopped)
"""


def drive(tmp_path, *cells):
    """Start a driver and wait until every one of `cells` has begun."""
    code = textwrap.dedent(DRIVER.format(tests=str(TESTS)))
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(TESTS), str(TESTS.parent)])}
    driver = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path), *cells], stdout=subprocess.PIPE, text=True, env=env
    )
    (tmp_path / "said").touch()
    diary = tmp_path / "diary.jsonl"
    started = eventually(lambda: diary.exists() and diary.read_text().count('"start"') >= len(cells))
    assert started, "the workers began"
    return driver, [json.loads(line)["pid"] for line in diary.read_text().splitlines()]


def alive(pid):
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return False
    return state != "Z"


def eventually(check, seconds=300.0):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if check():
            return True
        time.sleep(0.02)
    return False


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR2])
def test_one_signal_stops_at_a_step_boundary(tmp_path, number):
    driver, pids = drive(tmp_path, "hang-1", "hang-2")
    driver.send_signal(number)
    out, _ = driver.communicate(timeout=300)
    assert "hang-1 train:3 preempted asked to stop" in out
    assert "hang-2 evaluate:3:e preempted not trained" in out
    assert "RECORDED" not in out
    assert not any(alive(pid) for pid in pids)


def test_a_second_signal_kills(tmp_path):
    driver, pids = drive(tmp_path, "deaf-1", "deaf-2")
    driver.send_signal(signal.SIGINT)
    assert eventually(lambda: "at the next step boundary" in (tmp_path / "said").read_text())
    time.sleep(0.5)
    assert driver.poll() is None, "it waits for the step boundary"
    driver.send_signal(signal.SIGINT)
    out, _ = driver.communicate(timeout=300)
    assert out.count("preempted killed") == 2
    assert not any(alive(pid) for pid in pids)


def test_slurm_signals_every_process_and_only_it_kills(tmp_path):
    """A warning and then SIGTERM, to driver and workers alike, as slurmstepd sends them."""
    driver, pids = drive(tmp_path, "hang-1", "hang-2")
    for number in (signal.SIGUSR2, signal.SIGTERM):
        for pid in (*pids, driver.pid):
            with contextlib.suppress(ProcessLookupError):  # over after the warning alone
                os.kill(pid, number)
    out, _ = driver.communicate(timeout=300)
    assert out.count("preempted asked to stop") == 2
    assert f"stopped by {int(signal.SIGUSR2)}" in out


def test_sigterm_after_slurms_warning_does_not_kill(tmp_path):
    driver, pids = drive(tmp_path, "deaf-1")
    driver.send_signal(signal.SIGUSR2)
    driver.send_signal(signal.SIGTERM)
    time.sleep(0.7)
    assert alive(pids[-1]), "its save may take as long as SLURM lets it"
    driver.kill()
    driver.communicate()
    os.kill(pids[-1], signal.SIGKILL)


@pytest.mark.parametrize("number", [signal.SIGUSR2, signal.SIGTERM])
def test_a_worker_that_is_still_starting_keeps_a_signal_until_it_can_answer(tmp_path, monkeypatch, number):
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), str(TESTS.parent)]))
    log = CappedLog(tmp_path / "worker.log")
    worker = WorkerProcess(0, device=None, threads=1, entry="launch_jobs:run_job", log=log)
    os.kill(worker.pid, number)
    assert eventually(lambda: any(message["type"] == "hello" for message in worker.messages()))
    if number == signal.SIGUSR2:
        worker.close()
    assert eventually(lambda: worker.returncode() is not None)
    assert worker.returncode() == 0
    worker.finish()
    log.close()


def test_a_caller_that_listens_itself_is_asked_and_nobody_is_killed(launch, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    asked = iter([signal.SIGUSR2])
    begun = tmp_path / "diary.jsonl"  # however late the worker comes
    run = launch("hang", asked=lambda: next(asked, signal.SIGTERM) if begun.exists() else None)
    assert (only(run).outcome, run.stopped) == ("preempted", signal.SIGUSR2)
    assert signal.getsignal(signal.SIGTERM) == before
    assert run.notes.said == ["stopping 1 worker at the next step boundary"]


def test_workers_end_when_the_driver_is_killed(tmp_path):
    driver, pids = drive(tmp_path, "hang-1", "hang-2")
    driver.kill()
    driver.communicate()
    assert eventually(lambda: not any(alive(pid) for pid in pids))
    lines = [json.loads(line) for line in (tmp_path / "diary.jsonl").read_text().splitlines()]
    assert [line["what"] for line in lines].count("preempted") == 2, "each at its own step boundary"
