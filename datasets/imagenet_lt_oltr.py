"""ImageNet-LT of Liu et al. (OLTR, arXiv 1904.05160): the published list of a Pareto cut. Not what the seed paper trains on.

Cite: russakovsky2015imagenet, liu2019oltr.
"""

from __future__ import annotations

from pathlib import Path

from ltbench.datasets import UsageError
from ltbench.datasets.imagenet import BASES, ImageNet
from ltbench.datasets.listed import LISTS, Listed
from ltbench.datasets.photos import Asset, Decoder


class ImagenetLtOltr(Listed, ImageNet):
    """ImageNet cut by ImageNet_LT_train.txt: 115,846 images, 1,280 to 5 a class, the sizes not in the order of the classes.

    resolution: ADM's centre crop at so many pixels. Reference and holdout are ImageNet's own whole training and validation splits, as
    for `imagenet_lt`: the reference CONTAINS the training images. Needs ImageNet and the list in LTBENCH_DATA/imagenet.
    """

    list_file, bases, published = "ImageNet_LT_train.txt", BASES, 115_846

    def __init__(self, *, resolution: int = 256) -> None:
        if resolution < 8:
            raise UsageError(
                f"data set 'imagenet_lt_oltr': resolution is {resolution}; it is a whole number from 8 up"
            )
        self._set_up(Decoder(resolution), resolution=resolution)

    def assets(self, root: Path) -> list[Asset]:
        place = root / "imagenet" / self.list_file
        return [*super().assets(root), Asset(self.list_file, "", place, "as its images", ask=LISTS)]
