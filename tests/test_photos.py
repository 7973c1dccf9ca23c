"""The paper's photographs: counts before anything is there, the published cut from every published form of the files."""

from __future__ import annotations

import importlib
import json
from pathlib import Path

import numpy as np
import pytest

from ltbench.datasets import build_dataset
from ltbench.datasets.photos import Photos
from ltbench.datasets.prepare import prepare
from ltbench.errors import EnvironmentProblem, UsageError
from tests import cli_world, photo_files

cli, here = cli_world.cli, cli_world.here  # fixtures
SETS = {
    "tiny_imagenet_lt": ("TinyImagenetLt", photo_files.TINY),
    "imagenet_lt": ("ImagenetLt", photo_files.SYNSETS),
    "imagenet_lt_oltr": ("ImagenetLtOltr", photo_files.SYNSETS),
    "places_lt": ("PlacesLt", photo_files.SCENES),
    "places_lt_oltr": ("PlacesLtOltr", photo_files.SCENES),
}


@pytest.fixture
def root(tmp_path, monkeypatch) -> Path:
    """The folder that LTBENCH_DATA names, and the published sets shrunk to four classes of 12 + 3 images."""
    for name, (cls, folders) in SETS.items():
        plugin = getattr(importlib.import_module(f"ltbench.datasets.{name}"), cls)
        monkeypatch.setattr(plugin, "folders", folders)
        monkeypatch.setattr(plugin, "words", folders)
        monkeypatch.setattr(plugin, "total", 4 * photo_files.PER_CLASS)
        monkeypatch.setattr(plugin, "per_holdout", photo_files.PER_HOLDOUT)
    monkeypatch.setenv("LTBENCH_DATA", str(tmp_path / "data"))
    (tmp_path / "data").mkdir()
    return tmp_path / "data"


def built(name: str, **more) -> Photos:
    cut = {"imbalance": 0.1} if name.endswith("_lt") else {}  # a milder one than the default, for few images
    found = build_dataset({"name": name, **cut, **more})
    assert isinstance(found, Photos)
    return found


# --- what is published ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "imbalance", "total", "head", "last", "shares"),
    [
        ("tiny_imagenet_lt", 0.01, 21_549, [500, 488, 477], [5, 5, 5], [79.3, 17.3, 3.4]),
        ("tiny_imagenet_lt", 0.1, 39_072, [500], [50], None),
        ("tiny_imagenet_lt", 1, 100_000, [500], [500], None),
        ("places_lt", 0.01, 388_960, [4940, 4878, 4817], [50, 50, 49], [79.2, 17.2, 3.6]),
        ("places_lt", 0.1, 705_527, [4940], [494], None),
        ("places_lt", 0.001, 262_401, [4940], [4], None),
        ("imagenet_lt", 0.01, 275_288, [1281, 1275, 1269], [12], [79.3, 17.1, 3.6]),
        ("imagenet_lt", 0.1, 500_464, [1281], [128], None),
        ("imagenet_lt", 0.001, 185_239, [1281], [1] * 65, None),
    ],
)
def test_counts_are_the_published_ones_before_anything_is_there(
    cli, monkeypatch, name, imbalance, total, head, last, shares
):
    monkeypatch.delenv("LTBENCH_DATA", raising=False)
    code, out, err = cli("datasets", name, "--json", "--set", f"imbalance={imbalance}")
    assert code == 0, err
    found = json.loads(out)
    counts = found["counts"]
    assert (found["total"], counts[: len(head)], counts[-len(last) :]) == (total, head, last)
    if shares is not None:
        assert [round(100 * found["shares"][key], 1) for key in ("head", "body", "tail")] == shares
    assert "LTBENCH_DATA is not set" in found["missing"]
    assert found["data"] == {"source": [], "prepared": {}}


