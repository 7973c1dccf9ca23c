"""`gc`: a dry run deletes nothing, --delete exactly what it listed, and nothing that anybody needs ever goes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ltbench import files, spec
from ltbench import plan as plans
from ltbench.clearing import inventory, living, removing
from ltbench.files import leftovers
from ltbench.launch import drivers
from ltbench.launch.slurm import layout, snapshot
from ltbench.spec.cells import expand
from ltbench.store import Store
from tests import cli_jobs, cli_world, test_operating
from tests.cli_world import ROOT

cli, here, queue = cli_world.cli, cli_world.here, test_operating.queue  # fixtures

NOW = ("--keep-days", "0")
GONE = f".tmp-{leftovers._kernel_tag()}-4194305-0123456789ab"  # of a process number that no kernel gives


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A store and a scratch folder of a finished grid of four cells, whose trainings left checkpoints and weights."""
    home = tmp_path_factory.mktemp("finished")
    (home / "little.yaml").write_text(cli_world.SPEC)
    found = spec.load(home / "little.yaml")
    store = Store.open(home / "store", home / "scratch")
    plans.register(expand(found), store)
    for item in plans.plan(found, store).work():
        for stage in item.stages:
            told = (str(store.root), str(store.scratch), item.cell.id, item.run, stage, {})
            assert cli_jobs.run_job(*told, lambda event: None, lambda: False) == {"outcome": "done"}
        run = store.run(item.cell.id, item.run)
        weights = [run.milestones / f"step-{step:09d}" for step in (20, 40)]
        for place in (run.checkpoints / "step-000000040.a1", *weights):
            plant(place / "model.safetensors", 1000)
    return home


@pytest.fixture
def grid(here, finished):
    """The finished grid in the test's own folder: (store, runs in the grid's order)."""
    for name in ("store", "scratch"):
        shutil.copytree(finished / name, here / name)
    store = Store.open()
    cells = expand(spec.load(here / "little.yaml"))
    return store, [run for cell in cells for run in store.runs(cell.id)]


def plant(path, size=10):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"x" * size)
    return path


def tree(*roots):
    return {path for root in roots for path in root.rglob("*") if not path.is_dir()}


def listed(cli, *words):
    """{path: item} of the dry run."""
    return cli_items(cli, *NOW, *words)


def cli_items(cli, *words):
    code, out, err = cli("gc", "--json", *words)
    assert code == 0, err
    return {Path(item["path"]): item for item in json.loads(out)["items"]}


def goes(items):
    return {path for path, item in items.items() if item["verdict"] == "goes"}


def of_kind(items, kind):
    return [item for item in items.values() if item["kind"] == kind]


def test_delete_removes_what_the_dry_run_listed_and_nothing_done_becomes_undone(cli, here, grid):
    store, runs = grid
    left = plant(runs[0].milestones / GONE / "half", 7)
    for path in ("features/ab/shard", "samples/cd/shard", "references/ef/r", "latents/gh/ij/b", "mine/notes"):
        plant(store.scratch / path)
    plant(store.root / "cells" / GONE)
    before, report = tree(here), cli("report", "little.yaml", "--format", "csv")
    items = listed(cli)
    assert tree(here) - before == tree(here / "reports")  # the report's own files, and nothing is missing
    expected = {run.checkpoints for run in runs} | {left.parent, store.root / "cells" / GONE}
    assert goes(items) == expected
    assert {item["verdict"] for item in of_kind(items, "features")} == {"asked"}
    assert {item["verdict"] for item in of_kind(items, "unknown")} == {"stays"}

    before = tree(here)
    code, out, err = cli("gc", "--delete", "--json", *NOW)
    assert code == 0, err
    assert before - tree(here) == {p for p in before if any(p.is_relative_to(one) for one in expected)}
    assert tree(here) <= before
    assert json.loads(out)["freed_bytes"] == 4 * 1000 + 7 + 10
    assert cli("gc", "--delete", *NOW)[1].strip() == "nothing goes"

    assert cli("report", "little.yaml", "--format", "csv")[1] == report[1]
    assert {cell["state"] for cell in json.loads(cli("status", "little.yaml", "--json")[1])["cells"]} == {
        "done"
    }
    code, out, _ = cli("run", "little.yaml", "--job", "cli_jobs:run_job")
    assert code == 0
    assert "4 done" in out
    assert "stage" not in out


