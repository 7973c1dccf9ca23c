"""Tiny ImageNet (Stanford CS231n 2015), long-tailed as Cao et al. (arXiv 1906.07413) cut CIFAR: 64x64 photographs, 200 classes.

Cite: le2015tiny, cao2019ldam.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from ltbench.datasets import check_choice
from ltbench.datasets.longtail import profile, require_images
from ltbench.datasets.photos import Asset, Decoder, LongTailed, class_list, find
from ltbench.datasets.pictures import Pictures, by_class, by_list, gather, look

ARCHIVE, FOLDER = "tiny-imagenet-200.zip", "tiny-imagenet-200"
URL = f"http://cs231n.stanford.edu/{ARCHIVE}"
FOLDERS, WORDS = class_list("tiny_imagenet.txt")


class TinyImagenetLt(LongTailed):
    """Long-tailed Tiny ImageNet: largest class 500 images; imbalance is smallest over largest class, 1 for the balanced set.

    resolution: 64 (native) or 32 (resized, bilinear). keep_one: a class that the imbalance empties (20 at 0.001) keeps one image.
    The reference is the whole training split, 100,000 images: it CONTAINS the training images, as in every published protocol. The
    holdout is the validation split, 10,000 images. Needs tiny-imagenet-200.zip, packed or unpacked, in LTBENCH_DATA; prepare it once.
    """

    extractor = "lite0"
    title = "Tiny ImageNet"
    folders, words = FOLDERS, WORDS
    total, per_holdout = 100_000, 50

    def __init__(
        self, *, imbalance: float = 0.01, resolution: Literal[64, 32] = 64, keep_one: bool = False
    ) -> None:
        check_choice("tiny_imagenet_lt", "resolution", resolution, (64, 32))
        self.imbalance, self.keep_one = imbalance, keep_one
        self._set_up(
            Decoder(resolution, square="squash"),
            imbalance=imbalance,
            resolution=resolution,
            keep_one=keep_one,
        )
        require_images(self.chosen(None), self.words, self.total / len(self.folders), imbalance)

    @property
    def reference_id(self) -> str:
        return f"tiny_imagenet:train-balanced-{self.total // len(self.folders)}"

    def chosen(self, sizes: list[int] | None) -> list[int]:
        classes = len(self.folders)
        return profile(self.total / classes, classes, self.imbalance, sizes, self.keep_one)

    def source(self) -> list[Path]:
        remedy = f"put {ARCHIVE} from {URL} into the folder that LTBENCH_DATA names, packed or unpacked; `datasets prepare` also takes --download and --from PATH"
        return [find(self.title, (FOLDER, ARCHIVE), remedy)]

    def assets(self, root: Path) -> list[Asset]:
        terms = "images of ImageNet: for non-commercial research and education"
        return [
            Asset(
                "Tiny ImageNet",
                URL,
                root / ARCHIVE,
                terms,
                bytes=248_100_043,
                md5="90528d7ca1a48142e341f4ef8d21d0de",
            )
        ]

    def homes(self) -> list[str]:
        return [FOLDER, ARCHIVE]

    def splits(self) -> tuple[Pictures, Pictures]:
        (place,) = self.source()
        classes = {name: label for label, name in enumerate(self.folders)}
        train = by_class(place, r"(?:^|/)train/(?P<cls>n\d+)/images/(?P<file>[^/]+\.JPEG)$", classes)
        labels = {file: classes[name] for file, name in _annotations(place) if name in classes}
        val = by_list(
            place, r"(?:^|/)val/images/(?P<file>[^/]+\.JPEG)$", labels, self.folders, "val_annotations.txt"
        )
        return gather({place: train}), gather({place: val})


def _annotations(place: Path) -> list[tuple[str, str]]:
    """(file, class) of the validation images: the first two columns of val/val_annotations.txt."""
    wanted = [entry for entry in look(place) if entry.name.endswith("val/val_annotations.txt")]
    if not wanted:
        return []
    text = gather({place: [(wanted[0], "", 0)]}).read(0).decode()
    rows = [line.split("\t") for line in text.splitlines()]
    return [(row[0], row[1]) for row in rows if len(row) >= 2]
