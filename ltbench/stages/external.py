"""Measure what was not trained here, somebody's images or weights, and keep the records beside our own, marked as theirs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from ltbench import files, provenance, vaes
from ltbench.canonical import digest
from ltbench.checkpoint import weights_sha256
from ltbench.collect import Preempted
from ltbench.datasets import Dataset, build_dataset
from ltbench.errors import EnvironmentProblem, UsageError
from ltbench.evaluate import Bench, Evaluated, Milestone, evaluate
from ltbench.execution import resolve
from ltbench.external import read_external
from ltbench.foreign import evaluate_samples, fitting, groups_known, target_of
from ltbench.networks import build_network
from ltbench.samples import Samples, open_samples
from ltbench.stages.common import Event, Options, Stage, Superseded, context, present, put, put_tiles
from ltbench.store import Held, Store
from ltbench.store.records import stage_name

# Of the spec's evaluation, what is true of images whoever made them; how they were sampled is declared, or not.
MEASURING = (
    "protocol",
    "samples",
    "classes",
    "extractor",
    "reference",
    "crop",
    "metrics",
    "estimators",
    "groups",
)
DECLARED = ("sampler", "steps", "guidance", "seed", "quantise")

Measure = Callable[[Bench], Evaluated]


@dataclass(frozen=True)
class External:
    """Who made it. kind: samples | checkpoint. sha256: of pixels and labels, or of the weights file. declared: their words.
    settings: what else a cell of ours would say. step: of training, 0 where nobody says."""

    name: str
    kind: str
    sha256: str
    declared: dict[str, Any]
    settings: dict[str, Any]
    step: int

    @property
    def told(self) -> dict[str, Any]:
        """As the record names it."""
        return {"name": self.name, "kind": self.kind, "sha256": self.sha256, "declared": self.declared}


@dataclass(frozen=True)
class Wanted:
    """One record to make. evaluation: as it is kept. measure: what makes its numbers."""

    external: External
    dataset: dict[str, Any]
    data: Dataset
    evaluation: dict[str, Any]
    measure: Measure
    notes: tuple[str, ...] = ()


def measure_samples(
    store: Store,
    name: str,
    path: Path,
    declared: Mapping[str, Any],
    wanted: Sequence[tuple[dict[str, Any], dict[str, Any]]],
    *,
    reference: Path | None = None,
    first: int | None = None,
    device: str | None = None,
    on_event: Event = lambda event: None,
    stop: Callable[[], bool] = lambda: False,
) -> list[dict[str, Any]]:
    """Measure images under each of the (data set settings, evaluation) pairs `wanted`, and keep a record of each.

    reference: a file of ADM statistics in the place of the data set's reference. first: only so many images from the front.
    Everything is looked at before anything is measured; raises UsageError for what does not fit. Returns for each what became
    of it: {"cell", "evaluation", "outcome", "body", "notes"}.
    """
    made = [_samples(name, path, declared, *pair, reference, first) for pair in wanted]
    return _all(store, made, device, on_event, stop)


def measure_checkpoint(
    store: Store,
    name: str,
    path: Path,
    declared: Mapping[str, Any],
    wanted: Sequence[tuple[dict[str, Any], dict[str, Any]]],
    *,
    pipeline: str,
    network: str,
    weights: str = "ema",
    family: str | None = None,
    device: str | None = None,
    on_event: Event = lambda event: None,
    stop: Callable[[], bool] = lambda: False,
) -> list[dict[str, Any]]:
    """Sample from somebody's weights by our own samplers, under each evaluation, and keep a record of each.

    The file is read as data. Raises external.WeightsRefused and WeightsMismatch.
    """
    made: list[Wanted] = []
    for dataset, evaluation in wanted:
        data = _data(dataset)
        channels, side, _ = vaes.network_shape(dataset, data.channels, data.resolution)
        net = build_network(
            network,
            channels=channels,
            resolution=side,
            classes=len(data.classes),
            dropout=0.0,
        )
        found = read_external(path, net, weights=weights, family=family)
        facts = {"network": network, "family": found.family, "weights": found.state or "bare state dict"}
        step = int(declared.get("step", found.step or 0))
        settings = {"pipeline": pipeline, "network": network}
        external = External(name, "checkpoint", found.sha256, {**declared, **facts}, settings, step)
        code = provenance.train_code(_settings(external, dataset))["network"]["digest"]
        milestone = Milestone(weights_sha256(found.weights), lambda w=found.weights: w, code)
        working = {"dataset": dataset, **settings, "train": {"dropout": 0.0}}
        measure = partial(evaluate, working, evaluation, milestone, data)
        notes = tuple(
            f"{len(names)} tensors have no place here: {reason}" for reason, names in found.dropped.items()
        )
        made.append(Wanted(external, dataset, data, evaluation, measure, notes))
    return _all(store, made, device, on_event, stop)


def _samples(
    name: str,
    path: Path,
    declared: Mapping[str, Any],
    dataset: dict[str, Any],
    evaluation: dict[str, Any],
    reference: Path | None,
    first: int | None,
) -> Wanted:
    data = _data(dataset)
    opened = open_samples(path, target_of(data))
    samples = fitting(_front(opened, first), evaluation, data)
    notes = [*samples.notes]
    if reference is not None and samples.labels is not None and not groups_known(reference, data):
        notes.append(f"the images in {reference.name} have no labels: all classes are measured together")
        samples = replace(samples, labels=None)
    if samples.count < opened.count:
        notes.append(f"{samples.count} of {opened.count} images are measured")
    if samples.count != int(evaluation["samples"]):
        notes.append(
            f"{samples.count} images are measured where {evaluation['protocol']} here has {evaluation['samples']}: "
            "metrics depend on the number, so a table will not set them side by side"
        )
    policy = _policy(samples)
    used = {**evaluation, "samples": samples.count, "labels": policy}
    kept = {key: used[key] for key in (*MEASURING, "block") if key in used}
    kept |= {key: declared.get(key) for key in DECLARED} | {"labels": policy}
    if reference is not None:
        kept["reference"] = f"{reference.stem}@{files.sha256_file(reference)[0][:8]}"
        notes.append(f"the reference is {kept['reference']}, another one than the spec's")
    step = int(declared.get("step", 0))
    external = External(name, "samples", samples.sha256, dict(declared), {}, step)
    return Wanted(external, dataset, data, kept, lambda bench: evaluate_samples(
        samples, dataset, used, data, bench, reference), tuple(notes))  # fmt: skip


def _front(samples: Samples, first: int | None) -> Samples:
    if first is None or first == samples.count:
        return samples
    if first > samples.count:
        raise UsageError(f"{samples.path} has {samples.count} images, not {first}")
    return samples.only(torch.arange(samples.count).numpy() < first)


def _policy(samples: Samples) -> str | None:
    """`balanced` where every class has the same number up to one, `given` for other labels, None without."""
    if samples.labels is None:
        return None
    counts = torch.from_numpy(samples.labels).bincount()
    held = counts[counts > 0]
    return "balanced" if int(held.max() - held.min()) <= 1 else "given"


def _data(dataset: Mapping[str, Any]) -> Dataset:
    data = build_dataset(dataset)
    if problem := data.missing():
        raise EnvironmentProblem(problem)
    return data


def _settings(external: External, dataset: Mapping[str, Any]) -> dict[str, Any]:
    """Of the cell: what was declared stands where our own settings would."""
    return {**external.declared, **external.settings, "dataset": dict(dataset), "external": external.told}


def _all(
    store: Store, wanted: Sequence[Wanted], device: str | None, on_event: Event, stop: Callable[[], bool]
) -> list[dict[str, Any]]:
    chosen = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return [_one(store, each, chosen, on_event, stop) for each in wanted]


def _one(
    store: Store, wanted: Wanted, device: torch.device, on_event: Event, stop: Callable[[], bool]
) -> dict[str, Any]:
    """Claim, measure and keep one record, unless this code has made it already."""
    external = wanted.external
    identity = {"external": external.told, "dataset": wanted.dataset}
    settings, cell = _settings(external, wanted.dataset), digest(identity)
    code, made_by = provenance.train_code(settings), provenance.evaluation_code()["evaluation"]
    store.put_cell(cell, identity, settings)
    run = store.run(cell, provenance.run_id(code, settings))
    run.create(code, settings)
    evaluation = store.put_evaluation(wanted.evaluation)
    told = {"cell": cell, "evaluation": evaluation, "notes": list(wanted.notes)}
    known = present(run, "evaluation", external.step, evaluation, made_by["digest"])
    if known is not None:
        return {**told, "outcome": "known", "body": known}
    claim = run.claim(stage_name("evaluation", external.step, evaluation))
    if isinstance(claim, Held):
        return {**told, "outcome": "held", "message": str(claim)}
    stage = Stage(run, claim, settings, Options(), device, on_event, stop, time.time())
    with claim:
        try:
            body = _measured(stage, wanted, evaluation, made_by["digest"])
            put(stage, body, evaluation)
        except Preempted:
            claim.release("preempted")
            return {**told, "outcome": "preempted"}
        except Superseded as lost:
            claim.release("preempted")
            return {**told, "outcome": "held", "message": str(lost)}
    return {**told, "outcome": "done", "body": body}


def _measured(stage: Stage, wanted: Wanted, evaluation: str, made_by: str) -> dict[str, Any]:
    external, data = wanted.external, wanted.data
    found = wanted.measure(_bench(stage, int(wanted.evaluation["samples"])))
    body = {
        **context(stage, data, external.step),
        "kind": "evaluation",
        "external": external.told,
        "evaluation": {"id": evaluation, **wanted.evaluation},
        "classes": list(data.classes),
        "train_counts": [int(n) for n in data.counts()],
        "groups": found.groups,
        **found.body,
        "facts": dict(_facts(stage, found)),
    }
    body["code"] = {**body["code"], "evaluation": made_by}
    return body


def _facts(stage: Stage, found: Evaluated) -> Iterator[tuple[str, Any]]:
    yield "samples", put_tiles(stage.run, found.samples)
    yield "reference", put_tiles(stage.run, found.reference)


def _bench(stage: Stage, total: int) -> Bench:
    def progress(done: int) -> None:
        seconds = max(time.time() - stage.started, 1e-9)
        state = {"step": min(done, total), "total": total, "loss": None, "images_per_s": done / seconds}
        stage.claim.beat(**state)
        stage.emit({"type": "progress", "cell": stage.run.cell, **state})

    how = resolve(stage.options.execution, stage.device)
    return Bench(
        stage.run.store.scratch, stage.device, False, stage.stop, progress, stage.notice, how, stage.ran
    )
