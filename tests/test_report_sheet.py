"""A sheet's guard, definitions and published files: every difference that forbids a comparison meets a planted one."""

from __future__ import annotations

import html.parser
import json
import re
from dataclasses import replace

import pytest
from rich.console import Console

from ltbench.canonical import digest
from ltbench.cli.definitions import with_published
from ltbench.errors import SpecError, UsageError
from ltbench.report.assemble import build_table
from ltbench.report.build import write_report
from ltbench.report.definition import Definition, SheetDefinition, load_definition
from ltbench.report.published import load_publication
from ltbench.report.render_html import render_html
from ltbench.report.render_latex import render_latex
from ltbench.report.render_markdown import render_markdown
from ltbench.report.render_terminal import render_terminal
from ltbench.report.table import Inputs
from tests.paper_world import CSV, TABLES, cell, line, notes, sheet_of
from tests.report_world import GROUPS, evaluation, external, planned, record

METHODS = ("sit", "cbdm", "dispersive", "ccua")


def define(**sheet):
    rows = [{"name": name, "ours": {"method": name}} for name in METHODS]
    known = {"rows": rows, "columns": [{"name": "FD", "ours": {"metric": "FD"}}], "baseline": "sit", **sheet}
    return Definition(name="n", sheet=SheetDefinition.model_validate(known))


def world(edit_cell=lambda c: c, edit_record=lambda r: r, which=None):
    """Four methods with two seeds; ccua's cells and records are edited."""
    cells, records = [], []
    for method in METHODS:
        for seed in (0, 1):
            evaluations = [which] if which and method == "ccua" else None
            one = planned(method, seed, evaluations=evaluations)
            one = edit_cell(one) if method == "ccua" else one
            made = record(one, 560)
            records.append(edit_record(made) if method == "ccua" else made)
            cells.append(one)
    return cells, records


def build(cells, records, definition=None, **more):
    return build_table(Inputs("b", "B", cells, records, **more), definition or define())


def settings(**changes):
    def edit(one):
        known = {**one["settings"], **changes}
        if "train" in changes:
            known["train"] = {**one["settings"]["train"], **changes["train"]}
        return {**one, "settings": known, "cell": digest(known)}

    return edit


def body(change):
    def edit(one):
        copy = json.loads(json.dumps(one["body"]))
        change(copy)
        return {**one, "body": copy, "digest": digest(copy)}

    return edit


def other(**changes):
    core = {**{k: v for k, v in evaluation().items() if k != "id"}, **changes}
    return {"id": digest(core)[:12], **core}


# --- marked and kept out of the ranking -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("edit", "which", "said"),
    [
        (settings(train={"batch": 128}), None, "images seen (35,840, here 71,680), train.batch (64, here 128)"),
        (settings(resample=0.1), None, "resampling (none, here 0.1)"),
        (settings(init={"path_free": True, "sha256": "ab" * 32, "step": 5, "prior_steps": 100}), None, "initialisation (from scratch, here file abababab"),
        (settings(network="SiT-S/2"), None, "network (SiT-T/8, here SiT-S/2)"),
        (settings(train={"lr": 0.1}), None, "train.lr (0.002, here 0.1)"),
        (None, other(sampler="heun"), "sampler (euler, here heun)"),
        (None, other(steps=40), "steps (20, here 40)"),
        (None, other(guidance=3.0), "guidance (1.5, here 3.0)"),
        (None, other(labels=None), "labels (balanced, here none)"),
        (None, other(seed=1), "seed (0, here 1)"),
        (None, other(precision="bf16"), "precision (fp32, here bf16)"),
        (settings(train={"precision": "tf32"}), None, "precision (fp32, here tf32)"),
    ],
)  # fmt: skip
def test_a_line_of_other_settings_is_marked_and_not_ranked(edit, which, said):
    plain = sheet_of(build(*world()))
    assert all(not each.notes for _, each in plain.lines())
    assert any(each.cells[0].mark for _, each in plain.lines())
    cells, records = world(edit or (lambda c: c), which=which)
    table = build(cells, records)
    sheet = sheet_of(table)
    told = notes(table, line(sheet, "ccua").notes)
    assert "Not ranked against sit: other " in told
    assert said in told
    assert cell(sheet, "ccua", "FD").value
    assert cell(sheet, "ccua", "FD").mark == ""
    assert all(not line(sheet, name).notes for name in METHODS[:3])
    # the others are ranked as if it were not there
    alone = sheet_of(build(cells[:6], records[:6]))
    assert [cell(sheet, n, "FD").mark for n in METHODS[:3]] == [
        cell(alone, n, "FD").mark for n in METHODS[:3]
    ]


