"""What training a cell takes of a GPU's memory: measured by `calibrate` on some GPU, else what no training can do without."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ltbench.cost.calibrations import Calibration, step_options, train_question
from ltbench.cost.size import parameter_count
from ltbench.cost.work import data_shape

COPIES = 5  # of every parameter, in float32: weights, gradients, Adam's two moments, EMA


@dataclass(frozen=True)
class Memory:
    """Bytes, and where the figure is from."""

    bytes: int
    source: str


def training_memory(
    settings: Mapping[str, Any], options: Mapping[str, Any], known: Iterable[Calibration], ranks: int = 1
) -> Memory:
    """Of one GPU, of `ranks` that share the cell. options: of the cell (micro_batch, recompute). Activations are in a measured figure
    only, and a rank's share was not measured."""
    question = train_question(settings, **step_options(options)).id
    measured = [
        each
        for each in known
        if each.question == question and not each.device.startswith("cpu") and ranks == 1
    ]
    most = max(measured, key=lambda each: each.result.get("memory_bytes", 0), default=None)
    if most is not None and most.result.get("memory_bytes"):
        return Memory(most.result["memory_bytes"], f"measured on {most.device} ({most.name})")
    shape = data_shape(settings["dataset"]).network(settings["train"])
    parameters = parameter_count(settings["network"], shape)
    return Memory(4 * COPIES * parameters, "weights, gradients, optimiser and EMA alone, without activations")
