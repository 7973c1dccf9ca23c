"""Rows of what was not trained here: marked in every view, never ranked, refused where measured otherwise."""

from __future__ import annotations

import csv
import io
import random
from dataclasses import replace
from pathlib import Path

import pytest
from rich.console import Console

from ltbench.report import render_csv, render_html, render_latex, render_markdown
from ltbench.report.assemble import build_table
from ltbench.report.build import write_report
from ltbench.report.definition import load_definition
from ltbench.report.render_terminal import render_terminal
from ltbench.report.table import Inputs, Table
from tests.report_world import evaluation, external, fact, planned, quickstart, record

ROOT = Path(__file__).resolve().parents[1]
SUMMARY = load_definition(ROOT / "reports" / "summary.yaml")
DECLARED = {"sampler": "euler", "steps": 20, "guidance": 1.5, "training_images": 1_000_000}


def build(*externals, cells=None) -> Table:
    cells = cells or [planned(m, s) for m in ("sit", "ccua") for s in (0, 1)]
    records = [record(cell, step) for cell in cells for step in cell["milestones"]]
    return build_table(Inputs("b", "B", cells, records, externals=externals), SUMMARY)


def terminal(table: Table) -> str:
    target = io.StringIO()
    render_terminal(table, Console(file=target, width=160))
    return target.getvalue()


VIEWS = {
    "terminal": terminal,
    "markdown": render_markdown.render_markdown,
    "latex": render_latex.render_latex,
    "html": lambda table: render_html.render_html(table, [], []),
}


def note_of(table: Table, row: int) -> str:
    return " ".join(table.notes[number - 1] for number in table.sections[0].rows[row].notes)


def test_an_external_row_stands_last_with_its_values_and_its_declaration():
    made = external(declared=DECLARED)
    table = build(made)
    section = table.sections[0]
    assert [row.label for row in section.rows] == ["sit", "ccua", "adm (external)"]
    found = section.entry(2, 0)
    assert (found.mean, found.n, found.planned) == (made["body"]["rows"][0]["value"], 1, 1)
    assert (found.values[0].seed, found.values[0].digest) == (None, made["digest"])
    assert section.seeds_planned == 2
    text = note_of(table, 2)
    assert "external samples, sha256" in text
    assert "not trained here, and not ranked" in text
    assert "sampler euler" in text
    assert "training_images 1000000" in text
    assert "Not the section's" not in text
    assert "Not declared" not in text
    assert section.missing == ()
    assert section.entry(2, 0, 280).mean is None  # it has none of our milestones


@pytest.mark.parametrize("view", list(VIEWS))
def test_it_is_marked_and_footnoted_in_every_view(view):
    table = build(external(declared={**DECLARED, "guidance": 4.0}))
    text = " ".join(VIEWS[view](table).split())
    assert "adm (external)" in text
    assert "Declared: guidance 4" in text
    assert "guidance (1.5, here 4.0)" in text


def test_csv_says_external_and_prints_it_at_no_step_of_ours():
    table = build(external(declared=DECLARED))
    rows = [
        r for r in csv.DictReader(io.StringIO(render_csv.render_csv(table))) if r["label"].startswith("adm")
    ]
    assert {(r["external"], r["step"], r["seed"]) for r in rows} == {("samples", "", "")}
    assert len(rows) == 2 * 16  # a mean and a value in every column, once
    assert {r["verdict"] for r in rows} == {""}


def test_what_was_sampled_otherwise_or_not_said_is_a_footnote():
    other = note_of(build(external(declared={"sampler": "ddim", "steps": 250})), 2)
    assert "Not the section's: sampler (euler, here ddim), steps (20, here 250)." in other
    assert "Not declared: guidance." in other
    nothing = note_of(build(external()), 2)
    assert "Declared: nothing. Not declared: guidance, sampler, steps." in nothing


