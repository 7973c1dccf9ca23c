"""An image file's bytes -> pixels of one size: how a data set's images are made square, in one place."""

from __future__ import annotations

import io
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from ltbench.errors import EnvironmentProblem

if TYPE_CHECKING:
    from PIL import Image

DEEP = ("I", "F")  # Pillow's modes of more than 8 bits begin so
FORMAT = 1  # of what a decoder does: a change of the code that changes pixels counts it up


@dataclass(frozen=True)
class Decoder:
    """How files become (channels, R, R) uint8.

    square: `center` cuts ADM's middle square; `squash` resizes both sides, bilinear, as torchvision's Resize((R, R)); `box` is for
    squares and averages. upright: turn as EXIF says (the published image loaders do not). white: put transparent images on white.
    """

    resolution: int
    channels: int = 3
    square: Literal["center", "squash", "box"] = "center"
    upright: bool = False
    white: bool = False

    def facts(self) -> dict[str, Any]:
        """JSON-able, for manifests and digests."""
        return {**asdict(self), "format": FORMAT}

    def __call__(self, data: bytes, where: str) -> np.ndarray:
        """Raises EnvironmentProblem naming the file where it cannot be decoded or has more than 8 bits."""
        from PIL import Image, ImageOps, UnidentifiedImageError

        try:
            with Image.open(io.BytesIO(data)) as file:
                if file.mode.startswith(DEEP):
                    raise ValueError(f"its mode is {file.mode}: more than 8 bits per channel")
                image = ImageOps.exif_transpose(file) if self.upright else file
                image = on_white(image) if self.white else image
                plain = image.convert("RGB" if self.channels == 3 else "L")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            # Pillow names the object in memory that it was given
            reason = "of no known format" if isinstance(error, UnidentifiedImageError) else error
            raise EnvironmentProblem(
                f"{where}: not a usable image: {reason}",
                "replace it with an 8-bit image that opens, or remove it",
            ) from None
        pixels = np.asarray(self._sized(plain))
        return pixels.reshape(self.resolution, self.resolution, self.channels).transpose(2, 0, 1)

    def _sized(self, image: Image.Image) -> Image.Image:
        from PIL import Image

        side = self.resolution
        if self.square == "center":
            return centre_crop(image, side)
        if image.size == (side, side):
            return image
        how = Image.Resampling.BOX if self.square == "box" else Image.Resampling.BILINEAR
        return image.resize((side, side), how)


def on_white(image: Image.Image) -> Image.Image:
    """The image on white ground where it has transparency: what lies under a transparent pixel is any colour at all."""
    from PIL import Image

    if not image.has_transparency_data:
        return image
    image = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)


def centre_crop(image: Image.Image, side: int) -> Image.Image:
    """The middle square at `side` pixels, as ADM cuts it (openai/guided-diffusion:guided_diffusion/image_datasets.py):

    halved by averages while the shorter side is at least twice as long, then bicubic to `side`. Smaller images are enlarged.
    """
    from PIL import Image

    while min(image.size) >= 2 * side:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = side / min(image.size)
    image = image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))
