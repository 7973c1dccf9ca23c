"""The grid of samples as plain values: whose pictures, of which classes, how many of each. NumPy only."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ltbench.report.figure_data import Fetch, group_of, ranked_classes, records_of
from ltbench.report.figure_kinds import Shown
from ltbench.report.select import Record, Selected
from ltbench.report.table import Section
from ltbench.report.words import clean

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class SampleGrid:
    """tiles[label] is (classes, images, channels, H, W) uint8; the first label is the real images."""

    names: tuple[str, ...]
    counts: tuple[int, ...]
    groups: tuple[str, ...]
    tiles: Mapping[str, np.ndarray]
    seeds: Mapping[str, int]  # the training seed shown, by label


def sample_grid(
    section: Section,
    selected: Selected,
    fetch: Fetch,
    per_class: int,
    classes: int,
    which: Shown = "spread",
    pictured: Sequence[tuple[str, int, Record]] = (),
) -> SampleGrid | None:
    """Generated images of every row, the real ones first; None when no picture is kept of the classes asked for.

    The first seed that has a record stands for its row. Image j of a class started from the same noise in every row, since
    all rows share one evaluation. pictured: (label, seed, illustration); they are shown in the place of the evaluations' pictures
    where every row has one and they hold more of the classes.
    """
    measured, wanted = shown_classes(section, selected, classes, which, pictured)
    if not wanted:
        return None
    tiles, seeds = {}, {}
    for label, seed, record in measured:
        if (
            "real images" not in tiles
            and (real := _tiles(record, "reference", fetch, wanted, per_class)) is not None
        ):
            tiles = {"real images": real, **tiles}
        if (found := _tiles(record, "samples", fetch, wanted, per_class)) is not None:
            tiles[label], seeds[label] = found, seed
    if not seeds:
        return None
    columns = max(
        tiles[label].shape[1] for label in seeds
    )  # real images fill no column that nobody generated
    tiles = {label: grid[:, :columns] for label, grid in tiles.items()}
    body = measured[0][2]["body"]
    counts = tuple(int(body["train_counts"][c]) for c in wanted)
    names = tuple(clean(body["classes"][c]) for c in wanted)
    return SampleGrid(names, counts, tuple(group_of(body, c) for c in wanted), tiles, seeds)


Pictured = Sequence[tuple[str, int, Record]]  # (label, training seed, record with a picture)


def shown_classes(
    section: Section, selected: Selected, classes: int, which: Shown, pictured: Pictured
) -> tuple[Pictured, list[int]]:
    """The pictures that a grid takes, of evaluations or of illustrations, and the classes that it shows of them."""
    measured = list(_evaluated(section, selected))
    wanted = _chosen(measured, which, classes)
    if pictured and {label for label, *_ in measured} <= {label for label, *_ in pictured}:
        better = _chosen(pictured, which, classes)
        if len(better) > len(wanted) or (which != "spread" and len(better) == len(wanted)):
            return pictured, better
    return measured, wanted


def _evaluated(section: Section, selected: Selected) -> Iterator[tuple[str, int, Record]]:
    """(label, training seed, record with a picture) of every own row."""
    for i, row in enumerate(section.rows):
        if row.external:
            continue  # it did not start from this noise
        found = records_of(section, selected, i, lambda record: "samples" in record["body"].get("facts", {}))
        if found:
            yield clean(row.label), int(found[0]["body"]["settings"]["seed"]), found[0]


def _chosen(pictured: Pictured, which: Shown, most: int) -> list[int]:
    """The classes to show of those that the first record's picture holds, from most to fewest training images."""
    if not pictured:
        return []
    body = pictured[0][2]["body"]
    kept = [c for c in ranked_classes(body) if c in set(body["facts"]["samples"]["rows"])]
    if which == "spread":
        return _spread(kept, most)
    if isinstance(which, str):
        return [c for c in kept if group_of(body, c) == which][-most:]
    return [c for c in kept if body["classes"][c] in which][:most]


def _spread(items: Sequence[int], most: int) -> list[int]:
    """At most `most` of `items`, evenly, with both ends."""
    if len(items) <= most:
        return list(items)
    if most == 1:
        return [items[-1]]
    return [items[round(i * (len(items) - 1) / (most - 1))] for i in range(most)]


def _tiles(
    record: Record, kind: str, fetch: Fetch, order: Sequence[int], per_class: int
) -> np.ndarray | None:
    from ltbench.tiles import read_grid

    fact = record["body"].get("facts", {}).get(kind)
    data = fetch(record, fact["file"]) if fact else None
    if fact is None or data is None or not set(order) <= set(fact["rows"]):
        return None
    grid = read_grid(data, fact["tile"])
    return grid[[fact["rows"].index(c) for c in order], :per_class]
