"""What `submit` says before anything is queued: costs, scripts, what it refuses. No SLURM is asked."""

from __future__ import annotations

import json
import re

import pytest

from ltbench import needs, provenance, spec
from ltbench.cost import calibrations
from ltbench.cost.calibrations import train_question
from ltbench.cost.memory import training_memory
from ltbench.cost.size import parameter_count
from ltbench.cost.work import data_shape
from ltbench.spec.cells import expand
from ltbench.store import Store
from tests import cli_world

cli, here = cli_world.cli, cli_world.here  # fixtures
PROFILE = "gpus: 1\ngpu_type: a100\npartition: low\nmax_array_size: 100\n"


@pytest.fixture
def submit(here, cli):
    (here / "cluster.yaml").write_text(PROFILE)
    return lambda *words: cli("submit", "little.yaml", "--profile", "cluster.yaml", *words)


def test_a_dry_run_prints_scripts_hours_bytes_and_files_and_leaves_nothing(here, submit):
    code, out, err = submit("--dry-run")
    assert code == 0, err
    assert (
        out.count("#!/bin/bash") == 3
    )  # the features of real images, the trainings, and what they submit themselves
    assert "#SBATCH --array=0-3\n" in out
    assert "#SBATCH --gres=gpu:a100:1\n" in out
    assert re.search(r"^training +1 +4 +4 ", out, re.M)
    assert re.search(r"^training +[\d.,e-]+ +(estimated|assumed)", out, re.M), out[out.index("cost of") :]
    assert "GPU-hours" in out
    assert re.search(r"^store: [\d.]+ \w+ in [\d,]+ files .*; scratch: [\d.]+ \w+ in [\d,]+ files", out, re.M)
    assert "files of the submission: 4, then about 8 small ones for each of 13 jobs;" in out
    assert (
        "8 evaluations to follow, each a job that a training submits when the milestone is there: 1 a100, "
        in out
    )
    assert not (here / "scratch" / "submissions").exists()
    cost = json.loads(submit("--dry-run", "--json")[1])["cost"]
    assert cost["hours"] > 0


def test_more_gpu_hours_than_allowed_are_refused_with_their_sum(here, submit):
    hours = json.loads(submit("--dry-run", "--json")[1])["cost"]["hours"]
    code, out, err = submit("--max-gpu-hours", hours / 2)
    assert (code, out) == (2, "")
    assert f"this is estimated at {hours:.3g} GPU-hours; --max-gpu-hours allows {hours / 2:.3g}" in err
    for wrong in ("nan", "-1"):
        code, out, err = submit("--max-gpu-hours", wrong)
        assert (code, out) == (2, "")
        assert "--max-gpu-hours" in err
    assert submit("--dry-run", "--max-gpu-hours", hours * 2)[0] == 0
    assert not (here / "scratch" / "submissions").exists()


def test_ctrl_c_says_what_became_of_it(submit, monkeypatch):
    def interrupted(text):
        raise KeyboardInterrupt

    monkeypatch.setattr("ltbench.launch.slurm.sbatch.send", interrupted)
    code, out, err = submit()
    assert (code, out) == (130, "")
    assert "what reached the queue goes on, and the same command takes it over and submits the rest" in err
    assert "to stop it: python harness.py cancel little.yaml" in err


def test_a_plan_that_was_looked_at_is_what_is_submitted(here, cli, submit):
    agreed = here / "plan.json"
    agreed.write_text(cli("plan", "little.yaml", "--json")[1])
    assert submit("--dry-run", "--plan", agreed)[0] == 0
    code, out, err = submit("--plan", agreed, "--filter", "seed=0")
    assert (code, out) == (2, "")
    assert "no longer in the benchmark" in err
    assert "2 cells changed since" in err
    (cell, *_) = expand(spec.load(here / "little.yaml"))
    store = Store.open(here / "store", here / "scratch")
    store.put_cell(cell.id, cell.identity, cell.settings)
    code = provenance.train_code(cell.settings)
    run = store.run(cell.id, provenance.run_id(code, cell.settings))
    run.create(code, cell.settings)
    run.fail("train", 1, step=3, cause="oom", message="no memory", traceback="", evidence={})
    code, _, err = submit("--plan", agreed)
    assert code == 2
    assert f"1 cell changed since {agreed} was made; nothing was submitted:" in err
    assert "was new, is failed" in err
    told = json.loads(agreed.read_text())
    assert {"method sit", "method ccua", "trainer", "network", "evaluation"} <= set(told["code"])
    for part in told["code"]:
        agreed.write_text(json.dumps(told | {"code": {**told["code"], part: ["of another code"]}}))
        assert f"code changed since {agreed} was made ({part})" in submit("--plan", agreed)[2]
    agreed.write_text("[]")
    assert "is not a plan" in submit("--plan", agreed)[2]
    assert "cannot read the plan" in submit("--plan", here / "nowhere.json")[2]
    assert not (here / "scratch" / "submissions").exists()