def test_a_declared_difference_is_no_difference():
    cells, records = world(settings(train={"lr": 0.1}))
    table = build(cells, records, define(varies=["train.lr"]))
    assert line(sheet_of(table), "ccua").notes == ()
    assert any(each.cells[0].mark for _, each in sheet_of(table).lines())


def test_a_reference_row_is_shown_and_never_ranked():
    balanced = {"name": "fashion_mnist", "source": "embedded", "imbalance": 1.0, "resolution": 32}
    cells, records = world(settings(dataset=balanced))
    rows = [{"name": name, "ours": {"method": name}} for name in METHODS[:3]]
    rows.append({"name": "ccua", "ours": {"method": "ccua"}, "reference": True, "against": "sit"})
    columns = [{"name": "FD", "ours": {"metric": "FD"}, "improvement": True}]
    for made in (
        records,
        [*records[:6], *map(body(lambda b: [r.update(value=0.001) for r in b["rows"]]), records[6:])],
    ):
        table = build(cells, made, define(rows=rows, columns=columns))
        sheet = sheet_of(table)
        assert cell(sheet, "ccua", "FD").value
        assert cell(sheet, "ccua", "FD").change
        assert cell(sheet, "ccua", "FD").mark == ""
        assert "A reference row, not ranked: other training set's imbalance (0.01, here 1)." in notes(
            table, line(sheet, "ccua").notes
        )


# --- refused ----------------------------------------------------------------------------------------------------------


def rows_of(**changes):
    return body(lambda b: [row.update(changes) for row in b["rows"]])


@pytest.mark.parametrize(
    ("edit", "which", "said"),
    [
        (None, other(samples=100), "samples (500, here 100)"),
        (None, other(reference="fashion_mnist:train"), "reference (fashion_mnist:test-balanced, here fashion_mnist:train)"),
        (None, other(protocol="adm-50k"), "protocol (small-data, here adm-50k)"),
        (None, other(quantise="floor"), "quantise (round, here floor)"),
        (None, other(extractor={"name": "fashion-cnn-v1", "sha256": "ff" * 32}), "name (FD[fashion-cnn-v1@1a2b3c4d], here FD[fashion-cnn-v1@ffffffff])"),
        (rows_of(estimator="scipy"), other(seed=1), "estimator (FD by hand, here scipy)"),
        (rows_of(n_ref=7), other(seed=1), "n_ref (2000, here 7)"),
        (body(lambda b: b.update(nfe=80)), other(seed=1), "evaluations per image (40, here 80)"),
        (body(lambda b: b.update(groups={**GROUPS, "head": [0, 1], "body": [2, 3, 4, 5, 6]})), other(seed=1), "group classes ("),
        (body(lambda b: b.update(real={"reference": "c" * 64})), other(seed=1), "real images ("),
        (rows_of(estimator="scipy"), None, "estimator (FD by hand, here scipy)"),
    ],
)  # fmt: skip
def test_a_value_that_is_measured_otherwise_is_refused(edit, which, said):
    cells, records = world(edit_record=edit or (lambda r: r), which=which)
    table = build(cells, records)
    shown = cell(sheet_of(table), "ccua", "FD")
    assert (shown.value, shown.gap) == ("", "refused")
    told = notes(table, [*shown.notes, *line(sheet_of(table), "ccua").notes])
    assert said in told
    assert all(cell(sheet_of(table), name, "FD").value for name in METHODS[:3])


