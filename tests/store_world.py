"""A store with one cell and one run, for tests of the store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ltbench import provenance
from ltbench.store import Run, Store

CELL, OTHER = "ab" * 32, "ab" * 31 + "cd"
SETTINGS = {"dataset": {"name": "toy", "imbalance": 0.01}, "method": {"name": "sit"}, "seed": 0}
CODE = {"trainer": {"digest": "11", "files": {"ltbench/trainer.py": {"train": "0a0b0c0d"}}}}
RUN = provenance.run_id(CODE, SETTINGS)


def make(folder: Path, lease: float = 60.0) -> Run:
    """The run in a store below `folder`."""
    store = Store.open(folder / "store", folder / "scratch", lease=lease)
    store.put_cell(CELL, {"dataset": {"name": "toy"}, "seed": 0}, SETTINGS)
    run = store.run(CELL, RUN)
    run.create(CODE, SETTINGS)
    return run


def evaluation(store: Store, value: float = 1.0, guidance: float = 1.5) -> dict[str, Any]:
    """The body of an evaluation record with one value in two groups."""
    told = {"protocol": "small-data", "guidance": guidance}
    rows = [{"metric": "FD", "group": group, "value": value, "n_gen": 500} for group in ("head", "tail")]
    return {"settings": SETTINGS, "evaluation": {"id": store.put_evaluation(told), **told}, "rows": rows}