@pytest.mark.parametrize(
    ("key", "value", "said"),
    [
        ("protocol", "adm-50k", "protocol (small-data, here adm-50k)"),
        ("samples", 50000, "samples (500, here 50000)"),
        (
            "reference",
            "fashion_mnist:train",
            "reference (fashion_mnist:test-balanced, here fashion_mnist:train)",
        ),
        (
            "extractor",
            {"name": "other", "sha256": 64 * "9"},
            "extractor (fashion-cnn-v1@1a2b3c4d, here other@99999999)",
        ),
    ],
)
def test_what_was_measured_otherwise_is_refused_by_both_names(key, value, said):
    made = external(which={**evaluation(), key: value}, declared=DECLARED)
    table = build(made)
    assert [row.label for row in table.sections[0].rows] == ["sit", "ccua"]
    (text,) = table.notes
    assert text.startswith(f"External adm is refused here (evaluation {evaluation()['id']})")
    assert said in text


def test_a_value_that_does_not_fit_its_column_is_refused_like_any_other():
    made = external(declared=DECLARED)
    made["body"]["rows"][0]["n_gen"] = 400
    made["body"]["rows"][1]["estimator"] = "scipy"
    table = build(made)
    section = table.sections[0]
    for column, said in ((0, "n_gen (500, here 400)"), (1, "estimator (FD by hand, here scipy)")):
        found = section.entry(2, column)
        assert found.missing[0].text == "refused"
        assert said in table.notes[found.notes[0] - 1]
        assert "seed" not in table.notes[found.notes[0] - 1]
    assert section.entry(2, 2).n == 1


def test_it_changes_nothing_about_the_other_rows():
    """Not their marks, not their differences, not what their columns are, however many there are."""
    best = [external(f"x{i}", declared=DECLARED) for i in range(9)]
    for made in best:
        for row in made["body"]["rows"]:
            row.update(value=1e-6 if row["better"] == "lower" else 1.0, estimator="scipy", n_gen=400)
    with_them, without = build(*best).sections[0], build().sections[0]
    assert with_them.columns == without.columns
    for place in without.entries:
        assert with_them.entries[place] == without.entries[place]
    assert with_them.differences == without.differences
    leader = external(declared=DECLARED)
    for row in leader["body"]["rows"]:
        row["value"] = 1e-6 if row["better"] == "lower" else 1.0
    fits = build(leader).sections[0]
    assert {place: fits.entries[place] for place in without.entries} == without.entries
    assert "best" in {entry.mark for entry in without.entries.values()}
    assert all(fits.entry(2, j).mark == "" for j in range(len(fits.columns)))


def test_another_data_set_is_said_below_and_two_of_one_name_are_told_apart():
    elsewhere = external("far", declared=DECLARED)
    elsewhere["body"]["settings"]["dataset"] = {"name": "cifar10"}
    assert "External far stands in no section: its data set is {name: cifar10}." in build(elsewhere).notes
    twin = external(declared={**DECLARED, "sampler": "heun"})
    twin["body"]["external"]["sha256"] = 64 * "8"
    table = build(external(declared=DECLARED), twin)
    labels = [row.label for row in table.sections[0].rows[2:]]
    assert len(set(labels)) == 2
    assert "adm (external, 88888888)" in labels


def test_the_order_of_records_changes_nothing_and_a_report_can_be_written(tmp_path):
    inputs = quickstart()
    made = [external(name, declared=DECLARED) for name in ("adm", "edm", "biggan")]
    first = build_table(replace(inputs, externals=made), SUMMARY)
    for seed in range(3):
        random.Random(seed).shuffle(made)
        assert build_table(replace(inputs, externals=made), SUMMARY) == first
    assert [len(section.rows) for section in first.sections] == [7, 2 + 3]
    report = write_report(
        replace(inputs, externals=made[:1]), SUMMARY, lambda r, n: fact(n), tmp_path, ("md",)
    )
    assert "(external)" in report.paths["md"].read_text()
    assert "10 training runs" in render_html.render_html(first, [], [])
