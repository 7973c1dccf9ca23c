"""Small named arrays as the bytes of an .npz: equal arrays give equal bytes. NumPy loads on use."""

from __future__ import annotations

import io
import zipfile
import zlib
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ltbench.errors import LtbenchError

if TYPE_CHECKING:
    import numpy as np


def pack(arrays: Mapping[str, np.ndarray]) -> bytes:
    """The arrays by name, uncompressed, in sorted order."""
    import numpy as np

    buffer = io.BytesIO()
    np.savez(buffer, **{name: np.ascontiguousarray(arrays[name]) for name in sorted(arrays)})  # pyright: ignore[reportArgumentType]
    return buffer.getvalue()


def unpack(data: bytes) -> dict[str, np.ndarray]:
    """What `pack` was given. Raises LtbenchError for other bytes; nothing in them is ever run."""
    import numpy as np

    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as found:
            return {name: found[name] for name in found.files}
    except (OSError, ValueError, EOFError, AttributeError, zipfile.BadZipFile, zlib.error) as error:
        raise LtbenchError(f"arrays of {len(data)} bytes: not a readable .npz ({error})") from None
