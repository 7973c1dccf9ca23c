"""Small checkpoints for tests: tensors that are functions of the step."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from ltbench.checkpoint import Loaded, newest_checkpoint, save_checkpoint, weights_sha256

CELL, RUN = "ab" * 32, "0123456789ab"


def groups(step: int) -> dict[str, dict[str, Tensor]]:
    weights = torch.arange(60, dtype=torch.float32).reshape(6, 10) * step
    return {
        "model": {"w": weights, "b": torch.tensor(float(step))},
        "ema": {"w": weights / 2, "b": torch.tensor(step, dtype=torch.bfloat16)},
        "optim": {"w/exp_avg": weights.to(torch.float64), "w/step": torch.tensor(step)},
        "method": {},
    }


def save(folder: Path, step: int, attempt: int = 1, run: str = RUN) -> Path:
    state = {"images_seen": 64 * step, "lr": 0.1}
    return save_checkpoint(folder, step, groups(step), state, cell=CELL, run=run, attempt=attempt)


def load(folder: Path) -> Loaded | None:
    return newest_checkpoint(folder, cell=CELL, run=RUN)


def loaded(folder: Path) -> Loaded:
    found = load(folder)
    assert found is not None, f"no checkpoint in {folder}"
    assert found.state == {"images_seen": 64 * found.step, "lr": 0.1}
    assert {name: weights_sha256(group) for name, group in found.tensors.items()} == {
        name: weights_sha256(group) for name, group in groups(found.step).items()
    }
    return found
