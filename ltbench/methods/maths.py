"""Shared maths of the methods, in float32 at least and through matrix products, never through (B, B, D) differences."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

SMALLEST = 1e-12  # norm of a feature that is divided by


def mean_square(a: Tensor, b: Tensor) -> Tensor:
    """(B, ...) two tensors -> (B,) mean over everything but the batch of (a - b)^2. Official losses are means, never sums."""
    return (a - b).square().flatten(1).mean(1)


def info_nce(features: Tensor, temperature: float) -> Tensor:
    """Contrast of every sample against the rest of its local batch; the positive is the sample itself.

    features: (G, g, ...) -> (G, g) values  logsumexp_j(cos(h_i, h_j) / temperature) - 1 / temperature, j over all of the
    local batch with the self-similarity taken as exactly 1 (arXiv 2507.09052, eq. 7; CCUA-SiT's InfoNCE).
    Gradients flow through anchor and negatives. g = 1 gives 0.
    """
    return _InfoNCE.apply(_samples(features), temperature)


def dispersion(features: Tensor, temperature: float) -> Tensor:
    """log mean_ij exp(-D_ij / temperature), D_ij the mean square difference of two samples, diagonal included.

    features: (G, g, ...) -> (G,). 0 when all samples coincide, -log g when they are far apart (arXiv 2506.09027;
    raywang4/DispLoss).
    """
    return _Dispersion.apply(_samples(features), temperature)


# --- gradients in closed form ---------------------------------------------------------------------------------------
# Both terms look at samples through their products alone, so the gradient of each is a (g, g) matrix times the samples: two
# products of width n in all, and the only thing of that width that is kept is the samples, where autograd would walk back
# through some twenty small operations.


def _samples(features: Tensor) -> Tensor:
    """(G, g, ...) -> (G, g, n) float32, or float64 where it is that already: sums over 98,304 numbers lose too much in less.

    Numbers of a sample come in the order that memory has them in, the same for all: products of whole samples do not care, and
    a feature map is not copied to be handed on as tokens.
    """
    x = features if features.dtype == torch.float64 else features.float()
    order = sorted(range(2, x.dim()), key=lambda dim: -x.stride(dim))
    return x.permute(0, 1, *order).flatten(2)


@contextmanager
def _full_precision() -> Iterator[None]:
    """Products of samples are differences of large sums: not in TF32, whatever the network runs in."""
    before = torch.backends.cuda.matmul.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32 = before


def _products(x: Tensor, y: Tensor) -> Tensor:
    with _full_precision():
        return x @ y


class _Dispersion(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, z: Tensor, temperature: float) -> Tensor:
        # Distances do not change with the origin; this one keeps the Gram form from cancelling.
        z = z - z.mean(1, keepdim=True)
        gram = _products(z, z.mT)
        norms = gram.diagonal(dim1=1, dim2=2)
        squares = (norms[:, :, None] + norms[:, None, :]).sub_(gram, alpha=2).clamp_min_(0)
        squares.diagonal(dim1=1, dim2=2).zero_()
        scale = -1 / (z.shape[2] * temperature)
        exponents = squares.mul_(scale)
        total = exponents.logsumexp((1, 2), keepdim=True)
        if ctx.needs_input_grad[0]:
            # Of exponent ij by z_i: 2 scale (z_i - z_j), weighted by its share of the sum, and once more as exponent ji.
            shares = (exponents - total).exp_()
            pull = torch.diag_embed(shares.sum(2)).sub_(shares)
            ctx.save_for_backward(pull.mul_(4 * scale), z)
        return total[:, 0, 0] - 2 * math.log(z.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        pull, z = ctx.saved_tensors
        return _products(pull * above[:, None, None], z), None


class _InfoNCE(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor, temperature: float) -> Tensor:
        gram = _products(h, h.mT)
        inverse = gram.diagonal(dim1=1, dim2=2).sqrt().clamp_min(SMALLEST).reciprocal()
        cosine = gram.mul_(inverse[:, :, None]).mul_(inverse[:, None, :])
        # The released positive is a constant 1 in value; its gradient through the normalised feature is 0 as well. Taken out of
        # the sum, it leaves values far below 1, which a difference of two numbers near 1 / temperature would round away.
        others = ((cosine - 1) / temperature).exp_()
        others.diagonal(dim1=1, dim2=2).zero_()
        total = others.sum(2)
        if ctx.needs_input_grad[0]:
            shares = others.div_((1 + total)[:, :, None] * temperature)  # of value i by cosine ij
            ctx.save_for_backward(shares, cosine, inverse, h)
        return total.log1p()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, above: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        shares, cosine, inverse, h = ctx.saved_tensors
        weights = shares * above[:, :, None]
        weights = weights + weights.mT
        # cosine ij by h_i is (u_j - cosine ij u_i) / |h_i|, u the normalised features.
        along = (weights * cosine).sum(2) * inverse.square()
        pull = (weights * inverse[:, :, None] * inverse[:, None, :]).sub_(torch.diag_embed(along))
        return _products(pull, h), None
