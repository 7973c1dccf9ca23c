"""Cells of made-up numbers for the speed book: no download, no data, random weights that are not zero where training starts at zero."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ltbench import plugins
from ltbench.compiled import compile_blocks
from ltbench.datasets import Dataset, Images
from ltbench.draws import Latents
from ltbench.execution import resolve
from ltbench.methods import load_method
from ltbench.networks import Network, build_network
from ltbench.parts import build_parts
from ltbench.places import Held
from ltbench.trainer import Trainer

SCALE = 0.18215  # of Stable Diffusion's latents


class Made(Dataset):
    """`images` random pictures of `classes` classes, the first ones with the most."""

    def __init__(self, *, images: int, classes: int, channels: int, resolution: int) -> None:
        self.images, self.channels, self.resolution = images, channels, resolution
        shares = 0.01 ** (np.arange(classes) / max(1, classes - 1))
        self._counts = 1 + (shares / shares.sum() * (images - classes)).astype(int)
        self._counts[0] += images - self._counts.sum()

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(str(n) for n in range(len(self._counts)))

    @property
    def reference_id(self) -> str:
        return "made"

    def counts(self) -> list[int]:
        return [int(n) for n in self._counts]

    def train(self) -> Images:
        shape = (self.images, self.channels, self.resolution, self.resolution)
        pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
        labels = np.repeat(np.arange(len(self._counts)), self._counts)
        return Images(pixels, labels, np.arange(self.images))

    reference = holdout = train


@dataclass(frozen=True)
class World:
    """What a cell trains on: a SiT on latents, or a network on pixels. shape: (C, H, W) that the network sees.

    micro_batch: images that one forward holds, None for the whole batch.
    """

    network: str
    pipeline: str
    shape: tuple[int, int, int]
    batch: int
    local_batch: int
    classes: int = 20
    images: int = 512
    latents: bool = False
    micro_batch: int | None = None

    def settings(self, method: str, **train: Any) -> dict[str, Any]:
        """Resolved settings of a cell, the method at its defaults for the pipeline; `train` changes the recipe."""
        plugin = plugins.get("methods", method)
        own = {**plugin.defaults, **(plugin.presets or {}).get(self.pipeline, {})}
        sit = self.pipeline == "sit"
        recipe: dict[str, Any] = {
            "batch": self.batch,
            "local_batch": self.local_batch,
            "optimizer": "adamw" if sit else "adam",
            "lr": 1e-4 if sit else 2e-4,
            "betas": (0.9, 0.999),
            "weight_decay": 0.0,
            "warmup": 0,
            "clip_norm": None if sit else 1.0,
            "ema": 0.9999,
            "precision": "fp32",
            "label_drop": 0.1,
            "label_drop_mode": "sample",
            "flip": True,
            "dropout": 0.0,
            "passes": "fused",
        }
        resample = train.pop("resample", None)
        return {
            "dataset": {"name": "made", **({"latents": "tiny-vae"} if self.latents else {})},
            "pipeline": self.pipeline,
            "network": self.network,
            "method": {"name": method, **own},
            "train": {**recipe, **train},
            "resample": resample,
            "seed": 0,
        }

    def trainer(self, method: str, device: torch.device, **train: Any) -> Trainer:
        """A trainer whose rows are on `device` and whose weights are `stirred`; raises Unsupported as the method does.

        log_every: steps of a log window. execution: as `ltbench.execution` names it. backend: what compiles.
        notice: hears where an execution is not to be had; by default that is an AssertionError, for its times would be another's.
        moments: instead of the made-up ones.
        """
        log_every, backend = train.pop("log_every", 1000), train.pop("backend", "inductor")
        moments = train.pop("moments", None)
        notice = train.pop("notice", refuse)
        how = resolve(train.pop("execution", "eager"), device)
        channels, side, _ = self.shape
        data = Made(images=self.images, classes=self.classes, channels=channels, resolution=side)
        latents = None
        if self.latents:
            rows = self.moments() if moments is None else moments
            latents = Latents(Held(rows.to(device)), SCALE)
        settings = self.settings(method, **train)
        parts = build_parts(settings, data, load_method(method), device, latents, notice, how)
        if how.compiled and backend != "inductor":
            compile_blocks(parts.objective.network, backend=backend)
        stir(parts.objective.network)
        micro = self.micro_batch or self.batch
        return Trainer(parts, micro, log_every, execution=how, notice=notice)

    def moments(self) -> Tensor:
        """(2 n, 2, C, h, w) float16 mean and deviation, as the encode stage keeps them."""
        pairs = np.random.default_rng(1).random((2 * self.images, 2, *self.shape), np.float32)
        return torch.from_numpy(pairs.astype(np.float16))

    def fresh(self, device: torch.device, dropout: float = 0.0) -> Network:
        """A stirred network alone, in eval mode."""
        channels, side, _ = self.shape
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = build_network(
                self.network, channels=channels, resolution=side, classes=self.classes, dropout=dropout
            )
        stir(network)
        return network.to(device).eval()


def refuse(message: str) -> None:
    """What is measured must be what was asked for."""
    raise AssertionError(message)


@torch.no_grad()
def stir(network: torch.nn.Module) -> None:
    """Add a little noise to every weight, by its place in the list: where training starts at zero, nothing would be compared.
    Drawn where the weights are: 675 million numbers take a host ten seconds."""
    for number, p in enumerate(p for p in network.parameters() if p.requires_grad):
        source = torch.Generator(p.device).manual_seed(number)
        p += 0.02 * torch.randn(p.shape, generator=source, device=p.device)


def twin(network: Network) -> Network:
    """A copy with weights of its own."""
    return copy.deepcopy(network)
