"""Images that others made: read in order and whole, or refused with what is wrong; nothing in a file is ever run."""

from __future__ import annotations

import io
import os
import pickle
import re
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ltbench import npz
from ltbench.datasets import Images
from ltbench.errors import UsageError
from ltbench.samples import Target, open_samples, reference_images, write_folder, write_npz

GREY = Target(("zero", "one", "two"), 1, 4)
RGB = Target(("zero", "one", "two"), 3, 4)
RNG = np.random.default_rng(0)
LABELS = np.array([0, 1, 2, 0, 1, 2, 0], dtype=np.int64)


def pictures(n: int = 7, channels: int = 3, side: int = 4) -> np.ndarray:
    return RNG.integers(0, 256, (n, channels, side, side), dtype=np.uint8)


def nhwc(images: np.ndarray) -> np.ndarray:
    return images.transpose(0, 2, 3, 1)


def all_of(samples: Any, size: int = 3) -> np.ndarray:
    return np.concatenate(list(samples.blocks(size)))


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_what_numpy_saved_comes_back_in_order(tmp_path, save):
    images = pictures()
    save(tmp_path / "a.npz", arr_0=nhwc(images), arr_1=LABELS)
    found = open_samples(tmp_path / "a.npz", RGB)
    assert (found.count, found.shape, found.notes) == (7, (3, 4, 4), ())
    for size in (1, 3, 7, 100):
        blocks = list(found.blocks(size))
        assert [len(block) for block in blocks[:-1]] == [size] * (len(blocks) - 1)
        assert np.array_equal(np.concatenate(blocks), images)
    assert np.array_equal(np.concatenate(list(found.blocks(2, first=3))), images[3:])
    assert found.labels is not None
    assert found.labels.tolist() == LABELS.tolist()
    assert found.sha256 == Images(images, LABELS, LABELS).sha256()


@settings(max_examples=30, deadline=None)
@given(n=st.integers(1, 40), size=st.integers(1, 15), first=st.integers(0, 41), seed=st.integers(0, 99))
def test_a_part_of_the_images_is_cut_into_blocks_as_an_array_is(n, size, first, seed):
    rng = np.random.default_rng(seed)
    images, labels, keep = pictures(n), rng.integers(0, 3, n), rng.random(n) < 0.5
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.npz"
        np.savez(path, arr_0=nhwc(images), arr_1=labels)
        part = open_samples(path, RGB).only(keep)
        found = list(part.blocks(size, first))
    wanted = images[keep][first:]
    assert [len(block) for block in found] == [len(wanted[i : i + size]) for i in range(0, len(wanted), size)]
    assert np.array_equal(np.concatenate([wanted[:0], *found]), wanted)
    assert part.labels is not None
    assert part.labels.tolist() == labels[keep].tolist()


def test_what_is_written_numpy_and_adm_read(tmp_path):
    images = pictures(channels=1)
    write_npz(tmp_path / "b.npz", iter(np.array_split(images, 3)), LABELS, (1, 4, 4), 7)
    with np.load(tmp_path / "b.npz", allow_pickle=False) as held:
        assert set(held) == {"arr_0", "arr_1"}
        assert held["arr_0"].dtype == np.uint8
        assert held["arr_0"].shape == (7, 4, 4, 3)
        assert np.array_equal(held["arr_0"], nhwc(images).repeat(3, axis=3))
        assert np.array_equal(held["arr_1"], LABELS)
    assert np.array_equal(all_of(open_samples(tmp_path / "b.npz", GREY)), images)
    again = tmp_path / "c.npz"
    write_npz(again, iter(np.array_split(images, 2)), LABELS, (1, 4, 4), 7)
    assert again.read_bytes() == (tmp_path / "b.npz").read_bytes()
    with pytest.raises(ValueError, match="5 rows were given, 7 were announced"):
        write_npz(tmp_path / "d.npz", iter([images[:5]]), LABELS, (1, 4, 4), 7)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.npz", "c.npz"]


def test_one_set_has_one_sha256_whatever_holds_it(tmp_path):
    images = pictures(channels=1)
    write_npz(tmp_path / "b.npz", iter([images]), LABELS, (1, 4, 4), 7)
    write_folder(tmp_path / "flat", iter([images]), LABELS)
    order = np.argsort(LABELS, kind="stable")
    for k in order:
        folder = tmp_path / "classes" / GREY.classes[LABELS[k]]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(images[k, 0]).save(folder / f"{k:03d}.png")
    npz_, flat, classes = (open_samples(tmp_path / name, GREY) for name in ("b.npz", "flat", "classes"))
    assert npz_.sha256 == flat.sha256
    assert flat.labels is not None
    assert flat.labels.tolist() == LABELS.tolist()
    assert classes.labels is not None
    assert classes.labels.tolist() == LABELS[order].tolist()
    assert np.array_equal(all_of(classes), images[order])
    assert classes.sha256 == Images(images[order], LABELS[order], LABELS).sha256()
    changed = images.copy()
    changed[3, 0, 1, 1] ^= 1
    write_npz(tmp_path / "e.npz", iter([changed]), LABELS, (1, 4, 4), 7)
    write_npz(tmp_path / "f.npz", iter([images]), LABELS[::-1], (1, 4, 4), 7)
    write_npz(tmp_path / "g.npz", iter([images]), None, (1, 4, 4), 7)
    shas = {open_samples(tmp_path / f"{name}.npz", GREY).sha256 for name in "befg"}
    assert len(shas) == 4


