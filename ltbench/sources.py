"""Where features lie and what they are called; readable without torch, so that `plan` sees what is still to be made."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ltbench import provenance
from ltbench.canonical import digest


def features_root(scratch: Path) -> Path:
    """Features of generated images."""
    return scratch / "features"


def samples_root(scratch: Path) -> Path:
    """Generated images, for evaluations with `keep_samples`."""
    return scratch / "samples"


def references_root(scratch: Path) -> Path:
    """Features of real images."""
    return scratch / "references"


def latents_root(scratch: Path) -> Path:
    """Latents of training images, a folder per data set and VAE (latents_key)."""
    return scratch / "latents"


def latents_key(dataset: Mapping[str, Any]) -> str:
    """20 hex digits: the folder of the latents of a data set, and the name of the stage that makes them."""
    code = {
        "data": provenance.data_code(dataset["name"])["digest"],
        "latents": provenance.latents_code()["digest"],
    }
    return digest({"dataset": dict(dataset), "code": code})[:20]


def has_latents(scratch: Path, key: str) -> bool:
    """Whether the latents under a key are complete; a training checks them, and makes what is missing all the same."""
    folder = latents_root(scratch) / key
    return folder.is_dir() and any((each / "manifest.json").is_file() for each in folder.iterdir())


def reference_key(dataset: Mapping[str, Any], evaluation: Mapping[str, Any]) -> str:
    """20 hex digits: the folder of the real features of a data set as an evaluation sees them.

    The imbalance (and keep_one) is in it only through the training images, whose file is named after their content; that a cell
    trains on latents changes no real image.
    """
    left_out = ("imbalance", "keep_one", "latents")
    settings = {key: value for key, value in dataset.items() if key not in left_out}
    content = {
        "dataset": settings,
        "reference": evaluation["reference"],
        "crop": evaluation["crop"],
        "extractor": dict(evaluation["extractor"]),
        "float": evaluation["quantise"] == "none",
        "code": provenance.extractor_code(),
    }
    return digest(content)[:20]


def has_references(scratch: Path, key: str) -> bool:
    """Whether features of the reference and the holdout are there; an evaluation makes what is missing all the same."""
    folder = references_root(scratch) / key
    paths = folder.iterdir() if folder.is_dir() else ()
    names = {path.name.partition("-")[0] for path in paths if "-part-" not in path.name}
    return {"reference", "holdout"} <= names
