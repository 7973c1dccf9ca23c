"""The extractors that ship with ltbench: small classifiers trained on real, balanced images, one per embedded data set.

They are never trained on generated images, nor on the images that metrics compare with. Their scores are printed under their
own name and hash (`FD[fashion-cnn-v1@...]`), never as FID. `scripts/train_extractor.py` made the weights.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch.nn.functional as F
from safetensors.torch import load
from torch import Tensor, nn

from ltbench.errors import EnvironmentProblem
from ltbench.extractors import INDEX
from ltbench.metrics.extractor import Extractor

WEIGHTS = INDEX.parent
SPATIAL_CHANNELS = 4


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
        return self.classify(self.trunk(x))

    def classify(self, seen: Tensor) -> tuple[Tensor, Tensor]:
        """The trunk's (B, W, 4, 4) -> features (B, dim), logits (B, K)."""
        features = self.normalise(self.project(seen.flatten(1)))
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


class Classifier(nn.Module):
    """A SmallCNN as an extractor sees it: pictures in, everything that is measured out."""

    def __init__(self, network: SmallCNN, size: int) -> None:
        super().__init__()
        self.network, self.size = network, size

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        """(B, 1 or 3, S, S) uint8 -> pool (B, dim), spatial (B, 64), logits (B, K). Of a colour image it sees the mean channel.

        spatial is what sFID reads of Inception, in small: the first channels of a map that still knows where things are, the last
        one of 4x4 places, after ReLU; 4 channels, so that there are as many numbers as features.
        """
        seen = self.network.trunk(to_input(images, self.size).mean(1, keepdim=True))
        pool, logits = self.network.classify(seen)
        return {"pool": pool, "spatial": seen[:, :SPATIAL_CHANNELS].flatten(1), "logits": logits}


def read_index(folder: Path = WEIGHTS) -> dict[str, dict[str, Any]]:
    """The shipped extractors by name: file, sha256, data sets, shapes, accuracy, recipe."""
    return json.loads((folder / "index.json").read_text())


def load_classifier(name: str, folder: Path = WEIGHTS) -> Extractor:
    """A shipped extractor on the CPU, its weights checked against the index first.

    Raises KeyError for an unknown name, EnvironmentProblem for weights that are absent or not those of the index.
    """
    entry = read_index(folder)[name]
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
    return as_extractor(name, entry, network)


def as_extractor(name: str, entry: Mapping[str, Any], network: SmallCNN) -> Extractor:
    """A classifier of an index entry's shapes, ready to measure."""
    dims = {"pool": entry["dim"], "spatial": SPATIAL_CHANNELS * 16, "logits": entry["classes"]}
    return Extractor(name, entry["sha256"], Classifier(network, entry["size"]), dims=dims, channels=(1, 3))


def build_network(entry: Mapping[str, Any]) -> SmallCNN:
    """An untrained network with the shapes of an index entry (channels, size, widths, dim, classes)."""
    return SmallCNN(**{key: entry[key] for key in ("channels", "size", "widths", "dim", "classes")})