@pytest.mark.parametrize(
    ("name", "empty", "total"), [("tiny_imagenet_lt", 20, 14_548), ("cifar100_lt", 10, 7_361)]
)
def test_an_imbalance_that_empties_classes_is_explained_and_can_keep_one_image(name, empty, total):
    with pytest.raises(UsageError, match=f"leaves {empty} of") as caught:
        build_dataset({"name": name, "imbalance": 0.001})
    assert "keep_one: true" in str(caught.value.hint)
    kept = build_dataset({"name": name, "imbalance": 0.001, "keep_one": True}).counts()
    assert (min(kept), sum(kept)) == (1, total + empty)
    same = {"name": name, "imbalance": 0.01}
    assert build_dataset({**same, "keep_one": True}).counts() == build_dataset(same).counts()


def test_class_lists_are_whole_and_in_the_sources_order():
    for name, size in (("tiny_imagenet_lt", 200), ("imagenet_lt", 1000), ("places_lt", 365)):
        data = built(name)
        folders = list(type(data).folders)  # pyright: ignore[reportAttributeAccessIssue]
        assert folders == sorted(set(folders))
        assert len(folders) == size == len(set(data.classes))
    assert built("imagenet_lt").classes[966] == "red wine"
    assert set(built("tiny_imagenet_lt").classes) <= set(built("imagenet_lt").classes) | {
        "crane (n03126707)",
        "crane",
    }


# --- the files ---------------------------------------------------------------------------------------------------------


def expected_rows(counts: list[int]) -> list[tuple[int, int]]:
    """(label, file number) of LDAM's cut: files sorted by name, each class's list shuffled by one legacy generator."""
    files = sorted(range(photo_files.PER_CLASS), key=lambda i: f"x_{i}.JPEG")
    legacy, found = np.random.RandomState(0), []
    for label, count in enumerate(counts):
        positions = list(range(label * len(files), (label + 1) * len(files)))
        legacy.shuffle(positions)
        found += [(label, files[position % len(files)]) for position in positions[:count]]
    return found


def forms_of_tiny(root: Path):
    photo_files.folder(root, photo_files.tiny())
    yield root / "tiny-imagenet-200"
    photo_files.zipped(root / "tiny-imagenet-200.zip", photo_files.tiny())
    yield root / "tiny-imagenet-200.zip"


def forms_of_imagenet(root: Path):
    photo_files.folder(root / "imagenet", photo_files.imagenet())
    yield root / "imagenet"
    (root / "ILSVRC2012").mkdir()
    photo_files.imagenet_tars(root / "ILSVRC2012")
    yield root / "ILSVRC2012"


def forms_of_places(root: Path):
    photo_files.folder(root, photo_files.places())
    yield root / "places365_standard"
    photo_files.tar(root / "places365" / "places365standard_easyformat.tar", photo_files.places())
    yield root / "places365"
    photo_files.places_tars(root)
    yield root / "val_256.tar"


@pytest.mark.parametrize(
    ("name", "forms", "resolution"),
    [
        ("tiny_imagenet_lt", forms_of_tiny, 64),
        ("imagenet_lt", forms_of_imagenet, 16),
        ("places_lt", forms_of_places, 32),
    ],
)
def test_every_form_of_the_files_gives_the_published_cut(root, name, forms, resolution):
    sums = []
    for place in forms(root):
        data = built(name, imbalance=0.1, resolution=resolution)
        assert "run: python harness.py datasets prepare" in str(data.missing())
        with pytest.raises(
            EnvironmentProblem, match=f"not prepared here; run: .*prepare {name} --set imbalance=0.1"
        ):
            data.train()
        prepare(data, workers=1)
        data = built(name, imbalance=0.1, resolution=resolution)
        assert data.missing() is None
        assert data.counts() == [12, 5, 2, 1]
        train, reference, holdout = data.train(), data.reference(), data.holdout()
        wanted = expected_rows(data.counts()) if name != "places_lt" else None
        told = [(int(a), int(b)) for a, b in photo_files.marks(train.images)]
        if wanted is not None:
            assert told == wanted
        assert [label for label, _ in told] == train.labels.tolist()
        assert np.bincount(reference.labels).tolist() == [12] * 4
        assert np.bincount(holdout.labels).tolist() == [3] * 4
        assert photo_files.marks(holdout.images[:])[:, 0].tolist() == holdout.labels.tolist()
        assert (np.asarray(reference.images)[train.index] == train.images).all()
        sums.append([part.sha256() for part in (train, reference, holdout)])
        _remove(place, data)
    assert all(found == sums[0] for found in sums)
    assert "was not found" in str(built(name).missing())