def test_two_evaluations_that_fit_one_column_are_refused_until_one_is_named():
    both = [evaluation(), other(guidance=3.0)]
    cells = [planned(m, s, evaluations=both) for m in METHODS for s in (0, 1)]
    records = [record(c, 560, which) for c in cells for which in both]
    table = build(cells, records)
    assert cell(sheet_of(table), "sit", "FD").gap == "refused"
    assert "name more in `ours`" in notes(table, line(sheet_of(table), "sit").notes)
    named = define(columns=[{"name": "FD", "ours": {"metric": "FD", "guidance": 3.0}}])
    assert cell(sheet_of(build(cells, records, named)), "sit", "FD").value


def test_what_no_row_means_is_a_row_of_its_own():
    cells, records = world()
    cells.append(planned("mine", 0))
    table = build(cells, [*records, record(cells[-1], 560)])
    assert cell(sheet_of(table), "mine", "FD").value
    assert line(sheet_of(table), "mine").count == "n=1"


def test_what_was_not_trained_here_has_a_line_that_is_never_ranked(tmp_path):
    cells, records = world()
    made = external("adm")
    inputs = Inputs("b", "B", cells, records, externals=[made])
    sheet = sheet_of(build_table(inputs, define(blocks=[{"title": "one"}, {"title": "two"}])))
    (found,) = [each for _, each in sheet.lines() if each.kind == "external"]
    assert sheet.blocks[-1].lines == (found,), "once, whatever the blocks"
    (value,) = [
        r["value"] for r in made["body"]["rows"] if r["group"] == "all" and r["name"].startswith("FD[")
    ]
    assert (found.cells[0].value, found.cells[0].mark) == (f"{value:.2f}", "")
    assert found.name == "adm (external)"
    report = write_report(inputs, define(), lambda record, name: None, tmp_path)
    for view in ("md", "tex", "html"):
        text = report.paths[view].read_text()
        assert "adm (external)" in text
        assert "Not trained here, not ranked" in text
    assert made["digest"] in report.table.records


def test_a_row_of_two_labels_is_two_lines():
    cells, records = world()
    cells.append(
        planned("sit", 0, label="sit (lr=0.1)", train={"batch": 64, "lr": 0.1, "betas": [0.9, 0.999]})
    )
    sheet = sheet_of(build(cells, records))
    names = [each.name for _, each in sheet.lines() if each.kind == "ours"]
    assert names[:2] == ["sit: sit", "sit: sit (lr=0.1)"]


def improving():
    """Every row subtracts sit."""
    rows = [{"name": name, "ours": {"method": name}, "against": "sit"} for name in METHODS]
    columns = [{"name": "FD", "ours": {"metric": "FD"}, "improvement": True}]
    return define(rows=rows, columns=columns)


def test_a_baseline_of_two_lines_is_subtracted_from_nothing():
    cells, records = world()
    assert cell(sheet_of(build(cells, records, improving())), "ccua", "FD").change
    twin = planned("sit", 0, label="sit (lr=0.1)", train={"batch": 64, "lr": 0.1, "betas": [0.9, 0.999]})
    sheet = sheet_of(build([*cells, twin], records, improving()))
    assert cell(sheet, "ccua", "FD").value
    assert cell(sheet, "ccua", "FD").change == ""


def test_a_selector_that_means_nothing_is_an_error():
    rows = [{"name": "sit", "ours": {"metod": "sit"}}]
    with pytest.raises(UsageError, match="no cell has a setting 'metod'") as caught:
        build(*world(), define(rows=rows))
    assert "did you mean 'method'?" in str(caught.value)


