"""What a method costs beside the baseline of its pipeline: network rows, parameters, time."""

from __future__ import annotations

import statistics
import time
from typing import Any

from ltbench.conformance.suite import toy
from ltbench.conformance.suite.checks import count_rows
from ltbench.conformance.suite.subject import Subject
from ltbench.parts import Parts

SECONDS = 1.5  # of process time per pipeline, both sides together
LABEL_DROP = 0.1  # the rate of every published recipe
# Large enough that a step is spent in the network; small enough for a laptop.
TIMED = {
    "sit": {"network": "SiT-N/2", "batch": 32, "local_batch": 32},
    "ddpm": {"network": "UNet-16", "batch": 16, "local_batch": 16},
}


def cost(subject: Subject) -> dict[str, Any]:
    """rows: network rows per image of a batch with 10% dropped labels. parameters: trained ones of the method itself.

    time_ratio: process time of a training step over the baseline's, median of interleaved pairs; spread: their quartiles.
    """
    return {**size(subject), **_time(subject)}


def size(subject: Subject) -> dict[str, Any]:
    """The part of `cost` that takes no time. Rows are exact where they depend linearly on the number of dropped labels."""
    kept, dropped = (_rows(subject, share) for share in (0.0, 1.0))
    own = sum(p.numel() for p in subject.parts().objective.method.parameters() if p.requires_grad)
    rows = (1 - LABEL_DROP) * kept[0] + LABEL_DROP * dropped[0]
    return {"rows": round(rows, 4), "parameters": own, "passes": max(kept[1], dropped[1])}


def _rows(subject: Subject, label_drop: float) -> tuple[float, int]:
    """Network rows per image, and passes when one follows another."""
    counts = []
    for passes in ("fused", "serial"):
        built = subject.parts(label_drop=label_drop, passes=passes)
        counts.append(count_rows(built))
        built.objective(toy.draw(built))
    return sum(counts[0]) / built.recipe.batch, len(counts[1])


def _time(subject: Subject) -> dict[str, Any]:
    changes = {**TIMED[subject.pipeline], "label_drop": LABEL_DROP}
    ours, plain = (toy.trainer(parts) for parts in _both(subject, changes))
    for loop in (ours, plain, ours, plain):
        loop.advance()
    ratios = []
    end = time.process_time() + SECONDS
    while time.process_time() < end or len(ratios) < 3:
        pair = []
        for loop in (ours, plain):
            begun = time.process_time()
            loop.advance()
            pair.append(time.process_time() - begun)
        ratios.append(pair[0] / pair[1])
    low, middle, high = statistics.quantiles(ratios, n=4) if len(ratios) > 1 else ratios * 3
    return {"time_ratio": round(middle, 3), "spread": [round(low, 3), round(high, 3)], "pairs": len(ratios)}


def _both(subject: Subject, changes: dict[str, Any]) -> tuple[Parts, Parts]:
    return subject.parts(**changes), subject.baseline(**changes)
