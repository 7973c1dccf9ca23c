"""Trainings whose loss grew late: they count in every mean, and the table says so."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterator, Mapping
from typing import Any

from ltbench.report.axes import RowPlan, stated_seed
from ltbench.report.words import of_seed

GREW = 10.0  # times its lowest: the loss of noisy images varies by far less between stretches of a training
STRETCHES = 20  # into which a curve is divided


def grown(curve: Mapping[str, Any]) -> tuple[float, int] | None:
    """(how many times its lowest the denoising loss of the last stretch is, last step of the lowest); None where it did not grow.

    curve: of a training record. Other terms may be negative, and are not asked.
    """
    losses, steps = curve.get("terms", {}).get("denoise") or [], curve.get("step") or []
    size = max(1, len(losses) // STRETCHES)
    stretches = [losses[at : at + size] for at in range(0, len(losses) - size + 1, size)]
    if not stretches or any(x is None or not math.isfinite(x) for stretch in stretches for x in stretch):
        return None  # a loss that is not finite has stopped the training, and says so itself
    levels = [statistics.median(stretch) for stretch in stretches]
    lowest = min(range(len(levels)), key=levels.__getitem__)
    if levels[lowest] <= 0 or levels[-1] < GREW * levels[lowest]:
        return None
    return levels[-1] / levels[lowest], int(steps[min(len(steps), (lowest + 1) * size) - 1])


def notes_of(row: RowPlan, trained: Mapping[tuple[str, int], Mapping[str, Any]], step: int) -> Iterator[str]:
    """A sentence per cell of a row whose loss had grown by `step`. trained: training records by cell and step."""
    for cell in [] if row.external else row.cells:
        record = trained.get((cell["cell"], step))
        found = None if record is None else grown(record["body"].get("curve", {}))
        if found is not None:
            times, at = found
            yield (
                f"{row.label}{of_seed(stated_seed(row, cell))}: the training loss at step {step:,} is {times:,.0f} times its lowest "
                f"(step {at:,}); its values count in the mean."
            )