def test_colour_and_grey(tmp_path):
    np.savez(tmp_path / "colour.npz", arr_0=nhwc(pictures()))
    with pytest.raises(UsageError, match="is in colour, and the data set is grey"):
        all_of(open_samples(tmp_path / "colour.npz", GREY))
    grey = pictures(channels=1)
    np.savez(tmp_path / "grey.npz", arr_0=nhwc(grey))
    assert np.array_equal(all_of(open_samples(tmp_path / "grey.npz", RGB)), grey.repeat(3, axis=1))


def test_missing_labels_are_said(tmp_path):
    np.savez(tmp_path / "a.npz", arr_0=nhwc(pictures()))
    found = open_samples(tmp_path / "a.npz", RGB)
    assert found.labels is None
    assert "no labels" in found.notes[0]


GOOD = nhwc(pictures())
MALFORMED = {
    "float": ({"arr_0": GOOD / 255.0}, "arr_0 is float64; images are uint8"),
    "signed": ({"arr_0": GOOD.astype(np.int64)}, "arr_0 is int64"),
    "NCHW": ({"arr_0": GOOD.transpose(0, 3, 1, 2)}, r"save arr_0.transpose\(0, 2, 3, 1\)"),
    "flat": ({"arr_0": GOOD.reshape(7, -1)}, r"images are \(n, H, W, 3\)"),
    "four channels": ({"arr_0": np.zeros((7, 4, 4, 4), np.uint8)}, r"images are \(n, H, W, 3\)"),
    "none": ({"arr_0": GOOD[:0]}, r"images are \(n, H, W, 3\)"),
    "no arr_0": ({"images": GOOD}, "has no arr_0; it holds images"),
    "resolution": ({"arr_0": GOOD[:, :3, :3]}, "3 x 3 pixels; the data set has 4 x 4"),
    "not square": ({"arr_0": GOOD[:, :3]}, "4 x 3 pixels"),
    "outside": ({"arr_0": GOOD, "arr_1": LABELS + 1}, r"2 labels are outside .* the first is 3 of image 2"),
    "negative": ({"arr_0": GOOD, "arr_1": LABELS - 1}, "3 labels are outside"),
    "counts": ({"arr_0": GOOD, "arr_1": LABELS[:5]}, "5 labels for the 7 images"),
    "one-hot": ({"arr_0": GOOD, "arr_1": np.eye(3)[LABELS]}, r"save arr_1.argmax\(1\)"),
    "float labels": ({"arr_0": GOOD, "arr_1": LABELS * 1.0}, "labels are whole numbers"),
    "statistics": ({"arr_0": GOOD, "mu": np.zeros(3), "sigma": np.eye(3)}, "give it as --reference"),
    "Fortran": ({"arr_0": np.asfortranarray(GOOD)}, "Fortran order"),
    "single": ({"arr_0": np.uint8(3)}, "single value"),
}


@pytest.mark.parametrize("name", list(MALFORMED))
def test_a_malformed_file_is_refused_with_what_is_wrong(tmp_path, name):
    arrays, said = MALFORMED[name]
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(UsageError) as error:
        all_of(open_samples(tmp_path / "bad.npz", RGB))
    assert str(tmp_path / "bad.npz") in str(error.value)

    assert re.search(said, str(error.value)), str(error.value)


