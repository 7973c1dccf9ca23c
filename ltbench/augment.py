"""Geometric augmentation whose parameters the network is told: `augment: ada`.

The pipe of EDM (Karras et al., arXiv 2206.00364, appendix F.2) in the form that CBDM's "+ADA" rows trained with
(qym7/CBDM-pytorch:utils/augmentation.py), one affine map and one bicubic look-up per image; not StyleGAN-ADA, whose name it has.
An x-flip with probability 1/2 always; y-flip, scale, rotation, stretch and shift each with probability p. Nine numbers per image tell
what was done, so that a network conditioned on them learns the images that were not moved: sampling asks for nine zeros.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

SCALE = 2.0**0.2  # of one standard deviation of scale and of stretch
SHIFT = 1 / 8  # of the image's side, for one standard deviation
GRID = (
    2.0**16
)  # positions are whole multiples of 1/65536 pixel: whole-pixel moves stay exact, whatever sine and cosine round to


@dataclass(frozen=True)
class Moves:
    """What is done to each of n images, (n,) float64 each; all zero leaves an image as it is. `flip_x`, `flip_y` are 0 or 1.

    In this order: shift by (shift_x, shift_y) * side / 8; stretch by 2^(0.2 stretch) along `axis` and shrink as much across it;
    turn by `turn`, counter-clockwise as one sees it; scale by 2^(0.2 scale); mirror top to bottom, then left to right. Angles in radians.
    """

    flip_x: np.ndarray
    flip_y: np.ndarray
    scale: np.ndarray
    turn: np.ndarray
    axis: np.ndarray
    stretch: np.ndarray
    shift_x: np.ndarray
    shift_y: np.ndarray

    def label(self) -> np.ndarray:
        """(n, 9) float32, as the released codes order it.

        A stretch along an axis and a shrink along the axis half a turn further have one label: an ambiguity of EDM's and CBDM's.
        """
        columns = [self.flip_x, self.flip_y, self.scale, np.cos(self.turn) - 1, np.sin(self.turn)]
        columns += [self.stretch * np.cos(self.axis), self.stretch * np.sin(self.axis)]
        return np.stack([*columns, self.shift_x, self.shift_y], 1).astype(np.float32)

    def inverse(self) -> np.ndarray:
        """(n, 2, 3) float64: where a point (x, y, side), seen from the image's middle, y downwards, came from."""
        zero = np.zeros_like(self.turn)
        size, along = SCALE**-self.scale, SCALE**-self.stretch
        mirror = _matrix(1 - 2 * self.flip_x, zero, zero, 1 - 2 * self.flip_y)
        stretch = _matrix(along, zero, zero, 1 / along)
        back = _turned(self.axis) @ stretch @ _turned(-self.axis) @ _turned(self.turn) @ mirror
        shift = np.stack([self.shift_x, self.shift_y], 1) * -SHIFT
        return np.concatenate([back * size[:, None, None], shift[:, :, None]], 2)


def _matrix(a: np.ndarray, b: np.ndarray, c: np.ndarray, d: np.ndarray) -> np.ndarray:
    return np.stack([np.stack([a, b], 1), np.stack([c, d], 1)], 1)


def _turned(angle: np.ndarray) -> np.ndarray:
    return _matrix(np.cos(angle), -np.sin(angle), np.sin(angle), np.cos(angle))


def draw_moves(stream: np.random.Generator, flip_x: np.ndarray, probability: float) -> Moves:
    """Moves of the images whose x-flip (n,) bool is given; everything else from `stream`, in fixed amounts."""
    n = len(flip_x)
    # One gate per transform: both numbers of stretch and both of shift come together.
    flips, scales, turns, stretches, shifts = stream.random((5, n)) < probability
    coin, turn, axis = stream.random((3, n))
    scale, stretch, shift_x, shift_y = stream.standard_normal((4, n))
    return Moves(
        flip_x=flip_x.astype(np.float64),
        flip_y=flips * (coin < 0.5).astype(np.float64),
        scale=scales * scale,
        turn=turns * (2 * turn - 1) * np.pi,
        axis=stretches * (2 * axis - 1) * np.pi,
        stretch=stretches * stretch,
        shift_x=shifts * shift_x,
        shift_y=shifts * shift_y,
    )


def move(images: Tensor, inverse: Tensor) -> Tensor:
    """(n, C, R, R) float and (n, 2, 3) float64 of `Moves.inverse` -> (n, C, R, R): Catmull-Rom look-up, mirrored at the edges.

    The picture continues beyond its edge as its mirror image without repeating the edge. Values may overshoot their range a
    little, as in the released code, which does not clip.
    """
    channels, side = images.shape[1:3]
    line = torch.arange(side, device=images.device, dtype=torch.float64) - (side - 1) / 2
    y, x = torch.meshgrid(line, line, indexing="ij")
    points = torch.stack([x, y, torch.full_like(x, side)]).flatten(1)  # (3, R R)
    where = ((inverse @ points + (side - 1) / 2) * GRID).round() / GRID  # (n, 2, R R)
    first = where.floor()
    weights = _catmull_rom((where - first).to(images.dtype))  # (4, n, 2, R R)
    taps = [_mirrored(first.long() + k, side) for k in (-1, 0, 1, 2)]
    flat, moved = images.flatten(2), torch.zeros_like(images).flatten(2)
    for row, down in zip(taps, weights, strict=True):
        for column, across in zip(taps, weights, strict=True):
            index = (row[:, 1] * side + column[:, 0])[:, None].expand(-1, channels, -1)
            moved += (down[:, 1] * across[:, 0])[:, None] * flat.gather(2, index)
    return moved.view_as(images)


def _catmull_rom(u: Tensor) -> Tensor:
    """Weights of the pixels at -1, 0, 1 and 2 for a point at u in [0, 1): (4, ...); Keys (1981) with a = -1/2."""
    weights = [((2 - u) * u - 1) * u, (3 * u - 5) * u * u + 2, ((4 - 3 * u) * u + 1) * u, (u - 1) * u * u]
    return torch.stack(weights) / 2


def _mirrored(index: Tensor, side: int) -> Tensor:
    """Positions on a line that runs back and forth between its first and its last pixel."""
    period = max(1, 2 * (side - 1))
    index = index.remainder(period)
    return torch.minimum(index, period - index) if side > 1 else torch.zeros_like(index)
