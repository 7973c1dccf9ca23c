"""Shared maths of the methods, in float32 at least and through matrix products, never through (B, B, D) differences."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def mean_square(a: Tensor, b: Tensor) -> Tensor:
    """(B, ...) two tensors -> (B,) mean over everything but the batch of (a - b)^2. Official losses are means, never sums."""
    return (a - b).square().flatten(1).mean(1)


def _exact(x: Tensor) -> Tensor:
    """float32, or float64 where it is that already: sums over 98,304 numbers lose too much in less."""
    return x if x.dtype == torch.float64 else x.float()


def info_nce(features: Tensor, temperature: float) -> Tensor:
    """Contrast of every sample against the rest of its local batch; the positive is the sample itself.

    features: (G, g, ...) -> (G, g) values  logsumexp_j(cos(h_i, h_j) / temperature) - 1 / temperature, j over all of the
    local batch with the self-similarity taken as exactly 1 (arXiv 2507.09052, eq. 7; CCUA-SiT's InfoNCE).
    Gradients flow through anchor and negatives. g = 1 gives 0.
    """
    h = F.normalize(_exact(features.flatten(2)), dim=2)
    cosine = h @ h.transpose(1, 2)
    own = torch.eye(h.shape[1], dtype=torch.bool, device=h.device)
    # The released positive is a constant 1 in value; its gradient through the normalised feature is 0 as well. Taken out of the
    # sum, it leaves values far below 1, which a difference of two numbers near 1 / temperature would round away.
    others = ((cosine - 1) / temperature).exp().masked_fill(own, 0.0)
    return others.sum(2).log1p()


def dispersion(features: Tensor, temperature: float) -> Tensor:
    """log mean_ij exp(-D_ij / temperature), D_ij the mean square difference of two samples, diagonal included.

    features: (G, g, ...) -> (G,). 0 when all samples coincide, -log g when they are far apart (arXiv 2506.09027;
    raywang4/DispLoss).
    """
    z = _exact(features.flatten(2))
    # D is translation invariant; centring keeps the Gram form from cancelling, and by the same token has no gradient of its own.
    z = z - z.detach().mean(1, keepdim=True)
    # What follows treats both factors alike, so the gradient through one of them is half of the whole: one product saved of three.
    half = z @ z.detach().transpose(1, 2)
    gram = 2 * half - half.detach()
    norms = gram.diagonal(dim1=1, dim2=2)
    squares = (norms[:, :, None] + norms[:, None, :] - 2 * gram).clamp_min(0) / z.shape[2]
    own = torch.eye(z.shape[1], dtype=torch.bool, device=z.device)
    exponents = (-squares / temperature).masked_fill(own, 0.0)
    return torch.logsumexp(exponents.flatten(1), dim=1) - 2 * math.log(z.shape[1])
