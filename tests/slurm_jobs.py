"""Cells that can be interrupted on a real SLURM: a method that waits while a file is there, and jobs as `submit` makes them."""

from __future__ import annotations

import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ltbench import plugins
from ltbench.launch.slurm import layout
from ltbench.launch.slurm.layout import Entry, Submission
from ltbench.profiles import Profile
from ltbench.spec.cells import Cell
from ltbench.stages.names import parse
from ltbench.store import Run, sealed
from tests.slurm_world import SlurmWorld
from tests.test_job import OPTIONS, House, run_of

ROOT = Path(__file__).resolve().parents[1]
LAST = 40  # the last step
SLOW = '''
import os
import signal
import time
from torch import Tensor
from ltbench.methods import Draw, Method, Network, Task, mean_square

DEAF = "SLOW_DEAF" in os.environ  # waits from the first step on, whoever asks


def held() -> bool:
    return os.path.exists(os.environ.get("SLOW_WHILE", ""))


def stopping() -> bool:
    """Whether this process was asked to stop: whoever listens for SIGTERM here knows."""
    listener = getattr(signal.getsignal(signal.SIGTERM), "__self__", None)
    return not DEAF and bool(listener is not None and listener())


class Slow(Method):
    """The plain loss. While the file named SLOW_WHILE is there, the fourth step of a process ends only when a stop is asked for."""

    def __init__(self, task: Task, *, tag: int = 0) -> None:
        super().__init__(task)
        self.calls = 0

    def loss(self, net: Network, draw: Draw) -> dict[str, Tensor]:
        self.calls += 1
        if held():
            time.sleep(1.1)  # a claim tells of a step once a second
        while held() and (DEAF or self.calls > 3) and not stopping():
            time.sleep(0.05)
        (out,) = self.run(net, draw, draw.y_in)
        return {"denoise": mean_square(out.pred, draw.target)}
'''
PROGRAM = "import sys; from ltbench.launch.slurm.task import run_task; run_task(*sys.argv[1:])"
SCRIPT = """#!/bin/bash
#SBATCH --job-name=ltbench --open-mode=append --nodes=1 --output={log}
{options}
srun --kill-on-bad-exit=1 --open-mode=append --output={log} {python} -P -u -c {program} {folder} {array}
"""


@dataclass
class Sent:
    """One cell in one job."""

    cell: Cell
    submission: Submission
    job: str
    stages: tuple[str, ...]
    array: int = 0

    @property
    def name(self) -> str:
        return f"{self.job}_0"

    @property
    def milestones(self) -> tuple[int, ...]:
        return parse(self.stages[0]).steps

    @property
    def log(self) -> str:
        path = self.submission.log(self.array, 0)
        return path.read_text() if path.exists() else ""

    def end(self, restart: int = 0) -> dict[str, Any]:
        """What the element said of its end."""
        return sealed.read_sealed(self.submission.folder / "ended" / f"{self.array}.0.{restart}.json")


