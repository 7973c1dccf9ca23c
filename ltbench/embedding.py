"""t-SNE of a few hundred feature vectors, the same at every call. scikit-learn loads on use; no torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np

PERPLEXITY = 30.0  # scikit-learn's default; fewer images take a third of their number
SEED = 0


def perplexity(images: int) -> float:
    """What `embed` takes for so many images."""
    return min(PERPLEXITY, (images - 1) / 3)


def embed(features: np.ndarray) -> np.ndarray:
    """(n, D) features -> (n, 2) float32: t-SNE (van der Maaten and Hinton 2008) by scikit-learn, begun at the principal components.

    Equal features give equal points with the same libraries, machine and threads; elsewhere rounding may turn the map. Fewer
    than 4 images, or images that are all the same, lie at the origin: there is nothing to lay out.
    """
    import numpy as np

    rows = np.asarray(features, np.float32)
    if len(rows) < 4 or not np.ptp(rows, axis=0).any():
        return np.zeros((len(rows), 2), np.float32)
    from sklearn.manifold import TSNE

    layout = TSNE(perplexity=perplexity(len(rows)), init="pca", learning_rate="auto", random_state=SEED)
    return layout.fit_transform(rows).astype(np.float32)
