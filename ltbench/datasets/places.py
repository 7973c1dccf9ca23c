"""Places365-standard (Zhou et al., TPAMI 2017) from its easy-format folders or its tars of small or large images, which stay packed."""

from __future__ import annotations

from pathlib import Path

from ltbench.datasets import EnvironmentProblem, data_folders
from ltbench.datasets.photos import Asset, LongTailed, class_list
from ltbench.datasets.pictures import Pictures, by_class, by_list, gather, look

BASES = ("places365", "places", "places365_standard", "places365/places365_standard", ".")
HOME = "http://places2.csail.mit.edu/download.html"
EASY = "places365standard_easyformat.tar"
LISTS, VAL_LIST = "filelist_places365-standard.tar", "places365_val.txt"
# Folders and tars of training and of validation images: (training, validation, whether images lie in folders as torchvision has them).
FORMS = (
    ("train", "val", False),
    (EASY, EASY, False),
    ("train_256_places365standard.tar", "val_256.tar", True),
    ("data_256", "val_256", True),
    ("data_256_standard", "val_256", True),
    ("train_large_places365standard.tar", "val_large.tar", True),
    ("data_large", "val_large", True),
    ("data_large_standard", "val_large", True),
)
EASY_TRAIN = r"(?:^|/train/)(?P<cls>[a-z_-]+)/(?P<file>\d+\.jpg)$"
EASY_VAL = r"(?:^|/val/)(?P<cls>[a-z_-]+)/(?P<file>Places365_val_\d+\.jpg)$"
DEEP_TRAIN = r"(?:^|/)(?P<cls>[a-z]/[a-z_]+(?:/[a-z_]+)?)/(?P<file>\d+\.jpg)$"
FLAT_VAL = r"(?:^|/)(?P<file>Places365_val_\d+\.jpg)$"
FOLDERS, WORDS = class_list("places365.txt")


class Places(LongTailed):
    """What its cuts share: the files, and the classes in the order of categories_places365.txt, which is the sorted one."""

    extractor = "lite0"
    title = "Places365-standard"
    folders, words = FOLDERS, WORDS
    total, per_holdout = 1_803_460, 100

    @property
    def reference_id(self) -> str:
        return f"places365:train-all-{self.total}"

    def source(self) -> list[Path]:
        return list(self._found()[:2])

    def _found(self) -> tuple[Path, Path, bool]:
        """(training images, validation images, whether the former lie as torchvision has them)."""
        for base in data_folders(*BASES):
            for train, val, deep in FORMS:
                if (base / train).exists() and (base / val).exists():
                    return base / train, base / val, deep
        looked = ", ".join(map(str, data_folders(*BASES))) or "LTBENCH_DATA is not set"
        raise EnvironmentProblem(
            f"{self.title} was not found ({looked})",
            f"get it at {HOME}; put or link {EASY}, packed or unpacked, into LTBENCH_DATA/places365 (or "
            f"{FORMS[2][0]}, {FORMS[2][1]} and {LISTS}), or name their folder: datasets prepare --from PATH",
        )

    def homes(self) -> list[str]:
        return ["places365"]

    def assets(self, root: Path) -> list[Asset]:
        terms = "Places' terms of use: non-commercial research and education"
        return [Asset("Places365-standard, 256 px", "", root / "places365" / EASY, terms, ask=HOME)]

    def splits(self) -> tuple[Pictures, Pictures]:
        train, val, deep = self._found()
        classes = {name: label for label, name in enumerate(self.folders)}
        if deep:
            held = by_list(val, FLAT_VAL, _labels(val.parent), self.folders, VAL_LIST)
        else:
            held = by_class(val, EASY_VAL, classes)
        found = by_class(train, DEEP_TRAIN if deep else EASY_TRAIN, classes, _flat)
        return gather({train: found}), gather({val: held})


def _flat(name: str) -> str:
    """`a/arena/hockey` -> `arena-hockey`, as the easy format spells it."""
    return name[2:].replace("/", "-") if name[1:2] == "/" else name


def _labels(folder: Path) -> dict[str, int]:
    """File -> label of the validation images, from their list beside them or in the tar of lists."""
    beside, packed = folder / VAL_LIST, folder / LISTS
    if beside.is_file():
        text = beside.read_text()
    elif packed.is_file():
        entries = [entry for entry in look(packed) if entry.name.endswith(VAL_LIST)]
        text = gather({packed: [(entries[0], "", 0)]}).read(0).decode() if entries else ""
    else:
        raise EnvironmentProblem(
            f"{folder}: neither {VAL_LIST} nor {LISTS} is there: the validation images have no labels",
            f"get {LISTS} at {HOME} and put it there",
        )
    pairs = [line.split() for line in text.splitlines() if line.strip()]
    return {file: int(label) for file, label in pairs}
