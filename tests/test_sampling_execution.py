"""How the network is called changes no image: recorded, compiled, in blocks, with noise drawn ahead, in a lower precision only its digits."""

from __future__ import annotations

import inspect
import threading
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from ltbench import noise, seeds
from ltbench.diffusion import process_for
from ltbench.execution import Executed, Execution
from ltbench.generate import blocks, initial_noise
from ltbench.graphs import Recording, aside, cuda_graph
from ltbench.networks import Network
from ltbench.noise import noise_ahead, step_noise
from ltbench.protocols import sampler_options
from ltbench.sampling import Forward, multiplying, prepared
from ltbench.sampling.graphs import Graphs, _Held
from tests.nets import build
from tests.sampling_oracles import NULL, Oracle, draw, noise_of

torch.set_num_threads(1)
CPU = torch.device("cpu")
HALF = {"name": "interval", "low": 0.0, "high": 0.5}  # one half of the steps is guided: two numbers of rows
CASES = [("heun", "sit", 6), ("dopri5", "sit", None), ("sde-heun", "sit", 5), ("ddim", "ddpm", 10)]


class Again:
    """A recording without a GPU: it does its work again, on the memory that it was captured with."""

    def __init__(self) -> None:
        self.replays = 0

    def capture(self, work: Callable[[], Tensor], generators: Sequence[torch.Generator] = ()) -> Tensor:
        self.work, self.out = work, work()
        return self.out

    def replay(self) -> None:
        self.replays += 1
        self.out.copy_(self.work())


class Album:
    """Makes recordings, and keeps them."""

    def __init__(self, kind: Callable[[], Recording] = Again) -> None:
        self.kind = kind
        self.made: list[Any] = []

    def __call__(self) -> Recording:
        self.made.append(self.kind())
        return self.made[-1]