def _remove(place: Path, data: Photos) -> None:
    import shutil

    folder = data.place.folder()
    assert folder is not None
    shutil.rmtree(folder)
    shutil.rmtree(place) if place.is_dir() else place.unlink()


def test_imagenet_is_cut_to_its_middle_and_places_are_squashed(root):
    photo_files.folder(root / "imagenet", photo_files.imagenet())
    data = built("imagenet_lt", resolution=24, imbalance=0.1)
    cut = data.decoder(photo_files.picture(1, 1, photo_files.WIDE), "x")
    assert abs(cut[2].astype(int)).max() < 40, "no blue side is left"
    squashed = built("places_lt", resolution=24).decoder(photo_files.picture(1, 1, photo_files.WIDE), "x")
    assert squashed[2, :, 0].min() > 200
    assert squashed[2, :, 12].max() < 40


def test_imagenet_is_compared_with_as_the_protocol_makes_it_square(root):
    """CCUA's FID_tail squashes what it compares with; ADM's protocol cuts the middle, as training does."""
    photo_files.imagenet_tars(root)
    prepare(built("imagenet_lt", resolution=24), workers=1)
    data = built("imagenet_lt", resolution=24)
    assert data.squared("center") is data
    squashed = data.squared("squash")
    assert squashed.train().sha256() == data.train().sha256()
    assert squashed.reference().sha256() != data.reference().sha256()
    assert (squashed.reference().labels == data.reference().labels).all()
    for one in (squashed.reference(), squashed.holdout()):
        assert one.images[:][:, 2, :, 0].min() > 200, "the blue sides are seen"
    assert data.reference().images[:][:, 2].max() < 40


@pytest.mark.parametrize(("name", "total"), [("imagenet_lt_oltr", 115_846), ("places_lt_oltr", 62_500)])
def test_without_its_list_a_published_cut_tells_what_is_known(cli, monkeypatch, name, total):
    monkeypatch.delenv("LTBENCH_DATA", raising=False)
    code, out, err = cli("datasets", name, "--json")
    assert code == 0, err
    found = json.loads(out)
    assert (found["total"], found["counts"], found["shares"]) == (total, None, None)
    assert "_LT_train.txt was not found" in found["missing"]
    assert cli("datasets", name)[0] == 4


