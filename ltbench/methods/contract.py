"""Draw, Task, Method, Objective: all that a method sees and all that the trainer sees of a method."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple, Protocol, final

import numpy as np
import torch
from torch import Tensor, nn

from ltbench import seeds
from ltbench.diffusion import Process
from ltbench.errors import LtbenchError, UsageError
from ltbench.networks import Network
from ltbench.networks.dropout import dropout_streams
from ltbench.places import send

Pass = Tensor | tuple[Tensor, Tensor]  # labels (B,), or labels (B,) with the rows (n,) that are wanted
PADDING = 1 << 20  # numbers the masks of padding rows, apart from those of any pass
WATCHED = "watch/"  # what a method watches is logged under this prefix, beside its terms and outside the loss


class Unsupported(LtbenchError):
    """A method says why it cannot run on a task (`Method.supports`); the table prints the reason as n/a."""


class ContractBroken(ValueError):
    """A method returned what the contract does not allow; the message names it."""


class NetOut(NamedTuple):
    """What one pass gives: pred (n, C, H, W) float32 and one (n, N, D) tensor per tap, in the order of `Method.taps`."""

    pred: Tensor
    feats: list[Tensor]


class Rng:
    """The only source of randomness a method may use: one keyed stream per local batch.

    Numbers belong to their local batch, so neither the micro-batch nor the number of GPUs changes them.
    """

    def __init__(
        self, seed: int, step: int, shards: Sequence[int], local_batch: int, device: torch.device
    ) -> None:
        self._streams = [seeds.stream(seed, "method", step, shard) for shard in shards]
        self._local_batch, self._device = local_batch, device

    def uniform(self) -> Tensor:
        """(B,) float32 in [0, 1)."""
        return self.placed("uniform")

    def categorical(self, probabilities: Tensor) -> Tensor:
        """(B,) int64 numbers drawn independently from `probabilities`: (K,) for all, or a row each, (B, K); rows sum to 1."""
        u = self.uniform()
        rows = probabilities.double().expand(len(u), -1)
        # A product with a triangle of ones: a GPU's running sum has no deterministic kernel.
        triangle = torch.ones(rows.shape[1], rows.shape[1], dtype=rows.dtype, device=rows.device).triu()
        edges = (rows @ triangle).to(torch.float32)
        # The last edge may round below 1, and a number of probability 0 must not catch the remainder.
        last = rows.shape[1] - 1 - (rows > 0).flip(1).to(torch.uint8).argmax(1)
        return torch.searchsorted(edges, u[:, None], right=True).squeeze(1).minimum(last)

    def permutation(self) -> Tensor:
        """(B,) int64 rows, shuffled uniformly inside each local batch: row i is paired with row permutation()[i]."""
        return self.placed("permutation")

    def placed(self, kind: Literal["uniform", "permutation"]) -> Tensor:
        """The next numbers of a kind on the device, for which nobody waits; all that a method draws comes through here."""
        return send(torch.from_numpy(self.host(kind)), self._device)

    def host(self, kind: Literal["uniform", "permutation"]) -> np.ndarray:
        """The next numbers of a kind, (B,), on the host: whoever replays a recorded step asks for them in the order it had."""
        g = self._local_batch
        if kind == "uniform":
            return np.concatenate([stream.random(g, dtype=np.float32) for stream in self._streams])
        parts = [k * g + np.argsort(s.random(g), kind="stable") for k, s in enumerate(self._streams)]
        return np.concatenate(parts)


def kept_rows(dropped: Tensor, local_batch: int) -> tuple[Tensor, tuple[int, ...]]:
    """(B,) bool on the host -> the rows that are False, (n,) int64, and how many there are in each local batch."""
    kept = (~dropped).nonzero().squeeze(1)
    return kept, tuple((~dropped).view(-1, local_batch).sum(1).tolist())


class Reference(NamedTuple):
    """A second batch, balanced over the classes that have images: x0 (B, C, H, W) like the draw's, y (B,) int64."""

    x0: Tensor
    y: Tensor


