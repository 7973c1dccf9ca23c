"""Cells that begin at other weights: what they begin at, what resumes, what waits for what, and what a table says of it."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
from pathlib import Path
from typing import Any

import pytest
import torch

from ltbench import spec
from ltbench.checkpoint import load_milestone, weights_sha256
from ltbench.datasets import build_dataset
from ltbench.external import LABELS
from ltbench.job import run_job
from ltbench.launch.work import CellWork, Queue
from ltbench.methods import load_method
from ltbench.networks import build_network
from ltbench.parts import build_parts
from ltbench.plan import Plan, plan, register
from ltbench.plan.work import Work
from ltbench.provenance import components
from ltbench.spec.cells import Cell
from ltbench.start import StartProblem, settle, start
from ltbench.store import Run, Store
from ltbench.trainer import Trainer
from tests import cli_world, released
from tests.cli_world import fake
from tests.killing import attempt

cli, here = cli_world.cli, cli_world.here  # fixtures
OPTIONS = {"checkpoint_seconds": 0.0, "log_every": 2, "threads": 1, "device": "cpu"}
TEXT = """
name: starts
dataset: {name: digits, imbalance: 0.1, resolution: 16}
pipeline: PIPELINE
network: NETWORK
train: {batch: 12, local_batch: 6, milestones: [3, 6], lr: 1e-3, ema: 0.9, dropout: DROPOUT}
evaluate: []
grid: {method: [METHODS], seed: 0}
"""
TUNED = "{name: cbdm, preset: finetune, init: {method: BASE, step: 3}}"


class House:
    """A store of its own and what is planned in it."""

    def __init__(self, folder: Path, methods: str, pipeline: str = "sit") -> None:
        values = {"PIPELINE": pipeline, "NETWORK": "SiT-N/4", "DROPOUT": "0.0"}
        if pipeline == "ddpm":
            values |= {"NETWORK": "UNet-16", "DROPOUT": "0.1"}
        text = TEXT.replace("METHODS", methods)
        for name, value in values.items():
            text = text.replace(name, value)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "starts.yaml").write_text(text.replace("BASE", pipeline))
        self.folder, self.spec = folder, spec.load(folder / "starts.yaml")
        self.log = folder / "log"

    @property
    def store(self) -> Store:
        return Store.open(self.folder / "store", self.folder / "scratch")

    def plan(self) -> Plan:
        return plan(self.spec, self.store)

    def do(self, work: Work, **options: Any) -> list[dict[str, Any]]:
        given = {**OPTIONS, **({"start": work.start} if work.start else {})}
        where = (str(self.folder / "store"), str(self.folder / "scratch"))
        return [run_job(*where, work.cell.id, work.run, stage, given, **options) for stage in work.stages]

    def all(self) -> None:
        found = self.plan()
        register([item.cell for item in found.cells], self.store)
        for work in sorted(found.work(), key=lambda work: work.after is not None):
            assert [done["outcome"] for done in self.do(work)] == ["done"] * len(work.stages)

    def work(self, label: str) -> Work:
        found = self.plan()
        register([item.cell for item in found.cells], self.store)
        return next(work for work in found.work() if work.cell.label == label)

    def run(self, cell: Cell) -> Run:
        (run,) = self.store.runs(cell.id)
        return run

    def cell(self, label: str) -> Cell:
        return next(item.cell for item in self.plan().cells if item.cell.label == label)


def trainer(cell: Cell) -> Trainer:
    method = load_method(cell.settings["method"]["name"])
    parts = build_parts(cell.settings, build_dataset(cell.settings["dataset"]), method, torch.device("cpu"))
    return Trainer(parts, 12, 2)


# --- what a cell begins at --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pipeline", ["sit", "ddpm"])
def test_a_cell_begins_at_the_ema_weights_bit_for_bit(tmp_path, pipeline):
    house = House(tmp_path, f"{pipeline}, {TUNED}", pipeline)
    house.all()
    source, own = house.cell(pipeline), house.cell(f"cbdm (preset=finetune, init={pipeline}@3)")
    kept, _ = load_milestone(house.run(source).milestones, 3)
    loop = trainer(own)
    assert any(not torch.equal(kept[name], loop.ema.shadow[name]) for name in kept)
    start(loop, own.settings["init"], house.store, None)
    live = loop.parts.objective.network.state_dict()
    assert live.keys() == loop.ema.shadow.keys() == kept.keys()
    assert all(
        torch.equal(live[name], kept[name]) and torch.equal(loop.ema.shadow[name], kept[name])
        for name in kept
    )
    assert (loop.step, loop.optimizer.state, loop.curve.columns()["step"]) == (0, {}, [])


def test_what_it_began_at_is_kept_in_its_records(tmp_path):
    house = House(tmp_path, f"sit, {TUNED}")
    house.all()
    source, own = house.cell("sit"), house.cell("cbdm (preset=finetune, init=sit@3)")
    sha = {record.step: record.body["milestone"] for record in house.run(source).records("train")}
    first, last = house.run(own).records("train")
    assert first.body["init"] == last.body["init"]
    told = first.body["init"]
    assert told["sha256"] == told["weights"] == sha[3]
    assert (told["cell"], told["run"], told["step"]) == (source.id, house.run(source).run, 3)
    assert (told["prior_steps"], told["classes"]) == (3, "keep")
    assert first.body["settings"]["init"]["prior_steps"] == 3
    assert all("init" not in record.body for record in house.run(source).records("train"))
    _, info = load_milestone(house.run(own).milestones, 6)
    assert info["init"] == told


def test_killed_and_resumed_equals_uninterrupted(tmp_path):
    methods, label = f"sit, {TUNED}", "cbdm (preset=finetune, init=sit@3)"
    calm = House(tmp_path / "calm", methods)
    calm.all()
    rough = House(tmp_path / "rough", methods)
    rough.do(rough.work("sit"))
    work = rough.work(label)

    def dying_after(steps: int):
        def body() -> None:
            left = [steps]

            def stop() -> bool:
                left[0] -= 1
                if left[0] < 0:
                    os.kill(os.getpid(), signal.SIGKILL)
                return False

            rough.do(work, stop=stop)

        return body

    for steps in (0, 1, 4):  # before the first step; before the first milestone; between the two
        assert not attempt(dying_after(steps), rough.log)
    (milestone,) = rough.run(rough.cell("sit")).milestones.glob("step-000000003")
    milestone.rename(
        tmp_path / "away"
    )  # the start is in the checkpoint by now: the source is not needed any more
    assert rough.work(label).after is not None
    assert {item.cell.label for item in rough.plan().cells if item.due} == {label}
    assert [done["outcome"] for done in rough.do(work)] == ["done"]
    told = [
        [(record.step, record.digest) for record in house.run(house.cell(label)).records("train")]
        for house in (calm, rough)
    ]
    assert told[0] == told[1]
    assert [step for step, _ in told[0]] == [3, 6]


def test_the_table_of_classes_is_settled_by_its_rule():
    for name, channels in (("SiT-N/4", 1), ("UNet-16", 1)):
        old = build_network(name, channels=channels, resolution=16, classes=4)
        new = build_network(name, channels=channels, resolution=16, classes=6)
        nulls = new.state_dict()[LABELS].shape[0] - 6
        weights = {key: value.detach().clone() for key, value in old.state_dict().items()}
        table = weights[LABELS]
        with pytest.raises(
            StartProblem, match=rf"{LABELS}: \({4 + nulls}, \d+\), and the network has \({6 + nulls}, "
        ):
            settle(weights, new, "keep")
        mean = settle(weights, new, "mean")[LABELS]
        assert mean.shape[0] == 6 + nulls
        torch.testing.assert_close(mean[:6], table[:4].mean(0).expand(6, -1))
        assert torch.equal(mean[6:], table[4:])
        fresh = settle(weights, new, "fresh")[LABELS]
        assert torch.equal(fresh[:6], new.state_dict()[LABELS][:6])
        assert torch.equal(fresh[6:], table[4:])
        del weights[LABELS]
        assert torch.equal(settle(weights, new, "fresh")[LABELS], new.state_dict()[LABELS])
        with pytest.raises(StartProblem, match="have none"):
            settle(weights, new, "mean")


def test_an_embedding_of_augmentations_comes_and_goes():
    """Networks with and without it are the same function of an image that was not moved."""
    network = build_network("UNet-16", channels=1, resolution=16, classes=4)
    plain = {name: tensor.detach().clone() for name, tensor in network.state_dict().items()}
    assert (
        settle({**plain, "embed_augment.weight": torch.ones(64, 9)}, network, "keep").keys() == plain.keys()
    )
    network.embed_augment = torch.nn.Linear(9, 64, bias=False)
    settled = settle(plain, network, "keep")
    assert torch.equal(settled["embed_augment.weight"], network.state_dict()["embed_augment.weight"])
    settled = settle({**plain, "embed_augment.weight": torch.ones(64, 9)}, network, "keep")
    assert torch.equal(settled["embed_augment.weight"], torch.ones(64, 9))


# --- files ------------------------------------------------------------------------------------------------------------


def unet_file(
    folder: Path, *, classes: int | None = 10, step: int = 199, name: str = "ddpm.pt"
) -> tuple[Path, str]:
    made = {
        "base": 16,
        "multipliers": (1, 2, 2),
        "attention": (1,),
        "count": 1,
        "channels": 1,
        "classes": classes,
    }
    state = released.unet_state(**made)
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(released.cbdm_file(state, state, step=step), folder / name)
    return folder / name, hashlib.sha256((folder / name).read_bytes()).hexdigest()


def tuned_from(path: Path, sha: str, **more: Any) -> str:
    given = {"checkpoint": path, "sha256": sha, "prior_steps": 200, **more}
    return f"{{name: cbdm, init: {{{', '.join(f'{key}: {value}' for key, value in given.items())}}}}}"


def test_a_cell_begins_at_a_released_file(tmp_path):
    path, sha = unet_file(tmp_path / "data")
    house = House(tmp_path, tuned_from(path, sha), "ddpm")
    (work,) = house.plan().work()
    assert work.start == str(path)
    house.all()
    (record, _) = house.run(work.cell).records("train")
    told = record.body["init"]
    assert (told["sha256"], told["family"], told["state"], told["prior_steps"]) == (
        sha,
        "ddpm",
        "ema_model",
        200,
    )
    assert str(path) not in json.dumps(record.body)
    loop = trainer(work.cell)
    start(loop, work.cell.settings["init"], house.store, str(path))
    assert told["weights"] == weights_sha256(loop.ema.shadow)
    ema = torch.load(path, weights_only=False)["ema_model"]
    assert torch.equal(loop.ema.shadow["inlet.weight"], ema["head.weight"])
    assert torch.equal(loop.ema.shadow[LABELS], ema["label_embedding.weight"])


@pytest.mark.parametrize(
    ("file", "more", "said"),
    [
        ({"step": 5000}, {}, "is of step 5000, and prior_steps is 200"),
        ({"classes": None}, {}, "missing: label_embedding.weight"),
        ({"classes": None}, {"classes": "mean"}, "have none"),
        ({"classes": 4}, {}, "misshapen: label_embedding.weight is (4, 64), expected (10, 64)"),
        ({}, {"family": "sit"}, "weights of family sit are a SiT's"),
    ],
)
def test_a_file_that_does_not_fit_fails_its_cell_with_the_reason(tmp_path, file, more, said):
    path, sha = unet_file(tmp_path / "data", **file)
    house = House(tmp_path, tuned_from(path, sha, **more), "ddpm")
    found = house.plan()
    register([item.cell for item in found.cells], house.store)
    (done,) = house.do(found.work()[0])
    assert (done["outcome"], done["cause"]) == ("failed", "data")
    assert said in done["message"]


def test_other_classes_can_be_started_from(tmp_path):
    path, sha = unet_file(tmp_path / "data", classes=None)
    House(tmp_path / "fresh", tuned_from(path, sha, classes="fresh"), "ddpm").all()
    path, sha = unet_file(tmp_path / "data", classes=4, name="four.pt")
    House(tmp_path / "mean", tuned_from(path, sha, classes="mean"), "ddpm").all()


# --- plan -------------------------------------------------------------------------------------------------------------


def test_a_source_outside_the_grid_is_added_and_says_for_whom(tmp_path):
    house = House(tmp_path, TUNED)
    added, own = house.plan().cells
    assert added.reason == "added: cbdm (preset=finetune, init=sit@3) starts from its step 3"
    assert [due.stage for due in added.due] == ["train:3"]
    assert (added.cell.label, added.cell.evaluations, added.cell.milestones) == ("sit", {}, (3,))
    assert [due.stage for due in own.due] == ["train:3,6"]
    house.all()
    assert {item.state for item in house.plan().cells} == {"done"}
    assert len(house.plan().cells) == 1, "a finished cell needs no source any more"


def test_sources_of_sources_come_first(tmp_path):
    inner = "{method: dispersive, step: 3, init: {method: sit, step: 6}}"
    house = House(tmp_path, f"{{name: cbdm, init: {inner}}}")
    assert [item.cell.label for item in house.plan().cells] == [
        "sit",
        "dispersive (init=sit@6)",
        "cbdm (init=dispersive@3 (init=[sit@6]))",
    ]
    assert [work.after is None for work in house.plan().work()] == [True, False, False]


def test_a_source_that_lost_its_weights_is_trained_again(tmp_path):
    house = House(tmp_path, "sit")
    house.all()
    (milestone,) = house.run(house.cell("sit")).milestones.glob("step-000000003")
    milestone.rename(tmp_path / "away")
    assert house.plan().counts() == {"done": 1}, "nothing needs them"
    both = House(tmp_path, f"sit, {TUNED}")
    source, _ = both.plan().cells
    assert [due.stage for due in source.due] == ["train:3"]
    assert source.state == "partial"
    assert "starts from its step 3, and its weights are gone" in source.reason
    both.all()
    assert both.plan().counts() == {"done": 2}


def test_two_steps_of_one_source_are_one_cell(tmp_path):
    house = House(
        tmp_path, "{name: cbdm, init: {method: sit, step: 3}}, {name: ccua, init: {method: sit, step: 5}}"
    )
    (source,) = [work for work in house.plan().work() if work.after is None]
    assert source.stages == ("train:3,5",)


def test_changed_code_of_the_source_makes_its_heirs_stale(tmp_path, monkeypatch):
    """Their weights were made by it; nobody else's were."""
    house = House(tmp_path, f"sit, ccua, {TUNED}")
    house.all()
    original = components.plugin

    def changed(kind: str, name: str) -> dict[str, Any]:
        found = original(kind, name)
        if (kind, name) != ("methods", "sit"):
            return found
        return {"digest": "0" * 64, "files": {"methods/sit.py": {"method SiT.loss": "0" * 8}}}

    changed.cache_clear = original.cache_clear  # type: ignore[attr-defined]
    monkeypatch.setattr(components, "plugin", changed)
    found = {item.cell.label: item for item in house.plan().cells}
    tuned = found["cbdm (preset=finetune, init=sit@3)"]
    assert (found["sit"].state, tuned.state, found["ccua"].state) == ("stale", "stale", "done")
    assert any("methods/sit.py" in line for line in tuned.changes)


