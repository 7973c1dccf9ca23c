"""H2: planning and submitting a grid of 10,000 cells (submit.py, in a process of its own), whose ids are those of any other process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from startup import ROOT  # beside this file

CELLS, COMPARED = 10_000, 1_000
# One digest of all ids, in their order.
IDS = """
import hashlib, pathlib, sys, tempfile
from ltbench import spec
from ltbench.spec.cells import expand
from submit import METHODS, RATES, SPEC
with tempfile.TemporaryDirectory() as folder:
    path = pathlib.Path(folder, "large.yaml")
    path.write_text(SPEC.format(seeds=list(range(int(sys.argv[1]) // (METHODS * RATES)))))
    ids = [cell.id for cell in expand(spec.load(path))]
assert len(set(ids)) == len(ids) == int(sys.argv[1]), "every cell has an id of its own"
print(hashlib.sha256(" ".join(ids).encode()).hexdigest())
"""


def measure(cells: int = CELLS, compared: int = COMPARED) -> dict[str, Any]:
    """CPU seconds by part, files, goals. Raises AssertionError where ids depend on the process."""
    found = {_ids(compared, seed) for seed in ("1", "2")}
    assert len(found) == 1, f"ids of {compared} cells differ from one process to the next"
    words = [sys.executable, str(ROOT / "bench" / "submit.py"), str(cells)]
    # It ends in 1 where a goal is missed.
    done = subprocess.run(words, capture_output=True, text=True)
    if not done.stdout:
        raise AssertionError(f"bench/submit.py ended with {done.returncode}: {done.stderr[-2000:]}")
    return {"ids_compared": compared, **json.loads(done.stdout)}


def _ids(cells: int, seed: str) -> str:
    """In a fresh process that hashes in its own way."""
    paths = os.pathsep.join([str(ROOT), str(Path(__file__).parent)])
    env = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONPATH": paths}
    env.pop("LTBENCH_PLUGINS", None)
    words = [sys.executable, "-c", IDS, str(cells)]
    return subprocess.run(words, env=env, capture_output=True, text=True, check=True).stdout.strip()
