"""What `datasets NAME` shows: counts per class, shares of head, body and tail, and a picture of the tail."""

from __future__ import annotations

from typing import Any

import numpy as np

from ltbench.datasets import Dataset
from ltbench.errors import EnvironmentProblem
from ltbench.groups import groups
from ltbench.tiles import grid_png


def summary(data: Dataset) -> dict[str, Any]:
    """JSON-able facts, from `counts` alone: no image is read.

    {"total", "channels", "resolution", "reference", "extractor", "missing": reason or None,
    "classes": [{"class": id, "name", "count", "share", "group"}, ...] in label order,
    "groups": {"head": {"classes": [ids], "count", "share"}, ...}}. A share is a part of all training images, 0 to 1.
    """
    counts = data.counts()
    total = sum(counts)
    ranked = groups(counts)
    group_of = {c: name for name, ids in ranked.items() for c in ids}
    sizes = {name: sum(counts[c] for c in ids) for name, ids in ranked.items()}
    return {
        "total": total,
        "channels": data.channels,
        "resolution": data.resolution,
        "reference": data.reference_id,
        "extractor": data.extractor,
        "missing": data.missing(),
        "classes": [
            {"class": c, "name": name, "count": n, "share": n / total, "group": group_of[c]}
            for c, (name, n) in enumerate(zip(data.classes, counts, strict=True))
        ],
        "groups": {
            name: {"classes": ids, "count": sizes[name], "share": sizes[name] / total}
            for name, ids in ranked.items()
        },
    }


def tail_picture(data: Dataset, columns: int = 10, scale: int = 1) -> bytes:
    """PNG of real training images: a row per tail class (12 at most, the rarest), its first `columns` images.

    scale: screen pixels per pixel, so tiles have side `resolution * scale`. A class with fewer images leaves the rest of its row black: that is how few there are. Raises EnvironmentProblem if the data
    cannot be read here.
    """
    if (reason := data.missing()) is not None:
        raise EnvironmentProblem(reason)
    if columns < 1 or scale < 1:
        raise ValueError(f"columns and scale must be 1 or more, got {columns} and {scale}")
    train = data.train()
    rows = groups(data.counts())["tail"][-12:]
    sheet = np.zeros((len(rows), columns, *train.images.shape[1:]), np.uint8)
    for row, c in enumerate(rows):
        first = train.images[train.labels == c][:columns]
        sheet[row, : len(first)] = first
    return grid_png(sheet.repeat(scale, axis=-1).repeat(scale, axis=-2))
