"""All metrics, groups, classes and folds of one evaluation from one pass of features; images are not touched again."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ltbench.errors import LtbenchError
from ltbench.metrics import frechet, inception_score, kernel
from ltbench.metrics.arrays import TooFew
from ltbench.metrics.catalogue import CATALOGUE, Estimators, Metric
from ltbench.metrics.memorisation import copying
from ltbench.metrics.naming import metric_name
from ltbench.metrics.neighbours import prdc
from ltbench.metrics.sets import Estimate, FeatureSet
from ltbench.metrics.statistics import Statistics
from ltbench.metrics.vendi import vendi_ratio

ALL = "all"


def measure(
    gen: FeatureSet,
    ref: FeatureSet | Statistics,
    holdout: FeatureSet,
    groups: Mapping[str, Sequence[int]],
    wanted: Sequence[str],
    extractor_name: str,
    estimators: Estimators,
    train: FeatureSet | None = None,
    device: str = "cpu",
) -> dict[str, Any]:
    """Every `wanted` kind over all classes, each group and each class: {"rows": [...], "per_class": {...}} of an evaluation record.

    `groups` are class ids by name; "all" is their union. A group restricts BOTH sets to its classes, so that balls have the
    group's own radii. A value has its standard error, correction and fold values where they exist; folds leave generated
    and real images at once (`sets.folds_of`). The floor is the same estimator on `holdout` in the place of `gen`, with the
    composition of `gen`: the first images of each class, or as many as there are, which n_floor counts. Kinds about copying
    compare with `train`, and their floor is the value of held-out images. `extractor_name` is "name@sha256".

    With `Statistics` as reference, Fréchet distances have a value over all classes and no other; the images it may carry
    serve the pairwise kinds. A value that cannot be had is None with a "reason", a floor with a "floor_reason".

    Raises LtbenchError when a class of a group has no generated or no reference image, ValueError for an unknown kind.
    """
    if unknown := [kind for kind in wanted if kind not in CATALOGUE]:
        raise ValueError(f"no metric is called {unknown[0]!r}; there are {', '.join(CATALOGUE)}")
    classes = sorted({k for ids in groups.values() for k in ids})
    _require_all(gen, classes, "generated", "raise `samples` or check the labels that were sampled")
    images = ref.images if isinstance(ref, Statistics) else ref
    if images is not None:
        _require_all(images, classes, "reference", "the reference must be balanced over all classes")
    world = _World(gen, ref, images, holdout, train, estimators, device)
    metrics = [CATALOGUE[kind] for kind in wanted]
    named = {ALL: classes, **{name: list(ids) for name, ids in groups.items()}}
    found = {name: world.compare(ids, metrics, whole=name == ALL) for name, ids in named.items()}
    rows = [
        {"group": group, **_row(metric, compared[metric.kind], extractor_name, estimators)}
        for metric in metrics
        for group, compared in found.items()
    ]
    return {"rows": rows, "per_class": _per_class(world, classes, metrics, extractor_name)}


Outcome = Estimate | str  # an estimate, or why there is none


@dataclass(frozen=True)
class _Compared:
    """One metric on one group: the estimate, its floor, and the sizes of the three sets (n_ref None: not known)."""

    value: Outcome
    floor: Outcome
    n_gen: int
    n_ref: int | None
    n_floor: int


@dataclass(frozen=True)
class _World:
    gen: FeatureSet
    ref: FeatureSet | Statistics
    images: FeatureSet | None
    holdout: FeatureSet
    train: FeatureSet | None
    estimators: Estimators
    device: str

    def compare(self, ids: Sequence[int], metrics: Sequence[Metric], whole: bool) -> dict[str, _Compared]:
        """Every metric on the classes `ids`; `whole` says that these are all classes."""
        gen = self.gen.of(ids)
        counts = gen.counts()
        sides = _Sides(
            gen,
            None if self.images is None else self.images.of(ids),
            self.ref if isinstance(self.ref, Statistics) else None,
            self.holdout.first(counts),
            self.holdout.of(ids),
            None if self.train is None else self.train.of(ids),
            whole,
            self.estimators,
            self.device,
        )
        unmet = {metric.kind: why for metric in metrics if (why := sides.unmet(metric)) is not None}
        found = {kind: sides.compared(why, why) for kind, why in unmet.items()}
        kinds = {metric.kind for metric in metrics} - set(unmet)
        for family, compute in _FAMILIES.items():
            if kinds & set(family):
                found |= compute(sides, [kind for kind in family if kind in kinds])
        return found


@dataclass(frozen=True)
class _Sides:
    """The sets of one group. held: held-out images composed as `gen`; held_all: all of them, of the group's classes."""

    gen: FeatureSet
    ref: FeatureSet | None
    statistics: Statistics | None
    held: FeatureSet
    held_all: FeatureSet
    train: FeatureSet | None
    whole: bool
    estimators: Estimators
    device: str

    def unmet(self, metric: Metric) -> str | None:
        """What this metric needs that is not there, or None."""
        for need in metric.needs:
            if need == "train":
                if self.train is None:
                    return "the features of the training images are not at hand"
            elif getattr(self.gen, need) is None:
                return f"the extractor gives no {need}"
        if self.ref is None and not metric.statistics:
            return "the reference holds statistics and no images"
        return None

    def compared(self, value: Outcome, floor: Outcome, n_ref: int | None = None) -> _Compared:
        if n_ref is None and self.ref is not None:
            n_ref = len(self.ref)
        return _Compared(value, floor, len(self.gen), n_ref, len(self.held))

    def against(self, compute: Callable[[FeatureSet, bool], Estimate], n_ref: int | None = None) -> _Compared:
        """`compute(set, with_folds)` on the generated images, and on the held-out ones for the floor."""
        return self.compared(
            _try(lambda: compute(self.gen, True)), _try(lambda: compute(self.held, False)), n_ref
        )

    def pairwise(self) -> FeatureSet:
        """The reference images that pairwise metrics see."""
        assert self.ref is not None, "unmet() comes first"
        cap = self.estimators.reference_cap
        return self.ref if cap is None else self.ref.capped(cap)