@dataclass
class Grid:
    """A store with cells of its own, the same cells undisturbed, and the cluster that they are sent to."""

    folder: Path
    world: SlurmWorld
    sent: dict[str, Sent] = field(default_factory=dict)
    follower: subprocess.Popen[bytes] | None = None  # `logs -f` of one of the cells

    def __post_init__(self) -> None:
        (self.folder / "methods").mkdir(parents=True)
        (self.folder / "methods" / "slow.py").write_text(SLOW)
        self.slow = self.folder / "slow"
        self.slow.touch()
        plugins.use([self.folder / "methods"])
        self.house = House(self.folder / "house")

    def environment(self, deaf: bool) -> dict[str, str]:
        return {
            "PYTHONPATH": str(ROOT),
            plugins.VARIABLE: str(self.folder / "methods"),
            "SLOW_WHILE": str(self.slow),
            "OMP_NUM_THREADS": "1",
            **({"SLOW_DEAF": "1"} if deaf else {}),
        }

    def cell(self, tag: int, milestones: Sequence[int]) -> Cell:
        return self.house.cell(f"{{name: slow, tag: {tag}}}", milestones=str(list(milestones)))

    def send(
        self,
        name: str,
        *,
        options: Sequence[str] = (),
        milestones: Sequence[int] = (10, LAST),
        measure: Sequence[int] = (),
        job: dict[str, Any] | None = None,
        deaf: bool = False,
        **profile: Any,
    ) -> Sent:
        """Submit a new cell called `name`; `options` are sbatch's, `job` what its stages are told, the rest the profile's.

        measure: milestones that are evaluated. deaf: whether it gets nowhere, and ends only when it is killed.
        """
        cell = self.cell(len(self.sent), milestones)
        (evaluation,) = cell.evaluations
        stages = (train_of(milestones), *(f"evaluate:{step}:{evaluation}" for step in measure))
        self.sent[name] = self._send(cell, name, options, stages, job or {}, profile, deaf)
        return self.sent[name]

    def send_again(self, sent: Sent, *, options: Sequence[str], **profile: Any) -> Sent:
        """What `submit` does with a cell that is not done. `options` name its node: on any, it would take one that another job of
        the grid, held for its requeue, is to come back to."""
        return self._send(sent.cell, f"again-{sent.job}", options, sent.stages, {}, profile)

    def _send(
        self,
        cell: Cell,
        name: str,
        options: Sequence[str],
        stages: Sequence[str],
        job: dict[str, Any],
        profile: dict[str, Any],
        deaf: bool = False,
    ) -> Sent:
        resolved = Profile.model_validate({"gpus": 0, "cpus": 1, "time": 50, **profile})
        asked = resolved.resources("training")
        store = self.house.store
        submission = layout.create(
            store.scratch,
            {
                "benchmark": "jobs",
                "store": str(store.root),
                "scratch": str(store.scratch),
                "resolved": resolved.plain(),
                "environment": self.environment(deaf),
            },
        )
        entry = Entry(
            *(cell.id, name, cell.seed, run_of(cell), tuple(stages), {**OPTIONS, **job}),
            settings=cell.settings,
            identity=cell.identity,
            evaluations=cell.evaluations,
        )
        array = submission.add_array({"class": "training"}, [[entry]])
        lines = [f"#SBATCH {option}" for option in (
            "--array=0", "--requeue", "--signal=USR2@20", f"--time={asked.time}", f"--ntasks-per-node={asked.ranks}",
            f"--cpus-per-task={asked.cores // asked.ranks}", f"--comment={submission.token(0)}", *options,
        )]  # fmt: skip
        script = self.folder / f"{submission.id}.sh"
        text = {
            "log": str(submission.logs / "0_%a.out"),
            "options": "\n".join(lines),
            "python": sys.executable,
        }
        script.write_text(
            SCRIPT.format(**text, program=shlex.quote(PROGRAM), folder=submission.folder, array=array.number)
        )
        number = self.world.call("sbatch", "--parsable", script, cwd=self.folder, env=self.environment(deaf))
        submission.put_job(array.number, number)
        return Sent(cell, submission, number, tuple(stages))

    def run(self, sent: Sent) -> Run:
        return self.house.store.run(sent.cell.id, run_of(sent.cell))

    def step(self, sent: Sent) -> int:
        """How far its training says to be."""
        state = self.run(sent).state("train")
        return int((state.progress or {}).get("step", 0)) if state is not None else 0

    def trains(self, *several: Sent) -> Callable[[], bool]:
        """Whether all of them are beyond a few steps."""
        return lambda: all(self.step(sent) >= 3 for sent in several)

    def until_ended(self, sent: Sent, word: str) -> None:
        self.world.until(lambda: self.world.states().get(sent.name) == word)

    def until_done(self, *several: Sent, seconds: float = 600) -> None:
        """Nothing waits from now on; return when SLURM says that they completed."""
        self.slow.unlink(missing_ok=True)

        def over() -> bool:
            now = self.world.states()
            failed = [
                sent.log for sent in several if now.get(sent.name) in ("FAILED", "CANCELLED", "TIMEOUT")
            ]
            assert not failed, failed
            return all(now.get(sent.name) == "COMPLETED" for sent in several)

        self.world.until(over, seconds)

    def undisturbed(self, sent: Sent) -> House:
        """The same stages where nothing happens to them: a house of its own."""
        other = House(self.folder / f"undisturbed-{time.monotonic_ns()}")
        tag = sent.cell.settings["method"]["tag"]
        cell = other.cell(f"{{name: slow, tag: {tag}}}", milestones=str(list(sent.milestones)))
        assert cell.id == sent.cell.id
        for stage in sent.stages:
            assert other.run(cell, stage)["outcome"] == "done"
        return other

    def assert_equal(self, sent: Sent) -> None:
        """Every record of the cell is there, bit for bit as if nothing had happened."""
        assert [record.step for record in self.run(sent).records("train")] == list(sent.milestones), sent.log
        assert self.house.bodies(sent.cell) == self.undisturbed(sent).bodies(sent.cell), sent.log


def train_of(milestones: Sequence[int]) -> str:
    return "train:" + ",".join(map(str, milestones))
