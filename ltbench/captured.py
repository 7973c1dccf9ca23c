"""Forward and backward of a micro-batch as a CUDA graph: recorded once per shape, replayed with new numbers.

At small batches a GPU waits for the host to launch kernels one by one (reference sizes: 1,200 a step at SiT-B); a replay launches
all of them at once. What a recording holds is fixed: addresses, shapes, and every number that came from the host. So draws are
copied into buffers, a method's random numbers are drawn outside in the order in which it asked for them, dropout generators
are registered and seeded anew, and a shape is replayed only after one of its steps was computed both ways and agreed. Whatever
cannot be recorded goes on as it was, with a notice that says why.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from ltbench.errors import first_line
from ltbench.graphs import Recorder, aside
from ltbench.methods import Draw, Reference, Rng

SHAPES = 32  # recordings at most; a rarer shape is computed plainly
AGREE = {
    "fp32": 1e-5,
    "tf32": 2e-3,
    "bf16": 2e-2,
}  # of a gradient's norm, and of each term: both ways run the same kernels


class Terms(NamedTuple):
    """What a micro-batch gives beside its gradients: terms and what was watched, detached, and what must be finite."""

    seen: dict[str, Tensor]
    checks: list[Tensor]


Kind = Literal["uniform", "permutation"]

Compute = Callable[[Draw], Terms]
"""Forward and backward of one micro-batch; gradients are added to those that are there."""


@dataclass
class _Asked:
    """What a method asked of the host while it ran, in order: kinds of random numbers, and (local batch, pass) of dropout masks."""

    numbers: list[Kind] = field(default_factory=list)
    masks: list[tuple[int, int]] = field(default_factory=list)
    kept: bool = False  # whether it looked at the kept rows


class _HeardRng(Rng):
    """A method's randomness that writes down what is asked of it."""

    def __init__(self, rng: Rng, asked: _Asked) -> None:
        self._rng, self._asked = rng, asked

    def placed(self, kind: Kind) -> Tensor:
        self._asked.numbers.append(kind)
        return self._rng.placed(kind)


class _HeardDraw(Draw):
    """A draw that writes down whether its kept rows were looked at: their number varies, for methods that want them."""

    def __getattribute__(self, name: str) -> Any:
        if name in ("kept", "kept_sizes") and "asked" in object.__getattribute__(self, "__dict__"):
            object.__getattribute__(self, "asked").kept = True
        return super().__getattribute__(name)


def _heard(draw: Draw, asked: _Asked) -> Draw:
    """The same draw, listening; its random numbers are those of `draw`, which keeps them."""

    def generators(group: int, number: int) -> torch.Generator:
        asked.masks.append((group, number))
        return draw.dropout_generator(group, number)

    fields = {each.name: getattr(draw, each.name) for each in dataclasses.fields(draw)}
    rng = _HeardRng(copy.deepcopy(draw.rng), asked)
    made = _HeardDraw(**{**fields, "rng": rng, "generators": generators})
    object.__setattr__(made, "asked", asked)
    return made


class _Buffered(Rng):
    """Random numbers that lie ready, in the order in which they are asked for."""

    def __init__(self, buffers: Sequence[Tensor]) -> None:
        self._left: Iterator[Tensor] = iter(buffers)

    def placed(self, kind: Kind) -> Tensor:
        return next(self._left)


