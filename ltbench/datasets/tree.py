"""Trees of image files with a folder per class: what they hold, a balanced split, and the pixels."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ltbench.errors import EnvironmentProblem

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")
DEEP = ("I", "F")  # Pillow's modes of more than 8 bits begin so


def list_classes(root: Path) -> dict[str, list[Path]]:
    """Class -> its image files, both sorted by name. Folders inside a class belong to it; files of other suffixes are no images.

    Hidden files and folders are left out. Raises EnvironmentProblem for a root that is not there, one with fewer than three
    classes, and classes without an image.
    """
    if not root.is_dir():
        raise EnvironmentProblem(f"{root}: there is no such folder", "put a folder per class of images there")
    folders = sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    found = {folder.name: _files(folder) for folder in folders}
    if len(found) < 3:
        raise EnvironmentProblem(
            f"{root}: holds {len(found)} class folders ({', '.join(found) or 'none'}); head, body and tail need at least 3",
            "name the folder whose own sub-folders are the classes",
        )
    if empty := [name for name, files in found.items() if not files]:
        raise EnvironmentProblem(
            f"{root}: no image in {', '.join(empty)}",
            f"images are files that end in {', '.join(SUFFIXES)}; remove class folders that hold none",
        )
    return found


def _files(folder: Path) -> list[Path]:
    found: list[Path] = []
    for place, folders, names in os.walk(folder, onerror=_unreadable):
        folders[:] = [name for name in folders if not name.startswith(".")]
        images = (name for name in names if name.lower().endswith(SUFFIXES) and not name.startswith("."))
        found += [Path(place) / name for name in images]
    return sorted(found)


def _unreadable(error: OSError) -> None:
    raise EnvironmentProblem(f"{error.filename}: cannot be read: {error.strerror}", "check its permissions")


def hold_out(labels: np.ndarray, parts: Mapping[str, int], seed: int = 0) -> dict[str, np.ndarray]:
    """{part: positions} of balanced, disjoint parts and of the rest under "pool", class after class in label order, sorted inside.

    labels: (N,) in [0, K), every class present. parts: images per class of each. Drawn by RandomState(seed), class by class.
    """
    legacy = np.random.RandomState(
        seed
    )  # a split is part of what a set is: one that no version of NumPy changes
    found: dict[str, list[np.ndarray]] = {name: [] for name in (*parts, "pool")}
    cuts = np.cumsum(list(parts.values()))
    for c in range(int(labels.max()) + 1):
        positions = legacy.permutation(np.flatnonzero(labels == c))
        for name, part in zip(found, np.split(positions, cuts), strict=True):
            found[name].append(np.sort(part))
    return {name: np.concatenate(arrays) for name, arrays in found.items()}


def read_images(paths: Sequence[Path], resolution: int, channels: int) -> np.ndarray:
    """(n, channels, R, R) uint8. Raises EnvironmentProblem naming the first file that cannot be decoded or has more than 8 bits."""
    made = np.empty((len(paths), channels, resolution, resolution), np.uint8)
    for row, path in zip(made, paths, strict=True):
        row[:] = _read(path, resolution, channels)
    return made


def _read(path: Path, resolution: int, channels: int) -> np.ndarray:
    from PIL import Image, ImageOps

    try:
        with Image.open(path) as file:
            if file.mode.startswith(DEEP):
                raise ValueError(f"its mode is {file.mode}: more than 8 bits per channel")
            upright = ImageOps.exif_transpose(file)
            plain = on_white(upright).convert("RGB" if channels == 3 else "L")
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise EnvironmentProblem(
            f"{path}: not a usable image: {error}", "replace it with an 8-bit image that opens, or remove it"
        ) from None
    pixels = np.asarray(centre_crop(plain, resolution))
    return pixels.reshape(resolution, resolution, channels).transpose(2, 0, 1)


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
