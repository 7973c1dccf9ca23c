"""CIFAR-10-LT (Krizhevsky 2009; cut as by Cao et al., arXiv 1906.07413): 32x32 colour photographs, 10 classes.

Cite: krizhevsky2009cifar, cao2019ldam.
"""

from __future__ import annotations

from ltbench.datasets.cifar import Cifar, Source


class Cifar10Lt(Cifar):
    """Long-tailed CIFAR-10: largest class 5,000 images; imbalance is smallest over largest class, 1 for the balanced set. keep_one: a class that it
    empties keeps one image.

    The reference is the whole balanced training split, 50,000 images, as in every published protocol: it CONTAINS the training
    images, so copying them is rewarded by whatever compares with it. The holdout, 10,000 images, is the official test split.
    Needs cifar-10-python.tar.gz, packed or unpacked, in LTBENCH_DATA.
    """

    # md5 sums as pytorch/vision:torchvision/datasets/cifar.py has them
    source = Source(
        title="CIFAR-10",
        name="cifar10",
        folder="cifar-10-batches-py",
        archive="cifar-10-python.tar.gz",
        key="labels",
        classes=(
            "airplane",
            "automobile",
            "bird",
            "cat",
            "deer",
            "dog",
            "frog",
            "horse",
            "ship",
            "truck",
        ),
        train={
            "data_batch_1": "c99cafc152244af753f735de768cd75f",
            "data_batch_2": "d4bba439e000b95fd0a9bffe97cbabec",
            "data_batch_3": "54ebc095f3ab1f0389bbae665268c751",
            "data_batch_4": "634d18415352ddfa80567beed471001a",
            "data_batch_5": "482c414d41f54cd18b22e5b47cb7c3cb",
        },
        test={"test_batch": "40351d587109b95175f43aff81a1287e"},
        per_train=5000,
        per_test=1000,
        archive_bytes=170_498_071,
        archive_md5="c58f30108f718f92721af3b95e74349a",
    )
