"""Data sets: the contract over every file in datasets/, the embedded cut, the full set's files, the pictures."""

from __future__ import annotations

import gzip
import hashlib
import importlib
import importlib.util
import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import ltbench.datasets
from ltbench import plugins
from ltbench.datasets import Dataset, Images, build_dataset
from ltbench.datasets.idx import read_idx
from ltbench.datasets.summary import summary, tail_picture
from ltbench.errors import EnvironmentProblem, LtbenchError, UsageError
from ltbench.tiles import grid_png, read_grid

fashion = importlib.import_module("ltbench.datasets.fashion_mnist")
digits = importlib.import_module("ltbench.datasets.digits")
ROOT = Path(ltbench.datasets.__file__).parents[2]


def _script(name: str):
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


# --- the contract, for every data set file -------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(plugins.find("datasets")))
def test_contract(name):
    data = build_dataset({"name": name})
    if (reason := data.missing()) is not None:
        pytest.skip(f"{name}: {reason}")
    counts, classes = data.counts(), len(data.classes)
    train, reference, holdout = data.train(), data.reference(), data.holdout()
    assert len(counts) == classes
    assert np.bincount(train.labels, minlength=classes).tolist() == counts
    assert (np.diff(train.labels) >= 0).all(), "class after class"
    for part in (train, reference, holdout):
        assert part.images.shape[1:] == (data.channels, data.resolution, data.resolution)
        assert part.images.flags.c_contiguous
        assert part.images.flags.writeable, "torch warns about read-only arrays"
    for part in (reference, holdout):
        sizes = np.bincount(part.labels, minlength=classes)
        assert (sizes == sizes[0]).all()
        assert sizes[0] > 0
    sets = [{image.tobytes() for image in part.images} for part in (train, reference, holdout)]
    if ":train-" in data.reference_id:
        assert sets[0] <= sets[1], "the balanced training split; its holdout is another split, as published"
    else:
        assert not sets[0] & sets[2]
        assert not sets[1] & sets[2]
        assert not sets[0] & sets[1]
    assert data.sha256() == build_dataset({"name": name}).sha256()


@pytest.mark.parametrize("name", ["fashion_mnist", "digits"])
def test_another_cut_has_another_digest(name):
    made = [
        build_dataset({"name": name, **other}).sha256()
        for other in ({}, {"imbalance": 0.0098}, {"resolution": 16})
    ]
    assert len(set(made)) == 3


def test_labels_that_do_not_match_their_images_are_refused():
    images, labels = np.zeros((3, 1, 4, 4), np.uint8), np.zeros(3, np.int64)
    Images(images, labels, labels)
    with pytest.raises(ValueError, match=r"labels must be \(3,\) int64 beside 3 images"):
        Images(images, labels[:2], labels)
    with pytest.raises(ValueError, match="uint8"):
        Images(images.astype(np.float32), labels, labels)