def test_weights_go_by_name_with_a_plan_that_needs_them_no_more_and_the_price_is_said(cli, here, grid):
    store, runs = grid
    assert not [i for i in of_kind(listed(cli, "--kind", "weights"), "weights") if i["verdict"] != "stays"]
    next((runs[1].dir / "records").glob("evaluation-000000040-*")).unlink()  # is to be measured again
    items = listed(cli, "little.yaml", "--kind", "weights")
    assert set(items) - goes(items) == {runs[1].milestones / "step-000000040"}
    _, out, _ = cli("gc", "little.yaml", "--kind", "weights", "--filter", "method=ccua", "--delete", *NOW)
    assert "weights of 2 cells" in out
    assert "80 training steps" in out
    left = {run.cell for run in runs if any(run.milestones.iterdir())}
    assert left == {run.cell for run in runs[:2]}
    found = plans.plan(spec.load("little.yaml"), store)
    assert [(item.state, len(item.due)) for item in found.cells] == [
        ("done", 0),
        ("partial", 1),
        ("done", 0),
        ("done", 0),
    ]


def test_nothing_of_a_cell_that_runs_waits_or_goes_on_is_listed_to_go(cli, here, grid, queue):
    store, runs = grid
    runs[1].fail("train", runs[1].claim("train").attempt, cause="oom", message="no memory", step=30)
    sub = layout.create(store.scratch, {"benchmark": "little", "store": str(store.root), "snapshot": "s"})
    sub.add_array(
        {"class": "training"}, [(layout.Entry(runs[2].cell, "ccua", 0, runs[2].run, ("train:80",)),)]
    )
    sub.put_job(0, "77")
    queue("squeue", "77_0|PENDING|Resources|")
    for kind in ("features", "samples"):
        plant(store.scratch / kind / "ab" / "shard")
    with (
        runs[0].claim("train"),
        drivers.announced(store.scratch / "logs" / "20260101-000000-1", [runs[3].cell]),
    ):
        items = listed(cli)
        assert goes(items) == set()
        whys = {Path(path): item["why"] for path, item in items.items() if item["kind"] == "checkpoints"}
        assert whys == {
            runs[0].checkpoints: "its cell runs",
            runs[1].checkpoints: "its cell runs",  # claimed by this process, which lives
            runs[2].checkpoints: "its cell waits or runs in SLURM",
            runs[3].checkpoints: "its cell waits for a run",
        }
        assert goes(listed(cli, "--kind", "features", "--kind", "samples")) == set()
        before = tree(store.scratch)
        assert cli("gc", "--delete", "--kind", "checkpoints", "--kind", "features", *NOW)[0] == 0
        assert tree(store.scratch) == before
    queue("squeue", "", 1)
    assert runs[2].checkpoints not in goes(listed(cli))  # where SLURM does not answer, it may still run


def test_only_a_training_that_is_over_or_cannot_go_on_loses_its_checkpoints(cli, here, grid):
    store, runs = grid
    claim = runs[0].claim("train")
    runs[0].fail("train", claim.attempt, cause="nan", message="nan", step=30)
    claim.release("failed")
    old = store.run(runs[1].cell, "0" * 12)  # of code that is not here
    old.create({}, {})
    plant(old.checkpoints / "step-000000010.a1" / "model.safetensors")
    old.claim("train").release("preempted")
    plant(store.scratch / "cells" / "ff" / ("f" * 16) / "runs" / "1" / "checkpoints" / "x")
    items = listed(cli)
    assert goes(items) == {run.checkpoints for run in runs[1:]}
    assert items[runs[0].checkpoints]["why"] == "training goes on from it"
    assert (items[old.checkpoints]["kind"], items[old.checkpoints]["verdict"]) == ("stale", "asked")
    assert goes(listed(cli, "--kind", "stale")) == {old.checkpoints}
    assert goes(listed(cli, "--keep-days", "1")) == set()
    # A benchmark that wants more of a training keeps what it would go on from.
    assert runs[1].checkpoints not in goes(listed(cli, "little.yaml", "--set", "train.milestones=[20,40,80]"))


