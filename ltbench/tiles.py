"""Pictures as grids of equal square tiles without gaps, as PNG bytes that can be cut apart again. Pillow and NumPy load on use."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

from ltbench.errors import LtbenchError

if TYPE_CHECKING:
    import numpy as np


def grid_png(images: np.ndarray) -> bytes:
    """A PNG with R rows of C tiles. images: (R, C, ch, H, W) uint8, ch 1 (grey) or 3 (colour), H = W; none of them 0.

    Equal images give equal bytes (with the same Pillow), and `read_grid` gives the images back exactly.
    """
    import numpy as np
    from PIL import Image

    if images.ndim != 5 or images.dtype != np.uint8 or images.shape[2] not in (1, 3) or 0 in images.shape:
        raise ValueError(
            f"tiles must be (R, C, 1 or 3, H, W) uint8 and not empty, got {images.shape} {images.dtype}"
        )
    rows, columns, channels, height, width = images.shape
    if height != width:
        raise ValueError(f"tiles must be square, got {height} x {width}")
    # (R, C, ch, H, W) -> (R, H, C, W, ch) -> one picture
    sheet = images.transpose(0, 3, 1, 4, 2).reshape(rows * height, columns * width, channels)
    buffer = io.BytesIO()
    Image.fromarray(np.ascontiguousarray(sheet[..., 0] if channels == 1 else sheet)).save(
        buffer, "PNG", optimize=True
    )
    return buffer.getvalue()


def halved(images: np.ndarray) -> np.ndarray:
    """(..., H, W) uint8 -> (..., H // 2, W // 2) uint8, means of 2 x 2 pixels; an odd last row or column is left out."""
    import numpy as np

    height, width = images.shape[-2] // 2, images.shape[-1] // 2
    cut = images[..., : 2 * height, : 2 * width].reshape(*images.shape[:-2], height, 2, width, 2)
    return cut.mean(axis=(-3, -1)).round().astype(np.uint8)


def read_grid(data: bytes, tile: int) -> np.ndarray:
    """(R, C, ch, tile, tile) uint8 of a grid made by `grid_png`. tile: side in pixels.

    Raises LtbenchError if `data` is no PNG, is neither grey nor RGB, or does not divide into such tiles.
    """
    import numpy as np
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as picture:
            sheet, mode = np.array(picture), picture.mode
    except (
        UnidentifiedImageError,
        OSError,
        SyntaxError,
        ValueError,
    ) as error:  # Pillow raises all of them for damaged files
        raise LtbenchError(f"tile grid of {len(data)} bytes: not a readable PNG ({error})") from None
    if mode not in ("L", "RGB"):
        raise LtbenchError(f"tile grid has mode {mode}; grids are grey (L) or RGB")
    height, width = sheet.shape[:2]
    if tile < 1 or height % tile or width % tile:
        raise LtbenchError(f"a picture of {width} x {height} pixels does not divide into tiles of {tile}")
    cut = sheet.reshape(height // tile, tile, width // tile, tile, -1)
    return np.ascontiguousarray(cut.transpose(0, 2, 4, 1, 3))
