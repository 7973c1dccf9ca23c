"""Data that lies elsewhere, linked into LTBENCH_DATA under the name that is looked for: nothing is copied or moved."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from ltbench.datasets import Dataset
from ltbench.errors import EnvironmentProblem, UsageError
from ltbench.files import StorageProblem, make_directory


def link(data: Dataset, path: Path, root: Path, problem: Callable[[], str | None]) -> list[Path]:
    """Links below `root` that were made or are there, so that the data set finds `path`: its archive, its folder, or a folder of either.

    problem: why the data set does not find its files, None once it does. Raises UsageError for a path that is not there or not wanted
    and for a name that is taken; EnvironmentProblem, and takes the links back, where the data set does not find itself in it.
    """
    path = path.expanduser().absolute()
    if not path.exists():
        raise UsageError(f"--from {path}: there is no such file or folder")
    made: list[Path] = []
    found = []
    for name, target in wanted(data.homes(), path):
        at = root / name
        if _link(at, target):
            made.append(at)
        found.append(at)
    if (reason := problem()) is not None:
        for at in made:
            at.unlink()
        raise EnvironmentProblem(f"--from {path}: the data set is not in it: {reason}")
    return found


def wanted(homes: Sequence[str], path: Path) -> list[tuple[str, Path]]:
    """(name below LTBENCH_DATA, what it should be a link to). homes: see `Dataset.homes`. Raises UsageError."""
    if not homes:
        raise UsageError(f"--from {path}: this data set reads nothing from outside")
    if same := [home for home in homes if Path(home).name == path.name]:
        return [(same[0], path)]
    if path.is_dir():
        inside = [home for home in homes if (path / home).exists()]
        return [(home, path / home) for home in inside] or [(homes[0], path)]
    if alike := [home for home in homes if path.suffix and home.endswith(path.suffix)]:
        if len(alike) > 1:
            raise UsageError(f"--from {path}: name the folder that holds {' and '.join(alike)}")
        return [(alike[0], path)]
    if any(Path(home).suffix for home in homes):
        raise UsageError(f"--from {path}: a file that is none of {', '.join(homes)}")
    return [(homes[0], path.parent)]  # one of several archives that lie together


def _link(at: Path, target: Path) -> bool:
    """Whether a link was made; one that is right stays. A link to nothing, as moved data leaves it, is replaced."""
    if at.exists():
        if os.path.samefile(at, target):
            return False
        raise UsageError(f"{at} is there already, and is not {target}", "remove it, or leave out --from")
    make_directory(at.parent)
    try:
        at.unlink(missing_ok=True)
        at.symlink_to(target)
    except OSError as error:
        raise StorageProblem(at, error) from error
    return True
