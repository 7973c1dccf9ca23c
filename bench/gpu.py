"""The speed book on one GPU: `python bench/gpu.py --out gpu.json`, under nine minutes, random weights, no data, no download.

Parts run in the order of what people train, in a process of their own (inside.py): one that fails is told with its traceback, one that
overruns its time or kills its process is ended, and the others still run. The JSON is written anew after every part. Every number of
a step stands beside what share it is of the rate of a large matrix product measured in the same run, and beside issue 8's goals, which
are for one H200. `--tiny` runs every part on a CPU, in this process, at sizes of no meaning.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ccua  # beside this file
import features
import health
import inside
import metrics
import ratios
import sampling
import speed
import steps
import torch
import unets
from inside import Part
from sizes import SAMPLING_GOAL, TINY_SIT, TINY_UNET, TRAIN_GOALS, WORLDS
from torch import Tensor
from turns import goal, missed, seconds
from worlds import World

from ltbench.execution import resolve
from ltbench.generate import blocks
from ltbench.sampling import Forward, prepared
from ltbench.trainer import Trainer, set_precision

BUDGET = 520.0  # seconds; a part is begun only while its own need is left
COMPARED = ("ccua", "cbdm", "dispersive", "oclt", "resampling")
MODES = ("eager", "compiled", "graphs")


@dataclass
class Book:
    """What is measured on. known: the rate, where it is known from before."""

    device: torch.device
    tiny: bool
    known: float = 0.0

    @property
    def rate(self) -> float:
        """Operations per second of a large product in the step's precision."""
        if not self.known:
            self.known = speed.matmul_rate(self.device, self.dtype, self.side)
        return self.known

    @property
    def side(self) -> int:
        return 128 if self.tiny else speed.SIDE

    @property
    def dtype(self) -> torch.dtype:
        return torch.float32 if self.tiny else torch.bfloat16

    @property
    def precision(self) -> str:
        return "fp32" if self.tiny else "bf16"

    @property
    def execution(self) -> str:
        return "eager" if self.tiny else "graphs"

    def world(self, name: str) -> World:
        if not self.tiny:
            return WORLDS[name]
        return TINY_UNET if name.startswith("U-Net") else TINY_SIT

    def recipe(self) -> dict[str, Any]:
        return {"precision": self.precision, "execution": self.execution}

    def clean(self) -> None:
        """Let go of a part's memory and of what it compiled."""
        torch._dynamo.reset()
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # raises where a part has left the card unusable
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats(self.device)


def main(words: list[str] | None = None) -> int:
    """Run the parts, write and print JSON; 1 when a part failed."""
    args = _arguments(words)
    if not args.tiny and not torch.cuda.is_available():
        print(
            "bench/gpu.py needs a CUDA device; --tiny runs its parts on a CPU at sizes of no meaning",
            file=sys.stderr,
        )
        return 4
    names = [part.name for part in PARTS if args.only is None or part.name in args.only]
    with tempfile.TemporaryDirectory() as folder:
        out = args.out or Path(folder, "gpu.json")
        if args.tiny or args.inside:
            _measure(args.tiny, names, args.budget, out)
        else:
            out.unlink(missing_ok=True)  # what is there is of another run
            words = ["--inside", "--out", str(out), "--only", *names]
            inside.supervise([sys.executable, str(Path(__file__).resolve()), *words], names, args.budget, out)
        told = json.loads(out.read_text())
    told["missed"] = list(missed(told))
    if args.out is not None:
        inside.write(args.out, told)
    if not args.inside:
        print(json.dumps(told, indent=1))
    return int(bool(told["failed"]))


def _measure(tiny: bool, names: list[str], budget: float, out: Path) -> None:
    """The parts in this process, after what `out` tells of them already."""
    book = Book(torch.device("cpu" if tiny else "cuda"), tiny)
    journal = inside.Journal(out, about(book))
    book.known = journal.told.get("matrix rate", {}).get("tflops", 0.0) * 1e12
    parts = [part for part in PARTS if part.name in names]
    inside.run(book, parts, journal, budget, patient=tiny)


def _arguments(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, help="where to write the JSON too")
    parser.add_argument("--budget", type=float, default=BUDGET, help="seconds (default: %(default)s)")
    parser.add_argument(
        "--only", nargs="+", metavar="PART", choices=[part.name for part in PARTS], help="some parts, by name"
    )
    parser.add_argument(
        "--tiny", action="store_true", help="every part on a CPU, in seconds: a test of this script"
    )
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)  # the process that measures
    return parser.parse_args(words)


