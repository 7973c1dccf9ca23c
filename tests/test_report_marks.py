"""Paired differences, what their error is over, and which rows may be called best, second best or a tie."""

from __future__ import annotations

import csv
import io
import math
import random
import re
import statistics
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from ltbench.report import render_csv, render_html, render_latex, render_markdown, words
from ltbench.report.assemble import build_table
from ltbench.report.definition import Definition, TableDefinition, load_definition
from ltbench.report.differences import difference
from ltbench.report.marks import marks
from ltbench.report.render_terminal import render_terminal
from ltbench.report.table import Column, Entry, Inputs, SeedValue
from tests.report_world import planned, quickstart, record

ROOT = Path(__file__).resolve().parents[1]
SUMMARY = load_definition(ROOT / "reports" / "summary.yaml")
G = 10


def column(better: str = "lower", metric: str = "KD") -> Column:
    return Column(metric, metric, "all", better, 1, None, 500, 2000, 500)


def value(seed: int, v: float, folds=None, se=None) -> SeedValue:
    return SeedValue(seed, v, "c", "d", se=se, folds=None if folds is None else tuple(folds), n=500)


def entry(*found: SeedValue, planned: int | None = None) -> Entry:
    mean = statistics.fmean(v.value for v in found) if found else None
    sd = statistics.stdev([v.value for v in found]) if len(found) > 1 else None
    return Entry(mean, sd, planned or len(found), found, ())


def seeds(*values: float | None) -> Entry:
    return entry(*(value(i, v) for i, v in enumerate(values) if v is not None), planned=len(values))


def jackknifed(level: float, noise: random.Random, size: float, seed: int = 0) -> SeedValue:
    return value(seed, level, [level + noise.gauss(0, size) for _ in range(G)])


# differences


def test_the_error_over_seeds_is_that_of_the_paired_differences():
    a, b = [1.0, 5.0, 9.0], [2.0, 6.1, 9.9]
    gaps = [x - y for x, y in zip(a, b, strict=True)]
    found = difference(seeds(*a), seeds(*b), column())
    assert found is not None
    assert found.value == pytest.approx(statistics.mean(gaps), rel=1e-14)
    assert found.error == pytest.approx(statistics.stdev(gaps) / math.sqrt(3), rel=1e-12)
    assert (found.seeds, found.source, found.verdict) == (3, "seeds", "better")


def test_one_common_seed_takes_the_jackknife_over_folds_of_the_difference():
    """For the mean of n numbers in equal folds the jackknife has a closed form: g groups' means and their spread."""
    noise = random.Random(1)
    x = [[noise.gauss(3, 1) for _ in range(20)] for _ in range(G)]
    y = [[one + noise.gauss(0.5, 0.2) for one in fold] for fold in x]  # paired: the same images' noise

    def mean_with_folds(data):
        whole = statistics.fmean(v for fold in data for v in fold)
        return whole, [
            statistics.fmean(v for other, fold in enumerate(data) if other != f for v in fold)
            for f in range(G)
        ]

    (a, left), (b, right) = mean_with_folds(x), mean_with_folds(y)
    found = difference(entry(value(0, a, left)), entry(value(0, b, right)), column())
    per_fold = [statistics.fmean(p) - statistics.fmean(q) for p, q in zip(x, y, strict=True)]
    assert found is not None
    assert found.error == pytest.approx(statistics.stdev(per_fold) / math.sqrt(G), rel=1e-9)
    assert (found.source, found.seeds, found.verdict) == ("folds", 1, "better")
    unpaired = math.hypot(*(statistics.stdev(map(statistics.fmean, data)) / math.sqrt(G) for data in (x, y)))
    assert (found.error or 9) < unpaired / 3  # what pairing is for


def test_the_larger_of_seeds_and_folds_counts():
    noise = random.Random(2)
    lucky = [entry(*(jackknifed(level + s, noise, 0.3, s) for s in (0, 1))) for level in (1.0, 2.0)]
    close = difference(
        lucky[0], lucky[1], column()
    )  # the seeds agree exactly on the difference, the samples do not
    assert close is not None
    assert close.source == "folds"
    assert close.verdict == "tie"
    wide = [replace(lucky[0], values=(lucky[0].values[0], lucky[0].values[1]._replace(value=9.0))), lucky[1]]
    found = difference(wide[0], wide[1], column())
    assert found is not None
    assert found.source == "seeds"


