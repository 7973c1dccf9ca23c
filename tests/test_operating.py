"""status, logs, cancel, retry as a person uses them, with the stand-in job and with a pretend SLURM on PATH."""

from __future__ import annotations

import fcntl
import functools
import json
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from dataclasses import replace

import pytest

from ltbench import plan as plans
from ltbench import plugins
from ltbench import spec as specs
from ltbench.canonical import Digester, digest
from ltbench.cli import board, curves, jobs
from ltbench.cli.output import plain
from ltbench.launch.slurm import layout, queue_states, seen
from ltbench.launch.slurm.queue_states import Key, State
from ltbench.launch.slurm.settle import settle
from ltbench.spec.cells import expand
from ltbench.status import Row, of_plan, whole, with_queue
from ltbench.store import Claim, Store
from tests import cli_world
from tests.cli_world import ROOT, fake

cli, here, run = cli_world.cli, cli_world.here, cli_world.run  # fixtures

ROW = Row("ab" * 32, "ccua", 0, "new", "never run", wanted=100, records=2)


def grid(states, seeds):
    return [
        replace(ROW, cell=f"{seed:02d}" * 32, seed=seed, state=states[seed % len(states)], reached=seed % 100)
        for seed in range(seeds)
    ]


def text(rows, width):
    return plain(board.render(rows, width=width))


# --- what thousands of cells are read by ------------------------------------------------------------------------------


def test_what_many_share_is_spelled_as_alone():
    shared = {"b": [1, 2.5, None], "ä": "é", "a b": {"a": True}}
    digester = Digester()
    for seed in (1, True, 1.0, None, "1"):
        value = {"a": shared, "a ": {"x": shared}, "seed": seed, "name": "ü"}
        for depth in (0, 1, 2, 3):
            assert digester.digest(value, depth) == digest(value)
    with pytest.raises(ValueError, match="keys are text"):
        digester.digest({1: 2})


def test_a_plan_for_showing_is_the_plan(here, run, monkeypatch):
    fake(monkeypatch, "ccua:1=nan,sit:1=crash")
    run()
    store = Store.open(write=False)
    found = specs.load(here / "little.yaml")
    quick, full = (plans.plan(found, store, verify=verify) for verify in (False, True))
    assert quick == full
    assert quick.counts() == {"done": 2, "failed": 2}
    # A second file for one answer is judged by reading all of them, as a plan does.
    record = next(store.root.glob("cells/*/*/runs/*/records/evaluation-*"))
    record.with_name(record.name.replace(record.name[-21:], "0" * 16 + ".json")).write_bytes(b"{}")
    again = [plans.plan(found, store, verify=verify).counts() for verify in (False, True)]
    assert again[0] == again[1]


# --- the board ----------------------------------------------------------------------------------------------------------


def test_the_board_shows_words_then_signs_then_numbers():
    some = grid(["done", "failed", "queued"], 3)
    assert "seed 2" in text(some, 120)
    assert "#Fq" in text(some, 80)
    many = text(grid(["done", "new"], 99), 80)
    assert "seed" not in many.splitlines()[2]
    assert many.splitlines()[3].split()[:3] == ["ccua", "50", "49"]
    assert (
        max(map(len, text(grid(["done", "failed"], 20), 80).splitlines())) <= 80 + 120
    )  # a reason may be folded


def test_time_left_is_what_is_left_at_the_speed_of_what_runs():
    rows = [
        replace(ROW, state="running", reached=40, steps_per_s=2.0, restarts=1),
        replace(ROW, state="partial", reached=10),
        replace(ROW, state="done", reached=100),
        replace(ROW, state="n/a"),
    ]
    sums = whole(rows)
    assert (sums.steps, sums.wanted, sums.restarts) == (150, 300, 1)
    assert sums.left == pytest.approx(150 / 2.0)
    assert rows[0].left == pytest.approx(60 / 2.0)
    assert whole(rows[1:]).left is None


def test_a_curve_marks_what_is_not_finite():
    assert curves.spark([0.0, 1.0, None, 0.5], 4)[2] == "x"
    rising = curves.spark([float(n) for n in range(100)], 10)
    assert list(rising) == sorted(rising)
    assert len(rising) == 10