def about(book: Book) -> dict[str, Any]:
    """The machine that the numbers are of."""
    if book.device.type == "cpu":
        return {"device": "cpu", "torch": torch.__version__, "tiny": True}
    card = torch.cuda.get_device_properties(book.device)
    return {
        "device": card.name,
        "memory_gb": round(card.total_memory / 1e9, 1),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
    }


# --- the parts ------------------------------------------------------------------------------------------------------


def rate(book: Book) -> dict[str, Any]:
    """The measured matrix rate, which every share is of."""
    dtype = str(book.dtype).removeprefix("torch.")
    return {"side": book.side, "dtype": dtype, "tflops": round(book.rate / 1e12, 6)}


def train(name: str, against: bool) -> Callable[[Book], Any]:
    """T1 and T5 of one size. against: the official loop too, in fp32 with TF32 as it runs."""
    return lambda book: _train(book, name, against)


def _train(book: Book, name: str, against: bool) -> dict[str, Any]:
    world = book.world(name)
    told: dict[str, Any] = {}
    if against:
        with _eager(book, tf32=False):  # exact before it is fast: the same draws give the same losses
            told["fp32_trace_apart"] = tried(lambda: _trace_apart(world, book.device, 2 if book.tiny else 5))
        told["modes_apart"] = tried(lambda: modes_apart(book, world))
    set_precision(book.precision)
    book.clean()
    begun, notices = time.monotonic(), []
    trainer = world.trainer(world.pipeline, book.device, notice=notices.append, **book.recipe())
    seconds(trainer.advance, 3, book.device)
    first = time.monotonic() - begun
    each = steady(trainer, book)
    told |= {
        **trainer.executed.told(),
        "compile_s": round(first - 3 * each, 1),  # building and recording included
        "notices": notices,
        "ms": round(1e3 * each, 3),
        "steps_per_s": round(1 / each, 2),
        "images_per_s": round(world.batch / each, 1),
        **share(book, speed.train_operations(world), each),
        **_memory(book),
    }
    if against:
        told["against"] = tried(lambda: _against(book, world, trainer))
    trainer.close()
    if not book.tiny:
        what, bound = TRAIN_GOALS[name]
        told["goal"] = {"of": what, **goal(told[what], at_least=bound)}
    return told


def _trace_apart(world: World, device: torch.device, count: int) -> float:
    if world.pipeline == "ddpm":
        return unets.trace_apart(world, device, count)
    return steps.trace_apart(world, "fp32", device, count)


def _against(book: Book, world: World, trainer: Trainer) -> dict[str, Any]:
    loops: Any = unets if world.pipeline == "ddpm" else steps
    loop = loops.loop_of(world, trainer, book.device)
    pairs = []
    few, many = (1, 1) if book.tiny else (5, 20)
    for _ in range(4):  # in turns; the first one warms up
        with _eager(book, tf32=True):
            theirs = seconds(loop.step, few, book.device) / few
        pairs.append((theirs, seconds(trainer.advance, many, book.device) / many))
    ratio = statistics.median(theirs / ours for theirs, ours in pairs[1:])
    official = statistics.median(theirs for theirs, _ in pairs[1:])
    return {"official_ms": round(1e3 * official, 3), "official_over_ours": round(ratio, 2)}


def tried(work: Callable[[], Any]) -> Any:
    """What it gives, or how it failed: the numbers beside it are not lost by that."""
    try:
        return work()
    except Exception as error:
        traceback.print_exc()
        return {"failed": f"{type(error).__name__}: {error}", "met": False}


def modes_apart(book: Book, world: World) -> dict[str, Any]:
    """Largest relative difference of losses as run compiled and as graphs from those run as written, in the step's precision."""
    set_precision(book.precision)
    count, bound = (3, 1e-5) if book.tiny else (8, steps.TOLERANCES["bf16"])
    traces = {mode: _trace(book, world, mode, count) for mode in MODES[: 1 if book.tiny else None]}
    plain = traces.pop("eager")
    gaps = {
        mode: max(abs(loss / own - 1) for loss, own in zip(trace, plain, strict=True))
        for mode, trace in traces.items()
    }
    return {mode: goal(float(f"{gap:.3g}"), at_most=bound) for mode, gap in gaps.items()}


