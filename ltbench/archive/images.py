"""Generated images in an archive: those that `keep_samples` left in the scratch folder, found by what their records say.

An evaluation's record names its images by a key (collect.Sampling.images_key) and so does the folder that they lie in. They are
large and hardly compress, so that they are stored as they are and never held in memory.
"""

from __future__ import annotations

import hashlib
import os
import re
import zipfile
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO

from ltbench import files
from ltbench.errors import LtbenchError
from ltbench.sources import samples_root
from ltbench.store import Record

PLACE = re.compile(
    r"images/(?P<key>[0-9a-f]{20})/(?P<shard>shard-(?P<number>[0-9]{6})-(?P<blocks>[0-9]{4,}))-(?P<sha>[0-9a-f]{16})\.safetensors"
)
CHUNK = 4 << 20  # bytes copied at a time


@dataclass
class Kept:
    """Images of records. members: name in the archive -> file. without: records whose images are not kept; damaged: files that do
    not match their own names, which are left out."""

    members: dict[str, Path] = field(default_factory=dict)
    bytes: int = 0
    keys: set[str] = field(default_factory=set)
    without: list[Record] = field(default_factory=list)
    damaged: list[Path] = field(default_factory=list)


def kept_images(records: Iterable[Record], scratch: Path) -> Kept:
    """What the scratch folder holds of the images of evaluations and illustrations."""
    found = Kept()
    for record in records:
        if record.kind not in ("evaluation", "illustration"):
            continue
        key = _key(record)
        own = {} if key is None else _shards(samples_root(scratch), key, found.damaged)
        if key is None or not own:
            found.without.append(record)
            continue
        if key not in found.keys:
            found.keys.add(key)
            found.members |= own
            found.bytes += sum(path.stat().st_size for path in own.values())
    return found


def _key(record: Record) -> str | None:
    """None for a record from before images had their key in it, or with anything else there: it becomes a folder's name."""
    key = record.envelope.get("images")
    return key if isinstance(key, str) and re.fullmatch("[0-9a-f]{20}", key) else None


def _shards(root: Path, key: str, damaged: list[Path]) -> dict[str, Path]:
    """The longest sound file of every shard under a key."""
    found: dict[str, tuple[int, str, Path]] = {}
    folder = root / key
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        name = f"images/{key}/{path.name}"
        match = PLACE.fullmatch(name)
        if match is None:
            continue
        if files.sha256_file(path)[0][:16] != match["sha"]:
            damaged += [path] if path not in damaged else []
        elif found.get(match["number"], (0,))[0] < int(match["blocks"]):
            found[match["number"]] = int(match["blocks"]), name, path
    return {name: path for _, name, path in found.values()}


def write(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, source: Path) -> dict[str, str | int]:
    """Copy a file into an archive as it is; {"sha256", "bytes"} of what was copied."""
    digest, size = hashlib.sha256(), 0
    entry.compress_type = zipfile.ZIP_STORED
    entry.file_size = source.stat().st_size
    with source.open("rb") as file, archive.open(entry, "w", force_zip64=True) as member:
        for piece in _pieces(file):
            digest.update(piece)
            size += len(piece)
            member.write(piece)
    return {"sha256": digest.hexdigest(), "bytes": size}


def check(path: Path, archive: zipfile.ZipFile, name: str, told: Mapping[str, object]) -> None:
    """Raises LtbenchError for images that do not match the manifest or their own name, or that claim to be longer than they are."""
    entry, match = archive.getinfo(name), PLACE.fullmatch(name)
    if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
        raise LtbenchError(f"{path}: {name} is compressed; images are stored as they are")
    digest = hashlib.sha256()
    with archive.open(name) as member:
        for piece in _pieces(member):
            digest.update(piece)
    if digest.hexdigest() != told.get("sha256"):
        raise LtbenchError(
            f"{path}: {name} does not match its sha256 in the manifest", "copy the archive again"
        )
    if match is None or digest.hexdigest()[:16] != match["sha"]:
        raise LtbenchError(f"{path}: {name} does not match its name (sha256)")


def place(archive: zipfile.ZipFile, name: str, scratch: Path) -> tuple[bool, str]:
    """(whether it is new here, what contradicts it or ""). A file of the scratch folder is never changed."""
    match = PLACE.fullmatch(name)
    assert match is not None, "names are checked before"
    folder = samples_root(scratch) / match["key"]
    target = folder / name.rpartition("/")[2]
    if target.exists():
        return False, ""
    for there in sorted(folder.iterdir()) if folder.is_dir() else ():
        other = PLACE.fullmatch(f"images/{match['key']}/{there.name}")
        if other is None or other["number"] != match["number"] or int(other["blocks"]) < int(match["blocks"]):
            continue
        if int(other["blocks"]) > int(match["blocks"]):  # which begins with these
            return False, ""
        return (
            False,
            f"images {match['key']}, {match['shard']}: the scratch folder has other bytes; they stay",
        )
    files.make_directory(folder)
    temporary = files.temporary_beside(target)
    try:
        with archive.open(name) as member, temporary.open("xb") as file:
            for piece in _pieces(member):
                file.write(piece)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except OSError as error:
        raise files.StorageProblem(target, error) from error
    finally:
        files.discard(temporary)
    files.sync_directory(folder)
    return True, ""


def _pieces(file: IO[bytes]) -> Iterator[bytes]:
    while piece := file.read(CHUNK):
        yield piece
