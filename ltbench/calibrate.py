"""Measures a few dozen real training steps, a few sampler blocks, and an extractor, on this machine's device.

    python -m ltbench.calibrate STORE SCRATCH DEVICE THREADS STEPS SECONDS < QUESTIONS

reads one JSON line {"what", "settings", "evaluation"} per question, imports torch once, forks for each (a plugin that crashes costs
its own line), keeps each measurement in the store before the next begins, and prints one JSON line {"question", "outcome",
"message", "seconds"} per question on a copy of stdout that no plugin sees. Nothing is claimed, no checkpoint is written, and no
cell learns of it. A question takes SECONDS at most.
"""

from __future__ import annotations

import json
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from ltbench import vaes
from ltbench.children import in_fork
from ltbench.cost import calibrations
from ltbench.cost.calibrations import Question
from ltbench.cost.machine import cpu_name
from ltbench.datasets import Dataset, Images, build_dataset
from ltbench.draws import Latents
from ltbench.errors import LtbenchError
from ltbench.execution import resolve
from ltbench.generate import blocks, build_sampler, decoder_of, quantised, shape_of
from ltbench.guard import seed_globals
from ltbench.methods import Unsupported, load_method
from ltbench.metrics.extractor import load_extractor
from ltbench.networks import Network, build_network
from ltbench.parts import build_parts
from ltbench.places import place
from ltbench.protocols import sampled_in
from ltbench.sampling import count_rows, prepared
from ltbench.store import Store
from ltbench.trainer import Trainer, set_precision

COUNTED = 32  # forward passes whose rows are counted where steps cannot be watched
# Steps before the clock starts; on a GPU kernels are chosen, memory grows, and a graph is made of every number of rows.
WARM_UP = {"cpu": 5, "cuda": 20}
FEW, MORE = 3, 9  # calls of the two samplings whose difference is the cost of a call
REPEATS = 3
COUNTED = 1 << 31  # bytes of images that are read to count them
STAND_IN = 2000  # images at most, where the data is not here: their content decides no time
STEPS_OF = {"sit": ("euler", (FEW, MORE)), "ddpm": ("ddim-corrected", (FEW, MORE))}


class StandIn(Dataset):
    """Noise in the shape of a data set that is not on this machine: as many classes and channels, the same side, fewer images."""

    def __init__(self, real: Dataset) -> None:
        self.channels, self.resolution = real.channels, real.resolution
        self.extractor = type(real).extractor  # pyright: ignore[reportAttributeAccessIssue]
        self._classes = real.classes
        counts = real.counts()
        share = min(1.0, STAND_IN / sum(counts))
        self._counts = [max(1, int(count * share)) for count in counts]

    @property
    def classes(self) -> tuple[str, ...]:
        return self._classes

    @property
    def reference_id(self) -> str:
        return "stand-in"

    def counts(self) -> list[int]:
        return self._counts

    def train(self) -> Images:
        labels = np.repeat(np.arange(len(self._counts)), self._counts)
        shape = (len(labels), self.channels, self.resolution, self.resolution)
        pixels = np.random.Generator(np.random.Philox(0)).integers(0, 256, shape, np.uint8)
        return Images(pixels, labels.astype(np.int64), np.arange(len(labels)))

    def reference(self) -> Images:
        return self.train()

    def holdout(self) -> Images:
        return self.train()


def main(argv: Sequence[str]) -> None:
    """The questions of standard input, one after another."""
    store, scratch, device, threads, steps, seconds = argv

    def measured(asked: dict[str, Any]) -> dict[str, Any]:
        question = Question(**asked)
        found = ask(question, store, scratch, device, int(threads), int(steps))
        return {"question": question.id, **found}

    def named(asked: dict[str, Any]) -> dict[str, str]:
        return {"question": Question(**asked).id}

    answer_all(measured, named, float(seconds))


def answer_all(
    measure: Callable[[dict[str, Any]], dict[str, Any]],
    name: Callable[[dict[str, Any]], dict[str, str]],
    seconds: float,
) -> None:
    """One JSON line of answer per JSON line of standard input, each made in a fork that has `seconds`.

    Answers go to a copy of stdout that no plugin sees. name: what an answer says that the fork could not give.
    """
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with torch.device("meta"):  # imports that torch puts off: here, not in every fork
        build_network("UNet-16", channels=1, resolution=16, classes=2)
    for asked in map(json.loads, sys.stdin.read().splitlines()):
        begun = time.monotonic()
        code, found = in_fork(lambda asked=asked: measure(asked), seconds)
        if found is None:
            how = f"did not end within {seconds:g} s" if code is None else "ended the process"
            found = {**name(asked), "outcome": "failed", "message": f"measuring it {how}"}
        answers.write(json.dumps({**found, "seconds": time.monotonic() - begun}) + "\n")
        answers.flush()


