"""Commands as jobs on a real SLURM: data that cells wait for, calibrations, evaluations of what is trained."""

from __future__ import annotations

import io
import json
import re
import sys

import numpy as np
import pytest
from PIL import Image

import ltbench.datasets
from ltbench import caches, plugins
from ltbench.cli import jobs
from ltbench.launch.slurm import layout, seen
from ltbench.launch.slurm.commands import last_error
from ltbench.store import Store
from tests import cli_world, slurm_world

cli, here, slurm = cli_world.cli, cli_world.here, slurm_world.slurm  # fixtures
pytestmark = pytest.mark.timeout(1500)
PROFILE = """
partition: low
gpus: 0
cpus: 1
time: 20
signal_seconds: 60
"""
NEEDY = '''
"""A folder of images that is used prepared only."""

from ltbench.datasets.folder import Folder
from ltbench.datasets.photos import Photos


class Needy(Folder, Photos):
    """As folder."""

    needs_preparing = True

    def __init__(self, *, folder: str = "", resolution: int = 32) -> None:
        super().__init__(folder=folder, resolution=resolution, per_reference=3, per_holdout=2)
        self.parameters = {"folder": folder, "resolution": resolution}
'''
SPEC = (
    cli_world.SPEC.replace("method: [sit, ccua]", "method: [sit]")
    .replace("[20, 40]", "[4, 8]")
    .replace("seed: [0, 1]", "seed: [0]")
)
DATA = "{name: needy, folder: birds, resolution: 16}"
NEEDY_SPEC = (
    SPEC.replace("{name: fashion_mnist, imbalance: 0.01, resolution: 16}", DATA)
    .replace("batch: 32", "batch: 12")
    .replace("samples: 50, block: 50", "samples: 24, block: 12")
)
SETTINGS = ("folder=birds", "resolution=16")
PREPARE = ("datasets", "prepare", "needy", *(word for text in SETTINGS for word in ("--set", text)))


@pytest.fixture
def birds(here, monkeypatch):
    """Ten images of each of three classes, a plugin that wants them prepared, a profile and a spec."""
    random = np.random.Generator(np.random.Philox(5))
    for label in ("auk", "coot", "smew"):
        folder = here / "data" / "birds" / label
        folder.mkdir(parents=True)
        for number in range(10):
            stream = io.BytesIO()
            Image.fromarray(random.integers(0, 256, (20, 20, 3), np.uint8)).save(stream, "PNG")
            (folder / f"{number}.png").write_bytes(stream.getvalue())
    (here / "more" / "datasets").mkdir(parents=True)
    (here / "more" / "datasets" / "needy.py").write_text(NEEDY)
    monkeypatch.setenv("LTBENCH_PLUGINS", "")  # put back afterwards
    monkeypatch.setattr(ltbench.datasets, "__path__", list(ltbench.datasets.__path__))
    monkeypatch.delitem(sys.modules, "ltbench.datasets.needy", raising=False)
    plugins.use([here / "more"])
    monkeypatch.setenv("LTBENCH_DATA", str(here / "data"))
    (here / "cluster.yaml").write_text(PROFILE)
    (here / "little.yaml").write_text(NEEDY_SPEC)
    return here


def shown(here):
    """The ends of all logs, for a failed test."""
    return {
        path.name: path.read_text()[-3000:]
        for each in layout.submissions(here / "scratch")
        for path in each.logs.glob("*.out")
    }


@pytest.mark.slurm
def test_cells_wait_for_the_job_that_prepares_their_data(birds, cli, slurm):
    submit = ("submit", "little.yaml", "--profile", "cluster.yaml")
    code, _, err = cli(*submit)
    assert code == 4, err
    assert "datasets prepare needy" in err
    assert "--profile cluster.yaml` is a job" in err
    slurm.call("scontrol", "update", "partition=low", "state=down")
    code, out, err = cli(*PREPARE, "--profile", "cluster.yaml")
    assert code == 0, err
    (made,) = layout.submissions(birds / "scratch")
    assert f"submission {made.id}" in out
    code, _, err = cli(*PREPARE, "--profile", "cluster.yaml")
    assert (code, len(list(layout.submissions(birds / "scratch")))) == (0, 1)
    assert "on its way already" in err
    code, out, err = cli(*submit)
    assert code == 0, err
    assert f"cells wait for their data: job {made.job(0)}" in err
    (newest,) = (each for each in layout.submissions(birds / "scratch") if each.id != made.id)
    for number in newest.arrays():
        told = slurm.call("squeue", "-h", "-j", newest.job(number), "-o", "%E")
        assert f"afterok:{made.job(0)}" in told
    assert f"prepare needy: job {made.job(0)}_0 is PENDING" in cli("status", "little.yaml")[1]
    slurm.call("scontrol", "update", "partition=low", "state=up")
    slurm.until(slurm.idle)
    assert "nothing to do" in cli("plan", "little.yaml")[1], shown(birds)
    (folder,) = (birds / "data" / "prepared").glob("needy-*")
    assert (folder / "train.pixels" / "manifest.json").is_file()
    code, out, _ = cli("logs", made.id)
    assert "3 classes" in out
    more_measures_and_calibrations(birds, cli, slurm)


