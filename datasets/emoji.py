"""Emoji (npm emoji-datasource-google and -twitter 16.0.0): colour pictures of 9 categories, long-tailed by nature.

Google's Noto images are Apache-2.0, Twitter's CC-BY 4.0, the metadata MIT. An emoji that is held out is held out of both vendors and
with all its skin tones, and those that look exactly like another one stay in training, or copies would leak.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ltbench.datasets import EnvironmentProblem, check_choice
from ltbench.datasets.photos import Asset, Decoder, Photos, find
from ltbench.datasets.pictures import Entry, Pictures, gather, look

VERSION = "16.0.0"
VENDORS = {"google": "Apache-2.0 (metadata MIT)", "twitter": "CC-BY 4.0 (metadata MIT)"}
SUMS = {
    "google": (74_344_091, "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438"),
    "twitter": (61_683_754, "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877"),
}
CLASSES = (
    "Activities",
    "Animals & Nature",
    "Flags",
    "Food & Drink",
    "Objects",
    "People & Body",
    "Smileys & Emotion",
    "Symbols",
    "Travel & Places",
)
LEFT_OUT = "Component"  # five skin tones
REFERENCE, HOLDOUT = 20, 10  # base emoji of each class; each is an image of both vendors
COUNTS = (110, 258, 480, 202, 468, 4152, 278, 388, 376)  # training images of version 16.0.0


class Emoji(Photos):
    """Colour emoji of two vendors, 9 categories from 4,152 images (People & Body) to 110 (Activities), as they are.

    resolution: 64 (native) or 32 (averages of 2x2), on white. Of each category 20 emoji are held out for the reference and 10 for the
    holdout, both vendors' image without skin tone: 360 and 180 images. Needs emoji-datasource-google-16.0.0.tgz and
    emoji-datasource-twitter-16.0.0.tgz (`npm pack`), packed or unpacked, in LTBENCH_DATA.
    """

    extractor = "lite0"
    crops = ("center", "squash")  # the originals are square
    needs_preparing = False

    def __init__(self, *, resolution: Literal[64, 32] = 32) -> None:
        check_choice("emoji", "resolution", resolution, (64, 32))
        self._set_up(Decoder(resolution, square="box", white=True), resolution=resolution)

    @property
    def classes(self) -> tuple[str, ...]:
        return CLASSES

    @property
    def reference_id(self) -> str:
        return f"emoji:{VERSION}:held-out-balanced-{2 * REFERENCE}"

    def counts(self) -> list[int]:
        return list(COUNTS)

    def source(self) -> list[Path]:
        return [_find(vendor) for vendor in VENDORS]

    def homes(self) -> list[str]:
        return [name for vendor in VENDORS for name in (_archive(vendor), f"emoji-datasource-{vendor}")]

    def assets(self, root: Path) -> list[Asset]:
        return [
            Asset(
                f"emoji, {vendor}",
                f"https://registry.npmjs.org/emoji-datasource-{vendor}/-/{_archive(vendor)}",
                root / _archive(vendor),
                licence,
                bytes=SUMS[vendor][0],
                sha256=SUMS[vendor][1],
            )
            for vendor, licence in VENDORS.items()
        ]

    def look(self) -> dict[str, Pictures]:
        places = dict(zip(VENDORS, self.source(), strict=True))
        files = {
            vendor: {Path(e.name).as_posix(): e for e in look(place)} for vendor, place in places.items()
        }
        emoji = _emoji(places["google"], files["google"])
        parts = split(emoji, _shared(places, files, emoji))
        found = {}
        for part, bases in parts.items():
            held: dict[Path, list[tuple[Entry, str, int]]] = {}
            for vendor, place in places.items():
                held[place] = _images(vendor, files[vendor], [emoji[base] for base in bases], part == "train")
            found[part] = gather(held)
        sizes = np.bincount(found["train"].labels, minlength=len(CLASSES)).tolist()
        if sizes != list(COUNTS):
            raise EnvironmentProblem(
                f"{', '.join(map(str, places.values()))}: training images per class are {sizes}, those of version {VERSION} are "
                f"{list(COUNTS)}",
                f"get both packages in version {VERSION}: npm pack emoji-datasource-google@{VERSION} emoji-datasource-twitter@{VERSION}",
            )
        return found


def split(emoji: dict[str, dict[str, Any]], shared: set[str]) -> dict[str, list[str]]:
    """{part: code points of its base emoji}; the held-out ones are drawn by RandomState(0), class by class, in sorted order.

    shared: those that look like another emoji; they are never held out.
    """
    legacy = np.random.RandomState(
        0
    )  # a split is part of what a set is: one that no version of NumPy changes
    parts: dict[str, list[str]] = {"train": [], "reference": [], "holdout": []}
    for category in CLASSES:
        bases = sorted(code for code, one in emoji.items() if one["category"] == category)
        drawn = [bases[i] for i in legacy.permutation(len(bases))]
        alone = [code for code in drawn if code not in shared]
        parts["reference"] += alone[:REFERENCE]
        parts["holdout"] += alone[REFERENCE : REFERENCE + HOLDOUT]
        parts["train"] += [*alone[REFERENCE + HOLDOUT :], *(code for code in drawn if code in shared)]
    return parts


def _shared(
    places: dict[str, Path], files: dict[str, dict[str, Entry]], emoji: dict[str, dict[str, Any]]
) -> set[str]:
    """Code points of emoji that a vendor draws as it draws another one: flags of territories, silhouettes of families."""
    found: set[str] = set()
    for vendor, place in places.items():
        by_picture: dict[bytes, list[str]] = {}
        for code, one in emoji.items():
            images = _images(vendor, files[vendor], [one], True)
            pictures = gather({place: images}, in_order=True)
            for data in {pictures.read(i) for i in range(len(pictures))}:
                by_picture.setdefault(data, []).append(code)
        found.update(*(codes for codes in by_picture.values() if len(codes) > 1))
    return found


def _images(
    vendor: str, files: dict[str, Entry], emoji: list[dict[str, Any]], tones: bool
) -> list[tuple[Entry, str, int]]:
    """One vendor's images of these emoji, with their skin tones where asked for; what a vendor has not drawn is not there."""
    found = []
    for one in emoji:
        drawn = [one, *(one.get("skin_variations", {}).values() if tones else ())]
        for image in (each["image"] for each in drawn):
            entry = next((files[p] for p in _paths(vendor, image) if p in files), None)
            if entry is not None:
                found.append((entry, f"{vendor}/{image}", CLASSES.index(one["category"])))
    return found


