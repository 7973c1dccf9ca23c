"""Which illustration stands for a row of a section, and which pictures a definition asks for and no record holds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from ltbench.report.axes import Planned
from ltbench.report.definition import Definition
from ltbench.report.figure_kinds import FeatureMap, Illustrated, Neighbours, ReverseProcess, Samples
from ltbench.report.sample_data import shown_classes
from ltbench.report.select import Record, Selected
from ltbench.report.table import Row, Section
from ltbench.report.waiting import waiting
from ltbench.report.words import INTERRUPTED, clean

# What does not decide image k of a sampling, beside the number of images; labels differ, since other classes are shown.
_NOT_SAMPLING = {
    *("id", "metrics", "samples", "classes", "labels", "groups", "estimators", "illustrate", "block"),
    *("reference", "crop", "protocol"),
}
_WORDS: dict[type[Illustrated], str] = {
    Neighbours: "nearest images",
    FeatureMap: "maps of features",
    ReverseProcess: "the reverse process",
}


def illustrations(section: Section, selected: Selected) -> Iterator[tuple[str, int, Record]]:
    """(label, training seed, record) of every own row that has one at the shown step, by its first such seed."""
    for row in section.rows:
        if row.external is None:
            found = next(_of_cells(section, selected, [cell for _, cell in row.cells]), None)
            if found is not None:
                yield clean(row.label), int(found["body"]["settings"]["seed"]), found


def _of_cells(section: Section, selected: Selected, cells: Sequence[str]) -> Iterator[Record]:
    for cell in cells:
        pictured = selected.illustrations.get((cell, section.shown), [])
        known = {
            _sampling(record["body"]["evaluation"])
            for key in (section.keys[cell] if pictured else ())
            for record in selected.at(*key)
        }
        for record in pictured:
            if _sampling(record["body"]["evaluation"]) in known:
                yield record


def _sampling(evaluation: Mapping[str, Any]) -> bytes:
    """Sampler, guidance, seed and extractor: an illustration belongs to the section whose images are made in this way."""
    from ltbench.canonical import canonical_json

    return canonical_json({k: v for k, v in evaluation.items() if k not in _NOT_SAMPLING})


def mixed_code(section: Section, selected: Selected) -> str:
    """A sentence where illustrations of one figure were made by different code; "" where they were not."""
    made: dict[str, list[str]] = {}
    for label, _, record in illustrations(section, selected):
        made.setdefault(str(record["body"]["code"]["evaluation"])[:8], []).append(label)
    if len(made) < 2:
        return ""
    told = "; ".join(f"{code} of {', '.join(labels)}" for code, labels in sorted(made.items()))
    return f" Made by different code of illustrations ({told}): rows may differ by it."


# --- what is not there ---------------------------------------------------------------------------------------------------


def picture_gaps(
    sections: Sequence[Section],
    definition: Definition,
    selected: Selected,
    planned: Sequence[Planned],
    states: Mapping[str, Mapping[str, str]],
    benchmarks: Sequence[str],
) -> list[str]:
    """What `definition` asks for and cannot be drawn yet: a sentence per section, with what it waits for or the command that makes it."""
    cells = {cell["cell"]: cell for cell in planned}
    name = clean(benchmarks[0]) if len(benchmarks) == 1 else "SPEC"
    lines = list(waiting(sections, definition, selected, planned))
    lines += [line for section in sections for line in _sample_gaps(section, definition, selected, name)]
    asked = [figure for figure in definition.figures if isinstance(figure, Illustrated)]
    if not asked:
        return lines
    nobody = True
    for section in sections:
        found = _lacking(section, selected, cells, states)
        held = len(list(illustrations(section, selected)))
        nobody &= not held and not any(found[text] for text in found if text)
        lines += _told(section, found, held, name)
    wanted = dict.fromkeys(_WORDS[type(figure)] for figure in asked if not figure.optional)
    if nobody and sections and wanted:
        what = ", ".join(wanted)
        lines.append(
            f"{what[0].upper()}{what[1:]}: no illustration is planned; {_command(name, 'tail')}, where the weights are, makes one."
        )
    return lines


def _command(name: str, classes: str) -> str:
    return f"`python harness.py evaluate {name} --add 'illustrate: {classes}'`"


def _lacking(
    section: Section,
    selected: Selected,
    cells: Mapping[str, Planned],
    states: Mapping[str, Mapping[str, str]],
) -> dict[str, list[str]]:
    """Labels of own rows without an illustration, by how the planned one stands; "" where none is planned."""
    found: dict[str, list[str]] = {}
    for row in section.rows:
        if (
            row.external is None
            and next(_of_cells(section, selected, [c for _, c in row.cells]), None) is None
        ):
            found.setdefault(_standing(section, row, selected, cells, states), []).append(clean(row.label))
    return found


def _standing(
    section: Section,
    row: Row,
    selected: Selected,
    cells: Mapping[str, Planned],
    states: Mapping[str, Mapping[str, str]],
) -> str:
    """Why a planned illustration of a row is not there; "" where none of the section's sampling is planned."""
    own = [cells[cell] for _, cell in row.cells if cell in cells]
    for cell in own:
        wanted = {_sampling(each) for each in cell["evaluations"] if each["id"] in section.ids}
        if not wanted & {_sampling(each) for each in cell.get("illustrations", ())}:
            continue
        if cell.get("unsupported"):
            return f"n/a: {cell['unsupported']}"
        state = states.get(cell["cell"])
        if state and state["text"] != INTERRUPTED:  # which may be of another record that it lacks
            return ": ".join(filter(None, (state["text"], state.get("detail"))))
        return "not made yet" if (cell["cell"], section.shown) in selected.train else "not trained yet"
    return ""


def _told(section: Section, found: Mapping[str, Sequence[str]], held: int, name: str) -> Iterator[str]:
    for text, labels in found.items():
        where = f"{section.title}, step {section.shown:,}: no illustration of {', '.join(labels)}"
        if text:
            yield clean(
                f"{where} ({text}); `python harness.py run {name}`, where the weights are, makes what is planned."
            )
        elif held:
            yield clean(f"{where} (not planned as this section samples); {_command(name, 'tail')} plans it.")


def _sample_gaps(section: Section, definition: Definition, selected: Selected, name: str) -> Iterator[str]:
    """Grids of classes that no kept picture shows. Rows without a record are the table's own gaps."""
    for figure in definition.figures:
        if not isinstance(figure, Samples):
            continue
        pictured = list(illustrations(section, selected))
        measured, shown = shown_classes(section, selected, figure.classes, figure.which, pictured)
        if shown or not measured:
            continue
        which = "tail" if figure.which == "spread" else figure.which
        text = which if isinstance(which, str) else ", ".join(which)
        asked = text if isinstance(which, str) else f"{{classes: [{text}]}}"
        yield clean(
            f"{section.title}, step {section.shown:,}: no kept picture shows {text}; {_command(name, asked)}, where the weights are, "
            "makes one of such classes as the data set has."
        )
