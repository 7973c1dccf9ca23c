"""Features on disk: content-addressed files that name their own sha256, so that nothing stale or damaged is ever reused.

    ROOT/KEY/NAME-SHA16.safetensors      NAME: what it holds; SHA16: the first digits of the file's own sha256

KEY is the digest of everything that decides the content; whoever asks for another content asks for another key. Two
processes that write the same thing write the same bytes. A file whose bytes do not match its name is set aside and made again.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from ltbench import files
from ltbench.errors import LtbenchError

Arrays = dict[str, np.ndarray]
_KINDS = {"F16": np.float16, "F32": np.float32, "F64": np.float64, "I64": np.int64, "U8": np.uint8}
_CHUNK = 16 << 20  # bytes copied at a time
_FILE = re.compile(r"(?P<name>[a-z0-9-]+)-(?P<sha>[0-9a-f]{16})\.safetensors")
_SIZE_LIMIT = (
    64 << 30
)  # bytes; features of a million images are larger than what is read by name alone elsewhere


@dataclass(frozen=True)
class Shards:
    """Named sets of arrays under one root. `notice` hears of files that were damaged."""

    root: Path
    notice: Callable[[str], None] = field(default=lambda message: None)

    def names(self, key: str) -> dict[str, list[Path]]:
        """What is there under a key: name -> its files (one, unless a writer was killed between two)."""
        found: dict[str, list[Path]] = {}
        folder = self.root / key
        for path in sorted(folder.iterdir()) if folder.is_dir() else []:
            if match := _FILE.fullmatch(path.name):
                found.setdefault(match["name"], []).append(path)
        return found

    def read(self, key: str, name: str) -> Arrays | None:
        """The arrays, verified; None where there are none. A damaged file is removed and named."""
        for path in self.names(key).get(name, []):
            try:
                data = files.read_regular(path, _SIZE_LIMIT)
            except FileNotFoundError:
                continue  # removed under our eyes by somebody who found it damaged
            except LtbenchError as problem:
                self._discard(path, str(problem))
                continue
            if files.sha256_bytes(data)[:16] != path.stem[-16:]:
                self._discard(path, f"{path} does not match its name (sha256)")
                continue
            try:
                return load(data)
            except SafetensorError as problem:
                self._discard(path, f"{path} is no safetensors file: {problem}")
        return None

    def verified(self, key: str, name: str) -> Path | None:
        """The file itself, to be mapped rather than read into memory; None where there is none. A damaged file is removed."""
        for path in self.names(key).get(name, []):
            try:
                if files.sha256_file(path)[0][:16] == path.stem[-16:]:
                    return path
            except FileNotFoundError:
                continue
            self._discard(path, f"{path} does not match its name (sha256)")
        return None

    def write(self, key: str, name: str, arrays: Mapping[str, np.ndarray]) -> Path:
        """Keep the arrays durably and return their file."""
        data = save({k: np.ascontiguousarray(v) for k, v in arrays.items()})
        path = self.root / key / f"{name}-{files.sha256_bytes(data)[:16]}.safetensors"
        files.make_directory(path.parent)
        if not path.exists():
            files.replace(path, data)
        return path

    def mapped(self, key: str, name: str) -> Arrays | None:
        """As `read`, but mapped from the file, which is read once to verify it: no copy is held in memory."""
        path = self.verified(key, name)
        return None if path is None else map_arrays(path)

    def join(self, key: str, name: str, parts: Sequence[str]) -> Path:
        """Keep under `name` the rows of all `parts`, one after another, in bounded memory; the parts stay.

        The parts are kept under the same key, and hold the same arrays. Raises LtbenchError for one that is not there, StorageProblem.
        """
        paths = [self.verified(key, part) for part in parts]
        if None in paths:
            raise LtbenchError(
                f"{self.root / key}: {parts[paths.index(None)]} was removed or damaged while it was in use",
                "run the same command again: what is missing is made again",
            )
        folder = self.root / key
        temporary = files.temporary_beside(folder / name)
        try:
            sha256 = _write_joined(temporary, [map_arrays(path) for path in paths if path is not None])
            path = folder / f"{name}-{sha256[:16]}.safetensors"
            os.replace(temporary, path)
        except OSError as error:
            raise files.StorageProblem(temporary, error) from error
        finally:
            files.discard(temporary)
        files.sync_directory(folder)
        return path

    def remove(self, key: str, name: str) -> None:
        """Delete what is kept under this name."""
        for path in self.names(key).get(name, []):
            path.unlink(missing_ok=True)

    def _discard(self, path: Path, reason: str) -> None:
        files.discard(path)
        self.notice(f"it is made again: {reason}")


def map_arrays(path: Path) -> Arrays:
    """The arrays of a safetensors file (8 bytes of header length, JSON, raw numbers) as memory maps.

    What is written to them never reaches the file; torch warns about arrays that it cannot write to.
    """
    with path.open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return {name: _mapped(path, entry, 8 + length) for name, entry in header.items()}


def _mapped(path: Path, entry: Mapping[str, Any], begin: int) -> np.ndarray:
    kind, shape = np.dtype(_KINDS[entry["dtype"]]), tuple(entry["shape"])
    if not all(shape):  # nothing to map
        return np.empty(shape, kind)
    return np.memmap(path, kind, "c", begin + entry["data_offsets"][0], shape)


def _write_joined(path: Path, parts: Sequence[Arrays]) -> str:
    """A safetensors file of the parts' rows at `path`, durably; its hex sha256."""
    names = {np.dtype(kind): name for name, kind in _KINDS.items()}
    header, at = {}, 0
    for name in sorted(
        parts[0], key=lambda name: (-parts[0][name].itemsize, name)
    ):  # aligned, as the format asks
        first, rows = parts[0][name], sum(len(part[name]) for part in parts)
        end = at + sum(part[name].nbytes for part in parts)
        header[name] = {
            "dtype": names[first.dtype],
            "shape": [rows, *first.shape[1:]],
            "data_offsets": [at, end],
        }
        at = end
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    digest = hashlib.sha256()
    with path.open("xb") as file:
        for piece in chain((struct.pack("<Q", len(text)), text), _pieces(parts, header)):
            digest.update(piece)
            file.write(piece)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def _pieces(parts: Sequence[Arrays], names: Mapping[str, Any]) -> Iterator[bytes]:
    for name in names:
        for part in parts:
            flat = part[name].reshape(-1).view(np.uint8)
            for first in range(0, len(flat), _CHUNK):
                yield flat[first : first + _CHUNK].tobytes()
