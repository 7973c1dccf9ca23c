"""`submit` on a real SLURM: the driver is gone, records appear, and nothing happens twice."""

from __future__ import annotations

import json

import pytest

from ltbench.launch.slurm import layout
from ltbench.store import Store
from tests import cli_world, slurm_world

cli, here, slurm = cli_world.cli, cli_world.here, slurm_world.slurm  # fixtures
pytestmark = pytest.mark.slurm
PROFILE = """
partition: low
gpus: 0
cpus: 1
time: 20
signal_seconds: 60
"""
SPEC = cli_world.SPEC.replace("method: [sit, ccua]", "method: [sit]").replace("[20, 40]", "[4, 8]")


@pytest.fixture
def place(here):
    """A spec of two cells and a profile."""
    (here / "little.yaml").write_text(SPEC)
    (here / "low.yaml").write_text(PROFILE)
    return here


def bodies(root):
    """Digests of all records by cell, kind and step."""
    store = Store.open(root, root.parent / "scratch", write=False)
    return {
        (record.cell, record.kind, record.step, record.evaluation): json.dumps(record.body, sort_keys=True)
        for cell in store.cells()
        for run in store.runs(cell)
        for record in run.records()
    }


def test_a_grid_comes_back_finished_and_equal_to_a_run_on_this_machine(place, cli, slurm, monkeypatch):
    code, out, err = cli("submit", "little.yaml", "--profile", "low.yaml")
    assert code == 0, err
    assert "submitted " in out
    assert "nothing to submit" in cli("submit", "little.yaml", "--profile", "low.yaml")[1]
    slurm.until(slurm.idle, 200)
    submission = next(layout.submissions(place / "scratch"))
    logs = {path.name: path.read_text()[-3000:] for path in submission.logs.glob("*.out")}
    code, out, _ = cli("plan", "little.yaml")
    assert "nothing to do" in out, (out, logs)
    assert "nothing to submit; 2 of 2 cells done" in cli("submit", "little.yaml", "--profile", "low.yaml")[1]
    assert cli("run", "little.yaml", "--store", place / "other" / "store", "--scratch", place / "other" / "scratch", "--threads", 1, "--device", "cpu")[0] == 0  # fmt: skip
    assert len(bodies(place / "store")) == 8
    assert bodies(place / "store") == bodies(place / "other" / "store")