def more_measures_and_calibrations(here, cli, slurm):
    """Of the cell that was trained."""
    words = ("little.yaml", "--profile", "cluster.yaml")
    code, out, err = cli("evaluate", *words, "--add", "metrics: [vendi]", "--json")
    assert code == 0, err
    told = json.loads(out)
    assert [each["class"] for each in told["arrays"]] == ["evaluation"]
    code, out, err = cli("calibrate", *words, "--steps", "2")
    assert code == 0, err
    slurm.until(slurm.idle)
    assert "nothing to do" in cli("plan", told["benchmark"])[1], shown(here)
    found = [json.loads(path.read_bytes()) for path in (here / "store" / "calibrations").glob("*.json")]
    assert {"train", "sample", "extract"} == {each["what"]["kind"] for each in found}, shown(here)
    assert {each["threads"] for each in found} == {1}


@pytest.mark.slurm
def test_a_command_that_fails_is_said_and_its_cells_do_not_start(birds, cli, slurm):
    (birds / "data" / "birds" / "auk" / "0.png").write_bytes(b"no image")
    slurm.call("scontrol", "update", "partition=low", "state=down")  # until the cells wait for it
    assert cli(*PREPARE, "--profile", "cluster.yaml")[0] == 0
    assert cli("submit", "little.yaml", "--profile", "cluster.yaml")[0] == 0
    slurm.call("scontrol", "update", "partition=low", "state=up")
    slurm.until(slurm.idle)
    _, out, _ = cli("status", "little.yaml")
    assert "prepare needy: environment: job" in out, (out, shown(birds))
    assert "what it waited for failed" in out
    assert not list((birds / "store").glob("cells/*"))


@pytest.mark.slurm
def test_a_command_is_cancelled_by_its_submission(birds, cli, slurm):
    (birds / "cluster.yaml").write_text(PROFILE + "helper: {sbatch: {hold: true}}\n")
    assert cli(*PREPARE, "--profile", "cluster.yaml")[0] == 0
    (made,) = layout.submissions(birds / "scratch")
    code, out, _ = cli("cancel", made.id)
    assert (code, "cancelled 1 job" in out) == (0, True), out
    slurm.until(slurm.idle)
    (task,) = seen.look(birds / "scratch").commands
    assert (task.alive, task.cause) == (False, "cancelled")


@pytest.mark.slurm
def test_the_doctor_asks_this_cluster_and_tries_a_job_on_it(birds, cli, slurm, monkeypatch):
    monkeypatch.setattr("ltbench.cli.doctoring._plugin_problems", dict)  # tests/test_doctor.py
    code, out, err = cli("doctor", "--profile", "cluster.yaml", "--probe", "--json")
    found = {(each["topic"], each["level"]): each["message"] for each in json.loads(out)["findings"]}
    assert "sbatch takes such a job" in found["training", "ok"], (found, err)
    probes = [message for (topic, _), message in found.items() if topic == "probe"]
    assert ("probe", "ok") in found
    assert not [m for m in probes if "refused" in m or "did not answer" in m or "without an answer" in m], (
        found
    )
    slurm.until(slurm.idle)
    assert not list((birds / "scratch").glob(".ltbench-probe-*"))
    # A line of shell that fails ends no job, so nobody would hear of it.
    (birds / "cluster.yaml").write_text(
        PROFILE.replace("time: 20", "time: 20\nsetup: [source /nowhere/activate]")
    )
    code, out, err = cli("doctor", "--profile", "cluster.yaml", "--probe")
    assert code == 0, (out, err)
    assert re.search(r"warning +probe +modules and setup are not silent: .*/nowhere/activate", out), out
    assert "--probe sends a job" in cli("doctor", "--profile", "cluster.yaml")[2]
    (birds / "cluster.yaml").write_text(PROFILE.replace("time: 20", "time: 20\nconstraint: nowhere"))
    code, out, _ = cli("doctor", "--profile", "cluster.yaml")
    assert (code, "will fail" in out) == (4, True)
    assert "sbatch refuses such a job" in out or "no node of" in out, out


def test_what_was_typed_is_kept_but_for_the_profile():
    argv = ["calibrate", "a.yaml", "-p", "x", "--filter", "seed=0", "--json"]
    assert jobs.typed(("--json",), argv) == ["calibrate", "a.yaml", "--filter", "seed=0"]
    assert jobs.typed((), ["evaluate", "--profile=x", "a", "-px"]) == ["evaluate", "a"]


def test_jobs_keep_caches_in_scratch_and_ask_no_network(tmp_path, monkeypatch):
    for name in (*caches.PLACES, caches.MARK):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", "/shared/hf")
    store = Store.open(tmp_path / "store", tmp_path / "scratch")
    told = jobs.environment_of(store, tmp_path / "code")
    assert told["HF_HUB_OFFLINE"] == "1"
    for name in ("TORCH_HOME", "TRITON_CACHE_DIR", "TORCHINDUCTOR_CACHE_DIR"):
        assert told[name].startswith(str(tmp_path / "scratch"))
    assert told["HF_HOME"] == "/shared/hf", "what the user has set counts"
    assert told["PYTHONPATH"].startswith(str(tmp_path / "code"))


def test_the_last_error_of_a_log_is_what_a_command_failed_of(tmp_path):
    log = tmp_path / "0_0.out"
    log.write_text(
        "error: an old one\nfine\nerror:\n  two lines\n  of it\n  run: this\nsrun: error: task 0\n"
    )
    assert last_error(log) == "two lines"
    assert last_error(tmp_path / "none") is None
