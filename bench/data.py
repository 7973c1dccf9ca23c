"""D1: what reading, gathering and drawing a batch costs beside the step that it feeds, at the shapes of SiT-S/2 on 256 px latents.

`images_per_s`: of our two places and of one file per latent, as the peers keep them, in CPU seconds; all three give the same bits.
`resampling`: batches of re-balanced classes at ImageNet-LT's size, and whether the classes drawn are those of the law.
`share`: draws' part of a step's time, both measured in turns in one process. The goal is below 0.01. On a CPU draws are made
between steps and time is the process's own, so the share is small because the step is slow; `draw_ms` is what a GPU has to
hide, and there a thread draws ahead: `with_over_without` compares steps that draw with steps on one batch that was drawn before.
"""

from __future__ import annotations

import dataclasses
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from turns import agree, goal, in_turns, most_apart, seconds  # beside this file

from ltbench.diffusion import process_for
from ltbench.draws import Drawer, Latents, TrainingSet
from ltbench.methods import Draw, Objective, load_method
from ltbench.networks import build_network
from ltbench.order import Order
from ltbench.parts import Parts, Recipe, task_of
from ltbench.places import Held, Mapped, Rows, on_device
from ltbench.trainer import Trainer

IMAGES, CLASSES, LATENT = 2048, 100, (4, 32, 32)
BLOCK = 512  # images per file
TURNS = {"cuda": 3, "cpu": 2}
SHARE = 0.01
GATHERED = 48  # images of a batch that is only read
LARGE = (279_350, 1000, 0.01)  # images, classes and imbalance of ImageNet-LT
SMALL = (20_000, 100, 0.01)
# batch, and the local batches that it consists of: the paper's 48 as 4 x 12 on a GPU; on a CPU what takes seconds
BATCHES = {"cuda": (48, 12), "cpu": (4, 2)}


def measure(
    device: torch.device, network: str = "SiT-S/2", table: tuple[int, int, float] = LARGE
) -> dict[str, Any]:
    """Per place of the data: milliseconds per draw and per step, and the share. table: what resampling is measured on."""
    torch.set_num_threads(1)
    batch, local = BATCHES[device.type]
    with tempfile.TemporaryDirectory() as folder:
        trainer = _trainer(network, batch, local, device, Path(folder))
        found: dict[str, Any] = {"network": network, "latents": list(LATENT), "batch": batch}
        found["images_per_s"] = _read(Path(folder), device)
        for name, rows in _places(Path(folder), device).items():
            drawer = _at(trainer.parts.drawer, rows)
            found[name] = _side_by_side(trainer, drawer, device)
            # What the paper's batch costs to draw, whatever this machine trains.
            wide = _at(_wide(drawer), rows)
            each = [seconds(partial(wide.draw, 3, range(4)), 5, device) / 5 for _ in range(5)]
            found[name]["draw_ms_at_batch_48"] = round(1e3 * statistics.median(each), 2)
        if trainer.ahead is not None:
            found["with_over_without"] = _with_over_without(trainer, device)
        trainer.close()
    return {**found, "resampling": resampling(*table)}


def _read(folder: Path, device: torch.device) -> dict[str, Any]:
    """Images per second that a batch is gathered with: resident, mapped, and from a file of its own each."""
    places: dict[str, Any] = {name: rows.take for name, rows in _places(folder, device).items()}
    single = folder / "single"
    single.mkdir()
    every = places["mapped"](torch.arange(2 * BLOCK)).cpu().numpy()
    for number, row in enumerate(every):
        np.save(single / f"{number}.npy", row)

    def files(rows: Tensor) -> Tensor:
        read = [torch.from_numpy(np.load(single / f"{number}.npy")) for number in rows.tolist()]
        return torch.stack(read).to(device)

    places["a_file_each"] = files
    order = np.random.default_rng(3)
    batches = [torch.from_numpy(order.integers(0, len(every), GATHERED)) for _ in range(8)]
    for name, take in places.items():
        gap = max(most_apart(take(rows).cpu(), torch.from_numpy(every)[rows]) for rows in batches)
        agree(f"latents, {name}", gap, 0.0)
    told = in_turns(
        {name: lambda t=take: [t(b) for b in batches] for name, take in places.items()}, device, turns=5
    )
    rates = {name: round(1e3 * GATHERED * len(batches) / max(told.ms(name), 1e-3)) for name in places}
    ours = {name: told.goal("a_file_each", name, at_least=1.0) for name in places if name != "a_file_each"}
    return {**rates, "a_file_each_over": ours}