# --- logs, retry, watching ----------------------------------------------------------------------------------------------


def test_logs_show_one_attempt_and_say_which_there_are(cli, run, monkeypatch):
    fake(monkeypatch, "sit:0=crash")
    run("--filter", "seed=0", "--filter", "method=sit")
    fake(monkeypatch, "")
    cell = json.loads(cli("status", "--json")[1])["cells"][0]["cell"]
    code, _, err = cli("retry", "little.yaml", "--job", "cli_jobs:run_job", "--filter", "method=sit")
    assert (code, "plugin 1" in err) == (0, True)
    listed = json.loads(cli("logs", cell[:8], "--json")[1])
    assert [p["attempt"] for p in listed if p["stage"].startswith("train")] == [1, 2]
    code, _, err = cli("logs", cell[:8], "--stage", "train")
    assert code == 0
    assert "train, attempt 2" in err
    assert listed[-1]["outcome"] == "done"
    code, _, err = cli("logs", cell[:8], "--stage", "train", "--attempt", "7")
    assert (code, "there are: " in err) == (2, True)


def test_a_part_of_a_log_is_only_its_own(tmp_path, capsys):
    from ltbench.cli import following
    from ltbench.launch.logs import LogIndex, of_cell

    folder = tmp_path / "logs" / "one"
    folder.mkdir(parents=True)
    log, index = folder / "worker-0.log", LogIndex(folder)
    log.write_text("before\n")
    index.begin("aa", "train:10", 1, log)
    log.write_text("before\nmine\n")
    index.end("aa", "train:10", log, "done")
    log.write_text("before\nmine\nafter\n")
    index.close()
    with (folder / "stages.jsonl").open("a") as file:
        file.write('{"cell": "aa", "stage"')  # a kill cuts a line short
    (part,) = of_cell(tmp_path, "aa")
    following._print(part, part.begin)
    assert capsys.readouterr().out == "mine\n"


def test_nan_and_cancelled_are_retried_by_name_only(cli, run, monkeypatch):
    fake(monkeypatch, "ccua:1=nan")
    run()
    fake(monkeypatch, "")
    code, out, err = cli("retry", "little.yaml", "--job", "cli_jobs:run_job")
    assert (code, out) == (0, "")
    assert "left alone: nan 1" in err
    code, _, err = cli("retry", "little.yaml", "--class", "lossy")
    assert code == 2
    assert "here: nan 1" in err
    code, out, _ = cli(
        "retry", "little.yaml", "--class", "nan", "--job", "cli_jobs:run_job", "--micro-batch", "32"
    )
    assert code == 0
    assert "1 done" in out
    assert json.loads(cli("status", "little.yaml", "--json")[1])["counts"] == {"done": 4}


def test_a_watch_without_a_terminal_prints_blocks_and_ends(cli, run):
    run()
    code, out, _ = cli("status", "little.yaml", "--watch")
    assert code == 0
    assert out.count("---") == 1
    assert "4 cells: 4 done" in out
    assert "\x1b" not in out


@pytest.mark.parametrize("terminal", ["xterm", "dumb"])
def test_a_watch_on_a_terminal_ends_with_ctrl_c(here, terminal):
    """The cursor comes back, nothing else is said; on a terminal that cannot redraw there are plain blocks."""
    (here / "store").mkdir()
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 20, 40, 0, 0))
    words = [sys.executable, str(ROOT / "harness.py"), "status", "little.yaml", "--watch"]
    environment = {**os.environ, "TERM": terminal, "NO_COLOR": "1"}
    # A shell that runs the tests in the background has them ignore Ctrl-C, and what they start.
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    watch = subprocess.Popen(
        words, stdin=theirs, stdout=theirs, stderr=theirs, env=environment, preexec_fn=heed
    )
    text, asked, ended = b"", False, False
    try:
        # Our own hold on the terminal: with its last user the kernel may drop what was not handed over yet.
        while not ended:
            ended = watch.poll() is not None
            while select.select([ours], [], [], 0.3)[0]:
                text += os.read(ours, 1 << 16)
            if not asked and b"nothing trains" in text and b"ccua" in text:
                watch.send_signal(signal.SIGINT)
                asked = True
        assert watch.wait(60) == 0, text
    finally:
        os.close(ours)
        os.close(theirs)
        watch.kill()
        watch.wait()
    assert b"stopped watching; nothing else was stopped" in text
    assert b"Traceback" not in text
    colours = re.findall(rb"\x1b\[3[0-9]m", text)
    if terminal == "dumb":
        assert b"\x1b" not in text
    else:
        assert not colours
        shown = re.sub(rb"\x1b\[[0-9;?]*[a-zA-Z]", b"", text).partition(b"stopped")[0]
        assert max(map(len, shown.splitlines())) <= 40, text
        assert text.count(b"\x1b[?25l") == text.count(b"\x1b[?25h") == 1
        assert text.index(b"\x1b[?25h") > text.index(b"\x1b[?25l")


