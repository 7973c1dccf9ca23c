"""Jobs that are killed for their memory: by a SLURM that watches it, and by the kernel."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ltbench import plugins
from ltbench.launch import memory
from ltbench.launch.slurm import layout
from tests import cli_world, slurm_world
from tests.test_submit import GREEDY, PROFILE

cli, here = cli_world.cli, cli_world.here  # fixtures
SWELLING = """
import mmap
import os
import time
from ltbench.methods import Method, mean_square


class Swelling(Method):
    \"\"\"Has memory for two steps of more than 8 images.\"\"\"

    def __init__(self, task):
        super().__init__(task)
        self.losses = 0

    def loss(self, net, draw):
        self.losses += len(draw.y) > 8
        if self.losses > 2:
            swell()
        (out,) = self.run(net, draw, draw.y_in)
        return {"denoise": mean_square(out.pred, draw.target)}


def swell():
    if os.environ["KILLED_BY"] == "kernel":
        bytearray(b"1") * (8 << 30)
    # The same 64 MB a hundred times: SLURM counts each, the machine one.
    file = os.memfd_create("swelling")
    os.ftruncate(file, 64 << 20)
    maps = [mmap.mmap(file, 64 << 20) for _ in range(100)]
    touched = [each[:: mmap.PAGESIZE] for each in maps]
    time.sleep(600)
    raise RuntimeError(f"SLURM let {len(touched)} pieces be")
"""


SAID = {
    "slurm": "was ended by SLURM for want of memory",
    "kernel": "was killed by SIGKILL (out of memory, perhaps)",
}


@pytest.mark.slurm
@pytest.mark.timeout(1500)
@pytest.mark.parametrize("killer", ["slurm", "kernel"])
def test_a_job_that_is_killed_for_its_memory_goes_on_with_a_smaller_micro_batch(
    here, cli, monkeypatch, killer
):
    """SLURM kills the whole job: nothing but a line of its own in the log says why. The kernel kills the worker in the job's group."""
    if killer == "kernel":
        the_kernel_kills(version=1)  # SLURM has those of version 2 from systemd
    monkeypatch.setenv("KILLED_BY", killer)
    (here / "more" / "methods").mkdir(parents=True)
    (here / "more" / "methods" / "swelling.py").write_text(SWELLING)
    plugins.use([here / "more"])
    monkeypatch.setenv(plugins.VARIABLE, os.environ[plugins.VARIABLE])
    (here / "cluster.yaml").write_text(PROFILE + f"memory_gb: {3 if killer == 'slurm' else 2}\n")
    (here / "little.yaml").write_text(GREEDY.replace("hungry", "swelling"))
    with slurm_world.slurm_world(nodes=1, gpus=0, memory=killer) as world:
        slurm_world.enter(world, monkeypatch)
        assert cli("submit", "little.yaml", "--profile", "cluster.yaml")[0] == 0
        world.until(world.idle)
        assert set(world.states().values()) == {"FAILED"}, "SLURM has no word for it here"
        (cell,) = json.loads(cli("status", "little.yaml", "--json")[1])["cells"]
        (first,) = layout.submissions(here / "scratch")
        log = first.log(0, 0).read_text()
        assert cell["cause"] == "oom", log
        assert "left alone: oom 1" in cli("retry", "little.yaml", "--class", "killed,node")[2]
        code, _, err = cli("retry", "little.yaml", "--class", "oom", "--micro-batch", "8")
        assert code == 0, err
        assert SAID[killer] in cli("why", cell["cell"])[1]
        world.until(world.idle)
        newest = next(iter(layout.submissions(here / "scratch")))
        assert "resuming from step 2" in newest.log(0, 0).read_text()
        assert "nothing to do" in cli("plan", "little.yaml")[1]


