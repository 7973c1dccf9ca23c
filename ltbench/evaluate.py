"""From a milestone to a record: sampler -> images -> features -> metrics for every group, in one pass over the images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ltbench import provenance, sources, vaes
from ltbench.collect import TILE_CLASSES, TILE_COLUMNS, Collected, Collector, Sampling, shown_classes
from ltbench.datasets import Dataset
from ltbench.errors import LtbenchError
from ltbench.execution import PLAIN, Executed, Execution
from ltbench.generate import Block, blocks, build_sampler, decoder_of, shape_of
from ltbench.latents.codec import Decode
from ltbench.metrics.catalogue import Estimators
from ltbench.metrics.extractor import Extractor, load_extractor
from ltbench.metrics.inception_score import ISRule
from ltbench.metrics.measure import ALL, measure
from ltbench.metrics.sets import FeatureSet, interleaved
from ltbench.metrics.statistics import Statistics
from ltbench.networks import Network
from ltbench.protocols import class_groups, sampled_classes, sampled_in
from ltbench.reals import images_of, real_features
from ltbench.sampling import Forward, prepared
from ltbench.shards import Arrays, Shards


@dataclass(frozen=True)
class Tiles:
    """Images for figures. images: (R, C, ch, H, W) uint8. rows: class ids. columns: index of each image within its class.

    Without classes every row is None, and the images stand in reading order.
    """

    images: np.ndarray
    rows: list[int] | list[None]
    columns: list[int]


@dataclass(frozen=True)
class Milestone:
    """EMA weights: their sha256, and how to load them, which only sampling needs. network_code: digest of the network's code.
    init: what training began at, where that was not a fresh network."""

    sha256: str
    load: Callable[[], Mapping[str, Tensor]]
    network_code: str
    init: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class Bench:
    """Where and how an evaluation works. scratch: the folder of features, samples and references. keep_samples: images stay.
    execution: how the network is run. stop: asked between blocks. progress: hears the number of images done.
    notice: hears of damaged files, and of an execution that is not to be had. ran: hears how the network was really run, each time
    that images were sampled."""

    scratch: Path
    device: torch.device
    keep_samples: bool = False
    stop: Callable[[], bool] = field(default=lambda: False)
    progress: Callable[[int], None] = field(default=lambda done: None)
    notice: Callable[[str], None] = field(default=lambda message: None)
    execution: Execution = PLAIN
    ran: Callable[[Executed], None] = field(default=lambda how: None)


@dataclass(frozen=True)
class Evaluated:
    """What an evaluation measured. `body` is the part of the record body that it fills."""

    body: dict[str, Any]
    groups: dict[str, list[int]]
    samples: Tiles
    reference: Tiles


def evaluate(
    settings: Mapping[str, Any],
    evaluation: Mapping[str, Any],
    milestone: Milestone,
    data: Dataset,
    bench: Bench,
) -> Evaluated:
    """Sample, unless features are there already, and measure.

    Raises ValueError when the extractor's weights are not those the evaluation names, collect.Preempted after a stop.
    """
    extractor = planned_extractor(evaluation, bench.device)
    # not kept by name: its network is let go before the metrics want the memory
    made = collector_of(settings, evaluation, milestone, data, extractor, bench).collect(
        int(evaluation["samples"])
    )
    data = data.squared(evaluation["crop"])
    real = real_features(data, settings, evaluation, extractor, references(bench), stop=bench.stop)
    named = class_groups(evaluation, data.counts())
    measured = measured_rows(made, real, evaluation, named, extractor, str(bench.device))
    rows = shown_classes(sampled_classes(evaluation, data.counts()))
    if evaluation["labels"] is None:
        samples = unlabelled_tiles(made.shown)
    else:
        samples = tiles(made.shown, made.labels[made.shown_numbers], rows)
    reference = data.reference()
    body = {**_cost(made.nfe), "real": {name: images_of(data, name).sha256() for name in real}, **measured}
    return Evaluated(body, named, samples, tiles(reference.images, reference.labels, rows))


def planned_extractor(evaluation: Mapping[str, Any], device: torch.device) -> Extractor:
    """The extractor of an evaluation. Raises ValueError for weights other than the planned ones."""
    extractor = load_extractor(evaluation["extractor"]["name"]).to(device)
    if extractor.identity != dict(evaluation["extractor"]):
        raise ValueError(
            f"extractor {extractor.name} has weights {extractor.identity['sha256'][:12]}, the evaluation was planned with "
            f"{evaluation['extractor']['sha256'][:12]}: plan again"
        )
    return extractor


def references(bench: Bench) -> Shards:
    """Where features of real images are kept."""
    return Shards(sources.references_root(bench.scratch), bench.notice)


def sampling_of(
    settings: Mapping[str, Any], evaluation: Mapping[str, Any], milestone: Milestone, data: Dataset
) -> Sampling:
    """What decides the images that a milestone gives under an evaluation."""
    vae = vaes.named(settings.get("dataset", {}))
    conditional = evaluation["labels"] is not None
    return Sampling(
        evaluation=evaluation,
        milestone=milestone.sha256,
        pipeline=settings["pipeline"],
        network=settings["network"],
        ids=sampled_classes(evaluation, data.counts()) if conditional else (),
        null=len(data.classes),
        shape=shape_of(settings, data),
        precision=sampled_in(evaluation, settings["train"].get("precision")),
        code={
            "sampling": provenance.sampling_code(),
            "network": milestone.network_code,
            **({} if vae is None else {"vae": vaes.identity(vae)}),
        },
    )


def collector_of(
    settings: Mapping[str, Any],
    evaluation: Mapping[str, Any],
    milestone: Milestone,
    data: Dataset,
    extractor: Extractor,
    bench: Bench,
) -> Collector:
    """What makes or finds the features of the images that a milestone gives under an evaluation."""
    sampling = sampling_of(settings, evaluation, milestone, data)
    if evaluation["labels"] is not None:
        _require_drawn(sampling, int(evaluation["samples"]))

    return Collector(
        sampling=sampling,
        extractor=extractor,
        extractor_code=provenance.extractor_code(),
        make=_maker(settings, sampling, milestone, data, bench),
        features=Shards(sources.features_root(bench.scratch), bench.notice),
        samples=Shards(sources.samples_root(bench.scratch), bench.notice),
        keep_samples=bench.keep_samples,
        stop=bench.stop,
        progress=bench.progress,
    )


def _maker(
    settings: Mapping[str, Any], sampling: Sampling, milestone: Milestone, data: Dataset, bench: Bench
) -> Callable[[Iterable[int]], Iterator[Block]]:
    """Samples blocks by number. Weights are loaded where an image is missing; a network is compiled and recorded once for all."""

    @cache
    def ready() -> tuple[Network, Forward, Decode | None]:
        network = build_sampler(settings, data, milestone.load(), bench.device)
        forward = prepared(network, bench.device, sampling.precision, bench.execution, bench.notice)
        return network, forward, decoder_of(settings, bench.device, bench.execution, bench.notice)

    def make(wanted: Iterable[int]) -> Iterator[Block]:
        if numbers := list(wanted):
            network, forward, decode = ready()
            what = sampling.pipeline, sampling.evaluation, sampling.ids, sampling.shape, bench.device
            try:
                yield from blocks(network, *what, numbers, decode, forward)
            finally:
                bench.ran(forward.executed)

    return make


def _require_drawn(sampling: Sampling, count: int) -> None:
    """Raise LtbenchError before anything is sampled if a class gets no image: drawn labels may miss one, at every attempt."""
    drawn = set(sampling.labels(count).tolist())
    if missing := [k for k in sampling.ids if k not in drawn]:
        shown = ", ".join(map(str, missing[:10])) + (" ..." if len(missing) > 10 else "")
        raise LtbenchError(
            f"{len(missing)} of {len(sampling.ids)} classes get no image among {count} (labels: "
            f"{sampling.evaluation['labels']}, seed {sampling.evaluation['seed']}): {shown}",
            "take more `samples`, another seed, or labels: balanced",
        )


def measured_rows(
    made: Collected,
    real: Mapping[str, Arrays],
    evaluation: Mapping[str, Any],
    named: Mapping[str, list[int]],
    extractor: Extractor,
    device: str = "cpu",
    statistics: Statistics | None = None,
) -> dict[str, Any]:
    """Rows and per-class arrays. Without labels there is one group, `all`, and nothing per class.

    statistics: a reference in the place of the real images'.
    """
    gen, holdout = FeatureSet(labels=made.labels, **made.arrays), FeatureSet(**real["holdout"])
    ref = FeatureSet(**real["reference"]) if statistics is None else statistics
    train = FeatureSet(**real["train"]) if "train" in real else None
    conditional = evaluation["labels"] is not None
    if not conditional:
        holdout = holdout.take(
            interleaved(holdout.labels)
        )  # its first n images, the floor, have all classes alike
        gen, ref, holdout, train = (_unlabelled(part) for part in (gen, ref, holdout, train))
        named = {ALL: [0]}
    found = measure(
        gen,
        ref,
        holdout,
        named,
        evaluation["metrics"],
        f"{extractor.name}@{extractor.sha256}",
        estimators_of(evaluation),
        train,
        device=device,
    )
    if conditional and evaluation["classes"] != ALL:  # the one group that was sampled is not all classes
        found["rows"] = [row for row in found["rows"] if row["group"] != ALL]
    if not conditional:
        found["per_class"] = {key: type(value)() for key, value in found["per_class"].items()}
    return found


def _unlabelled(part: FeatureSet | Statistics | None) -> Any:
    if isinstance(part, Statistics):
        return replace(part, images=_unlabelled(part.images))
    return None if part is None else replace(part, labels=np.zeros(len(part), np.int64))


def estimators_of(evaluation: Mapping[str, Any]) -> Estimators:
    """How the protocol of an evaluation computes what it names."""
    chosen = dict(evaluation["estimators"])
    if "inception_score" in chosen:
        chosen["inception_score"] = ISRule(**chosen["inception_score"])
    return Estimators(**chosen)


def _cost(spent: Sequence[int]) -> dict[str, Any]:
    """`nfe`: network rows per image, the mean where blocks differ (dopri5), which then has its range beside it."""
    if len(set(spent)) == 1:
        return {"nfe": spent[0]}
    return {"nfe": sum(spent) / len(spent), "nfe_range": [min(spent), max(spent)]}


def tiles(images: np.ndarray, labels: np.ndarray, classes: Sequence[int]) -> Tiles:
    """The first images of each class, as many as every class has, `TILE_COLUMNS` at most."""
    columns = min(TILE_COLUMNS, *(int((labels == c).sum()) for c in classes))
    rows = [images[np.flatnonzero(labels == c)[:columns]] for c in classes]
    return Tiles(np.stack(rows), list(classes), list(range(columns)))


def unlabelled_tiles(images: np.ndarray) -> Tiles:
    """The first images in reading order, `TILE_COLUMNS` a row and `TILE_CLASSES` rows at most."""
    columns = min(TILE_COLUMNS, len(images))
    rows = min(TILE_CLASSES, len(images) // columns)
    shown = images[: rows * columns].reshape(rows, columns, *images.shape[1:])
    return Tiles(shown, [None] * rows, list(range(columns)))
