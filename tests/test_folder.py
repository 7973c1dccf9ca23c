"""A user's own images: a folder per class, natural or imposed imbalance, balanced parts held out."""

from __future__ import annotations

import os

import numpy as np
import pytest
from PIL import Image

from ltbench.datasets import build_dataset
from ltbench.datasets.decode import Decoder, centre_crop
from ltbench.datasets.longtail import profile
from ltbench.errors import EnvironmentProblem, LtbenchError, UsageError
from tests import cli_world

cli, here = cli_world.cli, cli_world.here  # fixtures
SIZES = {"ant": 9, "bee": 20, "cat": 6, "dog": 13}


@pytest.fixture
def root(tmp_path, monkeypatch):
    """Four classes of 8x8 pictures that say their class and their place in it."""
    for c, (name, size) in enumerate(SIZES.items()):
        folder = tmp_path / "mine" / name
        folder.mkdir(parents=True)
        for i in range(size):
            pixels = np.random.default_rng(100 * c + i).integers(0, 256, (8, 8, 3), np.uint8)
            pixels[0, 0] = (c, i, 7)
            Image.fromarray(pixels).save(folder / f"{i:03d}.png")
    monkeypatch.setenv("LTBENCH_DATA", str(tmp_path))
    return tmp_path / "mine"


def built(**more):
    return build_dataset(
        {"name": "folder", "folder": "mine", "resolution": 8, "per_reference": 3, "per_holdout": 2, **more}
    )


@pytest.mark.parametrize("imbalance", [None, 0.2])
def test_parts_are_disjoint_and_say_where_their_images_lie(root, imbalance):
    data = built(imbalance=imbalance)
    assert data.missing() is None
    assert data.classes == tuple(SIZES)
    pool = [size - 5 for size in SIZES.values()]
    expected = pool if imbalance is None else profile(sum(pool) / 4, 4, 0.2, pool)
    assert data.counts() == expected
    parts = (data.train(), data.reference(), data.holdout())
    starts = np.cumsum([0, *SIZES.values()])
    for part, sizes in zip(parts, (expected, [3] * 4, [2] * 4), strict=True):
        assert np.bincount(part.labels).tolist() == sizes
        assert (np.diff(part.labels) >= 0).all()
        marks = part.images[:, :2, 0, 0].astype(int)
        assert (marks[:, 0] == part.labels).all()
        assert (starts[part.labels] + marks[:, 1] == part.index).all()
    used = np.concatenate([part.index for part in parts])
    assert len(set(used)) == len(used)
    again = built(imbalance=imbalance)
    assert [part.sha256() for part in (again.train(), again.reference())] == [p.sha256() for p in parts[:2]]


def test_an_imposed_imbalance_holds_out_the_same_images_and_trains_on_fewer(root):
    natural, imposed = built(), built(imbalance=0.2)
    assert natural.reference().sha256() == imposed.reference().sha256()
    assert natural.holdout().sha256() == imposed.holdout().sha256()
    assert set(imposed.train().index) < set(natural.train().index)


def test_grey_files_in_inner_folders_and_what_is_no_image(root):
    (root / "ant" / "images").mkdir()
    (root / "ant" / "000.png").rename(root / "ant" / "images" / "000.PNG")
    (root / "ant" / "notes.txt").write_text("boxes")
    (root / "ant" / ".000.png").write_bytes(b"a thumbnail")
    (root / ".git").mkdir()
    data = built(color="grey")
    assert data.counts()[0] == SIZES["ant"] - 5
    assert data.train().images.shape[1:] == (1, 8, 8)
    assert data.reference_id != built().reference_id


def test_the_crop_is_the_middle_at_the_asked_size(tmp_path):
    picture = Image.new("RGB", (40, 16), "red")
    picture.paste((0, 0, 255), (12, 0, 28, 16))
    assert (np.asarray(centre_crop(picture, 16)) == (0, 0, 255)).all()
    noise = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    halves = noise.reshape(8, 2, 8, 2, 3).mean(axis=(1, 3))
    made = np.asarray(centre_crop(Image.fromarray(noise), 8)).astype(float)
    assert np.abs(made - halves).max() <= 1, "Pillow rounds after each of the two axes"
    assert centre_crop(picture.crop((0, 0, 5, 7)), 8).size == (8, 8), "smaller ones are enlarged"