def test_a_link_out_of_the_scratch_folder_is_not_followed(cli, here, grid):
    store, runs = grid
    outside = here / "outside"
    kept = [plant(outside / name / "precious") for name in ("features/ab", "checkpoints", "inside", "runs/1")]
    (store.scratch / "features").symlink_to(outside / "features")
    runs[0].checkpoints.rename(here / "moved")
    runs[0].checkpoints.symlink_to(outside / "checkpoints")
    (runs[1].checkpoints / "link").symlink_to(outside / "inside")
    items = listed(cli)
    assert items[runs[0].checkpoints]["verdict"] == "stays"
    code, _, err = cli("gc", "--delete", "--kind", "checkpoints", "--kind", "features", *NOW)
    assert code == 0, err
    assert all(path.is_file() for path in kept)
    assert not runs[1].checkpoints.exists()
    # Nor one that was put above a thing after it was listed.
    life = living.look(store)
    (item,) = [
        i
        for i in inventory.take(store, life, inventory.Asked(keep=0))
        if i.cell == runs[2].cell and i.kind == "weights" and i.step == 20
    ]
    doomed = runs[2].milestones
    doomed.rename(outside / "milestones")
    doomed.symlink_to(outside / "milestones")
    (told,) = removing.remove([replace(item, verdict="goes")], life, inventory.roots(store))
    assert told.outcome == "kept"
    assert (outside / "milestones" / "step-000000020").is_dir()


@pytest.mark.parametrize("when", ["before", "between"])
def test_a_cell_that_starts_meanwhile_keeps_what_it_has(grid, monkeypatch, when):
    store, runs = grid
    life = living.look(store)
    items = [
        item for item in inventory.take(store, life, inventory.Asked(keep=0)) if item.cell == runs[0].cell
    ]
    begun, rename = [], os.rename

    def start(old, new):
        if old == runs[0].checkpoints:
            begun.append(runs[0].claim("train"))
        rename(old, new)

    if when == "before":
        begun.append(runs[0].claim("train"))
    else:
        monkeypatch.setattr(os, "rename", start)
    (told,) = removing.remove(items, life, inventory.roots(store))
    assert begun
    assert told.outcome == "kept"
    assert (runs[0].checkpoints / "step-000000040.a1" / "model.safetensors").is_file()


def test_a_claim_of_another_machine_counts_until_its_heart_has_stood_still(grid, monkeypatch):
    store, runs = grid
    with monkeypatch.context() as patch:
        patch.setattr(files, "kernel", lambda: "another/1")
        claim = runs[0].claim("train")
        beat = store.scratch / "logs" / "20260101-000000-1"
        with drivers.announced(beat, [runs[1].cell]):
            told = (beat / drivers.NAME).read_bytes()
    plant(beat / drivers.NAME).write_bytes(told)
    fresh = Store.open(lease=0.3)
    fresh.watch = type(fresh.watch)()
    assert set(living.look(fresh).cells) == {runs[0].cell, runs[1].cell}
    heard: list[str] = []
    assert living.look(fresh, heard.append).cells == {}
    assert f"process {os.getpid()}" in heard[0]
    assert claim.attempt == 2


def test_after_a_kill_in_the_middle_a_second_call_finishes(cli, here, grid):
    store, _ = grid
    program = (
        "import os, shutil, signal, sys\n"
        "shutil.rmtree = lambda *a, **k: os.kill(os.getpid(), signal.SIGKILL)\n"
        "from ltbench.cli import main\n"
        "main()\n"
    )
    words = [sys.executable, "-c", program, "gc", "--delete", *NOW]
    done = subprocess.run(
        words, cwd=here, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)}
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    before = goes(listed(cli))
    assert sorted(item["kind"] for item in listed(cli).values() if item["verdict"] == "goes") == [
        "checkpoints"
    ] * 3 + ["leftovers"]
    assert cli("gc", "--delete", *NOW)[0] == 0
    assert not any(path.exists() for path in before)
    assert not tree(store.scratch / "cells") & {p for p in tree(store.scratch) if "checkpoints" in p.parts}


