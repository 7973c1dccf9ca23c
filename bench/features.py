"""E2: features of generated images from tensors, as an evaluation takes them, against torch-fidelity from a folder of PNG files.

The same weights and the same rounded images, so the features agree. The folder's side writes the files, which a script that samples
to disk does, and reads them again. Inception's own weights where they are here, else a small convolutional network of fixed numbers.
"""

from __future__ import annotations

import tempfile
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from turns import agree, in_turns, most_apart  # beside this file

from ltbench.extractors import extractor_problem
from ltbench.metrics.extractor import Extractor, load_extractor

INCEPTION = "inception-2015-12-05"
WIDTH = 64


def measure(device: torch.device, images: int = 64, side: int = 32, turns: int = 3) -> dict[str, Any]:
    """Milliseconds of both for `images` pictures, how far the features are apart, the folder's time over ours."""
    try:
        import torch_fidelity  # noqa: F401  (an extra)
    except ImportError as error:
        return {"left_out": f"torch-fidelity is not here: {error}"}
    pixels = np.random.default_rng(0).integers(0, 256, (images, 3, side, side), np.uint8)
    made = torch.from_numpy(pixels).to(device)
    extractor, theirs, name = _both(device)
    with tempfile.TemporaryDirectory() as folder:

        def from_folder() -> Tensor:
            for number, picture in enumerate(made.cpu().numpy()):
                Image.fromarray(picture.transpose(1, 2, 0)).save(Path(folder, f"{number:06d}.png"))
            return _fidelity(theirs, folder, device)

        def from_tensors() -> Tensor:
            return extractor.features(made)["pool"]

        gap = most_apart(from_tensors(), from_folder()) / float(from_folder().abs().max())
        apart = agree("features", gap, 1e-4)
        told = in_turns({"ours": from_tensors, "png_folder": from_folder}, device, turns=turns)
    ratio = told.goal("png_folder", "ours", at_least=1.0)
    return {"images": images, "network": name, **told.told(), "apart": apart, "goal": ratio}


def _both(device: torch.device) -> tuple[Extractor, Any, str]:
    """(our extractor, torch-fidelity's) with the same weights, and the network's name."""
    from torch_fidelity.utils import create_feature_extractor

    cuda = device.type == "cuda"
    if extractor_problem(INCEPTION) is None:
        ours = load_extractor(INCEPTION).to(device)
        theirs = create_feature_extractor("inception-v3-compat", ["2048"], cuda=cuda, verbose=False)
        return ours, theirs, INCEPTION
    ours = Extractor("small", "0" * 64, Small(), dims={"pool": WIDTH}, channels=(3,)).to(device)
    return ours, _registered()("small", ["pool"]).to(device).eval(), "four convolutions of fixed numbers"


class Small(nn.Module):
    """(B, 3, H, W) uint8 -> {"pool": (B, WIDTH)}."""

    def __init__(self) -> None:
        super().__init__()
        widths = [3, 16, 32, 32, WIDTH]
        self.layers = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in pairwise(widths))
        for number, p in enumerate(self.parameters()):
            numbers = np.random.default_rng(number).standard_normal(tuple(p.shape), np.float32)
            p.data = torch.from_numpy(numbers / max(1.0, p[0].numel() ** 0.5))

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        h = x.float() / 127.5 - 1
        for layer in self.layers:
            h = F.relu(layer(h))
        return {"pool": h.mean((2, 3))}


@cache
def _registered() -> Any:
    """`Small` as a feature extractor of torch-fidelity."""
    from torch_fidelity.feature_extractor_base import FeatureExtractorBase

    class Theirs(FeatureExtractorBase):
        def __init__(self, name: str, features_list: list[str], **more: Any) -> None:
            super().__init__(name, features_list)
            self.network = Small()

        @staticmethod
        def get_provided_features_list() -> tuple[str, ...]:
            return ("pool",)

        @staticmethod
        def get_default_feature_layer_for_metric(metric: str) -> str:
            return "pool"

        @staticmethod
        def can_be_compiled() -> bool:
            return False

        @staticmethod
        def get_dummy_input_for_compile() -> Tensor:
            return torch.zeros(1, 3, 32, 32, dtype=torch.uint8)

        def forward(self, input: Tensor) -> tuple[Tensor, ...]:
            return (self.network(input)["pool"],)

    return Theirs


def _fidelity(extractor: Any, folder: str, device: torch.device) -> Tensor:
    """torch-fidelity's own reading of a folder, in this process, where its time is counted."""
    from torch_fidelity.utils import extract_featuresdict_from_input_id

    found = extract_featuresdict_from_input_id(
        1,
        extractor,
        input1=folder,
        batch_size=50,
        cuda=device.type == "cuda",
        save_cpu_ram=True,
        cache=False,
        verbose=False,
    )
    return next(iter(found.values()))
