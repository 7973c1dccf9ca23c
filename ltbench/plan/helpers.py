"""Jobs that others wait for: the latents of a training set, the features of real images, shares of an evaluation's images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltbench import vaes
from ltbench.plan.work import Work
from ltbench.sources import has_latents, has_references, latents_key, reference_key
from ltbench.stages.names import Named, parse

if TYPE_CHECKING:
    from ltbench.plan import Plan


def with_helpers(found: Plan, work: Sequence[Work], scratch: Path, split: int = 1) -> list[Work]:
    """The same work, with what trainings and evaluations wait for as jobs of their own.

    The latents of a training set and the features of each set of real images are made once, by the first cell that needs them,
    unless `scratch` has them. With `split` above 1, that many jobs make the images of each evaluation.
    """
    helpers = _Helpers({k: e for item in found.cells for k, e in item.cell.evaluations.items()}, scratch)
    helped = []
    for item in work:
        latents = _latents(item)
        measured = [named for stage in item.stages if (named := parse(stage)).kind == "evaluate"]
        before = (*helpers.encode(latents), *helpers.reference(item.cell.settings["dataset"], measured))
        shares = helpers.sample(measured, split) if split > 1 else ()
        helped.append(replace(item, stages=(*before, *item.stages, *shares), latents=latents))
    return helped


def _latents(item: Work) -> str | None:
    """The key of the latents that a training waits for."""
    dataset = item.cell.settings["dataset"]
    trains = any(stage.startswith("train:") for stage in item.stages)
    return latents_key(dataset) if trains and vaes.named(dataset) else None


class _Helpers:
    """The helping stages of one plan, named after their kind; what several cells wait for is made for the first that asks."""

    def __init__(self, evaluations: Mapping[str, Mapping[str, Any]], scratch: Path) -> None:
        self.evaluations, self.scratch = evaluations, scratch
        self._keys: dict[
            tuple[int, str], str
        ] = {}  # thousands of cells share data settings and an evaluation
        self._asked: set[str] = set()

    def encode(self, latents: str | None) -> list[str]:
        if latents is None or not self._first(latents) or has_latents(self.scratch, latents):
            return []
        return [f"encode:{latents}"]

    def reference(self, data: Mapping[str, Any], measured: Iterable[Named]) -> list[str]:
        found = []
        for evaluation in dict.fromkeys(each.evaluation for each in measured):
            key = self._keys.get((id(data), evaluation))
            if key is None:
                key = self._keys[id(data), evaluation] = reference_key(data, self.evaluations[evaluation])
            if self._first(key) and not has_references(self.scratch, key):
                found.append(f"reference:{evaluation}")
        return found

    def sample(self, measured: Iterable[Named], split: int) -> list[str]:
        """Shares of the images; none where guidance is still searched for, nor of pictures."""
        return [
            f"sample:{each.steps[0]}:{each.evaluation}:{part}/{split}"
            for each in measured
            if not {"search", "illustrate"} & set(self.evaluations[each.evaluation])
            for part in range(split)
        ]

    def _first(self, key: str) -> bool:
        first = key not in self._asked
        self._asked.add(key)
        return first