def test_a_file_dropped_into_a_plugin_folder_is_a_data_set(tmp_path):
    """In a process of its own: LTBENCH_PLUGINS is read when ltbench.datasets is imported."""
    (tmp_path / "datasets").mkdir()
    (tmp_path / "datasets" / "mine.py").write_text(
        "from ltbench.datasets import Dataset\n"
        "class Mine(Dataset):\n"
        "    def __init__(self, *, size: int = 3) -> None:\n        self.size = size\n"
        "    classes = ('a',)\n    reference_id = 'mine'\n"
        "    def counts(self):\n        return [self.size]\n"
        "    def train(self): ...\n    def reference(self): ...\n    def holdout(self): ...\n"
    )
    code = (
        "import pickle, sys\n"
        "from ltbench.datasets import build_dataset\n"
        "data = build_dataset({'name': 'mine', 'size': 5})\n"
        "assert pickle.loads(pickle.dumps(data)).counts() == [5] and type(data).__module__ == 'ltbench.datasets.mine'\n"
        "assert 'torch' not in sys.modules\n"
    )
    env = {**os.environ, "LTBENCH_PLUGINS": str(tmp_path)}
    subprocess.run([sys.executable, "-c", code], check=True, env=env, cwd=ROOT)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "fashion_mnst"}, "did you mean 'fashion_mnist'"),
        ({"name": "fashion_mnist", "imbalanc": 0.1}, "no parameter imbalanc; it takes source=embedded"),
        ({"name": "fashion_mnist", "resolution": 64}, "resolution is 64; allowed: 32, 28, 16"),
        ({"name": "fashion_mnist", "source": "web"}, "source is 'web'; allowed: 'embedded', 'full'"),
        ({"name": "fashion_mnist", "imbalance": 0.02}, "source: full"),
        ({"name": "fashion_mnist", "imbalance": 0}, "allowed: above 0"),
        ({"name": "fashion_mnist", "imbalance": 0.0001}, "Sneaker: 0.774, Bag: 0.278, Ankle boot: 0.1"),
        ({"name": "fashion_mnist", "imbalance": 0.0001}, "use imbalance 0.001 or more"),
        ({"name": "fashion_mnist", "source": "full", "imbalance": 0.0001}, "use imbalance 0.000167 or more"),
        ({"name": "digits", "imbalance": 0.009}, "use imbalance 0.00962 or more"),
        ({"name": "digits", "resolution": 28}, "resolution is 28; allowed: 8, 16, 32"),
    ],
)
def test_a_bad_setting_is_refused_before_any_data_is_read(settings, message, monkeypatch):
    monkeypatch.setattr(np, "load", lambda *a, **k: pytest.fail("data was read"))
    with pytest.raises(UsageError) as caught:
        build_dataset(settings)
    assert message in str(caught.value)


# --- Fashion-MNIST, embedded ---------------------------------------------------------------------------------------


def test_embedded_cut():
    data = build_dataset({"name": "fashion_mnist"})
    assert data.counts() == [1000, 599, 359, 215, 129, 77, 46, 27, 16, 10]
    assert len(data.train()) == 2478
    assert (len(data.reference()), len(data.holdout())) == (2000, 500)
    asset = ltbench.datasets.ASSETS / "fashion-mnist-lt.npz"
    assert hashlib.sha256(asset.read_bytes()).hexdigest() == fashion.EMBEDDED_SHA256
    assert asset.stat().st_size < 2_500_000
    notice = (asset.parent / "NOTICE.md").read_text()
    assert "Copyright (c) 2017 Zalando SE" in notice
    assert "THE SOFTWARE IS PROVIDED" in notice
    assert not set(data.reference().index) & set(data.holdout().index)


def test_a_smaller_imbalance_is_a_nested_subset():
    large, small = (build_dataset({"name": "fashion_mnist", "imbalance": r}).train() for r in (0.01, 0.002))
    for c in range(10):
        inside, outside = small.index[small.labels == c], large.index[large.labels == c]
        assert inside.tolist() == outside[: len(inside)].tolist()
    assert len(small) < len(large)


