"""The figures of a definition, drawn for every section of a table."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ltbench.canonical import canonical_json
from ltbench.report.definition import (
    ClassQuality,
    Definition,
    FigureDefinition,
    GroupBars,
    GuidanceCurve,
    LossCurves,
    MetricSteps,
    Samples,
)
from ltbench.report.figure_data import (
    Fetch,
    class_plot,
    group_bars,
    guidance_curve,
    loss_curves,
    metric_steps,
    sample_grid,
)
from ltbench.report.identity import family_id
from ltbench.report.render_html import Picture
from ltbench.report.select import Selected
from ltbench.report.table import Section, Table
from ltbench.report.words import clean

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from ltbench.report.figures import Look

Drawn = tuple["Figure", str, bool]  # figure, caption, wide


def draw_all(table: Table, definition: Definition, selected: Selected, fetch: Fetch) -> list[Picture]:
    """Every figure that has something to show, section by section, in the definition's order."""
    from ltbench.report import figures

    found, drawn_families = [], set()
    with figures.drawing():
        style = figures.looks([clean(label) for label in table.labels()])
        for place, section in enumerate(table.sections):
            family = section.part, canonical_json(section.dataset), family_id(section.evaluation)
            for number, wanted in enumerate(definition.figures, 1):
                if isinstance(wanted, GuidanceCurve) and (family, number) in drawn_families:
                    continue  # one curve holds all sections that differ in their guidance only
                drawn_families.add((family, number))
                drawn = _draw(wanted, section, selected, fetch, style)
                if drawn is not None:
                    name = f"{place + 1}-{_slug(section.part)}-{number}-{wanted.kind}"
                    found.append(Picture(place, name, drawn[1], figures.png(drawn[0]), drawn[2]))
    return found


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
    if data is None:
        return None
    name = data.y_label.splitlines()[0]
    trend = "" if len(data.names) <= FEW_CLASSES else " Lines: moving averages over neighbouring classes."
    caption = (
        f"Class frequency against {name} of the class at step {section.shown:,}. "
        f"{_spread(section, 'Error bar')} Dotted: real images. A class has few images, so read the trend.{trend}"
    )
    return draw_classes(data, style), caption, True


def _samples(wanted: Samples, section: Section, selected: Selected, fetch: Fetch) -> Drawn | None:
    from ltbench.report.figures import draw_samples

    data = sample_grid(section, selected, fetch, wanted.per_class, wanted.classes)
    if data is None:
        return None
    seeds = sorted(set(data.seeds.values()))
    which = f"training seed {seeds[0]}" if len(seeds) == 1 else "the first finished training seed of each row"
    caption = (
        f"Samples at step {section.shown:,} ({which}), classes from most to fewest training images (number under the "
        "name). Every row starts from the same noise in each column; the first images of a class are shown, none chosen. "
        "Top row: real images."
    )
    return draw_samples(data), caption, True


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
    return draw_lines(data, style, markers=False), caption, True