@dataclass(frozen=True)
class Draw:
    """One noised batch, drawn by the engine before the method is asked: at one seed two methods see the same.

    x0, eps, xt, target: (B, C, H, W) float32; xt = signal(t) x0 + noise(t) eps; target is what the network should output.
    t: (B,) the process's own clock. level: (B,) in [0, 1], 0 clean, 1 noise, whatever the clock: weights are written in it.
    y: (B,) int64 true labels. dropped: (B,) bool label dropout. y_in: (B,) y with dropped entries set to the null label.
    kept: (n,) int64, the rows whose label was not dropped, rising. It was made on the host: to look for them on the device
    would make the host wait. kept_sizes: how many of them each local batch has.
    index: (B,) int64 position in the training set. flipped: (B,) bool, mirrored left to right.
    augment: (B, 9) float32, how the images were moved (ltbench.augment), `flipped` among it; `Method.run` tells the network. None
    unless the cell has `augment: ada`.
    rng: the method's randomness. local_batch: images among which batch-wise terms compare.
    dropout_seeds: one per local batch, for masks inside the network. generators: (local batch, pass) -> the generator of these
    masks, for whoever owns generators and seeds them; None: a new one. recorded: the step becomes a CUDA graph, so nothing can be
    read on the host; what `Method.prepare` does was done.
    pixels: (B, C, R, R) uint8, the images themselves, mirrored and moved like x0; None unless the method has `needs_pixels`.
    reference: a class-balanced batch, local batch by local batch; None unless the method has `needs_reference`.
    """

    x0: Tensor
    eps: Tensor
    xt: Tensor
    target: Tensor
    t: Tensor
    level: Tensor
    y: Tensor
    dropped: Tensor
    kept: Tensor
    kept_sizes: tuple[int, ...]
    y_in: Tensor
    index: Tensor
    flipped: Tensor
    rng: Rng
    local_batch: int
    dropout_seeds: tuple[int, ...]
    pixels: Tensor | None = None
    reference: Reference | None = None
    augment: Tensor | None = None
    generators: Callable[[int, int], torch.Generator] | None = None
    recorded: bool = False

    def dropout_generator(self, group: int, number: int) -> torch.Generator:
        """The source of the masks of a local batch in a pass."""
        if self.generators is not None:
            return self.generators(group, number)
        return torch.Generator(self.xt.device).manual_seed(self.dropout_seeds[group] ^ number)

    def sizes(self, rows: Tensor | None) -> Sequence[int]:
        """How many of `rows` (n,) each local batch has; None: all rows. Waits for the device unless these are `kept` or none."""
        groups = len(self.dropout_seeds)
        if rows is None:
            return [self.local_batch] * groups
        if rows is self.kept:
            return self.kept_sizes
        if len(rows) == 0:
            return [0] * groups
        own = torch.arange(groups, device=rows.device)[:, None] == rows // self.local_batch
        return own.sum(1).tolist()

    def by_local_batch(self, x: Tensor) -> Tensor:
        """(B, ...) -> (G, g, ...): rows of one local batch together."""
        return x.unflatten(0, (-1, self.local_batch))


class FrozenEncoder(Protocol):
    """What `Task.encoder` gives: a frozen network's tokens (B, N, width) float32 of a draw's pixels, without gradient. `prepare` is
    called first (`Method.prepare`); it makes the tokens that are kept and missing."""

    @property
    def width(self) -> int: ...
    def prepare(self, draw: Draw) -> None: ...
    def __call__(self, draw: Draw) -> Tensor: ...


def _no_encoder(name: str, grid: tuple[int, int], cache: bool = False) -> FrozenEncoder:
    raise UsageError(f"no encoder '{name}' here: this task was made without encoders")


@dataclass(frozen=True)
class Task:
    """What stays fixed for a cell.

    process: the noising process and its conversions. pipeline: "sit" or "ddpm". null: the null label (K).
    class_counts: (K,) training images per class before resampling. class_prior: (K,) probabilities as batches see them.
    tap: the published tap behind a name such as `N/4`; raises UsageError naming what exists where there is none.
    tap_widths: {tap: (N, D)} for every tap the network publishes. passes: how `Method.run` asks for several passes.
    dropout: the network's own. bfloat16: whether passes run under autocast; predictions and features come back as float32
    in any case. fixed_rows: `Method.run` fills the rows of a forward up to one of a few counts, for compiled networks, which
    are compiled anew for every count; nobody sees the rows filled in. encoder: `encoder(name, (h, w), cache=False)` is a frozen encoder by name, its tokens resized to a grid of h by
    w; EnvironmentProblem says in one line why it cannot be had.
    """

    process: Process
    pipeline: str
    null: int
    class_counts: Tensor
    class_prior: Tensor
    tap: Callable[[str], str]
    tap_widths: Mapping[str, tuple[int, int]]
    passes: Literal["fused", "serial"] = "fused"
    dropout: float = 0.0
    bfloat16: bool = False
    fixed_rows: bool = False
    encoder: Callable[..., FrozenEncoder] = _no_encoder


