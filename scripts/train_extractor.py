"""Train a feature extractor that ships with ltbench: `python scripts/train_extractor.py fashion-cnn-v1`.

Writes the weights and their entry in index.json to ltbench/metrics/weights (or --out FOLDER). Trained on the whole balanced
training split of the data set, scored on its held-out real images. One thread and fixed seeds: the same torch on the same CPU
instruction set gives the same bytes, which --check compares with the shipped ones instead of writing.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save
from torch import Tensor

from ltbench.datasets import Dataset, build_dataset
from ltbench.metrics.classifier import WEIGHTS, SmallCNN, as_extractor, build_network, fit, read_index
from ltbench.metrics.extractor import Extractor
from ltbench.seeds import permutation, stream, torch_seed


@dataclass(frozen=True)
class Recipe:
    """Everything that determines an extractor's weights, kept in index.json beside them."""

    dataset: dict[str, Any]  # balanced: imbalance 1.0
    size: int  # pixels of the network's input
    widths: tuple[int, ...]
    views: dict[int, float]  # resolution of the data set -> its share of the training images
    epochs: int
    shift: int  # images move by up to so many pixels
    flip: bool
    batch: int = 128
    lr: float = 3e-3  # peak; linear up over the first tenth, linear down to 0
    weight_decay: float = 0.01
    dim: int = 64
    seed: int = 0


RECIPES = {
    "fashion-cnn-v1": Recipe(
        dataset={"name": "fashion_mnist", "source": "full", "imbalance": 1.0},
        size=32,
        widths=(24, 48, 96),
        views={32: 0.5, 28: 0.25, 16: 0.25},
        epochs=8,
        shift=2,
        flip=True,
    ),
    "digits-cnn-v1": Recipe(
        dataset={"name": "digits", "imbalance": 1.0},
        size=8,
        widths=(16, 32, 32),
        views={8: 1.0},
        epochs=60,
        shift=1,
        flip=False,
    ),
}