def _paths(vendor: str, image: str) -> tuple[str, str]:
    inside = f"img/{vendor}/64/{image}"
    return f"package/{inside}", inside


def _emoji(place: Path, files: dict[str, Entry]) -> dict[str, dict[str, Any]]:
    """Code points -> what emoji.json says of a base emoji."""
    entry = files.get("package/emoji.json") or files.get("emoji.json")
    if entry is None:
        raise EnvironmentProblem(f"{place}: holds no emoji.json", f"replace it with {_archive('google')}")
    try:
        listed = json.loads(gather({place: [(entry, "", 0)]}).read(0))
        return {one["unified"]: one for one in listed if one["category"] != LEFT_OUT}
    except (ValueError, KeyError, TypeError) as error:
        raise EnvironmentProblem(
            f"{place}: emoji.json is not usable: {error}", f"replace it with {_archive('google')}"
        ) from None


def _archive(vendor: str) -> str:
    return f"emoji-datasource-{vendor}-{VERSION}.tgz"


def _find(vendor: str) -> Path:
    stem = f"emoji-datasource-{vendor}"
    return find(
        f"emoji of {vendor}",
        (_archive(vendor), stem, f"node_modules/{stem}", f"emoji/{_archive(vendor)}", f"emoji/{stem}"),
        f"npm pack {stem}@{VERSION} in the folder that LTBENCH_DATA names, or add --download",
    )