def test_a_local_run_is_cancelled_and_stays_so_until_it_is_asked_for(cli, here, monkeypatch):
    """Two runs share the work. The one that has a cell stops; the other does everything but that cell."""
    fake(monkeypatch, "sit:0=gate,sit:1=gate,ccua:0=gate,ccua:1=gate")
    words = [sys.executable, str(ROOT / "harness.py"), "run", "little.yaml", "--workers", "1"]
    words += ["--job", "cli_jobs:run_job"]
    with (here / "said").open("w") as said:
        both = [subprocess.Popen(words, stdout=said, stderr=said) for _ in range(2)]
    try:
        end = time.monotonic() + 300
        while json.loads(cli("status", "little.yaml", "--json")[1])["counts"].get("running", 0) < 2:
            assert time.monotonic() < end
            time.sleep(0.2)
        cells = json.loads(cli("status", "little.yaml", "--json")[1])["cells"]
        cell = next(each for each in cells if each["state"] == "running")
        assert cell["host"] == os.uname().nodename
        code, out, _ = cli("cancel", cell["cell"][:10], "--json")
        (stopped,) = json.loads(out)["stopped"]
        assert (code, stopped in [each.pid for each in both]) == (0, True)
        (one,) = [each for each in both if each.pid == stopped]
        assert one.wait(300) == 128 + signal.SIGTERM
        (here / "gate").touch()
        assert sorted(each.wait(300) for each in both) == [0, 128 + signal.SIGTERM]
    finally:
        for each in both:
            each.kill()
            each.wait()
    fake(monkeypatch, "")
    assert (here / "said").read_text().count(
        f"{cell['label']} seed {cell['seed']}, train: was cancelled"
    ) == 2
    rows = json.loads(cli("status", "little.yaml", "--json")[1])["cells"]
    assert {row["state"] for row in rows if row["cell"] != cell["cell"]} == {"done"}
    assert [row["state"] for row in rows if row["cell"] == cell["cell"]] == ["cancelled"]
    assert "left alone: cancelled 1" in cli("retry", "little.yaml")[2]
    assert cli("run", "little.yaml", "--job", "cli_jobs:run_job")[0] == 0
    assert json.loads(cli("status", "little.yaml", "--json")[1])["counts"] == {"done": 4}


HUNGRY = """
from ltbench.methods import Method, mean_square


class Hungry(Method):
    \"\"\"Has memory for 8 images.\"\"\"

    def loss(self, net, draw):
        if len(draw.y) > 8:
            raise MemoryError("no room")
        (out,) = self.run(net, draw, draw.y_in)
        return {"denoise": mean_square(out.pred, draw.target)}
"""
GREEDY = """
name: greedy
dataset: {name: digits, imbalance: 0.1, resolution: 16}
pipeline: sit
network: SiT-N/4
train: {batch: 16, local_batch: 8, milestones: [2]}
grid: {method: [hungry], seed: 0}
"""


