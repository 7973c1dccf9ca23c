"""A stage as a worker calls it: what it leaves in the store, how it goes on, how it fails, and who may run it."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from ltbench import plugins, provenance, spec
from ltbench.checkpoint import load_milestone
from ltbench.errors import EnvironmentProblem
from ltbench.files import StorageProblem
from ltbench.job import failure_cause, run_job
from ltbench.plan import plan, register
from ltbench.protocols import PROTOCOLS
from ltbench.spec.cells import Cell, expand
from ltbench.store import Run, Store

OPTIONS = {"checkpoint_seconds": 3600.0, "log_every": 2, "threads": 1, "device": "cpu"}
SPEC = """
name: jobs
dataset: {{name: digits, imbalance: 0.1, resolution: 16}}
pipeline: sit
network: SiT-N/4
train: {{batch: 12, local_batch: 6, milestones: {milestones}, lr: 1e-3, ema: 0.9}}
evaluate: [{{protocol: small-data, sampler: euler, steps: 2, guidance: {guidance}, samples: 40, block: 20}}]
grid: {{method: [{method}], seed: 0}}
"""

PLUGINS = {
    "poison": """
from torch import Tensor
from ltbench.methods import Draw, Method, Network, Task, mean_square


class Poison(Method):
    \"\"\"Divides by zero from the fifth loss on.\"\"\"

    def __init__(self, task: Task, *, good: int = 4) -> None:
        super().__init__(task)
        self.left = good

    def loss(self, net: Network, draw: Draw) -> dict[str, Tensor]:
        (out,) = self.run(net, draw, draw.y_in)
        self.left -= 1
        return {"denoise": mean_square(out.pred, draw.target) / float(self.left >= 0)}
""",
    "spills": """
from torch import Tensor
from ltbench.methods import Draw, Method, Network


class Spills(Method):
    \"\"\"Tells a long secret again and again: wherever its words are cut, they are cut inside one.\"\"\"

    def loss(self, net: Network, draw: Draw) -> dict[str, Tensor]:
        raise ValueError(("TOKEN=" + "yranac"[::-1] * 50 + " ") * 100)  # a traceback shows this line
""",
    "raiser": """
from torch import Tensor
from ltbench.methods import Draw, Method, Network


class Raiser(Method):
    \"\"\"Knows no loss.\"\"\"

    def loss(self, net: Network, draw: Draw) -> dict[str, Tensor]:
        raise KeyError("no such loss")
""",
    "fills": """
from torch import Tensor
from ltbench.methods import Draw, Method, Network


class Fills(Method):
    \"\"\"Writes where nothing fits.\"\"\"

    def loss(self, net: Network, draw: Draw) -> dict[str, Tensor]:
        with open("/dev/full", "w") as file:
            file.write("much")
        return {}
""",
    "wrongly": """
from torch import Tensor
from ltbench.methods import Draw, Method, Network


class Wrongly(Method):
    \"\"\"Returns a term of the wrong shape.\"\"\"

    def loss(self, net: Network, draw: Draw) -> dict[str, Tensor]:
        return {"pixels": draw.x0}
""",
}


def run_of(cell: Cell) -> str:
    """The run that the present code makes of a cell."""
    return provenance.run_id(provenance.train_code(cell.settings), cell.settings)


class House:
    """A store of its own and a benchmark file that can be rewritten."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.store = Store.open(folder / "store", folder / "scratch")

    def cell(self, method: str = "sit", milestones: str = "[4, 8]", guidance: str = "1.5") -> Cell:
        path = self.folder / "jobs.yaml"
        path.write_text(SPEC.format(method=method, milestones=milestones, guidance=guidance))
        self.benchmark = spec.load(path)
        (cell,) = expand(self.benchmark)
        register([cell], self.store)
        return cell

    def run(self, cell: Cell, stage: str, **options: Any) -> dict[str, Any]:
        self.events: list[dict[str, Any]] = []
        places = (str(self.store.root), str(self.store.scratch))
        return run_job(*places, cell.id, run_of(cell), stage, {**OPTIONS, **options}, self.events.append)

    def all(self, cell: Cell) -> list[str]:
        """Run whatever the plan names; the stages that were needed."""
        work = plan(self.benchmark, self.store).work()
        stages = [stage for one in work for stage in one.stages]
        for stage in stages:
            assert self.run(cell, stage)["outcome"] == "done"
        return [stage.partition(":")[0] for stage in stages]

    def result(self, cell: Cell) -> Run:
        (run,) = self.store.runs(cell.id)
        return run

    def bodies(self, cell: Cell) -> dict[str, str]:
        return {record.path.name: record.digest for record in self.result(cell).records()}


