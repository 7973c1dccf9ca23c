"""Pictures of images -> matplotlib Figure: samples, neighbours, maps of features, the reverse process."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ltbench.report.figure_text import legend, short, told_apart, widest, wrapped
from ltbench.report.figures import INK, MUTED, Look, new_figure
from ltbench.report.illustrated import ClassMap, MapPanel, NeighbourSheet, ReverseSheet
from ltbench.report.sample_data import SampleGrid

if TYPE_CHECKING:
    import numpy as np
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure


def draw_samples(data: SampleGrid) -> Figure:
    """One row per method, the real images on top; classes from head to tail; one noise per column."""
    sheet, tile, gap = _sheet(data)
    labels = told_apart(list(data.tiles), 22)
    columns = next(iter(data.tiles.values())).shape[1]
    height, width = sheet.shape[:2]
    inches = 12.2, 12.2 * height / width  # of the pictures; margins hold the texts
    block = columns * tile + (columns - 1) * gap
    heads = _heads(data, 12.2 * block / width)
    left, bottom = 0.25 + 0.1 * widest(labels), 0.42
    top = 0.25 + 0.16 * max(text.count("\n") + 1 for text in heads)
    figure = new_figure(left + inches[0] + 0.1, top + inches[1] + bottom, layout=None)
    full = figure.get_figwidth(), figure.get_figheight()
    axis = figure.add_axes((left / full[0], bottom / full[1], inches[0] / full[0], inches[1] / full[1]))
    axis.imshow(sheet, interpolation="nearest", cmap="gray", vmin=0, vmax=255, aspect="auto")
    axis.set_axis_off()
    axis.autoscale(False)
    for i, label in enumerate(labels):
        y = i * (tile + gap) + tile / 2 + (3 * gap if i else 0)
        style = "italic" if i == 0 else "normal"
        size = 11 if label.count("\n") < 2 else 8.5
        axis.text(-2 * gap, y, label, ha="right", va="center", fontsize=size, style=style)
    for j, text in enumerate(heads):
        x = j * (block + 3 * gap) + block / 2
        axis.text(x, -2 * gap, text, ha="center", va="bottom", fontsize=9)
    for group in dict.fromkeys(data.groups):
        places = [j for j, g in enumerate(data.groups) if g == group]
        left, right = places[0] * (block + 3 * gap), places[-1] * (block + 3 * gap) + block
        axis.text(
            (left + right) / 2, height + 3 * gap, group, ha="center", va="top", fontsize=11, color=MUTED
        )
        axis.plot([left, right], [height + 2 * gap] * 2, color=MUTED, lw=1.2, clip_on=False)
    return figure


def _heads(data: SampleGrid, inches: float) -> list[str]:
    """The name of each class over its images, in two lines if it has to be, and how many it has to learn from."""
    width = int(inches / 0.082)  # of a letter at this size
    what = " training images" if width >= 21 else ""
    return [
        f"{wrapped(name, width)}\n{count:,}{what}"
        for name, count in zip(data.names, data.counts, strict=True)
    ]


def _sheet(data: SampleGrid) -> tuple[np.ndarray, int, int]:
    """(H, W[, 3]) uint8 with white gaps, the tile side and the gap; a wider gap follows the real images and each class."""
    import numpy as np

    grids = list(data.tiles.values())
    classes, columns, channels, _, tile = grids[0].shape
    gap = max(1, tile // 16)
    block = columns * tile + (columns - 1) * gap
    width = classes * block + (classes - 1) * 3 * gap
    height = len(grids) * tile + (len(grids) - 1) * gap + (3 * gap if len(grids) > 1 else 0)
    sheet = np.full((height, width, channels), 255, np.uint8)
    for i, grid in enumerate(grids):
        top = i * (tile + gap) + (3 * gap if i else 0)
        for j in range(classes):
            for k in range(min(columns, grid.shape[1])):
                left = j * (block + 3 * gap) + k * (tile + gap)
                sheet[top : top + tile, left : left + tile] = grid[j, k].transpose(1, 2, 0)
    return (sheet[..., 0] if channels == 1 else sheet), tile, gap


# --- single tiles on one pair of axes ------------------------------------------------------------------------------------


def _picture(image: np.ndarray) -> np.ndarray:
    """(C, H, W) uint8, or float in about [-1, 1], -> what imshow takes: (H, W) or (H, W, 3) uint8."""
    import numpy as np

    if image.dtype != np.uint8:
        image = (image.clip(-1, 1) * 127.5 + 127.5).round().astype(np.uint8)
    return image[0] if len(image) == 1 else image.transpose(1, 2, 0)


def _table(columns: float, rows: float, tile: float, left: float, top: float) -> tuple[Figure, Axes]:
    """Axes on which one unit is one tile of so many inches, row 0 on top, with margins (inches) for texts."""
    width, height = left + columns * tile + 0.15, top + rows * tile + 0.1
    figure = new_figure(width, height, layout=None)
    axis = figure.add_axes((left / width, 0.1 / height, columns * tile / width, rows * tile / height))
    axis.set_xlim(0, columns)
    axis.set_ylim(rows, 0)
    axis.set_axis_off()
    return figure, axis


def _put(axis: Axes, image: np.ndarray, x: float, y: float, frame: bool = False) -> None:
    pad = 0.03
    extent = (x + pad, x + 1 - pad, y + 1 - pad, y + pad)
    axis.imshow(
        _picture(image), extent=extent, cmap="gray", vmin=0, vmax=255, interpolation="nearest", aspect="auto"
    )
    if frame:
        from matplotlib.patches import Rectangle

        axis.add_patch(Rectangle((x, y), 1, 1, fill=False, lw=1.8, edgecolor=INK, clip_on=False))


def _fix(axis: Axes, columns: float, rows: float) -> None:
    """imshow moves the limits: put them back."""
    axis.set_xlim(0, columns)
    axis.set_ylim(rows, 0)


# --- neighbours ------------------------------------------------------------------------------------------------------------


def draw_neighbours(data: NeighbourSheet, heads: tuple[str, str]) -> Figure:
    """A block per class, in it a row per method and image: the image in a frame, then its nearest with their distances.

    heads: what stands over the image and over its nearest. Where a neighbour is of another class, its class is named.
    """
    texts = _captions(data)
    more = max((text.count("\n") for found in texts.values() for text in found), default=0)
    line, gap, head = (
        1.28 + 0.16 * more,
        0.3,
        0.75,
    )  # in tiles: a row with its texts, space before a block, its heading
    labels = list(dict.fromkeys(label for block in data.blocks.values() for label in block))
    names = dict(zip(labels, told_apart(labels, 22), strict=True))
    count = sum(len(rows) for block in data.blocks.values() for rows in block.values())
    blocks = len(data.blocks)
    columns, rows = 1.35 + data.columns, count * line + blocks * head + (blocks - 1) * gap
    tile = min(0.85, 10.5 / columns)
    left = 0.3 + 0.09 * widest(list(names.values()))
    figure, axis = _table(columns, rows, tile, left, 0.1)
    y = 0.0
    for c, block in data.blocks.items():
        title = f"{short(data.names[c], 30)}: {data.counts[c]:,} training images"
        axis.text(0, y + 0.22, title, va="center", fontsize=11)
        axis.text(0.5, y + 0.56, heads[0], ha="center", va="center", fontsize=8.5, color=MUTED)
        axis.text(1.35, y + 0.56, heads[1], va="center", fontsize=8.5, color=MUTED)
        y += head
        for label, found in block.items():
            size = 10 if names[label].count("\n") < 2 else 8
            axis.text(-0.12, y + 0.5, names[label], ha="right", va="center", fontsize=size)
            for place, one in enumerate(found):
                _put(axis, one.image, 0, y, frame=True)
                for k, (image, text) in enumerate(zip(one.nearest, texts[c, label, place], strict=True)):
                    _put(axis, image, 1.35 + k, y)
                    axis.text(1.85 + k, y + 1.02, text, ha="center", va="top", fontsize=7)
                y += line
        y += gap
    _fix(axis, columns, rows)
    return figure


def _captions(data: NeighbourSheet) -> dict[tuple[int, str, int], list[str]]:
    """(class, row, which of its images) -> below each neighbour its distance, and its class where that is another."""
    return {
        (c, label, place): [
            f"{distance:#.3g}" + ("" if other == c else f"\n{wrapped(data.names[other], 14)}")
            for distance, other in zip(one.distances, one.classes, strict=True)
        ]
        for c, block in data.blocks.items()
        for label, found in block.items()
        for place, one in enumerate(found)
    }


# --- maps of features --------------------------------------------------------------------------------------------------------

_CELLS = 120  # of the grid that a density is drawn on, along each axis
_ABREAST = 4  # panels in a row
MASSES = (0.5, 0.9)  # shares of the images that contours hold


def draw_maps(maps: Sequence[ClassMap], style: Mapping[str, Look]) -> Figure:
    """A panel per method, at most _ABREAST in a row; a class has as many rows as that takes. The density of real images in grey,
    that of the method's as contour lines."""
    most = max(len(row.panels) for row in maps)
    deep = -(-most // _ABREAST)
    columns = -(-most // deep)
    figure = new_figure(3.3 * columns + 0.4, (3.55 if deep == 1 else 3.8) * deep * len(maps) + 0.4)
    grid = figure.subplots(deep * len(maps), columns, squeeze=False)
    titles = told_apart(list(style), 32)
    names = dict(zip(style, titles, strict=True))
    for n, row in enumerate(maps):
        box = _box(row.panels) if row.joint else None
        axes = grid[n * deep : (n + 1) * deep].ravel()
        for axis, panel in zip(axes, row.panels, strict=False):
            _draw_map(axis, panel, style[panel.label], box or _box([panel]))
            if n == 0 or not row.joint or deep > 1:
                axis.set_title(names[panel.label], fontsize=11)
        for axis in axes[len(row.panels) :]:
            axis.set_axis_off()
        for axis in axes[::columns]:
            axis.set_ylabel(f"{wrapped(row.name, 30)}\n{row.count:,} training images", fontsize=10)
    legend(figure, _keys(), ["real images (density)", "training images", "generated images", "their density"])
    return figure


def _box(panels: Sequence[MapPanel]) -> tuple[float, float, float, float]:
    """left, right, bottom, top around all points, with room for the density around them."""
    import numpy as np

    points = np.concatenate([part for p in panels for part in (p.real, p.train, p.generated)])
    low, high = points.min(axis=0), points.max(axis=0)
    room = 0.2 * np.maximum(high - low, 1e-3)
    (a, c), (b, d) = low - room, high + room
    return float(a), float(b), float(c), float(d)


def _draw_map(axis: Axes, panel: MapPanel, look: Look, box: tuple[float, float, float, float]) -> None:
    import numpy as np

    x, y = np.linspace(*box[:2], _CELLS), np.linspace(*box[2:], _CELLS)
    wide = bandwidth(panel.real if len(panel.real) > 1 else panel.generated)
    if len(panel.real) > 1:
        held = density(panel.real, x, y, wide)
        axis.contourf(x, y, held, levels=[*mass_levels(held, (0.95, 0.75, 0.5, 0.25)), np.inf],
                      colors=["#ebebeb", "#d6d6d6", "#bdbdbd", "#a3a3a3"], zorder=1)  # fmt: skip
    axis.scatter(*panel.generated.T, s=7, color=[look.colour], alpha=0.55, lw=0, zorder=2)
    if len(panel.generated) > 1:
        held = density(panel.generated, x, y, wide)
        axis.contour(x, y, held, levels=mass_levels(held, sorted(MASSES, reverse=True)),
                     colors=[look.colour], linewidths=[1.0, 2.0], zorder=3)  # fmt: skip
    axis.scatter(*panel.train.T, marker="x", s=42, color=INK, lw=1.5, zorder=4)
    axis.set_xlim(*box[:2])
    axis.set_ylim(*box[2:])
    axis.set_xticks([])
    axis.set_yticks([])
    axis.grid(visible=False)
    for side in axis.spines.values():
        side.set_visible(True)


def bandwidth(points: np.ndarray) -> float:
    """Scott's rule for points (n, 2) in the plane, one width for both axes: n^(-1/6) times their root mean variance."""
    import numpy as np

    spread = float(np.sqrt(points.var(axis=0).mean()))
    return max(spread, 1e-3) * len(points) ** (-1 / 6)


def density(points: np.ndarray, x: np.ndarray, y: np.ndarray, width: float) -> np.ndarray:
    """(len(y), len(x)) Gaussian kernel density of points (n, 2)."""
    import numpy as np
    from sklearn.neighbors import KernelDensity

    where = np.stack(np.meshgrid(x, y), axis=-1).reshape(-1, 2)
    held = KernelDensity(bandwidth=width).fit(points).score_samples(where)
    return np.exp(held).reshape(len(y), len(x))


def mass_levels(held: np.ndarray, masses: Sequence[float]) -> list[float]:
    """For each share of the mass on a grid the density above which it lies; rising, so `masses` falls."""
    import numpy as np

    falling = np.sort(held.ravel())[::-1]
    share = np.cumsum(falling) / falling.sum()
    levels = [float(falling[min(int(np.searchsorted(share, mass)), falling.size - 1)]) for mass in masses]
    return [level * (1 + 1e-9 * i) for i, level in enumerate(levels)]  # strictly rising, as contours want


def _keys() -> list[Any]:
    """What the legend of a map shows: shapes, since each panel has its method's colour."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    return [
        Patch(facecolor="#bdbdbd"),
        Line2D([], [], marker="x", linestyle="", color=INK, markersize=7, markeredgewidth=1.5),
        Line2D([], [], marker="o", linestyle="", color=MUTED, markersize=3.5),
        Line2D([], [], color=MUTED, lw=2.0),
    ]


# --- the reverse process -----------------------------------------------------------------------------------------------------


def draw_reverse(data: ReverseSheet) -> Figure:
    """Three blocks: what the network saw on its way, its low and its high frequencies; a row without label, then classes."""
    rows, frames = data.frames.shape[:2]
    blocks = (("noisy image", data.frames), ("low frequencies", data.low), ("high frequencies", data.high))
    gap = 0.3
    height = 0.4 + 3 * rows + 2 * gap
    tile = min(0.95, 9.5 / frames)
    names = [wrapped(name, 16) for name in data.rows]
    left = 0.55 + 0.085 * max(len(line) for name in names for line in name.splitlines())
    figure, axis = _table(frames, height, tile, left, 0.1)
    for f, level in enumerate(data.levels):
        axis.text(
            f + 0.5,
            0.2,
            "result" if level == 0 else f"level {level:.2f}",
            ha="center",
            va="center",
            fontsize=8.5,
        )
    for b, (title, images) in enumerate(blocks):
        top = 0.4 + b * (rows + gap)
        axis.text(
            -(left - 0.2) / tile, top + rows / 2, title, rotation=90, ha="center", va="center", fontsize=10.5
        )
        for r, name in enumerate(names):
            axis.text(-0.1, top + r + 0.5, name, ha="right", va="center", fontsize=9,
                      style="italic" if r == 0 else "normal")  # fmt: skip
            for f in range(frames):
                _put(axis, images[r, f], f, top + r)
    _fix(axis, frames, height)
    return figure
