"""A small grid that is killed and started again until it is done: what is killed, when, and what must be equal in the end."""

from __future__ import annotations

import os
import random
import signal
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ltbench import spec
from ltbench.job import run_job
from ltbench.plan import plan, register
from ltbench.spec.cells import expand
from ltbench.store import Store
from tests.faults import forked
from tests.killing import die_in_write
from tests.store_faults import leftovers

SPEC = """
name: grid
dataset: {name: digits, imbalance: 0.1, resolution: 16}
pipeline: sit
network: SiT-N/4
train: {batch: 12, local_batch: 6, milestones: [3, 6], lr: 1e-3, ema: 0.9}
evaluate: [{protocol: small-data, sampler: euler, steps: 1, guidance: 1, samples: 20, block: 20}]
grid: {method: [sit, ccua], seed: 0}
"""
WORDS = ("run", "grid.yaml", "--workers", "2", "--threads", "1", "--device", "cpu", "--no-ask")
TARGETS = ("driver", "worker", "job", "write")  # a job: the driver and its workers, as a scheduler ends it
CALLS = {
    "driver": 24,
    "worker": 60,
}  # a kill inside a write is drawn among a process's first so many system calls
FILES = 30  # through exec most kills wait for so many new files at most: by the clock alone they would hit imports
LIMIT = 600.0  # seconds that an attempt may take


