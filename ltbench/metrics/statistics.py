"""A reference that is a file of means and covariances, as ADM's evaluator reads (openai/guided-diffusion: evaluations/evaluator.py)."""

from __future__ import annotations

import zipfile
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ltbench.errors import UsageError
from ltbench.metrics.moments import Gaussian
from ltbench.metrics.sets import FeatureSet


@dataclass(frozen=True)
class Statistics:
    """pool and spatial: of all classes together; ADM's files do not say of how many images. images: features of real images
    for the metrics that need pairs (ADM's file carries 10,000 images beside its statistics), or None."""

    pool: Gaussian
    spatial: Gaussian | None = None
    images: FeatureSet | None = None


def load_statistics(path: str | Path) -> Statistics:
    """Read `mu` (D,), `sigma` (D, D) and, where there are such, `mu_s`, `sigma_s` of the spatial map from an .npz file.

    No code in the file is run. Raises UsageError for a file that is not readable, lacks an array, or whose arrays are no
    mean and covariance: other shapes, NaN, not symmetric, a negative variance.
    """
    try:
        with open(path, "rb") as file, np.load(file, allow_pickle=False) as held:
            known = {name: held[name] for name in ("mu", "sigma", "mu_s", "sigma_s") if name in held}
    except (OSError, ValueError, zipfile.BadZipFile, EOFError) as error:
        raise UsageError(
            f"{path}: cannot be read as statistics: {error}", "give an .npz with mu and sigma"
        ) from None
    pool = _gaussian(path, known, "mu", "sigma")
    if pool is None:
        raise UsageError(f"{path}: has neither mu nor sigma", "give an .npz with mu (D,) and sigma (D, D)")
    return Statistics(pool, _gaussian(path, known, "mu_s", "sigma_s"))


def _gaussian(path: str | Path, known: dict[str, np.ndarray], mean: str, cov: str) -> Gaussian | None:
    if mean not in known and cov not in known:
        return None
    if missing := [name for name in (mean, cov) if name not in known]:
        raise UsageError(f"{path}: has no {missing[0]}", f"{mean} and {cov} belong together")
    try:
        mu, sigma = known[mean].astype(np.float64), known[cov].astype(np.float64)
    except (TypeError, ValueError):
        raise UsageError(f"{path}: {mean} and {cov} are not numbers", "") from None
    if problem := _problem(mu, sigma):
        raise UsageError(
            f"{path}: {mean} and {cov} are no mean and covariance: {problem}", "make the file again"
        )
    return Gaussian(mu, sigma)


def _problem(mu: np.ndarray, sigma: np.ndarray) -> str | None:
    if mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
        return f"shapes {mu.shape} and {sigma.shape}, not (D,) and (D, D)"
    if not (np.isfinite(mu).all() and np.isfinite(sigma).all()):
        return "some values are NaN or infinite"
    if not np.allclose(sigma, sigma.T, rtol=1e-6, atol=1e-6 * np.abs(sigma).max(initial=0)):
        return "the covariance is not symmetric"
    if sigma.diagonal().min(initial=0) < 0:
        return "a variance is negative"
    return None
