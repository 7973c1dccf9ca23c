"""Dropout whose masks are keyed by the caller, so that a row's mask does not depend on which rows it travelled with.

The engine gives one generator per local batch (or per whatever slice of rows it likes); a network that runs eight local batches
at once then draws the same masks as one that runs them one after the other. Torch's own dropout draws from one global stream in
batch order and cannot promise that.

The draw is an operator of its own, `ltbench::keep`, which a compiler takes as it is: compiled blocks draw the masks that eager
ones draw, in the same order, and nothing waits for a device.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor, nn

_Streams = tuple[tuple[torch.Generator, ...], tuple[int, ...] | None]
_streams: ContextVar[_Streams] = ContextVar("dropout_streams", default=((), None))


@contextmanager
def dropout_streams(
    generators: Sequence[torch.Generator], rows: Sequence[int] | None = None
) -> Iterator[None]:
    """Within this block, dropout masks come from `generators`: one per slice of the batch rows, in row order.

    `rows` are the sizes of the slices, 0 allowed; without it they are equal. A generator is consumed layer by layer, so it
    must be fresh for every forward whose masks are to be reproduced.
    """
    token = _streams.set((tuple(generators), None if rows is None else tuple(rows)))
    try:
        yield
    finally:
        _streams.reset(token)


# Seeded: a compiler must neither merge two draws nor repeat one in the backward pass.
torch.library.define(
    "ltbench::keep", "(Tensor x, float p) -> Tensor", tags=(torch.Tag.nondeterministic_seeded,)
)


@torch.library.impl("ltbench::keep", "default")
def _keep(x: Tensor, p: float) -> Tensor:
    """Which elements of x (B, ...) stay: bool of its shape, drawn slice by slice from the streams of `dropout_streams`."""
    generators, rows = _streams.get()
    if not generators:
        raise RuntimeError(
            f"dropout {p} needs its random streams: run the training forward inside "
            "ltbench.networks.dropout.dropout_streams([...]), or call eval() first"
        )
    if rows is None:
        rows = (x.shape[0] // len(generators),) * len(generators)
    if sum(rows) != x.shape[0] or len(rows) != len(generators):
        raise ValueError(
            f"{x.shape[0]} batch rows cannot be shared by {len(generators)} dropout streams with {list(rows)} rows: "
            "give one generator per equal slice of the rows, or the rows of each"
        )
    # drawn where the generators live: a CPU stream gives a GPU run the same masks
    numbers = torch.empty(x.shape, device=generators[0].device)
    for generator, part in zip(generators, numbers.split(rows), strict=True):
        part.uniform_(generator=generator)
    return (numbers >= p).to(x.device)


@torch.library.register_fake("ltbench::keep")
def _keep_shape(x: Tensor, p: float) -> Tensor:
    return torch.empty(x.shape, dtype=torch.bool, device=x.device)


class Dropout(nn.Module):
    """Zero each element with probability `p` and scale the others by 1 / (1 - p), in training; the identity in eval().

    Raises RuntimeError when it has to draw outside `dropout_streams`, ValueError when the slices do not add up to
    the batch.
    """

    def __init__(self, p: float) -> None:
        super().__init__()
        if not 0 <= p < 1:
            raise ValueError(f"dropout is a probability in [0, 1), got {p}")
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """x (B, ...) float -> same shape and dtype."""
        if not self.training or self.p == 0 or x.shape[0] == 0:
            return x
        # detached: a mask has no gradient; of x it depends on the shape alone, but the order of two draws is that of their x
        return x * torch.ops.ltbench.keep(x.detach(), self.p) / (1 - self.p)

    def extra_repr(self) -> str:
        return f"p={self.p}"
