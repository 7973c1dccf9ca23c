"""Training steps per second of every method against its pipeline's baseline, and samples per second, on one thread.

The two sides of a ratio take turns in one process, a few steps each, and the median of the turns' ratios is reported: what
else the machine does meets both sides alike. Time is the process's own CPU time on a CPU, wall time on a GPU.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from ltbench import plugins
from ltbench.datasets import build_dataset
from ltbench.diffusion import process_for
from ltbench.errors import LtbenchError
from ltbench.methods import load_method
from ltbench.networks import build_network
from ltbench.plan import expand
from ltbench.sampling import sample
from ltbench.spec import load
from ltbench.trainer import Trainer, build_parts

BASELINES = {"sit": "sit", "ddpm": "ddpm"}  # pipeline -> its plain objective
TURNS, STEPS = 7, 6  # turns per side; steps per turn
SAMPLES, SAMPLER_STEPS, GUIDANCE = 64, 5, 1.5
SAMPLERS = {"sit": "euler", "ddpm": "ddim"}


def measure(benchmark: str, device: torch.device) -> dict[str, Any]:
    """Per part of the benchmark: baseline steps/s, ratio of every method to it, samples/s."""
    torch.set_num_threads(1)
    found = {}
    for part in {cell.part: cell for cell in expand(load(benchmark))}.values():
        found[part.part] = _part(dict(part.settings), device)
    return found


def _part(settings: dict[str, Any], device: torch.device) -> dict[str, Any]:
    pipeline = settings["pipeline"]
    baseline = BASELINES[pipeline]
    rates, ratios, left_out = [], {}, {}
    for name in _methods():
        try:
            plain, other = (_trainer(settings, each, device) for each in (baseline, name))
        except LtbenchError as error:  # not on this pipeline, or its encoder cannot be had here
            left_out[name] = error.message
            continue
        rate, ratio = _side_by_side(plain, other, device)
        rates.append(rate)
        ratios[name] = round(ratio, 3)
    return {
        "network": settings["network"],
        "resolution": settings["dataset"].get("resolution"),
        "batch": settings["train"]["batch"],
        "baseline": baseline,
        "baseline_steps_per_s": round(statistics.median(rates), 2),
        "time_per_step_over_baseline": ratios,
        "left_out": left_out,
        "samples_per_s": round(_samples_per_second(settings, device), 1),
        "sampler": f"{SAMPLERS[pipeline]}, {SAMPLER_STEPS} steps, guidance {GUIDANCE}",
    }


def _methods() -> list[str]:
    """Every usable method that is no baseline itself."""
    found = plugins.find("methods").items()
    return [name for name, plugin in found if plugin.problem is None and name not in BASELINES.values()]


def _trainer(settings: dict[str, Any], name: str, device: torch.device) -> Trainer:
    """A trainer of this method at its own defaults for the pipeline. Raises LtbenchError when it cannot run here."""
    plugin = plugins.get("methods", name)
    preset = (plugin.presets or {}).get(settings["pipeline"], {})
    data = build_dataset(settings["dataset"])
    own = {**settings, "method": {"name": name, **plugin.defaults, **preset}}
    parts = build_parts(own, data, load_method(name), device)
    return Trainer(parts, parts.recipe.batch, 1000)


def _side_by_side(plain: Trainer, other: Trainer, device: torch.device) -> tuple[float, float]:
    """(baseline steps/s, seconds of the other over seconds of the baseline)."""
    for trainer in (plain, other):
        seconds(lambda trainer=trainer: trainer.advance(), 3, device)  # first steps allocate
    pairs = [
        (seconds(plain.advance, STEPS, device), seconds(other.advance, STEPS, device)) for _ in range(TURNS)
    ]
    rate = STEPS / statistics.median(a for a, _ in pairs)
    return rate, statistics.median(b / a for a, b in pairs)


def _samples_per_second(settings: dict[str, Any], device: torch.device) -> float:
    data = build_dataset(settings["dataset"])
    classes, side = len(data.classes), data.resolution
    network = build_network(
        settings["network"], channels=data.channels, resolution=side, classes=classes, dropout=0.0
    ).to(device)
    noise = torch.zeros(SAMPLES, data.channels, side, side, device=device)
    labels = torch.arange(SAMPLES, device=device) % classes

    def draw() -> None:
        sample(
            network.eval(),
            process_for(settings["pipeline"]),
            sampler=SAMPLERS[settings["pipeline"]],
            steps=SAMPLER_STEPS,
            guidance=GUIDANCE,
            noise=noise,
            labels=labels,
            null=classes,
        )

    seconds(draw, 1, device)
    return SAMPLES / statistics.median(seconds(draw, 1, device) for _ in range(5))


def seconds(work: Callable[[], Any], times: int, device: torch.device) -> float:
    """Time of `times` calls: this process's CPU time, or wall time around a GPU's whole queue."""
    if device.type == "cpu":
        start = time.process_time()
        for _ in range(times):
            work()
        return time.process_time() - start
    torch.cuda.synchronize(device)
    start = time.perf_counter()
    for _ in range(times):
        work()
    torch.cuda.synchronize(device)
    return time.perf_counter() - start
