"""Jobs of a real SLURM that are preempted, requeued, cancelled and killed: what was computed is kept, and the records are those of
an undisturbed run."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from ltbench import plugins
from tests.slurm_jobs import Grid
from tests.slurm_world import slurm_world

pytestmark = pytest.mark.slurm


@pytest.fixture(scope="module")
def grid(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Grid]:
    before = os.environ.get(plugins.VARIABLE)
    with slurm_world(nodes=4, cpus=2, gpus=0, grace=15, kill_wait=3) as world:
        yield Grid(tmp_path_factory.mktemp("grid"), world)
    os.environ.pop(plugins.VARIABLE, None)
    if before is not None:
        os.environ[plugins.VARIABLE] = before


def test_first(grid: Grid) -> None:
    plugins.use([grid.folder / "methods"])
    sent = grid.send("preempted", options=["--partition=low", "--nodelist=n0", "--exclusive"])
    grid.world.until(grid.trains(sent))
    grid.world.call("sbatch", "-p", "high", "-w", "n0", "--exclusive", "--wrap", "sleep 1", cwd=grid.folder)
    grid.world.until(lambda: "requeued" in sent.log, 30)
    print(sent.log)
    grid.until_done(sent)
    print(sent.log)
    grid.assert_equal(sent)
