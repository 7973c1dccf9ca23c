"""Feature extractors that ship with ltbench: small classifiers trained on real, balanced images, one per embedded data set.

They are never trained on generated images, nor on the images that metrics compare with. Their scores are printed under their
own name and hash (`FD[fashion-cnn-v1@...]`), never as FID. `scripts/train_extractor.py` made the weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors.torch import load
from torch import Tensor, nn

from ltbench.errors import EnvironmentProblem, UsageError

WEIGHTS = Path(__file__).resolve().parent / "weights"


class SmallCNN(nn.Module):
    """3x3 convolutions, maps halved down to 4x4, then FLATTENED to the features: averaging over the map leaves many dead.

    The features are batch-normalised without a learnt scale: every one has unit variance over the training images, so none is
    dead and none dominates a distance.
    """

    def __init__(self, *, channels: int, size: int, widths: Sequence[int], dim: int, classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for before, width in zip((channels, *widths[:-1]), widths, strict=True):
            layers.append(nn.Conv2d(before, width, 3, padding=1, bias=False))
            if size > 4:
                layers.append(nn.MaxPool2d(2))
                size //= 2
            layers += [nn.BatchNorm2d(width), nn.ReLU()]
        self.trunk = nn.Sequential(*layers)
        self.project = nn.Linear(widths[-1] * size * size, dim, bias=False)
        self.normalise = nn.BatchNorm1d(dim, affine=False)
        self.head = nn.Linear(dim, classes)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(B, C, S, S) float in [-1, 1] -> features (B, dim), logits (B, K)."""
        features = self.normalise(self.project(self.trunk(x).flatten(1)))
        return features, self.head(F.gelu(features))


def fit(images: Tensor, size: int) -> Tensor:
    """(B, C, H, W) uint8 -> (B, C, size, size) float32 in [0, 255]: bilinear where enlarged, area means where reduced."""
    x = images.float()
    if x.shape[-1] == size:
        return x
    if x.shape[-1] < size:
        return F.interpolate(x, size=(size, size), mode="bilinear", align_corners=False, antialias=False)
    return F.interpolate(x, size=(size, size), mode="area")


def to_input(images: Tensor, size: int) -> Tensor:
    """(B, C, H, W) uint8 -> (B, C, size, size) float32 in [-1, 1], as SmallCNN takes it."""
    return fit(images, size) / 127.5 - 1.0


class Extractor:
    """A frozen network in evaluation mode, on one device. `name`, `sha256` (of the weights file), `dim`, `classes`, `channels`."""

    def __init__(self, name: str, entry: dict[str, Any], network: SmallCNN) -> None:
        self.name, self.sha256 = name, str(entry["sha256"])
        self.dim, self.classes, self.channels, self.size = (
            int(entry[key]) for key in ("dim", "classes", "channels", "size")
        )
        self._network = network.eval().requires_grad_(False)
        self._device = torch.device("cpu")

    @property
    def identity(self) -> dict[str, str]:
        """{"name", "sha256"}: what metrics are named after and an evaluation is planned with."""
        return {"name": self.name, "sha256": self.sha256}

    def to(self, device: str | torch.device) -> Extractor:
        """This extractor, moved to `device`."""
        self._device = torch.device(device)
        self._network.to(self._device)
        return self

    @torch.inference_mode()
    def features(self, images: Tensor, batch: int = 256) -> dict[str, Tensor]:
        """Features of (B, C, H, W) uint8 images, H = W: {"pool": (B, dim), "logits": (B, K)}, float32 on the CPU.

        `batch` images go through the network at a time; an image's features do not depend on its neighbours. Raises UsageError
        for another dtype, shape or number of channels.
        """
        expected = f"(B, {self.channels}, H, H) uint8"
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] != self.channels:
            raise UsageError(
                f"extractor '{self.name}' takes {expected}, got {tuple(images.shape)} {images.dtype}"
            )
        if images.shape[2] != images.shape[3]:
            raise UsageError(
                f"extractor '{self.name}' takes square images {expected}, got {tuple(images.shape)}"
            )
        if batch < 1:
            raise UsageError(f"extractor '{self.name}': batch is {batch}; allowed: 1 or more")
        pool = torch.empty(len(images), self.dim)
        logits = torch.empty(len(images), self.classes)
        for start in range(0, len(images), batch):
            rows = slice(start, start + batch)
            features, scores = self._network(to_input(images[rows].to(self._device), self.size))
            pool[rows], logits[rows] = features.cpu(), scores.cpu()
        return {"pool": pool, "logits": logits}


def read_index(folder: Path = WEIGHTS) -> dict[str, dict[str, Any]]:
    """The shipped extractors by name: file, sha256, data sets, shapes, accuracy, recipe."""
    return json.loads((folder / "index.json").read_text())


def load_extractor(name: str, folder: Path = WEIGHTS) -> Extractor:
    """A shipped extractor on the CPU, its weights checked against the index first.

    Raises UsageError for an unknown name, EnvironmentProblem for weights that are absent or not those of the index.
    """
    index = read_index(folder)
    if name not in index:
        raise UsageError(f"unknown extractor '{name}'; there are {', '.join(sorted(index))}")
    entry = index[name]
    path = folder / entry["file"]
    remedy = "restore it from the repository (git checkout -- ltbench/metrics/weights)"
    try:
        data = path.read_bytes()
    except OSError as error:
        raise EnvironmentProblem(
            f"{path}: cannot read the weights of extractor '{name}': {error.strerror}", remedy
        ) from None
    found = hashlib.sha256(data).hexdigest()
    if found != entry["sha256"]:
        raise EnvironmentProblem(
            f"{path}: sha256 is {found}, but the index has {entry['sha256']}: not the weights of extractor '{name}'",
            remedy,
        )
    network = build_network(entry)
    network.load_state_dict(load(data))
    return Extractor(name, entry, network)


def build_network(entry: dict[str, Any]) -> SmallCNN:
    """An untrained network with the shapes of an index entry (channels, size, widths, dim, classes)."""
    return SmallCNN(**{key: entry[key] for key in ("channels", "size", "widths", "dim", "classes")})