def test_without_a_common_seed_or_an_error_there_is_no_verdict():
    assert difference(seeds(1.0, None), seeds(None, 1.0), column()) is None
    alone = difference(seeds(1.0), seeds(2.0), column())
    assert alone is not None
    assert (alone.value, alone.error, alone.verdict) == (-1.0, None, "")
    steps = difference(seeds(0.3, 0.3), seeds(0.301, 0.301), column())  # one image of a thousand, twice
    assert steps is not None
    assert (steps.error, steps.verdict) == (None, "")
    for folds in ([1.0] * 9, [1.0]):  # another number of folds is not the same folds
        other = difference(entry(value(0, 1.0, [1.0] * 10)), entry(value(0, 2.0, folds)), column())
        assert other is not None
        assert other.error is None


@pytest.mark.parametrize(("gap", "verdict"), [(0.0131, "better"), (0.0129, "tie")])
def test_a_frechet_distance_must_differ_by_more_than_its_retraining_noise(gap, verdict):
    a, b = (
        seeds(*(100 * (1 - gap) + s for s in (0.0, 1.0, 0.001))),
        seeds(*(100 + s for s in (0.0, 1.0, 0.0))),
    )
    for metric in ("FD", "sFD"):
        found = difference(a, b, column("lower", metric))
        assert found is not None
        assert found.error is not None
        assert abs(found.value) > 100 * found.error
        assert found.verdict == verdict
    found = difference(a, b, column("lower", "KD"))
    assert found is not None
    assert found.verdict == "better"


def test_closer_to_zero_is_judged_by_the_distance_from_zero():
    honest, copies = seeds(0.5, -0.4, 0.45), seeds(-20.0, -22.0, -21.0)
    found = difference(honest, copies, column("zero", "CT"))
    assert found is not None
    assert found.value == pytest.approx(statistics.fmean([0.5, 0.4, 0.45]) - 21)
    assert found.verdict == "better"
    assert marks([copies, honest], column("zero", "CT")) == {1: "best"}
    assert marks([copies, honest], column("lower", "CT")) == {0: "best"}
    noise = random.Random(3)
    near = entry(
        value(0, 0.1, [0.1 + 0.5 * noise.gauss(0, 1) for _ in range(G)])
    )  # its folds lie on both sides of 0
    far = entry(value(0, 1.0, [1.0] * G))
    error = difference(near, far, column("zero", "CT"))
    raw = difference(near, far, column("lower", "CT"))
    assert error is not None
    assert raw is not None
    assert error.error == raw.error  # folding the folds at 0 would have made it smaller
    neither = difference(honest, copies, column("", "CT"))
    assert neither is not None
    assert neither.verdict == "differs"
    assert marks([copies, honest], column("", "CT")) == {}


# marks


def test_best_needs_more_than_two_standard_errors_of_the_paired_difference():
    # far apart seeds, steady differences
    steady = [seeds(1.0, 5.0, 9.0), seeds(2.0, 6.1, 9.9), seeds(3.1, 7.0, 10.8)]
    assert marks(steady, column()) == {0: "best", 1: "second"}
    assert marks(steady, column("higher")) == {2: "best", 1: "second"}
    shaky = [seeds(1.0, 5.0, 9.0), seeds(0.0, 7.0, 9.5)]
    assert marks(shaky, column()) == {0: "tie", 1: "tie"}


def test_the_threshold_is_two_standard_errors():
    # differences 1 and x: mean (1 + x) / 2, standard error |1 - x| / 2, so the mark needs (1 + x) > 2 |1 - x|, x in (1/3, 3)
    for x, first in ((0.32, "tie"), (0.35, "best"), (2.9, "best"), (3.1, "tie")):
        assert marks([seeds(0.0, 0.0), seeds(1.0, x)], column())[0] == first


def test_a_tie_for_second_stands_below_a_best():
    rows = [seeds(1.0, 1.1, 1.2), seeds(5.0, 5.5, 5.2), seeds(5.1, 5.3, 5.3), seeds(9.0, 9.3, 9.1)]
    assert marks(rows, column()) == {0: "best", 1: "tie", 2: "tie"}


def test_what_cannot_be_compared_is_not_marked():
    assert marks([seeds(1.0), seeds(2.0)], column()) == {}
    assert marks([seeds(1.0, 1.1), seeds(9.0)], column()) == {}
    assert marks([seeds(1.0, 1.1, None, None), seeds(None, None, 9.0, 9.1)], column()) == {}  # no common seed
    assert marks([seeds(1.0, 1.1), seeds(None, None)], column()) == {}
    assert marks([seeds(1.0, 1.0), seeds(1.0, 1.0)], column()) == {0: "tie", 1: "tie"}
    assert marks([seeds(1.0, 1.1), seeds(2.0, 2.2)], column()) == {0: "best"}  # the last is never second
    assert marks([seeds(0.3, 0.3), seeds(0.301, 0.301)], column()) == {}  # one image of a thousand, twice
    assert marks([], column()) == {}


