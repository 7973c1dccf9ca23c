"""kill -9 at any moment and the same command again: weights, EMA, optimiser, record bodies and the table are those of an
uninterrupted run, bit for bit. LTBENCH_KILLS sets the number of kills (200 here, 1,000 by `make faults`)."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest
import torch

from ltbench import spec
from ltbench.checkpoint import newest_checkpoint, weights_sha256
from ltbench.job import run_job
from ltbench.plan import plan, register
from ltbench.report.assemble import build_table
from ltbench.report.definition import load_definition
from ltbench.report.render_markdown import render_markdown
from ltbench.report.table import Inputs
from ltbench.spec.cells import Cell, expand
from ltbench.store import Store
from tests.faults import HOURS, tell
from tests.killing import attempt, count_calls, kill_until_done

KILLS = int(os.environ.get("LTBENCH_KILLS", "200"))

SPEC = """
name: killed
dataset: {{name: digits, imbalance: 0.1, resolution: 16}}
pipeline: {pipeline}
network: {network}
train: {{batch: 12, local_batch: 6, milestones: [4, 8], lr: 1e-3, ema: 0.9, dropout: {dropout}, label_drop: 0.2}}
evaluate: [{{protocol: small-data, sampler: {sampler}, steps: 2, guidance: 1.5, samples: 40, block: 20}}]
grid: {{method: [ccua], seed: 0}}
"""
CASES = {
    "sit": {"pipeline": "sit", "network": "SiT-N/4", "sampler": "euler", "dropout": 0.0},
    "ddpm": {"pipeline": "ddpm", "network": "UNet-16", "sampler": "ddim", "dropout": 0.1},
}
OPTIONS = {"checkpoint_seconds": 0.0, "log_every": 3, "preview_every": 3, "threads": 1, "device": "cpu"}


class House:
    """A store and a scratch of their own, and the command that does what is missing in them."""

    def __init__(self, folder: Path, benchmark: spec.Spec) -> None:
        self.store, self.scratch, self.log = folder / "store", folder / "scratch", folder / "log"
        self.benchmark = benchmark
        folder.mkdir(parents=True, exist_ok=True)

    def work(self) -> None:
        """What `run` does, in one process."""
        store = Store.open(self.store, self.scratch)
        register(expand(self.benchmark), store)
        for work in plan(self.benchmark, store).work():
            for stage in work.stages:
                done = run_job(str(self.store), str(self.scratch), work.cell.id, work.run, stage, OPTIONS)
                assert done["outcome"] == "done", done

    def settle(self) -> None:
        """Training state at the last milestone: a kill between its record and its checkpoint leaves the one before."""
        (cell,) = expand(self.benchmark)
        (run,) = Store.open(self.store, self.scratch, write=False).runs(cell.id)
        done = run_job(str(self.store), str(self.scratch), cell.id, run.run, "train:4,8", OPTIONS)
        assert done["outcome"] == "done", done

    def facts(self) -> dict[str, object]:
        """Everything that must be equal: record bodies, facts, milestones, the final training state, the table."""
        store = Store.open(self.store, self.scratch, write=False)
        (cell,) = expand(self.benchmark)
        (run,) = store.runs(cell.id)
        assert not store.damaged()
        final = newest_checkpoint(run.checkpoints, cell=run.cell, run=run.run)
        assert final is not None
        assert plan(self.benchmark, store).counts() == {"done": 1}
        tensors = {group: weights_sha256(named) for group, named in final.tensors.items()}
        return {
            "records": sorted((record.path.name, record.digest) for record in run.records()),
            "facts": sorted((path.name, path.read_bytes()) for path in (run.dir / "facts").iterdir()),
            "milestones": sorted(
                (path.parent.name, path.read_bytes()) for path in run.milestones.glob("*/ema.safetensors")
            ),
            "final": (final.step, tensors, final.state),
            "table": self.table(store, cell),
        }

    def table(self, store: Store, cell: Cell) -> str:
        """The rendered table, in Markdown."""
        inputs = Inputs(
            name="killed",
            title="killed",
            planned=[
                {
                    "cell": cell.id,
                    "label": cell.label,
                    "part": cell.part,
                    "settings": cell.settings,
                    "milestones": list(cell.milestones),
                    "evaluations": [{"id": key, **value} for key, value in cell.evaluations.items()],
                    "unsupported": None,
                }
            ],
            records=[
                {"body": record.body, "digest": record.digest, "envelope": record.envelope}
                for record in store.records()
            ],
            states={},
        )
        return render_markdown(build_table(inputs, load_definition(ROOT / "reports" / "summary.yaml")))


ROOT = Path(__file__).resolve().parents[1]


@pytest.mark.faults
@pytest.mark.timeout(3600 * HOURS)
@pytest.mark.parametrize("case", CASES)
def test_killed_anywhere_and_run_again_equals_uninterrupted(
    case: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.set_num_threads(1)
    path = tmp_path / "killed.yaml"
    path.write_text(SPEC.format(**CASES[case]))
    benchmark = spec.load(path)
    House(tmp_path / "warm", benchmark).work()  # imports that torch puts off happen here, before any fork
    whole = House(tmp_path / "whole", benchmark)
    started = time.monotonic()
    attempt(whole.work, whole.log)
    seconds = time.monotonic() - started
    expected = whole.facts()
    calls = count_calls(House(tmp_path / "counted", benchmark).work, tmp_path / "count")
    chance, timed, inside, houses = random.Random(20260101), 0, 0, 0
    while timed + inside < KILLS / 2 or inside < KILLS / 10:
        house = House(tmp_path / f"killed-{houses}", benchmark)
        more = kill_until_done(house.work, house.log, chance, seconds * 0.6, calls)
        timed, inside, houses = timed + more[0], inside + more[1], houses + 1
        assert attempt(house.settle, house.log)
        found = house.facts()
        for name, value in expected.items():
            assert found[name] == value, (
                f"{name} differ after {more[0]} kills by time, {more[1]} inside a write"
            )
        tell(capfd, f"{case}: {timed} kills by time, {inside} inside a write, {houses} runs, none differed")