@contextlib.contextmanager
def control_group(size: int) -> Iterator[Path]:
    """A control group of our own whose processes may have `size` bytes; skipped, loudly, where none can be made."""
    for place, limit in ((memory.ROOT / "memory", "memory.limit_in_bytes"), (memory.ROOT, "memory.max")):
        folder = place / f"ltbench-{os.getpid()}"
        try:
            folder.mkdir()
            (folder / limit).write_text(str(size))
        except OSError:
            with contextlib.suppress(OSError):
                folder.rmdir()
            continue
        for swap, none in (("memory.swappiness", "0"), ("memory.swap.max", "0")):
            with contextlib.suppress(OSError):
                (folder / swap).write_text(none)
        try:
            yield folder
        finally:
            folder.rmdir()
        return
    pytest.skip(
        "NOT TESTED: a kill by the kernel for memory, for want of a control group that can be made here"
    )


def the_kernel_kills(*, version: int | None = None) -> None:
    """Skip where a control group's limit is another word for nothing, or the groups are not of this version."""
    eats = "import os, sys; open(sys.argv[1], 'w').write(str(os.getpid())); bytearray(b'1') * (1 << 28)"
    with control_group(64 << 20) as group:
        done = subprocess.run([sys.executable, "-c", eats, group / "cgroup.procs"], timeout=300)
    found = 2 if group.parent == memory.ROOT else 1
    if done.returncode != -signal.SIGKILL or version not in (None, found):
        pytest.skip(
            f"NOT TESTED: a kill by the kernel for memory: control groups (of version {found}) do not do here"
        )


DRIVER = """
import os, sys
from pathlib import Path
Path(sys.argv[1], "cgroup.procs").write_text(str(os.getpid()))
from test_launch import Notes
from ltbench.launch.devices import Seats
from ltbench.launch.local import LocalRun, Settings
from ltbench.launch.work import CellWork
where = Path(sys.argv[2])
work = [CellWork(cell, cell, 0, ("train:3",), "r" * 12) for cell in ("eat", "ok")]
settings = Settings(where, where, where / "logs", Seats((None,), 1), entry="launch_jobs:run_job")
for outcome in LocalRun(work, settings, Notes(), lambda job, failure: None).run():
    print(outcome.cell, outcome.outcome, outcome.cause, outcome.message)
"""


def test_a_worker_that_the_kernel_kills_in_its_control_group_is_of_class_oom(tmp_path):
    """What a job of a SLURM with task/cgroup sees: its worker is gone, its driver lives, and the group has counted one kill more."""
    the_kernel_kills()
    paths = os.pathsep.join([str(cli_world.TESTS), str(cli_world.ROOT)])
    with control_group(400 << 20) as group:
        done = subprocess.run(
            [sys.executable, "-c", DRIVER, group, tmp_path],
            env={**os.environ, "PYTHONPATH": paths},
            capture_output=True,
            text=True,
            timeout=300,
        )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "eat failed oom the worker was killed by SIGKILL (out of memory, perhaps)",
        "ok done None ",
    ]


@pytest.mark.parametrize(
    ("line", "found"),
    [
        ("slurmstepd-n0: error: StepId=2.0 exceeded memory limit (348827648 > 209715200), being killed", True),
        ("slurmstepd: error: Detected 1 oom_kill event in StepId=7.0. Some of the step tasks have been OOM Killed.", True),
        ("slurmstepd: error: Detected 2 oom-kill event(s) in StepId=7.batch cgroup.", True),
        ("srun: error: n0: task 0: Out Of Memory", True),
        ("srun: error: n0: task 0: Killed", False),
        ("slurmstepd: error: *** STEP 2.0 ON n0 CANCELLED AT 2026-11-25T02:49:42 DUE TO TIME LIMIT ***", False),
        ("out of memory: an oom-kill event, says a plugin", False),
    ],
)  # fmt: skip
def test_slurms_word_about_memory_is_known_in_a_log(line, found, tmp_path):
    log = tmp_path / "0_0.out"
    assert memory.cause_of_kill(log) == "killed"
    log.write_text("begins\n" * 10_000 + line + "\nsrun: error: n0: task 0: Exited with exit code 1\n")
    assert memory.cause_of_kill(log, "lost") == ("oom" if found else "lost")