def _trace(book: Book, world: World, mode: str, count: int) -> list[float]:
    recipe = {"precision": book.precision, "execution": mode, "log_every": 1, "notice": _say}
    trainer = world.trainer(world.pipeline, book.device, **recipe)
    points = [trainer.advance() for _ in range(count)]
    trainer.close()
    return [point["loss"] for point in points if point is not None]


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


@contextmanager
def _eager(book: Book, tf32: bool) -> Any:
    """As the official scripts run, kernels chosen freely; afterwards as a cell is trained."""
    torch.use_deterministic_algorithms(False)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    try:
        yield
    finally:
        set_precision(book.precision)


def steady(trainer: Trainer, book: Book, budget: float = 6.0) -> float:
    """Seconds of a step after warm-up, the median of five blocks that last about `budget` together."""
    warm = 3 if book.tiny else 25
    seconds(trainer.advance, warm, book.device)
    one = seconds(trainer.advance, 3, book.device) / 3
    times = max(1, int((0.05 if book.tiny else budget) / 5 / max(one, 1e-6)))
    return statistics.median(seconds(trainer.advance, times, book.device) / times for _ in range(5))


def share(book: Book, operations: float, each: float) -> dict[str, float]:
    """Operations per second, and what part of the measured rate that is."""
    return {"tflops": round(operations / each / 1e12, 3), "mfu": round(operations / each / book.rate, 3)}


def _memory(book: Book) -> dict[str, float]:
    if book.device.type == "cpu":
        return {}
    return {"memory_gb": round(torch.cuda.max_memory_allocated(book.device) / 1e9, 2)}


def memory(book: Book) -> dict[str, Any]:
    """T5: gigabytes as a + b rows from two batches of B/2; the goals are for bf16."""
    world = book.world("B/2 b48")
    double = dataclasses.replace(world, batch=2 * world.batch, local_batch=2 * world.local_batch)
    if book.tiny:
        return speed.measure(book.device, {"tiny": world})
    peaks = []
    for each in (world, double):
        torch.cuda.reset_peak_memory_stats(book.device)
        trainer = each.trainer("sit", book.device, precision="bf16", execution="eager")
        seconds(trainer.advance, 3, book.device)
        peaks.append(torch.cuda.max_memory_allocated(book.device) / 1e9)
        trainer.close()
        del trainer
        torch.cuda.empty_cache()
    slope = (peaks[1] - peaks[0]) / world.batch
    return {
        "gb_per_row": goal(round(slope, 4), at_most=0.09),
        "gb_fixed": goal(round(peaks[0] - slope * world.batch, 2), at_most=3.0),
    }


def costs(name: str) -> Callable[[Book], Any]:
    """T2 of one size, as cells are trained."""

    def part(book: Book) -> Any:
        set_precision(book.precision)
        world, only = book.world(name), COMPARED[:1] if book.tiny else COMPARED
        turns, times = (1, 1) if book.tiny else (3, 5)
        return {
            method: tried(
                lambda method=method: ratios.measure(
                    book.device, {name: world}, turns=turns, times=times, only=(method,), **book.recipe()
                )[name]
            )
            for method in only
        }

    return part


def passes(book: Book) -> Any:
    """T3, in fp32: the gradients agree, and what each way takes."""
    world = (
        dataclasses.replace(book.world("B/2 b48"), batch=8, local_batch=8) if book.tiny else WORLDS["B/2 b48"]
    )
    set_precision("fp32")
    return ccua.measure(book.device, {"B/2 b48": world}, turns=3)


def pictures(name: str, images: int, against: bool) -> Callable[[Book], Any]:
    """S1: 250 steps of the SDE with guidance. against: the official double evaluation too, at a few steps, on the same noise."""
    return lambda book: _sampling(book, name, images, against)


