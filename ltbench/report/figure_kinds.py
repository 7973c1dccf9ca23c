"""The kinds of figures that a definition may ask for, and their settings."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

Group = Literal["all", "head", "body", "tail"]
Shown = (
    Literal["spread", "head", "body", "tail"] | list[str]
)  # classes: over all ranks, of a group, or by name


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Illustrated(_Strict):
    """Drawn from illustrations. optional: a benchmark that plans none is not told that it lacks them."""

    optional: bool = False


class MetricSteps(_Strict):
    """A metric against training steps, one line per method, a band over seeds."""

    kind: Literal["metric_steps"]
    metric: str
    groups: list[Group] = ["all", "tail"]


class GroupBars(_Strict):
    """Head, body and tail side by side per method, with the floor."""

    kind: Literal["group_bars"]
    metric: str


class ClassQuality(_Strict):
    """Class frequency (log) against a per-class metric."""

    kind: Literal["class_quality"]
    metric: str


class LossCurves(_Strict):
    """Terms of the loss against steps."""

    kind: Literal["loss_curves"]
    terms: list[str]


class GuidanceCurve(_Strict):
    """A metric against the guidance w, one line per method, from every stored evaluation and from the candidates of searches."""

    kind: Literal["guidance_curve"]
    metric: str
    groups: list[Group] = ["all", "tail"]


class QualityCost(_Strict):
    """A metric against the hours of training, one line per method over its milestones, and the Pareto front."""

    kind: Literal["quality_cost"]
    metric: str
    group: Group = "all"


class Samples(_Strict):
    """Generated images, one row per method and one noise per column, beside real ones."""

    kind: Literal["samples"]
    per_class: int = Field(default=4, ge=1, le=8)
    classes: int = Field(default=4, ge=1)  # at most; of a group those with the fewest training images
    which: Shown = "tail"


class Neighbours(Illustrated):
    """Images beside their nearest ones: of generated images the nearest training images, or the other way round."""

    kind: Literal["neighbours"]
    of: Literal["generated", "training"] = "generated"
    per_class: int = Field(default=1, ge=1)  # images of each class and method
    classes: int = Field(default=2, ge=1)  # the last of those that were illustrated
    nearest: int = Field(default=10, ge=1)


class FeatureMap(Illustrated):
    """t-SNE of the features of real, training and generated images of a class, with densities; a panel per method.

    embedding: joint lays all methods out together, once, when the figure is drawn; own takes the stored map of each.
    """

    kind: Literal["feature_map"]
    classes: int = Field(default=1, ge=1)  # the last of those that were illustrated
    embedding: Literal["joint", "own"] = "joint"


class ReverseProcess(Illustrated):
    """The way from one noise to images of several classes, with its low and high frequencies.

    cut: where the low-pass has fallen to a half, in cycles per image.
    """

    kind: Literal["reverse_process"]
    filter: Literal["gaussian", "ideal"] = "gaussian"
    cut: float = Field(default=4.0, gt=0)
    row: str | None = None  # a row's label; None: the first row


FigureDefinition = Annotated[
    MetricSteps
    | GroupBars
    | ClassQuality
    | LossCurves
    | GuidanceCurve
    | QualityCost
    | Samples
    | Neighbours
    | FeatureMap
    | ReverseProcess,
    Field(discriminator="kind"),
]
KINDS = {
    *("metric_steps", "group_bars", "class_quality", "loss_curves", "guidance_curve", "quality_cost"),
    *("samples", "neighbours", "feature_map", "reverse_process"),
}
