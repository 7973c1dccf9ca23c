"""Data sets whose images are files: found where they lie, prepared once, mapped ever after."""

from __future__ import annotations

import json
from abc import abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ltbench import plugins
from ltbench.datasets import ASSETS, Asset, Dataset, EnvironmentProblem, Images, data_folders
from ltbench.datasets.decode import Decoder
from ltbench.datasets.longtail import select
from ltbench.datasets.pictures import Pictures
from ltbench.datasets.prepared import PARTS, Place, stream, stream_sha256

__all__ = ["Asset", "Decoder", "LongTailed", "Photos", "class_list", "find"]


class Photos(Dataset):
    """What such sets share. `__init__` of a subclass calls `_set_up`; `look` finds the files of all three parts.

    As prepared, the training images are pixels in one mapped file. The balanced sets that are compared with are a list of where
    their images lie: they are decoded block by block when their features are made, once, and features are what is kept.
    """

    # A set that takes long to decode is used only prepared; a small one is decoded whenever it is used unprepared.
    needs_preparing: ClassVar[bool] = True
    decoder: Decoder

    @abstractmethod
    def look(self) -> dict[str, Pictures]:
        """{part of PARTS: its images} from where the source lies.

        Raises EnvironmentProblem for a source that is not there, lacks a class, or has other sizes than the published one.
        """

    @abstractmethod
    def source(self) -> list[Path]:
        """The folders and archives that `look` reads. Raises EnvironmentProblem saying where was looked and what to do."""

    def _set_up(self, decoder: Decoder, **parameters: Any) -> None:
        """parameters: everything that decides which images there are and how they look."""
        self.decoder = decoder
        self.channels, self.resolution = decoder.channels, decoder.resolution
        self.parameters = parameters

    @property
    def name(self) -> str:
        """The plugin's."""
        return type(self).__module__.rpartition(".")[2]

    @property
    def place(self) -> Place:
        """Where the prepared form lies."""
        return Place(self.name, self.parameters, self.decoder)

    def train(self) -> Images:
        return self._train

    def reference(self) -> Images:
        return self._reference

    def holdout(self) -> Images:
        return self._holdout

    def is_prepared(self) -> bool:
        """Whether all parts are, as pixels or as lists."""
        return all(self.place.part(name, "pixels") or self.place.part(name, "files") for name in PARTS)

    def unprepared(self) -> str | None:
        if self.is_prepared() or not self.needs_preparing:
            return None
        try:
            self.source()
        except EnvironmentProblem:
            return None
        return self.command()

    def missing(self) -> str | None:
        """None also for a prepared set whose source is gone, as long as nobody asks for what only the source has."""
        if self.is_prepared():
            return None
        try:
            self.source()
            return self._unprepared() if self.needs_preparing else None
        except EnvironmentProblem as problem:
            return str(problem)

    def command(self) -> str:
        """What prepares this set."""
        usual = plugins.get("datasets", self.name).defaults
        given = {key: value for key, value in self.parameters.items() if usual.get(key) != value}
        settings = "".join(f" --set {key}={_word(value)}" for key, value in given.items())
        return f"python harness.py datasets prepare {self.name}{settings}"

    @cached_property
    def _train(self) -> Images:
        return self._part("train")

    @cached_property
    def _reference(self) -> Images:
        return self._part("reference")

    @cached_property
    def _holdout(self) -> Images:
        return self._part("holdout")

    @cached_property
    def _looked(self) -> dict[str, Pictures]:
        return self.look()

    def _part(self, name: str) -> Images:
        if (found := self.place.images(name)) is not None:
            return found
        if self.needs_preparing:
            self.source()  # a source that is not there is the first thing to hear of
            raise EnvironmentProblem(self._unprepared())
        pictures = self._looked[name]
        made = stream(pictures, self.decoder, stream_sha256(pictures, self.decoder))
        return Images(made.images[:], made.labels, made.index)

    def _unprepared(self) -> str:
        return f"data set '{self.name}' is not prepared here; run: {self.command()}"


class LongTailed(Photos):
    """A published balanced set, cut to a long tail. Its training split, whole, is what generated images are compared with.

    folders: (K,) names of the classes in the source, in label order. total: images of the training split. per_holdout: images of
    each class in the other split.
    """

    crops = ("center", "squash")
    title: ClassVar[str]
    folders: ClassVar[tuple[str, ...]]
    words: ClassVar[tuple[str, ...]]
    total: ClassVar[int]
    per_holdout: ClassVar[int]

    @abstractmethod
    def splits(self) -> tuple[Pictures, Pictures]:
        """The whole training split and the other one."""

    @abstractmethod
    def chosen(self, sizes: list[int] | None) -> list[int]:
        """(K,) images that each class keeps. sizes: (K,) what the source holds; None before anybody has looked."""

    @property
    def classes(self) -> tuple[str, ...]:
        return self.words

    def counts(self) -> list[int]:
        """As published before the set is prepared, as found from then on: a class keeps at most what its source holds."""
        return self.place.counts() or self.chosen(None)

    def look(self) -> dict[str, Pictures]:
        whole, holdout = self.splits()
        self._check(whole, holdout)
        return {"train": self.cut(whole), "reference": whole, "holdout": holdout}

    def cut(self, whole: Pictures) -> Pictures:
        """The long-tailed subset of the training split."""
        sizes = np.bincount(whole.labels, minlength=len(self.folders)).tolist()
        return whole.take(select(whole.labels, self.chosen(sizes)))

    def _check(self, whole: Pictures, holdout: Pictures) -> None:
        for what, found in (("training", whole), ("validation", holdout)):
            sizes = np.bincount(found.labels, minlength=len(self.folders))
            where = ", ".join(map(str, found.places))
            if empty := [self.folders[c] for c in np.flatnonzero(sizes == 0)]:
                raise EnvironmentProblem(
                    f"{where}: no {what} image of {len(empty)} of {len(sizes)} classes ({_some(empty)})",
                    f"{self.title} is incomplete here: unpack or download it again",
                )
            if what == "training" and len(found) != self.total:
                raise EnvironmentProblem(
                    f"{where}: holds {len(found):,} training images, {self.title} has {self.total:,}",
                    "unpack or download it again: a cut of another set is another benchmark",
                )
            wrong = [f"{self.folders[c]}: {n}" for c, n in enumerate(sizes) if n != self.per_holdout]
            if what == "validation" and wrong:
                raise EnvironmentProblem(
                    f"{where}: validation images per class are not {self.per_holdout} ({_some(wrong)})",
                    f"unpack or download {self.title}'s validation images again",
                )


def class_list(name: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(folder names, what people call them) of a class list in assets, in the source's label order."""
    lines = (ASSETS / name).read_text().splitlines()
    pairs = [line.split(" ", 1) for line in lines]
    return tuple(folder for folder, _ in pairs), tuple(word for _, word in pairs)


def find(title: str, places: Sequence[str], remedy: str) -> Path:
    """The first of these names in LTBENCH_DATA that is there. Raises EnvironmentProblem saying where was looked."""
    looked = data_folders(*places)
    for place in looked:
        if place.exists():
            return place
    where = ", ".join(map(str, looked)) or "LTBENCH_DATA is not set"
    raise EnvironmentProblem(f"{title} was not found ({where})", remedy)


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")


def _word(value: Any) -> str:
    return json.dumps(value) if value is None or isinstance(value, bool) else str(value)
