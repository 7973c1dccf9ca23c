"""Parameters and operations of a network by name, in closed form: nothing is built.

An operation count is that of matrix products and convolutions, two operations per multiply-add, as torch's FlopCounterMode counts.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from ltbench.spec.networks import network_size

TIME_FREQUENCIES = 256  # of SiT's clock
AUGMENT_NUMBERS = 9
MLP_RATIO = 4
BACKWARD = 3.0  # training step over forward pass: each product has two gradients

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Shape:
    """What a network is built for: channels and side of what it sees, classes, and whether it is told about augmentation."""

    channels: int
    resolution: int
    classes: int
    augmented: bool = False


@dataclass(frozen=True)
class _Layer:
    """A product or convolution: its weight's name and shape, whether it has a bias, and at how many places of an image it works."""

    name: str
    weight: tuple[int, ...]
    places: int
    bias: bool = True

    @property
    def operations(self) -> int:
        return 2 * math.prod(self.weight) * self.places


@dataclass(frozen=True)
class _Affine:
    """A norm with a scale and a shift, or an embedding: parameters without operations."""

    name: str
    weight: tuple[int, ...]
    bias: bool = True


@dataclass(frozen=True)
class _Mix:
    """Self-attention's two products: every place with every other, over `width` numbers."""

    places: int
    width: int

    @property
    def operations(self) -> int:
        return 4 * self.places**2 * self.width


_Piece = _Layer | _Affine | _Mix


@functools.cache
def parameter_shapes(name: str, shape: Shape) -> Shapes:
    """The shape of every parameter by its name in the state dict. Raises UsageError as `network_size` does."""
    found: Shapes = {}
    for piece in _pieces(name, shape):
        if isinstance(piece, _Mix):
            continue
        found[f"{piece.name}.weight"] = piece.weight
        if piece.bias:
            found[f"{piece.name}.bias"] = (piece.weight[0],)
    return found


@functools.cache
def parameter_count(name: str, shape: Shape) -> int:
    """Number of trained parameters."""
    return sum(math.prod(each) for each in parameter_shapes(name, shape).values())


@functools.cache
def forward_operations(name: str, shape: Shape) -> int:
    """Operations of one network row, i.e. of one image under one label."""
    return sum(p.operations for p in _pieces(name, shape) if not isinstance(p, _Affine))


def depth(name: str, shape: Shape) -> int:
    """Layers that run one after another: products, convolutions and attentions."""
    return sum(not isinstance(p, _Affine) for p in _pieces(name, shape))


def _pieces(name: str, shape: Shape) -> Iterator[_Piece]:
    size = network_size(name, shape.resolution)
    yield from _sit(size, shape) if hasattr(size, "patch") else _unet(size, shape)


def _augment(width: int, shape: Shape) -> Iterator[_Piece]:
    if shape.augmented:
        yield _Layer("embed_augment", (width, AUGMENT_NUMBERS), 1, bias=False)


def _sit(size: Any, shape: Shape) -> Iterator[_Piece]:
    width, patch = size.width, size.patch
    tokens = (shape.resolution // patch) ** 2
    yield from _augment(width, shape)
    yield _Layer("embed_patches", (width, shape.channels, patch, patch), tokens)
    yield _Layer("embed_time.0", (width, TIME_FREQUENCIES), 1)
    yield _Layer("embed_time.2", (width, width), 1)
    yield _Affine("embed_label", (shape.classes + 1, width), bias=False)
    for k in range(size.depth):
        at = f"blocks.{k}"
        yield _Layer(f"{at}.attention.qkv", (3 * width, width), tokens)
        yield _Mix(tokens, width)
        yield _Layer(f"{at}.attention.proj", (width, width), tokens)
        yield _Layer(f"{at}.mlp.0", (MLP_RATIO * width, width), tokens)
        yield _Layer(f"{at}.mlp.2", (width, MLP_RATIO * width), tokens)
        yield _Layer(f"{at}.modulation.linear", (6 * width, width), 1)
    yield _Layer("modulation.linear", (2 * width, width), 1)
    yield _Layer("head", (patch**2 * shape.channels, width), tokens)


def _unet(size: Any, shape: Shape) -> Iterator[_Piece]:
    base, embedding = size.channels, 4 * size.channels
    widths = [base * multiplier for multiplier in size.multipliers]
    places = [(shape.resolution >> level) ** 2 for level in range(len(widths))]

    def block(at: str, inside: int, outside: int, level: int, attention: bool) -> Iterator[_Piece]:
        yield _Affine(f"{at}.first.0", (inside,))
        yield _conv(f"{at}.first.2", inside, outside, places[level])
        yield _Layer(f"{at}.embed.1", (outside, embedding), 1)
        yield _conv(f"{at}.last", outside, outside, places[level])
        yield _Affine(f"{at}.second.0", (outside,))
        if inside != outside:
            yield _Layer(f"{at}.shortcut", (outside, inside, 1, 1), places[level])
        if attention:
            yield from _attention(f"{at}.attention", outside, places[level])

    yield from _augment(embedding, shape)
    yield _Layer("embed_time.0", (embedding, base), 1)
    yield _Layer("embed_time.2", (embedding, embedding), 1)
    yield _Affine("embed_label", (shape.classes, embedding), bias=False)
    yield _conv("inlet", shape.channels, base, places[0])
    skips, width = [base], base
    for level, wide in enumerate(widths):
        if level:
            yield _conv(f"down.{level}.shrink", width, width, places[level])
        for k in range(size.blocks):
            yield from block(
                f"down.{level}.blocks.{k}", wide if k else width, wide, level, level in size.attention
            )
        skips += [width] * (level > 0) + [wide] * size.blocks
        width = wide
    for k, attention in enumerate((True, False)):
        yield from block(f"middle.{k}", width, width, len(widths) - 1, attention)
    for number, level in enumerate(reversed(range(len(widths)))):
        if number:
            yield _conv(f"up.{number}.grow", width, width, places[level])
        for k in range(size.blocks + 1):
            inside = (widths[level] if k else width) + skips.pop()
            yield from block(f"up.{number}.blocks.{k}", inside, widths[level], level, level in size.attention)
        width = widths[level]
    yield _Affine("last_norm", (base,))
    yield _conv("outlet", base, shape.channels, places[0])


def _conv(name: str, inside: int, outside: int, places: int) -> _Layer:
    return _Layer(name, (outside, inside, 3, 3), places)


def _attention(at: str, width: int, places: int) -> Iterator[_Piece]:
    yield _Affine(f"{at}.norm", (width,))
    yield _Layer(f"{at}.qkv", (3 * width, width, 1, 1), places)
    yield _Mix(places, width)
    yield _Layer(f"{at}.proj", (width, width, 1, 1), places)
