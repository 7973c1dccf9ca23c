"""Encoders that were trained on other images, as extractors: EfficientNet-lite0, and timm's models from a weights file.

    lite0   bicubic with antialiasing to 128 px, clamped to [0, 1]; pool: the mean over the last map (B, 1280); logits (B, 1000)
    timm    bicubic with antialiasing to the model's input side, 224 for DINOv2, on unrounded values, then the model's own mean
            and deviation; pool: what the model's classifier would see, which for DINOv2 is the CLS token after the last norm.
            For DINOv2 ViT-L/14 that is FD-DINOv2 as NVlabs/edm2 calculate_metrics.py computes it (its `torch` resize; dgm-eval
            rounds to 8 bits after Pillow's). timm resamples the positions once, with antialiasing, where the original
            interpolates them at each call: numbers are near the published ones, not equal to them.

Both give the metrics of this harness their own names (`FD[lite0@57934424]`); a method that trains against a network of the same
family is flattered by them, and a report says so.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltbench import encoders
from ltbench.extractors import TIMM, Wanted, extractors, find_weights, sha256_of
from ltbench.metrics.extractor import Extractor

CHANNELS = (1, 3)


class Lite0(nn.Module):
    """(B, 1 or 3, H, H) uint8 -> pool (B, 1280), logits (B, 1000)."""

    def __init__(self) -> None:
        super().__init__()
        self.network = encoders.lite0_network()

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        seen = self.network.extract_features(encoders.lite0_input(encoders.as_rgb(images)))
        pool = seen.mean((2, 3))
        return {"pool": pool, "logits": self.network._fc(pool)}


class Timm(nn.Module):
    """(B, 1 or 3, H, H) uint8 -> pool (B, D): `model` without its classifier, at its own input side and normalisation."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: Any, side: int | None) -> None:
        super().__init__()
        self.model = model
        config = model.pretrained_cfg
        self.size = (side, side) if side else tuple(config["input_size"][1:])
        for key, default in zip(("mean", "std"), encoders.IMAGENET, strict=True):
            self.register_buffer(key, torch.tensor(config.get(key) or default).reshape(3, 1, 1))

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        x = encoders.as_rgb(images)
        if x.shape[2:] != self.size:
            x = F.interpolate(x, self.size, mode="bicubic", antialias=True)
        return {"pool": self.model((x - self.mean) / self.std)}


def load_lite0(wanted: Wanted) -> Extractor:
    """EfficientNet-lite0 with its ImageNet weights."""
    known = extractors()[wanted.name]
    dims = {"pool": known.pool, "logits": known.logits}
    return Extractor(wanted.name, known.sha256, Lite0(), dims=dims, channels=known.channels)


def load_timm(wanted: Wanted) -> Extractor:
    """A timm model with the weights file that `wanted` finds; its identity is the file's sha256, to 8 digits."""
    path = find_weights(wanted)
    assert path is not None, "extractor_problem was asked before"
    network = Timm(*encoders.timm_model(wanted.name.removeprefix(TIMM), str(path)))
    with torch.no_grad():
        width = network.eval()(torch.zeros(1, 3, *network.size, dtype=torch.uint8))["pool"].shape[1]
    return Extractor(wanted.name, sha256_of(path)[:8], network, dims={"pool": width}, channels=CHANNELS)