def test_a_column_that_no_published_number_fits_is_an_error(tmp_path):
    rows = [{"name": "DDPM", "theirs": {"method": "ddpm", "brs": None}}]
    columns = [{"name": "FID", "theirs": {"metric": "FID", "group": "all"}}, {"name": "tail", "theirs": {"metric": "FIT"}}]  # fmt: skip
    wanted = define(rows=rows, columns=columns, published="ccua", theirs={"table": "4"}, baseline="DDPM")
    with pytest.raises(UsageError, match=r"tail: no published number of ccua.csv fits the column's `theirs`"):
        build([], [], wanted, published=load_publication(CSV))


# --- definitions ------------------------------------------------------------------------------------------------------

GOOD = """name: t
benchmark: little
sheet:
  published: ccua
  theirs: {table: "4"}
  rows:
    - {name: DDPM, ours: {method: ddpm}, theirs: {method: ddpm, brs: null}}
  columns:
    - {name: FID, ours: {metric: FD}, theirs: {metric: FID, group: all}, decimals: 1}
"""


def test_a_definition_is_strict_and_says_where(tmp_path):
    file = tmp_path / "t.yaml"
    file.write_text(GOOD)
    assert load_definition(file).benchmarks == ("little",)
    for old, new, needle, said in (
        ("decimals: 1", "decimls: 1", "decimls", "allowed: better, decimals"),
        ("decimals: 1", "decimls: 1", "decimls", "did you mean 'decimals'?"),
        ("decimals: 1", "decimals: many", "many", "decimals"),
        ("ours: {metric: FD}", "ours: {metric: FDD}", "{metric: FDD", "did you mean 'FD'?"),
        ("ours: {metric: FD}", "ours: {metric: IS}", "{metric: IS", "did you mean 'CS'?"),
        ("sheet:", "table: {metrics: [FD, recal]}\nsheet:", "recal]", "did you mean 'recall'?"),
        ("sheet:", "table: {decimals: {FID: 2}}\nsheet:", "FID: 2}}", "did you mean 'FD'?"),
        ("{name: DDPM,", '{name: DDPM, cite: "a}\\\\x{",', '"a}', "rows.0.cite"),
        ("decimals: 1", "decimals: 1, tolerance: {absolute: -1}", "-1", "tolerance.absolute"),
        ("  rows:", "  bold: loud\n  rows:", "loud", "bold"),
        ("brs: null}}", "brs: null}, against: SiT}", "- {name: DDPM", "against 'SiT' is no row"),
        ("  rows:", "  baseline: SiT\n  rows:", "published: ccua", "baseline 'SiT' is no row"),
        ("  published: ccua\n", "", "theirs: {table", "need the key 'published'"),
        (
            "  rows:",
            "  blocks: [{title: A}, {title: A}]\n  rows:",
            "[{title: A}",
            "two blocks have the title 'A'",
        ),
        ("name: t\n", "name: t\nname: u\n", "name: u", "name"),
    ):
        assert old in GOOD
        text = GOOD.replace(old, new, 1)
        file.write_text(text)
        before = text[: text.index(needle)]
        place = f"{before.count(chr(10)) + 1}:{len(before) - before.rfind(chr(10))}"
        with pytest.raises(SpecError) as caught:
            load_definition(file)
        assert said in str(caught.value), new
        assert f"{file}:{place}" in str(caught.value), (new, place, str(caught.value))


def test_every_shipped_definition_is_read_and_names_a_benchmark_that_there_is():
    folder = CSV.parents[2] / "reports"
    found = {file.stem: load_definition(file) for file in sorted(folder.glob("*.yaml"))}
    assert {name for name, each in found.items() if each.benchmarks} == set(TABLES.values())
    assert all(each.sheet is None for each in found.values() if not each.benchmarks)
    for name, each in found.items():
        assert each.name == name
        for spec in each.benchmarks:
            assert (folder.parent / "benchmarks" / f"{spec}.yaml").is_file()


