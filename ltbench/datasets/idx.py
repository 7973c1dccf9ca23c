"""Reading IDX files, the format of MNIST and its relatives (yann.lecun.com/exdb/mnist), plain or gzip-compressed."""

from __future__ import annotations

import gzip
import zlib
from pathlib import Path

import numpy as np

from ltbench.errors import EnvironmentProblem


def find_idx(folder: Path, stem: str) -> Path | None:
    """The file `stem` in `folder`, plain or with `.gz`; None if there is neither."""
    return next((path for path in (folder / stem, folder / f"{stem}.gz") if path.is_file()), None)


def read_idx(path: Path, dims: int) -> np.ndarray:
    """The uint8 array of an IDX file with `dims` axes: images are 3 (n, H, W), labels 1 (n,).

    Raises EnvironmentProblem, naming the file and what to do, if it cannot be read or decompressed, if its magic number is not
    that of a uint8 array with `dims` axes, or if its length is not what its header says.
    """
    data = _read_bytes(path)
    header = 4 + 4 * dims
    magic = data[:4]
    expected = bytes((0, 0, 8, dims))  # 8: unsigned byte
    if magic != expected:
        raise _damaged(
            path,
            f"its magic number is {magic.hex() or 'absent'}, expected {expected.hex()} (uint8, {dims} axes)",
        )
    if len(data) < header:
        raise _damaged(path, f"it ends inside its header ({len(data)} of {header} bytes)")
    shape = tuple(int.from_bytes(data[4 + 4 * i : 8 + 4 * i], "big") for i in range(dims))
    size = int(np.prod(shape, dtype=object))
    if len(data) != header + size:
        raise _damaged(
            path, f"its header says {shape}, {header + size} bytes in all, but it holds {len(data)}"
        )
    return np.frombuffer(data, np.uint8, offset=header).reshape(shape)


def _read_bytes(path: Path) -> bytes:
    try:
        data = path.read_bytes()
        return gzip.decompress(data) if path.suffix == ".gz" else data
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise _damaged(path, f"it does not decompress ({error})") from None
    except OSError as error:
        raise EnvironmentProblem(
            f"{path}: cannot be read: {error.strerror}", "check that the file exists and is readable"
        ) from None


def _damaged(path: Path, what: str) -> EnvironmentProblem:
    return EnvironmentProblem(
        f"{path}: not a usable IDX file: {what}",
        "replace it with a fresh copy from where the set was obtained",
    )