@pytest.fixture
def house(tmp_path: Path) -> House:
    torch.set_num_threads(1)
    return House(tmp_path)


@pytest.fixture
def dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A plugin folder with methods that misbehave."""
    folder = tmp_path / "plugins" / "methods"
    folder.mkdir(parents=True)
    for name, text in PLUGINS.items():
        (folder / f"{name}.py").write_text(text)
    import ltbench.methods

    monkeypatch.setenv("LTBENCH_PLUGINS", "")
    before = list(ltbench.methods.__path__)
    plugins.use([folder.parent])
    yield folder
    ltbench.methods.__path__[:] = before


def test_a_cell_leaves_records_that_say_everything(house: House) -> None:
    cell = house.cell()
    assert house.all(cell) == ["train", "evaluate", "evaluate"]
    assert house.all(cell) == []
    run = house.result(cell)
    train = [record for record in run.records() if record.kind == "train"]
    assert [record.step for record in train] == [4, 8]
    assert train[1].body["curve"]["step"] == [2, 4, 6, 8]
    assert set(train[1].body["curve"]["terms"]) == {"denoise", "denoise/head", "denoise/body", "denoise/tail"}
    assert all(value > 0 for value in train[1].body["curve"]["grad_norm"])
    assert train[1].envelope["memory_bytes"] > 1e6
    assert torch.__version__.startswith(train[1].envelope["versions"]["torch"])
    for record in run.records("evaluation"):
        body = record.body
        assert {row["group"] for row in body["rows"]} == {"all", "head", "body", "tail"}
        assert {row["metric"] for row in body["rows"]} == set(PROTOCOLS["small-data"].metrics)
        assert all(row["n_gen"] and row["n_ref"] for row in body["rows"])
        assert load_milestone(run.milestones, record.step)[1]["sha256"] == body["milestone"]
        for fact in body["facts"].values():
            assert run.facts.read(fact["file"])[:4] == b"\x89PNG"


def test_a_further_milestone_continues_the_run(house: House, tmp_path: Path) -> None:
    first = house.cell(milestones="[4]")
    house.all(first)
    longer = house.cell(milestones="[4, 8]")
    assert longer.id == first.id
    assert house.all(longer) == ["train", "evaluate"]
    other = House(tmp_path / "other")
    at_once = other.cell(milestones="[4, 8]")
    other.all(at_once)
    assert house.bodies(longer) == other.bodies(at_once)


def test_an_earlier_milestone_is_trained_again_from_below_it(house: House, tmp_path: Path) -> None:
    house.all(house.cell(milestones="[8]"))
    both = house.cell(milestones="[3, 8]")
    assert house.all(both) == ["train", "evaluate"]
    other = House(tmp_path / "other")
    at_once = other.cell(milestones="[3, 8]")
    other.all(at_once)
    assert house.bodies(both) == other.bodies(at_once)


def test_a_changed_evaluation_never_retrains(house: House) -> None:
    house.all(house.cell())
    assert house.all(house.cell(guidance="[1.5, 3.0]")) == ["evaluate", "evaluate"]


def test_the_micro_batch_changes_no_id_and_hardly_a_number(house: House, tmp_path: Path) -> None:
    cell = house.cell(milestones="[8]")
    house.run(cell, "train:8")
    other = House(tmp_path / "other")
    again = other.cell(milestones="[8]")
    other.run(again, "train:8", micro_batch=6)
    assert cell.id == again.id
    a = load_milestone(house.result(cell).milestones, 8)[0]
    b = load_milestone(other.result(again).milestones, 8)[0]
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=1e-3, atol=1e-5)


def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_used(house: House, tmp_path: Path) -> None:
    short, cell = house.cell(milestones="[4]"), house.cell(milestones="[4, 8]")
    house.run(short, "train:4", checkpoint_seconds=0.0)
    run = house.result(cell)
    newest = max(run.checkpoints.glob("step-*"))
    damaged = newest / "model.safetensors"
    data = bytearray(damaged.read_bytes())
    data[-5] ^= 16
    damaged.write_bytes(bytes(data))
    assert house.run(cell, "train:4,8")["outcome"] == "done"
    said = [event["message"] for event in house.events if event["type"] == "notice"]
    assert any("damaged" in line and "step-000000004" in line for line in said)
    assert "resuming from step 3" in said
    other = House(tmp_path / "other")
    whole = other.cell()
    other.run(whole, "train:4,8")
    assert house.bodies(cell) == other.bodies(whole)


def test_a_loss_that_diverges_stops_its_cell_with_evidence(house: House, dropped: Path) -> None:
    cell = house.cell(method="poison")
    failed = house.run(cell, "train:4,8")
    assert (failed["outcome"], failed["cause"], failed["step"]) == ("failed", "nan", 5)
    run = house.result(cell)
    (failure,) = run.failures("train")
    assert failure["evidence"]["terms"]["denoise"] == "inf"
    assert len(failure["evidence"]["rows"]) > 1
    assert [record.step for record in run.records("train")] == [4]
    assert all(value.isfinite().all() for value in load_milestone(run.milestones, 4)[0].values())
    assert max(run.checkpoints.iterdir()).name.startswith("step-000000004")
    (planned,) = plan(house.benchmark, house.store).cells
    assert (planned.state, planned.cause) == ("failed", "nan")


@pytest.mark.parametrize(
    ("method", "cause", "says"),
    [
        ("raiser", "plugin", "no such loss"),
        ("wrongly", "plugin", r"term 'pixels' of loss\(\) must be a scalar or \(12,\) tensor"),
        ("ddpm", "unsupported", "sit is the one here"),
    ],
)
def test_failures_are_classed_and_say_why(
    house: House, dropped: Path, method: str, cause: str, says: str
) -> None:
    cell = house.cell(method=method)
    failed = house.run(cell, "train:4,8")
    assert (failed["outcome"], failed["cause"]) == ("failed", cause)
    (failure,) = house.result(cell).failures("train")
    assert re.search(says, failure["message"])
    assert "Traceback" in failure["traceback"]


def test_a_failure_is_cut_short_after_its_secrets_are_hidden(house: House, dropped: Path) -> None:
    cell = house.cell(method="spills")
    failed = house.run(cell, "train:4,8")
    (failure,) = house.result(cell).failures("train")
    for text in (failed["message"], failure["message"], failure["traceback"]):
        assert "TOKEN=[hidden]" in text
        assert "canary" not in text


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (StorageProblem(Path("store"), OSError(errno.EIO, "Input/output error")), "disk"),
        (OSError(errno.ENOSPC, "No space left on device"), "disk"),
        (OSError(errno.EDQUOT, "Disk quota exceeded"), "disk"),
        (EnvironmentProblem("/workspace/data/train.npz: the file is damaged"), "data"),
        (FileNotFoundError(errno.ENOENT, "No such file", "/workspace/read-only/x"), "data"),
    ],
)
def test_only_a_disk_that_refuses_is_a_disk_failure(error: Exception, cause: str) -> None:
    """A disk failure ends the whole run, so a path's words must not make one."""
    assert failure_cause(error) == cause


