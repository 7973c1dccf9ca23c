"""The Inception-v3 of 2015-12-05, whose features FID is defined on: torch-fidelity's network, ADM's three outputs.

The blocks are torch-fidelity's `inception-v3-compat`; its own class would unpickle a weights file without restraint, so the network
is put together here and reads it with weights_only=True. Outputs are those of openai/guided-diffusion evaluations/evaluator.py:

    pool     (B, 2048)  pool_3
    spatial  (B, 2023)  the first 7 of 192 channels x 17 x 17 of TensorFlow's mixed_6/conv, which is Mixed_6d.branch1x1 after ReLU
    logits   (B, 1008)  the classifier WITHOUT its bias, as ADM and CBDM's score/inception.py take it for the Inception score

Two preparations of an image, and an extractor for each; their FIDs differ by about 0.2 %, so they are never one column:

    inception-2015-12-05        resized as TensorFlow 1 does, (x - 128) / 128; ADM, torch-fidelity: SiT's, REPA's and DispLoss's tables
    inception-2015-12-05-torch  x / 255 unless it is float already, torch's bilinear, 2 x - 1; pytorch-fid, fld: CBDM's, OCLT's, CCUA-DDPM's
"""

from __future__ import annotations

import hashlib
import io
import pickle
from collections.abc import Callable, Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ltbench.errors import EnvironmentProblem, first_line
from ltbench.extractors import Wanted, digits_of, extractors, find_weights
from ltbench.metrics.extractor import Extractor, rgb
from ltbench.metrics.naming import PREPARED

SIDE = 299
SPATIAL_LAYER, SPATIAL_CHANNELS = "Mixed_6d", 7


class Inception(nn.Module):
    """(B, 3, H, W) images, prepared by `prepare` -> {"pool", "spatial", "logits"}. Parameters are named as in the weights file."""

    def __init__(self, prepare: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.prepare = prepare
        for name, layer in _layers().items():
            self.add_module(name, layer)
        self.fc = nn.Linear(2048, 1008)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        x, spatial = self.prepare(rgb(images)), None
        for name, layer in self.named_children():
            if name == SPATIAL_LAYER:
                spatial = layer.get_submodule("branch1x1")(x)[:, :SPATIAL_CHANNELS].flatten(1)
            if name != "fc":
                x = layer(x)
        pool = x.flatten(1)
        assert spatial is not None, "every Inception network has that layer"
        return {"pool": pool, "spatial": spatial, "logits": pool @ self.fc.weight.T}


def _layers() -> dict[str, nn.Module]:
    """The trunk from pixels to pool_3, in order, under the names of the weights file."""
    blocks: Any = torch_fidelity("feature_extractor_inceptionv3")
    conv = blocks.BasicConv2d
    return {
        "Conv2d_1a_3x3": conv(3, 32, kernel_size=3, stride=2),
        "Conv2d_2a_3x3": conv(32, 32, kernel_size=3),
        "Conv2d_2b_3x3": conv(32, 64, kernel_size=3, padding=1),
        "MaxPool_1": nn.MaxPool2d(3, stride=2),
        "Conv2d_3b_1x1": conv(64, 80, kernel_size=1),
        "Conv2d_4a_3x3": conv(80, 192, kernel_size=3),
        "MaxPool_2": nn.MaxPool2d(3, stride=2),
        "Mixed_5b": blocks.InceptionA(192, pool_features=32),
        "Mixed_5c": blocks.InceptionA(256, pool_features=64),
        "Mixed_5d": blocks.InceptionA(288, pool_features=64),
        "Mixed_6a": blocks.InceptionB(288),
        "Mixed_6b": blocks.InceptionC(768, channels_7x7=128),
        "Mixed_6c": blocks.InceptionC(768, channels_7x7=160),
        "Mixed_6d": blocks.InceptionC(768, channels_7x7=160),
        "Mixed_6e": blocks.InceptionC(768, channels_7x7=192),
        "Mixed_7a": blocks.InceptionD(768),
        "Mixed_7b": blocks.InceptionE_1(1280),
        "Mixed_7c": blocks.InceptionE_2(2048),
        "AvgPool": nn.AdaptiveAvgPool2d(1),
    }


def prepare_tf1(images: Tensor) -> Tensor:
    """(B, 3, H, W) uint8 -> (B, 3, 299, 299) as the TensorFlow graph does inside."""
    resize: Any = torch_fidelity("interpolate_compat_tensorflow").interpolate_bilinear_2d_like_tensorflow1x
    return (resize(images.float(), size=(SIDE, SIDE), align_corners=False) - 128) / 128


def prepare_torch(images: Tensor) -> Tensor:
    """(B, 3, H, W) uint8, or float in [0, 1] -> (B, 3, 299, 299) as mseitzer/pytorch-fid does."""
    x = images.float() / 255 if images.dtype == torch.uint8 else images
    return 2 * F.interpolate(x, size=(SIDE, SIDE), mode="bilinear", align_corners=False) - 1


def load_inception(wanted: Wanted) -> Extractor:
    """One of the two Inception extractors with the weights that `wanted` names, on the CPU."""
    state = read_weights(wanted)
    known = extractors()[wanted.name]
    network = Inception(prepare_torch if PREPARED[wanted.name] else prepare_tf1)
    network.load_state_dict(state)
    dims = {"pool": known.pool, "spatial": known.spatial, "logits": known.logits}
    return Extractor(
        wanted.name,
        digits_of(wanted),
        network,
        dims=dims,
        channels=known.channels,
        unquantised=known.unquantised,
    )


def read_weights(wanted: Wanted) -> Mapping[str, Tensor]:
    """The state dict of the weights file; the bytes that are hashed are the bytes that are read. Raises EnvironmentProblem."""
    path, right = find_weights(wanted), digits_of(wanted)
    assert path is not None, "extractor_problem was asked before"
    try:
        data = path.read_bytes()
        found = hashlib.sha256(data).hexdigest()
        if not found.startswith(right):
            raise EnvironmentProblem(
                f"{path}: sha256 is {found[:12]}..., not {right}...: not Inception-2015-12-05",
                "name the official file",
            )
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, pickle.UnpicklingError) as error:
        raise EnvironmentProblem(
            f"{path}: cannot read the weights of '{wanted.name}': {first_line(error)}"
        ) from None


def torch_fidelity(module: str) -> Any:
    """A module of torch-fidelity. It imports torchvision, which fails in its own way beside a torch of another build."""
    try:
        return __import__(f"torch_fidelity.{module}", fromlist=[module])
    except (ImportError, RuntimeError) as error:
        raise EnvironmentProblem(
            f"torch-fidelity cannot be imported, which the Inception network needs: {first_line(error)}",
            "install torch, torchvision and torch-fidelity together: pip install torch torchvision torch-fidelity",
        ) from error