def test_code_and_pickles_of_a_submission_stay_while_a_job_of_it_may_run(cli, here, grid, queue):
    store, runs = grid
    code = store.scratch / "snapshots" / "0123456789abcdef"
    plant(code / "harness.py")
    sub = layout.create(
        store.scratch, {"benchmark": "little", "store": str(store.root), "snapshot": str(code)}
    )
    sub.add_array(
        {"class": "training"}, [(layout.Entry(runs[0].cell, "sit", 0, runs[0].run, ("train:20",)),)]
    )
    plant(sub.calls / "77_0_submitted.pkl")
    kinds = ("--kind", "calls", "--kind", "snapshots", "--kind", "submissions")
    assert goes(listed(cli, *kinds)) == set()  # its number is not known: it may be in the queue
    sub.put_job(0, "77")
    queue("squeue", "77_0|RUNNING|None|n0")
    assert goes(listed(cli, *kinds)) == set()
    queue("squeue", "77_0|FAILED|None|n0")
    assert goes(listed(cli, *kinds)) == {code, sub.calls}  # status tells from it why the job failed
    sub.put_ended(0, 0, 0, reason="done")
    queue("squeue", "77_0|COMPLETED|None|n0")
    assert goes(listed(cli)) - {run.checkpoints for run in runs} == {code, sub.calls}
    assert goes(listed(cli, *kinds)) == {code, sub.folder}
    assert cli("gc", "--delete", *kinds, *NOW)[0] == 0
    assert not code.exists()
    assert not sub.folder.exists()


def test_code_that_a_submission_is_about_to_use_stays(cli, here, queue):
    code = snapshot.take(here / "scratch")
    for path in (code, *code.rglob("*")):
        os.utime(path, (1, 1))
    assert cli_items(cli)[code]["verdict"] == "goes"
    assert snapshot.take(here / "scratch") == code
    assert cli_items(cli)[code]["verdict"] == "stays"


def test_prepared_data_goes_by_its_own_name_alone(cli, here, grid, monkeypatch):
    monkeypatch.setenv("LTBENCH_DATA", str(here / "data"))
    ours, other = (
        plant(here / "data" / "prepared" / name / "m").parent for name in ("places_lt-0a", "tiny-0b")
    )
    source = plant(here / "data" / "places365" / "images.tar")
    assert {ours, other} & goes(listed(cli)) == set()
    assert goes(listed(cli, "--data", "places_lt")) == {ours}
    assert cli("gc", "--delete", "--data", "places_lt", *NOW)[0] == 0
    assert (ours.exists(), other.exists(), source.exists()) == (False, True, True)


def test_bad_input_and_what_cannot_be_deleted(cli, here, grid, monkeypatch):
    for words, said in (
        (("--kind", "weigths"), "did you mean 'weights'?"),
        (("--kind", "data"), "--data NAME"),
        (("--filter", "seed=0"), "belong to a spec"),
        (("little.yaml", "--data", "x"), "goes without a SPEC"),
        (("nosuch",), "no spec 'nosuch'"),
        (("--keep-days", "nan"), "Invalid value"),
    ):
        code, _, err = cli("gc", *words)
        assert (code, said in err) == (2, True), err

    def refuse(path, ignore_errors=False):
        if not ignore_errors:
            raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(removing.shutil, "rmtree", refuse)
    code, out, err = cli("gc", "--delete", *NOW)
    assert code == 4
    assert "4 things could not be deleted" in err
    assert "freed 0 B in 0 files" in out
    code, _, err = cli("gc", "--scratch", "little.yaml")
    assert (code, "is a file, not a folder" in err) == (4, True), err
