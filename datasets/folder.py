"""Any folder of images with a sub-folder per class, with the imbalance that it has or an exponential one."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path, PurePath
from typing import Literal

import numpy as np

from ltbench.datasets import Dataset, EnvironmentProblem, Images, UsageError, check_choice, data_folders
from ltbench.datasets.longtail import profile, require_images, select
from ltbench.datasets.tree import hold_out, list_classes, read_images


class Folder(Dataset):
    """Your own images: LTBENCH_DATA/FOLDER/CLASS/*.png, .jpg ... Classes are the sub-folders in sorted order.

    folder: its name under LTBENCH_DATA. resolution: images are cropped to their middle square and resized, as in ADM.
    color: rgb or grey. imbalance: null keeps the numbers there are; a number cuts the classes, in their sorted order, to the
    exponential profile that begins at the mean class size (no class gets more than it holds).
    per_reference, per_holdout: images of each class that are held out, drawn once and for all; training sees the others.
    """

    extractor = "lite0"

    def __init__(
        self,
        *,
        folder: str = "",
        resolution: int = 32,
        color: Literal["rgb", "grey"] = "rgb",
        imbalance: float | None = None,
        per_reference: int = 20,
        per_holdout: int = 10,
    ) -> None:
        check_choice("folder", "color", color, ("rgb", "grey"))
        for name, value in (
            ("resolution", resolution),
            ("per_reference", per_reference),
            ("per_holdout", per_holdout),
        ):
            if value < 1:
                raise UsageError(f"data set 'folder': {name} is {value}; it is a whole number from 1 up")
        if imbalance is not None and not 0 < imbalance <= 1:
            raise UsageError(
                f"data set 'folder': imbalance is {imbalance}; allowed: null, or above 0 up to 1"
            )
        if Path(folder).is_absolute() or ".." in PurePath(folder).parts:
            raise UsageError(
                f"data set 'folder': folder is '{folder}'; it is a name under LTBENCH_DATA",
                "set LTBENCH_DATA to the folder above it: a spec names data, not a place on one machine",
            )
        self.folder, self.resolution, self.color, self.imbalance = folder, resolution, color, imbalance
        self.channels = 3 if color == "rgb" else 1
        self._held_out = {"reference": per_reference, "holdout": per_holdout}

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self._files)

    @property
    def reference_id(self) -> str:
        return f"folder:{self.folder}:{self.color}:held-out-balanced-{self._held_out['reference']}"

    def counts(self) -> list[int]:
        sizes = [len(files) - sum(self._held_out.values()) for files in self._files.values()]
        if self.imbalance is None:
            return sizes
        largest = sum(sizes) / len(sizes)
        found = profile(largest, len(sizes), self.imbalance, sizes)
        require_images(found, self.classes, largest, self.imbalance)
        return found

    def train(self) -> Images:
        return self._train

    def reference(self) -> Images:
        return self._reference

    def holdout(self) -> Images:
        return self._holdout

    def missing(self) -> str | None:
        try:
            self.counts()
        except (EnvironmentProblem, UsageError) as problem:
            return str(problem)
        return None

    @cached_property
    def _files(self) -> dict[str, list[Path]]:
        """Class -> its files; every class large enough to be held out from."""
        roots = data_folders(self.folder)
        if not self.folder or not roots:
            raise EnvironmentProblem(
                f"data set 'folder': {'LTBENCH_DATA is not set' if self.folder else 'no folder is named'}",
                "put a folder per class into LTBENCH_DATA/NAME and say `folder: NAME`",
            )
        found = list_classes(roots[0])
        held = sum(self._held_out.values())
        if small := [f"{name}: {len(files)}" for name, files in found.items() if len(files) <= held]:
            raise EnvironmentProblem(
                f"{roots[0]}: too few images to hold {held} of each class out and train on one ({', '.join(small)})",
                "add images, lower per_reference and per_holdout, or remove these classes",
            )
        return found

    @cached_property
    def _split(self) -> dict[str, np.ndarray]:
        return hold_out(self._labels, self._held_out)

    @cached_property
    def _labels(self) -> np.ndarray:
        return np.repeat(np.arange(len(self._files)), [len(files) for files in self._files.values()])

    @cached_property
    def _train(self) -> Images:
        pool = self._split["pool"]
        # Without an imbalance nothing is chosen, and the images stay in their files' order.
        return self._images(
            pool if self.imbalance is None else pool[select(self._labels[pool], self.counts())]
        )

    @cached_property
    def _reference(self) -> Images:
        return self._images(self._split["reference"])

    @cached_property
    def _holdout(self) -> Images:
        return self._images(self._split["holdout"])

    def _images(self, index: np.ndarray) -> Images:
        paths = [path for files in self._files.values() for path in files]
        pixels = read_images([paths[i] for i in index], self.resolution, self.channels)
        return Images(pixels, self._labels[index].astype(np.int64), index.astype(np.int64))
