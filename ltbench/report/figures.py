"""Plain data -> matplotlib Figure. Colours stand for methods and stay theirs across all figures of a report."""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Literal

from ltbench.report.cost_data import CostPlot
from ltbench.report.figure_data import Bars, ClassPlot, Line, LinePlot
from ltbench.report.figure_text import legend, short, wrapped

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MARKERS = "osD^vPX<>p"
_DASHES = ("-", "--", "-.", ":")
INK, MUTED, FLOOR = "#222222", "#6b6b6b", "#444444"
_DPI = 150
_HATCHES = ("", "///", "...", "xx", "---", "\\\\\\", "ooo", "++", "|||", "**")
_ORDER = (0, 1, 2, 9, 3, 5, 6, 4, 8, 7)  # dark and light in turn: neighbours differ by 8 or more in L*
FEW_CLASSES = 20  # up to here every class has its name and its error bar
_UPRIGHT = 12  # up to here there is room for them side by side
_ABREAST = 4  # panels in a row
_SHADES = {"head": "#eef3f8", "body": "#f8f8f8", "tail": "#fbf1ec"}


@dataclass(frozen=True)
class Look:
    """How one method is drawn."""

    colour: tuple[float, float, float]
    marker: str
    dash: str
    hatch: str


def looks(labels: Sequence[str]) -> dict[str, Look]:
    """A look per label, by its place: seaborn's colour-blind safe palette in an order in which neighbours differ in lightness.

    Marker, dash and hatch differ too, so that colour is never the only sign: printed in grey, every row can still be told.
    """
    import seaborn

    palette = seaborn.color_palette("colorblind", 10)
    return {
        label: Look(
            palette[_ORDER[i % 10]],
            _MARKERS[i % 10],
            _DASHES[(i + i // 10) % 4],
            _HATCHES[(i + i // 10) % 10],
        )
        for i, label in enumerate(labels)
    }


@contextmanager
def drawing() -> Iterator[None]:
    """The style of all figures. Independent of the user's matplotlibrc and of installed fonts; text is never TeX."""
    import matplotlib
    import seaborn

    style: Any = {**seaborn.axes_style("whitegrid"), **seaborn.plotting_context("notebook")}
    style |= {"font.family": ["DejaVu Sans"], "text.parse_math": False, "text.usetex": False}
    style |= {
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.color": "#e6e6e6",
        "axes.titlesize": 12,
    }
    style |= {"axes.labelsize": 11, "xtick.labelsize": 10, "ytick.labelsize": 10, "legend.fontsize": 10}
    style |= {"text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK}
    with matplotlib.rc_context(), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*[Gg]lyph.*")  # a label in a script that the font lacks
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(style)
        matplotlib.rcParams.update({"svg.hashsalt": "ltbench", "svg.fonttype": "none", "pdf.fonttype": 42})
        yield


def png(figure: Figure) -> bytes:
    """PNG bytes that depend on the figure only: no date, no version."""
    target = io.BytesIO()
    figure.savefig(target, format="png", dpi=_DPI, facecolor="white", metadata={"Software": None})
    return target.getvalue()


def vector(figure: Figure, format_: Literal["pdf", "svg"]) -> bytes:
    """PDF or SVG bytes that depend on the figure only: no date, no version, no random ids; text stays text."""
    target = io.BytesIO()
    gone = ("CreationDate", "Creator", "Producer") if format_ == "pdf" else ("Date", "Creator")
    figure.savefig(target, format=format_, facecolor="white", metadata=dict.fromkeys(gone), dpi=_DPI)
    return target.getvalue()


def new_figure(width: float, height: float, layout: Literal["constrained"] | None = "constrained") -> Figure:
    """A figure with the Agg canvas and without pyplot's global state."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout=layout)
    FigureCanvasAgg(figure)
    return figure


def draw_lines(data: LinePlot, style: Mapping[str, Look], dense: bool = False) -> Figure:
    """One panel per group or term: mean line, band of one standard deviation over seeds, single seeds as dots.

    dense: lines of many points, of which few get a marker and none a tick.
    """
    deep = -(-len(data.panels) // _ABREAST)
    columns = -(-len(data.panels) // deep)
    figure = new_figure(min((4.4 if dense else 3.6) * columns + 0.6, 13.5), 4.3 * deep)
    axes = list(figure.subplots(deep, columns, squeeze=False).flat)
    inches = figure.get_figwidth() / columns
    handles: dict[str, Any] = {}
    for axis, panel in zip(axes, data.panels, strict=False):
        for place, line in enumerate(panel.lines):
            every = _few_markers(len(line.x), place, len(panel.lines)) if dense else None
            handles.setdefault(line.label, _draw_line(axis, line, style[line.label], every))
        if panel.floor is not None:
            handles.setdefault(
                "real images", axis.axhline(panel.floor, color=FLOOR, linestyle=(0, (1, 2)), lw=1.5)
            )
        axis.set_title(wrapped(panel.title, int(inches / 0.125), 3))
        axis.set_xlabel(data.x_label)
        axis.margins(x=0.04)
        if dense:
            axis.locator_params(axis="x", nbins=4)
        else:
            axis.set_xticks(_ticks(sorted({x for line in panel.lines for x in line.x}), inches - 1.0))
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")
    for axis in axes[len(data.panels) :]:
        axis.set_axis_off()
    for axis in axes[::columns]:
        axis.set_ylabel(data.y_label)
    handles = dict(sorted(handles.items(), key=lambda item: item[0] == "real images"))
    legend(figure, list(handles.values()), list(handles))
    return figure


def _ticks(places: Sequence[float], inches: float) -> list[float]:
    """Those of the places, from the last on, whose labels have room beside one another on so many inches."""
    scale = inches / ((places[-1] - places[0]) or 1.0)
    kept: list[float] = []
    for place in reversed(places):
        if not kept or (kept[-1] - place) * scale >= _half(kept[-1]) + _half(place) + 0.1:
            kept.append(place)
    return kept[::-1]


def _half(value: float) -> float:
    """Inches of half a tick's label."""
    return 0.045 * len(f"{value:,.6g}")


def _few_markers(points: int, place: int, lines: int) -> tuple[int, int]:
    """matplotlib's `markevery` (first, every) for one of many lines: about five markers, each line's beside those of the others.

    Dashes come in four kinds, so in grey a fifth line could not be told without them; and a lone point has no line.
    """
    every = max(1, points // 5)
    return min(points - 1, place * every // lines), every


def _draw_line(axis: Axes, line: Line, look: Look, every: tuple[int, int] | None) -> Any:
    (drawn,) = axis.plot(
        line.x,
        line.mean,
        color=look.colour,
        linestyle=look.dash,
        marker=look.marker,
        markevery=every,
        markersize=5 if every else 6,
        lw=1.6 if every else 1.9,
    )
    if any(line.sd):
        low = [m - s for m, s in zip(line.mean, line.sd, strict=True)]
        high = [m + s for m, s in zip(line.mean, line.sd, strict=True)]
        axis.fill_between(line.x, low, high, color=look.colour, alpha=0.18, lw=0)
    if line.points and any(line.sd):
        axis.scatter(*zip(*line.points, strict=True), color=[look.colour], s=9, alpha=0.8, zorder=3)
    return drawn


def draw_bars(data: Bars, style: Mapping[str, Look]) -> Figure:
    """Groups along x, a bar per method, an error bar of one standard deviation, the floor as a line across the group."""
    labels = list(data.values)
    figure = new_figure(min(max(7.8, 1.5 + 0.42 * len(labels) * len(data.groups)), 18.0), 4.3)
    axis = figure.subplots()
    width = 0.8 / len(labels)
    handles: list[Any] = []
    for i, label in enumerate(labels):
        known = [
            (g, *data.values[label][group])
            for g, group in enumerate(data.groups)
            if group in data.values[label]
        ]
        x = [g - 0.4 + width * (i + 0.5) for g, _, _ in known]
        look = style[label]
        heights = [mean for _, mean, _ in known]
        bars = axis.bar(
            x, heights, width * 0.92, color=look.colour, hatch=look.hatch, edgecolor="white", lw=0.4, zorder=2
        )
        spread = [(place, mean, sd) for place, (_, mean, sd) in zip(x, known, strict=True) if sd]
        if spread:
            xs, ys, sds = zip(*spread, strict=True)
            axis.errorbar(xs, ys, yerr=sds, fmt="none", ecolor=INK, elinewidth=1.3, capsize=3, zorder=3)
        handles.append(bars)
    floor = None
    for g, group in enumerate(data.groups):
        if group in data.floors:
            y = data.floors[group]
            (floor,) = axis.plot(
                [g - 0.44, g + 0.44], [y, y], color=FLOOR, linestyle=(0, (1, 2)), lw=1.8, zorder=4
            )
    if floor is not None:
        labels, handles = [*labels, "real images"], [*handles, floor]
    axis.set_xticks(range(len(data.groups)), data.groups)
    axis.grid(axis="x", visible=False)
    axis.axhline(0, color=MUTED, lw=0.8)
    axis.set_ylabel(data.y_label)
    legend(figure, handles, labels)
    return figure


def draw_classes(data: ClassPlot, style: Mapping[str, Look]) -> Figure:
    """Training images per class on a log axis, most frequent on the left, against quality; shades are head, body, tail."""
    few = len(data.names) <= FEW_CLASSES
    names = _class_names(data) if few else []
    figure = new_figure(12.0, 4.6)
    axis = figure.subplots()
    places = _places(data.counts) if few else [float(count) for count in data.counts]
    handles: dict[str, Any] = {}
    apart = _apart(places, len(data.lines))
    for i, (line, ranks) in enumerate(zip(data.lines, data.ranks, strict=True)):
        look, line = style[line.label], _on_the_axis(line)
        if few:
            aside = apart ** ((len(data.lines) - 1) / 2 - i)
            x = [places[rank] * aside for rank in ranks if places[rank] > 0]
            handles[line.label] = _few_classes(axis, x, line, look)
        else:
            markers = _few_markers(len(line.x), i, len(data.lines))
            handles[line.label] = _many_classes(axis, line, look, markers)
    floors = zip(places, data.floor, strict=True)
    known = [(place, floor) for place, floor in floors if floor is not None and place > 0]
    if known:
        (handles["real images"],) = axis.plot(
            *zip(*known, strict=True), color=FLOOR, linestyle=(0, (1, 2)), lw=1.6, zorder=1
        )
    _log_axis(axis)
    _shade_groups(axis, data, places)
    _class_ticks(axis, data, places, names)
    axis.set_ylabel(data.y_label)
    legend(figure, list(handles.values()), list(handles))
    return figure


def _on_the_axis(line: Line) -> Line:
    """Without the classes that have no training image: a log axis has no place for them."""
    held = [i for i, count in enumerate(line.x) if count > 0]
    x, mean, sd = (tuple(values[i] for i in held) for values in (line.x, line.mean, line.sd))
    return replace(line, x=x, mean=mean, sd=sd)


def _places(counts: Sequence[int]) -> list[float]:
    """Where classes stand on a log axis, most images first: at their counts, those too near one another a little apart."""
    known = [count for count in counts if count > 0]
    step = (max(known) / min(known)) ** (0.85 / len(known)) if known else 1.0
    found: list[float] = []
    for count in counts:
        found.append(min(float(count), found[-1] / max(step, 1.02)) if found and count > 0 else float(count))
    return found


def _apart(places: Sequence[float], lines: int) -> float:
    """How far (as a factor, on a log axis) the lines stand beside one another so that no error bar hides another; a class and its
    lines keep clear of the next class."""
    known = [place for place in places if place > 0]
    closest = min((a / b for a, b in pairwise(known)), default=2.0)
    return min(1.025, closest ** (0.7 / lines))


def _class_names(data: ClassPlot) -> list[str]:
    """Name and count under each class, in lines that fit between its neighbours when all are evenly spread; on one line where they
    are to be written aslant."""
    width = 110 // len(data.names)
    known = zip(data.names, data.counts, strict=True)
    if len(data.names) > _UPRIGHT:
        return [f"{short(name, 18)}: {count:,}" for name, count in known]
    return [f"{wrapped(name, width)}\n{count:,}" for name, count in known]


def _few_classes(axis: Axes, x: Sequence[float], line: Line, look: Look) -> Any:
    (drawn,) = axis.plot(
        x, line.mean, color=look.colour, marker=look.marker, linestyle=look.dash, markersize=6, lw=1.6
    )
    if any(line.sd):
        axis.errorbar(x, line.mean, yerr=line.sd, fmt="none", ecolor=look.colour, alpha=0.6, capsize=2)
    return drawn


def _many_classes(axis: Axes, line: Line, look: Look, markers: tuple[int, int]) -> Any:
    """A faint dot per class and the moving average over a fifteenth of the classes, in order of frequency."""
    axis.scatter(line.x, line.mean, color=[look.colour], s=5, alpha=0.3, lw=0)
    half = max(1, len(line.x) // 30)
    spans = [range(max(0, i - half), min(len(line.x), i + half + 1)) for i in range(len(line.x))]
    smooth = [sum(line.mean[j] for j in span) / len(span) for span in spans]
    (drawn,) = axis.plot(line.x, smooth, color=look.colour, linestyle=look.dash, lw=1.8,
                         marker=look.marker, markevery=markers, markersize=5)  # fmt: skip
    return drawn


def _shade_groups(axis: Axes, data: ClassPlot, places: Sequence[float]) -> None:
    """Bands from head to tail, meeting half-way (on the log axis) between neighbouring groups."""
    groups = list(dict.fromkeys(data.groups))
    ranges = [
        [c for c, g in zip(places, data.groups, strict=True) if g == group and c > 0] for group in groups
    ]
    pairs = [
        (group, max(counts), min(counts)) for group, counts in zip(groups, ranges, strict=True) if counts
    ]
    if not pairs:
        return
    most, fewest = pairs[0][1], pairs[-1][2]
    margin = max((most / fewest) ** 0.05, 1.01) if most > fewest else 1.25
    edges = [most * margin]
    edges += [(low * high) ** 0.5 for (_, _, low), (_, high, _) in pairwise(pairs)]
    edges.append(fewest / margin)
    for (group, _, _), (left, right) in zip(pairs, pairwise(edges), strict=True):
        axis.axvspan(right, left, color=_SHADES.get(group, "#ffffff"), zorder=0, lw=0)
        middle = (left * right) ** 0.5
        axis.text(
            middle, 1.01, group, transform=axis.get_xaxis_transform(), ha="center", va="bottom", color=MUTED
        )
    axis.set_xlim(edges[0], edges[-1])


def _class_ticks(axis: Axes, data: ClassPlot, places: Sequence[float], names: Sequence[str]) -> None:
    """`names` under every class where there are few; else counts."""
    axis.minorticks_off()
    if names:
        shown = [(place, name) for place, name in zip(places, names, strict=True) if place > 0]
        axis.set_xticks([place for place, _ in shown], [name for _, name in shown])
        axis.tick_params(axis="x", labelsize=8.5)
        if len(names) > _UPRIGHT:
            for label in axis.get_xticklabels():
                label.set(rotation=40, ha="right", rotation_mode="anchor")
        axis.grid(axis="x", visible=False)
        near = any(place != count for place, count in zip(places, data.counts, strict=True))
        apart = "; classes of nearly equal counts are set apart" if near else ""
        axis.set_xlabel(f"class and its training images (log scale{apart})")
    else:
        axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.6g}")
        axis.set_xlabel("training images of the class (log scale)")


def draw_cost(data: CostPlot, style: Mapping[str, Look]) -> Figure:
    """Hours (log axis where they differ by ten) against a metric: a line per method over its milestones, the last one large."""
    figure = new_figure(7.8, 4.6)
    axis = figure.subplots()
    handles: dict[str, Any] = {}
    for line in data.lines:
        look = style[line.label]
        (handles[line.label],) = axis.plot(
            line.hours,
            line.mean,
            color=look.colour,
            marker=look.marker,
            linestyle=look.dash,
            markersize=6,
            lw=1.4,
        )
        axis.plot(line.hours[-1:], line.mean[-1:], color=look.colour, marker=look.marker, markersize=10)
        if any(line.sd):
            axis.errorbar(
                line.hours, line.mean, yerr=line.sd, fmt="none", ecolor=look.colour, capsize=2, alpha=0.7
            )
    x = [data.lines[a].hours[b] for a, b in data.front]
    y = [data.lines[a].mean[b] for a, b in data.front]
    furthest = max(line.hours[-1] for line in data.lines)
    (handles["Pareto front"],) = axis.step(
        [*x, furthest], [*y, y[-1]], where="post", color=INK, lw=1.1, linestyle=(0, (6, 2)), zorder=1
    )
    axis.scatter(x, y, s=190, facecolors="none", edgecolors=INK, lw=1.1, zorder=4)
    if data.floor is not None:
        handles["real images"] = axis.axhline(data.floor, color=FLOOR, linestyle=(0, (1, 2)), lw=1.5)
    every = [hour for line in data.lines for hour in line.hours]
    if max(every) > 10 * min(every):
        _log_axis(axis)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.4g}")
    axis.set_xlabel(data.unit)
    axis.set_ylabel(data.y_label)
    legend(figure, list(handles.values()), list(handles))
    return figure


def _log_axis(axis: Axes) -> None:
    """Ticks at 1, 2, 5, 10 ...: matplotlib would label those between decades in TeX, which is off."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_xscale("log")
    axis.xaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.xaxis.set_minor_formatter(NullFormatter())
