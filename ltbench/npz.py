"""Arrays in .npz files that others made or will read, row by row: ADM's files of 50,000 images do not fit into every memory.

Nothing in a file is ever run: an array whose elements are Python objects, which NumPy would unpickle, is refused by its header.
"""

from __future__ import annotations

import contextlib
import math
import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from ltbench import files
from ltbench.errors import UsageError

_DAMAGE = (zipfile.BadZipFile, zlib.error, EOFError, ValueError, NotImplementedError, RuntimeError)
_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_DATE = (1980, 1, 1, 0, 0, 0)  # of every member: equal arrays make equal files


@dataclass(frozen=True)
class Member:
    """One array of a file, known by its header alone."""

    path: Path
    name: str
    shape: tuple[int, ...]  # never empty
    dtype: np.dtype[Any]
    fortran: bool

    def blocks(self, rows: int) -> Iterator[np.ndarray]:
        """The array, `rows` along its first axis at a time. Raises UsageError for a damaged file."""
        if self.fortran and len(self.shape) > 1:
            raise UsageError(
                f"{self.path}: {self.name} is stored column after column (Fortran order)",
                "save it again: np.savez(FILE, arr_0=np.ascontiguousarray(images), ...)",
            )
        row = math.prod(self.shape[1:]) * self.dtype.itemsize
        with _opened(self.path) as archive, archive.open(f"{self.name}.npy") as stream:
            _header(stream)
            total = next(iter(self.shape))
            for start in range(0, total, rows):
                count = min(rows, total - start)
                data = _exactly(stream, count * row)
                yield np.frombuffer(data, self.dtype).reshape(count, *self.shape[1:])
            if stream.read(1):  # reading to the end is also what checks the member's checksum
                raise ValueError(f"{self.name} holds more than its header says")

    def read(self) -> np.ndarray:
        """All of it. Raises UsageError for a damaged file."""
        parts = list(self.blocks(max(1, *self.shape[:1])))
        return parts[0] if parts else np.empty(self.shape, self.dtype)


def members(path: Path) -> dict[str, Member]:
    """The arrays of an .npz file by name; only headers are read.

    Raises UsageError for a file that is missing, damaged or no .npz, and for an array of Python objects.
    """
    with _opened(path) as archive:
        names = [name.removesuffix(".npy") for name in archive.namelist() if name.endswith(".npy")]
        if not names:
            raise ValueError("it holds no array")
        found = {}
        for name in names:
            with archive.open(f"{name}.npy") as stream:
                shape, fortran, dtype = _header(stream)
            if dtype.hasobject:
                raise UsageError(
                    f"{path}: {name} holds Python objects, which would have to be run to be read",
                    "save it as a plain array of numbers",
                )
            if not shape:
                raise UsageError(f"{path}: {name} is a single value and no array of rows")
            found[name] = Member(path, name, shape, dtype, fortran)
    return found


def write(path: Path, arrays: dict[str, tuple[tuple[int, ...], np.dtype[Any], Iterable[np.ndarray]]]) -> None:
    """Write an .npz file that every NumPy reads, uncompressed as ADM's are. arrays: name -> (shape, dtype, blocks of its rows).

    The file appears whole or not at all. Raises ValueError when the blocks are not the array that was announced.
    """
    files.make_directory(path.parent)
    temporary = files.temporary_beside(path)
    try:
        with temporary.open("xb") as file:
            with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED, allowZip64=True) as archive:
                for name, (shape, dtype, blocks) in arrays.items():
                    with archive.open(zipfile.ZipInfo(f"{name}.npy", _DATE), "w", force_zip64=True) as stream:
                        _put(stream, shape, np.dtype(dtype), blocks)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        files.sync_directory(path.parent)
    except OSError as error:
        raise files.StorageProblem(path, error) from error
    finally:
        if temporary.exists():
            files.discard(temporary)


def _put(
    stream: IO[bytes], shape: tuple[int, ...], dtype: np.dtype[Any], blocks: Iterable[np.ndarray]
) -> None:
    descr = np.lib.format.dtype_to_descr(dtype)
    np.lib.format.write_array_header_1_0(stream, {"descr": descr, "fortran_order": False, "shape": shape})
    written = 0
    for block in blocks:
        if block.shape[1:] != shape[1:] or block.dtype != dtype:
            raise ValueError(f"a block is {block.shape} {block.dtype}, the array {shape} {dtype}")
        stream.write(np.ascontiguousarray(block).tobytes())
        written += len(block)
    if written != shape[0]:
        raise ValueError(f"{written} rows were given, {shape[0]} were announced")


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[zipfile.ZipFile]:
    try:
        with zipfile.ZipFile(path) as archive:
            yield archive
    except FileNotFoundError:
        raise UsageError(f"there is no file {path}") from None
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {error.strerror or error}") from None
    except _DAMAGE as error:
        raise UsageError(
            f"{path} cannot be read as .npz: {error}", "it is damaged, or another format"
        ) from None


def _header(stream: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """(shape, Fortran order, dtype); `stream` then stands at the first element. Raises ValueError."""
    version = np.lib.format.read_magic(stream)
    if version not in _HEADERS:
        raise ValueError(f"an array has the format {version}")
    return _HEADERS[version](stream)


def _exactly(stream: IO[bytes], count: int) -> bytes:
    data = stream.read(count)
    if len(data) != count:
        raise ValueError("it ends before its arrays do")
    return data