# --- published files --------------------------------------------------------------------------------------------------


def test_anybody_s_numbers_can_stand_beside_ours(tmp_path):
    head = CSV.read_text().splitlines()[0]
    (tmp_path / "mine.csv").write_text(
        f"{head}\n1,1,fashion_mnist,0.01,32,sit,euler20,560,sit,,all,FD_mine,12.50,by hand\n"
        "1,2,fashion_mnist,0.01,32,sit,heun20,560,ccua,strength=9,all,FD_mine,11.00,\n"
    )
    (tmp_path / "sources.csv").write_text("file,bib,source,note\nmine.csv,me2026,a thesis,\n")
    publication = load_publication(tmp_path / "mine.csv")
    assert (publication.bib, publication.source) == ("me2026", "a thesis")
    rows = [{"name": name, "ours": {"method": name}, "theirs": {"method": name}} for name in ("sit", "ccua")]
    columns = [
        {
            "name": "FD",
            "ours": {"metric": "precision"},
            "theirs": {"metric": "FD_mine"},
            "tolerance": {"absolute": 100.0},
        }
    ]
    wanted = define(rows=rows, columns=columns, published="mine", theirs={"table": "1"})
    cells, records = world()
    plain = [body(lambda b: [row.update(name=row["metric"]) for row in b["rows"]])(r) for r in records]
    table = build_table(Inputs("b", "B", cells, plain, published=publication), wanted, verdicts=True)
    sheet = sheet_of(table)
    assert cell(sheet, "sit", "FD", "published").value == "12.50"
    assert "Published: by hand." in notes(table, line(sheet, "sit", "published").notes)
    assert cell(sheet, "sit", "FD").verdict.word == "within"
    reason = cell(sheet, "ccua", "FD").verdict.reason
    assert "sampler (published heun20, here euler)" in reason
    assert "nobody says which setting strength is" in reason


def test_a_key_without_an_entry_is_said_before_latex_prints_a_question_mark(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "results" / "published"
    folder.mkdir(parents=True)
    (folder / "mine.csv").write_text(CSV.read_text().splitlines()[0] + "\n")
    (folder / "sources.csv").write_text("file,bib,source,note\nmine.csv,me2026,a thesis,\n")
    rows = [{"name": "sit", "ours": {"method": "sit"}, "cite": "ma2024sit,you2026"}]
    wanted = define(rows=rows, published="mine")
    with_published(Inputs("b", "B", [], []), wanted)
    said = "no entry in results/published/references.bib"
    assert f"\\cite of me2026, you2026: {said}" in capsys.readouterr().err
    (folder / "references.bib").write_text("@misc{me2026, title={A}}\n@misc{you2026, title={B}}\n")
    with_published(Inputs("b", "B", [], []), wanted)
    assert "cite" not in capsys.readouterr().err
    (folder / "sources.csv").write_text("file,bib,source,note\nmine.csv,me}2026,a thesis,\n")
    with pytest.raises(UsageError, match="is no BibTeX key"):
        with_published(Inputs("b", "B", [], []), wanted)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("table,row\n1,1\n", "lacks the column 'dataset'"),
        ("{head}\n1,1,d,,,,,,m,,all,FID,12..5,\n", "mine.csv:2: value is no number (got 12..5)"),
        ("{head}\n1,1,d,,,,,,m,,all,FID,nan,\n", "value is no number"),
        ("{head}\n1,1,d,,,,,,m,brs,all,FID,1,\n", "variant is written word=value"),
        ("{head}\n1,1,d,,,,,,m,,all,FID,1,,,\n", "another number of fields"),
    ],
)
def test_a_published_file_says_which_line_is_wrong(text, said, tmp_path):
    file = tmp_path / "mine.csv"
    file.write_text(text.replace("{head}", CSV.read_text().splitlines()[0]))
    with pytest.raises(SpecError) as caught:
        load_publication(file)
    assert said in str(caught.value)