def test_a_plugins_own_disk_is_its_own_failure(house: House, dropped: Path) -> None:
    failed = house.run(house.cell(method="fills"), "train:4,8")
    assert (failed["outcome"], failed["cause"]) == ("failed", "plugin")


def test_weights_that_are_gone_are_named_and_made_again(house: House) -> None:
    cell = house.cell()
    house.run(cell, "train:4,8")
    shutil.rmtree(house.result(cell).milestones / "step-000000004")
    key = next(iter(cell.evaluations))
    failed = house.run(cell, f"evaluate:4:{key}")
    assert failed["outcome"] == "failed"
    assert "step-000000004 does not exist" in failed["message"]
    assert house.all(cell) == ["train", "evaluate", "evaluate"]


def test_a_stage_that_somebody_runs_is_left_to_them(house: House) -> None:
    cell = house.cell()
    run = house.store.run(cell.id, run_of(cell))
    with run.claim("train"):
        child = os.fork()
        if child == 0:
            outcome = house.run(cell, "train:4,8")
            said = [event for event in house.events if event["type"] == "held"]
            good = outcome["outcome"] == "held" and f"pid {os.getppid()}" in said[0]["message"]
            os._exit(0 if good else 1)
        assert os.waitpid(child, 0)[1] == 0
    assert not run.records()


def test_a_stop_leaves_a_checkpoint_and_the_next_call_goes_on(house: House, tmp_path: Path) -> None:
    cell = house.cell()
    steps = iter([False] * 5 + [True])
    places = (str(house.store.root), str(house.store.scratch))
    stopped = run_job(*places, cell.id, run_of(cell), "train:4,8", OPTIONS, stop=lambda: next(steps))
    assert stopped == {"outcome": "preempted", "step": 5}
    assert house.run(cell, "train:4,8")["outcome"] == "done"
    other = House(tmp_path / "other")
    whole = other.cell()
    other.run(whole, "train:4,8")
    assert house.bodies(cell) == other.bodies(whole)


