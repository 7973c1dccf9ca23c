"""How much a cell asks for: network rows per image, images per evaluation, and the shape of its data. Nothing is read or built but
the data set's own description."""

from __future__ import annotations

import functools
import importlib
import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ltbench import plugins, vaes
from ltbench.canonical import canonical_json
from ltbench.cost.size import Shape
from ltbench.extractors import extractors
from ltbench.protocols import OF_TRAINING

DOPRI5_CALLS = (
    60  # assumed where no record tells: measured ones lie between 40 and 120, by network and tolerance
)
UNKNOWN_FEATURES = 768  # of a timm model, whose width only its weights tell
ENCODE, DECODE = 272.7e9, 622.2e9  # operations of Stable Diffusion's VAE for an image of 256 px
TILES, SHOWN_CLASSES = 8, 12  # images for figures: per class, classes


@dataclass(frozen=True)
class DataShape:
    """What a data set is: channels and side of its images, classes, training images, and images of the largest class.

    names: characters in the names of its classes. seen: channels and side of what a network works on, pixels or latents.
    latents: the VAE's name, "" for pixels.
    """

    channels: int
    resolution: int
    classes: int
    images: int
    largest: int
    names: int
    seen: tuple[int, int]
    latents: str = ""

    @property
    def pixels(self) -> int:
        """Numbers in an image."""
        return self.channels * self.resolution**2

    def network(self, train: Mapping[str, Any]) -> Shape:
        """What the network of a recipe sees."""
        augmented = train.get("augment", "none") != "none"
        return Shape(*self.seen, self.classes, augmented)


def data_shape(dataset: Mapping[str, Any]) -> DataShape:
    """The shape of `{"name", **parameters}`, described by its plugin without reading an image."""
    return _data_shape(canonical_json(dict(dataset)))


@functools.cache
def _data_shape(text: bytes) -> DataShape:
    dataset = json.loads(text)
    parameters = {key: value for key, value in dataset.items() if key != vaes.KEY}
    plugin = plugins.get("datasets", parameters.pop("name"))
    module = importlib.import_module(f"ltbench.datasets.{plugin.name}")
    built = getattr(module, plugin.class_name)(**parameters)
    counts = [int(n) for n in built.counts()]
    names = sum(len(name) + 4 for name in built.classes)
    latents = vaes.named(dataset)
    seen = vaes.network_shape(dataset, built.channels, built.resolution)[:2]
    sizes = (built.channels, built.resolution, len(counts), sum(counts), max(counts), names)
    return DataShape(*sizes, seen, latents or "")


def declared_rows(what: Mapping[str, Any]) -> float | None:
    """Network rows per image of a training step, as the method's file declares (`single_pass`); None where it declares nothing and
    yet makes several passes. what: settings, or what a calibration asked."""
    plugin = plugins.get("methods", what["method"]["name"])
    if plugin.single_pass is None:
        return 1.0 if plugin.runs == 1 else None
    values = {**plugin.defaults, **what["method"]}
    if any(all(values[key] == value for key, value in each.items()) for each in plugin.single_pass):
        return 1.0
    return 2.0 - (what["train"] if "train" in what else what["recipe"])["label_drop"]


def calls(sampler: str, steps: int | None, last_step: str | None = None) -> int | None:
    """Network calls of a whole sampling; None for dopri5, which chooses them as it goes."""
    if steps is None:
        return None
    if sampler == "heun":
        return 2 * steps
    if sampler == "ddim":
        return steps - 1  # the released last step is the identity
    if sampler in ("sde-euler", "sde-heun"):
        each = 2 if sampler == "sde-heun" else 1
        return each * (steps - 1) + (last_step not in (None, "none"))
    return steps


def rows_per_image(evaluation: Mapping[str, Any]) -> float | None:
    """Network rows per generated image, one or two per call; None for dopri5.

    Exact at constant guidance; under a schedule the few calls at which one half is enough are not told apart, but for the interval's.
    """
    number = calls(evaluation["sampler"], evaluation.get("steps"), evaluation.get("last_step"))
    return None if number is None else number * rows_per_call(evaluation)


def rows_per_call(evaluation: Mapping[str, Any]) -> float:
    """1 where one half of the guidance is enough, 2 where both are needed, between them for an interval."""
    w = evaluation.get("guidance")
    if evaluation.get("labels", "balanced") is None or (w in (0, 1) and "schedule" not in evaluation):
        return 1.0
    schedule = evaluation.get("schedule") or {}
    if schedule.get("name") == "interval":
        return 1.0 + (schedule["high"] - schedule["low"])
    return 2.0


def padded(images: int, block: int) -> int:
    """Images that are sampled for `images` of them: blocks are always whole."""
    return -(-images // block) * block


def decode_operations(data: DataShape) -> float:
    """Of an image made from a latent; 0 for pixels."""
    return DECODE * _vae_share(data)


def encode_operations(data: DataShape) -> float:
    """Of a whole training set, each image and its mirror image once; 0 for pixels."""
    return ENCODE * _vae_share(data) * 2 * data.images


def _vae_share(data: DataShape) -> float:
    """Of Stable Diffusion's VAE at 256 px; the VAE of smoke runs is next to nothing."""
    return 0.0 if data.latents in ("", vaes.TINY) else (data.resolution / 256) ** 2


def feature_numbers(extractor: Mapping[str, str]) -> int:
    """float32 numbers that are kept per image."""
    known = extractors().get(extractor["name"])
    return UNKNOWN_FEATURES if known is None else known.pool + known.spatial + known.logits


def real_images(shape: DataShape, evaluation: Mapping[str, Any]) -> dict[str, int]:
    """Images in the sets of real images an evaluation looks at, as far as the training counts tell.

    Reference and holdout are balanced, at most as large as the largest training class times the classes; their true size is
    known only where the data is.
    """
    balanced = shape.largest * shape.classes
    sets = {"reference": balanced, "holdout": balanced}
    return {**sets, "train": shape.images} if set(evaluation["metrics"]) & set(OF_TRAINING) else sets
