"""Make the embedded cut of Fashion-MNIST from the full set: `python scripts/cut_fashion_mnist.py [FOLDER]`.

FOLDER holds the four IDX files; without it, where the `full` source looks. Writes ltbench/datasets/assets/fashion-mnist-lt.npz
and prints its sha256, which datasets/fashion_mnist.py names as EMBEDDED_SHA256.
"""

from __future__ import annotations

import argparse
import hashlib
import importlib
import io
import os
import zipfile
from pathlib import Path

import numpy as np

from ltbench.datasets import ASSETS
from ltbench.datasets.longtail import profile, select

TARGET = ASSETS / "fashion-mnist-lt.npz"


def make_cut(folder: Path | None = None) -> dict[str, np.ndarray]:
    """{train,reference,holdout} x {images (n, 28, 28) uint8, labels (n,) uint8, index (n,) int32} of the embedded cut."""
    source = importlib.import_module("ltbench.datasets.fashion_mnist")
    folder = folder or source.full_folder()
    n_max, per_reference, per_holdout = source.SIZES["embedded"]
    train_images, train_labels = source.read_split(folder, "train")
    test_images, test_labels = source.read_split(folder, "t10k")
    kept = select(train_labels, profile(n_max, len(source.CLASSES), source.EMBEDDED_IMBALANCE))
    parts = {"train": (train_images, train_labels, kept)}
    for name, index in source.split_test(test_labels, per_reference, per_holdout).items():
        parts[name] = (test_images, test_labels, index)
    arrays = {}
    for name, (images, labels, index) in parts.items():
        arrays[f"{name}_images"] = images[index]
        arrays[f"{name}_labels"] = labels[index]
        arrays[f"{name}_index"] = index.astype(np.int32)
    return arrays


def npz_bytes(arrays: dict[str, np.ndarray]) -> bytes:
    """An `.npz` whose bytes depend on the arrays and the zlib version alone: members sorted, times and permissions fixed."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name in sorted(arrays):
            member = io.BytesIO()
            np.lib.format.write_array(
                member, np.ascontiguousarray(arrays[name]), version=(1, 0), allow_pickle=False
            )
            info = zipfile.ZipInfo(f"{name}.npy", date_time=(1980, 1, 1, 0, 0, 0))
            info.create_system = 3  # else the platform's own
            info.external_attr = 0o644 << 16
            archive.writestr(info, member.getvalue(), compress_type=zipfile.ZIP_DEFLATED, compresslevel=9)
    return buffer.getvalue()


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path, nargs="?", help="folder with the four IDX files, plain or .gz")
    data = npz_bytes(make_cut(parser.parse_args().folder))
    beside = TARGET.with_suffix(".tmp")
    beside.write_bytes(data)
    os.replace(beside, TARGET)
    print(f"{TARGET}  {len(data)} bytes  sha256 {hashlib.sha256(data).hexdigest()}")


if __name__ == "__main__":
    main()
