"""Trees of image files with a folder per class: what they hold, and a balanced split."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from ltbench.errors import EnvironmentProblem

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def list_classes(root: Path) -> dict[str, list[Path]]:
    """Class -> its image files, both sorted by name. Folders inside a class belong to it; files of other suffixes are no images.

    Hidden files and folders are left out. Raises EnvironmentProblem for a root that is not there, one with fewer than three
    classes, and classes without an image.
    """
    if not root.is_dir():
        raise EnvironmentProblem(f"{root}: there is no such folder", "put a folder per class of images there")
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    found = {folder.name: _files(folder) for folder in folders}
    if len(found) < 3:
        raise EnvironmentProblem(
            f"{root}: holds {len(found)} class folders ({', '.join(found) or 'none'}); head, body and tail need at least 3",
            "name the folder whose own sub-folders are the classes",
        )
    if empty := [name for name, files in found.items() if not files]:
        raise EnvironmentProblem(
            f"{root}: no image in {', '.join(empty)}",
            f"images are files that end in {', '.join(SUFFIXES)}; remove class folders that hold none",
        )
    return found


def _files(folder: Path) -> list[Path]:
    found: list[Path] = []
    for place, folders, names in os.walk(folder, onerror=_unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        images = (name for name in names if name.lower().endswith(SUFFIXES) and not name.startswith("."))
        found += [Path(place) / name for name in images]
    return sorted(found)


def _unreadable(error: OSError) -> None:
    raise EnvironmentProblem(f"{error.filename}: cannot be read: {error.strerror}", "check its permissions")


def hold_out(labels: np.ndarray, parts: Mapping[str, int], seed: int = 0) -> dict[str, np.ndarray]:
    """{part: positions} of balanced, disjoint parts and of the rest under "pool", class after class in label order, sorted inside.

    labels: (N,) in [0, K), every class present. parts: images per class of each. Drawn by RandomState(seed), class by class.
    """
    legacy = np.random.RandomState(
        seed
    )  # a split is part of what a set is: one that no version of NumPy changes
    found: dict[str, list[np.ndarray]] = {name: [] for name in (*parts, "pool")}
    cuts = np.cumsum(list(parts.values()))
    for c in range(int(labels.max()) + 1):
        positions = legacy.permutation(np.flatnonzero(labels == c))
        for name, part in zip(found, np.split(positions, cuts), strict=True):
            found[name].append(np.sort(part))
    return {name: np.concatenate(arrays) for name, arrays in found.items()}
