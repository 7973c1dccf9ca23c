"""Data that lies elsewhere is linked and not copied; archives are compared with their published sums, once."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os

import pytest

from ltbench.datasets import build_dataset
from ltbench.datasets.linking import wanted
from ltbench.datasets.photos import Photos
from ltbench.errors import UsageError
from tests import cifar_files, cli_world, photo_files
from tests.test_photos import root as root

cli, here = cli_world.cli, cli_world.here  # fixtures
TINY = (
    "datasets",
    "prepare",
    "tiny_imagenet_lt",
    "--set",
    "imbalance=0.1",
    "--workers",
    "1",
    "--no-checksums",
)


def test_what_is_linked_under_which_name(tmp_path):
    tiny = ["tiny-imagenet-200", "tiny-imagenet-200.zip"]
    for name in ("set/train", "all/tiny-imagenet-200", "tiny-imagenet-200", "many/imagenet"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("other.zip", "one.tar", "a.tgz"):
        (tmp_path / name).touch()
    inside = tmp_path / "all" / "tiny-imagenet-200"
    assert wanted(tiny, tmp_path / "other.zip") == [("tiny-imagenet-200.zip", tmp_path / "other.zip")]
    assert wanted(tiny, tmp_path / "set") == [("tiny-imagenet-200", tmp_path / "set")]
    assert wanted(tiny, tmp_path / "all") == [("tiny-imagenet-200", inside)]
    assert wanted(tiny, inside) == [("tiny-imagenet-200", inside)]
    assert wanted(["imagenet"], tmp_path / "one.tar") == [("imagenet", tmp_path)], (
        "its siblings are needed too"
    )
    assert wanted(["imagenet"], tmp_path / "many") == [("imagenet", tmp_path / "many" / "imagenet")]
    with pytest.raises(UsageError, match=r"none of tiny-imagenet-200, tiny-imagenet-200\.zip"):
        wanted(tiny, tmp_path / "one.tar")
    with pytest.raises(UsageError, match=r"name the folder that holds x\.tgz and y\.tgz"):
        wanted(["x.tgz", "x", "y.tgz", "y"], tmp_path / "a.tgz")
    with pytest.raises(UsageError, match="reads nothing from outside"):
        wanted([], tmp_path)


def test_an_archive_elsewhere_is_linked_and_prepared(cli, root, tmp_path):
    away = tmp_path / "archive"
    away.mkdir()
    photo_files.zipped(away / "tiny.zip", photo_files.tiny())
    code, out, err = cli(*TINY, "--from", away / "tiny.zip", "--json")
    assert code == 0, err
    assert json.loads(out)["counts"] == [12, 5, 2, 1]
    at = root / "tiny-imagenet-200.zip"
    assert f"{at} is {away / 'tiny.zip'}" in err
    assert at.is_symlink()
    assert cli(*TINY, "--from", away / "tiny.zip")[0] == 0, "the same again is no conflict"
    photo_files.zipped(away / "second.zip", photo_files.tiny())
    code, _, err = cli(*TINY, "--from", away / "second.zip")
    assert code == 2
    assert f"{at} is there already, and is not {away / 'second.zip'}" in err
    (away / "tiny.zip").rename(away / "moved.zip")
    code, _, err = cli(*TINY, "--from", away / "moved.zip")
    assert code == 0, err
    assert at.resolve() == away / "moved.zip", "a link to nothing is replaced"


@pytest.mark.parametrize(("name", "home"), [("imagenet_lt", "imagenet"), ("places_lt", "places365")])
def test_sets_of_several_archives_are_linked_as_their_folder(cli, root, tmp_path, name, home):
    away = tmp_path / "elsewhere"
    away.mkdir()
    if name == "imagenet_lt":
        photo_files.imagenet_tars(away)
    else:
        photo_files.places_tars(away)
    archive = next(away.glob("*train*.tar"))
    words = (
        "datasets",
        "prepare",
        name,
        "--set",
        "imbalance=0.1",
        "--set",
        "resolution=16",
        "--workers",
        "1",
    )
    code, out, err = cli(*words, "--no-checksums", "--from", archive, "--json")
    assert code == 0, err
    assert json.loads(out)["counts"] == [12, 5, 2, 1]
    assert (root / home).resolve() == away
    assert not [path for path in root.iterdir() if path.name not in (home, "prepared")]


def test_a_place_without_the_set_leaves_no_link(cli, root, tmp_path):
    (tmp_path / "wrong").mkdir()
    code, _, err = cli(
        "datasets", "prepare", "imagenet_lt", "--set", "imbalance=0.1", "--from", tmp_path / "wrong"
    )
    assert code == 4
    assert f"--from {tmp_path / 'wrong'}: the data set is not in it: ImageNet was not found" in err
    assert not list(root.iterdir())
    code, _, err = cli(
        "datasets", "prepare", "imagenet_lt", "--set", "imbalance=0.1", "--from", tmp_path / "nowhere"
    )
    assert code == 2
    assert "there is no such file or folder" in err
    assert cli("datasets", "imagenet_lt", "--from", tmp_path)[0] == 2
    assert cli("datasets", "prepare", "digits", "--from", tmp_path)[0] == 2


def test_own_folders_and_sets_that_need_no_preparing_are_linked_too(cli, root, tmp_path):
    for label, name in enumerate(("ant", "bee", "cat")):
        photo_files.folder(
            tmp_path / "mine" / name, {f"{i}.jpg": photo_files.picture(label, i) for i in range(6)}
        )
    words = (
        "datasets",
        "prepare",
        "folder",
        "--set",
        "per_reference=1",
        "--set",
        "per_holdout=1",
        "--workers",
        "1",
    )
    code, _, err = cli(*words, "--from", tmp_path / "mine")
    assert code == 2
    assert "--set folder=NAME" in err
    code, out, err = cli(*words, "--set", "folder=insects", "--from", tmp_path / "mine", "--json")
    assert code == 0, err
    assert (root / "insects").resolve() == tmp_path / "mine"
    assert json.loads(out)["counts"] == [4, 4, 4]


def test_archives_are_compared_with_their_published_sums_once(cli, root, monkeypatch):
    path = root / "tiny-imagenet-200.zip"
    photo_files.zipped(path, photo_files.tiny())
    data = build_dataset({"name": "tiny_imagenet_lt", "imbalance": 0.1})
    assert isinstance(data, Photos)
    md5, (asset,) = hashlib.md5(path.read_bytes()).hexdigest(), data.assets(root)
    known = {"bytes": path.stat().st_size, "md5": md5}
    monkeypatch.setattr(type(data), "assets", lambda self, root: [dataclasses.replace(asset, **known)])
    words = [word for word in TINY if word != "--no-checksums"]
    code, _, err = cli(*words)
    assert code == 0, err
    assert f"checking the md5 of {path}, {path.stat().st_size:,} bytes, once" in err
    assert "checking the md5" not in cli(*words, "--set", "imbalance=0.2")[2]
    os.utime(path, (1, 1))
    known["md5"] = "0" * 32
    code, _, err = cli(*words, "--set", "imbalance=0.3")
    assert code == 4
    assert f"{path}: md5 is {md5}, that of Tiny ImageNet is {'0' * 32}: damaged, or another file" in err
    assert "--no-checksums" in err
    known["bytes"] += 1
    assert "cut short, or another file" in cli(*words, "--set", "imbalance=0.3")[2]
    assert cli(*words, "--set", "imbalance=0.3", "--no-checksums")[0] == 0


def test_cifar_is_linked_where_it_is_read_from(cli, root, tmp_path):
    (tmp_path / "plugins" / "datasets").mkdir(parents=True)
    (tmp_path / "plugins" / "datasets" / "little_cifar.py").write_text(cifar_files.PLUGIN)
    (tmp_path / "away").mkdir()
    (tmp_path / "away" / "c.tar.gz").write_bytes(b"not looked into before it is used")
    words = (
        "datasets",
        "prepare",
        "little_cifar",
        "--plugins",
        tmp_path / "plugins",
        "--set",
        "imbalance=0.5",
    )
    code, _, err = cli(*words, "--from", tmp_path / "away" / "c.tar.gz")
    assert code == 0, err
    assert (root / "little-python.tar.gz").resolve() == tmp_path / "away" / "c.tar.gz"