def _try(compute: Callable[[], Estimate]) -> Outcome:
    try:
        return compute()
    except TooFew as few:
        return str(few)


def _frechet(sides: _Sides, kinds: Sequence[str]) -> dict[str, _Compared]:
    layers: dict[str, Literal["pool", "spatial"]] = {"FD": "pool", "sFD": "spatial"}
    return {kind: _frechet_on(sides, layers[kind]) for kind in kinds}


def _frechet_on(sides: _Sides, layer: Literal["pool", "spatial"]) -> _Compared:
    """One reference serves the generated and the held-out images, so its sums and root are made once."""
    made = _frechet_reference(sides, layer)
    if isinstance(made, str):
        return sides.compared(made, made)
    reference, n_ref = made

    def compute(part: FeatureSet, with_folds: bool) -> Estimate:
        values = _layer(part, layer)
        return frechet.estimate(values, reference, part.folds() if with_folds else None)

    return sides.against(compute, n_ref)


def _frechet_reference(
    sides: _Sides, layer: Literal["pool", "spatial"]
) -> tuple[frechet.Reference, int | None] | str:
    if sides.statistics is not None:
        known = sides.statistics.pool if layer == "pool" else sides.statistics.spatial
        if not sides.whole:
            return "the reference's statistics are of all classes together"
        if known is None:
            return "the reference's file has no statistics of the spatial map (mu_s, sigma_s)"
        return frechet.Reference(statistics=known), known.n
    assert sides.ref is not None
    try:
        values = _layer(sides.ref, layer)
    except TooFew as missing:
        return str(missing)
    return frechet.Reference(values, sides.ref.folds()), len(sides.ref)


def _layer(part: FeatureSet, layer: Literal["pool", "spatial", "logits"]) -> Any:
    values = getattr(part, layer)
    if values is None:
        raise TooFew(f"the extractor gives no {layer}")
    return values


def _score(sides: _Sides, kinds: Sequence[str]) -> dict[str, _Compared]:
    def compute(part: FeatureSet, with_folds: bool) -> Estimate:
        logits = _layer(part, "logits")
        folds = part.folds() if with_folds else None
        return inception_score.estimate(logits, sides.estimators.inception_score, part.labels, folds)

    return {kind: sides.against(compute) for kind in kinds}


def _kernel(sides: _Sides, kinds: Sequence[str]) -> dict[str, _Compared]:
    def full(part: FeatureSet, with_folds: bool) -> Estimate:
        ref = sides.pairwise()
        folds = (part.folds(), ref.folds()) if with_folds else (None, None)
        return kernel.estimate(part.pool, ref.pool, *folds)

    def subsets(part: FeatureSet, with_folds: bool) -> Estimate:
        return kernel.kernel_subsets(part.pool, sides.pairwise().pool, size=sides.estimators.kd_subset)

    computes = {"KD": full, "KD-subsets": subsets}
    return {kind: sides.against(computes[kind], len(sides.pairwise())) for kind in kinds}


def _neighbours(sides: _Sides, kinds: Sequence[str]) -> dict[str, _Compared]:
    """Up to four kinds from one pass over the distances."""
    chosen = sides.estimators

    def compute(part: FeatureSet, with_folds: bool) -> Any:
        ref = sides.pairwise()
        return prdc(
            part.pool,
            ref.pool,
            k=chosen.k,
            boundary=chosen.boundary,
            dtype=chosen.distances,
            folds_gen=part.folds() if with_folds else None,
            folds_ref=ref.folds() if with_folds else None,
            device=sides.device,
        )

    both = sides.against(compute, len(sides.pairwise()))
    return {kind: _attribute(both, kind) for kind in kinds}


def _attribute(both: _Compared, kind: str) -> _Compared:
    def one(found: Any) -> Outcome:
        return found if isinstance(found, str) else getattr(found, kind)

    return _Compared(one(both.value), one(both.floor), both.n_gen, both.n_ref, both.n_floor)


