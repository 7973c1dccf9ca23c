"""Dropout whose masks are keyed by the caller, so that a row's mask does not depend on which rows it travelled with.

The engine gives one generator per local batch (or per whatever slice of rows it likes); a network that runs eight local batches
at once then draws the same masks as one that runs them one after the other. Torch's own dropout draws from one global stream in
batch order and cannot promise that.
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
        keep = (
            torch.cat([self._uniform(generator, shape, x) for generator, shape in self._slices(x)]) >= self.p
        )
        return x * keep / (1 - self.p)

    def _slices(self, x: Tensor) -> list[tuple[torch.Generator, tuple[int, ...]]]:
        generators, rows = _streams.get()
        if not generators:
            raise RuntimeError(
                f"dropout {self.p} needs its random streams: run the training forward inside "
                "ltbench.networks.dropout.dropout_streams([...]), or call eval() first"
            )
        if rows is None:
            rows = (x.shape[0] // len(generators),) * len(generators)
        if sum(rows) != x.shape[0] or len(rows) != len(generators):
            raise ValueError(
                f"{x.shape[0]} batch rows cannot be shared by {len(generators)} dropout streams with {list(rows)} rows: "
                "give one generator per equal slice of the rows, or the rows of each"
            )
        return [(generator, (n, *x.shape[1:])) for generator, n in zip(generators, rows, strict=True) if n]

    @staticmethod
    def _uniform(generator: torch.Generator, shape: tuple[int, ...], x: Tensor) -> Tensor:
        # drawn where the generator lives: a CPU stream gives a GPU run the same masks
        return torch.rand(shape, generator=generator, device=generator.device).to(x.device)

    def extra_repr(self) -> str:
        return f"p={self.p}"