class Captured:
    """`Compute` by recordings, one per shape of a draw. Needs gradients that stay where they are (zeroed, never dropped)."""

    def __init__(
        self,
        compute: Compute,
        prepare: Callable[[Draw], None],
        parameters: Sequence[nn.Parameter],
        precision: str,
        *,
        dropout: bool,
        recorder: Recorder,
        notice: Callable[[str], None],
        quiet: Callable[[], None] = lambda: None,
    ) -> None:
        """prepare: what a draw needs before it is replayed. dropout: whether the network has masks, so that a shape includes how many rows each draws. notice: hears once why recording has ended. quiet: waits until no thread uses the device."""
        self._compute, self._prepare = compute, prepare
        self._parameters, self._tolerance = list(parameters), AGREE[precision]
        self._recorder, self._notice, self._quiet, self._dropout = recorder, notice, quiet, dropout
        self._met: dict[tuple[Any, ...], _Recording | None] = {}
        self._kept: dict[tuple[Any, ...], bool] = {}  # by all other shapes: whether the kept rows matter
        self.ended: str | None = None  # why nothing is recorded or replayed any more

    def __call__(self, draw: Draw) -> Terms:
        """Terms of the micro-batch, the caller's own; gradients are added."""
        if self.ended is not None:
            return self._compute(draw)
        others = (_shapes(draw), draw.local_batch)
        if others not in self._kept:
            found, asked = self._listen(draw)
            self._kept[others] = asked.kept
            return found
        key = (others, self._sizes(draw) if self._kept[others] else None)
        if key not in self._met and len(self._met) < SHAPES:
            self._met[key] = None
            return self._record(key, draw)
        recording = self._met.get(key)
        if recording is None:
            return aside(draw.xt.device, lambda: self._compute(draw))
        self._prepare(draw)
        return recording(draw) if recording.trusted else self._compare(recording, draw)

    def _sizes(self, draw: Draw) -> tuple[int, ...]:
        return draw.kept_sizes if self._dropout else (len(draw.kept),)

    def _listen(self, draw: Draw) -> tuple[Terms, _Asked]:
        asked = _Asked()
        heard = _heard(draw, asked)
        return aside(draw.xt.device, lambda: self._compute(heard)), asked

    def _record(self, key: tuple[Any, ...], draw: Draw) -> Terms:
        """Compute plainly and listen, then record the same."""
        found, asked = self._listen(draw)
        try:
            self._quiet()
            self._met[key] = _Recording(draw, asked, self._compute, self._recorder)
        except Exception as error:  # torch has no class of its own for what a capture does not allow
            self._end(f"a step cannot be recorded: {type(error).__name__}: {first_line(error)}")
        return found

    def _compare(self, recording: _Recording, draw: Draw) -> Terms:
        """Both ways once. The plain result is the one that counts."""
        held = [p for p in self._parameters if p.grad is not None]
        before = [_grad(p).clone() for p in held]
        again = dataclasses.replace(draw, rng=copy.deepcopy(draw.rng))
        found = aside(draw.xt.device, lambda: self._compute(again))
        plain = [_grad(p).clone() for p in held]
        _put(held, before)
        replayed = recording(draw)
        off = max(
            _distance([_grad(p) for p in held], plain),
            *(_distance([replayed.seen[name]], [value]) for name, value in found.seen.items()),
        )
        _put(held, plain)
        if off <= self._tolerance:
            recording.trusted = True
        else:
            self._end(
                f"a replayed step differs from a plain one by {off:.1e}, allowed are {self._tolerance:.0e}"
            )
        return found

    def _end(self, why: str) -> None:
        self.ended = why
        self._met.clear()
        self._notice(f"CUDA graphs are off, the run goes on without: {why}")


class _Recording:
    """One shape's recording and the buffers that it reads."""

    def __init__(self, draw: Draw, asked: _Asked, compute: Compute, recorder: Recorder) -> None:
        self.trusted = False
        self._asked = asked
        self._numbers = [draw.rng.placed(kind).clone() for kind in asked.numbers]
        device = draw.xt.device
        self._generators = [torch.Generator(device).manual_seed(0) for _ in asked.masks]
        self._fields = {name: value.clone() for name, value in _tensors(draw).items()}
        still = _with_tensors(draw, self._fields)

        def run() -> Terms:
            left = iter(self._generators)

            def generators(_group: int, _number: int) -> torch.Generator:
                return next(left)

            rng = _Buffered(self._numbers)
            return compute(dataclasses.replace(still, rng=rng, generators=generators, recorded=True))

        self._recording = recorder()
        self._found = self._recording.capture(run, self._generators)

    def __call__(self, draw: Draw) -> Terms:
        for name, value in _tensors(draw).items():
            if name != "kept" or self._asked.kept:  # else its number may differ, and nobody reads it
                self._fields[name].copy_(value)
        for kind, buffer in zip(self._asked.numbers, self._numbers, strict=True):
            buffer.copy_(draw.rng.placed(kind))
        for (group, number), generator in zip(self._asked.masks, self._generators, strict=True):
            generator.manual_seed(draw.dropout_seeds[group] ^ number)
        self._recording.replay()
        seen = {name: value.clone() for name, value in self._found.seen.items()}
        return Terms(seen, [value.clone() for value in self._found.checks])


def _tensors(draw: Draw) -> dict[str, Tensor]:
    """All tensors of a draw by name."""
    found: dict[str, Tensor] = {}
    for each in dataclasses.fields(draw):
        value = getattr(draw, each.name)
        if isinstance(value, Tensor):
            found[each.name] = value
        elif isinstance(value, Reference):
            found |= {f"{each.name}.{name}": part for name, part in value._asdict().items()}
    return found


def _with_tensors(draw: Draw, tensors: dict[str, Tensor]) -> Draw:
    plain = {name: value for name, value in tensors.items() if "." not in name}
    if draw.reference is not None:
        plain["reference"] = Reference(tensors["reference.x0"], tensors["reference.y"])  # pyright: ignore[reportArgumentType]
    return dataclasses.replace(draw, **plain)


def _shapes(draw: Draw) -> tuple[Any, ...]:
    return tuple((name, tuple(value.shape)) for name, value in _tensors(draw).items() if name != "kept")


def _grad(p: nn.Parameter) -> Tensor:
    assert p.grad is not None, "held gradients only"
    return p.grad


def _put(held: Sequence[nn.Parameter], values: Sequence[Tensor]) -> None:
    for p, value in zip(held, values, strict=True):
        _grad(p).copy_(value)


def _distance(a: Sequence[Tensor], b: Sequence[Tensor]) -> float:
    """|a - b| / |b| over all elements; infinite where anything is not finite on one side alone."""
    away = torch.stack([(x.double() - y.double()).square().sum() for x, y in zip(a, b, strict=True)]).sum()
    size = torch.stack([y.double().square().sum() for y in b]).sum()
    found = float((away / size.clamp(min=1e-30)).sqrt())
    return found if found == found else float("inf")
