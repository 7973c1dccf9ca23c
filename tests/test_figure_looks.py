"""What a reader sees of a drawn figure: no text over another or beyond the edge, no two rows of one name, nothing told by colour alone."""

from __future__ import annotations

from functools import partial
from itertools import combinations
from pathlib import Path
from typing import cast

import numpy as np
import pytest
from matplotlib.text import Text

from ltbench.report import definition, figures, pictures
from ltbench.report.build import write_report
from ltbench.report.cost_data import CostLine, CostPlot
from ltbench.report.figure_data import Bars, ClassPlot, Line, LinePlot, Panel
from ltbench.report.figure_text import told_apart
from ltbench.report.illustrated import ClassMap, MapPanel, Neighbour, NeighbourSheet, ReverseSheet
from ltbench.report.sample_data import SampleGrid
from ltbench.report.sheets import draw_maps, draw_neighbours, draw_reverse, draw_samples
from tests.report_world import fact, quickstart

ROOT = Path(__file__).resolve().parents[1]
FEW = ("sit", "cbdm")
GRID = tuple(f"ccua (alpha=0.05, gamma=0.05, tap=N/4, resample=0.1, lr=0.00{i})" for i in range(1, 13))
RANDOM = np.random.default_rng(0)
IMAGE = RANDOM.integers(0, 255, (1, 8, 8), np.uint8)


def line(label: str, x=(1.0, 2.0, 3.0), height: float = 1.0) -> Line:
    x = tuple(x)
    return Line(label, x, (height,) * len(x), (0.1,) * len(x), ())


def curves(labels, points: int, dense: bool, every: int = 10):
    x = [float(every * (i + 1)) for i in range(points)]
    lines = tuple(line(label, x, i) for i, label in enumerate(labels))
    data = LinePlot((Panel("all", lines, 0.1), Panel("tail", lines, 0.1)), "training steps", "FD")
    return figures.draw_lines(data, figures.looks(labels), dense)


def guided(labels):
    """As a search of table 7 has them: many panels of long titles, values that crowd."""
    lines = tuple(line(label, (1.0, 1.05, 1.1, 1.5, 2.0, 2.5, 5.0), i) for i, label in enumerate(labels))
    rounds = ("", *(f", search on {n} images, ddim-corrected 20 steps" for n in (5000, 10000)))
    panels = tuple(Panel(f"{group}{of}", lines, None) for group in ("all", "tail") for of in rounds)
    data = LinePlot(panels, "guidance w", "FD[inception-2015-12-05@6726825d]\n(lower is better)")
    return figures.draw_lines(data, figures.looks(labels))


