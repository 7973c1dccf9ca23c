"""All metrics, groups and classes of one evaluation from one pass of features; numpy only."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ltbench.errors import LtbenchError
from ltbench.metrics.arrays import Features, TooFew
from ltbench.metrics.frechet import frechet
from ltbench.metrics.kernel import kernel
from ltbench.metrics.naming import metric_name
from ltbench.metrics.neighbours import precision_recall

NEIGHBOURS = 3


@dataclass(frozen=True)
class Metric:
    """One column: which way is better, its k if it has one, and the factor it is printed with."""

    kind: str
    better: str
    k: int | None = None
    scale: int = 1
    per_class: bool = True


METRICS = (
    Metric("FD", "lower", per_class=False),  # a class has too few images: its value would be mostly bias
    Metric("KD", "lower", scale=1000),
    Metric("precision", "higher", k=NEIGHBOURS),
    Metric("recall", "higher", k=NEIGHBOURS),
)


@dataclass(frozen=True)
class LabelledFeatures:
    """Features (n, D) of images with their classes (n,)."""

    values: Features
    labels: NDArray[np.int64]

    def of(self, classes: Sequence[int]) -> Features:
        """(n', D) features of the images of `classes`, in their stored order."""
        return self.values[np.isin(self.labels, np.asarray(classes, dtype=np.int64))]

    def first(self, wanted: Mapping[int, int]) -> Features:
        """The first `wanted[c]` images of each class c, or as many as there are."""
        rows = [np.flatnonzero(self.labels == c)[:n] for c, n in wanted.items()]
        return self.values[np.sort(np.concatenate(rows))]

    def count(self, one: int) -> int:
        """How many images class `one` has."""
        return int((self.labels == one).sum())


def evaluate_features(
    gen: Any,
    gen_labels: Any,
    ref: Any,
    ref_labels: Any,
    holdout: Any,
    holdout_labels: Any,
    groups: Mapping[str, Sequence[int]],
    extractor_name: str,
) -> dict[str, Any]:
    """Every metric over all classes, over each group and over each class, with its real-against-real floor.

    `gen`, `ref`, `holdout` are features (n, D), float; their labels (n,) int. A group restricts BOTH sets to its classes, so
    that precision and recall use the group's own radii. The floor is the same estimator on `holdout` against `ref`, with
    the composition of `gen` (the first images of each class; fewer where there are fewer, then n_floor says so).
    `extractor_name` is "name@sha256" of what made the features, as for `metric_name`.

    Returns {"rows": [...], "per_class": {...}} in the form of an evaluation record; a value that the sets are too small for is
    None, with "reason". Raises LtbenchError when a class of a group has no generated or no reference image.
    """
    generated = _labelled(gen, gen_labels, "generated images")
    reference = _labelled(ref, ref_labels, "reference")
    real = _labelled(holdout, holdout_labels, "held-out images")
    classes = sorted(k for ids in groups.values() for k in ids)
    _require_all(generated, classes, "generated", "raise `samples` or check the labels that were sampled")
    _require_all(reference, classes, "reference", "the reference must be balanced over all classes")
    named = {"all": classes, **{name: list(ids) for name, ids in groups.items()}}
    sets = {name: _compare(generated, reference, real, ids, METRICS) for name, ids in named.items()}
    rows = [
        {"group": group, **_row(metric, compared, extractor_name)}
        for metric in METRICS
        for group, compared in sets.items()
    ]
    return {"rows": rows, "per_class": _per_class(generated, reference, real, classes, extractor_name)}


Outcome = tuple[float | None, str | None]  # a value, or None with the reason


@dataclass(frozen=True)
class _Compared:
    """All metrics of one group: values, floors and the sizes of the three sets."""

    values: dict[str, Outcome]
    floors: dict[str, Outcome]
    n_gen: int
    n_ref: int
    n_floor: int


def _compare(
    gen: LabelledFeatures,
    ref: LabelledFeatures,
    real: LabelledFeatures,
    ids: Sequence[int],
    metrics: Sequence[Metric],
) -> _Compared:
    a, b = gen.of(ids), ref.of(ids)
    held = real.first({k: gen.count(k) for k in ids})
    kinds = {metric.kind for metric in metrics}
    return _Compared(_values(a, b, kinds), _values(held, b, kinds), len(a), len(b), len(held))


def _values(a: Features, b: Features, kinds: set[str]) -> dict[str, Outcome]:
    found: dict[str, Outcome] = {}
    for wanted, compute in _COMPUTE:
        if kinds.isdisjoint(wanted):
            continue
        try:
            found.update(zip(wanted, ((value, None) for value in compute(a, b)), strict=True))
        except TooFew as few:
            found.update({kind: (None, str(few)) for kind in wanted})
    return found


# One call may give several values: precision and recall share their distances.
_COMPUTE: tuple[tuple[tuple[str, ...], Callable[[Features, Features], tuple[float, ...]]], ...] = (
    (("FD",), lambda a, b: (frechet(a, b),)),
    (("KD",), lambda a, b: (kernel(a, b),)),
    (("precision", "recall"), lambda a, b: precision_recall(a, b, NEIGHBOURS)),
)


def _row(metric: Metric, compared: _Compared, extractor_name: str) -> dict[str, Any]:
    value, reason = compared.values[metric.kind]
    floor, floor_reason = compared.floors[metric.kind]
    row: dict[str, Any] = {
        "metric": metric.kind,
        "name": metric_name(metric.kind, extractor_name),
        "value": value,
        "floor": floor,
        "n_gen": compared.n_gen,
        "n_ref": compared.n_ref,
        "n_floor": compared.n_floor,
        "better": metric.better,
        "k": metric.k,
        "scale": metric.scale,
    }
    if reason is not None:
        row["reason"] = reason
    if floor_reason is not None:
        row["floor_reason"] = floor_reason
    return row


def _per_class(
    gen: LabelledFeatures,
    ref: LabelledFeatures,
    real: LabelledFeatures,
    classes: Sequence[int],
    extractor_name: str,
) -> dict[str, Any]:
    """Arrays over `classes` (sorted ids); None where a class is too small, with the text at the same place in "reason"."""
    metrics = [metric for metric in METRICS if metric.per_class]
    each = [_compare(gen, ref, real, [k], metrics) for k in classes]
    result: dict[str, Any] = {
        "classes": list(classes),
        "metrics": {},
        "floor": {},
        "reason": {},
        "n_gen": [one.n_gen for one in each],
        "n_ref": [one.n_ref for one in each],
        "n_floor": [one.n_floor for one in each],
    }
    for metric in metrics:
        name = metric_name(metric.kind, extractor_name)
        result["metrics"][name] = [one.values[metric.kind][0] for one in each]
        result["floor"][name] = [one.floors[metric.kind][0] for one in each]
        result["reason"][name] = [one.values[metric.kind][1] for one in each]
    return result


def _labelled(values: Any, labels: Any, what: str) -> LabelledFeatures:
    features = np.asarray(values, dtype=np.float64)
    ids = np.asarray(labels, dtype=np.int64)
    if features.ndim != 2 or ids.shape != (len(features),):
        raise ValueError(f"{what}: features of shape {features.shape} with labels of shape {ids.shape}")
    return LabelledFeatures(features, ids)


def _require_all(images: LabelledFeatures, classes: Sequence[int], what: str, remedy: str) -> None:
    if missing := sorted(set(classes) - set(images.labels.tolist())):
        shown = ", ".join(map(str, missing[:10])) + (" ..." if len(missing) > 10 else "")
        raise LtbenchError(
            f"{len(missing)} of {len(classes)} classes have no {what} image: {shown}",
            hint=f"A group would silently shrink: {remedy}.",
        )
