"""Evaluation protocols by name, and the extractors that measure; readable without torch.

A protocol says what is compared with what. An evaluation is a protocol at one sampler and one guidance value, on one milestone.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltbench.canonical import digest
from ltbench.errors import EnvironmentProblem, UsageError

INDEX = Path(__file__).resolve().parent / "metrics" / "weights" / "index.json"
SAMPLERS = {"sit": ("euler", "heun"), "ddpm": ("ddim",)}  # pipeline -> samplers that integrate its process
DDPM_STEPS = 1000


@dataclass(frozen=True)
class Protocol:
    """samples: generated images, a multiple of the classes. labels: `balanced` = image k has class k % K, exactly.

    block: images per padded sampling block. quantise: how [-1, 1] becomes uint8 before features are taken.
    """

    doc: str
    samples: int
    labels: str = "balanced"
    block: int = 100
    quantise: str = "round"
    metrics: tuple[str, ...] = ("FD", "KD", "precision", "recall")


PROTOCOLS = {
    "small-data": Protocol(
        "balanced generated images against the data set's balanced held-out images, for sets of a few thousand images",
        samples=500,
    )
}


@functools.cache
def extractors() -> dict[str, dict[str, Any]]:
    """The shipped feature extractors: name -> {"file", "sha256", "datasets", "dim", ...}. Raises EnvironmentProblem."""
    try:
        return json.loads(INDEX.read_text())
    except (OSError, ValueError) as error:
        raise EnvironmentProblem(
            f"{INDEX}: cannot read the list of extractors: {error}",
            "restore it from the repository (git checkout -- ltbench/metrics/weights)",
        ) from None


def extractor(name: str) -> dict[str, str]:
    """`{"name", "sha256"}` of a shipped extractor, as evaluations hold it. Raises UsageError for an unknown name."""
    known = extractors()
    if name not in known:
        raise UsageError(f"unknown extractor '{name}'", f"there are {', '.join(sorted(known)) or 'none'}")
    return {"name": name, "sha256": known[name]["sha256"]}


def evaluation_id(evaluation: dict[str, Any]) -> str:
    """12 hex digits of what an evaluation is: equal ids mean comparable numbers."""
    return digest(evaluation)[:12]


def check_steps(pipeline: str, sampler: str, steps: int) -> str | None:
    """What is wrong with a sampler's number of steps in a pipeline, or None."""
    if sampler not in SAMPLERS[pipeline]:
        return f"sampler '{sampler}' does not belong to pipeline '{pipeline}'; its samplers are {', '.join(SAMPLERS[pipeline])}"
    if sampler == "ddim" and (steps < 2 or DDPM_STEPS % steps):
        fitting = ", ".join(str(n) for n in range(2, DDPM_STEPS + 1) if DDPM_STEPS % n == 0)
        return f"ddim takes a number of steps that divides {DDPM_STEPS}: {fitting}"
    return None
