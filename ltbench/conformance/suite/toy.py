"""A toy data set and tiny networks, through the engine's own `build_parts`: what the checks train on."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from ltbench.datasets import Dataset, Images
from ltbench.methods import Draw, Method
from ltbench.parts import Parts, build_parts, seeded
from ltbench.trainer import Trainer

NETWORKS = {"sit": "SiT-N/4", "ddpm": "UNet-16"}
COUNTS = (40, 20, 12, 8, 5, 3)


class Toy(Dataset):
    """Class c is a bright column at c on a dark, noisy ground: 6 classes, 16x16, one channel, long-tailed."""

    extractor = "digits-cnn-v1"
    channels = 1
    resolution = 16

    def __init__(self, counts: Sequence[int] = COUNTS) -> None:
        self._counts = list(counts)

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple("abcdef")

    @property
    def reference_id(self) -> str:
        return "toy:reference"

    def counts(self) -> list[int]:
        return self._counts

    def train(self) -> Images:
        return self._make(self._counts, 0)

    def reference(self) -> Images:
        return self._make([20] * 6, 1)

    def holdout(self) -> Images:
        return self._make([10] * 6, 2)

    @staticmethod
    def _make(counts: Sequence[int], seed: int) -> Images:
        labels = np.repeat(np.arange(6), counts)
        images = np.random.default_rng(seed).integers(0, 60, (len(labels), 1, 16, 16), dtype=np.uint8)
        for row, c in enumerate(labels):
            images[row, :, :, 2 * c : 2 * c + 3] += 150
        return Images(images, labels.astype(np.int64), np.arange(len(labels), dtype=np.int64))


def settings(
    pipeline: str, method: dict[str, Any], network: str | None = None, **train: Any
) -> dict[str, Any]:
    """Resolved settings of a tiny cell; `train` changes the recipe."""
    recipe = {
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
    return {
        "dataset": {"name": "toy"},
        "pipeline": pipeline,
        "network": network or NETWORKS[pipeline],
        "method": method,
        "resample": None,
        "seed": 0,
        "train": {**recipe, **train},
    }


def parts(
    pipeline: str,
    cls: type[Method],
    options: dict[str, Any],
    *,
    counts: Sequence[int] = COUNTS,
    network: str | None = None,
    **train: Any,
) -> Parts:
    """All parts of a tiny cell. Layers that start at zero are woken, so that every path carries a signal."""
    made = settings(pipeline, {"name": "under test", **options}, network, **train)
    built = build_parts(made, Toy(counts), cls, torch.device("cpu"))
    seeded(1, lambda: _wake(built.objective.network))
    return built


def _wake(network: torch.nn.Module) -> None:
    for p in network.parameters():
        if p.requires_grad and p.abs().max() < 1e-3:
            torch.nn.init.normal_(p, std=0.02)


def draw(built: Parts, step: int = 1) -> Draw:
    """The whole batch of a step; equal for equal settings, whatever the method."""
    recipe = built.recipe
    return built.drawer.draw(step, range(recipe.batch // recipe.local_batch))


def trainer(built: Parts, micro_batch: int | None = None) -> Trainer:
    """The engine's own loop over these parts."""
    return Trainer(built, micro_batch or built.recipe.batch, 2)