def test_damaged_or_absent_embedded_data_is_an_error(tmp_path, monkeypatch):
    original = (ltbench.datasets.ASSETS / "fashion-mnist-lt.npz").read_bytes()
    monkeypatch.setattr(ltbench.datasets, "ASSETS", tmp_path)
    with pytest.raises(EnvironmentProblem, match="cannot read the embedded data"):
        build_dataset({"name": "fashion_mnist"}).train()
    flipped = bytearray(original)
    flipped[len(flipped) // 2] ^= 1
    (tmp_path / "fashion-mnist-lt.npz").write_bytes(flipped)
    with pytest.raises(EnvironmentProblem, match="the file is damaged"):
        build_dataset({"name": "fashion_mnist"}).train()


def test_resolutions():
    native, padded, small = (
        build_dataset({"name": "fashion_mnist", "resolution": r, "imbalance": 0.001}).train().images
        for r in (28, 32, 16)
    )
    assert (padded[:, :, 2:30, 2:30] == native).all()
    assert padded.astype(int).sum() == native.astype(int).sum()
    for image, big in zip(small[:20, 0], padded[:20, 0], strict=True):
        for y in range(16):
            for x in range(16):
                mean = big[2 * y : 2 * y + 2, 2 * x : 2 * x + 2].astype(float).mean()
                assert image[y, x] == int(mean + 0.5)


# --- Fashion-MNIST, full -------------------------------------------------------------------------------------------


def _idx(array: np.ndarray) -> bytes:
    return (
        bytes((0, 0, 8, array.ndim)) + b"".join(n.to_bytes(4, "big") for n in array.shape) + array.tobytes()
    )


@pytest.fixture(scope="module")
def marked(tmp_path_factory):
    """A stand-in for the full set whose pixels say which image they are: [label, position's two bytes]."""
    root = tmp_path_factory.mktemp("data")
    folder = root / "fashion-mnist"
    folder.mkdir()
    for split, per_class in (("train", 6000), ("t10k", 1000)):
        labels = np.random.RandomState(per_class).permutation(
            np.repeat(np.arange(10, dtype=np.uint8), per_class)
        )
        images = np.zeros((len(labels), 28, 28), np.uint8)
        position = np.arange(len(labels))
        images[:, 0, 0], images[:, 0, 1], images[:, 0, 2] = labels, position // 256, position % 256
        (folder / f"{split}-images-idx3-ubyte").write_bytes(_idx(images))
        (folder / f"{split}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(_idx(labels), 1))
    return root


@pytest.fixture
def full(marked, monkeypatch):
    monkeypatch.setenv("LTBENCH_DATA", str(marked))
    monkeypatch.setattr(fashion, "SYSTEM_FOLDER", "/nonexistent")


@pytest.mark.usefixtures("full")
def test_full_set_keeps_pixels_labels_and_positions_together():
    data = build_dataset({"name": "fashion_mnist", "source": "full", "imbalance": 0.1, "resolution": 28})
    assert data.missing() is None
    assert data.counts()[0] == 6000
    assert data.counts()[-1] == 600
    for part in (data.train(), data.reference(), data.holdout()):
        marks = part.images[:, 0, 0, :3].astype(int)
        assert (marks[:, 0] == part.labels).all()
        assert (marks[:, 1] * 256 + marks[:, 2] == part.index).all()
    assert np.bincount(data.train().labels).tolist() == data.counts()
    assert np.bincount(data.reference().labels).tolist() == [900] * 10
    assert np.bincount(data.holdout().labels).tolist() == [100] * 10
    assert len(set(data.reference().index) | set(data.holdout().index)) == 10_000


@pytest.mark.usefixtures("full")
def test_embedded_and_full_select_alike(tmp_path):
    """The cut of a source is the beginning of what the full data set selects from it, at the same imbalance."""
    arrays = _script("cut_fashion_mnist").make_cut()
    data = build_dataset({"name": "fashion_mnist", "source": "full", "resolution": 28})
    for c in range(10):
        cut = arrays["train_index"][arrays["train_labels"] == c]
        assert cut.tolist() == data.train().index[data.train().labels == c][: len(cut)].tolist()
    assert set(arrays["reference_index"]) <= set(data.reference().index)
    assert set(arrays["holdout_index"]) <= set(data.holdout().index)


def _damage(folder: Path, name: str, change) -> None:
    path = folder / name
    path.write_bytes(change(path.read_bytes()))


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        (
            "train-images-idx3-ubyte",
            lambda b: b[:-1],
            "its header says (60000, 28, 28), 47040016 bytes in all",
        ),
        ("train-images-idx3-ubyte", lambda b: b[:9], "ends inside its header (9 of 16 bytes)"),
        ("train-images-idx3-ubyte", lambda b: b"", "magic number is absent"),
        (
            "train-images-idx3-ubyte",
            lambda b: b"\x00\x00\x0d\x03" + b[4:],
            "magic number is 00000d03, expected 00000803",
        ),
        ("train-labels-idx1-ubyte.gz", lambda b: b[:-20], "does not decompress"),
        ("train-labels-idx1-ubyte.gz", lambda b: b"no gzip at all", "does not decompress"),
        ("train-labels-idx1-ubyte.gz", lambda b: b[:40] + bytes(60) + b[100:], "does not decompress"),
        (
            "train-labels-idx1-ubyte.gz",
            lambda b: gzip.compress(_idx(np.zeros(60_000, np.uint8)), 1),
            "images per label are [60000, 0",
        ),
        (
            "train-images-idx3-ubyte",
            lambda b: _idx(np.zeros((5, 28, 28), np.uint8)),
            "expected (60000, 28, 28)",
        ),
    ],
)
def test_a_damaged_file_is_named_with_a_remedy(marked, tmp_path, monkeypatch, name, change, message):
    folder = tmp_path / "fashion-mnist"
    folder.mkdir()
    for path in (marked / "fashion-mnist").iterdir():
        if path.name == name:
            (folder / name).write_bytes(change(path.read_bytes()))
        else:
            (folder / path.name).symlink_to(path)
    monkeypatch.setenv("LTBENCH_DATA", str(tmp_path))
    with pytest.raises(EnvironmentProblem) as caught:
        build_dataset({"name": "fashion_mnist", "source": "full"}).train()
    assert str(folder / name) in caught.value.message
    assert message in caught.value.message
    assert caught.value.hint is not None
    assert "replace it" in caught.value.hint