# --- queue ------------------------------------------------------------------------------------------------------------


def heirs() -> list[CellWork]:
    run = "r" * 12
    return [
        CellWork("c", "c", 0, ("train:2", "evaluate:2:e"), run, after=("b", 2)),
        CellWork("b", "b", 0, ("train:2,4", "evaluate:2:e"), run, after=("a", 3)),
        CellWork("a", "a", 0, ("train:3,9", "evaluate:9:e"), run),
    ]


def test_a_training_waits_for_the_milestone_that_it_begins_at():
    queue = Queue(heirs())
    first = queue.next()
    assert first is not None
    assert (first.cell, queue.next()) == ("a", None)
    queue.milestone("a", 3)
    second = queue.next()
    assert second is not None
    assert (second.cell, second.kind, queue.next()) == ("b", "train", None)
    queue.done(second)
    assert [job.cell for job in (queue.next(), queue.next()) if job] == ["c", "b"]
    assert Queue(heirs()[:1]).next() is not None, "trained already: nothing to wait for"


def test_heirs_of_a_failed_source_are_lost_with_it():
    queue = Queue(heirs())
    first = queue.next()
    assert first is not None
    lost = queue.drop(first)
    assert sorted((job.cell, job.kind) for job in lost) == [
        ("a", "evaluate"), ("b", "evaluate"), ("b", "train"), ("c", "evaluate"), ("c", "train")
    ]  # fmt: skip
    assert not queue
    late = Queue(heirs())
    job = late.next()
    assert job is not None
    late.milestone("a", 3)  # it failed later, and what b needs is there
    assert [(job.cell, job.kind) for job in late.drop(job)] == [("a", "evaluate")]
    assert late.next().cell == "b"  # pyright: ignore[reportOptionalMemberAccess]


