"""Prepared data: what `datasets prepare` made of files, in a handful of large files that are mapped and not read.

    LTBENCH_DATA/prepared/NAME-KEY/PART.pixels/{manifest.json, images.npy, labels.npy, index.npy}
    LTBENCH_DATA/prepared/NAME-KEY/PART.files/{manifest.json, files.npz}

PART is train, reference or holdout. `pixels` holds decoded images; `files` says where each one lies in the source, for sets that are
looked at once and kept as features. KEY is a digest of the data set's parameters and of how images are decoded.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np

from ltbench import files
from ltbench.canonical import digest
from ltbench.datasets import Images, data_folders
from ltbench.datasets.decode import Decoder
from ltbench.datasets.pictures import Pictures
from ltbench.datasets.streamed import Streamed
from ltbench.errors import EnvironmentProblem, LtbenchError

FORMAT = 1
RULES = 1  # of how images are chosen and ordered: a change of the code that changes them counts it up
PARTS = ("train", "reference", "holdout")


@dataclass(frozen=True)
class Place:
    """Where the prepared form of one data set, with its parameters, lies or would lie."""

    name: str
    parameters: Mapping[str, Any]
    decoder: Decoder

    @property
    def key(self) -> str:
        """16 hex digits."""
        content = {"parameters": dict(self.parameters), "decoder": self.decoder.facts(), "rules": RULES}
        return digest(content)[:16]

    def folder(self) -> Path | None:
        """None where LTBENCH_DATA is not set."""
        roots = data_folders("prepared")
        return roots[0] / f"{self.name}-{self.key}" if roots else None

    def part(self, name: str, form: str) -> Path | None:
        """The folder of a prepared part, form `pixels` or `files`; None where it is not there."""
        folder = self.folder()
        found = None if folder is None else folder / f"{name}.{form}"
        return found if found is not None and (found / "manifest.json").is_file() else None

    def images(self, name: str) -> Images | None:
        """A part, its pixels mapped where they were prepared, else decoded on demand; None where neither is there.

        Raises EnvironmentProblem for a damaged one, and for a source that was moved.
        """
        if (folder := self.part(name, "pixels")) is not None:
            return _mapped(folder)
        if (folder := self.part(name, "files")) is not None:
            return _streamed(folder, self.decoder)
        return None

    def pictures(self, name: str) -> Pictures | None:
        """The list of a part's files; None where it is not there. Raises EnvironmentProblem as `images` does."""
        folder = self.part(name, "files")
        return None if folder is None else _listed(folder)

    def counts(self) -> list[int] | None:
        """(K,) training images per class as prepared; None before."""
        return self._of_training("counts")

    def classes(self) -> list[str] | None:
        """(K,) names as prepared; None before."""
        return self._of_training("classes")

    def _of_training(self, key: str) -> Any:
        folder = self.part("train", "pixels") or self.part("train", "files")
        return None if folder is None else read_manifest(folder)[key]

    def state(self) -> dict[str, dict[str, Any]]:
        """{part: {"form", "images", "bytes", "folder"}} of what is prepared."""
        found = {}
        for name in PARTS:
            for form in ("files", "pixels"):
                if (folder := self.part(name, form)) is not None:
                    size = sum(path.stat().st_size for path in folder.iterdir())
                    manifest = read_manifest(folder)
                    found[name] = {
                        "form": form,
                        "images": manifest["images"],
                        "bytes": size,
                        "folder": str(folder),
                    }
        return found


def read_manifest(folder: Path) -> dict[str, Any]:
    """Raises EnvironmentProblem for one that cannot be taken."""
    path = folder / "manifest.json"
    try:
        found = json.loads(files.read_regular(path))
        if found["format"] > FORMAT:
            raise ValueError(f"has format {found['format']}, this version reads up to {FORMAT}")
        return found
    except (OSError, ValueError, KeyError, TypeError, LtbenchError) as error:
        raise _damaged(path, str(error)) from None


def verify(folder: Path) -> None:
    """Read a prepared part whole. Raises EnvironmentProblem where a file is not what its manifest says."""
    for name, expected in read_manifest(folder)["files"].items():
        try:
            found, size = files.sha256_file(folder / name)
        except (OSError, LtbenchError) as error:
            raise _damaged(folder / name, str(error)) from None
        if found != expected["sha256"]:
            raise _damaged(folder / name, f"sha256 is {found[:16]}..., expected {expected['sha256'][:16]}...")
        del size


def _damaged(path: Path, reason: str) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"{path}: prepared data is damaged: {reason}",
        f"remove {path.parent} and run the same `datasets prepare` again",
    )


def _mapped(folder: Path) -> Images:
    manifest = read_manifest(folder)
    _check_sizes(folder, manifest)
    try:
        # "c": nothing is read before it is used, and nothing that is written reaches the file; torch warns about arrays it cannot write to
        images = np.load(folder / "images.npy", mmap_mode="c", allow_pickle=False)
        labels, index = (np.load(folder / f"{name}.npy", allow_pickle=False) for name in ("labels", "index"))
        return Images(images, labels, index, manifest["sha256"])
    except (OSError, ValueError) as error:
        raise _damaged(folder / "images.npy", str(error)) from None


def _streamed(folder: Path, decoder: Decoder) -> Images:
    return stream(_listed(folder), decoder, read_manifest(folder)["sha256"])


def _listed(folder: Path) -> Pictures:
    manifest = read_manifest(folder)
    _check_sizes(folder, manifest)
    with np.load(folder / "files.npz", allow_pickle=False) as arrays:
        pictures = Pictures(
            tuple(Path(place["path"]) for place in manifest["places"]), **{k: arrays[k] for k in arrays.files}
        )
    for place, path in zip(manifest["places"], pictures.places, strict=True):
        _check_place(place, path)
    return pictures


def stream(pictures: Pictures, decoder: Decoder, sha256: str) -> Images:
    """Images that stand for files."""
    return Images(cast(np.ndarray, Streamed(pictures, decoder)), pictures.labels, pictures.index, sha256)


def stream_sha256(pictures: Pictures, decoder: Decoder) -> str:
    """What names the images of files before they are decoded."""
    return digest({"files": pictures.identity(), "decoder": decoder.facts()})


def describe_places(pictures: Pictures) -> list[dict[str, Any]]:
    """JSON-able: where the files lie, and of an archive its size, which tells another one."""
    return [
        {"path": str(place.absolute()), "bytes": place.stat().st_size if place.is_file() else None}
        for place in pictures.places
    ]


def _check_place(expected: Mapping[str, Any], path: Path) -> None:
    size = path.stat().st_size if path.is_file() else None
    if path.exists() and size == expected["bytes"]:
        return
    what = (
        f"has {size:,} bytes, {expected['bytes']:,} when it was looked at"
        if size
        else "is not there any more"
    )
    raise EnvironmentProblem(
        f"{path}: {what}; the images that are compared with are read from it",
        "put it back, or prepare the data set again from where it lies now",
    )


def _check_sizes(folder: Path, manifest: Mapping[str, Any]) -> None:
    for name, expected in manifest["files"].items():
        path = folder / name
        size = path.stat().st_size if path.is_file() else -1
        if size != expected["bytes"]:
            raise _damaged(path, f"has {size:,} bytes, expected {expected['bytes']:,}")