def test_absent_files_say_where_was_looked_and_what_to_do(tmp_path, monkeypatch):
    monkeypatch.setenv("LTBENCH_DATA", str(tmp_path))
    monkeypatch.setattr(fashion, "SYSTEM_FOLDER", "/nonexistent/fashion-mnist")
    (tmp_path / "fashion-mnist").mkdir()
    (tmp_path / "fashion-mnist" / "train-images-idx3-ubyte").write_bytes(b"")
    data = build_dataset({"name": "fashion_mnist", "source": "full"})
    reason = data.missing()
    assert reason is not None
    for part in (
        "/nonexistent/fashion-mnist: no such folder",
        "no train-labels-idx1-ubyte, t10k-images",
        "dataset-fashion-mnist",
    ):
        assert part in reason
    with pytest.raises(EnvironmentProblem, match="was not found"):
        data.train()
    assert summary(data)["missing"] == reason
    with pytest.raises(EnvironmentProblem, match="was not found"):
        tail_picture(data)


def test_an_unreadable_idx_file_is_an_environment_problem(tmp_path):
    with pytest.raises(EnvironmentProblem, match="cannot be read: Is a directory"):
        read_idx(tmp_path, 1)


def test_the_embedded_cut_is_rebuilt_byte_for_byte():
    """With the real full set at hand; without it, the sha256 is checked by every read of the cut (and above)."""
    try:
        folder = fashion.full_folder()
    except EnvironmentProblem as problem:
        pytest.skip(f"the full set is not here: {problem.message}")
    script = _script("cut_fashion_mnist")
    arrays = script.make_cut(folder)
    assert script.npz_bytes(arrays) == script.npz_bytes(dict(reversed(arrays.items())))
    with np.load(ltbench.datasets.ASSETS / "fashion-mnist-lt.npz", allow_pickle=False) as stored:
        assert sorted(stored.files) == sorted(arrays)
        for key in arrays:  # arrays, not bytes: another zlib may compress differently
            assert stored[key].dtype == arrays[key].dtype
            assert (stored[key] == arrays[key]).all()


# --- digits --------------------------------------------------------------------------------------------------------