def _memorisation(sides: _Sides, kinds: Sequence[str]) -> dict[str, _Compared]:
    assert sides.train is not None, "unmet() comes first"
    held = sides.held_all
    found = copying(
        sides.gen.pool,
        sides.train.pool,
        held.pool,
        gen_labels=sides.gen.labels,
        train_labels=sides.train.labels,
        holdout_labels=held.labels,
        folds_gen=sides.gen.folds(),
        folds_holdout=held.folds(),
        device=sides.device,
    )
    by_kind = {"CT": found.ct, "copied": found.copied, "authenticity": found.authenticity}
    return {kind: _copied(by_kind[kind], len(sides.gen), len(held)) for kind in kinds}


def _copied(found: Any, n_gen: int, n_held: int) -> _Compared:
    if isinstance(found, TooFew):
        return _Compared(str(found), str(found), n_gen, n_held, n_held)
    return _Compared(found.estimate, Estimate(found.real), found.n_gen, found.n_ref, found.n_ref)


def _vendi(sides: _Sides, kinds: Sequence[str]) -> dict[str, _Compared]:
    def compute(part: FeatureSet, with_folds: bool) -> Estimate:
        ref = sides.pairwise()
        return vendi_ratio(part.pool, ref.pool, gen_labels=part.labels, real_labels=ref.labels).estimate

    return {kind: sides.against(compute, len(sides.pairwise())) for kind in kinds}


Family = Callable[[_Sides, Sequence[str]], dict[str, _Compared]]
_FAMILIES: dict[tuple[str, ...], Family] = {
    ("FD", "sFD"): _frechet,
    ("CS",): _score,
    ("KD", "KD-subsets"): _kernel,
    ("precision", "recall", "density", "coverage"): _neighbours,
    ("CT", "copied", "authenticity"): _memorisation,
    ("vendi",): _vendi,
}


def _row(metric: Metric, found: _Compared, extractor_name: str, estimators: Estimators) -> dict[str, Any]:
    value, floor = found.value, found.floor
    known = value if isinstance(value, Estimate) else None
    row: dict[str, Any] = {
        "metric": metric.kind,
        "name": metric_name(metric.kind, extractor_name),
        "value": _number(known and known.value),
        "se": _number(known and known.se),
        "corrected": _number(known and known.corrected),
        "folds": [float(x) for x in known.folds] if known and known.folds else None,
        "floor": float(floor.value) if isinstance(floor, Estimate) else None,
        "n_gen": found.n_gen,
        "n_ref": found.n_ref,
        "n_floor": found.n_floor,
        "better": metric.better,
        "k": estimators.k if metric.takes_k else None,
        "scale": metric.scale,
        "estimator": known.estimator if known else "",
    }
    if isinstance(value, str):
        row["reason"] = value
    if isinstance(floor, str):
        row["floor_reason"] = floor
    return row


def _number(value: float | None) -> float | None:
    return None if value is None else float(value)


def _per_class(
    world: _World, classes: Sequence[int], metrics: Sequence[Metric], extractor_name: str
) -> dict[str, Any]:
    """Arrays over `classes` (sorted ids); None where a class is too small, with the text at the same place in "reason"."""
    shown = [metric for metric in metrics if metric.per_class]
    each = [world.compare([k], shown, whole=False) for k in classes] if shown else []
    sets = [world.gen, world.images, world.holdout]
    n_gen, n_ref, n_held = ([] if part is None else _counts(part, classes) for part in sets)
    result: dict[str, Any] = {
        "classes": list(classes),
        **{key: {} for key in ("metrics", "se", "floor", "reason")},
        "n_gen": n_gen,
        "n_ref": n_ref,
        "n_floor": [min(a, b) for a, b in zip(n_gen, n_held, strict=True)],
    }
    for metric in shown:
        name = metric_name(metric.kind, extractor_name)
        found = [one[metric.kind] for one in each]
        values = [one.value if isinstance(one.value, Estimate) else None for one in found]
        result["metrics"][name] = [_number(one and one.value) for one in values]
        result["se"][name] = [_number(one and one.se) for one in values]
        floors = [one.floor if isinstance(one.floor, Estimate) else None for one in found]
        result["floor"][name] = [_number(one and one.value) for one in floors]
        result["reason"][name] = [one.value if isinstance(one.value, str) else None for one in found]
    return result


def _counts(part: FeatureSet, classes: Sequence[int]) -> list[int]:
    counts = part.counts()
    return [counts.get(k, 0) for k in classes]


def _require_all(images: FeatureSet, classes: Sequence[int], what: str, remedy: str) -> None:
    if missing := sorted(set(classes) - set(images.counts())):
        shown = ", ".join(map(str, missing[:10])) + (" ..." if len(missing) > 10 else "")
        raise LtbenchError(
            f"{len(missing)} of {len(classes)} classes have no {what} image: {shown}",
            hint=f"A group would silently shrink: {remedy}.",
        )
