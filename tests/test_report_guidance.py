"""The best guidance of each row and one common to all: chosen on independent samples by a named rule, or refused."""

from __future__ import annotations

import csv
import io
import random
from pathlib import Path

import pytest

from ltbench.errors import SpecError
from ltbench.report import figure_data, render_csv, render_html, render_latex, render_markdown
from ltbench.report.assemble import build_table
from ltbench.report.build import write_report
from ltbench.report.definition import Definition, TableDefinition, load_definition
from ltbench.report.figure_kinds import GuidanceCurve
from ltbench.report.select import select
from ltbench.report.table import Inputs
from ltbench.report.words import section_line
from tests.report_world import evaluation, planned, record, selection

WS = (1.0, 1.5, 3.0)
GRID = [evaluation("euler", w) for w in WS]
BEST = {("sit", 0): 1.5, ("sit", 1): 1.5, ("ccua", 0): 3.0, ("ccua", 1): 1.0}


def definition(guidance, **more) -> Definition:
    return Definition(
        name="n", table=TableDefinition(metrics=["FD"], groups=["all", "tail"], guidance=guidance, **more)
    )


def world(chosen=BEST, rule="min-of-search"):
    """Two methods, two seeds, three values of w, each value shifting FD by w; and a selection for every cell in `chosen`."""
    cells = [planned(m, s, evaluations=GRID) for m in ("sit", "ccua") for s in (0, 1)]
    records = []
    for cell in cells:
        for step in cell["milestones"]:
            for which in GRID:
                made = record(cell, step, which, nfe=20 if which["guidance"] == 1 else 40)
                for row in made["body"]["rows"]:
                    row["value"] += which["guidance"]
                records.append(made)
        key = cell["label"], cell["settings"]["seed"]
        if key in chosen:
            which = next(w for w in GRID if w["guidance"] == chosen[key])
            values = {w: 10 + abs(w - chosen[key]) for w in WS}
            records += [selection(cell, step, which, values, rule) for step in cell["milestones"]]
    return cells, records


def build(found, wanted):
    return build_table(Inputs("b", "B", *found), wanted)


def test_each_is_a_section_per_value_as_before():
    table = build(world(), definition("each"))
    assert [s.evaluation["guidance"] for s in table.sections] == list(WS)
    assert {s.chosen_by for s in table.sections} == {""}


def test_best_takes_every_cell_at_the_guidance_that_was_chosen_for_it():
    cells, records = world()
    each = build((cells, records), definition("each"))
    table = build((cells, records), definition("best"))
    (section,) = table.sections
    assert [row.label for row in section.rows] == ["sit, w=1.5", "ccua, w=1/3"]
    for i, method in enumerate(("sit", "ccua")):
        for j in range(2):
            for step in section.steps:
                found = section.entry(i, j, step)
                for seed, value in enumerate(found.values):
                    place = WS.index(BEST[method, seed])
                    assert value == each.sections[place].entry(i, j, step).values[seed]
    assert section.missing == ()
    assert "rule min-of-search on FD, tail chose for it on independent samples" in section_line(section)
    assert "chosen guidance" in section.title
    assert "w = 1" not in " ".join(table.notes)
    assert any("per image differ between rows" in note for note in table.notes)  # w = 1 costs half
    rows = [r for r in csv.DictReader(io.StringIO(render_csv.render_csv(table))) if r["step"] == "560"]
    shown = {(r["label"], r["seed"]): r["guidance"] for r in rows if r["kind"] in ("mean", "seed")}
    assert shown == {
        ("sit, w=1.5", ""): "1.5", ("sit, w=1.5", "0"): "1.5", ("sit, w=1.5", "1"): "1.5",
        ("ccua, w=1/3", ""): "1.0; 3.0", ("ccua, w=1/3", "0"): "3.0", ("ccua, w=1/3", "1"): "1.0",
    }  # fmt: skip
    assert "min-of-search" in render_latex.render_latex(table).split(r"\bottomrule")[1]


