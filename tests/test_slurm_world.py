"""The cluster that tests start for themselves: it runs jobs, two do not meet, and nothing is left of them."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.slurm_world import MARK, slurm_world

pytestmark = pytest.mark.slurm


def test_two_clusters_run_their_own_jobs_and_leave_nothing():
    with slurm_world(nodes=1) as one, slurm_world(nodes=1, gpus=0) as two:
        for world in (one, two):
            where = f"{world.folder}/out"
            wrap = "env | grep ^CUDA_VISIBLE; sleep 0.1; scontrol show config | grep -i slurmctldport"
            gres = ["--gres=gpu:a100:1"] if world.gpus else []
            world.call("sbatch", "-o", where, *gres, f"--wrap={wrap}")
        for world in (one, two):
            world.until(world.idle)
            assert world.states() == {"1": "COMPLETED"}
        told = [(world.folder / "out").read_text() for world in (one, two)]
        assert told[0] != told[1]
        assert "CUDA_VISIBLE_DEVICES=0" in told[0]
        assert "CUDA" not in told[1]
        two.call("sbatch", "-o", "/dev/null", "--wrap=sleep 300")
        two.until(lambda: "RUNNING" in two.states().values())
        folders = [one.folder, two.folder]
    for folder in folders:
        assert not folder.exists()
        assert not [
            path for path in Path("/proc").glob("[0-9]*/environ") if _mentions(path, f"{MARK}={folder}")
        ]


def _mentions(path: Path, text: str) -> bool:
    try:
        return text.encode() in path.read_bytes()
    except OSError:
        return False
