"""Networks by name: `build_network("SiT-T/8", channels=1, resolution=32, classes=10)`, and the names of their features."""

from __future__ import annotations

from typing import Any

import torch

from ltbench.errors import UsageError
from ltbench.networks.base import Network
from ltbench.networks.names import NETWORK_NAMES, SiTSize, network_size, tap_widths
from ltbench.networks.sit import SiT
from ltbench.networks.unet import UNet

__all__ = ["NETWORK_NAMES", "Network", "build_network", "parameter_count", "resolve_tap"]

# the released code indexes its list of blocks with len // 4, len // 2, 3 len // 4 and -1 (CCUA-SiT:train.py)
FRACTIONS: dict[str, tuple[int, int]] = {"N/8": (1, 8), "N/4": (1, 4), "N/2": (1, 2), "3N/4": (3, 4)}


def build_network(
    name: str,
    *,
    channels: int,
    resolution: int,
    classes: int,
    dropout: float = 0.0,
    augmented: bool = False,
) -> Network:
    """A freshly initialised network, float32, in training mode, for (B, channels, resolution, resolution) images.

    `augmented`: it takes augmentation labels (ltbench.augment); its other weights are those of the plain network.
    Initial weights come from torch's global generator, which the caller seeds (inside torch.random.fork_rng). Raises UsageError
    for a name that is unknown or does not fit the resolution.
    """
    size = network_size(name, resolution)
    options: dict[str, Any] = {
        "channels": channels,
        "resolution": resolution,
        "classes": classes,
        "dropout": dropout,
        "tap_widths": tap_widths(name, resolution),
        "augmented": augmented,
    }
    return SiT(size, **options) if isinstance(size, SiTSize) else UNet(size, **options)


def parameter_count(name: str, *, channels: int, resolution: int, classes: int) -> int:
    """Number of trainable parameters of a network, counted without allocating it."""
    with torch.device("meta"):
        network = build_network(name, channels=channels, resolution=resolution, classes=classes)
    return sum(parameter.numel() for parameter in network.parameters())


def resolve_tap(name: str, network: Network) -> str:
    """The network's own name of a tap: block1.., mid, down0.., up0.. stand for themselves; N/8, N/4, N/2, 3N/4 are block
    floor(N f) + 1 of a network of N blocks and N is the last (12 blocks: 2, 4, 7, 10, 12).

    Raises UsageError, listing what exists, if this network has no such tap.
    """
    blocks = sum(tap.startswith("block") for tap in network.tap_widths)
    tap = name
    if blocks and name in FRACTIONS:
        numerator, denominator = FRACTIONS[name]
        tap = f"block{blocks * numerator // denominator + 1}"
    elif blocks and name == "N":
        tap = f"block{blocks}"
    if tap in network.tap_widths:
        return tap
    relative = [*FRACTIONS, "N"] if blocks else []
    raise UsageError(
        f"this network has no tap '{name}'",
        hint=f"its taps are {', '.join([*network.tap_widths, *relative])}",
    )