def _sampling(book: Book, name: str, images: int, against: bool) -> dict[str, Any]:
    world = dataclasses.replace(book.world(name), batch=4 if book.tiny else images)
    told: dict[str, Any] = {}
    few = dataclasses.replace(world, batch=min(world.batch, 16))
    if against:
        set_precision("fp32")
        official = {"fp32, eager, 10 steps": (few, 10)}
        told["official"] = tried(lambda: sampling.measure(book.device, official, turns=3))
    count = 10 if book.tiny else 250
    network = world.fresh(book.device)
    notices: list[str] = []
    how = resolve(book.execution, book.device)
    plain = Forward(network, book.precision)
    evaluation = {**sampling.evaluation_of(world, count), "precision": book.precision}
    ids = list(range(world.classes))

    def block(forward: Forward, steps: int = count) -> Tensor:
        asked = {**evaluation, "steps": steps}
        made = blocks(network, "sit", asked, ids, world.shape, book.device, [0], forward=forward)
        return next(made).images

    expected = block(plain, 5)
    begun = time.monotonic()
    forward = prepared(network, book.device, book.precision, how, notices.append)
    found = block(forward, 5)
    first = time.monotonic() - begun
    gap = float((found - expected).norm() / expected.norm())
    told |= {"compile_s": round(first, 1), "apart_from_eager": goal(float(f"{gap:.3g}"), at_most=5e-2)}
    seconds(lambda: block(forward, 5), 1, book.device)
    each = statistics.median(seconds(lambda: block(forward), 1, book.device) for _ in range(2))
    operations = (
        speed.train_operations(world) / speed.BACKWARD * 2 * count
    )  # a row for the label, one without
    told |= {"images": world.batch, "steps": count, "images_per_s": round(world.batch / each, 2)}
    told |= {**forward.executed.told(), "notices": notices, **share(book, operations, each), **_memory(book)}
    return told if book.tiny else {**told, "goal": {"of": "mfu", **goal(told["mfu"], at_least=SAMPLING_GOAL)}}


def waits(book: Book) -> dict[str, Any]:
    """A step and another one while torch refuses to wait for the device; on a CPU, what the host reads in a step."""
    found: dict[str, Any] = {}
    for name in ("sit", "ccua"):
        # Without dropped labels, whose number varies: a shape met for the first time is recorded, and that does wait.
        trainer = book.world("S/2 b48").trainer(name, book.device, label_drop=0.0, **book.recipe())
        if book.tiny:
            found[name] = health.reads_per_step(trainer)
            continue
        seconds(trainer.advance, 25, book.device)
        found[name] = _refusing(trainer)
        trainer.close()
    return found


def _refusing(trainer: Trainer) -> dict[str, Any]:
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(4):
            trainer.advance()
    except RuntimeError as error:
        return {"waits": str(error).splitlines()[0], "met": False}
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return {"waits": 0, "met": True}


def compiling(book: Book) -> Any:
    """T6 of the baseline and ccua at S/2, through inductor."""
    wanted = ("baseline", "ccua")
    if book.tiny:
        return health.measure(book.device, health.TINY, 4, 4, wanted[:1])
    return health.measure(book.device, {"S/2 b48": book.world("S/2 b48")}, 20, 200, wanted)


def extraction(book: Book) -> Any:
    """E2."""
    return features.measure(book.device, *((8, 32) if book.tiny else (500, 128)))


def solving(book: Book) -> Any:
    """E1, on the host."""
    return metrics.measure(metrics.TINY, 2) if book.tiny else metrics.measure(metrics.FULL)


PARTS = [
    Part("matrix rate", 5, rate),
    Part("T1 T5 S/2 b48", 70, train("S/2 b48", against=True)),
    Part("T1 T5 U-Net 32 b64", 90, train("U-Net 32 b64", against=True)),
    Part("S1 S/2", 45, pictures("S/2 b48", 256, against=True)),
    Part("S1 B/2", 50, pictures("B/2 b48", 128, against=False)),
    Part("T1 T5 B/2 b256", 35, train("B/2 b256", against=False)),
    Part("T1 T5 XL/2 b256", 75, train("XL/2 b256", against=False)),
    Part("waits", 20, waits),
    Part("T1 T5 B/2 b48", 60, train("B/2 b48", against=True)),
    Part("T1 T5 U-Net 64 b128", 60, train("U-Net 64 b128", against=False)),
    Part("T2 B/2 b48", 90, costs("B/2 b48")),
    Part("T3 B/2 b48", 20, passes),
    Part("T5 memory", 20, memory),
    Part("T6 S/2", 60, compiling),
    Part("E2", 30, extraction),
    Part("T2 U-Net 32 b64", 100, costs("U-Net 32 b64")),
    Part("E1", 150, solving),
]

if __name__ == "__main__":
    sys.exit(main())
