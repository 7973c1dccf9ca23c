"""The figures of a definition, drawn for every section of a table."""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from ltbench.canonical import canonical_json
from ltbench.report.cost_data import cost_plot
from ltbench.report.definition import Definition
from ltbench.report.figure_data import (
    Fetch,
    class_plot,
    group_bars,
    guidance_curve,
    loss_curves,
    metric_steps,
)
from ltbench.report.figure_kinds import (
    ClassQuality,
    FeatureMap,
    FigureDefinition,
    GroupBars,
    GuidanceCurve,
    LossCurves,
    MetricSteps,
    Neighbours,
    QualityCost,
    ReverseProcess,
    Samples,
)
from ltbench.report.identity import family_id
from ltbench.report.illustrated import class_maps, neighbour_sheet, reverse_sheet
from ltbench.report.pictured import illustrations, mixed_code
from ltbench.report.render_html import Picture
from ltbench.report.sample_data import sample_grid
from ltbench.report.select import Selected
from ltbench.report.table import Section, Table
from ltbench.report.words import clean

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ltbench.report.figures import Look

SECONDS = 4.0  # between two words about what is being drawn
Drawn = tuple["Figure", str, bool]  # figure, caption, wide


def draw_all(
    table: Table,
    definition: Definition,
    selected: Selected,
    fetch: Fetch,
    vectors: Sequence[str] = (),
    told: Callable[[str], None] | None = None,
) -> list[Picture]:
    """Every figure that has something to show, section by section, in the definition's order; also as `vectors` (pdf, svg).

    `told` hears every few seconds which figure is being drawn.
    """
    if selected.empty:  # what draws takes a second and a half to import
        return []
    from ltbench.report import figures

    found, drawn_families = [], set()
    count, patience = len(table.sections) * len(definition.figures), _Patience(told)
    with figures.drawing():
        style = figures.looks([clean(label) for label in table.labels()])
        for place, section in enumerate(table.sections):
            family = section.part, canonical_json(section.dataset), family_id(section.evaluation)
            for number, wanted in enumerate(definition.figures, 1):
                if isinstance(wanted, GuidanceCurve) and (family, number) in drawn_families:
                    continue  # one curve holds all sections that differ in their guidance only
                drawn_families.add((family, number))
                patience.say(f"figure {place * len(definition.figures) + number} of {count}: {wanted.kind}")
                drawn = _draw(wanted, section, selected, fetch, style)
                if drawn is not None:
                    name = f"{place + 1}-{_slug(section.part)}-{number}-{wanted.kind}"
                    more = {
                        each: figures.vector(drawn[0], each) for each in ("pdf", "svg") if each in vectors
                    }
                    found.append(
                        Picture(place, name, drawn[1], figures.png(drawn[0]), drawn[2], wanted.kind, more)
                    )
    return found


class _Patience:
    """Passes a line on when the last one is some seconds old; not the first ones of quick work."""

    def __init__(self, told: Callable[[str], None] | None) -> None:
        self.told, self.last = told, time.monotonic()

    def say(self, text: str) -> None:
        if self.told is not None and time.monotonic() - self.last >= SECONDS:
            self.last = time.monotonic()
            self.told(text)


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")[:30] or "part"


def _draw(
    wanted: FigureDefinition, section: Section, selected: Selected, fetch: Fetch, style: Mapping[str, Look]
) -> Drawn | None:
    match wanted:
        case MetricSteps():
            return _metric_steps(wanted, section, style)
        case GroupBars():
            return _group_bars(wanted, section, style)
        case ClassQuality():
            return _class_quality(wanted, section, selected, style)
        case Samples():
            return _samples(wanted, section, selected, fetch)
        case GuidanceCurve():
            return _guidance_curve(wanted, section, selected, style)
        case LossCurves():
            return _loss_curves(wanted, section, selected, style)
        case QualityCost():
            return _quality_cost(wanted, section, selected, style)
        case Neighbours():
            return _neighbours(wanted, section, selected, fetch)
        case FeatureMap():
            return _feature_map(wanted, section, selected, fetch, style)
        case ReverseProcess():
            return _reverse(wanted, section, selected, fetch)