@dataclass
class House:
    """Folders of one grid, and what was done to it. The file `said` holds all that its processes printed.

    `through_exec`: with processes as the command line starts them; else forked (tests/faults/forked.py).
    """

    place: Path
    through_exec: bool = False
    kills: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        for name in ("here", "home", "tmp"):
            (self.place / name).mkdir(parents=True)
        (self.place / "here" / "grid.yaml").write_text(SPEC)

    # -- doing ---------------------------------------------------------------------------------------------------------

    def start(self) -> int:
        """The command; its process."""
        return (forked.command if self.through_exec else forked.driver)(WORDS, self.place)

    def run(self) -> int:
        """The command, undisturbed; its exit code."""
        return self._end_of(self.start())

    def run_here(self) -> None:
        """The grid's stages in this process."""
        store = Store.open(self.place / "store", self.place / "scratch")
        benchmark = spec.load(self.place / "here" / "grid.yaml")
        register(expand(benchmark), store)
        for work in plan(benchmark, store).work():
            for stage in work.stages:
                options = {"threads": 1, "device": "cpu"}
                done = run_job(str(store.root), str(store.scratch), work.cell.id, work.run, stage, options)
                assert done["outcome"] == "done", done

    def attempt(self, chance: random.Random, seconds: float) -> bool:
        """The command, killed at a random moment; True when it came to its end before."""
        target = chance.choice(TARGETS)
        if target == "write":
            return self._die_in_write(chance)
        driver = self.start()
        code, moment = self._moment(driver, chance, 0.8 * seconds)
        if code is not None:
            return self._ended(code)
        if target == "worker":
            return self._kill_worker(driver, chance, seconds, moment)
        return self._kill_driver(driver, target, moment)

    def _moment(self, driver: int, chance: random.Random, seconds: float) -> tuple[int | None, str]:
        """Wait for a random moment: (the exit code where the driver ended before it, the moment in words)."""
        pause = chance.uniform(0.0, seconds)
        if not self.through_exec or chance.random() < 0.25:
            return forked.wait(driver, pause), f"after {pause:.3f} s"
        number = chance.randint(1, FILES)
        enough, started = self._files() + number, time.monotonic()
        code = forked.wait(driver, LIMIT, lambda: self._files() >= enough)
        assert time.monotonic() - started < LIMIT, f"nothing happens any more: {self.tail()}"
        pause *= 0.1
        return (forked.wait(driver, pause) if code is None else code), f"{pause:.3f} s after {number} files"

    def _files(self) -> int:
        return sum(len(files) for name in ("store", "scratch") for *_, files in os.walk(self.place / name))

    def _kill_driver(self, driver: int, target: str, moment: str) -> bool:
        """Its workers, where they are not killed as well, stop by themselves. True when it had come to its end a moment before."""
        for pid in [driver, *(forked.children_of(driver) if target == "job" else ())]:
            _kill(pid)
        code = forked.wait(driver, 120)
        assert code is not None, f"a killed driver is still there: {self.tail()}"
        if code != -signal.SIGKILL:
            return self._ended(code, may_fail=True)
        self.kills.append(f"{target} {moment}")
        return False

    def _kill_worker(self, driver: int, chance: random.Random, seconds: float, moment: str) -> bool:
        """The driver stays, writes the failure down and goes on with the other cell, unless more is killed a little later."""
        workers = forked.children_of(driver)
        if workers and _kill(chance.choice(workers)):
            self.kills.append(f"worker {moment}")
        if chance.random() < 0.4:
            return self._ended(self._end_of(driver), may_fail=True)
        code, moment = self._moment(driver, chance, 0.3 * seconds)
        if code is not None:
            return self._ended(code, may_fail=True)
        if chance.random() < 0.4:
            return self._kill_worker(driver, chance, seconds, f"then {moment}")
        return self._kill_driver(driver, chance.choice(("driver", "job")), f"then {moment}")

    def _die_in_write(self, chance: random.Random) -> bool:
        """One process kills itself before or after one of its system calls."""
        who = chance.choice(("driver", "worker", "worker", "worker")) if self.through_exec else "worker"
        which, number = chance.randrange(2) if who == "worker" else 0, chance.randint(1, CALLS[who])
        if self.through_exec:
            driver = forked.command(WORDS, self.place, f"{who} {which} {number}")
        else:
            driver = forked.driver(WORDS, self.place, lambda k: k == which and die_in_write(number))
        code = self._end_of(driver)
        if code:  # it came to that call
            self.kills.append(f"{who} {which} at its call {number}")
        return code != -signal.SIGKILL and self._ended(code, may_fail=True)

    def _end_of(self, driver: int) -> int:
        code = forked.wait(driver, LIMIT)
        assert code is not None, f"no end within {LIMIT:.0f} s: {self.tail()}"
        return code

    def _ended(self, code: int, may_fail: bool = False) -> bool:
        assert code == 0 or (may_fail and code == 1), f"exit code {code}: {self.tail()}"
        return code == 0

    # -- looking -------------------------------------------------------------------------------------------------------

    def tail(self) -> str:
        """The end of what was printed."""
        path = self.place / "said"
        return path.read_text()[-3000:] if path.exists() else ""

    def results(self) -> dict[str, Any]:
        """Everything that must be equal: the body of each record by its file, facts, milestone weights."""
        store = Store.open(self.place / "store", self.place / "scratch", write=False)
        benchmark = spec.load(self.place / "here" / "grid.yaml")
        assert plan(benchmark, store).counts() == {"done": 2}
        found: dict[str, Any] = {}
        for cell in expand(benchmark):
            (run,) = store.runs(cell.id)
            for record in run.records():
                found[f"{cell.label} {record.path.name}"] = record.digest
            assert not run.records().conflicts
            for path in (run.dir / "facts").iterdir():
                found[f"{cell.label} fact {path.name}"] = path.read_bytes()
            for path in run.milestones.glob("*/ema.safetensors"):
                found[f"{cell.label} weights {path.parent.name}"] = path.read_bytes()
        assert not store.damaged()
        return found

    def records(self) -> list[str]:
        """The names of all record files, whether they count or not."""
        return sorted(str(p.relative_to(self.place / "store")) for p in self.place.glob("store/**/records/*"))

    def litter(self) -> list[str]:
        """What a finished grid must not leave: temporary names, files outside its folders."""
        found = [str(p) for root in ("store", "scratch") for p in leftovers(self.place / root)]
        found += [
            str(p)
            for root in ("home", "tmp")
            for p in sorted((self.place / root).rglob("*"))
            if not p.name.startswith("torchinductor_")
        ]  # an empty folder that torch makes
        found += [p.name for p in (self.place / "here").iterdir() if p.name != "grid.yaml"]
        return found + sorted(
            p.name
            for p in self.place.iterdir()
            if p.name not in ("here", "home", "tmp", "store", "scratch", "said")
        )


def _kill(pid: int) -> bool:
    """Whether there was something to kill."""
    try:
        os.kill(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def kill_until_done(house: House, chance: random.Random, seconds: float, most: int = 12) -> None:
    """Kill and start again; after `most` kills the grid may end in peace. Then once more, as a person does who looks."""
    while len(house.kills) < most:
        if house.attempt(chance, seconds):
            break
    code = house.run()
    code = code and house.run()  # the cell whose worker died last may have been counted as failed
    assert code == 0, house.tail()


def timed(house: House) -> float:
    """Seconds of an undisturbed run."""
    started = time.monotonic()
    assert house.run() == 0, house.tail()
    return time.monotonic() - started
