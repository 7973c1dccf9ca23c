"""A benchmark after every default, preset and signature has been applied: plain frozen values that `plan` multiplies out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class MethodRow:
    """One entry of grid.method. settings: name and every parameter. identity: name and those that differ from the signature."""

    name: str
    label: str
    settings: dict[str, Any]
    identity: dict[str, Any]


@dataclass(frozen=True)
class Data:
    """One data set of the part. counts: training images per class. missing: None, or why it cannot be read here, and the remedy."""

    settings: dict[str, Any]
    identity: dict[str, Any]
    classes: tuple[str, ...]
    counts: tuple[int, ...]
    resolution: int
    extractor: str
    reference: str
    missing: str | None


@dataclass(frozen=True)
class Recipe:
    """How a cell is trained. settings decide weights; options (micro_batch ...) do not."""

    settings: dict[str, Any]
    identity: dict[str, Any]
    milestones: tuple[int, ...]
    options: dict[str, Any]


@dataclass(frozen=True)
class Part:
    """A product of axes. Every axis but `method` holds plain values; `recipes` and `data` are keyed by the values of the axes
    that change them (`train.*` and `dataset.*`), in the order of `axes`, and `evaluations` like `data`."""

    name: str
    title: str | None
    pipeline: str
    axes: dict[str, tuple[Any, ...]]
    methods: tuple[MethodRow, ...]
    recipes: dict[tuple[Any, ...], Recipe]
    data: dict[tuple[Any, ...], Data]
    evaluations: dict[tuple[Any, ...], tuple[dict[str, Any], ...]]
    exclude: tuple[dict[str, Any], ...] = ()


@dataclass(frozen=True)
class Spec:
    """A checked benchmark. derived: the YAML text of the changed spec when --set or --with were given, else None."""

    name: str
    title: str
    file: str
    parts: tuple[Part, ...] = field(default_factory=tuple)
    derived: str | None = None