def test_digits_are_scikit_learns():
    from sklearn.datasets import load_digits

    images, labels = (np.asarray(part) for part in load_digits(return_X_y=True))
    data = build_dataset({"name": "digits", "imbalance": 1.0})
    assert data.counts() == [104] * 10
    for part in (data.train(), data.reference(), data.holdout()):
        assert (labels[part.index] == part.labels).all()
        assert np.allclose(part.images[:, 0] / 255, images[part.index].reshape(-1, 8, 8) / 16, atol=0.5 / 255)
        assert (part.images.min(), part.images.max()) == (0, 255)
    used = np.concatenate([part.index for part in (data.train(), data.reference(), data.holdout())])
    assert len(set(used)) == len(used) == 1040 + 500 + 200


def test_digits_held_out_images_are_spread_over_the_source():
    data = build_dataset({"name": "digits"})
    for part in (data.reference(), data.holdout()):
        thirds = np.bincount(part.index * 3 // 1797, minlength=3)
        assert thirds.min() > 0.25 * len(part)


@pytest.mark.parametrize("factor", [2, 4])
def test_digits_grow_by_repeating_pixels(factor):
    native, grown = (
        build_dataset({"name": "digits", "resolution": r}).train().images for r in (8, 8 * factor)
    )
    assert (grown == np.kron(native, np.ones((factor, factor), np.uint8))).all()


# --- summaries and pictures ----------------------------------------------------------------------------------------


def test_summary_of_the_embedded_set():
    found = summary(build_dataset({"name": "fashion_mnist"}))
    assert found["total"] == 2478
    assert [row["count"] for row in found["classes"]] == [1000, 599, 359, 215, 129, 77, 46, 27, 16, 10]
    assert found["groups"]["tail"] == {"classes": [7, 8, 9], "count": 53, "share": 53 / 2478}
    assert sum(group["share"] for group in found["groups"].values()) == pytest.approx(1)
    assert {row["name"]: row["group"] for row in found["classes"]}["Dress"] == "body"


def test_tail_picture_shows_the_rarest_training_images_and_no_more_than_there_are():
    data: Dataset = build_dataset({"name": "fashion_mnist", "imbalance": 0.004})
    assert data.counts()[7:] == [13, 7, 4]
    grid = read_grid(tail_picture(data, columns=10), 32)
    assert grid.shape == (3, 10, 1, 32, 32)
    train = data.train()
    for row, c in enumerate((7, 8, 9)):
        shown = min(10, data.counts()[c])
        assert (grid[row, :shown] == train.images[train.labels == c][:shown]).all()
        assert (grid[row, shown:] == 0).all()
    assert (read_grid(tail_picture(data, 10, scale=3), 96)[..., 1::3, 1::3] == grid).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_grids_are_read_back_exactly(channels):
    images = np.random.default_rng(0).integers(0, 256, (3, 5, channels, 8, 8), np.uint8)
    data = grid_png(images)
    assert (read_grid(data, 8) == images).all()
    assert data == grid_png(images.copy())
    with Image.open(io.BytesIO(data)) as picture:
        assert picture.size == (5 * 8, 3 * 8)
        left_top = np.asarray(picture.crop((8, 16, 16, 24))).reshape(8, 8, channels)
    assert (left_top.transpose(2, 0, 1) == images[2, 1]).all()


def test_grids_that_cannot_be_are_refused():
    grid = np.zeros((2, 2, 1, 8, 8), np.uint8)
    for bad in (grid[0], grid.astype(float), np.zeros((2, 2, 2, 8, 8), np.uint8), grid[:0], grid[..., :4]):
        with pytest.raises(ValueError, match="tiles must be"):
            grid_png(bad)
    data = grid_png(grid)
    with pytest.raises(LtbenchError, match="16 x 16 pixels does not divide into tiles of 5"):
        read_grid(data, 5)
    for broken in (b"", b"not a picture", data[: len(data) // 2], data[:20]):
        with pytest.raises(LtbenchError, match="not a readable PNG"):
            read_grid(broken, 8)
