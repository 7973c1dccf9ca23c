"""Small seeded networks, batches and dropout streams that the tests of networks share."""

from __future__ import annotations

import torch
from torch import Tensor

from ltbench.diffusion import process_for
from ltbench.networks import Network, build_network
from ltbench.networks.unet import UNet

SMALL = ["SiT-N/4", "SiT-T/8", "UNet-16", "UNet-32"]


def build(name: str, *, seed: int = 0, filled: bool = False, **changes) -> Network:
    """A seeded network for (B, 1, 16, 16) images of 3 classes; `filled` moves every weight away from its initial zero."""
    options = {"channels": 1, "resolution": 16, "classes": 3, **changes}
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = build_network(name, **options)
        if filled:
            with torch.no_grad():
                for parameter in network.parameters():
                    parameter.add_(0.05 * torch.randn_like(parameter))
    return network


def batch(network: Network, rows: int = 4, seed: int = 1) -> tuple[Tensor, Tensor, Tensor]:
    """Images, clock and labels (among them the null label) for this network."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn((rows, network.channels, network.resolution, network.resolution), generator=generator)
    process = process_for("ddpm" if isinstance(network, UNet) else "sit")
    t = process.time(torch.rand(rows, generator=generator))
    return x, t, torch.arange(rows) % (network.classes + 1)


def streams(*seeds: int) -> list[torch.Generator]:
    return [torch.Generator().manual_seed(seed) for seed in seeds]
