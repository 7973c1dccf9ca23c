"""Replayed steps equal plain ones, whatever a method asks for. CUDA graphs are stood in for by code that runs again on the buffers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import nn

from ltbench.captured import Terms
from ltbench.compiled import compile_blocks
from ltbench.execution import Executed, Execution
from ltbench.methods import load_method
from ltbench.parts import Parts, build_parts
from ltbench.trainer import Trainer
from tests.toy import Toy, parts, settings, small, variants

STEPS = 14  # shapes are met, recorded and compared before they are replayed


class Again:
    """A recording on a CPU: what was recorded runs again, and leaves its results where they were the first time."""

    def __init__(self, album: Album) -> None:
        self.album = album

    def capture(self, work: Callable[[], Terms], generators: Sequence[torch.Generator] = ()) -> Terms:
        held = [(p.grad, p.grad.clone()) for p in self.album.parameters if p.grad is not None]
        self.work, self.found = work, work()
        for grad, before in held:  # a recording computes nothing
            grad.copy_(before)
        return self.found

    def replay(self) -> None:
        self.album.replayed += 1
        new = self.work()
        for name, value in new.seen.items():
            self.found.seen[name].copy_(value)
        for old, value in zip(self.found.checks, new.checks, strict=True):
            old.copy_(value)


class Stale(Again):
    """What a recording does with a number that came from the host: it stays as it was."""

    def replay(self) -> None: ...


class Refusing(Again):
    def capture(self, work: Callable[[], Terms], generators: Sequence[torch.Generator] = ()) -> Terms:
        raise RuntimeError("operation not permitted when stream is capturing\nand more")


class Album:
    """Makes recordings of a kind and counts their replays."""

    def __init__(self, kind: type[Again], parameters: Sequence[nn.Parameter]) -> None:
        self.kind, self.parameters, self.replayed = kind, parameters, 0

    def __call__(self) -> Again:
        return self.kind(self)


def built(name: str, pipeline: str, **options: Any) -> Parts:
    return parts(pipeline, {**small(name, pipeline), **options}, batch=4, dropout=0.1, clip_norm=1.0)


def replaying(made: Parts, kind: type[Again], told: list[str]) -> tuple[Trainer, Album]:
    recorder = Album(kind, [p for p in made.objective.parameters() if p.requires_grad])
    trainer = Trainer(made, 4, 5, execution=Execution("graphs"), recorder=recorder, notice=told.append)
    return trainer, recorder


def assert_equal_weights(a: Trainer, b: Trainer) -> None:
    for name, value in a.parts.objective.state_dict().items():
        assert torch.equal(b.parts.objective.state_dict()[name], value), name
    assert a.curve.state() == b.curve.state()


# The U-Net differs in its masks alone, and a step of it takes long.
SOME = [case for case in variants() if case[1] == "sit" or case[0] == "ccua"]


@pytest.mark.parametrize(("name", "pipeline", "options"), SOME)
def test_replayed_steps_equal_plain_ones_bit_for_bit(
    name: str, pipeline: str, options: dict[str, Any]
) -> None:
    told: list[str] = []
    plain = Trainer(built(name, pipeline, **options), 4, 5)
    made, recorder = replaying(built(name, pipeline, **options), Again, told)
    for _ in range(STEPS):
        plain.advance()
        made.advance()
    assert_equal_weights(plain, made)
    if plain.parts.objective.method.on_host:
        assert "graphs" in told[0]
    else:
        assert (told, recorder.replayed > 3) == ([], True)


@pytest.mark.parametrize(("kind", "why"), [(Stale, "differs"), (Refusing, "operation not permitted")])
def test_what_cannot_be_recorded_goes_on_plainly_and_says_so(kind: type[Again], why: str) -> None:
    told: list[str] = []
    plain = Trainer(built("cbdm", "sit"), 4, 5)
    made, _ = replaying(built("cbdm", "sit"), kind, told)
    for _ in range(STEPS):
        plain.advance()
        made.advance()
    (message,) = told
    assert why in message
    assert "\n" not in message
    assert made.executed.name == "compiled"
    assert made.executed.fallback in message
    assert why in made.executed.fallback
    assert_equal_weights(plain, made)


@pytest.mark.filterwarnings("ignore:The .grad attribute")  # torch's tracing looks at it
def test_a_network_that_cannot_be_compiled_runs_as_written_and_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """No compiler on the machine, for one: found out in the first step, which is then made again."""

    def missing(*_: object) -> object:
        raise RuntimeError("no C++ compiler here")

    monkeypatch.setattr(
        "ltbench.parts.compile_blocks", lambda network: compile_blocks(network, backend=missing)
    )
    told: list[str] = []
    how = Execution("compiled")
    made = build_parts(settings("sit", "sit"), Toy(), load_method("sit"), torch.device("cpu"), execution=how)
    compiled, plain = (
        Trainer(made, 12, 5, execution=how, notice=told.append),
        Trainer(parts("sit", "sit"), 12, 5),
    )
    for _ in range(2):
        plain.advance()
        compiled.advance()
    (message,) = told
    assert "no C++ compiler here" in message
    assert compiled.executed == Executed("eager", message)
    assert_equal_weights(plain, compiled)