def test_settings_and_evaluation_travel_as_json(house: House) -> None:
    cell = house.cell()
    assert json.loads(json.dumps(cell.settings)) == house.store.cell(cell.id)["settings"]


def test_code_edited_after_the_plan_is_refused(house: House, dropped: Path) -> None:
    cell = house.cell(method="poison")
    planned = run_of(cell)
    file = dropped / "poison.py"
    file.write_text(file.read_text().replace("self.left -= 1", "self.left -= 2"))
    provenance.forget()
    places = (str(house.store.root), str(house.store.scratch))
    failed = run_job(*places, cell.id, planned, "train:4,8", OPTIONS)
    assert failed["outcome"] == "failed"
    assert "poison.py: method `Poison.loss` changed" in failed["message"]
    assert not house.store.run(cell.id, planned).records()


def test_a_changed_default_trains_with_the_new_value(house: House, dropped: Path) -> None:
    """The id stays, the run does not: the job takes its settings from the run, never from the first plan."""
    file = dropped / "poison.py"
    old = house.cell(method="poison", milestones="[2]")
    house.run(old, "train:2")
    file.write_text(file.read_text().replace("good: int = 4", "good: int = 50"))
    provenance.forget()
    new = house.cell(method="poison", milestones="[2]")
    assert new.id == old.id
    (planned,) = plan(house.benchmark, house.store).cells
    assert planned.state == "stale"
    assert house.all(new) == ["train", "evaluate"]
    runs = {run.info()["settings"]["method"]["good"] for run in house.store.runs(new.id)}
    assert runs == {4, 50}


def test_a_cell_that_needs_too_much_memory_goes_on_with_smaller_micro_batches(
    house: House, dropped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Same cell, same run, from its last checkpoint; and a number that cannot be is refused with those that can."""
    import ltbench.methods.sit as module

    plain, held = module.SiT.loss, []

    def greedy(self: Any, net: Any, draw: Any) -> Any:
        held.append(len(draw.y))
        if len(held) > 6 and len(draw.y) > 6:
            raise torch.OutOfMemoryError("too large")
        return plain(self, net, draw)

    monkeypatch.setattr(module.SiT, "loss", greedy)
    cell = house.cell()
    failed = house.run(cell, "train:4,8", checkpoint_seconds=0.0)
    assert (failed["outcome"], failed["cause"]) == ("failed", "oom")
    refused = house.run(cell, "train:4,8", micro_batch=8)
    assert refused["outcome"] == "failed"
    assert "micro_batch 8 is not a whole number of local batches (6)" in refused["message"]
    assert house.result(cell).failures("train")[-1]["cause"] == "code"
    done = house.run(cell, "train:4,8", micro_batch=6)
    assert done == {"outcome": "done", "step": 8}
    assert "resuming from step 6" in [e["message"] for e in house.events if e["type"] == "notice"]
    assert held == [12] * 7 + [6] * 4
    assert len(house.store.runs(cell.id)) == 1


def test_a_step_that_fails_because_a_child_died_of_the_stop_signal_is_no_failure(
    house: House, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SLURM's SIGTERM reaches every process: a loader's, started by spawn, dies of it before the step is over."""
    import subprocess

    import ltbench.methods.sit as module

    plain, stopped, seen = module.SiT.loss, [], [0]

    def loading(self: Any, net: Any, draw: Any) -> Any:
        seen[0] += 1
        if seen[0] == 4:
            child = subprocess.Popen(["sleep", "60"])
            child.terminate()
            stopped.append(True)
            raise RuntimeError(f"a loader exited unexpectedly with code {child.wait()}")
        return plain(self, net, draw)

    monkeypatch.setattr(module.SiT, "loss", loading)
    cell = house.cell()
    places = (str(house.store.root), str(house.store.scratch))
    arguments = (*places, cell.id, run_of(cell), "train:4,8", OPTIONS)
    ended = run_job(*arguments, stop=lambda: bool(stopped))
    assert (ended["outcome"], ended["step"]) == ("preempted", 3)
    assert "exited unexpectedly" in ended["message"]
    assert house.result(cell).failures("train") == []
    stopped.clear()
    assert house.run(cell, "train:4,8") == {"outcome": "done", "step": 8}
    assert "resuming from step 3" in [e["message"] for e in house.events if e["type"] == "notice"]
    other = House(tmp_path / "other")
    monkeypatch.undo()
    assert other.run(other.cell(), "train:4,8")["outcome"] == "done"
    assert house.bodies(cell) == other.bodies(other.cell())
