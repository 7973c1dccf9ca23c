"""Images from a milestone as a file: the same images that an evaluation with these settings measures."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import ltbench
from ltbench import files
from ltbench.collect import TILE_CLASSES, TILE_COLUMNS, shown_classes
from ltbench.datasets import build_dataset
from ltbench.errors import UsageError
from ltbench.execution import resolve
from ltbench.generate import blocks, decoder_of, labels_of, quantised, shape_of
from ltbench.networks import Network
from ltbench.protocols import sampled_classes, sampled_in
from ltbench.samples import write_folder, write_npz
from ltbench.sampling import prepared
from ltbench.tiles import grid_png


def export(
    cell: str,
    step: int | None,
    settings: Mapping[str, Any],
    evaluation: Mapping[str, Any],
    count: int,
    *,
    classes: Sequence[int] | None = None,
    out: Path | None = None,
    grid: Path | None = None,
    device: str | None = None,
    execution: str = "auto",
    notice: Callable[[str], None] = lambda message: None,
    progress: Callable[[int], None] = lambda done: None,
) -> dict[str, Any]:
    """Sample images 0 .. count - 1 of an evaluation from the EMA weights of a cell's milestone (the last one by default).

    classes: only these, as an evaluation of a group samples only its classes. out: an .npz for ADM's evaluator, or a folder of
    PNG. grid: a sheet of the first images of each class. execution: how the network is run (ltbench/execution.py); notice hears of
    what of it is not to be had. Returns {"labels": images by class}.
    """
    for path in (out, grid):
        if path is not None and path.exists():
            raise UsageError(f"{path} exists", "name a file that does not exist yet")
    chosen = device or ("cuda" if torch.cuda.is_available() else "cpu")
    network = ltbench.load_model(cell, step, device=chosen)
    assert isinstance(network, Network), "a cell's weights are a network of ours"
    data = build_dataset(settings["dataset"])
    ids = list(sampled_classes(evaluation, data.counts()) if classes is None else classes)
    shape = (data.channels, data.resolution, data.resolution)
    labels = labels_of(np.arange(count), evaluation, ids, network.null_label)
    conditional = evaluation["labels"] is not None
    sheet = _Sheet(labels if conditional else None, ids)

    def made() -> Iterator[np.ndarray]:
        rule = "round" if evaluation["quantise"] == "none" else evaluation["quantise"]
        wanted = range(-(-count // int(evaluation["block"])))
        done = 0
        where = torch.device(chosen)
        precision = sampled_in(evaluation, settings["train"]["precision"])
        how = resolve(execution, where)
        forward = prepared(network, where, precision, how, notice)
        what = settings["pipeline"], evaluation, ids, shape_of(settings, data), where
        decode = decoder_of(settings, where, how, notice)
        for block in blocks(network, *what, wanted, decode, forward):
            rows = quantised(block.images, rule).cpu().numpy()[: count - done]
            sheet.see(rows, done)
            done += len(rows)
            progress(done)
            yield rows

    kept = labels if conditional else None
    if out is None:
        for _ in made():
            pass
    elif out.suffix == ".npz":
        write_npz(out, made(), kept, shape, count)
    else:
        write_folder(out, made(), kept)
    if grid is not None:
        files.make_directory(grid.parent)
        files.replace(grid, grid_png(sheet.picture()))
    return {"labels": {str(c): int((labels == c).sum()) for c in ids} if conditional else {}}


class _Sheet:
    """The first images of each shown class, or of all."""

    def __init__(self, labels: np.ndarray | None, ids: Sequence[int]) -> None:
        self.labels = labels
        self.rows: dict[int | None, list[np.ndarray]] = {
            c: [] for c in (shown_classes(ids) if labels is not None else [None])
        }
        self.most = TILE_COLUMNS if labels is not None else TILE_COLUMNS * TILE_CLASSES

    def see(self, images: np.ndarray, first: int) -> None:
        for k, image in enumerate(images, first):
            row = self.rows.get(None if self.labels is None else int(self.labels[k]))
            if row is not None and len(row) < self.most:
                row.append(image)

    def picture(self) -> np.ndarray:
        """(R, C, ch, H, W) uint8; places without an image are black."""
        rows = list(self.rows.values())
        if self.labels is None:
            rows = [rows[0][i : i + TILE_COLUMNS] for i in range(0, len(rows[0]), TILE_COLUMNS)]
        some = next(row[0] for row in rows if row)
        sheet = np.zeros((len(rows), max(map(len, rows)), *some.shape), np.uint8)
        for i, row in enumerate(rows):
            sheet[i, : len(row)] = np.stack(row) if row else sheet[i, :0]
        return sheet
