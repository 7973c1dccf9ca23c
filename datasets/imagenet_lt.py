"""ImageNet-LT in the seed paper's sense: ILSVRC 2012 cut exponentially, as Cao et al. (arXiv 1906.07413) cut CIFAR; 1,000 classes.

Not the ImageNet-LT of Liu et al. (arXiv 1904.05160), whose Pareto lists are `imagenet_lt_oltr`.

Cite: russakovsky2015imagenet, cao2019ldam.
"""

from __future__ import annotations

from ltbench.datasets import UsageError
from ltbench.datasets.imagenet import ImageNet
from ltbench.datasets.longtail import profile, require_images
from ltbench.datasets.photos import Decoder


class ImagenetLt(ImageNet):
    """Exponentially cut ImageNet: largest class 1,281 images; imbalance is smallest over largest class, 1 for the balanced set.

    resolution: ADM's centre crop at so many pixels. keep_one: a class that the imbalance empties keeps one image. A class gets at
    most what the source holds (732 to 1,300), so counts may be lower by a few once it is prepared. The reference is the whole
    training split, 1,281,167 images: it CONTAINS the training images, as in every published protocol. The holdout is the
    validation split. Needs the tars or folders in LTBENCH_DATA/imagenet; prepare it once.
    """

    def __init__(self, *, imbalance: float = 0.01, resolution: int = 256, keep_one: bool = False) -> None:
        if resolution < 8:
            raise UsageError(
                f"data set 'imagenet_lt': resolution is {resolution}; it is a whole number from 8 up"
            )
        self.imbalance, self.keep_one = imbalance, keep_one
        self._set_up(Decoder(resolution), imbalance=imbalance, resolution=resolution, keep_one=keep_one)
        require_images(self.chosen(None), self.words, self.total / len(self.folders), imbalance)

    def chosen(self, sizes: list[int] | None) -> list[int]:
        classes = len(self.folders)
        return profile(self.total / classes, classes, self.imbalance, sizes, self.keep_one)
