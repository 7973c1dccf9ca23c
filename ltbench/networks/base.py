"""What every network is to the rest of the engine: noisy image, clock, label -> prediction, and the features asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

from torch import Tensor, nn


class Network(nn.Module, ABC):
    """A class-conditional denoiser of square images.

    `classes` is K; labels run over 0..K-1 and K is the null label. `tap_widths` maps every tap it publishes to its
    (N tokens, D width), in the order of computation.
    """

    def __init__(
        self, *, channels: int, resolution: int, classes: int, tap_widths: dict[str, tuple[int, int]]
    ) -> None:
        super().__init__()
        self.channels = channels
        self.resolution = resolution
        self.classes = classes
        self.tap_widths = tap_widths

    @property
    def null_label(self) -> int:
        """The label that stands for "no class": K."""
        return self.classes

    @abstractmethod
    def forward(
        self, x: Tensor, t: Tensor, y: Tensor, taps: Sequence[str] = ()
    ) -> tuple[Tensor, list[Tensor]]:
        """Predict the process's target for noisy images.

        x (B, C, H, W) float; t (B,), the process's own clock; y (B,) int64 in [0, K], K = null; taps: names out of
        `tap_widths`. Returns the prediction (B, C, H, W) and one (B, N, D) feature per tap, in the order asked for.
        Raises ValueError for images of another shape and for a tap that does not exist.
        """

    def check_call(self, x: Tensor, taps: Sequence[str]) -> None:
        """Raise ValueError if `x` or `taps` is not what this network takes."""
        expected = (self.channels, self.resolution, self.resolution)
        if tuple(x.shape[1:]) != expected:
            raise ValueError(
                f"images have shape {tuple(x.shape)}; this network takes (B, {', '.join(map(str, expected))})"
            )
        unknown = [tap for tap in taps if tap not in self.tap_widths]
        if unknown:
            raise ValueError(f"no tap {', '.join(unknown)}; this network has {', '.join(self.tap_widths)}")
