"""CIFAR's own files in miniature: pickles byte by byte as Python 2 wrote them, folders, archives, and a data set of such files."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import numpy as np

PLUGIN = '''
from ltbench.datasets.cifar import Cifar, Source


class LittleCifar(Cifar):
    """CIFAR's format with few images."""

    source = Source(
        title="LittleCIFAR", name="little", folder="little-py", archive="little-python.tar.gz", key="fine_labels",
        classes=("a", "b", "c", "d"), train={"one": "", "two": ""}, test={"test": ""}, per_train=20, per_test=10,
    )
'''


def images(labels: np.ndarray, first: int = 0, seed: int = 0) -> np.ndarray:
    """(n, 3072) uint8 noise whose first three bytes say which image it is: label, position's high and low byte."""
    n = len(labels)
    found = np.random.default_rng(seed).integers(0, 256, (1, 3072), np.uint8).repeat(n, axis=0)
    position = np.arange(first, first + n)
    found[:, 0], found[:, 1], found[:, 2] = labels, position >> 8, position & 255
    return found


def _string(value: bytes) -> bytes:
    return b"U" + bytes([len(value)]) + value


def _int(value: int) -> bytes:
    return b"J" + value.to_bytes(4, "little", signed=True)


def _array(array: np.ndarray, code: bytes = b"u1") -> bytes:
    raw = array.tobytes()
    return (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\n(K\x00tU\x01btR(K\x01("
        + b"".join(map(_int, array.shape))
        + b"tcnumpy\ndtype\n("
        + _string(code)
        + b"K\x00K\x01tR(K\x03U\x01|NNN"
        + _int(-1) * 2
        + b"K\x00tb\x89T"
        + len(raw).to_bytes(4, "little")
        + raw
        + b"tb"
    )


def batch(data: np.ndarray, labels, key: bytes = b"labels", code: bytes = b"u1") -> bytes:
    """A file of CIFAR: protocol 2, its keys and pixels the byte strings of Python 2. CIFAR-100's holds coarse labels too."""
    listed = b"](" + b"".join(map(_int, map(int, labels))) + b"e"
    names = b"](" + b"".join(_string(b"%05d.png" % i) for i in range(3)) + b"e"
    content = _string(b"batch_label") + _string(b"batch 1 of 5") + _string(key) + listed
    if key == b"fine_labels":
        content += _string(b"coarse_labels") + b"](" + _int(0) * len(data) + b"e"
    return (
        b"\x80\x02}("
        + content
        + _string(b"data")
        + _array(data, code)
        + _string(b"filenames")
        + names
        + b"u."
    )


def little() -> dict[str, bytes]:
    """The files of `PLUGIN`'s source: 4 classes, 20 + 10 images each, mixed as in the real files."""
    labels = np.arange(80) % 4
    tests = np.arange(40) % 4
    return {
        "one": batch(images(labels[:30]), labels[:30], b"fine_labels"),
        "two": batch(images(labels[30:], 30), labels[30:], b"fine_labels"),
        "test": batch(images(tests, 0, seed=1), tests, b"fine_labels"),
    }


def folder(root: Path, files: dict[str, bytes], name: str = "little-py") -> Path:
    """The files in a folder of `root`."""
    path = root / name
    path.mkdir(parents=True, exist_ok=True)
    for file, content in files.items():
        (path / file).write_bytes(content)
    return path


def archive(root: Path, files: dict[str, bytes]) -> Path:
    """The files in an archive of `root`, in another order than they are read in, with the folder's own entry as the original has it."""
    path = root / "little-python.tar.gz"
    with tarfile.open(path, "w:gz") as tar:
        top = tarfile.TarInfo("little-py")
        top.type = tarfile.DIRTYPE
        tar.addfile(top)
        for name in reversed(files):
            info = tarfile.TarInfo(f"little-py/{name}")
            info.size = len(files[name])
            tar.addfile(info, io.BytesIO(files[name]))
    return path