def ask(
    question: Question, store: str, scratch: str, device: str, threads: int, steps: int
) -> dict[str, Any]:
    """Measure, unless that was done, and keep it. Never raises: what a plugin does is a line of the answer."""

    def work() -> dict[str, Any]:
        house = Store.open(Path(store), Path(scratch))
        torch.set_num_threads(threads)
        where = torch.device(device)
        name = device_name(where)
        known, _ = calibrations.read_all(house)
        if calibrations.present(known, question, name, threads) is not None:
            return {"outcome": "present", "message": ""}
        result = measure(question, where, steps)
        path = calibrations.keep(house, question, name, threads, result)
        return {"outcome": "done", "message": "", "file": path.name, "device": name, "result": result}

    return guarded(work)


def guarded(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """What it gives, or how it failed: a plugin may do anything."""
    try:
        return work()
    except Unsupported as reason:
        return {"outcome": "unsupported", "message": str(reason)}
    except LtbenchError as error:
        return {"outcome": "failed", "message": error.message}
    except BaseException as error:  # SystemExit of a plugin included
        return {"outcome": "failed", "message": f"{type(error).__name__}: {error}"}


def measure(question: Question, device: torch.device, steps: int) -> dict[str, Any]:
    """The result of one measurement. Raises whatever the plugin, the extractor or the device does."""
    settings = question.settings
    set_precision(settings["train"]["precision"])
    if question.kind == "train":
        what = question.what
        return training(settings, what["micro_batch"], device, steps, what.get("recompute", False))
    assert question.evaluation is not None, "asked of an evaluation"
    if question.kind == "sample":
        return sampling(settings, question.evaluation, device)
    return extracting(settings, question.evaluation, device)


def device_name(device: torch.device) -> str:
    """As records name it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else cpu_name()


def training(
    settings: Mapping[str, Any],
    micro_batch: int | None,
    device: torch.device,
    steps: int,
    recompute: bool = False,
) -> dict[str, Any]:
    """Steps of the real trainer after a warm-up, on real images where they are here.

    {"seconds_per_step": median, "quartiles", "process_seconds_per_step", "steps", "rows": network rows per image,
    "parameters", "own_parameters": of the method itself, "terms": names of a loss curve, "memory_bytes", "data", "execution"}.
    """
    trainer, data = trial(settings, micro_batch, device, recompute=recompute)
    parts, point = trainer.parts, None
    for _ in range(WARM_UP[device.type]):
        point = trainer.advance() or point
    _reset_memory(device)
    with count_rows(parts.objective.network) as counted:
        walls, busy = timed(trainer.advance, steps, device)
    own = sum(p.numel() for p in parts.objective.method.parameters() if p.requires_grad)
    return {
        "seconds_per_step": statistics.median(walls),
        "quartiles": _quartiles(walls),
        "process_seconds_per_step": busy / steps,
        "steps": steps,
        "rows": _rows(trainer) if trainer.execution.graphs else counted.rows / steps / parts.recipe.batch,
        "parameters": sum(p.numel() for p in parts.objective.network.parameters()),
        "own_parameters": own,
        "terms": len(point["terms"]) if point else 0,
        "memory_bytes": _peak_memory(device),
        "data": data,
        "execution": trainer.executed.name,
    }


def _rows(trainer: Trainer) -> float:
    """Network rows per image of the steps to come, by forward passes: a replayed step calls no network that could be counted."""
    drawer, objective = trainer.parts.drawer, trainer.parts.objective
    shards = range(
        trainer.micro_batch // drawer.local_batch
    )  # as in training: other numbers would be compiled anew
    with count_rows(objective.network) as counted:
        for step in range(1, COUNTED + 1):
            objective(drawer.draw(trainer.step + step, shards))
    return counted.rows / COUNTED / trainer.micro_batch


def trial(
    settings: Mapping[str, Any],
    micro_batch: int | None,
    device: torch.device,
    execution: str = "auto",
    recompute: bool = False,
) -> tuple[Trainer, Literal["real", "stand-in"]]:
    """The trainer of a cell as a job builds it, from fresh weights, and which data it has: the real one where it is here."""
    real = build_dataset(settings["dataset"])
    coded = vaes.named(settings["dataset"]) is not None
    data = StandIn(real) if coded or real.missing() else real
    method = load_method(settings["method"]["name"])
    seed_globals(0)
    how, latents = resolve(execution, device), _latents(settings, data, device) if coded else None
    parts = build_parts(settings, data, method, device, latents, execution=how, recompute=recompute)
    trainer = Trainer(parts, micro_batch or parts.recipe.batch, log_every=1, execution=how)
    return trainer, "stand-in" if isinstance(data, StandIn) else "real"


def _latents(settings: Mapping[str, Any], data: Dataset, device: torch.device) -> Latents:
    """Noise in the shape of the latents of a stand-in: no VAE is needed to see how long a step on them takes."""
    shape = vaes.network_shape(settings["dataset"], data.channels, data.resolution)
    numbers = np.random.Generator(np.random.Philox(1))
    rows = numbers.standard_normal((2 * sum(data.counts()), 2, *shape), np.float32).astype(np.float16)
    return Latents(place([rows], device, lambda message: None), vaes.SCALE)


def sampling(
    settings: Mapping[str, Any], evaluation: Mapping[str, Any], device: torch.device
) -> dict[str, Any]:
    """What a network row takes in whole blocks, and what an image costs beside its rows: from two lengths of sampling.

    Weights are fresh: their values decide no time. {"seconds_per_row", "seconds_per_image", "rows": per image, of both lengths,
    "block", "memory_bytes"}.
    """
    real = build_dataset(settings["dataset"])
    network = _fresh(settings, real, device)
    sampler, lengths = STEPS_OF[settings["pipeline"]]
    how = resolve("auto", device)
    shape, decode = shape_of(settings, real), decoder_of(settings, device, how)
    ids = list(range(len(real.classes)))
    precision = sampled_in(evaluation, settings["train"]["precision"])
    forward = prepared(network, device, precision, how)
    found = []
    for number in lengths:
        asked = {
            "block": evaluation["block"],
            "seed": 0,
            "labels": "balanced",
            "sampler": sampler,
            "steps": number,
            "guidance": 1.5,
        }
        spent: list[int] = []

        def block(asked: dict[str, Any] = asked, spent: list[int] = spent) -> None:
            what = settings["pipeline"], asked, ids, shape, device
            for made in blocks(network, *what, [0], decode, forward):
                spent.append(made.nfe)

        block()
        walls, _ = timed(block, REPEATS, device)
        found.append((spent[0], min(walls)))  # what disturbs a block makes it longer, never shorter
    (rows, few), (more_rows, many) = found
    images = int(evaluation["block"])
    each = (many - few) / (more_rows - rows) / images
    if not 0 < each * rows * images <= few:  # disturbed all the same: all of the time for the rows
        each = many / more_rows / images
    return {
        "seconds_per_row": each,
        "seconds_per_image": max(0.0, few / images - rows * each),
        "rows": [rows, more_rows],
        "block": images,
        "memory_bytes": _peak_memory(device),
    }


def _fresh(settings: Mapping[str, Any], data: Dataset, device: torch.device) -> Network:
    """A network as evaluations build it, with fresh weights."""
    train = settings["train"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        made = build_network(
            settings["network"],
            channels=shape_of(settings, data)[0],
            resolution=shape_of(settings, data)[1],
            classes=len(data.classes),
            augmented=train.get("augment", "none") != "none",
        )
    return build_sampler(settings, data, made.state_dict(), device)


def extracting(
    settings: Mapping[str, Any], evaluation: Mapping[str, Any], device: torch.device
) -> dict[str, Any]:
    """What an extractor takes for an image of one block. "real": images in the sets of real images, where these are here and not large.

    {"seconds_per_image", "numbers": float32 kept per image, "block", "real": {set: images}}.
    """
    data, images = build_dataset(settings["dataset"]), int(evaluation["block"])
    extractor = load_extractor(evaluation["extractor"]["name"]).to(device)
    noise = torch.rand((images, data.channels, data.resolution, data.resolution), device=device) * 2 - 1
    seen = quantised(noise, evaluation["quantise"])
    extractor.features(seen)
    walls, _ = timed(lambda: extractor.features(seen), REPEATS, device)
    return {
        "seconds_per_image": statistics.median(walls) / images,
        "numbers": sum(extractor.dims.values()),
        "block": images,
        "real": _real_images(data),
    }


def _real_images(data: Dataset) -> dict[str, int]:
    """How many there are; {} where counting them would read gigabytes."""
    balanced = len(data.classes) * max(data.counts()) * data.channels * data.resolution**2
    if data.missing() or balanced > COUNTED:
        return {}
    sets = {"reference": data.reference(), "holdout": data.holdout(), "train": data.train()}
    return {name: len(images) for name, images in sets.items()}


def timed(work: Callable[[], object], times: int, device: torch.device) -> tuple[list[float], float]:
    """(wall seconds of each call, process seconds of all of them); a GPU is waited for."""
    walls = []
    busy = time.process_time()
    for _ in range(times):
        _wait(device)
        begun = time.perf_counter()
        work()
        _wait(device)
        walls.append(time.perf_counter() - begun)
    return walls, time.process_time() - busy


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _quartiles(values: Sequence[float]) -> list[float]:
    if len(values) < 2:
        return [values[0], values[0]]
    low, _, high = statistics.quantiles(values, n=4)
    return [low, high]


def _reset_memory(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


if __name__ == "__main__":
    main(sys.argv[1:])
