"""status, cancel, retry and doctor on a real SLURM."""

from __future__ import annotations

import json

import pytest

from ltbench.launch.slurm import layout
from tests import cli_world, slurm_world

cli, here, slurm = cli_world.cli, cli_world.here, slurm_world.slurm  # fixtures
pytestmark = [pytest.mark.slurm, pytest.mark.timeout(1500)]
PROFILE = (
    "partition: low\ngpus: 0\ncpus: 1\ntime: 20\nsignal_seconds: 60\npurge_days: 90\nsbatch: {hold: true}\n"
)


def states(cli):
    found = json.loads(cli("status", "little.yaml", "--json")[1])
    return [each["state"] for each in found["cells"]], found


def test_cancelled_stays_until_it_is_asked_for(here, cli, slurm):
    (here / "cluster.yaml").write_text(PROFILE)
    assert cli("submit", "little.yaml", "--profile", "cluster.yaml")[0] == 0
    words, found = states(cli)
    assert words == ["queued"] * 4
    assert found["cells"][0]["queue"]["state"] == "PENDING"
    assert "JobHeldUser" in cli("status", "little.yaml")[1]
    code, out, _ = cli("cancel", "little.yaml", "--filter", "seed=0")
    assert (code, "with 2 cells" in out) == (0, True)
    slurm.until(lambda: sorted(states(cli)[0]) == ["cancelled", "cancelled", "queued", "queued"])
    assert "nothing to take up again" in cli("retry", "little.yaml")[2]
    code, out, err = cli("retry", "little.yaml", "--class", "cancelled")
    assert code == 0, err
    assert "with profile cluster.yaml" in err
    assert states(cli)[0] == ["queued"] * 4
    assert len(list(layout.submissions(here / "scratch"))) == 2
    assert cli("cancel", "--all")[0] == 0
    slurm.until(slurm.idle)
    assert states(cli)[0] == ["cancelled"] * 4


def test_doctor_on_a_cluster(here, cli, slurm, monkeypatch):
    """Through a job: tests/test_slurm_commands.py."""
    monkeypatch.setattr("ltbench.cli.doctoring._plugin_problems", dict)
    (here / "good.yaml").write_text(PROFILE.replace(", ", "").replace("sbatch: {hold: true}\n", ""))
    code, out, _ = cli("doctor", "--profile", "good.yaml", "--json")
    told = {(each["topic"], each["level"]) for each in json.loads(out)["findings"]}
    assert code == 0
    assert {("training", "ok"), ("preemption", "ok"), ("accounting", "warning")} <= told
    (here / "bad.yaml").write_text("gpu_type: h100\ntime: 20\nsignal_seconds: 60\nmax_array_size: 1001\n")
    code, out, _ = cli("doctor", "--profile", "bad.yaml")
    assert code == 4
    assert "no node of low has GPUs of type h100" in out
    assert "sbatch refuses such a job" in out
