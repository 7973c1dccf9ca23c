"""Exponential moving average of a network's weights."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn


class Ema:
    """ema <- ema + (1 - decay) (weights - ema) after every step, started as a copy of the weights.

    Matched by name over parameters and floating buffers of the network alone; a method's own parameters have none.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self.decay = decay
        self._live = _floating_state(network)
        self.shadow = {name: tensor.detach().clone() for name, tensor in self._live.items()}

    @torch.no_grad()
    def update(self) -> None:
        """One multi-tensor lerp; the weights move in place, so the list of them is read once."""
        shadow, live = list(self.shadow.values()), list(self._live.values())
        torch._foreach_lerp_(shadow, live, 1.0 - self.decay)  # pyright: ignore[reportPrivateImportUsage]

    def load(self, tensors: Mapping[str, Tensor]) -> None:
        """Take back what `shadow` held. Raises KeyError when a name is missing or unknown."""
        if tensors.keys() != self.shadow.keys():
            odd = sorted(tensors.keys() ^ self.shadow.keys())
            raise KeyError(
                f"EMA weights do not belong to this network; names that differ: {', '.join(odd[:5])}"
            )
        for name, tensor in tensors.items():
            self.shadow[name].copy_(tensor)


def _floating_state(network: nn.Module) -> dict[str, Tensor]:
    return {name: value for name, value in network.state_dict().items() if value.is_floating_point()}