@pytest.mark.parametrize("render", [render_markdown.render_markdown, render_latex.render_latex])
def test_best_without_selections_is_refused_with_the_reason(render):
    table = build(world({}), definition("best"))
    (section,) = table.sections
    assert all(entry.mean is None for entry in section.entries.values())
    assert {gap.text for gap in section.missing} == {"no guidance chosen"}
    assert "the values that a table reports flatter whatever was chosen by them" in render(table)


def test_a_cell_without_its_selection_is_missing_and_says_so():
    some = {key: w for key, w in BEST.items() if key != ("ccua", 1)}
    section = build(world(some), definition("best")).sections[0]
    assert (section.entry(1, 0).n, section.entry(1, 0).planned) == (1, 2)
    (gap,) = section.missing
    assert (gap.label, gap.seed, gap.detail) == ("ccua, w=3", 1, "no selection record")


def test_a_selection_that_contradicts_its_evaluation_is_refused():
    cells, records = world()
    for made in records:
        if made["body"]["kind"] == "selection" and made["body"]["cell"] == cells[3]["cell"]:
            made["body"]["chosen"] = 2.0
    section = build((cells, records), definition("best")).sections[0]
    (gap,) = section.missing
    assert "guidance 2 was chosen, but its evaluation" in gap.detail
    assert "sampled at 1" in gap.detail


def test_rows_chosen_by_another_rule_are_refused_unless_that_rule_is_asked_for():
    cells, records = world({key: w for key, w in BEST.items() if key[0] == "sit"})
    other = [selection(c, 560, GRID[2], {1.0: 5.0}, "other-rule", metric="KD") for c in cells[2:3]]
    section = build((cells, [*records, *other]), definition("best")).sections[0]
    assert section.entry(1, 0).n == 0
    details = {gap.detail for gap in section.missing}
    assert "chosen by rule other-rule on KD, tail, not by rule min-of-search on FD, tail" in details
    assert "other-rule" in section.chosen_by
    asked = build((cells, [*records, *other]), definition("best", rule="other-rule")).sections[0]
    assert (asked.entry(0, 0).n, asked.entry(1, 0).n) == (0, 1)


def test_a_selection_of_another_protocol_does_not_count():
    """Its final evaluation differs in more than guidance."""
    cells, records = world({})
    far = {**GRID[1], "protocol": "adm-50k", "id": "f" * 12}
    records += [record(cells[0], 560, far), selection(cells[0], 560, far, {1.5: 1.0})]
    section = build((cells, records), definition("best")).sections[0]
    assert section.entry(0, 0).n == 0


def test_common_is_named_by_the_definition_or_chosen_by_all_rows():
    cells, records = world()
    each = build((cells, records), definition("each"))
    (named,) = build((cells, records), definition("common", common_guidance=3.0)).sections
    assert named.entries == each.sections[2].entries
    assert "named by the report's definition" in named.chosen_by
    (chosen,) = build((cells, records), definition("common")).sections
    # means over cells of 10 + |w - best|: w=1: .5+.5+2+0; w=1.5: 0+0+1.5+.5; w=3: 1.5+1.5+0+2
    assert chosen.entries == each.sections[1].entries
    assert "Guidance 1.5 is common to all rows" in chosen.chosen_by
    assert "3 candidates (1, 1.5, 3) on 100 independent images each" in chosen.chosen_by
    (refused,) = build(world({k: BEST[k] for k in list(BEST)[:3]}), definition("common")).sections
    assert refused.entry(0, 0).n == 0
    assert "common is refused" in section_line(refused)


def test_common_compares_candidates_of_equally_many_images_only():
    """A finalist on more images looks better by its smaller bias alone."""
    cells, records = world()
    for made in records:
        if made["body"]["kind"] == "selection":
            made["body"]["candidates"].append({"guidance": 3.0, "value": 1.0, "se": 0.1, "n": 500})
    (chosen,) = build((cells, records), definition("common")).sections
    assert "Guidance 1.5 is common" in chosen.chosen_by