@st.composite
def _columns(draw):
    """Up to 5 rows of 0 to 3 seeds on a coarse grid, so that equal means, equal differences and gaps all happen."""
    number = st.integers(-4, 8).map(lambda i: i / 2)
    folds = st.none() | st.lists(number, min_size=4, max_size=4)
    rows = []
    for _ in range(draw(st.integers(2, 5))):
        present = draw(st.lists(st.integers(0, 2), unique=True, max_size=3))
        rows.append(entry(*(value(s, draw(number), draw(folds)) for s in sorted(present)), planned=3))
    return rows, column(
        draw(st.sampled_from(["lower", "higher", "zero", ""])), draw(st.sampled_from(["FD", "KD"]))
    )


@settings(max_examples=150, deadline=None)
@given(_columns(), st.randoms(use_true_random=False))
def test_verdicts_are_symmetric_and_marks_do_not_depend_on_the_order_of_rows(made, chance):
    rows, where = made
    mirror = {"better": "worse", "worse": "better", "tie": "tie", "differs": "differs", "": ""}
    for a in rows:
        for b in rows:
            there, back = difference(a, b, where), difference(b, a, where)
            assert (there is None) == (back is None)
            if there is not None and back is not None:
                assert (back.value, back.error) == (-there.value, there.error)
                assert back.verdict == mirror[there.verdict]
    found = marks(rows, where)
    order = list(range(len(rows)))
    chance.shuffle(order)
    assert {order[i]: mark for i, mark in marks([rows[o] for o in order], where).items()} == found
    counts = [list(found.values()).count(mark) for mark in ("best", "second", "tie")]
    assert counts[0] <= 1
    assert counts[1] <= counts[0]
    assert counts[2] != 1  # nobody ties alone


# in the table


def test_an_entry_carries_the_noise_of_its_networks_and_old_records_none():
    inputs = quickstart()
    sit = build_table(inputs, SUMMARY).sections[0]
    bodies = {r["digest"]: r["body"] for r in inputs.records}
    found = sit.entry(1, 0).values[1]
    row = bodies[found.digest]["rows"][0]
    assert (found.se, found.corrected, found.n) == (row["se"], row["corrected"], 500)
    assert found.folds == tuple(row["folds"])
    assert sit.entry(1, 0).se is None  # two seeds have a spread
    assert sit.entry(1, 0).corrected == pytest.approx(
        statistics.fmean(v.corrected or 0.0 for v in sit.entry(1, 0).values)
    )
    ddpm = build_table(inputs, SUMMARY).sections[1]
    assert ddpm.entry(0, 0).se == ddpm.entry(0, 0).values[0].se
    cell = planned("sit", 0)
    old = record(cell, 560)
    for row in old["body"]["rows"]:
        for key in ("se", "corrected", "folds", "estimator"):
            del row[key]
    section = build_table(Inputs("b", "B", [cell], [old]), SUMMARY).sections[0]
    found = section.entry(0, 0).values[0]
    assert (found.se, found.corrected, found.folds) == (None, None, None)
    assert section.columns[0].estimator is None


def test_every_row_is_compared_with_its_pipelines_baseline_at_its_own_settings():
    table = build_table(quickstart(), SUMMARY)
    for section, base in zip(table.sections, ("sit", "ddpm"), strict=True):
        names = [None if row.baseline is None else section.rows[row.baseline].label for row in section.rows]
        assert names == [None if row.label == base else base for row in section.rows]
        for (i, j, step), gap in section.differences.items():
            column = section.columns[j]
            base_row = section.rows[i].baseline
            assert base_row is not None
            assert gap == difference(section.entry(i, j, step), section.entry(base_row, j, step), column)
    cells = [
        planned(m, 0, label=f"{m} (resample={r})", resample=r) for r in (0.1, 0.5) for m in ("sit", "ccua")
    ]
    cells.append(planned("ccua", 0))
    section = build_table(Inputs("b", "B", cells, [record(c, 560) for c in cells]), SUMMARY).sections[0]
    assert [row.baseline for row in section.rows] == [None, 0, None, 2, None]


def test_one_seed_shows_its_sampling_error_and_says_so():
    table = build_table(quickstart(), SUMMARY)
    sit, ddpm = table.sections
    one, two = (
        words.printed(ddpm.entry(0, 0), ddpm.columns[0], {}),
        words.printed(sit.entry(0, 0), sit.columns[0], {}),
    )
    assert (one.sd, one.count) == ("", "n=1")
    assert words.spread(one) == f" ±{ddpm.entry(0, 0).se:.3f} SE"
    assert (two.se, two.count, words.spread(two)) == ("", "", f" ±{sit.entry(0, 0).sd:.3f}")
    assert words.method_heading(sit) == "method (n=2)"
    target = io.StringIO()
    render_terminal(table, Console(file=target, width=200))
    views = [
        target.getvalue(),
        render_markdown.render_markdown(table),
        render_html.render_html(table, [], []),
    ]
    for text in views:
        assert " SE" in text
        assert "(n=1)" in text
        assert "standard error over the samples of that one network" in " ".join(text.split())
    latex = render_latex.render_latex(table)
    assert r"\,\mathrm{SE}$ (n=1)" in latex
    assert "standard error over its samples" in latex