def test_what_had_no_memory_is_the_same_cell_with_a_smaller_micro_batch(cli, here, monkeypatch):
    """Bit for bit what a run has that began with it."""
    from ltbench.job import run_job

    (here / "more" / "methods").mkdir(parents=True)
    (here / "more" / "methods" / "hungry.py").write_text(HUNGRY)
    plugins.use([here / "more"])
    monkeypatch.setenv(plugins.VARIABLE, os.environ[plugins.VARIABLE])
    (here / "greedy.yaml").write_text(GREEDY)
    assert cli("run", "greedy.yaml", "--threads", "1")[0] == 1
    (cell,) = json.loads(cli("status", "greedy.yaml", "--json")[1])["cells"]
    assert (cell["state"], cell["cause"]) == ("failed", "oom")
    code, out, err = cli("retry", "greedy.yaml", "--class", "oom", "--micro-batch", "8")
    assert (code, "taking up 1 cell again: oom 1" in err) == (0, True), err
    assert "1 cell of greedy: 1 done" in out
    assert [row["state"] for row in json.loads(cli("status", "greedy.yaml", "--json")[1])["cells"]] == [
        "done"
    ]
    other = Store.open(here / "other" / "store", here / "other" / "scratch")
    (planned,) = expand(specs.load(here / "greedy.yaml"))
    plans.register([planned], other)
    run = next(iter(other.runs(planned.id))).run
    options = {"threads": 1, "device": "cpu", "micro_batch": 8}
    places = (str(other.root), str(other.scratch))
    assert run_job(*places, planned.id, run, "train:2", options)["outcome"] == "done"
    found = []
    for place in (here, here / "other"):
        store = Store.open(place / "store", place / "scratch", write=False)
        (run,) = store.runs(cell["cell"])
        found.append({record.path.name: record.digest for record in run.records()})
    assert found[0] == found[1]
    assert len(found[0]) == 1


# --- a pretend SLURM ----------------------------------------------------------------------------------------------------


@pytest.fixture
def queue(here, monkeypatch):
    """PATH begins with commands that answer what files say; `queue("squeue", text)` sets one, None takes it away."""
    folder = here / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def put(tool, answer, code=0):
        (folder / tool).write_text(
            f"#!/bin/sh\necho \"$@\" >> {here}/{tool}.calls\ncat <<'E'\n{answer}\nE\nexit {code}\n"
        )
        (folder / tool).chmod(0o755)

    for tool in ("sacct", "squeue", "scontrol"):
        put(tool, "", 1)
    put("scancel", "")
    return put


def submitted(here, job="77"):
    """A submission of the four cells, one element each, as array 0."""
    cells = expand(specs.load(here / "little.yaml"))
    sub = layout.create(here / "scratch", {"benchmark": "little", "profile": "mine", "spec": "little.yaml"})
    run = "0" * 12
    tasks = [
        (
            layout.Entry(
                c.id, c.label, c.seed, run, ("train:20,40",), settings=c.settings, identity=c.identity
            ),
        )
        for c in cells
    ]
    sub.add_array({"class": "training"}, tasks)
    sub.put_job(0, job)
    return sub, cells


def states(cli):
    found = json.loads(cli("status", "little.yaml", "--json")[1])
    return [each["state"] for each in found["cells"]], found


def test_status_tells_waiting_unknown_and_ended_jobs(cli, here, queue):
    submitted(here)
    queue(
        "squeue",
        "77_0|PENDING|Resources|\n77_1|WEIRD_NEW_STATE|None|n1\n77_2|TIMEOUT|None|n0\n77_3|RUNNING|None|n0",
    )
    words, found = states(cli)
    assert words == ["queued", "queued", "partial", "queued"]
    assert found["cells"][0]["queue"]["reason"] == "Resources"
    assert found["cells"][2]["cause"] == "timeout"
    assert "Resources" in cli("status", "little.yaml")[1]
    # What SLURM gave up before it began, it forgets within minutes.
    queue("squeue", "77_0|PENDING|Dependency|")
    words, found = states(cli)
    assert (words, found["cells"][1]["cause"]) == (["queued"] + ["partial"] * 3, "lost")
    assert "what it waited for may have failed" in found["cells"][1]["reason"]
    # Where nobody answers, what was submitted and has not said its end is not over.
    queue("squeue", "", 1)
    words, found = states(cli)
    assert words == ["queued"] * 4
    assert "does not answer" in found["notes"][0]


def test_a_controller_that_hangs_ends_nothing_and_is_waited_for_a_little(cli, here, queue, monkeypatch):
    submitted(here)
    monkeypatch.setattr(queue_states, "GLANCE", 0.2)
    for tool in ("squeue", "sacct"):
        (here / "bin" / tool).write_text("#!/bin/sh\nexec sleep 600\n")
    begun = time.monotonic()
    words, found = states(cli)
    assert words == ["queued"] * 4
    assert found["notes"] == ["SLURM does not answer: what is shown is what files tell; a job that has not told its end counts as alive"]  # fmt: skip
    assert "SLURM does not say how it stands" in cli("status", "little.yaml", "--list")[1]
    assert time.monotonic() - begun < 500, "neither command was waited for to its end"


