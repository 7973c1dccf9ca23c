"""The engine's draw: images, noise, times and dropped labels of a step, made before the method is asked."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from typing import ClassVar, Literal

import numpy as np
import torch
from torch import Tensor

from ltbench import seeds
from ltbench.augment import draw_moves, move
from ltbench.diffusion import Process
from ltbench.methods import Draw, Reference, Rng, kept_rows
from ltbench.order import Order
from ltbench.places import Held, Rows, send


@dataclass(frozen=True)
class Pixels:
    """uint8 images as float32 in [-1, 1]. rows: (n, C, H, W) uint8."""

    rows: Rows
    drawn: ClassVar[bool] = False

    @property
    def device(self) -> torch.device:
        return self.rows.device

    @property
    def shape(self) -> tuple[int, ...]:
        return self.rows.row

    def gather(self, index: Tensor, flipped: Tensor, noise: Tensor | None = None) -> Tensor:
        """(B,) positions and (B,) bool, on the host or the device -> (B, C, H, W) float32, mirrored where `flipped`."""
        x = self.rows.take(index).float() / 127.5 - 1.0
        return _mirrored(x, send(flipped, x.device))


@dataclass(frozen=True)
class Latents:
    """A fresh sample of the posterior at every look, scale * (mean + deviation * noise - shift), as SiT and REPA train.

    rows: (2 n, 2, C, h, w) float16, image by image, the mirrored one second; each holds mean and deviation.
    """

    rows: Rows
    scale: float
    shift: float = 0.0
    drawn: ClassVar[bool] = True

    @property
    def device(self) -> torch.device:
        return self.rows.device

    @property
    def shape(self) -> tuple[int, ...]:
        return self.rows.row[1:]

    def gather(self, index: Tensor, flipped: Tensor, noise: Tensor | None = None) -> Tensor:
        """(B,) positions, (B,) bool and (B, C, h, w) float32 standard normal, on the host or the device -> (B, C, h, w) float32."""
        assert noise is not None, "a latent is drawn from its posterior"
        mean, deviation = self.rows.take(2 * index + flipped).float().unbind(1)
        return (mean + deviation * send(noise, self.device) - self.shift) * self.scale


Source = (
    Pixels | Latents
)  # what a network is trained on; shape is (C, H, W) of one image, `drawn` says that it takes noise


@dataclass(frozen=True)
class TrainingSet:
    """A training set on its way to the device. labels: (n,) int64, on the device.

    pixels: rows (n, C, R, R) uint8 of the pictures, where `images` is not what an encoder should see; None: not kept.
    """

    images: Source
    labels: Tensor
    pixels: Rows | None = None

    def seen(self, index: Tensor, flipped: Tensor) -> Tensor:
        """(B,) positions and (B,) bool -> (B, C, R, R) uint8, mirrored where `flipped`: what a frozen encoder looks at."""
        rows = self.images.rows if self.pixels is None and isinstance(self.images, Pixels) else self.pixels
        assert rows is not None, "the pictures beside latents are kept where a method asks for them"
        x = rows.take(index)
        return _mirrored(x, send(flipped, x.device))

    @cached_property
    def by_class(self) -> list[np.ndarray]:
        """Positions of the images of each class that has any."""
        labels = self.labels.cpu().numpy()
        return [np.flatnonzero(labels == c) for c in np.unique(labels)]


def resident(images: Tensor, labels: Tensor, pixels: Tensor | None = None) -> TrainingSet:
    """A training set of tensors: images (n, C, H, W) uint8, labels (n,) int64, pixels (n, C, R, R) uint8 for an encoder."""
    return TrainingSet(Pixels(Held(images)), labels, None if pixels is None else Held(pixels))


def _mirrored(x: Tensor, flipped: Tensor) -> Tensor:
    return torch.where(flipped[:, None, None, None], x.flip(3), x)


@dataclass(frozen=True)
class _View:
    """Which images are looked at, (B,) positions, and how: mirrored, or moved by an affine map that mirrors too.

    noise: (B, C, H, W) float32 for a source that is drawn. label: (B, 9) float32, inverse: (B, 2, 3) float64, both None without
    augmentation. Positions and flips stay on the host, where rows that are there are looked up.
    """

    index: Tensor
    flipped: Tensor
    noise: Tensor | None = None
    label: Tensor | None = None
    inverse: Tensor | None = None

    def images(self, data: TrainingSet) -> Tensor:
        """(B, C, H, W) float32, what the network is trained on."""
        x = data.images.gather(self.index, self.flipped, self.noise)
        return x if self.inverse is None else move(x, self.inverse)

    def pixels(self, data: TrainingSet) -> Tensor:
        """(B, C, R, R) uint8, the same view of the pictures themselves, for an encoder."""
        x = data.seen(self.index, self.flipped)
        return x if self.inverse is None else move(x.float(), self.inverse).round().clamp(0, 255).to(x.dtype)


@dataclass(frozen=True)
class Drawer:
    """Makes the `Draw` of any (step, shards). Each number is keyed by (seed, stream, step, shard), shard being the index of
    the local batch in the global batch, so micro-batches and ranks change nothing. `pixels` and `reference`: what the method
    asks for beside the batch. augment: probability of each move of `augment: ada`, None for none; it includes the flip, which
    then is the one that a cell without it would draw."""

    data: TrainingSet
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
    workers: Executor | None = (
        None  # draws the shards of a step at once; which one draws a number changes none
    )

    def draw(self, step: int, shards: Sequence[int]) -> Draw:
        """The noised local batches `shards` of a step (steps count from 1), one after another."""
        device = self.data.images.device
        g = self.local_batch
        rows = np.concatenate([np.arange(s * g, (s + 1) * g) for s in shards])
        index = torch.from_numpy(self.order.indices(step)[rows])
        flipped = self._per_row(step, shards, "flip", lambda r: r.random(g) < 0.5) if self.flip else None
        flipped = torch.zeros(len(rows), dtype=torch.bool) if flipped is None else flipped
        view = self._view(step, shards, index, flipped)
        x0 = view.images(self.data)
        eps = self._per_row(
            step, shards, "noise", lambda r: r.standard_normal((g, *x0.shape[1:]), np.float32)
        )
        u = self._per_row(step, shards, "time", lambda r: r.random(g, dtype=np.float32))
        dropped = self._per_row(step, shards, "labels", self._drops)
        kept, kept_sizes = kept_rows(dropped, g)
        eps, u, dropped, kept = (send(part, device) for part in (eps, u, dropped, kept))
        index, flipped = send(index, device), send(flipped, device)
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
            kept=kept,
            kept_sizes=kept_sizes,
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
        device, noise = self.data.images.device, None
        if self.data.images.drawn:
            shape = (self.local_batch, *self.data.images.shape)
            noise = self._per_row(
                step, shards, "latents", lambda r: r.standard_normal(shape, np.float32), *more
            )
        if self.augment is None:
            return _View(index, flipped, noise)
        labels, inverse = [], []
        for shard, mirrored in zip(shards, flipped.view(len(shards), -1), strict=True):
            stream = seeds.stream(self.seed, "augment", *more, step, shard)
            moves = draw_moves(stream, mirrored.numpy(), self.augment)
            labels.append(moves.label())
            inverse.append(moves.inverse())
        label, where = (send(torch.from_numpy(np.concatenate(part)), device) for part in (labels, inverse))
        return _View(index, torch.zeros_like(flipped), noise, label, where)

    def _reference(self, step: int, shards: Sequence[int]) -> Reference:
        """As many images as the batch has, every class equally often up to rounding, from a stream of its own."""
        picked, mirrored = [], []
        for shard in shards:
            stream = seeds.stream(self.seed, "data", "reference", step, shard)
            classes = np.argsort(stream.random(len(self.data.by_class)), kind="stable")
            members = [self.data.by_class[c] for c in np.resize(classes, self.local_batch)]
            u, v = stream.random((2, self.local_batch))
            picked += [rows[int(x * len(rows))] for rows, x in zip(members, u, strict=True)]
            mirrored += [self.flip and x < 0.5 for x in v]
        index = torch.from_numpy(np.array(picked))
        view = self._view(step, shards, index, torch.tensor(mirrored), "reference")
        return Reference(view.images(self.data), self.data.labels[send(index, self.data.labels.device)])

    def _drops(self, stream: np.random.Generator) -> np.ndarray:
        if self.label_drop_mode == "sample":
            return stream.random(self.local_batch) < self.label_drop
        return np.full(self.local_batch, stream.random() < self.label_drop)

    def _per_row(
        self,
        step: int,
        shards: Sequence[int],
        name: str,
        make: Callable[[np.random.Generator], np.ndarray],
        *more: str,
    ) -> Tensor:
        def one(shard: int) -> np.ndarray:
            return make(seeds.stream(self.seed, name, *more, step, shard))

        each = map(one, shards) if self.workers is None else self.workers.map(one, shards)
        return torch.from_numpy(np.concatenate(list(each)))


class Ahead:
    """Draws of a `Drawer`, the next one made by a thread while the device works on this one.

    A draw is a function of (step, shards), so one that was made early is the same; one that nobody foresaw (a repeated step) is
    made when it is asked for. What the thread puts on the device goes into the same stream as the training's own work.
    """

    def __init__(self, drawer: Drawer) -> None:
        # NumPy fills arrays without the interpreter's lock: at SiT-S/2 and batch 48 one core draws for 7 ms, a step lasts 5.
        self._drawer = dataclasses.replace(drawer, workers=ThreadPoolExecutor(4, "draws"))
        self._thread = ThreadPoolExecutor(1, "ahead")
        self._next: tuple[tuple[int, range], Future[Draw]] | None = None

    def draw(self, step: int, shards: range, then: tuple[int, range]) -> Draw:
        """As `Drawer.draw`; `then` is what will be asked for next."""
        found, self._next = self._next, None
        made = found[1].result() if found is not None and found[0] == (step, shards) else None
        draw = self._drawer.draw(step, shards) if made is None else made
        self._next = (then, self._thread.submit(self._drawer.draw, *then))
        return draw

    def wait(self) -> None:
        """Until nothing is drawn."""
        if self._next is not None:
            self._next[1].exception()

    def close(self) -> None:
        """End the threads; a draw that was begun is waited for."""
        self._thread.shutdown(cancel_futures=True)
        assert isinstance(self._drawer.workers, ThreadPoolExecutor), "made here"
        self._drawer.workers.shutdown()