@pytest.mark.parametrize("name", ["imagenet_lt_oltr", "places_lt_oltr"])
def test_a_published_list_decides_the_cut(root, name, monkeypatch):
    plugin = type(built(name, resolution=16))
    monkeypatch.setattr(plugin, "published", 5)
    base = root / ("imagenet" if name.startswith("i") else "places365")
    photo_files.folder(
        base if name.startswith("i") else root / "places365",
        photo_files.imagenet() if name.startswith("i") else photo_files.places(),
    )
    keys = ["{2}/X_3 2", "{0}/X_1 0", "{1}/X_7 1", "{3}/X_2 3", "{1}/X_4 1"]
    classes = plugin.folders  # pyright: ignore[reportAttributeAccessIssue]
    lines = []
    for key in keys:
        path, label = key.format(*classes).split(" ")
        cls, number = path.split("/X_")
        file = f"{cls}_{number}.JPEG" if name.startswith("i") else f"{int(number) + 1:08d}.jpg"
        lines.append(f"train/{cls}/{file} {label}")
    listed = base / plugin.list_file  # pyright: ignore[reportAttributeAccessIssue]
    assert "was not found" in str(built(name).missing())
    listed.write_text("\n".join(lines))
    data = built(name, resolution=16)
    assert data.counts() == [1, 2, 1, 1]
    prepare(data, workers=1)
    assert [tuple(row) for row in photo_files.marks(built(name, resolution=16).train().images).tolist()] == [
        (0, 1),
        (1, 7),
        (1, 4),
        (2, 3),
        (3, 2),
    ]
    listed.write_text("\n".join([*lines[:-1], lines[-1][:-1] + "3"]))
    with pytest.raises(EnvironmentProblem, match=r":5: .* is not PATH/CLASS/FILE LABEL"):
        built(name, resolution=8).counts()
    listed.write_text("\n".join(lines[:-1]))
    with pytest.raises(EnvironmentProblem, match="4 lines, the published list has 5"):
        built(name, resolution=8).counts()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda f: {k: v for k, v in f.items() if photo_files.TINY[1] not in k},
            f"no training image of 1 of 4 classes .{photo_files.TINY[1]}",
        ),
        (
            lambda f: {k: v for k, v in f.items() if not k.endswith(f"{photo_files.TINY[0]}_3.JPEG")},
            "holds 47 training images, Tiny ImageNet has 48",
        ),
        (
            lambda f: {k: v for k, v in f.items() if "val_00" not in k},
            "validation images per class are not 3 .n01443537: 2",
        ),
        (
            lambda f: {k.replace(photo_files.TINY[1], "n99999999"): v for k, v in f.items()},
            "1 classes that this data set does not have .n99999999",
        ),
        (
            lambda f: {**f, "tiny-imagenet-200/val/images/val_x.JPEG": b""},
            "val_x.JPEG is not in the list of val_annotations.txt",
        ),
    ],
)
def test_a_set_that_is_not_the_published_one_is_named(root, change, message):
    photo_files.zipped(root / "tiny-imagenet-200.zip", change(photo_files.tiny()))
    with pytest.raises(EnvironmentProblem, match=message):
        prepare(built("tiny_imagenet_lt"), workers=1)


def test_an_archive_cut_short_is_named(root):
    photo_files.imagenet_tars(root)
    path = root / "ILSVRC2012_img_train.tar"
    path.write_bytes(path.read_bytes()[:20_000])
    with pytest.raises(EnvironmentProblem, match=r"ILSVRC2012_img_train\.tar"):
        prepare(built("imagenet_lt", resolution=16), workers=1)


def test_emoji_are_split_by_their_base_and_lie_on_white(root, monkeypatch):
    plugin = importlib.import_module("ltbench.datasets.emoji")
    monkeypatch.setattr(plugin, "REFERENCE", 1)
    monkeypatch.setattr(plugin, "HOLDOUT", 1)
    monkeypatch.setattr(plugin, "COUNTS", (4, 4, 4, 4, 4, 12, 4, 4, 4))
    photo_files.emoji(root)
    data = built("emoji", resolution=64)
    assert data.missing() is None
    parts = {"train": data.train(), "reference": data.reference(), "holdout": data.holdout()}
    assert np.bincount(parts["train"].labels).tolist() == data.counts()
    seen = {}
    for name, part in parts.items():
        middle = np.rint(part.images[:, :2, 32, 32].astype(float) / [25, 15]).astype(int)
        assert middle[:, 0].tolist() == part.labels.tolist()
        assert (part.images[:, :, 0, 0] == 255).all()
        seen[name] = {tuple(row) for row in middle.tolist()}
    assert not seen["train"] & seen["reference"]
    assert not seen["train"] & seen["holdout"]
    assert not seen["reference"] & seen["holdout"]
    monkeypatch.setattr(plugin, "COUNTS", (1,) * 9)
    with pytest.raises(EnvironmentProblem, match=r"those of version 16\.0\.0 are"):
        built("emoji").train()
