"""Any folder of images with a sub-folder per class, with the imbalance that it has or an exponential one."""

from __future__ import annotations

from functools import cached_property
from pathlib import Path, PurePath
from typing import Literal

from ltbench.datasets import EnvironmentProblem, UsageError, check_choice, data_folders
from ltbench.datasets.longtail import profile, require_images, select
from ltbench.datasets.photos import Decoder, Photos
from ltbench.datasets.pictures import FILE, Entry, Pictures, gather
from ltbench.datasets.tree import hold_out, list_classes


class Folder(Photos):
    """Your own images: LTBENCH_DATA/FOLDER/CLASS/*.png, .jpg ... Classes are the sub-folders in sorted order.

    folder: its name under LTBENCH_DATA. resolution: images are cropped to their middle square and resized, as in ADM.
    color: rgb or grey. imbalance: null keeps the numbers there are; a number cuts the classes, in their sorted order, to the
    exponential profile that begins at the mean class size (no class gets more than it holds). keep_one: a class that
    it empties keeps one image.
    per_reference, per_holdout: images of each class that are held out, drawn once and for all; training sees the others.
    """

    extractor = "lite0"
    needs_preparing = False

    def __init__(
        self,
        *,
        folder: str = "",
        resolution: int = 32,
        color: Literal["rgb", "grey"] = "rgb",
        imbalance: float | None = None,
        per_reference: int = 20,
        per_holdout: int = 10,
        keep_one: bool = False,
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
        self.folder, self.color, self.imbalance, self.keep_one = folder, color, imbalance, keep_one
        self._held_out = {"reference": per_reference, "holdout": per_holdout}
        self._set_up(
            Decoder(resolution, 3 if color == "rgb" else 1, upright=True, white=True),
            folder=folder,
            resolution=resolution,
            color=color,
            imbalance=imbalance,
            per_reference=per_reference,
            per_holdout=per_holdout,
            keep_one=keep_one,
        )

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple(self.place.classes() or self._files)

    @property
    def reference_id(self) -> str:
        return f"folder:{self.folder}:{self.color}:held-out-balanced-{self._held_out['reference']}"

    def counts(self) -> list[int]:
        return self.place.counts() or self._counted()

    def _counted(self) -> list[int]:
        sizes = [len(files) - sum(self._held_out.values()) for files in self._files.values()]
        if self.imbalance is None:
            return sizes
        largest = sum(sizes) / len(sizes)
        found = profile(largest, len(sizes), self.imbalance, sizes, self.keep_one)
        require_images(found, tuple(self._files), largest, self.imbalance)
        return found

    def homes(self) -> list[str]:
        if not self.folder:
            raise UsageError(
                "data set 'folder': no folder is named", "--set folder=NAME says what a spec calls it"
            )
        return [self.folder]

    def source(self) -> list[Path]:
        self._counted()
        return [data_folders(self.folder)[0]]

    def look(self) -> dict[str, Pictures]:
        (root,) = self.source()
        entries = [
            (Entry(path.relative_to(root).as_posix(), FILE, 0, path.stat().st_size), label)
            for label, paths in enumerate(self._files.values())
            for path in paths
        ]
        whole = gather({root: [(entry, entry.name, label) for entry, label in entries]}, in_order=True)
        parts = hold_out(whole.labels, self._held_out)
        pool = parts.pop("pool")
        # Without an imbalance nothing is chosen, and the images stay in their files' order.
        kept = pool if self.imbalance is None else pool[select(whole.labels[pool], self._counted())]
        return {name: whole.take(rows) for name, rows in {"train": kept, **parts}.items()}

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
