"""CPU seconds of commands that a person waits for: each in fresh processes, the least of several runs."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
HARNESS = str(ROOT / "harness.py")
CELLS = 10_000
GOALS = {"help": 0.3, "plan_10000_cells": 1.5}  # CPU seconds

GRID = """
name: wide
dataset: {{name: digits}}
pipeline: sit
network: SiT-N/2
train: {{batch: 32, milestones: [10, 20]}}
evaluate: [{{protocol: small-data, sampler: euler, steps: 5, guidance: 1.5}}]
grid:
  method: [sit, cbdm, dispersive, ccua]
  seed: [{seeds}]
"""


def cpu_seconds(words: Sequence[str], env: Mapping[str, str], tries: int) -> float:
    """User and system seconds of a command and its children, least of `tries`. Raises CalledProcessError if it fails."""
    found = []
    kept = {key: value for key, value in env.items() if key != "PYTHONDONTWRITEBYTECODE"}  # as it is used
    for _ in range(tries):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        subprocess.run(words, env=kept, check=True, capture_output=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        found.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    return min(found)


# Runs a command as its own first words would, and tells whether torch came with it.
LOOK = """
import atexit, runpy, sys
sys.argv = sys.argv[1:]
atexit.register(lambda: sys.stderr.write("torch" if "torch" in sys.modules else "lean"))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


def lean(words: Sequence[str], env: Mapping[str, str]) -> None:
    """Raises AssertionError where a command of the harness imports torch, which takes more than a second."""
    done = subprocess.run([sys.executable, "-c", LOOK, *words], env=env, capture_output=True, text=True)
    assert done.stderr.endswith("lean"), (
        f"{' '.join(words)}: imports torch, or ended early: {done.stderr[-500:]}"
    )


def measure(tries: int = 5) -> dict[str, Any]:
    """CPU seconds by command; `goal` where the project has one. Raises AssertionError where one of them imports torch."""
    with tempfile.TemporaryDirectory() as folder:
        spec = Path(folder, "wide.yaml")
        spec.write_text(GRID.format(seeds=", ".join(map(str, range(CELLS // 4)))))
        places = {f"LTBENCH_{name}": f"{folder}/{name}" for name in ("STORE", "SCRATCH", "CACHE")}
        env = {**os.environ, **places}
        commands = {
            "python": ["-c", "pass"],
            "help": [HARNESS, "--help"],
            "status": [HARNESS, "status"],
            "plan_quickstart": [HARNESS, "plan", str(ROOT / "benchmarks" / "quickstart.yaml")],
            "import_report": ["-c", "import ltbench.report.build"],
            f"plan_{CELLS}_cells": [HARNESS, "plan", str(spec)],
        }
        for name in ("help", "status", "plan_quickstart"):
            lean(commands[name], env)
        times = {
            name: cpu_seconds([sys.executable, *words], env, 2 if name == f"plan_{CELLS}_cells" else tries)
            for name, words in commands.items()
        }
        words = [sys.executable, *commands["plan_quickstart"]]
        times["plan_quickstart_of_unseen_code"] = cpu_seconds(words, {**env, "LTBENCH_CACHE": ""}, tries)
    return {
        name: {"cpu_s": round(seconds, 3)} | ({"goal": GOALS[name]} if name in GOALS else {})
        for name, seconds in times.items()
    }