def classes(labels, counts):
    k = len(counts)
    groups = tuple("head" if i < k // 3 else "body" if i < k - k // 3 else "tail" for i in range(k))
    lines = tuple(line(label, map(float, counts), i) for i, label in enumerate(labels))
    names = tuple(f"class name {i}" for i in range(k))
    data = ClassPlot(
        names, tuple(counts), groups, lines, (0.8,) * k, "recall", (tuple(range(k)),) * len(lines)
    )
    return figures.draw_classes(data, figures.looks(labels))


def maps(labels):
    panels = [MapPanel(label, *(RANDOM.normal(size=(20, 2)) for _ in range(3))) for label in labels]
    held = [ClassMap("a class of an extraordinarily long name, in Latin", 12, panels, True)] * 2
    return draw_maps(held, figures.looks(labels))


def neighbours(labels):
    one = Neighbour(IMAGE, np.stack([IMAGE] * 3), [0.1, 0.2, 0.3], [1, 1, 1])
    return draw_neighbours(
        NeighbourSheet({1: {label: [one] for label in labels}}, ["a", "b"], [9, 3], 3), ("x", "y")
    )


def samples(labels):
    tiles = {label: np.stack([np.stack([IMAGE] * 6)] * 3) for label in ("real images", *labels)}
    return draw_samples(
        SampleGrid(("a", "b", "c"), (30, 20, 10), ("tail",) * 3, tiles, dict.fromkeys(labels, 0))
    )


def bars(labels):
    groups = ("head", "body", "tail")
    values: dict[str, dict[str, tuple[float, float]]] = {
        label: dict.fromkeys(groups, (9.0, 1.0)) for label in labels
    }
    return figures.draw_bars(Bars(groups, values, {"head": 1.0}, "FD"), figures.looks(labels))


def costs(labels):
    """From minutes to hundreds of hours."""
    rows = enumerate(labels, 1)
    lines = [
        CostLine(label, (0.02 * i, 0.3 * i, 40.0 * i), (9.0, 5.0, 2.0 + i), (0.1,) * 3, (1, 2, 3))
        for i, label in rows
    ]
    data = CostPlot(tuple(lines), ((0, 0), (0, 2)), "GPU-hours of training", ("gpu",), (), 1.0, "lower", "FD")
    return figures.draw_cost(data, figures.looks(labels))


def reverse(labels):
    names = ["no label", "Great white shark", "a class of an extraordinarily long name, in Latin", "worm"]
    frames = np.zeros((4, 8, 1, 8, 8))
    levels = [1.0, 0.9, 0.7, 0.6, 0.4, 0.3, 0.1, 0.0]
    return draw_reverse(ReverseSheet(labels[0], names, levels, frames, frames, frames))


DRAWN = {
    "curves": lambda labels: curves(labels, 3, dense=False),
    "milestones": lambda labels: curves(labels, 6, dense=False, every=100_000),
    "losses": lambda labels: curves(labels, 40, dense=True, every=22_500),
    "guidance": guided,
    "bars": bars,
    "a long tail": lambda labels: classes(labels, [1000, 599, 359, 215, 129, 77, 46, 27, 16, 10]),
    "balanced": lambda labels: classes(labels, [5000] * 10),
    "20 classes": lambda labels: classes(labels, [500 - 20 * i for i in range(20)]),
    "samples": samples,
    "neighbours": neighbours,
    "maps": maps,
    "cost": costs,
}
WITHOUT_ROWS = {"reverse": reverse}


def texts(figure) -> list[Text]:
    """Those that are seen, once the figure is laid out."""
    figure.canvas.draw()
    found = [text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip()]
    beyond = {id(label) for axis in figure.axes for label in _out_of_view(axis)}
    found = [text for text in found if id(text) not in beyond]
    return [text for text in found if text.axes is None or text.axes.axison or text in text.axes.texts]


def _out_of_view(axes) -> list[Text]:
    """Labels of ticks beyond the limits: matplotlib holds them and draws none."""
    found = []
    for axis in (axes.xaxis, axes.yaxis):
        low, high = sorted(axis.get_view_interval())
        found += [tick.label1 for tick in axis.get_major_ticks() if not low <= tick.get_loc() <= high]
    return found


@pytest.mark.parametrize("labels", [FEW, GRID], ids=["few rows", "a grid"])
@pytest.mark.parametrize("kind", [*DRAWN, *WITHOUT_ROWS])
def test_no_text_lies_on_another_or_beyond_the_edge(kind, labels):
    with figures.drawing():
        figure = {**DRAWN, **WITHOUT_ROWS}[kind](labels)
        boxes = [(text.get_text(), text.get_window_extent(), text.get_rotation()) for text in texts(figure)]
    wide, high = figure.canvas.get_width_height()
    for name, box, _ in boxes:
        assert -1 <= box.x0 <= box.x1 <= wide + 1, f"{name!r} is cut"
        assert -1 <= box.y0 <= box.y1 <= high + 1, f"{name!r} is cut"
    upright = [(name, box) for name, box, rotation in boxes if rotation in (0.0, 90.0)]
    for (name, box), (other, its) in combinations(upright, 2):
        assert not box.padded(-1).overlaps(its.padded(-1)), f"{name!r} lies on {other!r}"


@pytest.mark.parametrize("kind", DRAWN)
def test_rows_that_differ_in_their_last_words_have_different_names(kind):
    with figures.drawing():
        shown = [text.get_text() for text in texts(DRAWN[kind](GRID))]
    named = {" ".join(text.split()) for text in shown if text.startswith("ccua")}
    assert len(named) == len(GRID), sorted(named)


def test_names_are_as_short_as_differing_allows():
    assert told_apart(["sit", "cbdm"], 20) == ["sit", "cbdm"]
    assert told_apart(["a" * 30, "b" * 30], 10) == ["a" * 9 + "…", "b" * 9 + "…"], "they differ at once"
    assert told_apart(["same words 1", "same words 2"], 8) == ["same\nwords 1", "same\nwords 2"]
    assert told_apart(["a long name"] * 2, 6) == ["a lon…"] * 2, "nothing tells two equal names apart"
    assert told_apart([], 9) == []


@pytest.mark.parametrize("points", [1, 2, 7, 100])
def test_in_grey_every_line_can_be_told_and_a_lone_point_is_seen(points):
    labels = GRID[:10]
    with figures.drawing():
        axis = curves(labels, points, dense=True).axes[0]
    lines = axis.get_lines()[: len(labels)]
    assert len({(drawn.get_linestyle(), drawn.get_marker()) for drawn in lines}) == len(labels)
    for drawn in lines:
        assert drawn.get_marker() not in (None, "None")
        first, every = cast("tuple[int, int]", drawn.get_markevery())
        assert first < points
        assert len(range(first, points, every)) <= 10


@pytest.mark.parametrize("counts", [[1000 - i for i in range(20)], [9, 9, 4, 1], [500, 400, 0]])
def test_lines_of_a_class_keep_clear_of_the_next_class(counts):
    with figures.drawing():
        axis = classes(GRID, counts).axes[0]
    known = sum(count > 0 for count in counts)
    drawn = [np.asarray(each.get_xdata()) for each in axis.get_lines()]
    x = np.stack([places for places in drawn if len(places) == known][: len(GRID)])
    assert (x > 0).all(), "a class without training images has no place on a log axis"
    assert (x.min(axis=0)[:-1] > x.max(axis=0)[1:]).all()


def test_ten_maps_stay_wide_enough_to_be_read_on_a_page():
    with figures.drawing():
        figure = maps(GRID[:10])
        figure.canvas.draw()
    panels = [axis for axis in figure.axes if axis.axison]
    assert len(panels) == 20
    assert min(axis.get_window_extent().width / figure.dpi for axis in panels) > 2.0
    assert figure.get_figwidth() < 14


def test_long_drawing_says_where_it_is_and_short_drawing_nothing(tmp_path, monkeypatch):
    heard: list[str] = []
    only = definition.load_definition(ROOT / "reports" / "figures.yaml")
    write = partial(write_report, quickstart(), only, lambda record, name: fact(name), tmp_path, ("png",))
    monkeypatch.setattr(pictures, "SECONDS", 1e9)
    write(told=heard.append)
    assert heard == []
    monkeypatch.setattr(pictures, "SECONDS", 0.0)
    write(told=heard.append)
    asked = [each.kind for each in only.figures]
    count = len(asked) * 2  # sections: SiT and DDPM
    assert heard == [f"figure {n} of {count}: {kind}" for n, kind in enumerate(asked * 2, 1)]