def test_ends_that_jobs_told_count_without_slurm(cli, here, queue):
    sub, _ = submitted(here)
    sub.put_started(0, 1, 0, node="n0")
    sub.put_ended(0, 1, 0, reason="preempted")
    sub.put_started(0, 1, 1, node="n1")
    sub.put_ended(0, 2, 0, reason="failed", cause="oom", message="out of memory")
    _, found = states(cli)
    cells = found["cells"]
    assert cells[1]["state"] == "queued"  # it began again after its last end
    assert cells[1]["restarts"] == 1
    assert (cells[2]["state"], cells[2]["cause"]) == ("partial", "oom")
    sub.cancel(0, 2)
    ends = [task.cause for task in seen.of_submission(sub)]
    assert ends[2] == "oom", "a mark takes no cause from what had failed before"


def test_what_was_never_handed_to_slurm_says_so_and_what_cannot_be_read_is_named(cli, here, queue):
    """Of a driver that was stopped between two calls of sbatch, and of a file that a disk damaged."""
    sub, cells = submitted(here, job="77")
    other = layout.create(here / "scratch", {"benchmark": "little", "profile": "mine", "spec": "little.yaml"})
    other.add_array({"class": "training"}, [[layout.Entry(c.id, c.label, c.seed, "0" * 12, ("train:20,40",))] for c in cells])  # fmt: skip
    queue("squeue", "\n".join(f"77_{n}|FAILED||" for n in range(4)))
    _, found = states(cli)
    assert {each["reason"] for each in found["cells"]} == {
        "lost: it was never handed to SLURM; submit sends it"
    }
    assert {each["queue"]["job"] for each in found["cells"]} == {None}
    path = sub.folder / "array-0.json"
    path.write_bytes(path.read_bytes()[:-9])
    _, found = states(cli)
    assert any(str(path) in note for note in found["notes"])


def test_cancel_marks_then_calls_scancel_once_and_it_stays(cli, here, queue):
    sub, cells = submitted(here)
    queue("squeue", "\n".join(f"77_{n}|PENDING|Priority|" for n in range(4)))
    code, out, _ = cli("cancel", "little.yaml", "--filter", "seed=1", "--json")
    assert code == 0
    assert len(json.loads(out)["jobs"]) == 2
    assert len((here / "scancel.calls").read_text().splitlines()) == 1
    assert len(list(sub.folder.glob("cancelled-0-*"))) == 2
    queue("squeue", "\n".join(f"77_{n}|{'CANCELLED' if cells[n].seed else 'PENDING'}||" for n in range(4)))
    assert sorted(states(cli)[0]) == ["cancelled", "cancelled", "queued", "queued"]
    _, _, err = cli("retry", "little.yaml")
    assert "left alone: cancelled 2" in err
    assert "nothing to take up" in err
    never = layout.create(here / "scratch", {"benchmark": "other", "profile": "mine"})
    never.add_array({"class": "training"}, [[layout.Entry("e" * 64, "not sent", 1, "0" * 12, ("train:20",))]])
    out = cli("cancel", "--all")[1]
    assert "cancelled 2 jobs with 2 cells" in out, "what was not sent is no job"
    assert (sub.folder / "cancelled").exists()
    assert (never.folder / "cancelled").exists()
    queue("squeue", "\n".join(f"77_{n}|PENDING||" for n in range(4)))
    # A refused scancel is said; the marks are there all the same.
    queue("scancel", "", 1)
    code, out, _ = cli("cancel", cells[0].id[:8])
    assert code == 1
    assert "could not: scancel" in out
    # A later submission of the same cells asks for them again.
    time.sleep(1.1)
    submitted(here, "78")
    queue("squeue", "\n".join(f"78_{n}|PENDING||" for n in range(4)))
    assert states(cli)[0] == ["queued"] * 4