def _spread(section: Section, what: str) -> str:
    if section.seeds_planned < 2:
        return "One training seed: no spread is known."
    fewer = " (fewer where the table says so)" if section.missing else ""
    return f"{what}: one standard deviation over {section.seeds_planned} training seeds{fewer}."


def _metric_steps(wanted: MetricSteps, section: Section, style: Mapping[str, Look]) -> Drawn | None:
    from ltbench.report.figures import draw_lines

    data = metric_steps(section, wanted.metric, wanted.groups)
    if data is None:
        return None
    caption = f"{data.y_label.splitlines()[0]} against training steps. {_spread(section, 'Band')} Dotted: real images."
    return draw_lines(data, style), caption, False


def _group_bars(wanted: GroupBars, section: Section, style: Mapping[str, Look]) -> Drawn | None:
    from ltbench.report.figures import draw_bars

    data = group_bars(section, wanted.metric)
    if data is None:
        return None
    name = data.y_label.splitlines()[0]
    caption = f"{name} per class group at step {section.shown:,}. {_spread(section, 'Error bar')} Dotted: real images."
    figure = draw_bars(data, style)
    return figure, caption, figure.get_figwidth() > 9


def _class_quality(
    wanted: ClassQuality, section: Section, selected: Selected, style: Mapping[str, Look]
) -> Drawn | None:
    from ltbench.report.figures import FEW_CLASSES, draw_classes

    data = class_plot(section, selected, wanted.metric)
    if data is None or (len(data.names) > FEW_CLASSES and len(set(data.counts)) < 2):
        return None  # without names, balanced classes would all lie on one spot
    name = data.y_label.splitlines()[0]
    empty = sum(count == 0 for count in data.counts)
    absent = (
        f" Without training images, so not on this axis: {empty} of {len(data.counts)} classes."
        if empty
        else ""
    )
    trend = "" if len(data.names) <= FEW_CLASSES else " Lines: moving averages over neighbouring classes."
    caption = (
        f"Class frequency against {name} of the class at step {section.shown:,}. "
        f"{_spread(section, 'Error bar')} Dotted: real images. A class has few images, so read the trend.{trend}{absent}"
    )
    return draw_classes(data, style), caption, True


def _samples(wanted: Samples, section: Section, selected: Selected, fetch: Fetch) -> Drawn | None:
    from ltbench.report.sheets import draw_samples

    pictured = list(illustrations(section, selected))
    data = sample_grid(section, selected, fetch, wanted.per_class, wanted.classes, wanted.which, pictured)
    if data is None:
        return None
    caption = (
        f"Samples at step {section.shown:,} ({_seeds(data.seeds)}), classes from most to fewest training images (number "
        "under the name). Every row starts from the same noise in each column; the first images of a class are shown, none "
        "chosen. Top row: real images."
    )
    return draw_samples(data), caption, True


def _seeds(seeds: Mapping[str, int]) -> str:
    several = sorted(set(seeds.values()))
    return (
        f"training seed {several[0]}" if len(several) == 1 else "the first finished training seed of each row"
    )


def _neighbours(wanted: Neighbours, section: Section, selected: Selected, fetch: Fetch) -> Drawn | None:
    from ltbench.report.sheets import draw_neighbours

    data = neighbour_sheet(
        section, selected, fetch, wanted.of, wanted.classes, wanted.per_class, wanted.nearest
    )
    if data is None:
        return None
    seeds = _seeds({label: seed for label, seed, _ in illustrations(section, selected)})
    by = f"L2 distance in features of {section.evaluation['extractor']['name']}, written below"
    if wanted.of == "generated":
        heads = "generated", "nearest training images"
        what = "Generated images (framed) and their nearest of all training images; one of another class is named"
    else:
        heads = "training", "nearest generated images"
        what = "Training images (framed) and their nearest among the generated images of the class"
    caption = (
        f"{what}; {by}. Step {section.shown:,}, {seeds}. The first images of a class are shown, none chosen: near copies and "
        "repeated neighbours are signs of memorised training images."
    )
    return draw_neighbours(data, heads), caption + mixed_code(section, selected), True