def fixed_rows(rows: int, batch: int) -> int:
    """The count that `rows` of a forward are filled up to, at most five per unit of the batch: from whole batches down to a
    quarter of one less, in steps of a twelfth."""
    top = -(-rows // batch) * batch
    step = max(1, batch // 12)
    return max(top - batch // 4, top - (top - rows) // step * step)


class Method(nn.Module, ABC):
    """How a noised batch becomes a loss. See `loss`.

    Parameters registered on a method are trained, synchronised and checkpointed with the network; EMA follows the network.
    """

    taps: tuple[str, ...] = ()  # blocks whose features `loss` wants, (B, N, D) each; may be set in __init__
    needs_pixels: bool = False  # `draw.pixels`; may be set in __init__
    needs_reference: bool = False  # `draw.reference`; may be set in __init__
    on_host: str = ""  # why `loss` reads numbers on the host, if it does: its step is never a CUDA graph; may be set in __init__
    presets: ClassVar[
        dict[str, dict[str, Any]]
    ] = {}  # literal; an entry named like a pipeline is its default, `off` switches off, `check` fits a test

    single_pass: ClassVar[list[dict[str, Any]] | None] = (
        None  # literal, for costs: parameters with which one pass is made, where others run kept images twice; None: always one
    )

    def __init__(self, task: Task) -> None:
        super().__init__()
        self.task = task
        self._passes_made = 0
        self._watched: dict[str, Tensor] = {}

    @classmethod
    def supports(cls, task: Task) -> str | None:
        """None if the method can run on this task, else the reason that the table prints as n/a."""
        return None

    @abstractmethod
    def loss(self, net: Network, draw: Draw) -> dict[str, Tensor]:
        """Named, already weighted terms whose sum is the loss. Each is a scalar, or (B,) and then averaged by the engine.

        (B,) terms are also logged for head, body and tail. Batch statistics compare inside a local batch and are averaged.
        """

    def prepare(self, draw: Draw) -> None:
        """What the loss of a draw needs and a CUDA graph cannot hold, such as features kept from their first use on: called before
        `loss`, and before each replay of it. It may read numbers on the host. Tensors that it fills must stay where they are."""
        return

    @final
    def run(self, net: Network, draw: Draw, *passes: Pass) -> list[NetOut]:
        """One NetOut per pass, all at the same (xt, t): one concatenated forward, or one after another (`Task.passes`).

        A pass is labels (B,), or (labels (B,), rows (n,)) where only some rows are wanted: `draw.kept`, for one. With dropout
        in the network, other rows of one's own make the host wait for the device. A pass without rows left costs nothing and
        gives empty tensors.
        """
        asked = [_with_rows(labels_and_rows) for labels_and_rows in passes]
        first = self._passes_made
        self._passes_made += len(asked)
        if self.task.passes == "fused":
            return self._forward(net, draw, asked, first)
        return [out for k, one in enumerate(asked) for out in self._forward(net, draw, [one], first + k)]

    @final
    def watch(self, name: str, value: Tensor) -> None:
        """Log `value` (B,), e.g. whether an image was moved, for head, body, tail and five bins of noise level.

        It has no gradient and is no part of the loss.
        """
        self._watched[name] = value.detach().float()

    def _forward(
        self, net: Network, draw: Draw, asked: list[tuple[Tensor, Tensor | None]], first: int
    ) -> list[NetOut]:
        parts = [
            (draw.xt, draw.t, labels) if rows is None else (draw.xt[rows], draw.t[rows], labels[rows])
            for labels, rows in asked
        ]
        sizes = [part[0].shape[0] for part in parts]
        taps = tuple(self.task.tap(name) for name in self.taps)
        if sum(sizes) == 0:
            empty = [draw.xt.new_empty((0, *self.task.tap_widths[tap])) for tap in taps]
            return [NetOut(draw.xt[:0], empty) for _ in asked]
        filled = fixed_rows(sum(sizes), draw.y.shape[0]) - sum(sizes) if self.task.fixed_rows else 0
        if filled:
            parts.append(self._filling(draw, filled))
        x, t, y = (torch.cat(column) if len(parts) > 1 else column[0] for column in zip(*parts, strict=True))
        more = {}
        if (moved := draw.augment) is not None:
            each = [moved if rows is None else moved[rows] for _, rows in asked]
            more["augment"] = torch.cat([*each, moved[:1].expand(filled, -1)])
        with self._dropout(net, draw, asked, first, filled), self._autocast(x.device):
            pred, feats = net(x, t, y, taps=taps, **more)
        # What was filled in is the last part, and nobody gets it.
        split = [
            out.float().split([*sizes, filled] if filled else sizes)[: len(asked)] for out in (pred, *feats)
        ]
        return [NetOut(columns[0], list(columns[1:])) for columns in zip(*split, strict=True)]

    def _filling(self, draw: Draw, rows: int) -> tuple[Tensor, Tensor, Tensor]:
        """Images, clock and labels of rows that nobody looks at: the first image under the null label."""
        x = draw.xt[:1].expand(rows, *draw.xt.shape[1:])
        return x, draw.t[:1].expand(rows), draw.y.new_full((rows,), self.task.null)

    def _autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        if not self.task.bfloat16:
            return nullcontext()
        # A cast weight is used once per forward, and one that is kept must not be taken for another CUDA graph's.
        return torch.autocast(device.type, torch.bfloat16, cache_enabled=False)

    def _dropout(
        self, net: Network, draw: Draw, asked: list[tuple[Tensor, Tensor | None]], first: int, filled: int
    ) -> AbstractContextManager[Any]:
        """Masks are keyed by (local batch, pass), so fused equals serial and the micro-batch does not matter; rows filled in
        have their own."""
        if not net.training or self.task.dropout == 0:
            return nullcontext()
        groups = range(len(draw.dropout_seeds))
        numbers = range(first, first + len(asked))
        generators = [draw.dropout_generator(group, number) for number in numbers for group in groups]
        sizes = [size for _, rows in asked for size in draw.sizes(rows)]
        if filled:
            generators.append(draw.dropout_generator(0, PADDING + first))
            sizes.append(filled)
        return dropout_streams(generators, sizes)


class Objective(nn.Module):
    """Network and method as one module: what DDP wraps, the optimiser sees and a checkpoint holds."""

    def __init__(self, network: Network, method: Method) -> None:
        super().__init__()
        self.network, self.method = network, method

    def forward(self, draw: Draw) -> dict[str, Tensor]:
        """The method's terms. Raises ContractBroken, naming the term, where one is not allowed."""
        if not draw.recorded:
            self.method.prepare(draw)
        self.method._passes_made = 0
        self.method._watched = {}
        terms = self.method.loss(self.network, draw)
        if not isinstance(terms, dict) or not terms:
            raise ContractBroken(
                f"loss() must return a dict of named terms, not {type(terms).__name__}: {terms!r:.80}"
            )
        batch = draw.y.shape[0]
        for name, term in terms.items():
            if not isinstance(term, Tensor) or tuple(term.shape) not in ((), (batch,)):
                shape = tuple(term.shape) if isinstance(term, Tensor) else type(term).__name__
                raise ContractBroken(
                    f"term {name!r} of loss() must be a scalar or ({batch},) tensor, not {shape}"
                )
        for name, value in self.method._watched.items():
            if tuple(value.shape) != (batch,):
                raise ContractBroken(f"watch({name!r}) takes a ({batch},) tensor, not {tuple(value.shape)}")
        return terms

    @property
    def watched(self) -> dict[str, Tensor]:
        """What the method watched in the last forward: {"watch/NAME": (B,) float32}."""
        return {WATCHED + name: value for name, value in self.method._watched.items()}


def _with_rows(asked: Pass) -> tuple[Tensor, Tensor | None]:
    return asked if isinstance(asked, tuple) else (asked, None)