def curved(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
    """A formula that depends on all it is given."""
    clock = (t / 1000 if not t.is_floating_point() else t).view(-1, 1, 1, 1)
    return torch.tanh(x * (1 + clock)) + 0.3 * y.view(-1, 1, 1, 1) - clock**2


def sampled(sampler: str, pipeline: str, steps: int | None, recorder: Any = None, **more: Any) -> Tensor:
    network = Oracle(curved)
    fresh = step_noise(0, range(3), (1, 4, 4), CPU)
    forward = Forward(network, recorder=recorder, notice=more.pop("notice", lambda message: None))
    return draw(network, process_for(pipeline), sampler, steps, noise_of(dtype=torch.float32), 2.0,
                fresh=fresh, forward=forward, **more)  # fmt: skip


# --- recorded ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("sampler", "pipeline", "steps"), CASES)
def test_a_recorded_network_gives_the_same_images(sampler: str, pipeline: str, steps: int | None) -> None:
    for schedule, shapes in ((None, 1), (HALF, 2)):
        album, told = Album(), []
        found = sampled(sampler, pipeline, steps, album, schedule=schedule, notice=told.append)
        assert torch.equal(found, sampled(sampler, pipeline, steps, schedule=schedule))
        assert len(album.made) == shapes  # one recording for each number of rows
        assert sum(one.replays for one in album.made) > shapes
        assert told == []


def test_an_answer_stays_when_the_next_one_is_made() -> None:
    ask = Graphs(curved, Again, rounding=1e-6, notice=pytest.fail)
    x, y = noise_of(dtype=torch.float32), torch.tensor([0, 1, 2])
    first, second = ask(x, torch.full((3,), 0.2), y), ask(2 * x, torch.full((3,), 0.7), y)
    assert torch.equal(first, curved(x, torch.full((3,), 0.2), y))
    assert torch.equal(second, curved(2 * x, torch.full((3,), 0.7), y))


@pytest.mark.parametrize("which", range(3))
def test_a_recording_that_misses_an_input_is_not_used(monkeypatch: pytest.MonkeyPatch, which: int) -> None:
    def careless(self: _Held, *inputs: Tensor) -> Tensor:
        for i, (place, value) in enumerate(zip(self.inputs, inputs, strict=True)):
            if i != which:
                place.copy_(value)
        self.recording.replay()
        return self.output.clone()

    monkeypatch.setattr(_Held, "__call__", careless)
    for case in CASES:
        told: list[str] = []
        found = sampled(*case, recorder=Album(), schedule=HALF, notice=told.append)
        assert torch.equal(found, sampled(*case, schedule=HALF))
        (said,) = told
        assert "sampling without graphs: a recorded forward differs from the plain one by" in said


class Refusing(Again):
    def capture(self, work: Callable[[], Tensor], generators: Sequence[torch.Generator] = ()) -> Tensor:
        work()
        raise RuntimeError("operation not permitted when stream is capturing\nand a long trace")


def test_what_cannot_be_recorded_is_called_plainly_and_said_once() -> None:
    told: list[str] = []
    album = Album(Refusing)
    found = sampled("heun", "sit", 6, album, schedule=HALF, notice=told.append)
    assert torch.equal(found, sampled("heun", "sit", 6, schedule=HALF))
    assert told == [
        "sampling without graphs: the forward cannot be recorded (RuntimeError: operation not permitted when stream is capturing)"
    ]
    assert len(album.made) == 1
    forward = Forward(oracle(), recorder=Album(Refusing))
    draw(forward.network, process_for("sit"), "euler", 2, noise_of(dtype=torch.float32), 2.0, forward=forward)
    assert forward.executed == Executed("eager", told[0])
    ask = Graphs(lambda x, t, y: x / (1 // 0), Again, rounding=0.0, notice=told.append)
    with pytest.raises(ZeroDivisionError):  # an error of the network itself is the network's
        ask(torch.ones(2), torch.ones(2), torch.ones(2))


def test_a_cuda_recording_warms_up_aside_and_stops_no_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    # there is no GPU here: what CUDA would be asked for, in order, by calls that the real classes take
    asked: list[str] = []

    class Stream:
        def wait_stream(self, other: Any) -> None:
            asked.append("wait")

    @contextmanager
    def inside(name: str, *args: Any, **more: Any) -> Iterator[None]:
        asked.append(name)
        if name == "graph":
            inspect.signature(graph.__init__).bind(None, *args, **more)
            assert more == {"pool": (0, 1), "capture_error_mode": "thread_local"}
        yield
        asked.append(f"end {name}")

    class Graph:
        def replay(self) -> None:
            asked.append("replay")

    graph = torch.cuda.graph
    for name in ("device", "stream", "graph"):
        monkeypatch.setattr(torch.cuda, name, partial(inside, name))
    monkeypatch.setattr("ltbench.graphs._side", lambda device: Stream())
    for name, kind in (("current_stream", Stream), ("CUDAGraph", Graph)):
        monkeypatch.setattr(torch.cuda, name, kind)
    monkeypatch.setattr(torch.cuda, "graph_pool_handle", lambda: (0, 1))

    def work() -> Tensor:
        asked.append("work")
        return torch.ones(1)

    device = torch.device("cuda")
    recording = cuda_graph(device)()
    aside(device, work)
    assert torch.equal(recording.capture(work), torch.ones(1))
    recording.replay()
    assert asked == ["device", "wait", "stream", "work", "end stream", "wait", "end device",
                     "device", "graph", "work", "end graph", "end device", "replay"]  # fmt: skip


# --- in blocks --------------------------------------------------------------------------------------------------------


def evaluation(sampler: str, steps: int | None, **more: Any) -> dict[str, Any]:
    plain = {"labels": "balanced", "sampler": sampler, "steps": steps, "guidance": 1.5, "block": 4, "seed": 0}
    return {**plain, **sampler_options({"sampler": sampler, **more}), **more}


def made(
    network: Any, wanted: dict[str, Any], numbers: Any, forward: Any = None, pipeline: str = "sit"
) -> Any:
    shape = (1, 4, 4) if isinstance(network, Oracle) else (1, 16, 16)
    found = blocks(cast(Network, network), pipeline, wanted, range(3), shape, CPU, numbers, None, forward)
    return {block.number: (block.images, block.nfe) for block in found}


def oracle(formula: Any = curved) -> Network:
    network = Oracle(formula)
    vars(network)["null_label"] = NULL
    return cast(Network, network)


@pytest.mark.parametrize(("sampler", "pipeline", "steps"), CASES)
def test_a_block_is_the_same_whoever_makes_it_and_whatever_came_before(
    sampler: str, pipeline: str, steps: int | None
) -> None:
    network, wanted = oracle(), evaluation(sampler, steps, schedule=HALF)
    whole = made(network, wanted, range(4), pipeline=pipeline)
    album = Album()
    recorded = Forward(network, recorder=album, notice=pytest.fail)
    shares = {}
    for numbers in ([3, 1], [0], [2]):  # three devices, the first of which goes on with its recordings
        shares |= made(network, wanted, numbers, recorded if 3 in numbers else None, pipeline)
    assert sorted(shares) == sorted(whole)
    for number, (images, rows) in whole.items():
        assert torch.equal(images, shares[number][0])
        assert rows == shares[number][1]
    assert len(album.made) == 2  # whole blocks have the same rows: nothing is recorded again


# --- compiled ---------------------------------------------------------------------------------------------------------


def compiled(
    network: Network, precision: str | None = None, notice: Any = pytest.fail, backend: str = "aot_eager"
) -> Forward:
    return prepared(network, CPU, precision, Execution("compiled"), notice, backend=backend)


@pytest.mark.parametrize(("precision", "schedule", "close"), [("fp32", HALF, 1e-5), ("bf16", None, 2e-2)])
def test_compiled_blocks_give_the_same_images_and_are_compiled_once(
    precision: str, schedule: dict[str, Any] | None, close: float
) -> None:
    network = build("SiT-N/4", filled=True).eval()
    wanted = evaluation("sde-heun", 4, schedule=schedule, precision=precision)
    plain = made(network, wanted, [0, 1, 7])
    forward = compiled(network, precision)
    found = made(network, wanted, [0], forward)
    with torch.compiler.set_stance("fail_on_recompile"):  # both numbers of rows have been there
        found |= made(network, wanted, [1, 7], forward)
    recorded = Forward(network, precision, compiled=True, recorder=Album(), notice=pytest.fail)
    both = made(network, wanted, [0, 1, 7], recorded)
    assert (forward.executed, recorded.executed) == (Executed("compiled"), Executed("graphs"))
    for number, (images, rows) in plain.items():
        torch.testing.assert_close(found[number][0], images, rtol=close, atol=close)
        assert torch.equal(both[number][0], found[number][0])
        assert found[number][1] == both[number][1] == rows


def test_blocks_that_cannot_be_compiled_are_called_as_written() -> None:
    network, told = build("SiT-N/4", filled=True).eval(), []
    wanted = evaluation("euler", 3)
    plain = made(network, wanted, [0])[0][0]
    forward = compiled(network, None, told.append, "ltbench-broken")
    found = made(network, wanted, [0, 1], forward)
    assert torch.equal(found[0][0], plain)
    (said,) = told
    assert said.startswith("sampling without compiled blocks: ")
    assert forward.executed == Executed("eager", said)
    assert "no compiler here" in said


@torch._dynamo.register_backend(name="ltbench-broken")
def broken(graph: Any, inputs: Any) -> Any:
    raise RuntimeError("no compiler here\nand a thousand lines")


# --- nothing waits ------------------------------------------------------------------------------------------------------


class Waits(TorchDispatchMode):
    """Notes the files that would wait for a GPU: for a number that the host reads, or for a shape that depends on one."""

    NAMES = ("aten::_local_scalar_dense", "aten::nonzero", "aten::equal", "aten::masked_select")

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.name() in self.NAMES:
            frames = [frame.filename for frame in traceback.extract_stack()[:-1]]
            self.seen.append(next(name for name in reversed(frames) if "/torch/" not in name))
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize(
    ("name", "sampler", "pipeline"),
    [("SiT-N/4", "euler", "sit"), ("SiT-N/4", "sde-heun", "sit"), ("UNet-16", "ddim", "ddpm")],
)
def test_no_step_waits_for_a_device(name: str, sampler: str, pipeline: str) -> None:
    network, wanted = build(name).eval(), evaluation(sampler, 4, schedule=HALF)
    with Waits() as waits:
        made(network, wanted, [0], pipeline=pipeline)
    assert waits.seen == []


def test_dopri5_reads_its_clock_only_where_the_guidance_depends_on_it() -> None:
    for more, expected in (({}, 0), ({"schedule": {"name": "linear"}}, 1)):
        network = oracle()
        with Waits() as waits:
            made(network, evaluation("dopri5", None, **more), [0])
        own = [
            file for file in waits.seen if file.endswith("sampling/guidance.py")
        ]  # the solver reads its errors
        assert len(own) == expected * len(cast(Any, network).calls)


# --- precision --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "sampler", "pipeline"), [("SiT-N/4", "sde-euler", "sit"), ("UNet-16", "ddim", "ddpm")])  # fmt: skip
def test_bf16_is_of_the_network_alone(name: str, sampler: str, pipeline: str) -> None:
    network = build(name, filled=True).eval()
    seen: list[tuple[torch.dtype, torch.dtype, bool]] = []
    network.register_forward_hook(
        lambda module, inputs, out: seen.append(
            (inputs[0].dtype, out[0].dtype, torch.is_autocast_enabled("cpu"))
        )
    )
    exact, again, low = (
        made(network, evaluation(sampler, 5, **more), [0], pipeline=pipeline)[0][0]
        for more in ({}, {"precision": "fp32"}, {"precision": "bf16"})
    )
    assert torch.equal(exact, again)
    assert low.dtype == torch.float32
    gap = float((low - exact).norm() / exact.norm())
    assert 1e-5 < gap < 0.05  # eight bits of a number, and not the same image
    assert set(seen) == {
        (torch.float32, torch.float32, False),
        (torch.float32, torch.bfloat16, True),  # the state that it is asked about has all its digits
    }
    # a state in bf16 would have no more than its digits
    assert not torch.equal(low, low.bfloat16().float())


@pytest.mark.parametrize(("precision", "allowed"), [("fp32", False), ("tf32", True), ("bf16", True)])
def test_matrices_are_multiplied_as_the_evaluation_says_and_afterwards_as_before(
    precision: str, allowed: bool
) -> None:
    def flags() -> tuple[Any, Any]:
        return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32

    seen: set[tuple[Any, Any]] = set()

    def formula(x: Tensor, t: Tensor, y: Tensor) -> Tensor:
        seen.add(flags())
        return 0 * x

    before = flags()
    wanted = evaluation("euler", 3, precision=precision)
    for _ in blocks(oracle(formula), "sit", wanted, range(2), (1, 4, 4), CPU, [0, 1]):
        assert flags() == before  # the extractor's block is its own
    assert seen == {(allowed, allowed)}
    with pytest.raises(ZeroDivisionError), multiplying(precision):
        raise ZeroDivisionError
    assert flags() == before


# --- noise ------------------------------------------------------------------------------------------------------------

SHAPE = (2, 3, 3)


def test_noise_drawn_ahead_is_the_noise_in_its_order() -> None:
    numbers, running = [5, 0, 9, 2, 7], threading.active_count()
    plain = step_noise(3, numbers, SHAPE, CPU)
    expected = [plain() for _ in range(6)]
    for threads in (1, 3, 8):
        with noise_ahead(3, numbers, SHAPE, CPU, threads) as fresh:
            found = [fresh() for _ in range(6)]  # all kept: no step writes over another's memory
            assert threading.active_count() > running
        assert threading.active_count() == running
        assert all(torch.equal(one, other) for one, other in zip(found, expected, strict=True))
    own = seeds.stream(3, "sampling-steps", 9)
    for step in expected:
        assert np.array_equal(step[2].numpy(), own.standard_normal(SHAPE, np.float32))
    with noise_ahead(3, numbers, SHAPE, CPU) as fresh:  # a CPU has no cores to spare for it
        assert torch.equal(fresh(), expected[0])
        assert threading.active_count() == running


def test_an_error_while_drawing_reaches_the_sampler_and_leaves_no_thread(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    running, fill, drawn = threading.active_count(), noise._fill, []

    def failing(rows: Tensor, streams: Any) -> None:
        drawn.append(len(rows))
        if len(drawn) == 6:
            raise MemoryError("no pinned memory")
        fill(rows, streams)

    monkeypatch.setattr(noise, "_fill", failing)
    monkeypatch.setattr("ltbench.generate.noise_ahead", lambda *args: noise_ahead(*args, threads=2))
    with pytest.raises(MemoryError, match="no pinned memory"):
        made(oracle(), evaluation("sde-euler", 20), [0])
    assert threading.active_count() == running
    assert 6 <= len(drawn) <= 8
    drawn[:] = []
    monkeypatch.setattr(noise, "_fill", fill)
    threaded = made(oracle(), evaluation("sde-euler", 20), [0, 1])
    monkeypatch.undo()
    plain = made(oracle(), evaluation("sde-euler", 20), [0, 1])
    assert all(torch.equal(threaded[k][0], plain[k][0]) for k in plain)
    assert threading.active_count() == running
    assert torch.equal(initial_noise(0, [1], SHAPE), initial_noise(0, [0, 1], SHAPE)[1:])
