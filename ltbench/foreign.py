"""Images that others made, measured as our own are: by the same extractor, metrics, groups and real images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ltbench import provenance, sources
from ltbench.canonical import digest
from ltbench.collect import SHARD_IMAGES, TILE_CLASSES, TILE_COLUMNS, Collected, Preempted, shown_classes
from ltbench.datasets import Dataset
from ltbench.errors import UsageError
from ltbench.evaluate import (
    Bench,
    Evaluated,
    measured_rows,
    planned_extractor,
    references,
    tiles,
    unlabelled_tiles,
)
from ltbench.metrics.extractor import Extractor
from ltbench.metrics.sets import FeatureSet, ranks
from ltbench.metrics.statistics import Statistics, load_statistics
from ltbench.protocols import class_groups, sampled_classes
from ltbench.reals import CHUNK, images_of, real_features
from ltbench.samples import Samples, Target, reference_images
from ltbench.shards import Arrays, Shards


def target_of(data: Dataset) -> Target:
    """What images must be to be compared with those of a data set."""
    return Target(data.classes, data.channels, data.resolution)


def fitting(samples: Samples, evaluation: Mapping[str, Any], data: Dataset) -> Samples:
    """The images that an evaluation is about: all, or those of its classes. Raises UsageError where it cannot be made of them."""
    ids, name = sampled_classes(evaluation, data.counts()), evaluation["protocol"]
    if samples.labels is None:
        if len(ids) < len(data.classes):
            raise UsageError(
                f"protocol {name} measures {evaluation['classes']} classes, and the images have no labels",
                "give arr_1 or labels.csv, or name another one of the spec's protocols: --protocol",
            )
        return samples
    found = samples.only(np.isin(samples.labels, ids))
    assert found.labels is not None, "a part of labelled images is labelled"
    if missing := sorted(set(ids) - set(found.labels.tolist())):
        shown = ", ".join(map(str, missing[:10])) + (" ..." if len(missing) > 10 else "")
        raise UsageError(
            f"{samples.path}: {len(missing)} of the {len(ids)} classes of protocol {name} have no image: {shown}",
            "a group without them would be another group; without labels all classes are measured together",
        )
    return found


def evaluate_samples(
    samples: Samples,
    dataset: Mapping[str, Any],
    evaluation: Mapping[str, Any],
    data: Dataset,
    bench: Bench,
    reference: Path | None = None,
) -> Evaluated:
    """Measure images under an evaluation, whose `labels` is None for unlabelled ones. reference: ADM's statistics, in the place
    of the data set's own reference images. Raises UsageError for what is malformed, Preempted after a stop."""
    extractor = planned_extractor(evaluation, bench.device)
    statistics = None if reference is None else read_reference(reference, extractor, evaluation, data, bench)
    made = given_features(samples, evaluation, extractor, data, bench)
    replaced = () if statistics is None else ("reference",)
    data = data.squared(evaluation["crop"])
    real = real_features(
        data, {"dataset": dataset}, evaluation, extractor, references(bench), replaced, bench.stop
    )
    named = class_groups(evaluation, data.counts())
    rows = measured_rows(made, real, evaluation, named, extractor, str(bench.device), statistics)
    classes = shown_classes(sampled_classes(evaluation, data.counts()))
    if samples.labels is None:
        shown = unlabelled_tiles(made.shown)
    else:
        shown = tiles(made.shown, made.labels[made.shown_numbers], classes)
    own = data.reference()
    body = {"nfe": None, "real": {name: images_of(data, name).sha256() for name in real}, **rows}
    return Evaluated(body, named, shown, tiles(own.images, own.labels, classes))


