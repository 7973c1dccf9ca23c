"""Preparing: killed and resumed it loses nothing and gives the same bytes; what cannot be used is named; nothing is read that need not be."""

from __future__ import annotations

import errno
import json
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from ltbench import files
from ltbench.datasets import build_dataset
from ltbench.datasets import prepare as making
from ltbench.datasets.photos import Photos
from ltbench.datasets.prepare import NotUsable, prepare
from ltbench.datasets.prepared import verify
from ltbench.datasets.streamed import Streamed
from ltbench.errors import EnvironmentProblem, UsageError
from tests import cli_world, killing, photo_files
from tests.file_server import Behaviour, serving
from tests.test_photos import root as root

cli, here = cli_world.cli, cli_world.here  # fixtures


def built(**more) -> Photos:
    found = build_dataset({"name": "tiny_imagenet_lt", "imbalance": 0.1, "resolution": 32, **more})
    assert isinstance(found, Photos)
    return found


@pytest.fixture
def tiny(root, monkeypatch) -> Path:
    """The zip, and blocks of two images."""
    photo_files.zipped(root / "tiny-imagenet-200.zip", photo_files.tiny())
    monkeypatch.setattr(making, "BLOCK_BYTES", 2 * 3 * 32 * 32)
    return root


def content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def test_prepared_images_are_those_of_the_files_and_mapped(tiny):
    data = built()
    looked = data.look()["train"]
    expected = Streamed(looked, data.decoder)[:]
    seen = []
    made = prepare(data, workers=1, progress=lambda done, total: seen.append((done, total)))
    assert seen[0] == (0, 20)
    assert seen[-1] == (20, 20)
    train = built().train()
    assert (train.images == expected).all()
    assert isinstance(train.images, np.memmap)
    tensor = torch.from_numpy(train.images)  # warnings are errors: it is writable, and not a copy
    assert tensor.data_ptr() == train.images.ctypes.data
    tensor[0] = 7
    assert (built().train().images == expected).all(), "what is written never reaches the file"
    assert sorted(path.name for path in made["train"].iterdir()) == [
        "images.npy",
        "index.npy",
        "labels.npy",
        "manifest.json",
    ]
    manifest = json.loads((made["train"] / "manifest.json").read_text())
    assert manifest["counts"] == [12, 5, 2, 1]
    assert {"pillow", "jpeg", "numpy"} <= set(manifest["versions"])
    assert manifest["decoder"]["square"] == "squash"
    assert str(tiny / "tiny-imagenet-200.zip") in json.dumps(manifest["places"])


def test_the_hash_is_taken_from_the_manifest_and_is_the_images_own(tiny, monkeypatch):
    prepare(built(), workers=1)
    train = built().train()
    told = train.sha256()
    assert type(train)(np.array(train.images), train.labels, train.index).sha256() == told
    monkeypatch.setattr(np, "ascontiguousarray", lambda *a: pytest.fail("the pixels were read"))
    assert built().sha256() == told


def test_a_balanced_set_is_decoded_on_demand_and_its_pixels_on_request(tiny):
    prepare(built(), workers=1)
    reference = built().reference()
    assert isinstance(reference.images, Streamed)
    assert reference.images.shape == (48, 3, 32, 32)
    streamed = np.asarray(reference.images)
    assert (reference.images[5:9] == streamed[5:9]).all()
    assert (reference.images[np.array([40, 3])] == streamed[[40, 3]]).all()
    assert (reference.images[7] == streamed[7]).all()
    made = prepare(built(), pixels=("train", "reference"), workers=1)
    assert made["reference"].name == "reference.pixels"
    mapped = built().reference()
    assert isinstance(mapped.images, np.memmap)
    assert (mapped.images == streamed).all()
    assert prepare(built(), workers=1)["reference"] == made["reference"], "pixels serve who asks for less"
    with pytest.raises(UsageError, match="there is no part test"):
        prepare(built(), pixels=("test",))


def test_two_processes_give_the_bytes_of_one(tiny):
    one = content(prepare(built(), workers=1)["train"])
    files.remove_tree(prepare(built(), workers=1)["train"])
    assert content(prepare(built(), workers=2)["train"]) == one