# --- the command ------------------------------------------------------------------------------------------------------

LITTLE = """
name: little
dataset: {name: digits, imbalance: 0.1, resolution: 16}
pipeline: sit
network: SiT-N/4
train: {batch: 12, milestones: [4, 40], lr: 1e-3, ema: 0.9}
evaluate: [{protocol: small-data, sampler: euler, steps: 2, guidance: 1.5, samples: 40, block: 20}]
grid: {method: [METHODS], seed: [0]}
"""
HEIR = "{name: cbdm, preset: finetune, init: {method: sit, step: 4}}"


def test_a_real_run_with_two_workers_orders_and_tables_it(cli, here):
    """The heir stands first in the grid, starts as soon as step 4 is there, and the table says what it had before."""
    (here / "little.yaml").write_text(LITTLE.replace("METHODS", f"{HEIR}, sit"))
    code, out, err = cli("run", "little.yaml", "--workers", "2", "--device", "cpu")
    assert (code, "2 cells of little: 2 done" in out) == (0, True), out + err
    started = {
        name: err.index(f"{name} seed 0, train") for name in ("sit", "cbdm (preset=finetune, init=sit@4)")
    }
    assert started["sit"] < started["cbdm (preset=finetune, init=sit@4)"]
    store = Store.open(here / "store", here / "scratch", write=False)
    bodies = {record.body["settings"]["method"]["name"]: record.body for record in store.records()}
    assert bodies["cbdm"]["init"]["cell"] == bodies["sit"]["cell"]
    code, out, _ = cli("report", "little.yaml", "--format", "md,csv")
    assert code == 0
    (report,) = here.glob("reports/build/little/*.md")
    text = report.read_text()
    assert re.search(r"cbdm \\?\(preset=finetune, init=sit@4\\?\)[^\n|]*\|", text)
    cell = bodies["sit"]["cell"][:8]
    assert (
        f"4 prior steps; its own are counted from the EMA weights of sit@4 (cell {cell} for seed 0)" in text
    )
    assert "prior_steps=4" in next(here.glob("reports/build/little/*.csv")).read_text()
    assert "nothing to do" in cli("plan", "little.yaml")[1]


