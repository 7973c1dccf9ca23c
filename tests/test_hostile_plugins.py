"""Hostile methods beside healthy ones, through the real launcher and the real job: they harm their own cells and nothing else."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import ltbench.methods
from ltbench import plugins, spec
from ltbench.cli import main
from ltbench.cli.running import _cell_work
from ltbench.job import run_job
from ltbench.launch.devices import Seats
from ltbench.launch.local import LocalRun, Settings
from ltbench.launch.recorder import Recorder
from ltbench.plan import plan, register
from ltbench.spec.cells import expand
from ltbench.store import Store
from tests.hostile_methods import CODE, FINISHES, source
from tests.test_launch import Notes

OPTIONS = {"checkpoint_seconds": 3600.0, "log_every": 2, "threads": 1, "device": "cpu"}
HEALTHY = ("sit", "cbdm", "dispersive")
SPEC = """
name: hostile
dataset: {{name: digits, imbalance: 0.1, resolution: 16}}
pipeline: sit
network: SiT-N/4
train: {{batch: 12, local_batch: 6, milestones: [4], lr: 1e-3, ema: 0.9}}
evaluate: [{{protocol: small-data, sampler: euler, steps: 1, guidance: 1, samples: 20, block: 20}}]
grid: {{method: [{methods}], seed: 0}}
"""
FAILURES = {
    "raises_on_import": ("plugin", "RuntimeError: not today"),
    "raises_in_init": ("plugin", "no such option"),
    "raises_at_step": ("plugin", "ValueError: enough"),
    "hangs_on_import": ("plugin", "hung: no word for"),
    "hangs_in_loss": ("plugin", "hung: no word for"),
    "gives_nan": ("nan", "non-finite loss or gradient at step 3"),
    "wrong_shape": ("plugin", "term 'pixels' of loss"),
    "exits": ("plugin", "sys.exit(3)"),
    "dies": ("plugin", "exited with code 7"),
    "eats_memory": ("oom", ""),
    "eats_tensors": ("oom", "can't allocate memory"),
    "changes_dtype": ("plugin", "changed torch's default dtype from torch.float32 to torch.float64"),
    "changes_dtype_on_import": ("plugin", "changed torch's default dtype"),
    "changes_grad_mode": ("plugin", "changed torch's grad mode from True to False"),
    "changes_threads": ("plugin", "changed torch's number of threads from 1 to 3"),
}


class House:
    """A store and a benchmark with these methods."""

    def __init__(self, folder: Path, *methods: str) -> None:
        folder.mkdir()
        self.path = folder / "hostile.yaml"
        self.path.write_text(SPEC.format(methods=", ".join(methods)))
        self.store = Store.open(folder / "store", folder / "scratch")
        self.benchmark = spec.load(self.path)
        self.cells = {cell.settings["method"]["name"]: cell for cell in expand(self.benchmark)}
        register(list(self.cells.values()), self.store)
        self.outcomes: dict[tuple[str, str], Any] = {}

    def launch(self, workers: int = 2) -> Notes:
        """Everything that is due, with the real launcher."""
        work = [_cell_work(one, self.benchmark, OPTIONS) for one in plan(self.benchmark, self.store).work()]
        logs = self.store.scratch / "logs"
        where = Settings(self.store.root, self.store.scratch, logs, Seats((None,) * workers, 1), hang=60.0)
        notes = Notes()
        names = {cell.id: name for name, cell in self.cells.items()}
        for outcome in LocalRun(work, where, notes, Recorder(self.store, notes.note)).run():
            self.outcomes[names[outcome.cell], outcome.stage.partition(":")[0]] = outcome
        return notes

    def stage(self, method: str, **more: Any) -> dict[str, Any]:
        """The next stage of a cell, in this process: training, then its evaluation."""
        cell = self.cells[method]
        (one,) = [work for work in plan(self.benchmark, self.store).work() if work.cell.id == cell.id]
        places = (str(self.store.root), str(self.store.scratch))
        return run_job(*places, cell.id, one.run, one.stages[0], OPTIONS, **more)

    def bodies(self, method: str) -> dict[str, str]:
        """Digest of every record of a method's cell, by kind and step."""
        (run,) = self.store.runs(self.cells[method].id)
        return {f"{record.kind} {record.step}": record.digest for record in run.records()}


