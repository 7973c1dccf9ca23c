"""A small data set, tiny networks and a task per pipeline: what the tests of trainer and methods share."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import torch

from ltbench import plugins
from ltbench.datasets import Dataset, Images
from ltbench.diffusion import process_for
from ltbench.draws import Drawer, resident
from ltbench.encoders import Tokens, load_encoder
from ltbench.methods import Draw, Method, Task, kept_rows, load_method
from ltbench.networks import Network, build_network, resolve_tap
from ltbench.order import Order
from ltbench.parts import Parts, build_parts, seeded

torch.set_num_threads(1)

COUNTS = [40, 20, 12, 8, 5, 3]
NETWORKS = {"sit": "SiT-N/4", "ddpm": "UNet-16"}
PIPELINES = ("sit", "ddpm")


class Toy(Dataset):
    """Class c is a bright column at c on a dark, noisy ground; 16x16, one channel."""

    extractor = "digits-cnn-v1"
    channels = 1
    resolution = 16

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple("abcdef")

    @property
    def reference_id(self) -> str:
        return "toy:reference"

    def counts(self) -> list[int]:
        return COUNTS

    def train(self) -> Images:
        return self._make(COUNTS, 0)

    def reference(self) -> Images:
        return self._make([20] * 6, 1)

    def holdout(self) -> Images:
        return self._make([10] * 6, 2)

    def _make(self, counts: list[int], seed: int) -> Images:
        labels = np.repeat(np.arange(6), counts)
        images = np.random.default_rng(seed).integers(0, 60, (len(labels), 1, 16, 16), dtype=np.uint8)
        for row, c in enumerate(labels):
            images[row, :, :, 2 * c : 2 * c + 3] += 150
        return Images(images, labels.astype(np.int64), np.arange(len(labels), dtype=np.int64))


def settings(pipeline: str, method: str | dict[str, Any], **changes: Any) -> dict[str, Any]:
    """Resolved settings of a tiny cell; `changes` go into `train`, except seed and resample."""
    train = {
        "batch": 12,
        "local_batch": 4,
        "optimizer": "adamw",
        "lr": 1e-3,
        "betas": [0.9, 0.999],
        "weight_decay": 0.0,
        "warmup": 0,
        "clip_norm": None,
        "ema": 0.9,
        "precision": "fp32",
        "label_drop": 0.3,
        "label_drop_mode": "sample",
        "flip": True,
        "dropout": 0.0,
        "passes": "fused",
    }
    top = {key: changes.pop(key) for key in ("seed", "resample") if key in changes}
    return {
        "dataset": {"name": "toy"},
        "pipeline": pipeline,
        "network": NETWORKS[pipeline],
        "method": {"name": method} if isinstance(method, str) else method,
        "resample": None,
        "seed": 0,
        **top,
        "train": {**train, **changes},
    }


def parts(pipeline: str, method: str | dict[str, Any], **changes: Any) -> Parts:
    """All parts of a tiny cell, with the plugin of that name."""
    made = settings(pipeline, method, **changes)
    return build_parts(made, Toy(), load_method(made["method"]["name"]), torch.device("cpu"))


def network(pipeline: str, dropout: float = 0.0) -> Network:
    """A tiny network whose zero-initialised layers are woken, so that every path carries a signal."""

    def build() -> Network:
        made = build_network(NETWORKS[pipeline], channels=1, resolution=16, classes=6, dropout=dropout)
        for p in made.parameters():
            if p.requires_grad and (p.abs().max() < 1e-3):
                torch.nn.init.normal_(p, std=0.02)
        return made

    return seeded(1, build)


def encoder(name: str, grid: tuple[int, int], cache: bool = False) -> Tokens:
    """A frozen encoder by name, without a cache: a draw of this module has its own order."""
    return Tokens(load_encoder(name, torch.device("cpu")), grid)


def task(pipeline: str, **changes: Any) -> Task:
    """The task of a tiny cell."""
    net = network(pipeline)
    counts = torch.tensor(COUNTS)
    fields: dict[str, Any] = {
        "process": process_for(pipeline),
        "pipeline": pipeline,
        "null": 6,
        "class_counts": counts,
        "class_prior": counts / counts.sum(),
        "tap": lambda name: resolve_tap(name, net),
        "tap_widths": net.tap_widths,
        "encoder": encoder,
    }
    return Task(**{**fields, **changes})


def draw(
    pipeline: str,
    step: int = 1,
    *,
    shards: int = 2,
    local_batch: int = 4,
    label_drop: float = 0.3,
    seed: int = 0,
) -> Draw:
    """A draw of the toy data, with all that a method may ask for."""
    data = Toy().train()
    drawer = Drawer(
        data=resident(torch.from_numpy(data.images), torch.from_numpy(data.labels)),
        order=Order(data.labels, 6, seed=seed, batch=shards * local_batch, resample=None),
        process=process_for(pipeline),
        null=6,
        seed=seed,
        local_batch=local_batch,
        label_drop=label_drop,
        label_drop_mode="sample",
        flip=True,
        pixels=True,
        reference=True,
    )
    return drawer.draw(step, range(shards))


def small(name: str, pipeline: str) -> dict[str, Any]:
    """The `method` setting of a row that names no parameter, small and offline."""
    presets = plugins.get("methods", name).presets or {}
    return {"name": name, **presets.get(pipeline, {}), **presets.get("check", {})}


def variants() -> list[tuple[str, str, dict[str, Any]]]:
    """(name, pipeline, options) of every method that is found, where it runs, and of forms that take another path."""
    names = [name for name, plugin in plugins.find("methods").items() if plugin.problem is None]
    plain = [(name, pipeline, {}) for pipeline in PIPELINES for name in names]
    found = [v for v in plain if load_method(v[0]).supports(task(v[1])) is None]
    found += [("oclt", pipeline, {"direction": "full", "reference": True}) for pipeline in PIPELINES]
    found += [("diffrop", pipeline, {"form": "pair"}) for pipeline in PIPELINES]
    return found + [("repa", pipeline, {"cache": True}) for pipeline in PIPELINES]


def dropping(made: Draw, dropped: torch.Tensor, **changes: Any) -> Draw:
    """The draw with these labels dropped, (B,) bool; `changes` are those of other fields."""
    kept, sizes = kept_rows(dropped, made.local_batch)
    y_in = torch.where(dropped, 6, made.y)
    fields = {"y_in": y_in, **changes, "dropped": dropped, "kept": kept, "kept_sizes": sizes}
    return dataclasses.replace(made, **fields)


def method(name: str, the_task: Task, **options: Any) -> Method:
    """A plugin by name on a task."""
    return load_method(name)(the_task, **options)
