"""What illustrations hold, as plain values for figures: neighbours, maps of features, the reverse process. NumPy only."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from ltbench.embedding import embed
from ltbench.errors import LtbenchError
from ltbench.packed import unpack
from ltbench.report.figure_data import Fetch
from ltbench.report.pictured import illustrations
from ltbench.report.select import Record, Selected
from ltbench.report.table import Section
from ltbench.report.words import clean
from ltbench.tiles import read_grid

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class Neighbour:
    """One image and its nearest. image: (C, H, W) uint8; nearest: (k, C, H, W); distances: (k,); classes: (k,) ids."""

    image: np.ndarray
    nearest: np.ndarray
    distances: Sequence[float]
    classes: Sequence[int]


@dataclass(frozen=True)
class NeighbourSheet:
    """blocks[class id][label]: the neighbours that one method shows of a class. names: of every class of the data set."""

    blocks: Mapping[int, Mapping[str, Sequence[Neighbour]]]
    names: Sequence[str]
    counts: Sequence[int]
    columns: int


@dataclass(frozen=True)
class MapPanel:
    """One method's map of a class: points (n, 2) by what they are."""

    label: str
    real: np.ndarray
    train: np.ndarray
    generated: np.ndarray


@dataclass(frozen=True)
class ClassMap:
    """A row of panels. joint: they share one layout."""

    name: str
    count: int
    panels: Sequence[MapPanel]
    joint: bool


@dataclass(frozen=True)
class ReverseSheet:
    """frames: (R, F, C, H, W) float in about [-1, 1], a row without a label and one per class; low + high are the frames."""

    label: str
    rows: Sequence[str]
    levels: Sequence[float]
    frames: np.ndarray
    low: np.ndarray
    high: np.ndarray


# --- neighbours ----------------------------------------------------------------------------------------------------------


def _last(record: Record, most: int) -> list[int]:
    """The illustrated classes with the fewest training images, at most so many, most frequent first."""
    return [int(c) for c in record["body"]["evaluation"]["illustrate"]["classes"]][-most:]


def neighbour_sheet(
    section: Section, selected: Selected, fetch: Fetch, of: str, classes: int, per_class: int, nearest: int
) -> NeighbourSheet | None:
    """None when no record holds neighbours. Classes are those that the first row illustrates."""
    blocks: dict[int, dict[str, list[Neighbour]]] = {}
    body: Mapping[str, Any] | None = None
    columns = 0
    for label, _, record in illustrations(section, selected):
        found = _neighbours(record, fetch, f"of_{of}", nearest)
        if body is None and found:
            body = record["body"]
            blocks = {c: {} for c in _last(record, classes) if c in found}
        for c in blocks:
            if c in found:
                blocks[c][label] = found[c][:per_class]
                columns = max(columns, *(len(each.distances) for each in blocks[c][label]))
    if body is None or not blocks:
        return None
    return NeighbourSheet(blocks, [clean(n) for n in body["classes"]], body["train_counts"], columns)


def _neighbours(record: Record, fetch: Fetch, name: str, nearest: int) -> dict[int, list[Neighbour]]:
    fact = record["body"]["facts"].get(name)
    data = fetch(record, fact["file"]) if fact else None
    if fact is None or data is None:
        return {}
    found: dict[int, list[Neighbour]] = {}
    for row, c, distances, labels in zip(
        read_grid(data, fact["tile"]), fact["rows"], fact["distances"], fact["labels"], strict=True
    ):
        one = Neighbour(row[0], row[1 : nearest + 1], distances[:nearest], labels[:nearest])
        found.setdefault(int(c), []).append(one)
    return found


# --- maps ----------------------------------------------------------------------------------------------------------------


def class_maps(
    section: Section, selected: Selected, fetch: Fetch, classes: int, joint: bool
) -> list[ClassMap]:
    """A map of each of the rarest illustrated classes; none where no record holds one."""
    held = list(illustrations(section, selected))
    maps = []
    for c in _last(held[0][2], classes) if held else ():
        found = {label: arrays for label, _, record in held if (arrays := _map(record, fetch, c))}
        if found:
            body = held[0][2]["body"]
            panels = (
                _joint(found) if joint else [_panel(k, v["points"], v["kinds"]) for k, v in found.items()]
            )
            maps.append(ClassMap(clean(body["classes"][c]), int(body["train_counts"][c]), panels, joint))
    return maps


def _map(record: Record, fetch: Fetch, c: int) -> dict[str, np.ndarray] | None:
    fact = record["body"]["facts"]["maps"].get(str(c))
    data = fetch(record, fact["file"]) if fact else None
    return None if data is None else unpack(data)


def _panel(label: str, points: np.ndarray, kinds: np.ndarray) -> MapPanel:
    return MapPanel(label, points[kinds == 0], points[kinds == 1], points[kinds == 2])


def _joint(found: Mapping[str, Mapping[str, np.ndarray]]) -> list[MapPanel]:
    """One layout of the real and training images, which all share, and of every method's images.

    Raises LtbenchError if the real or training images are not the same: then there is nothing to share.
    """
    import numpy as np

    first = next(iter(found.values()))
    own = first["kinds"] != 2
    for label, arrays in found.items():
        if not np.array_equal(arrays["features"][arrays["kinds"] != 2], first["features"][own]):
            raise LtbenchError(
                f"{label} was mapped beside other real or training images than the rows above it",
                "make the illustrations again on one kind of machine, or draw with `embedding: own`",
            )
    made = [arrays["features"][arrays["kinds"] == 2] for arrays in found.values()]
    points = embed(np.concatenate([first["features"][own], *made]))
    shared, kinds = points[: own.sum()], first["kinds"][own]
    ends = np.cumsum([own.sum(), *map(len, made)])
    return [
        MapPanel(label, shared[kinds == 0], shared[kinds == 1], points[start : start + len(rows)])
        for label, start, rows in zip(found, ends, made, strict=False)
    ]


# --- the reverse process -------------------------------------------------------------------------------------------------


def reverse_sheet(
    section: Section, selected: Selected, fetch: Fetch, row: str | None, kind: str, cut: float
) -> ReverseSheet | None:
    """Of the named row, or of the first that has it; None when no record holds it."""
    for label, _, record in illustrations(section, selected):
        fact = record["body"]["facts"]["reverse"]
        if row in (None, label) and (data := fetch(record, fact["file"])) is not None:
            frames = unpack(data)["frames"].astype("float64")
            names = record["body"]["classes"]
            rows = ["no label" if c is None else clean(names[c]) for c in fact["rows"]]
            low = low_pass(frames, kind, cut)
            return ReverseSheet(label, rows, fact["levels"], frames, low, frames - low)
    return None


def low_pass(images: np.ndarray, kind: str, cut: float) -> np.ndarray:
    """The low frequencies of images (..., H, W) float, by a circular filter in Fourier space; the image is taken as periodic.

    cut: in cycles per image. `ideal` keeps what is below or at it; `gaussian` is exp(-ln 2 (f / cut)^2), a half at the cut.
    The mean (frequency 0) is kept whole.
    """
    import numpy as np

    high, wide = images.shape[-2:]
    f = np.hypot(np.fft.fftfreq(high, 1 / high)[:, None], np.fft.rfftfreq(wide, 1 / wide)[None, :])
    keep = (f <= cut).astype(float) if kind == "ideal" else np.exp(-np.log(2) * (f / cut) ** 2)
    return np.fft.irfft2(np.fft.rfft2(images) * keep, s=(high, wide))
