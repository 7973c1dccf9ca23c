"""A benchmark after every default, preset and signature has been applied: plain frozen values that `plan` multiplies out."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ltbench.spec.presets import recipe_text

if TYPE_CHECKING:
    from ltbench.spec.yaml_io import Position


@dataclass(frozen=True)
class MethodRow:
    """One entry of grid.method. settings: name and every parameter. identity: name and those that differ from the signature.
    start: where its cells begin, if the row itself says so (`starts`)."""

    name: str
    label: str
    settings: dict[str, Any]
    identity: dict[str, Any]
    starts: bool = False
    start: CellStart | FileStart | None = None


@dataclass(frozen=True)
class Data:
    """One data set of the part. counts: training images per class. missing: None, or why it cannot be read here, and the remedy.

    side: height and width of what a network works on, which are the resolution for pixels. vae: the folder of the VAE, where the
    spec names one.
    """

    settings: dict[str, Any]
    identity: dict[str, Any]
    classes: tuple[str, ...]
    counts: tuple[int, ...]
    resolution: int
    extractor: str
    reference: str
    missing: str | None
    side: int
    vae: str | None = None

    @property
    def latents(self) -> str | None:
        """The VAE that the network's latents are of."""
        return self.settings.get("latents")


@dataclass(frozen=True)
class Recipe:
    """How a cell is trained. settings decide weights; options (micro_batch ...) do not.

    preset: the recipe that was named, or None. deviations: {key: (value, the recipe's value)} where it is not followed.
    """

    settings: dict[str, Any]
    identity: dict[str, Any]
    milestones: tuple[int, ...]
    options: dict[str, Any]
    preset: str | None = None
    deviations: dict[str, tuple[Any, Any]] = field(default_factory=dict)

    def said(self) -> str | None:
        """The recipe in words, or None where none was named: "seed-sit, but for batch 96 (there 48)"."""
        return None if self.preset is None else recipe_text(self.preset, self.deviations)


@dataclass(frozen=True)
class CellStart:
    """Weights begin at milestone `step` of another cell: the same one but for `method` and what `resample`, `seed`, `recipes` and `data`
    (keyed like a Part's; None: as they are) say. below: where that cell begins. where: of the step in the spec."""

    label: str
    classes: str
    where: Position
    step: int
    method: MethodRow
    axes: dict[str, Any]  # resample, seed, if they differ
    below: CellStart | FileStart | None = None
    recipes: dict[tuple[Any, ...], Recipe] | None = None
    data: dict[tuple[Any, ...], Data] | None = None


@dataclass(frozen=True)
class FileStart:
    """Weights begin at a file; `path` says where it should lie on this machine. where: of the file in the spec."""

    label: str
    classes: str
    where: Position
    path: str
    sha256: str
    weights: str
    family: str | None
    prior_steps: int

    def located(self) -> Path:
        """Where the file lies here: a relative path is looked for in LTBENCH_DATA, then in the working directory."""
        path = Path(self.path).expanduser()
        root = os.environ.get("LTBENCH_DATA")
        if not path.is_absolute() and root and (Path(root) / path).is_file():
            return Path(root).absolute() / path
        return path.absolute()


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
    starts: dict[str | None, CellStart | FileStart | None] = field(
        default_factory=dict
    )  # by value of the axis `init`


@dataclass(frozen=True)
class Spec:
    """A checked benchmark. derived: the YAML text of the changed spec when --set or --with were given, else None."""

    name: str
    title: str
    file: str
    parts: tuple[Part, ...] = field(default_factory=tuple)
    derived: str | None = None
