"""Places-LT of Liu et al. (OLTR, arXiv 1904.05160): the published list of a Pareto cut. Not what the seed paper trains on.

Cite: zhou2018places, liu2019oltr.
"""

from __future__ import annotations

from pathlib import Path

from ltbench.datasets import UsageError
from ltbench.datasets.listed import LISTS, Listed
from ltbench.datasets.photos import Asset, Decoder
from ltbench.datasets.places import BASES, Places


class PlacesLtOltr(Listed, Places):
    """Places365 cut by Places_LT_train.txt: 62,500 images, 4,980 to 5 a class, the sizes not in the order of the classes.

    resolution: images are squashed to so many pixels a side. Reference and holdout are Places365-standard's own whole training and
    validation splits, as for `places_lt`: the reference CONTAINS the training images. Needs Places365 and the list in
    LTBENCH_DATA/places365.
    """

    list_file, bases, published = "Places_LT_train.txt", BASES, 62_500

    def __init__(self, *, resolution: int = 64) -> None:
        if resolution < 8:
            raise UsageError(
                f"data set 'places_lt_oltr': resolution is {resolution}; it is a whole number from 8 up"
            )
        self._set_up(Decoder(resolution, square="squash"), resolution=resolution)

    def assets(self, root: Path) -> list[Asset]:
        place = root / "places365" / self.list_file
        return [*super().assets(root), Asset(self.list_file, "", place, "as its images", ask=LISTS)]