def test_transparency_lies_on_white_and_photographs_stand_upright(tmp_path):
    clear = Image.new("RGBA", (4, 4), (0, 0, 0, 0))
    clear.putpixel((0, 0), (9, 8, 7, 255))
    clear.save(tmp_path / "clear.png")
    photo = Image.new("RGB", (4, 4))
    photo.putpixel((0, 0), (255, 255, 255))
    exif = photo.getexif()
    exif[0x0112] = 3  # turned by 180 degrees
    photo.save(tmp_path / "turned.png", exif=exif)
    decoder = Decoder(4, upright=True, white=True)
    first, second = (decoder((tmp_path / name).read_bytes(), name) for name in ("clear.png", "turned.png"))
    assert first[:, 0, 0].tolist() == [9, 8, 7]
    assert (first[:, 1:] == 255).all()
    assert second[0, 3, 3] == 255
    assert second[0, 0, 0] == 0


def _deep(path):
    Image.fromarray(np.full((8, 8), 40_000, np.uint16)).save(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:60]), "not a usable image"),
        (lambda path: path.write_bytes(b""), "not a usable image: of no known format"),
        (lambda path: path.write_text("<html>"), "not a usable image: of no known format"),
        (_deep, "more than 8 bits per channel"),
    ],
)
def test_a_corrupt_image_is_named_with_a_remedy(root, change, message):
    path = root / "cat" / "003.png"
    change(path)
    data = built()
    with pytest.raises(EnvironmentProblem) as caught:
        [part() for part in (data.train, data.reference, data.holdout)]
    assert str(path) in caught.value.message
    assert message in caught.value.message
    assert "replace it" in str(caught.value.hint)


def test_a_class_with_too_few_images_is_named(root):
    data = built(per_reference=6)
    assert "hold 8 of each class out and train on one (cat: 6)" in str(data.missing())
    for path in (root / "bee").iterdir():
        path.unlink()
    assert "no image in bee" in str(built().missing())
    with pytest.raises(EnvironmentProblem, match="no image in bee"):
        built().train()
    for name in ("bee", "cat"):
        (root / name).rename(root.parent / name)
    assert "holds 2 class folders (ant, dog)" in str(built().missing())
    assert "no such folder" in str(built(folder="other").missing())


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"folder": "/data/mine"}, "a name under LTBENCH_DATA"),
        ({"folder": "../mine"}, "a name under LTBENCH_DATA"),
        ({"resolution": 0}, "resolution is 0"),
        ({"per_holdout": 0}, "per_holdout is 0"),
        ({"imbalance": 1.5}, "imbalance is 1.5; allowed: null"),
        ({"color": "cmyk"}, "color is 'cmyk'; allowed: 'rgb', 'grey'"),
    ],
)
def test_a_bad_setting_is_refused(more, message):
    with pytest.raises(UsageError, match=message):
        built(**more)


def test_an_imposed_imbalance_that_empties_a_class_is_explained(root):
    with pytest.raises(LtbenchError, match="leaves 1 of 4 classes without a training image"):
        built(imbalance=0.1).counts()


def test_from_the_command_line(cli, root, monkeypatch):
    words = (
        "datasets",
        "folder",
        "--set",
        "folder=mine",
        "--set",
        "per_reference=3",
        "--set",
        "per_holdout=2",
    )
    code, out, err = cli(*words)
    assert code == 0, err
    assert "12 balanced real images to compare with" in out
    code, _, err = cli("datasets", "folder")
    assert code == 4
    assert "no folder is named" in err
    monkeypatch.delenv("LTBENCH_DATA")
    assert "LTBENCH_DATA is not set" in cli(*words)[2]
    assert os.environ.get("LTBENCH_DATA") is None
    assert cli("datasets", "--no-import")[0] == 0