def test_killed_again_and_again_it_ends_with_the_same_bytes(tiny, tmp_path):
    folder = prepare(built(), workers=1)["train"]
    expected, home = content(folder), folder.parent
    files.remove_tree(home)

    def work() -> None:
        prepare(built(), workers=1)

    calls = killing.count_calls(work, tmp_path / "calls")
    files.remove_tree(home)
    chance = random.Random(0)
    for number in sorted(chance.sample(range(1, calls), 6)):

        def mortal(number: int = number) -> None:
            with killing.dying_in_write(number):
                work()

        killing.attempt(mortal, tmp_path / "log")
    assert killing.attempt(work, tmp_path / "log")
    assert content(folder) == expected
    assert not [path for path in home.iterdir() if path.name.startswith(".making")]


def test_a_restart_decodes_only_what_is_missing(tiny, monkeypatch):
    path = tiny / "tiny-imagenet-200.zip"
    path.unlink()
    photo_files.folder(tiny, photo_files.tiny())
    broken = sorted(tiny.glob("*/train/*/images/*_7.JPEG"))[:1]
    good = broken[0].read_bytes()
    broken[0].write_bytes(good[:100] + b"\0" * (len(good) - 100))
    with pytest.raises(NotUsable, match="1 image cannot be used") as caught:
        prepare(built(), workers=1)
    assert f"{broken[0]}: not a usable image" in caught.value.message
    assert "the others are done" in str(caught.value.hint)
    broken[0].write_bytes(good)
    decoded, told, block = [], [], making.decode_block
    monkeypatch.setattr(making, "decode_block", lambda *job: decoded.append(job) or block(*job))
    prepare(built(), workers=1, notice=told.append)
    assert len(decoded) == 1
    assert any("9 of 10 blocks are there" in line for line in told)
    assert (photo_files.marks(built().train().images)[:, 0] == built().train().labels).all()


def test_a_block_whose_bytes_were_lost_is_decoded_again(tiny, monkeypatch):
    expected = content(prepare(built(), workers=1)["train"])
    files.remove_tree(prepare(built(), workers=1)["train"])
    with monkeypatch.context() as patch:
        patch.setattr(making, "_sha256", lambda *args: (_ for _ in ()).throw(KeyboardInterrupt))
        with pytest.raises(KeyboardInterrupt):
            prepare(built(), workers=1)
    home = built().place.folder()
    assert home is not None
    half = home / ".making-train.pixels" / "images.npy"
    data = bytearray(half.read_bytes())
    data[-10] ^= 1
    half.write_bytes(bytes(data))
    assert content(prepare(built(), workers=1)["train"]) == expected


def test_a_full_disk_is_told_before_decoding_and_what_is_done_is_kept(tiny, monkeypatch):
    def full(*args):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(making.os, "posix_fallocate", full)
        with pytest.raises(files.StorageProblem, match=r"images\.npy: No space left .*61,440 bytes needed"):
            prepare(built(), workers=1)
    prepare(built(), workers=1)
    assert built().missing() is None


def test_damage_is_found_and_named(tiny):
    made = prepare(built(), workers=1)
    told = []
    assert prepare(built(), workers=1, notice=told.append) == made
    assert "checking every byte" in told[0]
    assert len(told) == 2, "and nothing was made"
    path = made["train"] / "images.npy"
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(bytes(data))
    with pytest.raises(EnvironmentProblem, match=r"images\.npy: prepared data is damaged: sha256"):
        prepare(built(), workers=1)
    path.write_bytes(bytes(data[:-1]))
    with pytest.raises(EnvironmentProblem, match=r"images\.npy: prepared data is damaged: has 61,567 bytes"):
        built().train()
    (made["train"] / "manifest.json").write_text("{")
    with pytest.raises(EnvironmentProblem, match="prepared data is damaged"):
        built().train()
    verify(made["reference"])