def given_features(
    samples: Samples, evaluation: Mapping[str, Any], extractor: Extractor, data: Dataset, bench: Bench
) -> Collected:
    """Features of images, found by their sha256 or made now; what is finished survives a stop.

    The extractor sees them in blocks as it would see generated ones, so that the same images give the same bits.
    """
    block, rule = int(evaluation["block"]), evaluation["quantise"]
    shards = Shards(sources.features_root(bench.scratch), bench.notice)
    seen = {
        "samples": samples.sha256,
        "extractor": extractor.identity,
        "code": provenance.extractor_code(),
        "block": block,
        "float": rule == "none",
    }
    key, size = digest(seen)[:20], max(1, SHARD_IMAGES // block) * block
    names = [f"given-{number:06d}" for number in range(-(-samples.count // size))]
    parts = [shards.read(key, name) for name in names]
    first = next((number for number, part in enumerate(parts) if part is None), len(parts))
    for number, rows in enumerate(samples.blocks(size, first * size) if first < len(parts) else (), first):
        parts[number] = parts[number] or _looked_at(rows, block, rule, extractor)
        shards.write(key, names[number], parts[number] or {})
        bench.progress(min(samples.count, (number + 1) * size))
        if number + 1 < len(parts) and bench.stop():
            raise Preempted
    known = [part for part in parts if part is not None]
    arrays = {name: np.concatenate([part[name] for part in known]) for name in known[0]}
    labels = np.zeros(samples.count, np.int64) if samples.labels is None else samples.labels
    shown = _shown(samples, evaluation, data)
    return Collected(arrays, labels, [], _pictures(samples, shown), shown)


def _looked_at(rows: np.ndarray, block: int, rule: str, extractor: Extractor) -> Arrays:
    pixels = torch.from_numpy(np.ascontiguousarray(rows)).split(block)
    found = [extractor.features(part.float() / 255 if rule == "none" else part) for part in pixels]
    return {name: torch.cat([part[name] for part in found]).numpy() for name in found[0]}


def _shown(samples: Samples, evaluation: Mapping[str, Any], data: Dataset) -> np.ndarray:
    """(m,) numbers of the images that are kept for figures: the first of each shown class, or of all."""
    if samples.labels is None:
        return np.arange(min(samples.count, TILE_COLUMNS * TILE_CLASSES))
    classes = shown_classes(sampled_classes(evaluation, data.counts()))
    return np.flatnonzero(np.isin(samples.labels, classes) & (ranks(samples.labels) < TILE_COLUMNS))


def _pictures(samples: Samples, numbers: np.ndarray) -> np.ndarray:
    """(m, C, H, W) uint8: the images of these numbers; reading stops at the last."""
    found: list[np.ndarray] = []
    done = 0
    for rows in samples.blocks(SHARD_IMAGES):
        found.append(rows[numbers[(numbers >= done) & (numbers < done + len(rows))] - done])
        done += len(rows)
        if done > numbers[-1]:
            break
    return np.concatenate(found)


def read_reference(
    path: Path, extractor: Extractor, evaluation: Mapping[str, Any], data: Dataset, bench: Bench
) -> Statistics:
    """A file of ADM statistics as the reference of this extractor, with the features of the images that it may hold.

    Raises UsageError for a file that is malformed or of another extractor.
    """
    found = load_statistics(path)
    for name, given, layer in (("mu", found.pool, "pool"), ("mu_s", found.spatial, "spatial")):
        wanted = extractor.dims.get(layer)
        if given is not None and wanted is not None and len(given.mean) != wanted:
            raise UsageError(
                f"{path}: {name} has {len(given.mean)} dimensions, extractor '{extractor.name}' gives {wanted}",
                "statistics belong to the extractor that made them",
            )
    images = reference_images(path, target_of(data))
    if images is None:
        return found
    as_real = {
        **evaluation,
        "block": CHUNK,
    }  # cut as the data set's own reference, so that equal images are equal bits
    made = given_features(images, as_real, extractor, data, bench)
    return replace(found, images=FeatureSet(labels=made.labels, **made.arrays))


def groups_known(path: Path, data: Dataset) -> bool:
    """Whether groups can be compared with a reference file: it holds no images, or labelled ones."""
    images = reference_images(path, target_of(data))
    return images is None or images.labels is not None