def tied_table():
    """sit and ccua are the same up to noise, cbdm is far off."""
    cells = [planned(m, s) for m in ("sit", "ccua", "cbdm") for s in (0, 1, 2)]
    records = []
    for cell in cells:
        made = record(cell, 560)
        level = {"sit": 10.0, "ccua": 10.01, "cbdm": 20.0}[cell["settings"]["method"]["name"]]
        row = made["body"]["rows"][0]
        noise = random.Random(cell["cell"])
        row |= {"value": level * (1 + noise.gauss(0, 0.004)), "folds": None}
        records.append(made)
    narrow = Definition(name="n", table=TableDefinition(metrics=["FD"], groups=["all"], differences=True))
    return build_table(Inputs("b", "B", cells, records), narrow)


def test_ties_are_seen_and_explained_in_every_view():
    table = tied_table()
    section = table.sections[0]
    assert [section.entry(i, 0).mark for i in range(3)] == ["tie", "tie", ""]
    target = io.StringIO()
    render_terminal(table, Console(file=target, width=120))
    assert len(re.findall(r"≈\d", target.getvalue())) == 2
    assert "≈ is a tie" in target.getvalue()
    raw = io.BytesIO()
    ascii_only = io.TextIOWrapper(raw, encoding="ascii", write_through=True)
    render_terminal(table, Console(file=ascii_only, width=120))
    assert len(re.findall(rb"~\d", raw.getvalue())) == 2
    text = render_markdown.render_markdown(table)
    assert len(re.findall(r"\| ≈\d", text)) == 2
    assert "≈ is a tie" in text
    assert "≈ tie |" in text  # of the difference
    text = render_latex.render_latex(table)
    assert len(re.findall(r"\$\{\\approx\}\d", text)) == 2
    assert r"$\approx$: tie for that place" in text.split(r"\bottomrule")[1]
    text = render_html.render_html(table, [], [])
    assert len(re.findall(r'<span class="sign">≈</span>\d', text)) == 2
    assert "≈ is a tie" in text
    rows = list(csv.DictReader(io.StringIO(render_csv.render_csv(table))))
    means = {r["label"]: r for r in rows if r["kind"] == "mean" and r["step"] == "560"}
    assert [means[m]["mark"] for m in ("sit", "ccua", "cbdm")] == ["tie", "tie", ""]
    assert [means[m]["verdict"] for m in ("sit", "ccua", "cbdm")] == ["", "tie", "worse"]


def test_differences_are_printed_and_read_back():
    table = tied_table()
    section = table.sections[0]
    gap = section.differences[2, 0, 560]
    rows = list(csv.DictReader(io.StringIO(render_csv.render_csv(table))))
    line = next(r for r in rows if r["kind"] == "mean" and r["label"] == "cbdm" and r["step"] == "560")
    assert float(line["difference"]) == gap.value
    assert float(line["difference_se"]) == gap.error
    assert (line["baseline"], line["difference_seeds"], line["difference_over"]) == ("sit", "3", "seeds")
    shown = f"+{gap.value:.3f} ±{gap.error:.3f} worse"
    assert f"| cbdm - sit | {shown} |" in render_markdown.render_markdown(table)
    page = render_html.render_html(table, [], [])
    assert f"<td>{shown}</td>" in page
    quiet = replace(table, paired=False)
    assert "cbdm - sit" not in render_markdown.render_markdown(quiet)
    assert "cbdm - sit" not in render_html.render_html(quiet, [], [])


def test_real_images_are_a_floor_or_a_ceiling():
    rows = list(csv.DictReader(io.StringIO(render_csv.render_csv(build_table(quickstart(), SUMMARY)))))
    kinds = {r["metric"]: r["kind"] for r in rows if r["label"] == words.FLOOR_LABEL}
    assert kinds == {"FD": "floor", "KD": "floor", "precision": "ceiling", "recall": "ceiling"}
    cell = planned("sit", 0)
    made = record(cell, 560)
    for row in made["body"]["rows"]:
        row["better"] = "zero"
    table = build_table(Inputs("b", "B", [cell], [made]), SUMMARY)
    rows = list(csv.DictReader(io.StringIO(render_csv.render_csv(table))))
    assert {r["kind"] for r in rows if r["label"] == words.FLOOR_LABEL} == {"real value"}
    assert "→0 (closer to zero is better)" in render_markdown.render_markdown(table)
