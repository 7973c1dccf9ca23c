"""Features of real images: made once per set, extractor and rounding, and shared by every evaluation that compares with them."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from typing import Any

import numpy as np
import torch

from ltbench.collect import Features, Preempted
from ltbench.datasets import Dataset, Images
from ltbench.errors import UsageError
from ltbench.protocols import OF_TRAINING
from ltbench.shards import Arrays, Shards
from ltbench.sources import reference_key

CHUNK = 1000  # images on the device at a time: a multiple of every extractor's batch
PART = 10 * CHUNK  # images per file while a large set is being looked at
SETS = ("reference", "holdout", "train")


def needed_sets(evaluation: Mapping[str, Any]) -> tuple[str, ...]:
    """The sets of real images that an evaluation's metrics look at."""
    return SETS if set(evaluation["metrics"]) & set(OF_TRAINING) else SETS[:2]


def real_features(
    data: Dataset,
    settings: Mapping[str, Any],
    evaluation: Mapping[str, Any],
    extractor: Features,
    shards: Shards,
    without: Collection[str] = (),
    stop: Callable[[], bool] = lambda: False,
) -> dict[str, Arrays]:
    """{set: {"pool", ..., "labels"}} of the real images that an evaluation needs, found on disk or made now; features are memory maps.

    without: sets that something else stands in for. A set is found by the sha256 of its pixels and labels, so a changed image is another set.
    Raises UsageError for a protocol whose crop the data set does not have: its numbers would be another protocol's; Preempted
    after a stop.
    """
    if evaluation["crop"] not in data.crops:
        raise UsageError(
            f"protocol {evaluation['protocol']} compares with images made square by '{evaluation['crop']}'; data set "
            f"'{settings['dataset']['name']}' has {', '.join(data.crops)}",
            "take a protocol of that crop, or give the data set one: Dataset.crops",
        )
    data = data.squared(evaluation["crop"])
    key = reference_key(settings["dataset"], evaluation)
    names = [name for name in needed_sets(evaluation) if name not in without]
    return {name: _one(data, name, evaluation, extractor, shards, key, stop) for name in names}


def images_of(data: Dataset, name: str) -> Images:
    """The real images of one of `SETS`."""
    return {"reference": data.reference, "holdout": data.holdout, "train": data.train}[name]()


def _one(
    data: Dataset,
    name: str,
    evaluation: Mapping[str, Any],
    extractor: Features,
    shards: Shards,
    key: str,
    stop: Callable[[], bool],
) -> Arrays:
    images = images_of(data, name)
    file = f"{name}-{images.sha256()[:16]}"
    found = shards.mapped(key, file)
    if found is None:
        _make(images.images, file, extractor, evaluation["quantise"], shards, key, stop)
        found = shards.mapped(key, file)
        assert found is not None, "written just now"
    return {**found, "labels": images.labels}


def _make(
    images: np.ndarray,
    file: str,
    extractor: Features,
    rule: str,
    shards: Shards,
    key: str,
    stop: Callable[[], bool],
) -> None:
    """Keep the features of a whole set. A large one is made in parts, which stay on disk until all are there: a stop costs one part,
    and no more than one is ever in memory (the published references are of over a million images, 16 KB each)."""
    names = [f"{file}-part-{number:05d}" for number in range(-(-len(images) // PART))]
    if len(names) == 1:
        shards.write(
            key, file, features_of(images[:], extractor, rule, stop)
        )  # decodes what is decoded on demand
        return
    for number, name in enumerate(names):
        if shards.verified(key, name) is None:
            part = features_of(images[number * PART : (number + 1) * PART], extractor, rule, stop)
            shards.write(key, name, part)
    shards.join(key, file, names)
    for name in names:
        shards.remove(key, name)


def features_of(
    images: np.ndarray, extractor: Features, rule: str, stop: Callable[[], bool] = lambda: False
) -> Arrays:
    """Features of (n, C, H, W) uint8 real images, seen as the rule `none` has generated ones seen: float32 in [0, 1].

    Raises Preempted after a stop.
    """
    parts = []
    for rows in torch.from_numpy(images).split(CHUNK):
        if stop():
            raise Preempted
        parts.append(extractor.features(rows.float() / 255 if rule == "none" else rows))
    return {
        name: torch.cat([part.pop(name) for part in parts]).float().cpu().numpy() for name in list(parts[0])
    }
