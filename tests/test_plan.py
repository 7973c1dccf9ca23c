"""States from files alone: what is done, missing, stale, failed or running, why, and what that means for the work left."""

from __future__ import annotations

import copy
import importlib
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from ltbench import provenance
from ltbench.plan import Plan, plan, register
from ltbench.plan.planned import Planned
from ltbench.spec import load
from ltbench.spec.cells import Cell, expand
from ltbench.spec.resolved import Spec
from ltbench.store import Claim, Run, Store

ROOT = Path(__file__).resolve().parents[1]
TEXT = """\
name: mine
dataset: {name: digits}
pipeline: sit
network: SiT-N/2
train: {batch: 24, local_batch: 12, milestones: [10, 20]}
evaluate: {protocol: small-data, sampler: euler, steps: 5, guidance: [1.5]}
grid: {method: [sit, ccua], seed: [0]}
"""


class World:
    """A store in which cells are worked on by writing the files that jobs would write."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = Store.open(folder / "store", folder / "scratch")

    def spec(self, **changes: str) -> Spec:
        path = self.folder / "mine.yaml"
        path.write_text(TEXT)
        return load(path, changes=[f"{key.replace('__', '.')}={value}" for key, value in changes.items()])

    def plan(self, **changes: str) -> Plan:
        return plan(self.spec(**changes), self.store)

    def one(self, **changes: str) -> Planned:
        """The sit cell of seed 0."""
        return self.plan(**changes).cells[0]

    def run(self, cell: Cell, code: provenance.Code | None = None) -> Run:
        register([cell], self.store)
        code = code or provenance.train_code(cell.settings)
        run = self.store.run(cell.id, provenance.run_id(code, cell.settings))
        run.create(code, cell.settings)
        return run

    def train(self, cell: Cell, *steps: int, code: provenance.Code | None = None) -> Run:
        run = self.run(cell, code)
        for step in steps or cell.milestones:
            run.put_record("train", step, {"code": {}}, {})
            (run.milestones / f"step-{step:09d}").mkdir(parents=True, exist_ok=True)
        return run

    def evaluate(self, cell: Cell, *steps: int, evaluation_code: dict[str, Any] | None = None) -> None:
        run = self.run(cell)
        entry = evaluation_code or provenance.evaluation_code()["evaluation"]
        for step in steps or cell.milestones:
            for key in cell.evaluations:
                body = {"code": {"evaluation": entry["digest"]}, "rows": []}
                run.put_record("evaluation", step, body, {"evaluation_code": entry}, evaluation=key)

    def finish(self, cell: Cell) -> Run:
        run = self.train(cell)
        self.evaluate(cell)
        return run


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def stages(planned: Planned) -> list[str]:
    return [due.stage for due in planned.due]


def other_code(component: str, cell: Cell) -> provenance.Code:
    """The present code with one name of one component changed."""
    code = copy.deepcopy(provenance.train_code(cell.settings))
    path, names = next(iter(code[component]["files"].items()))
    code[component]["files"][path] = {**names, next(iter(names)): "0" * 8}
    code[component]["digest"] = "0" * 64
    return code


def test_an_empty_store_has_everything_to_do(world: World) -> None:
    found = world.plan()
    assert found.counts() == {"new": 2}
    assert found.reasons() == [("new", "never run", 2)]
    (key,) = found.cells[0].cell.evaluations
    assert stages(found.cells[0]) == ["train:10,20", f"evaluate:10:{key}", f"evaluate:20:{key}"]
    assert (found.cells[0].done, found.cells[0].total) == (0, 4)


def test_a_finished_cell_is_done_and_leaves_no_work(world: World) -> None:
    run = world.finish(world.one().cell)
    found = world.plan()
    assert (found.cells[0].state, found.cells[0].done, found.cells[0].due) == ("done", 4, ())
    assert found.cells[0].run == run.run
    assert found.counts() == {"done": 1, "new": 1}
    assert [work.cell.label for work in found.work()] == ["ccua"]
    assert found.cells[1].reason == "method ccua is new"


def test_a_further_milestone_continues_the_same_run(world: World) -> None:
    run = world.finish(world.one().cell)
    found = world.one(train__milestones="[10, 20, 40]")
    (key,) = found.cell.evaluations
    assert (found.state, found.run) == ("partial", run.run)
    assert stages(found) == ["train:40", f"evaluate:40:{key}"]
    assert found.reason == "milestone 40 is wanted, step 20 is reached"


def test_another_evaluation_never_retrains(world: World) -> None:
    world.finish(world.one().cell)
    found = world.one(evaluate__guidance="[1.5, 4.0]")
    (new,) = [key for key, value in found.cell.evaluations.items() if value["guidance"] == 4.0]
    assert stages(found) == [f"evaluate:10:{new}", f"evaluate:20:{new}"]
    assert found.reason == "no small-data, euler 5 steps, guidance 4, of step 10"
    assert found.state == "partial"


@pytest.mark.parametrize(
    "change",
    [
        {"train__micro_batch": "12"},
        {"train__log_every": "3"},
        {"train__checkpoint_seconds": "1"},
        {"title": "x"},
    ],
)
def test_how_a_run_is_carried_out_changes_nothing(world: World, change: dict[str, str]) -> None:
    world.finish(world.one().cell)
    assert world.one(**change).state == "done"


@pytest.mark.parametrize(
    "change", [{"train__lr": "1.0"}, {"train__batch": "12"}, {"dataset__imbalance": "0.5"}]
)
def test_a_training_setting_makes_new_cells(world: World, change: dict[str, str]) -> None:
    world.finish(world.one().cell)
    found = world.one(**change)
    assert (found.state, stages(found)[0]) == ("new", "train:10,20")


def test_a_new_seed_is_said_to_be_new(world: World) -> None:
    for planned in world.plan().cells:
        world.finish(planned.cell)
    found = world.plan(grid__seed="[0, 1]")
    assert found.reasons() == [("done", "every record is there", 2), ("new", "seed 1 is new", 2)]


@pytest.mark.parametrize("component", provenance.COMPONENTS)
def test_changed_training_code_is_stale_and_says_what_changed(world: World, component: str) -> None:
    cell = world.plan().cells[1].cell
    code = other_code(component, cell)
    old = world.train(cell, code=code)
    found = world.plan().cells[1]
    path = next(iter(code[component]["files"]))
    assert found.state == "stale"
    assert found.reason.startswith(f"{path}: ")
    assert found.changes == (found.reason,)
    assert stages(found)[0] == "train:10,20"
    assert found.run is None
    (work,) = [work for work in world.plan().work() if work.cell.id == cell.id]
    assert work.run != old.run  # a rerun has its own place


def test_a_rerun_beside_the_old_is_the_one_that_counts(world: World) -> None:
    cell = world.one().cell
    world.train(cell, code=other_code("trainer", cell))
    run = world.train(cell, 10)
    found = world.one()
    assert (found.state, found.run, found.done) == ("partial", run.run, 1)


def test_accepted_runs_count_until_the_code_moves_on(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    cell = world.one().cell
    run = world.train(cell, code=other_code("trainer", cell))
    key = next(iter(cell.evaluations))
    for step in cell.milestones:
        run.put_record("evaluation", step, {"code": {"evaluation": "old"}, "rows": []}, {}, evaluation=key)
    assert world.one().state == "stale"
    now = {**provenance.train_code(cell.settings), **provenance.evaluation_code()}
    run.accept("the change was a rename", {part: entry["digest"] for part, entry in now.items()})
    found = world.one()
    assert (found.state, found.run) == ("done", run.run)
    moved = {**provenance.train_code(cell.settings), "trainer": {"digest": "1" * 64, "files": {}}}
    monkeypatch.setattr(provenance, "train_code", lambda settings: moved)
    assert world.one().state == "stale"


def test_changed_evaluation_code_makes_only_evaluations_stale(world: World) -> None:
    cell = world.one().cell
    world.train(cell)
    entry = copy.deepcopy(provenance.evaluation_code()["evaluation"])
    path = "ltbench/metrics/frechet.py"
    entry["files"][path] = {**entry["files"][path], "function frechet": "0" * 8}
    world.evaluate(cell, evaluation_code={**entry, "digest": "0" * 64})
    found = world.one()
    (key,) = cell.evaluations
    assert found.state == "stale"
    assert stages(found) == [f"evaluate:10:{key}", f"evaluate:20:{key}"]
    assert found.reason == f"evaluation code changed: {path}: function `frechet` changed"
    world.evaluate(cell)
    assert world.one().state == "done"


def test_a_changed_default_is_stale_with_both_values(world: World) -> None:
    cell = world.one().cell
    register([cell], world.store)
    code = provenance.train_code(cell.settings)
    settings = copy.deepcopy(cell.settings)
    settings["train"]["warmup"] = 7
    run = world.store.run(cell.id, provenance.run_id(code, settings))
    run.create(code, settings)
    run.put_record("train", 10, {}, {})
    found = world.one()
    assert (found.state, found.reason) == ("stale", "the default of train.warmup was 7 and is 0")


def test_failures_carry_their_cause_and_a_later_success_outranks_them(world: World) -> None:
    cell = world.one().cell
    run = world.run(cell)
    claim = run.claim("train")
    assert isinstance(claim, Claim)
    run.fail("train", claim.attempt, step=7, cause="nan", message="non-finite loss at step 7\nmore")
    claim.release("failed")
    found = world.one()
    assert (found.state, found.cause) == ("failed", "nan")
    assert found.reason == "nan: non-finite loss at step 7"
    assert found.due[0].reason == "failed (nan): non-finite loss at step 7"
    world.finish(cell)
    assert world.one().state == "done"


def test_a_live_claim_is_running_and_a_dead_one_is_not(world: World) -> None:
    cell = world.one().cell
    run = world.run(cell)
    claim = run.claim("train")
    assert isinstance(claim, Claim)
    time.sleep(1.1)  # a claim beats once a second
    assert claim.beat(step=5, total=20)
    found = world.one()
    assert (found.state, found.reason) == ("running", "0 of 4 records so far")
    assert found.progress is not None
    assert found.progress["step"] == 5
    claim.release("preempted")
    found = world.one()
    assert (found.state, found.reason) == ("partial", "was interrupted at step 5")


def test_a_process_that_died_without_a_word_is_seen_at_once(world: World) -> None:
    cell = world.one().cell
    run = world.run(cell)
    script = (
        "import os, sys, time; from pathlib import Path; from ltbench.store import Store\n"
        f"s = Store.open(Path({str(world.store.root)!r}), Path({str(world.store.scratch)!r}))\n"
        f"c = s.run({cell.id!r}, {run.run!r}).claim('train'); time.sleep(1.1); c.beat(step=3, total=20); os._exit(9)"
    )
    subprocess.run([sys.executable, "-c", script], check=False, cwd=ROOT)
    found = world.one()
    assert (found.state, found.reason) == ("partial", "its process ended without a word at step 3")


def test_a_damaged_record_is_made_again_and_says_so(world: World) -> None:
    cell = world.one().cell
    run = world.finish(cell)
    (path,) = (run.dir / "records").glob("evaluation-000000020-*")
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    found = world.one()
    assert (found.state, found.done) == ("partial", 3)
    (due,) = found.due
    assert due.stage.startswith("evaluate:20:")
    assert "its record is damaged" in due.reason


def test_evaluations_without_their_weights_train_that_milestone_again(world: World) -> None:
    cell = world.one().cell
    run = world.train(cell)
    (run.milestones / "step-000000010").rmdir()
    world.evaluate(cell, 20)
    found = world.one()
    assert stages(found) == ["train:10", f"evaluate:10:{next(iter(cell.evaluations))}"]
    assert found.due[0].reason == "the weights of milestone 10 are not in the scratch folder"
    world.evaluate(cell, 10)
    assert world.one().state == "done"  # nothing needs them any more


def test_a_cell_of_two_parts_is_worked_on_once(world: World) -> None:
    path = world.folder / "shared.yaml"
    text = TEXT.replace("grid: {method: [sit, ccua], seed: [0]}", "grid: {method: sit}\nparts: [{name: a}, ")
    path.write_text(text + "{name: b, train: {milestones: [20, 30]}}]\n")
    found = plan(load(path), world.store)
    assert [planned.cell.part for planned in found.cells] == ["a", "b"]
    (work,) = found.work()
    (key,) = found.cells[0].cell.evaluations
    assert work.stages == ("train:10,20,30", f"evaluate:10:{key}", f"evaluate:20:{key}", f"evaluate:30:{key}")


def test_the_json_form_is_json_and_complete(world: World) -> None:
    world.train(world.one().cell, 10)
    found = world.plan()
    again = json.loads(json.dumps(found.json()))
    assert again["counts"] == {"partial": 1, "new": 1}
    assert [cell["state"] for cell in again["cells"]] == ["partial", "new"]
    assert again["total"] == 2
    assert sum(reason["cells"] for reason in again["reasons"]) == 2


def test_data_that_is_not_here_is_said(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    digits = importlib.import_module("ltbench.datasets.digits")
    monkeypatch.setattr(digits.Digits, "missing", lambda self: "the files are not here; fetch them")
    assert world.one().reason == "the files are not here; fetch them"


def test_register_writes_what_jobs_read(world: World) -> None:
    found = world.plan()
    cells = [planned.cell for planned in found.cells]
    register(cells, world.store)
    register(cells, world.store)
    assert sorted(world.store.cells()) == sorted(cell.id for cell in cells)
    assert world.store.cell(cells[0].id)["settings"] == cells[0].settings
    for key, value in cells[0].evaluations.items():
        kept = world.store.get_evaluation(key)
        assert {name: kept[name] for name in value} == value
    assert world.plan().counts() == {"new": 2}


BIG = """
import sys
from pathlib import Path
from ltbench.spec import load
from ltbench.plan import plan
from ltbench.store import Store
folder = Path(sys.argv[1])
found = plan(load(folder / "big.yaml"), Store.open(folder / "s", folder / "t", write=False))
assert not {"torch", "pandas", "matplotlib"} & set(sys.modules)
print(len(found.cells), len({p.cell.id for p in found.cells}))
"""


def test_a_plan_of_ten_thousand_cells_imports_nothing_heavy(tmp_path: Path) -> None:
    text = TEXT.replace("[sit, ccua]", "[sit, cbdm, dispersive, ccua]").replace("[0]", str(list(range(1250))))
    (tmp_path / "big.yaml").write_text(text.replace("seed:", "train.lr: [1e-4, 2e-4], seed:"))
    done = subprocess.run(
        [sys.executable, "-c", BIG, str(tmp_path)], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout.split() == ["10000", "10000"]


def test_a_plan_of_a_full_store_finds_every_cell_done(world: World) -> None:
    spec = world.spec(grid__seed=str(list(range(20))), evaluate__guidance="[1.0, 2.0]")
    for cell in expand(spec):
        world.finish(cell)
    assert plan(spec, world.store).counts() == {"done": 40}