def test_what_jobs_could_not_fetch_is_refused_with_the_command_that_brings_it(here, submit):
    text = cli_world.SPEC.replace("[sit, ccua]", "[sit, {name: repa, encoder: 'timm:vit_tiny_patch16_224'}]")
    (here / "little.yaml").write_text(text)
    code, _, err = submit()
    assert code == 4
    assert "encoder timm:vit_tiny_patch16_224: its weights are not in Hugging Face's cache" in err
    assert "python harness.py fetch little.yaml" in err
    assert not (here / "scratch" / "submissions").exists()
    code, out, err = submit("--dry-run")
    assert (code, "#SBATCH" in out) == (0, True)
    assert "without --dry-run this is refused" in err
    assert submit("--dry-run", "--filter", "method=sit")[2].count("refused") == 0


def test_nothing_is_asked_of_what_is_not_due(here, submit, monkeypatch):
    asked = []
    monkeypatch.setattr(needs, "missing_assets", lambda cells, spec, but=(): asked.extend(cells) or [])
    submit("--dry-run", "--filter", "seed=0")
    assert {cell.seed for cell in asked} == {0}


def test_cells_that_do_not_fit_the_gpus_are_refused_by_what_was_measured(here, submit):
    (here / "cluster.yaml").write_text(PROFILE + "gpu_memory_gb: 1\n")
    assert submit("--dry-run")[0] == 0
    store = Store.open(here / "store", here / "scratch")
    cells = {cell.settings["method"]["name"]: cell for cell in expand(spec.load(here / "little.yaml"))}
    step = {
        "seconds_per_step": 0.1,
        "process_seconds_per_step": 0.1,
        "quartiles": [0.1, 0.1],
        "steps": 9,
        "rows": 1.0,
    }
    step |= {"parameters": 10**6, "own_parameters": 0, "terms": 1, "data": "real"}
    for method, device, size in (("ccua", "A100", 6 * 10**8), ("sit", "cpu", 9 * 10**9)):
        calibrations.keep(
            store, train_question(cells[method].settings), device, 1, {**step, "memory_bytes": size}
        )
    assert submit("--dry-run")[0] == 0
    (here / "cluster.yaml").write_text(PROFILE + "gpu_memory_gb: 1\ntraining: {pack: 2}\n")
    code, _, err = submit("--dry-run")
    assert code == 2
    assert (
        "a GPU of the profile has 1 GB (gpu_memory_gb), 2 cells at a time; this needs more for each:" in err
    )
    assert "ccua: 0.6 GB (measured on A100" in err
    assert "sit: " not in err
    assert submit("--dry-run", "--filter", "method=sit")[0] == 0
    again = ("--dry-run", "--set", "train.recompute=true")
    assert submit(*again)[0] == 0  # what was measured kept its activations
    asked = train_question(cells["ccua"].settings, recompute=True)
    calibrations.keep(store, asked, "A100", 1, {**step, "memory_bytes": 55 * 10**7})
    code, _, err = submit(*again)
    assert (code, "ccua: 0.6 GB (measured on A100" in err) == (2, True)


def test_what_no_training_can_do_without_is_counted_where_nothing_was_measured(here):
    (cell, *_) = expand(spec.load(here / "little.yaml"))
    shape = data_shape(cell.settings["dataset"]).network(cell.settings["train"])
    found = training_memory(cell.settings, cell.options, [])
    assert found.bytes == 20 * parameter_count(cell.settings["network"], shape) > 10**5
    assert "without activations" in found.source
