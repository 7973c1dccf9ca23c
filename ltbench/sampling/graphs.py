"""A network's forward recorded once per shape and replayed: one launch for a whole forward, where a GPU would wait for the host.

A recording reads and writes memory at fixed places. Inputs are copied there before a replay; what comes out is copied away,
since the next replay writes over it and a sampler such as heun or dopri5 keeps several answers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ltbench.errors import first_line
from ltbench.graphs import Recorder, Recording, aside

WARM_UP = 3  # calls before a recording: libraries choose kernels and take memory at the first ones


@dataclass(frozen=True)
class _Held:
    """A recording with the memory it reads, (x, t, y), and writes."""

    recording: Recording
    inputs: tuple[Tensor, Tensor, Tensor]
    output: Tensor

    def __call__(self, *inputs: Tensor) -> Tensor:
        for place, value in zip(self.inputs, inputs, strict=True):
            place.copy_(value)
        self.recording.replay()
        return self.output.clone()


class Graphs:
    """`plain` with the same answers, recorded at the first call of every shape and replayed from then on.

    A recording is tried once on other inputs than it was made with. One that fails, or answers otherwise by more than `rounding`
    of the largest number, ends recording: every call is plain from then on, and `notice` hears once why.
    """

    def __init__(
        self,
        plain: Callable[[Tensor, Tensor, Tensor], Tensor],
        recorder: Recorder,
        *,
        rounding: float,
        notice: Callable[[str], None],
    ) -> None:
        self._plain, self._recorder, self._rounding, self._notice = plain, recorder, rounding, notice
        self._held: dict[tuple[object, ...], _Held] = {}
        self.ended: str | None = None  # why nothing is recorded or replayed any more

    def __call__(self, x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        signature = tuple(x.shape), x.dtype, t.dtype
        held = self._held.get(signature)
        if held is None and self.ended is None:
            held = self._record(x, t, y)
            if held is not None:
                self._held[signature] = held
        return self._plain(x, t, y) if held is None else held(x, t, y)

    def _record(self, x: Tensor, t: Tensor, y: Tensor) -> _Held | None:
        places = x.clone(), t.clone(), y.clone()
        try:
            aside(x.device, lambda: [self._plain(*places) for _ in range(WARM_UP)])
            recording = self._recorder()
            held = _Held(recording, places, recording.capture(lambda: self._plain(*places)))
            problem = self._problem(held, x, t, y)
            if problem is None:
                return held
        except Exception as error:  # whatever a driver says: the plain call has the last word
            problem = f"the forward cannot be recorded ({type(error).__name__}: {first_line(error)[:200]})"
        self.ended = f"sampling without graphs: {problem}"
        self._held.clear()
        self._notice(self.ended)
        return None

    def _problem(self, held: _Held, x: Tensor, t: Tensor, y: Tensor) -> str | None:
        """What is wrong with a recording's answer to other inputs, in words."""
        inputs = others(x, t, y)
        expected, found = (torch.nan_to_num(answer(*inputs)) for answer in (self._plain, held))
        gap, size = float((found - expected).abs().max()), float(expected.abs().max())
        if gap <= self._rounding * size:
            return None
        return (
            f"a recorded forward differs from the plain one by {gap:.3g}, where its answers reach {size:.3g}"
        )


def others(x: Tensor, t: Tensor, y: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Inputs that differ in every row from these and that any network takes: clocks stay in their range and move far, labels are
    among those given or class 0."""
    clock = (t + 0.37) % 1 if t.is_floating_point() else torch.where(t > 1, t // 2, t + 1)
    return x.flip(0) * 0.5 + 0.1, clock, torch.where(y == 0, y.max(), 0)
