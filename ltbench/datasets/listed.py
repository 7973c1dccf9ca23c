"""Cuts that were published as a list of files: `PATH LABEL` a line (zhmiao/OpenLongTailRecognition-OLTR)."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np

from ltbench.datasets import EnvironmentProblem
from ltbench.datasets.photos import LongTailed, find
from ltbench.datasets.pictures import Pictures

LISTS = "https://github.com/zhmiao/OpenLongTailRecognition-OLTR"
_LINE = re.compile(
    r"(?:^|.*/)(?P<cls>[a-z]/[a-z_]+(?:/[a-z_]+)?|[a-z_0-9-]+)/(?P<file>[^/ ]+)\s+(?P<label>\d+)\s*"
)


class Listed(LongTailed):
    """A set whose training images are those of a published list. list_file: its name, looked for beside the images.

    published: lines of the list. Its labels have to be those of the classes here.
    """

    list_file: ClassVar[str]
    bases: ClassVar[Sequence[str]]
    published: ClassVar[int]

    def chosen(self, sizes: list[int] | None) -> list[int]:
        """(K,) from the list alone. Raises EnvironmentProblem where it is not here."""
        labels = [self.folders.index(key.partition("/")[0]) for key in self._keys]
        return np.bincount(labels, minlength=len(self.folders)).tolist()

    def cut(self, whole: Pictures) -> Pictures:
        rows = {key.decode(): row for row, key in enumerate(whole.keys)}
        if lost := [key for key in self._keys if key not in rows]:
            raise EnvironmentProblem(
                f"{self._list()}: {len(lost)} of its images are not in {whole.places[0]} ({', '.join(lost[:3])})",
                f"get {self.title} or {self.list_file} again",
            )
        chosen = np.array([rows[key] for key in self._keys], np.int64)
        return whole.take(chosen[np.argsort(whole.labels[chosen], kind="stable")])

    def has_counts(self) -> bool:
        """Whether the list is here, or the set is prepared."""
        try:
            return bool(self.counts())
        except EnvironmentProblem:
            return False

    def missing(self) -> str | None:
        try:
            self.counts()
        except EnvironmentProblem as problem:
            return str(problem)
        return super().missing()

    def _list(self) -> Path:
        places = [str(Path(base) / self.list_file) for base in self.bases]
        return find(self.list_file, places, f"get it from {LISTS} and put it beside the images")

    @cached_property
    def _keys(self) -> list[str]:
        """CLASS/FILE of every line, checked against the classes."""
        path = self._list()
        found = []
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            match = _LINE.fullmatch(line)
            name = "" if match is None else _flat(match["cls"])
            if match is None or name not in self.folders or self.folders.index(name) != int(match["label"]):
                raise EnvironmentProblem(
                    f"{path}:{number}: '{line[:80]}' is not PATH/CLASS/FILE LABEL of a class of {self.title} and its label",
                    f"get {self.list_file} from {LISTS} again",
                )
            found.append(f"{name}/{match['file']}")
        if len(found) != self.published:
            raise EnvironmentProblem(
                f"{path}: {len(found):,} lines, the published list has {self.published:,}",
                f"get {self.list_file} from {LISTS} again",
            )
        return found


def _flat(name: str) -> str:
    return name[2:].replace("/", "-") if name[1:2] == "/" else name
