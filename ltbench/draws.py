"""The engine's draw: images, noise, times and dropped labels of a step, made before the method is asked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ltbench import seeds
from ltbench.augment import draw_moves, move
from ltbench.diffusion import Process
from ltbench.methods import Draw, Reference, Rng
from ltbench.order import Order


@dataclass(frozen=True)
class Resident:
    """A training set that sits on the device. images: (n, C, H, W) uint8. labels: (n,) int64. Batches are gathered.

    pixels: (n, C, R, R) uint8 of the same pictures where `images` is not what an encoder should see, else None.
    """

    images: Tensor
    labels: Tensor
    pixels: Tensor | None = None

    def gather(self, index: Tensor, flipped: Tensor) -> Tensor:
        """(B,) positions and (B,) bool -> (B, C, H, W) float32 in [-1, 1], mirrored where `flipped`."""
        x = self.images[index].float() / 127.5 - 1.0
        return torch.where(flipped[:, None, None, None], x.flip(3), x)

    def seen(self, index: Tensor, flipped: Tensor) -> Tensor:
        """(B,) positions and (B,) bool -> (B, C, R, R) uint8, mirrored where `flipped`: what a frozen encoder looks at."""
        x = (self.images if self.pixels is None else self.pixels)[index]
        return torch.where(flipped[:, None, None, None], x.flip(3), x)

    @cached_property
    def by_class(self) -> list[np.ndarray]:
        """Positions of the images of each class that has any."""
        labels = self.labels.cpu().numpy()
        return [np.flatnonzero(labels == c) for c in np.unique(labels)]


@dataclass(frozen=True)
class _View:
    """Which images are looked at, (B,) positions, and how: mirrored, or moved by an affine map that mirrors too.

    label: (B, 9) float32, inverse: (B, 2, 3) float64, both None without augmentation.
    """

    index: Tensor
    flipped: Tensor
    label: Tensor | None = None
    inverse: Tensor | None = None

    def images(self, data: Resident) -> Tensor:
        """(B, C, H, W) float32, what the network is trained on."""
        x = data.gather(self.index, self.flipped)
        return x if self.inverse is None else move(x, self.inverse)

    def pixels(self, data: Resident) -> Tensor:
        """(B, C, R, R) uint8, the same view of the pictures themselves, for an encoder."""
        x = data.seen(self.index, self.flipped)
        return x if self.inverse is None else move(x.float(), self.inverse).round().clamp(0, 255).to(x.dtype)


@dataclass(frozen=True)
class Drawer:
    """Makes the `Draw` of any (step, shards). Each number is keyed by (seed, stream, step, shard), shard being the index of
    the local batch in the global batch, so micro-batches and ranks change nothing. `pixels` and `reference`: what the method
    asks for beside the batch. augment: probability of each move of `augment: ada`, None for none; it includes the flip, which
    then is the one that a cell without it would draw."""

    data: Resident
    order: Order
    process: Process
    null: int
    seed: int
    local_batch: int
    label_drop: float
    label_drop_mode: Literal["sample", "batch"]
    flip: bool
    pixels: bool = False
    reference: bool = False
    augment: float | None = None

    def draw(self, step: int, shards: Sequence[int]) -> Draw:
        """The noised local batches `shards` of a step (steps count from 1), one after another."""
        device = self.data.images.device
        g = self.local_batch
        rows = np.concatenate([np.arange(s * g, (s + 1) * g) for s in shards])
        index = torch.from_numpy(self.order.indices(step)[rows]).to(device)
        flipped = self._per_row(step, shards, "flip", lambda r: r.random(g) < 0.5) if self.flip else None
        flipped = torch.zeros(len(rows), dtype=torch.bool) if flipped is None else flipped
        view = self._view(step, shards, index, flipped)
        x0, flipped = view.images(self.data), flipped.to(device)
        eps = self._per_row(
            step, shards, "noise", lambda r: r.standard_normal((g, *x0.shape[1:]), np.float32)
        )
        u = self._per_row(step, shards, "time", lambda r: r.random(g, dtype=np.float32))
        dropped = self._per_row(step, shards, "labels", self._drops)
        eps, u, dropped = eps.to(device), u.to(device), dropped.to(device)
        t, y = self.process.time(u), self.data.labels[index]
        return Draw(
            x0=x0,
            eps=eps,
            xt=self.process.diffuse(x0, eps, t),
            target=self.process.target(x0, eps, t),
            t=t,
            level=self.process.level(t).float(),
            y=y,
            dropped=dropped,
            y_in=torch.where(dropped, self.null, y),
            index=index,
            flipped=flipped,
            rng=Rng(self.seed, step, shards, g, device),
            local_batch=g,
            dropout_seeds=tuple(seeds.torch_seed(self.seed, "dropout", step, shard) for shard in shards),
            pixels=view.pixels(self.data) if self.pixels else None,
            reference=self._reference(step, shards) if self.reference else None,
            augment=view.label,
        )

    def _view(self, step: int, shards: Sequence[int], index: Tensor, flipped: Tensor, *more: str) -> _View:
        """How the rows `index` of these shards are seen; `more` keeps a second batch's numbers apart."""
        device = self.data.images.device
        if self.augment is None:
            return _View(index, flipped.to(device))
        labels, inverse = [], []
        for shard, mirrored in zip(shards, flipped.view(len(shards), -1), strict=True):
            stream = seeds.stream(self.seed, "augment", *more, step, shard)
            moves = draw_moves(stream, mirrored.numpy(), self.augment)
            labels.append(moves.label())
            inverse.append(moves.inverse())
        label, where = (torch.from_numpy(np.concatenate(part)).to(device) for part in (labels, inverse))
        return _View(index, torch.zeros_like(index, dtype=torch.bool), label, where)

    def _reference(self, step: int, shards: Sequence[int]) -> Reference:
        """As many images as the batch has, every class equally often up to rounding, from a stream of its own."""
        device = self.data.images.device
        picked, mirrored = [], []
        for shard in shards:
            stream = seeds.stream(self.seed, "data", "reference", step, shard)
            classes = np.argsort(stream.random(len(self.data.by_class)), kind="stable")
            members = [self.data.by_class[c] for c in np.resize(classes, self.local_batch)]
            u, v = stream.random((2, self.local_batch))
            picked += [rows[int(x * len(rows))] for rows, x in zip(members, u, strict=True)]
            mirrored += [self.flip and x < 0.5 for x in v]
        index = torch.tensor(np.array(picked), device=device)
        view = self._view(step, shards, index, torch.tensor(mirrored), "reference")
        return Reference(view.images(self.data), self.data.labels[index])

    def _drops(self, stream: np.random.Generator) -> np.ndarray:
        if self.label_drop_mode == "sample":
            return stream.random(self.local_batch) < self.label_drop
        return np.full(self.local_batch, stream.random() < self.label_drop)

    def _per_row(
        self, step: int, shards: Sequence[int], name: str, make: Callable[[np.random.Generator], np.ndarray]
    ) -> Tensor:
        return torch.from_numpy(
            np.concatenate([make(seeds.stream(self.seed, name, step, s)) for s in shards])
        )
