"""A feature extractor: a frozen network in evaluation mode that turns images into numbers, the same way everywhere.

Libraries choose their kernels by the shape and the memory layout of what goes through a network at once, and kernels differ in the last
digits. So every extractor has one batch size, `BATCH`, as a part of what it is, fills the last batch up, and lays images out anew:
on one machine's CPU an image's features are the same bits however a set is cut and whoever its neighbours are. With another batch
size, or on another device, they agree to about 1e-6 of their spread. TF32 and autocast are off, whatever the caller had set.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from ltbench.errors import EnvironmentProblem, UsageError
from ltbench.extractors import extractor_problem, parse
from ltbench.places import send

BATCH = 50  # pytorch-fid's, and half a sampling block


class Extractor:
    """name, sha256 (of the weights, or the digits that are known), dims (what it gives -> its dimension), channels it takes.

    network: (B, C, H, H) on the device, uint8 or, for an extractor that takes `unquantised` images, float32 in [0, 1] -> a dict of
    (B, D) with the keys of `dims`: pool, and where there are such, spatial and logits.
    """

    def __init__(
        self,
        name: str,
        sha256: str,
        network: nn.Module,
        *,
        dims: Mapping[str, int],
        channels: tuple[int, ...],
        unquantised: bool = False,
    ) -> None:
        self.name, self.sha256, self.dims, self.channels = name, sha256, dict(dims), channels
        self.unquantised = unquantised
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

    def features(self, images: Tensor, batch: int = BATCH) -> dict[str, Tensor]:
        """Features of (B, C, H, H) images: {"pool": (B, D), "spatial": (B, S), "logits": (B, K)}, float32 on the CPU.

        Images are uint8, or float in [0, 1] where the extractor takes unquantised ones. A grey image is seen as three equal
        channels by a network of three. `batch` images go through the network at a time; another number than its own changes
        the last digits. Raises UsageError for another dtype, shape, number of channels or range.
        """
        self._check(images, batch)
        found = {key: torch.empty(len(images), dim) for key, dim in self.dims.items()}
        seen: dict[str, list[Tensor]] = {key: [] for key in found}
        with exact(self._device):
            for start in range(0, len(images), batch):
                rows = send(images[start : start + batch], self._device)
                out = self._network(filled(rows if rows.dtype == torch.uint8 else rows.float(), batch))
                for key, parts in seen.items():
                    parts.append(out[key][: len(rows)].float())
            # a device is waited for once, not once per batch
            for key, parts in seen.items():
                if parts:
                    found[key].copy_(torch.cat(parts))
        return found

    def _check(self, images: Tensor, batch: int) -> None:
        kinds = "uint8, or float in [0, 1]" if self.unquantised else "uint8"
        expected = f"(B, {' or '.join(map(str, self.channels))}, H, H) {kinds}"
        given = f"{tuple(images.shape)} {images.dtype}"
        if images.dtype != torch.uint8 and not (self.unquantised and images.dtype.is_floating_point):
            raise UsageError(f"extractor '{self.name}' takes {expected}, got {given}")
        if images.ndim != 4 or images.shape[1] not in self.channels or images.shape[2] != images.shape[3]:
            raise UsageError(f"extractor '{self.name}' takes {expected}, got {given}")
        if images.dtype != torch.uint8 and not bool(((images >= 0) & (images <= 1)).all()):
            raise UsageError(
                f"extractor '{self.name}' takes {expected}; some values are outside or not numbers"
            )
        if batch < 1:
            raise UsageError(f"extractor '{self.name}': batch is {batch}; allowed: 1 or more")


def filled(images: Tensor, batch: int) -> Tensor:
    """(b, ...) -> (batch, ...): the first image again where images are missing, in memory of the plain layout.

    The layout decides kernels too, and an array of grey images may be in two at once (a channel's stride is then free).
    """
    whole = images.new_empty(batch, *images.shape[1:])
    whole[: len(images)] = images
    whole[len(images) :] = images[:1]
    return whole


@contextlib.contextmanager
def exact(device: torch.device) -> Iterator[None]:
    """Inference in float32: no TF32, no autocast, the same cuDNN kernels each time. What was set before comes back."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        with (
            torch.inference_mode(),
            torch.autocast(device.type, enabled=False),
            torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False),
        ):
            yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def rgb(images: Tensor) -> Tensor:
    """(B, 1 or 3, H, W) -> (B, 3, H, W)."""
    return images.expand(-1, 3, -1, -1)


def load_extractor(text: str, *, download: bool = False) -> Extractor:
    """The extractor NAME[@FILE][#SHA] on the CPU, its weights' hash checked first; `ltbench.extractors` lists names and places.

    Weights that are not on this machine are fetched only with `download`. Raises UsageError for an unknown name,
    EnvironmentProblem where `extractor_problem` has a reason.
    """
    wanted = parse(text)
    if download:
        from ltbench.metrics.downloads import fetch

        fetch(wanted)
    if problem := extractor_problem(text):
        raise EnvironmentProblem(problem)
    with torch.random.fork_rng(devices=[]):  # a network is born with random weights
        match wanted.kind:
            case "embedded":
                from ltbench.metrics.classifier import load_classifier

                return load_classifier(wanted.name)
            case "inception":
                from ltbench.metrics.inception import load_inception

                return load_inception(wanted)
            case "lite0":
                from ltbench.metrics.pretrained import load_lite0

                return load_lite0(wanted)
        from ltbench.metrics.pretrained import load_timm

        return load_timm(wanted)