def test_a_job_that_others_share_is_left_alone(cli, here, queue, monkeypatch):
    cells = expand(specs.load(here / "little.yaml"))
    sub = layout.create(here / "scratch", {"benchmark": "little", "profile": "mine"})
    sub.add_array(
        {"class": "training"},
        [[layout.Entry(c.id, c.label, c.seed, "0" * 12, ("train:20",)) for c in cells[:2]]],
    )
    sub.put_job(0, "5")
    queue("squeue", "5_0|RUNNING||n0")
    store = Store.open(here / "store", here / "scratch")
    store.put_cell(cells[0].id, cells[0].identity, cells[0].settings)
    run = store.run(cells[0].id, "0" * 12)
    run.create({}, cells[0].settings)
    with monkeypatch.context() as job:
        job.setenv("SLURM_JOB_ID", "5")
        claim = run.claim("train")
    assert isinstance(claim, Claim)
    monkeypatch.setattr("ltbench.cli.stopping._stop", lambda *_: pytest.fail("its job is left alone"))
    code, out, _ = cli("cancel", cells[0].id[:9])
    assert (code, out.count("\n"), "left alone: job 5_0" in out) == (0, 1, True)
    assert run.failures("train") == []
    assert not list(sub.folder.glob("cancelled*"))


def test_what_is_for_this_machine_is_refused_where_cells_are_submitted_again(cli, here, queue):
    sub, _ = submitted(here)
    for index in range(2):
        sub.put_ended(0, index, 0, reason="failed", outcome="failed", cause="node", message="gone")
    queue("squeue", "\n".join(f"77_{n}|{'FAILED' if n < 2 else 'RUNNING'}||" for n in range(4)))
    code, out, err = cli("retry", "little.yaml", "--workers", "2")
    assert (code, out) == (2, "")
    assert "taking up 2 cells again: node 2" in err
    assert "--workers is for a run on this machine; the profile says what a job gets" in err
    code, out, err = cli("retry", "little.yaml", "--class", "oom", "--json")
    assert (code, json.loads(out)) == (0, {"cells": 0})


def test_of_jobs_that_are_over_the_one_that_failed_speaks(cli, here, queue):
    """A training that ended well hides no evaluation that died before it could say a word."""
    sub, cells = submitted(here)
    sub.put_ended(0, 0, 0, reason="done", outcome="done")
    entry = layout.Entry(cells[0].id, cells[0].label, cells[0].seed, "0" * 12, ("evaluate:20:e",))
    sub.add_array({"class": "evaluation"}, [[entry]])
    sub.put_job(1, "78")
    queue("squeue", "\n".join((*(f"77_{n}|COMPLETED||" for n in range(4)), "78_0|FAILED||")))
    row = next(each for each in states(cli)[1]["cells"] if each["cell"] == cells[0].id)
    assert (row["cause"], row["reason"]) == ("killed", "killed: job 78_0 is over (SLURM says FAILED)")


def test_a_row_by_its_own_files_beats_the_queue(here, queue):
    submitted(here)
    known = seen.look(here / "scratch")
    rows = of_plan(plans.plan(specs.load(here / "little.yaml"), Store.open(), verify=False))
    rows[0] = replace(rows[0], state="done")
    assert with_queue(rows, known)[0].state == "done"


def test_a_cell_cancelled_before_its_job_began_leaves_a_store_that_can_be_read(cli, here, queue):
    sub, cells = submitted(here)
    sub.cancel()
    store = Store.open()
    states: dict[Key, State] = {("77", index): State("CANCELLED") for index in range(4)}
    assert [each.cause for each in settle(sub, store, states)] == ["cancelled"] * 4
    assert sorted(store.cells()) == sorted(cell.id for cell in cells)
    assert store.settings(cells[0].id) == cells[0].settings
    for words in (
        ["status"],
        ["status", "little.yaml"],
        ["report", "little.yaml"],
        ["why", cells[0].id[:12]],
    ):
        assert cli(*words)[0] == 0