@dataclass
class Pool:
    """The training images in every view, fitted to the network's input."""

    recipe: Recipe
    images: np.ndarray = field(init=False)  # (views, n, C, S, S) uint8
    labels: np.ndarray = field(init=False)  # (n,) int64
    sha256: str = field(init=False)

    def __post_init__(self) -> None:
        sets = [build_dataset({**self.recipe.dataset, "resolution": r}) for r in self.recipe.views]
        trains = [data.train() for data in sets]
        fitted = [fit(torch.from_numpy(t.images), self.recipe.size).round().byte().numpy() for t in trains]
        self.images, self.labels, self.sha256 = np.stack(fitted), trains[0].labels, sets[0].sha256()

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Augmented (B, C, S, S) float32 in [-1, 1] and labels (B,); whole batches only."""
        r = self.recipe
        order = permutation(r.seed, "data", "extractor", epoch, n=len(self.labels))
        for step in range(len(order) // r.batch):
            rows = order[step * r.batch : (step + 1) * r.batch]
            rng = stream(r.seed, "data", "extractor-augment", epoch, step)
            view = rng.choice(len(r.views), size=r.batch, p=list(r.views.values()))
            images = moved(self.images[view, rows], rng, r.shift, r.flip)
            yield torch.from_numpy(images).float() / 127.5 - 1.0, torch.from_numpy(self.labels[rows])


def moved(images: np.ndarray, rng: np.random.Generator, shift: int, flip: bool) -> np.ndarray:
    """(B, C, S, S) uint8, each image shifted by up to `shift` pixels (black comes in) and, if `flip`, mirrored half the time."""
    count, size = len(images), images.shape[-1]
    padded = np.pad(images, ((0, 0), (0, 0), (shift, shift), (shift, shift)))
    dy, dx = rng.integers(0, 2 * shift + 1, size=(2, count))
    across = np.arange(size)
    columns = np.where(rng.random(count)[:, None] < 0.5 * flip, across[::-1], across) + dx[:, None]
    rows = across + dy[:, None]
    picked = padded[np.arange(count)[:, None, None], :, rows[:, :, None], columns[:, None, :]]  # (B, S, S, C)
    return np.ascontiguousarray(picked.transpose(0, 3, 1, 2))


def train(recipe: Recipe, pool: Pool) -> SmallCNN:
    """The trained network. Progress goes to stderr."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_seed(recipe.seed, "init", "extractor"))
        network = build_network(shapes(recipe, pool))
    optimiser = torch.optim.AdamW(network.parameters(), lr=recipe.lr, weight_decay=recipe.weight_decay)
    per_epoch = len(pool.labels) // recipe.batch
    total, started = per_epoch * recipe.epochs, time.monotonic()
    for epoch in range(recipe.epochs):
        losses = []
        for step, (images, labels) in enumerate(pool.batches(epoch), start=epoch * per_epoch):
            done = (step + 0.5) / total
            optimiser.param_groups[0]["lr"] = recipe.lr * min(done / 0.1, (1.0 - done) / 0.9)
            loss = F.cross_entropy(network(images)[1], labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses.append(loss.item())
        print(
            f"epoch {epoch + 1}/{recipe.epochs}  loss {np.mean(losses):.4f}  {time.monotonic() - started:.0f} s",
            file=sys.stderr,
        )
    return network.eval()


def shapes(recipe: Recipe, pool: Pool) -> dict[str, Any]:
    """The part of an index entry that builds the network."""
    return {
        "channels": int(pool.images.shape[2]),
        "size": recipe.size,
        "widths": list(recipe.widths),
        "dim": recipe.dim,
        "classes": int(pool.labels.max()) + 1,
    }


def score(extractor: Extractor, data: Dataset) -> dict[str, Any]:
    """Accuracy on the held-out real images (reference and holdout), per class too; spread of the least varied feature."""
    parts = [data.reference(), data.holdout()]
    out = [extractor.features(torch.from_numpy(part.images)) for part in parts]
    labels = np.concatenate([part.labels for part in parts])
    right = np.concatenate([o["logits"].argmax(1).numpy() for o in out]) == labels
    return {
        "images": len(labels),
        "all": round(float(right.mean()), 4),
        "per_class": [round(float(right[labels == c].mean()), 4) for c in range(len(data.classes))],
        "least_feature_std": round(float(torch.cat([o["pool"] for o in out]).std(0).min()), 4),
    }


def make(name: str, recipe: Recipe) -> tuple[bytes, dict[str, Any]]:
    """Weights (safetensors bytes) and index entry of one extractor."""
    pool = Pool(recipe)
    network = train(recipe, pool)
    data = save({key: value.contiguous() for key, value in network.state_dict().items()})
    entry = {
        "file": f"{name}.safetensors",
        "sha256": hashlib.sha256(data).hexdigest(),
        "datasets": [recipe.dataset["name"]],
        **shapes(recipe, pool),
    }
    extractor = as_extractor(name, entry, network)
    views = {r: build_dataset({**recipe.dataset, "resolution": r}) for r in recipe.views}
    entry["accuracy"] = {str(r): score(extractor, view) for r, view in views.items()}
    entry["recipe"] = {**asdict(recipe), "train_images": len(pool.labels), "train_sha256": pool.sha256}
    entry["exact"] = {
        "torch": torch.__version__.split("+")[0],
        "numpy": np.__version__,
        "device": "cpu",
        "threads": 1,
        "cpu": torch.backends.cpu.get_cpu_capability(),
    }
    return data, entry


def write_beside(path: Path, data: bytes) -> None:
    """Put `data` at `path` in one step, so that a reader never sees half of it."""
    beside = path.with_name(f"{path.name}.tmp")
    with beside.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    os.replace(beside, path)


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", choices=sorted(RECIPES))
    parser.add_argument("--out", type=Path, default=WEIGHTS, help="folder of the weights and index.json")
    parser.add_argument(
        "--check", action="store_true", help="compare with the weights in the folder; write nothing"
    )
    args = parser.parse_args()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    data, entry = make(args.name, RECIPES[args.name])
    print(json.dumps({"sha256": entry["sha256"], "accuracy": entry["accuracy"]}))
    if args.check:
        shipped = read_index(args.out)[args.name]["sha256"]
        print(
            "equal to the shipped weights"
            if shipped == entry["sha256"]
            else f"differs from the shipped {shipped}"
        )
        return 0 if shipped == entry["sha256"] else 1
    args.out.mkdir(parents=True, exist_ok=True)
    write_beside(args.out / entry["file"], data)
    index = read_index(args.out) if (args.out / "index.json").exists() else {}
    index[args.name] = entry
    write_beside(args.out / "index.json", (json.dumps(index, indent=1, sort_keys=True) + "\n").encode())
    return 0


if __name__ == "__main__":
    sys.exit(main())