def _feature_map(
    wanted: FeatureMap, section: Section, selected: Selected, fetch: Fetch, style: Mapping[str, Look]
) -> Drawn | None:
    from ltbench.report.sheets import MASSES, draw_maps

    maps = class_maps(section, selected, fetch, wanted.classes, wanted.embedding == "joint")
    if not maps:
        return None
    how = "one layout for all panels" if wanted.embedding == "joint" else "each panel has a layout of its own"
    inner, outer = (f"{100 * mass:.0f}" for mass in MASSES)
    caption = (
        f"t-SNE of {section.evaluation['extractor']['name']} features at step {section.shown:,}; {how}. Grey: density of real "
        "images (25, 50, 75 and 95 % of them lie in the shades). Crosses: training images. Dots: generated images; lines hold "
        f"{inner} (thick) and {outer} % of them, by the same kernel width. Distances between far groups mean nothing in t-SNE."
    )
    columns = max(len(row.panels) for row in maps)
    return draw_maps(maps, style), caption + mixed_code(section, selected), columns > 2


def _reverse(wanted: ReverseProcess, section: Section, selected: Selected, fetch: Fetch) -> Drawn | None:
    from ltbench.report.sheets import draw_reverse

    data = reverse_sheet(section, selected, fetch, wanted.row, wanted.filter, wanted.cut)
    if data is None:
        return None
    count = len(data.rows) - 1
    classes = "one class" if count == 1 else f"{count} classes"
    shape = "Gaussian low-pass, one half at" if wanted.filter == "gaussian" else "ideal low-pass, cut at"
    caption = (
        f"{data.label}, step {section.shown:,}: the reverse process without a label and for "
        f"{classes} from one noise. Low "
        f"frequencies: {shape} {wanted.cut:g} cycles per image (Fourier space, circular); high: the rest, so that both sum to "
        "the image (high frequencies are shown around grey). Level 1 is noise, 0 data."
    )
    return draw_reverse(data), caption, True


def _quality_cost(
    wanted: QualityCost, section: Section, selected: Selected, style: Mapping[str, Look]
) -> Drawn | None:
    from ltbench.report.figures import draw_cost

    data = cost_plot(section, selected, wanted.metric, wanted.group)
    if data is None:
        return None
    name = data.y_label.splitlines()[0]
    text = (
        f"{name} ({wanted.group}) against {data.unit}, a point per milestone, the last one large. Ringed, and joined by the dashed "
        f"steps: the Pareto front, points that no cheaper one matches. {_spread(section, 'Error bar')} Trained on "
        f"{', '.join(data.devices)}."
    )
    if len(data.devices) > 1:
        text += " Hours on different devices do not compare."
    if data.unknown:
        text += f" No cost is on record for {', '.join(data.unknown)}."
    return draw_cost(data, style), text, False


def _guidance_curve(
    wanted: GuidanceCurve, section: Section, selected: Selected, style: Mapping[str, Look]
) -> Drawn | None:
    from ltbench.report.figures import draw_lines

    data = guidance_curve(section, selected, wanted.metric, wanted.groups)
    if data is None:
        return None
    caption = (
        f"{data.y_label.splitlines()[0]} against guidance w at step {section.shown:,}: every stored evaluation that differs in "
        f"nothing else, and the candidates of searches on their own samples. {_spread(section, 'Band')} Dotted: real images."
    )
    return draw_lines(data, style), caption, False


def _loss_curves(
    wanted: LossCurves, section: Section, selected: Selected, style: Mapping[str, Look]
) -> Drawn | None:
    from ltbench.report.figures import draw_lines

    data = loss_curves(section, selected, wanted.terms)
    if data is None:
        return None
    caption = f"Terms of the training loss, means over the logging window. {_spread(section, 'Band')}"
    return draw_lines(data, style, dense=True), caption, True