def test_without_a_spec_what_was_submitted_is_not_done_before_its_jobs_are(cli, run, queue):
    """Of a grid whose trainings are over and whose evaluations wait, and of one that has not begun at all."""
    run()
    store = Store.open()
    first, last = (next(iter(store.cells())), "f" * 64)
    (made,) = store.runs(first)
    sub = layout.create(store.scratch, {"benchmark": "more", "profile": "mine", "store": str(store.root)})
    done = next(stage for stage in made.stages() if stage.startswith("evaluate")).split("-")
    asked = ("evaluate:40:0123456789ab", f"evaluate:{int(done[1])}:{done[2]}")
    entries = [layout.Entry(first, "sit", 0, made.run, asked), layout.Entry(last, "mine", 3, "0" * 12, ("train:20",), settings={**store.settings(first), "seed": 3})]  # fmt: skip
    sub.add_array({"class": "evaluation"}, [[entry] for entry in entries])
    sub.put_job(0, "9")

    def told():
        cells = json.loads(cli("status", "--json")[1])["cells"]
        return {each["cell"]: (each["state"], each["cause"]) for each in cells}

    queue("squeue", "9_0|PENDING|Priority|\n9_1|PENDING|Priority|")
    found = told()
    assert (found[first], found[last]) == (("queued", None),) * 2
    assert [state for cell, (state, _) in found.items() if cell not in (first, last)] == ["done"] * 3
    assert re.search(r"ffff +ccua \(.*\) +3 +queued .*job 9_1 is PENDING", cli("status", "--list")[1])
    queue("squeue", "9_0|TIMEOUT|None|n0\n9_1|NODE_FAIL|None|n0")
    assert (told()[first], told()[last]) == (("partial", "timeout"), ("partial", "node"))
    sub.cancel()
    assert told()[first] == ("cancelled", None)
    assert last not in told(), "nobody wants it, and nothing is there of it"
    # What another store's submission asks for is not this one's.
    other = layout.create(store.scratch, {"benchmark": "more", "profile": "mine", "store": "/elsewhere"})
    other.add_array({"class": "training"}, [[replace(entries[1], cell="e" * 64)]])
    other.put_job(0, "10")
    queue("squeue", "10_0|PENDING|Priority|")
    assert "e" * 64 not in told()


def test_cancelling_a_whole_grid_takes_no_cause_from_what_had_failed(cli, here, run, queue, monkeypatch):
    """Or `retry --class cancelled` would take up a NaN under that name."""
    fake(monkeypatch, "ccua:1=nan")
    run()
    sub, cells = submitted(here)
    failed = next(n for n, cell in enumerate(cells) if (cell.label, cell.seed) == ("ccua", 1))
    sub.put_ended(0, failed, 0, reason="failed", cause="nan", message="non-finite loss")
    queue("squeue", "\n".join(f"77_{n}|{'FAILED' if n == failed else 'PENDING'}||" for n in range(4)))
    assert cli("cancel", "little.yaml")[0] == 0
    assert (sub.folder / "cancelled").exists()
    queue("squeue", "\n".join(f"77_{n}|CANCELLED||" for n in range(4)))
    _, found = states(cli)
    assert (found["cells"][failed]["state"], found["cells"][failed]["cause"]) == ("failed", "nan")
    assert "left alone: nan 1" in cli("retry", "little.yaml")[2]
    assert "nothing to take up" in cli("retry", "little.yaml", "--class", "cancelled")[2]


def test_a_job_that_slurm_has_forgotten_stands_as_it_said_itself(cli, here, run, queue):
    run()
    sub, cells = submitted(here)
    sub.put_ended(0, 0, 0, reason="done")
    queue("squeue", "77_1|RUNNING||n0")

    def word(number):
        return json.loads(cli("show", cells[number].id[:12], "--json")[1])["jobs"][0]["state"]

    assert [word(number) for number in range(3)] == ["done", "RUNNING", "forgotten"]
    sub.logs.mkdir(exist_ok=True)
    sub.log(0, 0).write_text("ends: done\n")
    _, out, err = cli("logs", sub.id)
    assert out == "ends: done\n"
    assert err.startswith("--- job 77_0, done: ")
    # What a submission's logs cannot be chosen by is refused rather than ignored.
    assert "--stage chooses among the logs of a cell" in cli("logs", sub.id, "--stage", "train")[2]
    assert "there are: 1" in cli("logs", sub.id, "--attempt", "2")[2]