def resampling(images: int, classes: int, imbalance: float) -> dict[str, Any]:
    """Draws per CPU second of re-balanced batches over an epoch, and chi-square of the classes drawn in its first half.

    Raises AssertionError where that is further from the law than one in a million draws at random would be.
    """
    shares = imbalance ** (np.arange(classes) / (classes - 1))
    counts = np.maximum(1, shares / shares.sum() * images).astype(int)
    labels = np.repeat(np.arange(classes), counts)
    order = Order(labels, classes, seed=0, batch=GATHERED, resample=imbalance)
    half = len(labels) // GATHERED // 2
    begun = time.process_time()
    drawn = np.concatenate([order.indices(step) for step in range(1, half + 1)])
    spent = time.process_time() - begun
    expected = order.prior * len(drawn)
    chi = float(((np.bincount(labels[drawn], minlength=classes) - expected) ** 2 / expected).sum())
    free = classes - 1
    # Wilson and Hilferty: the cube root of chi-square over its freedom is nearly normal. 4.75 is one in a million.
    limit = free * (1 - 2 / (9 * free) + 4.75 * (2 / (9 * free)) ** 0.5) ** 3
    agree("chi-square of the classes drawn", chi, limit)
    return {
        "images": len(labels),
        "draws": len(drawn),
        "draws_per_s": round(len(drawn) / max(spent, 1e-6)),
        "chi_square": round(chi, 1),
        "degrees_of_freedom": free,
    }


def _side_by_side(trainer: Trainer, drawer: Drawer, device: torch.device) -> dict[str, Any]:
    trainer.parts.drawer = drawer
    shards = range(drawer.order.batch // drawer.local_batch)
    drawer.draw(1, shards)
    pairs = [
        (seconds(lambda: drawer.draw(2, shards), 10, device) / 10, seconds(trainer.advance, 1, device))
        for _ in range(TURNS[device.type])
    ]
    draw, step = (statistics.median(side) for side in zip(*pairs, strict=True))
    share = goal(round(draw / step, 5), at_most=SHARE)
    return {"draw_ms": round(1e3 * draw, 3), "step_ms": round(1e3 * step, 1), "share": share}


def _with_over_without(trainer: Trainer, device: torch.device) -> float:
    """Seconds of steps that draw ahead over seconds of steps on one batch: what data costs in the end."""
    shards = range(trainer.parts.drawer.order.batch // trainer.parts.drawer.local_batch)
    fixed, ahead = _Fixed(trainer.parts.drawer.draw(1, shards)), trainer.ahead
    pairs = []
    for _ in range(2 + TURNS[device.type]):
        trainer.ahead = ahead
        drawing = seconds(trainer.advance, 20, device)
        trainer.ahead = fixed  # pyright: ignore[reportAttributeAccessIssue]
        pairs.append((drawing, seconds(trainer.advance, 20, device)))
    trainer.ahead = ahead
    return round(statistics.median(a / b for a, b in pairs[2:]), 4)


class _Fixed:
    """The same batch again and again."""

    def __init__(self, draw: Draw) -> None:
        self._draw = draw

    def draw(self, step: int, shards: range, then: tuple[int, range]) -> Draw:
        return self._draw


def _places(folder: Path, device: torch.device) -> dict[str, Rows]:
    files = [np.load(path, mmap_mode="r") for path in sorted(folder.glob("block-*.npy"))]
    return {"on_device": Held(on_device(files, device)), "mapped": Mapped(files, device)}


def _at(drawer: Drawer, rows: Rows) -> Drawer:
    source = Latents(rows, 0.18215)
    return dataclasses.replace(drawer, data=dataclasses.replace(drawer.data, images=source))


def _wide(drawer: Drawer) -> Drawer:
    labels = drawer.data.labels.cpu().numpy()
    order = Order(labels, CLASSES, seed=0, batch=48, resample=0.1)
    return dataclasses.replace(drawer, order=order, local_batch=12)


def _trainer(name: str, batch: int, local: int, device: torch.device, folder: Path) -> Trainer:
    """A trainer on made-up moments in files of `folder`, under resampling."""
    numbers = np.random.default_rng(0)
    for first in range(0, IMAGES, BLOCK):
        pairs = numbers.random((2 * BLOCK, 2, *LATENT), np.float32).astype(np.float16)
        np.save(folder / f"block-{first:06d}.npy", pairs)
    labels = np.sort(numbers.integers(0, CLASSES, IMAGES))
    order = Order(labels, CLASSES, seed=0, batch=batch, resample=0.1)
    recipe = Recipe(
        batch, local, "adamw", 1e-4, (0.9, 0.999), 0.0, 0, None, 0.9999,
        "fp32", 0.1, "sample", True, 0.0, "fused",
    )  # fmt: skip
    network = build_network(name, channels=LATENT[0], resolution=LATENT[1], classes=CLASSES).to(device)
    rows = _places(folder, device)["on_device"]
    data = TrainingSet(Latents(rows, 0.18215), torch.from_numpy(labels).to(device))
    process = process_for("sit")
    task = task_of({"pipeline": "sit"}, recipe, process, network, order, data)
    drawer = Drawer(data, order, process, CLASSES, 0, local, 0.1, "sample", True)
    thirds = {"head": [0], "body": [1], "tail": [2]}
    counts = [int(n) for n in order.counts]
    objective = Objective(network, load_method("sit")(task))
    return Trainer(Parts(recipe, objective, drawer, task, thirds, counts), batch, 1000)
