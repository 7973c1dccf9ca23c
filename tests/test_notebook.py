"""docs/notebook.md, executed block by block on a tiny store that was really trained."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from ltbench import plan, spec
from ltbench.job import run_job
from ltbench.spec.cells import expand
from ltbench.store import Store

PAGE = Path(__file__).resolve().parents[1] / "docs" / "notebook.md"
SPEC = """
name: notes
dataset: {name: digits, imbalance: 0.1, resolution: 16}
pipeline: sit
network: SiT-N/4
train: {batch: 12, local_batch: 6, milestones: [2, 4]}
evaluate: [{protocol: small-data, sampler: euler, steps: 2, guidance: 1.5, samples: 40, block: 20}]
grid: {method: [sit, dispersive], seed: 0}
"""


@pytest.fixture
def trained(tmp_path, monkeypatch) -> Store:
    monkeypatch.setenv("LTBENCH_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("LTBENCH_SCRATCH", str(tmp_path / "scratch"))
    (tmp_path / "notes.yaml").write_text(SPEC)
    store = Store.open()
    benchmark = spec.load(tmp_path / "notes.yaml")
    plan.register(expand(benchmark), store)
    options = {"checkpoint_seconds": 3600.0, "log_every": 2, "threads": 1, "device": "cpu"}
    for work in plan.plan(benchmark, store).work():
        for stage in work.stages:
            done = run_job(
                str(store.root),
                str(store.scratch),
                work.cell.id,
                work.run,
                stage,
                options,
                lambda event: None,
                lambda: False,
            )
            assert done["outcome"] == "done", done
    return store


def test_every_block_of_the_page_runs(trained, capsys):
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 6
    names: dict = {}
    for number, block in enumerate(blocks, 1):
        exec(compile(block, f"{PAGE.name}, block {number}", "exec"), names)
    said = capsys.readouterr().out
    assert "of 2 cells" in said
    assert names["images"].shape == (2, 1, 16, 16)
    assert sorted(names["table"]["mean"].index) == ["dispersive", "sit"]
    assert (names["table"]["count"] == 1).all(axis=None)