def test_a_cell_that_was_submitted_and_has_not_begun_is_shown_and_disturbs_nobody(cli, here, run, queue):
    """Its job would write it into the store; where that was cancelled before, a failure is all there is of it."""
    run()
    store = Store.open()
    first, cell = next(iter(store.cells())), "f" * 64
    sub = layout.create(store.scratch, {"benchmark": "more", "profile": "mine", "store": str(store.root)})
    known = store.cell(first)
    entry = layout.Entry(cell, "sit", 3, "0" * 12, ("train:20",), settings=known["settings"] | {"seed": 3}, identity=known["identity"])  # fmt: skip
    sub.add_array({"class": "training"}, [[entry]])
    sub.put_job(0, "9")
    queue("squeue", "9_0|PENDING|Priority|")
    _, out, err = cli("show", cell[:8])
    assert re.search(r"seed +3", out), err
    assert "no run yet" in out
    assert re.search(r"9_0 +training +PENDING", out)
    assert cli("why", cell[:8])[1].endswith("not begun yet\n")
    store.run(cell, entry.run).fail("train", 0, cause="cancelled", message="job 9_0 was cancelled in SLURM")
    sub.cancel()
    queue("squeue", "9_0|CANCELLED||")
    code, out, err = cli("status", "--json")
    assert code == 0, err
    assert cell not in {each["cell"] for each in json.loads(out)["cells"]}
    assert "job 9_0 was cancelled in SLURM" in cli("show", cell[:8])[1]
    code, _, err = cli("report", "little.yaml", "--format", "csv")
    assert code == 0, err


def test_submissions_of_a_profile_with_its_own_scratch_are_found_without_the_profile(
    cli, here, queue, monkeypatch
):
    """Or `status` calls new what waits, and `cancel` says that nothing does."""
    monkeypatch.delenv("LTBENCH_SCRATCH")
    (here / "mine.yaml").write_text(f"gpus: 0\nscratch: {here}/far away\n")
    profile = jobs.cluster("mine.yaml")
    store = Store.open(here / "store", here / "far away")
    sub, _ = jobs.begin(store, profile, "mine.yaml", benchmark="little", spec="little.yaml", filters=[])
    cells = expand(specs.load(here / "little.yaml"))
    sub.add_array({"class": "training"}, [(layout.Entry(c.id, c.label, c.seed, "0" * 12, ("train:20,40",)),) for c in cells])  # fmt: skip
    sub.put_job(0, "77")
    queue("squeue", "\n".join(f"77_{n}|PENDING|Priority|" for n in range(4)))
    monkeypatch.delenv("LTBENCH_SCRATCH")  # a shell of another day
    assert states(cli)[0] == ["queued"] * 4
    (here / "results" / "scratch").mkdir(parents=True)
    _, _, err = cli("status", "little.yaml")
    assert "note: jobs of this store also lie in" in err
    assert f"export LTBENCH_SCRATCH='{here}/far away'" in err
    (here / "results" / "scratch").rmdir()
    assert "cancelled 4 jobs" in cli("cancel", "little.yaml")[1]
    # Told a folder, a command looks there and says no more.
    assert states(lambda *words: cli(*words, "--scratch", str(here / "scratch")))[0] == ["new"] * 4
    assert "note:" not in cli("status", "little.yaml", "--scratch", str(here / "scratch"))[2]


def test_a_job_is_not_sent_for_a_file_that_is_not_there(cli, here, queue):
    (here / "mine.yaml").write_text("gpus: 0\n")
    words = ("evaluate", "little.yaml", "--external", "theirs", "--profile", "mine.yaml")
    code, _, err = cli(*words, "--samples", "nowhere.npz")
    assert (code, "there is no nowhere.npz" in err) == (2, True), err
    assert not (here / "scratch" / "submissions").exists()


def test_without_a_spec_what_a_read_only_layer_holds_is_done(cli, here, run, monkeypatch):
    run()
    alone = {
        each["cell"]: (each["state"], each["done"])
        for each in json.loads(cli("status", "--json")[1])["cells"]
    }
    assert {state for state, _ in alone.values()} == {"done"}
    monkeypatch.setenv("LTBENCH_STORE", f"{here}/mine:{here}/store")
    found = json.loads(cli("status", "--json")[1])["cells"]
    assert {each["cell"]: (each["state"], each["done"]) for each in found} == alone
