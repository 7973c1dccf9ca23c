"""ImageNet (ILSVRC 2012, arXiv 1409.0575) from its synset folders or from the original tars, which stay packed."""

from __future__ import annotations

import copy
import io
import tarfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ltbench.datasets import EnvironmentProblem, data_folders
from ltbench.datasets.photos import Asset, LongTailed, class_list
from ltbench.datasets.pictures import Pictures, by_class, by_list, gather
from ltbench.datasets.prepared import stream, stream_sha256

BASES = (
    "imagenet",
    "ILSVRC2012",
    "ILSVRC",
    "ILSVRC/Data/CLS-LOC",
    "imagenet/ILSVRC/Data/CLS-LOC",
    "imagenet/Data/CLS-LOC",
    ".",
)
TRAIN, VAL, DEVKIT = "ILSVRC2012_img_train.tar", "ILSVRC2012_img_val.tar", "ILSVRC2012_devkit_t12"
HOME = "https://image-net.org/download"
IN_CLASS = r"(?:^|/)(?P<cls>n\d{8})/(?P<file>[^/]+\.JPEG)$"
FLAT = r"(?P<file>ILSVRC2012_val_\d{8}\.JPEG)$"
FOLDERS, WORDS = class_list("imagenet.txt")


class ImageNet(LongTailed):
    """What its cuts share: the files, and the classes in the order of their sorted WordNet ids."""

    extractor = "lite0"
    title = "ImageNet"
    folders, words = FOLDERS, WORDS
    total, per_holdout = 1_281_167, 50

    def squared(self, crop: str) -> ImageNet:
        """The training images stay ADM's centre crop; those that are compared with are decoded anew."""
        if crop == "center":
            return self
        other = copy.copy(self)
        decoder = replace(self.decoder, square="squash")
        for name in ("reference", "holdout"):
            pictures = self.place.pictures(name) or self._looked[name]
            setattr(other, f"_{name}", stream(pictures, decoder, stream_sha256(pictures, decoder)))
        return other

    @property
    def reference_id(self) -> str:
        return f"imagenet:train-all-{self.total}"

    def source(self) -> list[Path]:
        train = _first("train", TRAIN)
        val = _first("val", VAL)
        if train is None or val is None:
            absent = " and ".join(name for name, path in ((TRAIN, train), (VAL, val)) if path is None)
            looked = data_folders(*BASES)
            raise EnvironmentProblem(
                f"{self.title} was not found: no {absent}, no folder of it ({', '.join(map(str, looked)) or 'LTBENCH_DATA is not set'})",
                f"register at {HOME}; put or link {TRAIN}, {VAL} and {DEVKIT}.tar.gz, or the folders train/ and val/, into "
                "LTBENCH_DATA/imagenet, or name their folder: datasets prepare --from PATH",
            )
        return [train, val]

    def homes(self) -> list[str]:
        return ["imagenet"]

    def assets(self, root: Path) -> list[Asset]:
        folder, terms = root / "imagenet", "ImageNet's terms of access: non-commercial research and education"
        # md5 sums as pytorch/vision:torchvision/datasets/imagenet.py has them
        known = (
            ("ImageNet, training images", TRAIN, "1d675b47d978889d74fa0da5fadfb00e"),
            ("ImageNet, validation images", VAL, "29b22e2961454d5413ddabcf34fc5622"),
            ("ImageNet, labels (devkit)", f"{DEVKIT}.tar.gz", "fa75699e90414af021442c21a62c3abf"),
        )
        return [Asset(name, "", folder / file, terms, md5=md5, ask=HOME) for name, file, md5 in known]

    def splits(self) -> tuple[Pictures, Pictures]:
        train, val = self.source()
        classes = {name: label for label, name in enumerate(self.folders)}
        held = by_class(val, IN_CLASS, classes)
        if not held:
            labels = {file: classes[wnid] for file, wnid in validation_labels().items() if wnid in classes}
            held = by_list(val, FLAT, labels, self.folders, "ImageNet's devkit")
        return gather({train: by_class(train, IN_CLASS, classes)}), gather({val: held})


def validation_labels() -> dict[str, str]:
    """File -> WordNet id of the 50,000 validation images, from the devkit.

    Raises EnvironmentProblem where the devkit is not there or not the published one.
    """
    import scipy.io

    remedy = f"put {DEVKIT}.tar.gz from {HOME} beside the images, or sort val/ into folders of classes"
    kit = _first(DEVKIT, f"{DEVKIT}.tar.gz")
    if kit is None:
        raise EnvironmentProblem(
            "ImageNet's validation images lie flat, and their labels are not here", remedy
        )
    try:
        truth = _devkit_file(kit, "ILSVRC2012_validation_ground_truth.txt").decode().split()
        meta: Any = scipy.io.loadmat(io.BytesIO(_devkit_file(kit, "meta.mat")), squeeze_me=True)["synsets"]
        # rows with children are inner nodes of the hierarchy; their ids lie above 1000
        wnids = {
            int(row["ILSVRC2012_ID"]): str(row["WNID"])
            for row in np.atleast_1d(meta)
            if row["num_children"] == 0
        }
        return {
            f"ILSVRC2012_val_{number:08d}.JPEG": wnids[int(label)]
            for number, label in enumerate(truth, start=1)
        }
    except (OSError, KeyError, ValueError, tarfile.TarError, EOFError) as error:
        raise EnvironmentProblem(f"{kit}: not a usable devkit: {error}", remedy) from None


def _devkit_file(kit: Path, name: str) -> bytes:
    if kit.is_dir():
        return (kit / "data" / name).read_bytes()
    with tarfile.open(kit, "r:*") as tar:
        for member in tar:
            file = tar.extractfile(member) if member.name.endswith(f"/data/{name}") else None
            if file is not None:
                return file.read()
    raise KeyError(f"no data/{name}")


def _first(*names: str) -> Path | None:
    for base in data_folders(*BASES):
        for name in names:
            if (base / name).exists():
                return base / name
    return None
