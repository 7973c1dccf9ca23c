"""CIFAR-100-LT (Krizhevsky 2009; cut as by Cao et al., arXiv 1906.07413): 32x32 colour photographs, 100 fine classes.

Cite: krizhevsky2009cifar, cao2019ldam.
"""

from __future__ import annotations

from ltbench.datasets.cifar import Cifar, Source

CLASSES = """
apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly camel can castle caterpillar cattle
chair chimpanzee clock cloud cockroach couch crab crocodile cup dinosaur dolphin elephant flatfish forest fox girl hamster house
kangaroo keyboard lamp lawn_mower leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid
otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray road rocket rose sea seal shark shrew
skunk skyscraper snail snake spider squirrel streetcar sunflower sweet_pepper table tank telephone television tiger tractor train trout
tulip turtle wardrobe whale willow_tree wolf woman worm
"""


class Cifar100Lt(Cifar):
    """Long-tailed CIFAR-100: largest class 500 images; imbalance is smallest over largest class, 1 for the balanced set. keep_one: a class that it
    empties keeps one image.

    The reference is the whole balanced training split, 50,000 images, as in every published protocol: it CONTAINS the training
    images, so copying them is rewarded by whatever compares with it. The holdout, 10,000 images, is the official test split.
    Needs cifar-100-python.tar.gz, packed or unpacked, in LTBENCH_DATA.
    """

    # md5 sums as pytorch/vision:torchvision/datasets/cifar.py has them
    source = Source(
        title="CIFAR-100",
        name="cifar100",
        folder="cifar-100-python",
        archive="cifar-100-python.tar.gz",
        key="fine_labels",
        classes=tuple(CLASSES.split()),
        train={"train": "16019d7e3df5f24257cddd939b257f8d"},
        test={"test": "f0ef6b0ae62326f3e7ffdfab6717acfc"},
        per_train=500,
        per_test=100,
        archive_bytes=169_001_437,
        archive_md5="eb9058c3a382ffc7106e4002c42a8d85",
    )
