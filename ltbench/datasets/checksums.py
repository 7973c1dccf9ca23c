"""Published checksums of archives that a person put there: checked once, and the result remembered beside the prepared data."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from ltbench import files
from ltbench.canonical import digest
from ltbench.download import Asset
from ltbench.errors import EnvironmentProblem

CHUNK = 4 << 20  # bytes between two looks at the progress
Progress = Callable[[int, int | None], None]


def check(
    assets: Iterable[Asset],
    sources: Sequence[Path],
    root: Path,
    progress: Callable[[str], Progress],
    notice: Callable[[str], None] = lambda text: None,
) -> None:
    """Compare archives with their published size and checksum, those that have one. Folders and files of other names have none.

    sources: where the data set found its files; archives are also looked for beside them. progress(name) hears of bytes read. What
    was right once is not read again until its size or time changes. Raises EnvironmentProblem naming the file and both sums.
    """
    for asset in assets:
        path = _lies(asset, sources)
        if path is not None and asset.checksum[1]:
            _check(asset, path, root / "prepared" / "checked", progress(asset.name), notice)


def _lies(asset: Asset, sources: Sequence[Path]) -> Path | None:
    name = asset.place.name
    beside = [place.parent / name for place in sources]
    own = [place for place in sources if place.name == name]
    return next((path for path in (*own, *beside, asset.place) if path.is_file()), None)


def _check(asset: Asset, path: Path, kept: Path, progress: Progress, notice: Callable[[str], None]) -> None:
    algorithm, expected = asset.checksum
    stat = path.stat()
    remedy = "get it again; to use it all the same, --no-checksums"
    if asset.bytes and stat.st_size != asset.bytes:
        raise EnvironmentProblem(
            f"{path}: has {stat.st_size:,} bytes, {asset.name} has {asset.bytes:,}: cut short, or another file",
            remedy,
        )
    seen = {
        "path": str(path.resolve()), "bytes": stat.st_size, "changed": stat.st_mtime_ns, algorithm: expected
    }  # fmt: skip
    note = kept / f"{digest(seen)[:20]}.json"
    if note.is_file():
        return
    notice(f"checking the {algorithm} of {path}, {stat.st_size:,} bytes, once (--no-checksums leaves it out)")
    found = _sum(path, algorithm, stat.st_size, progress)
    if found != expected:
        raise EnvironmentProblem(
            f"{path}: {algorithm} is {found}, that of {asset.name} is {expected}: damaged, or another file",
            remedy,
        )
    files.make_directory(kept)
    files.replace(note, json.dumps(seen).encode())


def _sum(path: Path, algorithm: str, size: int, progress: Progress) -> str:
    made, done = hashlib.new(algorithm, usedforsecurity=False), 0
    try:
        with path.open("rb") as file:
            while data := file.read(CHUNK):
                made.update(data)
                done += len(data)
                progress(done, size)
    except OSError as error:
        raise EnvironmentProblem(
            f"{path}: cannot be read: {error.strerror}", "check the disk and its permissions"
        ) from None
    return made.hexdigest()