def test_a_filter_brings_the_source_in(cli, here):
    (here / "little.yaml").write_text(LITTLE.replace("METHODS", f"sit, {HEIR}"))
    code, out, _ = cli("plan", "little.yaml", "--filter", "method=cbdm", "--all")
    assert code == 0
    assert "added: cbdm (preset=finetune, init=sit@4) starts from its step 4" in out
    code, _, err = cli("run", "little.yaml", "--filter", "method=cbdm", "--job", "cli_jobs:run_job")
    assert code == 0
    assert [stage for cell, stage in cli_world.stages(err) if cell.startswith("sit")] == ["train"]
    assert "nothing to do" in cli("plan", "little.yaml", "--filter", "method=cbdm")[1]


def test_heirs_of_a_cell_that_failed_are_named_and_not_started(cli, here, monkeypatch):
    (here / "little.yaml").write_text(LITTLE.replace("METHODS", f"sit, {HEIR}"))
    fake(monkeypatch, "sit:0=nan")
    words = ("run", "little.yaml", "--job", "cli_jobs:run_job")
    code, out, err = cli(*words)
    assert (code, cli_world.stages(err)) == (1, [])
    assert "0 done, 1 failed, 1 unfinished" in out
    fake(monkeypatch, "")
    code, out, err = cli(*words)
    assert (code, cli_world.stages(err)) == (1, [])
    assert "the cell that it starts from was skipped" in err
    assert cli(*words, "--retry-failed")[0] == 0


def test_a_missing_file_stops_the_run_before_it_starts_and_not_the_report(cli, here):
    init = f"{{checkpoint: gone.pt, sha256: {'ab' * 32}, prior_steps: 9}}"
    (here / "little.yaml").write_text(LITTLE.replace("METHODS", f"{{name: sit, init: {init}}}"))
    for verb in ("validate", "plan", "run"):
        code, _, err = cli(verb, "little.yaml")
        assert code == 2
        assert re.search(r"little\.yaml:8:\d+: init\.checkpoint: there is no such file", err), err
    assert cli("report", "little.yaml")[0] == 0