@pytest.fixture(scope="module", autouse=True)
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The plugin folder, known to this process and to the workers that it starts."""
    torch.set_num_threads(1)
    where = tmp_path_factory.mktemp("hostile") / "methods"
    where.mkdir()
    for name in CODE:
        (where / f"{name}.py").write_text(source(name))
    paths = list(ltbench.methods.__path__)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("LTBENCH_PLUGINS", "")
        plugins.use([where.parent])
        yield where
    ltbench.methods.__path__[:] = paths


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> House:
    """The healthy cells alone."""
    house = House(tmp_path_factory.mktemp("clean") / "house", *HEALTHY)
    for name in HEALTHY:
        assert house.stage(name)["outcome"] == house.stage(name)["outcome"] == "done"
    return house


@pytest.fixture(scope="module")
def mixed(tmp_path_factory: pytest.TempPathFactory) -> House:
    """Every hostile cell, the healthy ones between and after them; two workers share them all."""
    names = [name for name in CODE if name != "leaves_a_thread"]
    order = [*names[:6], "dispersive", *names[6:], "sit", "cbdm"]
    house = House(tmp_path_factory.mktemp("mixed") / "house", *order)
    house.launch()
    return house


@pytest.mark.parametrize("name", HEALTHY)
def test_healthy_cells_are_as_if_they_were_alone(clean: House, mixed: House, name: str) -> None:
    assert len(clean.bodies(name)) == 2
    assert mixed.bodies(name) == clean.bodies(name)
    assert mixed.outcomes[name, "train"].outcome == mixed.outcomes[name, "evaluate"].outcome == "done"


@pytest.mark.parametrize("name", FAILURES)
def test_a_hostile_cell_fails_with_its_cause(mixed: House, name: str) -> None:
    cause, says = FAILURES[name]
    bad = mixed.outcomes[name, "train"]
    assert (bad.outcome, bad.cause) == ("failed", cause), bad.message
    assert says in bad.message
    assert mixed.outcomes[name, "evaluate"].outcome == "unreached"
    assert mixed.bodies(name) == {}, "no record comes from it"
    (run,) = mixed.store.runs(mixed.cells[name].id)
    (failure,) = run.failures("train")
    assert (failure["cause"], failure["message"]) == (cause, bad.message)


@pytest.mark.parametrize("name", [name for name in FINISHES if name != "leaves_a_thread"])
def test_what_can_be_contained_ends_with_a_result(mixed: House, name: str) -> None:
    assert mixed.outcomes[name, "train"].outcome == "done", mixed.outcomes[name, "train"].message
    assert len(mixed.bodies(name)) == 2


def test_status_and_report_name_what_failed(
    mixed: House, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LTBENCH_STORE", str(mixed.store.root))
    monkeypatch.setenv("LTBENCH_SCRATCH", str(mixed.store.scratch))
    told = {}
    for words in (["status", str(mixed.path)], ["report", str(mixed.path), "--format", "md"]):
        monkeypatch.setattr(sys, "argv", ["ltbench", *words])
        main()
        told[words[0]] = capfd.readouterr().out
    page = "".join(path.read_text() for path in tmp_path.rglob("*.md")).replace("\\_", "_")
    for name in FAILURES:
        assert re.search(rf"^{name}\b.*FAIL", told["status"], re.M), told["status"]
        assert re.search(rf"{name}\b.*(failed|n/a)", page), page
    assert "Traceback" not in told["status"] + told["report"] + page


@pytest.mark.parametrize(
    "name",
    [
        "changes_dtype",
        "changes_grad_mode",
        "changes_threads",
        "changes_cwd",
        "changes_environment",
        "changes_handlers",
        "changes_batch",
        "uses_global_random",
        "leaves_a_thread",
    ],
)
def test_the_next_cell_of_the_same_process_is_untouched(clean: House, tmp_path: Path, name: str) -> None:
    before = (os.getcwd(), dict(os.environ), torch.get_default_dtype(), torch.get_num_threads())
    house = House(tmp_path / "house", name, "cbdm")
    first = house.stage(name)
    assert (os.getcwd(), dict(os.environ), torch.get_default_dtype(), torch.get_num_threads()) == before
    assert torch.is_grad_enabled()
    assert first.get("retire", False) == (name == "leaves_a_thread"), (
        "only what cannot be put back asks for a new process"
    )
    assert house.stage("cbdm")["outcome"] == "done"
    assert house.bodies("cbdm")["train 4"] == clean.bodies("cbdm")["train 4"]


def test_a_method_that_draws_from_global_generators_repeats_also_when_resumed(
    mixed: House, tmp_path: Path
) -> None:
    name = "uses_global_random"
    torch.rand(7)
    house = House(tmp_path / "house", name)
    steps = iter([False, False, True])
    assert house.stage(name, stop=lambda: next(steps))["outcome"] == "preempted"
    torch.rand(5)
    assert house.stage(name)["outcome"] == "done"
    assert house.bodies(name)["train 4"] == mixed.bodies(name)["train 4"]


def test_a_hostile_method_is_one_line_of_the_plan(mixed: House) -> None:
    """Nothing of a plugin runs before its own cell does: a hang in an import does not stop a plan."""
    assert {item.state for item in plan(mixed.benchmark, mixed.store).cells} == {"failed", "done"}
