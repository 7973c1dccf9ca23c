"""C1: how long training stands still for a checkpoint, beside torch.save of the same state, and that it goes on bit for bit."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from turns import in_turns, seconds  # beside this file
from worlds import World

from ltbench.checkpoint import newest_checkpoint, save_checkpoint
from ltbench.trainer import Trainer

CPU_SIZES = {"SiT-T/2, 16x16, batch 8": World("SiT-T/2", "sit", (4, 16, 16), 8, 8, latents=True)}
TINY = {"SiT-N/4, 8x8, batch 4": World("SiT-N/4", "sit", (4, 8, 8), 4, 4, images=64, latents=True)}


def measure(device: torch.device, sizes: dict[str, World] | None = None, turns: int = 3) -> dict[str, Any]:
    """Per size: megabytes, milliseconds of both sides, ours in steps of this cell. Wall time goes to the disk; this is CPU time."""
    return {name: _world(world, device, turns) for name, world in (sizes or CPU_SIZES).items()}


def _world(world: World, device: torch.device, turns: int) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        trainer = world.trainer("sit", device)
        trainer.advance()
        save(trainer, folder / "first")
        resumed = world.trainer("sit", device)
        found = newest_checkpoint(folder / "first", cell="cell", run="run")
        assert found is not None, "it was just written"
        resumed.load(found.tensors, found.state)
        for _ in range(2):
            trainer.advance()
            resumed.advance()
        apart = different(trainer, resumed)
        assert not apart, f"what was resumed differs from what went on: {', '.join(apart[:5])}"
        step = seconds(trainer.advance, 3, device) / 3
        count = iter(range(10_000))
        sides = {
            "ours": lambda: save(trainer, folder / f"ours-{next(count)}"),
            "torch_save": lambda: _plain(trainer, folder / f"plain-{next(count)}.pt"),
        }
        told = in_turns(sides, device, turns=turns)
        size = sum(path.stat().st_size for path in (folder / "first").rglob("*") if path.is_file())
        for each in (trainer, resumed):
            each.close()
    steps = round(told.ms("ours") / 1e3 / step, 2)
    return {"megabytes": round(size / 1e6, 1), **told.told(), "steps": steps, "resumed": "bit for bit"}


def save(trainer: Trainer, folder: Path) -> None:
    """What the training stage calls: sums, flush to the disk, read back and compare."""
    tensors, state = trainer.state()
    save_checkpoint(folder, trainer.step, tensors, state, cell="cell", run="run", attempt=1)


def _plain(trainer: Trainer, path: Path) -> None:
    """The official way: one pickle, nothing checked."""
    tensors, state = trainer.state()
    torch.save({**tensors, "state": state}, path)


def different(a: Trainer, b: Trainer) -> list[str]:
    """Names of tensors whose bits differ, and `state`."""
    (left, told), (right, other) = a.state(), b.state()

    def flat(tensors: Any) -> dict[str, Tensor]:
        return {
            f"{group}/{name}": value for group, inside in tensors.items() for name, value in inside.items()
        }

    mine, theirs = flat(left), flat(right)
    assert mine.keys() == theirs.keys(), "both have the same tensors"
    return [name for name in mine if not torch.equal(mine[name], theirs[name])] + ["state"] * (told != other)
