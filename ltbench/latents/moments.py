"""The latents of a training set, encoded once: moments of every image and of its mirror image, in memory-mapped blocks on disk.

    latents/KEY/CONTENT/block-000000-SHA16.safetensors ...      and manifest.json, written when all blocks are there

KEY names data set and VAE as `plan` knows them (sources.latents_key), CONTENT the pixels, the VAE's content and how images are
prepared. A block holds `moments` (images, 2, 2, C, h, w) float16: first axis of size 2 unflipped and mirrored, second mean and
deviation (reference: fp16 mean and deviation, both flips, 16 KB per image and flip at 256 px). float16 keeps a mean to 0.05 %,
far below the deviation of the posterior's own noise and of what 8 bits of a pixel are. A block appears whole or not at all, so
an interrupted run goes on with the next one; every block is checked against its sha256 when it is opened.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ltbench import files, sources, vaes
from ltbench.canonical import digest
from ltbench.collect import Preempted
from ltbench.errors import LtbenchError
from ltbench.latents.codec import BATCH, Codec
from ltbench.shards import Shards, map_arrays

BLOCK = 4096  # images per file: 128 MB at 256 px, and what a kill may cost
# What happens to pixels before and to moments after the encoder. Part of every cache's identity.
PREPARED = {"input": "uint8 / 127.5 - 1", "flips": "both", "kept": "mean, deviation", "dtype": "float16"}


@dataclass(frozen=True)
class Moments:
    """arrays: (m, 2, 2, C, h, w) float16 each, flip and then mean and deviation; in the order of the images, memory-mapped.
    vae: name and sha256. content: of pixels, VAE and preparation."""

    arrays: Sequence[np.ndarray]
    vae: Mapping[str, str]
    content: str


@dataclass(frozen=True)
class Encoding:
    """How a training set is encoded. root: the folder of all latents. codec: loaded only if a block is missing.
    progress: hears the number of images done. notice: hears of damaged files. stop: asked between batches."""

    root: Path
    codec: Callable[[], Codec]
    block: int = BLOCK
    progress: Callable[[int], None] = lambda done: None
    notice: Callable[[str], None] = lambda message: None
    stop: Callable[[], bool] = lambda: False


def moments_of(
    images: np.ndarray, sha256: str, dataset: Mapping[str, Any], device: str, how: Encoding
) -> Moments:
    """The moments of (n, 3, R, R) uint8 images, found on disk or made now. sha256: of images and labels. dataset: the settings.

    Raises Preempted after a stop, with every finished block on disk; LtbenchError for an encoder that gives NaN or overflows.
    """
    name = vaes.named(dataset)
    assert name is not None, "a data set with latents"
    vae = vaes.facts(name)
    identity = {"data": sha256, "vae": vaes.identity(name), "images": list(images.shape), **PREPARED}
    content = digest({**identity, "block": how.block})[:20]
    place = Shards(how.root / sources.latents_key(dataset), how.notice)
    names = [f"block-{number:06d}" for number in range(-(-len(images) // how.block))]
    paths = []
    for number, block in enumerate(names):
        path = place.verified(content, block)
        if path is None:
            rows = images[number * how.block : (number + 1) * how.block]
            path = place.write(content, block, {"moments": _encode(rows, number * how.block, how)})
        paths.append(path)
        how.progress(min(len(images), (number + 1) * how.block))
    manifest = {**identity, "weights": vae, "blocks": [path.name for path in paths]}
    _sign(place.root / content / "manifest.json", manifest, device)
    return Moments([map_arrays(path)["moments"] for path in paths], vae, content)


def _encode(images: np.ndarray, first: int, how: Encoding) -> np.ndarray:
    """(m, 2, 2, C, h, w) float16 of (m, 3, R, R) uint8, in float32 arithmetic whatever the cell trains in."""
    codec, made = how.codec(), []
    device = next(codec.model.parameters()).device
    with _full_precision():
        for start in range(0, len(images), BATCH):
            if how.stop():
                raise Preempted
            x = torch.from_numpy(np.array(images[start : start + BATCH])).to(device)
            both = torch.stack([codec.moments(x), codec.moments(x.flip(3))], dim=1).half()
            if not both.isfinite().all():
                bad = (~both.isfinite().flatten(1).all(1)).nonzero()[0].item() + first + start
                raise LtbenchError(
                    f"the VAE '{codec.name}' gives no finite latent of training image {bad}",
                    "its weights may be damaged, or its latents beyond float16 (65504)",
                )
            made.append(both.cpu().numpy())
            how.progress(first + min(start + BATCH, len(images)))
    return np.concatenate(made)


class _full_precision:
    """TF32 off for a while: the cache is shared by cells that train in any precision."""

    def __enter__(self) -> None:
        self.kept = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False

    def __exit__(self, *_error: object) -> None:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = self.kept


def _sign(path: Path, manifest: dict[str, Any], device: str) -> None:
    """Say that all blocks are there. The device is a fact beside the identity: cards differ in the last bits."""
    try:
        if {**json.loads(path.read_bytes()), "device": None} == {**manifest, "device": None}:
            return
    except (OSError, ValueError):
        pass
    files.replace(path, json.dumps({**manifest, "device": device}, indent=1).encode())
