"""Places-LT in the seed paper's sense: Places365-standard cut exponentially, as Cao et al. (arXiv 1906.07413) cut CIFAR; 365 scenes.

Not the Places-LT of Liu et al. (arXiv 1904.05160), whose Pareto lists are `places_lt_oltr`.

Cite: zhou2018places, cao2019ldam.
"""

from __future__ import annotations

from ltbench.datasets import UsageError
from ltbench.datasets.longtail import profile, require_images
from ltbench.datasets.photos import Decoder
from ltbench.datasets.places import Places


class PlacesLt(Places):
    """Exponentially cut Places365: largest class 4,940 images; imbalance is smallest over largest class, 1 for the balanced set.

    resolution: images are squashed to so many pixels a side, as the small ones of the set were to 256. keep_one: a class that the
    imbalance empties keeps one image. A class gets at most what the source holds (3,068 to 5,000). The
    reference is the whole training split, 1,803,460 images: it CONTAINS the training images, as in every published protocol. The
    holdout is the validation split, 36,500. Needs the easy-format folders or tars in LTBENCH_DATA/places365; prepare it once.
    """

    def __init__(self, *, imbalance: float = 0.01, resolution: int = 64, keep_one: bool = False) -> None:
        if resolution < 8:
            raise UsageError(
                f"data set 'places_lt': resolution is {resolution}; it is a whole number from 8 up"
            )
        self.imbalance, self.keep_one = imbalance, keep_one
        self._set_up(
            Decoder(resolution, square="squash"),
            imbalance=imbalance,
            resolution=resolution,
            keep_one=keep_one,
        )
        require_images(self.chosen(None), self.words, self.total / len(self.folders), imbalance)

    def chosen(self, sizes: list[int] | None) -> list[int]:
        classes = len(self.folders)
        return profile(self.total / classes, classes, self.imbalance, sizes, self.keep_one)