def test_a_coarse_round_is_told_apart_at_equally_many_images():
    """Its sampler has another level and another best value."""
    cells, records = world()
    euler = {"sampler": "euler", "steps": 20, "se": 0.1, "n": 100}
    for made in records:
        if made["body"]["kind"] == "selection":
            coarse = [{"guidance": w, "value": 5 - w, **euler} for w in WS]
            made["body"]["candidates"] = coarse + made["body"]["candidates"][:2]
    (chosen,) = build((cells, records), definition("common")).sections
    assert "Guidance 3 is common" in chosen.chosen_by
    assert "3 candidates (1, 1.5, 3) on 100 independent images each by euler 20 steps" in chosen.chosen_by
    section = build((cells, records), definition("each")).sections[0]
    plot = figure_data.guidance_curve(section, select(records), "FD", ["tail"])
    assert plot is not None
    panels = {panel.title: panel.lines[0] for panel in plot.panels}
    assert list(panels) == [
        "tail",
        "tail, search on 100 images",
        "tail, search on 100 images, euler 20 steps",
    ]
    assert panels["tail, search on 100 images, euler 20 steps"].mean == (4, 3.5, 2)
    assert panels["tail, search on 100 images"].x == WS[:2]


def test_one_value_for_which_nothing_was_chosen_stays():
    cells = [planned(m, 0) for m in ("sit", "ccua")]
    records = [record(cell, 560) for cell in cells]
    plain = build((cells, records), definition("each"))
    for mode in ("best", "common"):
        assert build((cells, records), definition(mode)) == plain


@pytest.mark.parametrize("mode", ["best", "common"])
def test_the_order_of_records_changes_nothing(mode):
    cells, records = world()
    first = build((cells, records), definition(mode))
    for seed in range(4):
        random.Random(seed).shuffle(records)
        assert build((cells, records), definition(mode)) == first
    assert render_html.render_html(first, [], [])


def test_a_curve_holds_every_stored_point_and_keeps_searches_apart():
    cells, records = world()
    more = evaluation("euler", 2.0)  # stored, never planned
    records += [record(cell, 560, more) for cell in cells]
    far = {**GRID[1], "protocol": "adm-50k"}
    records.append(record(cells[0], 560, {**far, "id": "f" * 12}))
    table = build((cells, records), definition("each"))
    plot = figure_data.guidance_curve(table.sections[0], select(records), "FD", ["all", "tail"])
    assert plot is not None
    assert [panel.title for panel in plot.panels] == ["all", "tail", "tail, search on 100 images"]
    line = plot.panels[0].lines[0]
    assert (line.label, line.x) == ("sit", (1.0, 1.5, 2.0, 3.0))
    assert line.mean[1] == pytest.approx(table.sections[1].entry(0, 0).mean)
    assert line.sd[1] == pytest.approx(table.sections[1].entry(0, 0).sd)
    search = plot.panels[2].lines[1]
    assert search.mean == pytest.approx(((12.0 + 10.0) / 2, (11.5 + 10.5) / 2, (10.0 + 12.0) / 2))
    best = build((cells, records), definition("best")).sections[0]
    again = figure_data.guidance_curve(best, select(records), "FD", ["all", "tail"])
    assert again is not None
    assert [line.mean for panel in again.panels for line in panel.lines] == [
        line.mean for panel in plot.panels for line in panel.lines
    ]
    single = build(([planned("sit", 0)], [record(planned("sit", 0), 560)]), definition("each")).sections[0]
    assert figure_data.guidance_curve(single, select([]), "FD", ["all"]) is None


def test_the_curve_is_drawn_once_per_family(tmp_path):
    wanted = Definition(
        name="n",
        table=TableDefinition(metrics=["FD"]),
        figures=[GuidanceCurve(kind="guidance_curve", metric="FD")],
    )
    report = write_report(Inputs("b", "B", *world()), wanted, lambda r, n: None, tmp_path, ("png",))
    assert list(report.paths) == ["png:1-sit-1-guidance_curve"]


def test_an_unknown_mode_is_a_mistake_of_the_definition(tmp_path: Path):
    path = tmp_path / "x.yaml"
    path.write_text("name: x\ntable:\n  guidance: bset\n")
    with pytest.raises(SpecError, match="guidance"):
        load_definition(path)
