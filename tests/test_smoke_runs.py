"""One benchmark per family of data sets and pipeline, run small from the command line to its table: the shipped files, no stand-in job."""

from __future__ import annotations

import json

import pytest

from ltbench.store import Store
from tests import cli_world

cli, here = cli_world.cli, cli_world.here  # fixtures

RUNS = [
    ("quickstart", "sit on grey images", ["method=cbdm", "part=flow"]),
    ("table1_imagenet_lt", "sit on latents", ["method=repa", "resample=0.1"]),
    ("table2_ddpm", "ddpm at 64 px, a searched guidance", ["method=oclt", "part=places"]),
    ("table8_cifar_ddpm", "ddpm at 32 px, moved images", ["part=cifar100-ada"]),
    ("table10_unconditional", "ddpm without labels", ["method=ccua", "part=cifar10"]),
]


@pytest.mark.timeout(900)  # seconds of work, but many processes on a machine that may be busy
@pytest.mark.parametrize(("name", "what", "filters"), RUNS, ids=[run[1] for run in RUNS])
def test_a_small_benchmark_runs_to_its_table(cli, here, name, what, filters):
    if "latents" in what:
        pytest.importorskip("diffusers")
    words = [word for text in filters for word in ("--filter", text)]
    code, _, err = cli("run", name, "--smoke", "--workers", 1, "--threads", 1, *words)
    assert code == 0, err
    assert f"{name}-smoke" in err, "the small spec is kept under its own name"
    store = Store.open(here / "store", here / "scratch")
    cells = list(store.cells())
    records = [record for cell in cells for run in store.runs(cell) for record in run.records()]
    measured = [record.body["evaluation"] for record in records if "evaluation" in record.body]
    assert {store.cell(cell)["settings"]["dataset"]["name"] for cell in cells} == {"standin"}
    assert {one["extractor"]["name"] for one in measured} == {"fashion-cnn-v1"}
    code, _, err = cli("report", f"{name}-smoke", "--format", "md", *words)
    assert code == 0, err
    table = (here / "reports" / "build" / f"{name}-smoke" / f"{name}-smoke.md").read_text()
    assert "smoke test: these numbers mean nothing" in table
    assert "fashion-cnn-v1@" in table
    assert " FID" not in table
    assert json.loads(cli("plan", name, "--smoke", "--json", *words)[1])["to_do"]["trainings"] == 0
    assert len(measured) > 0