class Bomb:
    """A pickle that leaves a file behind when it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("member", ["arr_0", "arr_1"])
def test_objects_in_a_file_are_not_run(tmp_path, member):
    held = {"arr_0": GOOD, "arr_1": LABELS, member: np.array([Bomb(tmp_path / "ran")] * 7, dtype=object)}
    np.savez(tmp_path / "bad.npz", allow_pickle=True, **held)
    with pytest.raises(UsageError, match=f"{member} holds Python objects"):
        open_samples(tmp_path / "bad.npz", RGB)
    (tmp_path / "raw.npz").write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    with pytest.raises(UsageError, match=r"cannot be read as \.npz"):
        open_samples(tmp_path / "raw.npz", RGB)
    assert not (tmp_path / "ran").exists()


def test_damage_is_noticed(tmp_path):
    path = tmp_path / "a.npz"
    np.savez(path, arr_0=nhwc(pictures(200)))
    data = path.read_bytes()
    flipped = bytearray(data)
    flipped[len(data) // 2] ^= 1
    path.write_bytes(bytes(flipped))
    with pytest.raises(UsageError, match="Bad CRC"):
        all_of(open_samples(path, RGB))
    for cut in (len(data) // 2, 10, 0):
        path.write_bytes(data[:cut])
        with pytest.raises(UsageError, match=r"cannot be read as \.npz"):
            open_samples(path, RGB)


@pytest.mark.parametrize("rows", [5, 9])
def test_a_header_that_promises_other_than_there_is(tmp_path, rows):
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(
        stream, {"descr": "|u1", "fortran_order": False, "shape": (rows, 4, 4, 3)}
    )
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("arr_0.npy", stream.getvalue() + GOOD.tobytes())
    with pytest.raises(UsageError, match=r"more than its header says|ends before"):
        all_of(open_samples(tmp_path / "a.npz", RGB))


def test_large_files_are_read_in_parts(tmp_path):
    """Only the rows that were asked for are in memory: the blocks of a 25 MB array stay below 2 MB."""
    import tracemalloc

    path = tmp_path / "a.npz"
    np.savez(path, arr_0=np.zeros((2000, 64, 64, 3), np.uint8))
    member = npz.members(path)["arr_0"]
    tracemalloc.start()
    for block in member.blocks(50):
        assert len(block) == 50
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 2 << 20


# --- folders --------------------------------------------------------------------------------------------------------


def save(path: Path, mode: str = "RGB", side: int = 4, **more: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (side, side)).save(path, **more)


def refused(path: Path, said: str, target: Target = RGB) -> None:
    with pytest.raises(UsageError, match=said):
        all_of(open_samples(path, target))


def test_malformed_folders_are_refused(tmp_path):
    refused(tmp_path / "nowhere", "there is no")
    (tmp_path / "empty").mkdir()
    refused(tmp_path / "empty", "holds no image")
    save(tmp_path / "mixed" / "a.png")
    save(tmp_path / "mixed" / "0" / "a.png")
    refused(tmp_path / "mixed", "images beside folders")
    save(tmp_path / "unknown" / "seven" / "a.png")
    refused(tmp_path / "unknown", "name no class: seven")
    save(tmp_path / "twice" / "1" / "a.png")
    save(tmp_path / "twice" / "one" / "a.png")
    refused(tmp_path / "twice", "1 and one are the same class")
    save(tmp_path / "deep" / "1" / "more" / "a.png")
    refused(tmp_path / "deep", "holds folders: more")
    save(tmp_path / "text" / "a.png")
    (tmp_path / "text" / "notes.txt").write_text("x")
    refused(tmp_path / "text", "no images: notes.txt")
    (tmp_path / "weights.pt").write_bytes(b"")
    refused(tmp_path / "weights.pt", "no .npz file and no folder")


def test_malformed_images_are_refused(tmp_path):
    for name, mode, said in (
        ("alpha", "RGBA", "mode RGBA"),
        ("deep", "I;16", "mode I;16"),
        ("large", "RGB", "has of|5 x 5 pixels"),
    ):
        save(tmp_path / name / "a.png", mode, 5 if name == "large" else 4)
        refused(tmp_path / name, said)
    save(tmp_path / "cut" / "a.png")
    save(tmp_path / "cut" / "b.png")
    data = (tmp_path / "cut" / "b.png").read_bytes()
    (tmp_path / "cut" / "b.png").write_bytes(data[: len(data) - 24])
    refused(tmp_path / "cut", "b.png cannot be read as an image")
    (tmp_path / "cut" / "b.png").write_bytes(b"GIF89a")
    refused(tmp_path / "cut", "b.png cannot be read as an image")


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        ("a.png,0\n", "b.png without a label"),
        ("a.png,0\nb.png,1\nc.png,1\n", "c.png not in the folder"),
        ("a.png,0\nb.png,1\na.png,1\n", "a.png named more than once"),
        ("a.png,0\nb.png,7\n", "the first is '7' of b.png"),
        ("a.png,0\nb.png\n", "is not file,label"),
    ],
)
def test_malformed_labels_are_refused(tmp_path, lines, said):
    for name in ("a.png", "b.png"):
        save(tmp_path / "f" / name)
    (tmp_path / "f" / "labels.csv").write_text(lines)
    refused(tmp_path / "f", said)


def test_lossy_images_are_taken_and_said(tmp_path):
    save(tmp_path / "f" / "a.jpg")
    save(tmp_path / "f" / "b.png")
    found = open_samples(tmp_path / "f", RGB)
    assert found.count == 2
    assert any("1 images are JPEG" in note for note in found.notes)


def test_a_folder_that_is_there_is_not_written_over(tmp_path):
    (tmp_path / "f").mkdir()
    with pytest.raises(UsageError, match="exists"):
        write_folder(tmp_path / "f", iter([pictures()]), LABELS)
    assert list((tmp_path / "f").iterdir()) == []


def test_a_reference_may_have_images_or_none(tmp_path):
    np.savez(tmp_path / "s.npz", mu=np.zeros(3), sigma=np.eye(3))
    assert reference_images(tmp_path / "s.npz", RGB) is None
    np.savez(tmp_path / "t.npz", mu=np.zeros(3), sigma=np.eye(3), arr_0=GOOD)
    found = reference_images(tmp_path / "t.npz", RGB)
    assert found is not None
    assert found.count == 7
