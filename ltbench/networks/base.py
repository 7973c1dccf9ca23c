"""What every network is to the rest of the engine: noisy image, clock, label -> prediction, and the features asked for."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from ltbench.networks import dropout  # noqa: F401  defines ltbench::keep

AUGMENT_NUMBERS = 9  # what the engine says of an image's moves: ltbench/augment.py


class Region(nn.Module):
    """A part of a network that is worth compiling as one piece (ltbench.compiled). Regions hold no regions."""


class Recomputable(Region, ABC):
    """A block whose activations may be made again in the backward pass instead of being kept (ltbench.compiled)."""

    recomputed = False

    @abstractmethod
    def body(self, x: Tensor, condition: Tensor) -> Tensor:
        """x (B, ...), condition (B, D) -> (B, ...)."""

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        """x (B, ...), condition (B, D) -> (B, ...)."""
        if not (self.recomputed and torch.is_grad_enabled()):
            return self.body(x, condition)
        return checkpoint(
            self.body, x, condition, use_reentrant=False, preserve_rng_state=False, context_fn=_masks_kept
        )


# A mask is drawn once and kept, one byte an element: its stream has moved on when the backward pass comes.
_masks_kept = partial(create_selective_checkpoint_contexts, [torch.ops.ltbench.keep.default])


class Network(nn.Module, ABC):
    """A class-conditional denoiser of square images.

    `classes` is K; labels run over 0..K-1 and K is the null label. `tap_widths` maps every tap it publishes to its
    (N tokens, D width), in the order of computation. `embed_augment` is there only in a network that is told how its images were
    moved (`add_augment`). `channels_last`: its convolutions are faster with channels innermost (ltbench.compiled.set_layout).
    """

    channels_last: ClassVar[bool] = False

    embed_augment: nn.Linear | None

    def __init__(
        self, *, channels: int, resolution: int, classes: int, tap_widths: dict[str, tuple[int, int]]
    ) -> None:
        super().__init__()
        self.channels = channels
        self.resolution = resolution
        self.classes = classes
        self.tap_widths = tap_widths
        self.embed_augment = None

    def add_augment(self, width: int) -> None:
        """Let the condition of this width take augmentation labels (B, 9) through a linear map without bias.

        Called when all other weights are drawn: they stay those of the plain network of the same seed.
        """
        self.embed_augment = nn.Linear(AUGMENT_NUMBERS, width, bias=False)

    def with_augment(self, condition: Tensor, augment: Tensor | None) -> Tensor:
        """condition (B, D) and labels (B, 9); without labels, the condition itself: a map without bias sends zeros to zero."""
        if augment is None:
            return condition
        assert self.embed_augment is not None, "check_call has refused"
        return condition + self.embed_augment(augment.to(condition.dtype))

    @property
    def null_label(self) -> int:
        """The label that stands for "no class": K."""
        return self.classes

    @abstractmethod
    def forward(
        self, x: Tensor, t: Tensor, y: Tensor, taps: Sequence[str] = (), augment: Tensor | None = None
    ) -> tuple[Tensor, list[Tensor]]:
        """Predict the process's target for noisy images.

        x (B, C, H, W) float; t (B,), the process's own clock; y (B,) int64 in [0, K], K = null; taps: names out of
        `tap_widths`; augment (B, 9) float, how the images were moved, None for not at all (all zeros).
        Returns the prediction (B, C, H, W) and one (B, N, D) feature per tap, in the order asked for.
        Raises ValueError for images of another shape, for a tap that does not exist, and for labels that it was not built for.
        """

    def check_call(self, x: Tensor, taps: Sequence[str], augment: Tensor | None = None) -> None:
        """Raise ValueError if `x`, `taps` or `augment` is not what this network takes."""
        expected = (self.channels, self.resolution, self.resolution)
        if tuple(x.shape[1:]) != expected:
            raise ValueError(
                f"images have shape {tuple(x.shape)}; this network takes (B, {', '.join(map(str, expected))})"
            )
        unknown = [tap for tap in taps if tap not in self.tap_widths]
        if unknown:
            raise ValueError(f"no tap {', '.join(unknown)}; this network has {', '.join(self.tap_widths)}")
        if augment is None:
            return
        if self.embed_augment is None:
            raise ValueError("augmentation labels for a network that was built without (augmented=True)")
        if tuple(augment.shape) != (len(x), AUGMENT_NUMBERS):
            raise ValueError(
                f"augmentation labels have shape {tuple(augment.shape)}, not ({len(x)}, {AUGMENT_NUMBERS})"
            )
