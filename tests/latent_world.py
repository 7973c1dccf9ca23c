"""A small AutoencoderKL in diffusers' own format, a colour data set on disk, and cells that train on latents."""

from __future__ import annotations

import functools
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ltbench import vaes
from ltbench.datasets import Images
from ltbench.draws import Latents
from ltbench.latents.codec import Codec, load_codec
from ltbench.latents.moments import Encoding, Moments, moments_of
from ltbench.methods import load_method
from ltbench.parts import Parts, build_parts
from ltbench.places import Rows, place
from tests import toy

SIDE = 32  # pixels; 8 x 8 latents of 4 channels
CPU = torch.device("cpu")
PLUGIN = '''
"""Six classes of coloured squares, kept in a file that is mapped."""

import os
from pathlib import Path

import numpy as np

from ltbench.datasets import Dataset, Images

COUNTS = [20, 10, 6, 4, 3, 2]


class Squares(Dataset):
    """Class c is a bright square at its own place, in its own colour, on noise."""

    extractor = "lite0"
    channels = 3

    def __init__(self, *, resolution: int = 32, shade: int = 0) -> None:
        self.resolution, self.shade = resolution, shade

    @property
    def classes(self) -> tuple[str, ...]:
        return tuple("abcdef")

    @property
    def reference_id(self) -> str:
        return f"squares:{self.resolution}"

    def counts(self) -> list[int]:
        return COUNTS

    def train(self) -> Images:
        made = self._make(COUNTS, 0)
        path = Path(os.environ["LTBENCH_DATA"]) / f"squares-{self.resolution}-{self.shade}.npy"
        if not path.exists():
            beside = path.with_suffix(f".{os.getpid()}.npy")
            np.save(beside, made.images)
            beside.rename(path)
        return Images(np.load(path, mmap_mode="r"), made.labels, made.index)

    def reference(self) -> Images:
        return self._make([8] * 6, 1)

    def holdout(self) -> Images:
        return self._make([8] * 6, 2)

    def _make(self, counts: list[int], seed: int) -> Images:
        labels, side = np.repeat(np.arange(6), counts), self.resolution
        images = np.random.default_rng(seed).integers(0, 60, (len(labels), 3, side, side), dtype=np.uint8)
        for row, c in enumerate(labels):
            images[row, c % 3, 2 * c : 2 * c + 6, c : c + 9] += 150 + self.shade
        return Images(images, labels.astype(np.int64), np.arange(len(labels), dtype=np.int64))
'''


@functools.cache
def small_model(seed: int = 0) -> Any:
    """diffusers' own class with weights that torch draws: factor 4, 4 channels, every layer alive."""
    from diffusers import AutoencoderKL

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 3,
            up_block_types=("UpDecoderBlock2D",) * 3,
            block_out_channels=(4, 8, 8),
            norm_num_groups=4,
            latent_channels=4,
            scaling_factor=0.7,
        ).eval()


def saved(folder: Path, seed: int = 0) -> Path:
    """The folder that `save_pretrained` makes of it."""
    small_model(seed).save_pretrained(folder)
    return folder


def codec_at(folder: Path) -> Codec:
    """A folder's VAE, by the name that a spec's path comes to."""
    name, _ = vaes.resolve(str(folder))
    return load_codec(name, CPU)


def squares() -> Images:
    """The training images of the plugin below LTBENCH_DATA."""
    module: dict[str, Any] = {}
    exec(compile(PLUGIN, "squares.py", "exec"), module)
    return module["Squares"]().train()


def moments(images: Images, codec: Codec, root: Path, **how: Any) -> Moments:
    """Encode, or find, under `root`, in blocks of 16 unless `how` says otherwise. load: in the place of giving `codec`."""
    settings = {"name": "digits", vaes.KEY: codec.name}
    load = how.pop("load", lambda: codec)
    encoding = Encoding(root, load, **{"block": 16, **how})
    return moments_of(images.images, images.sha256(), settings, "cpu", encoding)


def rows_of(made: Moments) -> Rows:
    return place([array.reshape(-1, *array.shape[2:]) for array in made.arrays], CPU)


class SquaresHere(toy.Toy):
    """The toy data set's interface over given images."""

    channels, resolution = 3, SIDE

    def __init__(self, images: Images) -> None:
        self.images = images

    def counts(self) -> list[int]:
        return [20, 10, 6, 4, 3, 2]

    def train(self) -> Images:
        return self.images


def latent_parts(
    pipeline: str, method: str | dict[str, Any], images: Images, codec: Codec, rows: Rows, **changes: Any
) -> Parts:
    """All parts of a tiny cell on latents."""
    made = toy.settings(pipeline, method, **changes)
    made["dataset"][vaes.KEY] = codec.name
    made["network"] = {"sit": "SiT-N/2", "ddpm": "UNet-16"}[pipeline]
    latents = Latents(rows, codec.scale, codec.shift)
    cls = load_method(made["method"]["name"])
    return build_parts(made, SquaresHere(images), cls, CPU, latents)


def drop_plugin(folder: Path) -> Path:
    """The plugin in a folder of `datasets` for LTBENCH_PLUGINS."""
    (folder / "datasets").mkdir(parents=True)
    (folder / "datasets" / "squares.py").write_text(PLUGIN)
    os.environ.setdefault("LTBENCH_DATA", str(folder))
    return folder


def bits(rows: Rows, index: np.ndarray) -> bytes:
    return rows.take(torch.from_numpy(index)).numpy().tobytes()