def test_a_source_that_moved_is_named_when_it_is_needed(tiny):
    prepare(built(), workers=1)
    path = tiny / "tiny-imagenet-200.zip"
    path.rename(tiny / "elsewhere.zip")
    assert len(built().train()) == 20
    with pytest.raises(EnvironmentProblem, match=r"tiny-imagenet-200\.zip: is not there any more"):
        built().reference()
    path.write_bytes(b"another")
    with pytest.raises(EnvironmentProblem, match="has 7 bytes"):
        built().reference()
    path.unlink()
    photo_files.folder(tiny, photo_files.tiny())
    prepare(built(), workers=1)
    assert len(built().reference().images[:]) == 48


def test_a_users_folder_is_prepared_whole_and_again_when_it_changes(root):
    for label, name in enumerate(("ant", "bee", "cat")):
        images = {f"{i}.jpg": photo_files.picture(label, i) for i in range(6 - label)}
        photo_files.folder(root / "mine" / name, images)
    settings = {"name": "folder", "folder": "mine", "resolution": 16, "per_reference": 1, "per_holdout": 1}
    sums = [part.sha256() for part in _parts(_photos(settings))]
    prepare(_photos(settings), workers=1)
    (root / "mine").rename(root / "aside")
    data = _photos(settings)
    assert data.missing() is None
    assert (data.counts(), data.classes) == ([4, 3, 2], ("ant", "bee", "cat"))
    assert [part.sha256() for part in _parts(data)] == sums
    assert isinstance(data.reference().images, np.memmap), "a small set is decoded whole"
    (root / "aside").rename(root / "mine")
    (root / "mine" / "cat" / "9.jpg").write_bytes(photo_files.picture(2, 9))
    told = []
    prepare(_photos(settings), workers=1, notice=told.append)
    assert any("its source has other images now, or lies elsewhere" in line for line in told)
    assert _photos(settings).counts() == [4, 3, 3]


def _photos(settings) -> Photos:
    found = build_dataset(settings)
    assert isinstance(found, Photos)
    return found


def _parts(data: Photos):
    return data.train(), data.reference(), data.holdout()


def test_one_process_prepares_a_set(tiny):
    home = built().place.folder()
    assert home is not None
    home.mkdir(parents=True)
    with making._alone(home), pytest.raises(EnvironmentProblem, match="another process is preparing"):
        prepare(built(), workers=1)


def test_from_the_command_line_with_a_download(cli, root, monkeypatch):
    photo_files.zipped(root / "served.zip", photo_files.tiny())
    data = (root / "served.zip").read_bytes()
    plugin = type(built())
    words = ("datasets", "prepare", "tiny_imagenet_lt", "--set", "imbalance=0.1", "--workers", "1")
    monkeypatch.delenv("LTBENCH_DATA")
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    code, _, err = cli(*words)
    assert code == 4
    assert "give --root DIR" in err
    with serving(Behaviour(data)) as url:
        known = plugin.assets(built(), root)[0]
        asset = type(known)(known.name, url, known.place, known.licence, len(data))
        monkeypatch.setattr(plugin, "assets", lambda self, root: [asset])
        code, _, err = cli(*words, "--root", str(root))
        assert code == 4
        assert f"{len(data):,} bytes, from {url}" in err
        code, out, err = cli(*words, "--root", str(root), "--download", "--json")
    assert code == 0, err
    assert "checksum not known" in err
    assert ", sha256 " in err
    assert json.loads(out)["counts"] == [12, 5, 2, 1]
    monkeypatch.setenv("LTBENCH_DATA", str(root))
    code, out, err = cli("datasets", "tiny_imagenet_lt", "--set", "imbalance=0.1", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["missing"] is None
    assert {part: state["form"] for part, state in found["data"]["prepared"].items()} == {
        "train": "pixels",
        "reference": "files",
        "holdout": "files",
    }
    assert cli("datasets", "prepare")[0] == 2
    assert cli("datasets", "digits", "--download")[0] == 2


def test_what_needs_no_preparing_says_so(cli, monkeypatch):
    code, out, err = cli("datasets", "prepare", "digits")
    assert code == 0
    assert "needs no preparing" in err
    assert "training images in 10 classes" in out