def test_the_companion_of_a_published_file_is_strict(tmp_path):
    (tmp_path / "mine.csv").write_text(CSV.read_text())
    (tmp_path / "mine.yaml").write_text("meanings:\n  - {word: brs, seting: resample}\n")
    with pytest.raises(SpecError, match=r"mine\.yaml:2:17"):
        load_publication(tmp_path / "mine.csv")


def test_a_selector_of_published_numbers_means_one_or_none():
    publication = load_publication(CSV)
    asked = {"table": "11", "method": "sit", "metric": "FID"}
    with pytest.raises(UsageError, match=r"fits 2 published numbers \(ccua\.csv:"):
        publication.find(asked)
    assert publication.find({**asked, "brs": None}).value == "33.8"
    assert publication.find({**asked, "brs": "true"}).value == "28.1"
    assert publication.find({**asked, "brs": "false"}) is None
    with pytest.raises(UsageError, match="no column or variant word 'latnt'"):
        publication.find({**asked, "latnt": "N"})


# --- texts that are only texts ----------------------------------------------------------------------------------------

HOSTILE = (
    "<script>alert(1)</script>",
    "\\input{/etc/passwd}",
    "a|b",
    "=cmd|' /C calc'!A0",
    "\x1b[31mred",
    "[x](javascript:1) **b**",
)


def test_names_and_notes_inject_nothing_into_any_view(tmp_path):
    head = CSV.read_text().splitlines()[0]
    rows, lines = [], [head]
    for place, text in enumerate(HOSTILE):
        rows.append({"name": text, "ours": {"method": "sit", "label": text}, "theirs": {"row": place}})
        quoted = '"' + text.replace('"', '""').replace(";", ",") + '"'
        lines.append(f"1,{place},d,,,,,,m,,all,FID,{place}.0,{quoted}")
    (tmp_path / "mine.csv").write_text("\n".join(lines) + "\n")
    columns = [{"name": text, "ours": {"metric": "FD"}, "theirs": {"metric": "FID"}} for text in HOSTILE[:1]]
    wanted = define(
        rows=rows, columns=columns, baseline=None, published="mine", blocks=[{"title": HOSTILE[0]}]
    )
    cells = [
        planned("sit", 0, label=text, train={"batch": 64, "lr": 0.1 * i}) for i, text in enumerate(HOSTILE)
    ]
    inputs = Inputs("b", "B", cells, [], published=load_publication(tmp_path / "mine.csv"))
    made = write_report(
        inputs, replace_title(wanted), lambda record, name: None, tmp_path / "out", verdicts=True
    )
    page = made.paths["html"].read_text()
    tags = set()
    parser = html.parser.HTMLParser()
    parser.handle_starttag = lambda tag, attrs: tags.add(tag)  # type: ignore[method-assign]
    parser.feed(page)
    assert page.count("<script") == 1, "the page's own"
    tex = made.paths["tex"].read_text()
    assert "\\input{" not in tex
    text = made.paths["md"].read_text()
    assert "<script" not in text
    assert "](javascript" not in text.replace("\\]", "")
    for row in made.paths["csv"].read_text().splitlines()[1:]:
        assert not re.search(r'(^|,)"?[=@]', row)
    console = Console(record=True, width=200, file=(tmp_path / "screen").open("w"))
    render_terminal(made.table, console)
    console.file.close()
    assert "\x1b[31m" not in (tmp_path / "screen").read_text()
    assert render_markdown(made.table) == text
    assert render_latex(made.table) == tex
    assert render_html(made.table, [], []) == page


def replace_title(definition):
    return definition.model_copy(update={"title": HOSTILE[0]})


def test_a_table_without_a_sheet_is_as_it_was():
    cells, records = world()
    table = build(cells, records, Definition(name="n"))
    assert table.sheet is None
    assert replace(table, sheet=None) == table
