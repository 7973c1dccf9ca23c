"""Randomness as a pure function of (seed, stream, key): nothing is drawn from a carried or global generator.

Resuming needs no random state, two methods at one seed see the same numbers, and adding a draw to one stream shifts no
other. Keys are hashed with sha256 and drive NumPy's Philox (128-bit key): torch's CPU generator keeps only 32 bits of its
seed, which would repeat about 1,500 seeds in 3.6 million draws.
"""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

STREAMS = frozenset(
    {
        "init",  # weights of the network
        "method-init",  # weights a method brings along
        "data",  # order of images, resampling
        "flip",  # horizontal flips
        "augment",  # what `augment` does to images beside the horizontal flip
        "latents",  # sample of a latent's posterior
        "noise",  # eps of the noised batch
        "time",  # clock of the noised batch
        "labels",  # label dropout
        "method",  # whatever a method draws
        "dropout",  # masks inside a network
        "sampling-labels",  # label of a generated image, where labels are drawn
        "sampling-noise",  # starting noise of a generated image
        "sampling-steps",  # noise of a sampler's steps, in their order, per generated image
    }
)


def _key(seed: int, name: str, key: tuple[int | str, ...]) -> bytes:
    if name not in STREAMS:
        raise ValueError(f"unknown random stream {name!r}; there are {', '.join(sorted(STREAMS))}")
    return hashlib.sha256("\x1f".join(["ltbench", str(seed), name, *map(str, key)]).encode()).digest()


class _Words(np.random.bit_generator.ISeedSequence):
    """A key as it is. `Philox(key=...)` gathers entropy from the system first and throws it away, three times the whole cost."""

    def __init__(self, words: np.ndarray) -> None:
        self.words = words

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> np.ndarray:
        assert (n_words, np.dtype(dtype)) == (2, np.dtype(np.uint64)), "what Philox takes for its key"
        return self.words


def stream(seed: int, name: str, *key: int | str) -> np.random.Generator:
    """A fresh generator for one named purpose, e.g. `stream(seed, "noise", step, shard)`."""
    words = np.frombuffer(_key(seed, name, key)[:16], dtype="<u8")
    return np.random.Generator(np.random.Philox(_Words(words)))  # pyright: ignore[reportArgumentType]  # its stubs forget ISeedSequence


def permutation(seed: int, name: str, *key: int | str, n: int) -> np.ndarray:
    """A permutation of range(n), (n,) int64: the stable order of n raw Philox words.

    `Generator.permutation` would do, but NumPy may change its stream between releases; the words it may not.
    """
    words: Any = stream(seed, name, *key).bit_generator
    return np.argsort(words.random_raw(n), kind="stable")


def torch_seed(seed: int, name: str, *key: int | str) -> int:
    """A 63-bit seed for a `torch.Generator` (of which the CPU's keeps 32 bits)."""
    return int.from_bytes(_key(seed, name, key)[16:24], "little") >> 1
