"""The paper's tables: every published number where it was printed, ours beside it and never in its place, verdicts and what forbids them."""

from __future__ import annotations

import csv
import random
import re
from collections import Counter
from dataclasses import replace

import pytest

from ltbench.canonical import digest
from ltbench.report import render_csv, render_latex, render_markdown
from ltbench.report.build import write_report
from tests.paper_world import (
    CSV,
    ROOT,
    TABLES,
    build,
    cell,
    definition,
    line,
    notes,
    planned,
    published,
    run,
    sheet_of,
)

ADM = ("CS", "FD", "sFD", "precision", "recall")


def like_published(scale=1.0):
    """Ours: the published Table 1 number of the cell's method, times `scale`, the same at every seed."""
    known = {}
    names = {"CS": "IS", "FD": "FID", "sFD": "sFID", "precision": "Precision_pct", "recall": "Recall_pct"}

    def value(planned_cell, step, kind, group):
        place = planned_cell["settings"]["method"]["name"], step, kind, group
        if place not in known:
            known[place] = look_up(planned_cell, step, kind, group)
        return known[place]

    def look_up(planned_cell, step, kind, group):
        asked = {
            "table": "1",
            "method": planned_cell["settings"]["method"]["name"],
            "steps": step,
            "group": group,
        }
        found = published().find({**asked, "metric": names[kind]}) if kind in names else None
        if found is None:
            return 0.5
        return scale * float(found.value) / (100 if kind in ("precision", "recall") else 1)

    return value


def rows_of_csv():
    with CSV.open() as file:
        return list(csv.DictReader(file))


# --- published numbers alone ------------------------------------------------------------------------------------------


def test_every_published_number_stands_in_exactly_the_table_that_prints_it(tmp_path):
    oracle = rows_of_csv()
    assert len(oracle) == 560
    seen = Counter()
    for table, name in TABLES.items():
        sheet = sheet_of(build(name, planned(name, tmp_path)))
        for _, each in sheet.lines():
            for printed in each.cells:
                if each.kind == "published" and printed.value:
                    number = int(printed.place.partition(":")[2])
                    assert oracle[number - 2]["table"] == table
                    assert oracle[number - 2]["value"] == printed.value  # its digits, trailing zeros and all
                    seen[number] += 1
    assert seen == Counter(range(2, 562))


def test_parentheses_are_those_of_the_paper(tmp_path):
    """66 of them (a count of the paper's text), and some as read there."""
    found = {}
    for name in TABLES.values():
        sheet = sheet_of(build(name, planned(name, tmp_path)))
        for block, each in sheet.lines():
            for head, printed in zip(sheet.columns, each.cells, strict=True):
                if each.kind == "published" and printed.change:
                    found[name, block, each.name, head.name] = printed.change
    assert len(found) == 66
    assert found["table1", "250k steps", "CCUA + BRS", "FID"] == "-6.8"
    assert found["table1", "900k steps", "CCUA + BRS", "FID tail"] == "-11.4"
    assert found["table2", "Tiny ImageNet-LT", "DDPM_bal", "KID ×1k"] == "-3.1"
    assert found["table6", "900k steps", "CCUA + BRS", "FID"] == "-6.32"
    assert found["table9", "CIFAR-10-LT", "CCUA", "KID ×1k"] == "-1.00"
    assert found["table11", "", "CCUA N + BRS", "Recall %"] == "+4.0"


@pytest.mark.parametrize("name", TABLES.values())
def test_a_table_renders_from_published_numbers_alone_in_every_format(name, tmp_path):
    inputs = planned(name, tmp_path)
    made = write_report(inputs, definition(name), lambda record, fact: None, tmp_path / "out", verdicts=True)
    sheet = sheet_of(made.table)
    values = Counter(
        printed.value
        for _, each in sheet.lines()
        if each.kind == "published"
        for printed in each.cells
        if printed.value
    )
    page, text, tex, table = (made.paths[name].read_text() for name in ("html", "md", "tex", "csv"))
    assert values == Counter(re.findall(r"\*([\d.]+)(?: \([-+\d.]+\))?\*", text))
    assert values == Counter(re.findall(r"\\emph\{([\d.]+)(?: \([^)]*\))?\}", tex))
    tagged = re.findall(r'<tr class="published">(.*?)</tr>', page, re.DOTALL)
    assert values == Counter(
        value
        for row in tagged
        for value in re.findall(r"<td[^>]*>\s*([\d.]+)(?: \([-+\d.]+\))?\s*[<\n]", row)
    )
    lines = [each for each in csv.DictReader(table.splitlines()) if each["kind"] == "published"]
    assert values == Counter(each["value"] for each in lines)
    assert all(each["source"].startswith("chen2025ccua ccua.csv:") for each in lines)
    assert {each["cite"] for each in vars_of(sheet)} <= {"", *re.findall(r"@\w+\{(\w+),", bib())}


def vars_of(sheet):
    return [{"cite": each.cite} for _, each in sheet.lines()]


def bib():
    return (ROOT / "results" / "published" / "references.bib").read_text()


def test_known_facts_are_footnotes_of_the_lines_they_are_of(tmp_path):
    table = build("table1", planned("table1", tmp_path))
    sheet = sheet_of(table)
    ccua, sit = line(sheet, "CCUA + BRS", "published"), line(sheet, "SiT", "published")
    assert "brs=true" in notes(table, ccua.notes)
    assert "brs=false (at 250k equal to the row without BRS of Table 11)" in notes(table, sit.notes)
    assert "printed again in Tables 5, 11 and 12" in notes(table, sit.notes)
    tail = next(head for head in sheet.columns if head.name == "FID tail")
    assert "another crop than the FID column" in notes(table, tail.notes)
    assert any(
        note.startswith("All published numbers here: CFG 7.5 stated; ODE or SDE not stated")
        for note in table.notes
    )
    odd = cell(sheet, "CBDM", "FID", "published", "700k steps")
    assert odd.value == "20.94"
    assert "printed with 2 decimals in a 1-decimal column" in notes(table, odd.notes)


def test_what_is_implied_by_an_equal_row_is_said_of_rows_that_are_equal():
    """A number that no row without BRS shares says nothing of BRS: not that of another imbalance, nor the balanced model's."""
    lines = published().lines
    asked = ("method", "dataset", "imbalance_factor", "steps", "group", "metric")
    seen = 0
    for implied in published().companion.implied:
        other = re.search(r"Table (\d+)", implied.because)[1]
        plain = [each for each in lines if each.said("table") == other and each.said("brs") in ("", "false")]
        rows = {
            tuple(each.said(key) for key in asked): each for each in plain if each.said("method") != "ccua"
        }
        for each in (each for each in lines if each.fits(implied.where)):
            assert (each.said("dataset"), each.said("imbalance_factor")) in {key[1:3] for key in rows}
            twin = rows.get(tuple(each.said(key) for key in asked))
            seen += twin is not None
            assert twin is None or float(twin.value) == float(each.value), each.place
    assert seen == 26  # five of SiT in Tables 1, 5, 11 and 12, three of DDPM in Tables 2 and 4


# --- ours beside theirs -----------------------------------------------------------------------------------------------


def partly(inputs):
    """SiT done, CCUA + BRS with two of three seeds, one CBDM running and one failed; 250k and 450k only."""
    cells = {(c["label"], c["settings"]["seed"]): c["cell"] for c in inputs.planned}
    states = {
        cells["cbdm", 0]: {"text": "running 63 %", "detail": "on n01"},
        cells["cbdm", 1]: {"text": "failed oom", "detail": "oom: out of memory"},
    }

    def only(each, step):
        done = each["label"] == "sit" or (each["label"], each["settings"]["seed"] < 2) == (
            "ccua (preset=seed, resample=0.1)",
            True,
        )
        return done and step <= 450000

    return run(replace(inputs, states=states), like_published(1.01), only)


def test_ours_stands_below_theirs_and_never_in_its_place(tmp_path):
    table = build("table1", partly(planned("table1", tmp_path)))
    sheet = sheet_of(table)
    alone = sheet_of(build("table1", planned("table1", tmp_path)))
    kept = [[c.value + c.change for c in each.cells] for _, each in sheet.lines() if each.kind == "published"]
    assert kept == [
        [c.value + c.change for c in each.cells] for _, each in alone.lines() if each.kind == "published"
    ]
    mine = cell(sheet, "SiT", "FID")
    assert (mine.value, mine.count, mine.entry.n) == ("34.1", "", 3)  # 1.01 x 33.8
    assert len({value.digest for value in mine.entry.values}) == 3
    assert mine.floor == 1.5
    two = cell(sheet, "CCUA + BRS", "Precision %")
    assert (two.value, two.count, line(sheet, "CCUA + BRS").count) == ("60.8", "", "n=2 of 3")
    assert cell(sheet, "CCUA + BRS", "FID").change == "-6.9"  # 1.01 x (27.0 - 33.8), over the common seeds
    assert cell(sheet, "SiT", "FID", block="700k steps").gap == "not run"
    assert cell(sheet, "CBDM", "FID").gap == "running 63 %; failed oom; not run"
    assert "out of memory" in notes(table, line(sheet, "CBDM").notes)
    assert cell(sheet, "real images", "FID", "floor").value == "1.5"
    assert set(table.records) == {
        v.digest for _, each in sheet.lines() for c in each.cells if c.entry for v in c.entry.values
    }


def test_a_row_of_another_resampling_is_ranked_among_its_own(tmp_path):
    def value(each, step, kind, group):
        better = {"ccua": 0.5, "sit": 1.0}.get(each["settings"]["method"]["name"], 0.9)
        return 30.0 * better + 0.01 * each["settings"]["seed"]

    table = build(
        "table1",
        run(
            planned("table1", tmp_path),
            value,
            lambda c, s: s == 250000 and c["label"].startswith(("sit", "ccua")),
        ),
    )
    sheet = sheet_of(table)
    marks = {
        name: cell(sheet, name, "FID").mark for name in ("SiT", "CCUA without BRS", "SiT + BRS", "CCUA + BRS")
    }
    assert (
        marks["CCUA without BRS"] == marks["CCUA + BRS"] == ""
    )  # seeds agree to the last digit: no error is known
    assert "Not ranked against SiT: other resampling (none, here 0.1)." in notes(
        table, line(sheet, "CCUA + BRS").notes
    )

    def noisy(each, step, kind, group):
        return value(each, step, kind, group) + 0.1 * random.Random(each["cell"]).random()

    table = build(
        "table1",
        run(
            planned("table1", tmp_path),
            noisy,
            lambda c, s: s == 250000 and c["label"].startswith(("sit", "ccua")),
        ),
    )
    sheet = sheet_of(table)
    assert {cell(sheet, name, "FID").mark for name in ("CCUA without BRS", "CCUA + BRS")} == {"best"}
    assert {cell(sheet, name, "FID").mark for name in ("SiT", "SiT + BRS")} == {""}


def test_a_method_that_is_added_has_a_row_in_every_block(tmp_path):
    inputs = planned("table1", tmp_path)
    mine = [
        {**c, "label": c["label"].replace("cbdm", "mine"), "cell": digest(["mine", c["cell"]]),
         "settings": {**c["settings"], "method": {"name": "mine"}}}
        for c in inputs.planned if c["label"] in ("cbdm", "cbdm (resample=0.1)")
    ]  # fmt: skip
    table = build("table1", replace(inputs, planned=[*inputs.planned, *mine]))
    for block in sheet_of(table).blocks:
        names = [each.name for each in block.lines if each.kind == "ours"]
        assert names[-2:] == ["mine", "mine (resample=0.1)"]
        assert not [each for each in block.lines if each.kind == "published" and "mine" in each.name]


def test_the_order_of_records_changes_nothing(tmp_path):
    inputs = partly(planned("table1", tmp_path))
    table = build("table1", inputs, verdicts=True)
    shuffled = list(inputs.records)
    random.Random(1).shuffle(shuffled)
    again = build("table1", replace(inputs, records=shuffled), verdicts=True)
    assert again == table
    for render in (render_markdown.render_markdown, render_latex.render_latex, render_csv.render_csv):
        assert render(again) == render(table)


# --- the extractor ----------------------------------------------------------------------------------------------------


def other_extractor(inputs):
    """The same plan, evaluated by an extractor that papers do not use."""

    def edit(evaluation):
        core = {
            **{k: v for k, v in evaluation.items() if k != "id"},
            "extractor": {"name": "fashion-cnn-v1", "sha256": 64 * "1"},
        }
        return {"id": digest(core)[:12], **core}

    return replace(
        inputs, planned=[{**c, "evaluations": [edit(e) for e in c["evaluations"]]} for c in inputs.planned]
    )


def test_values_of_another_extractor_never_stand_in_a_published_column(tmp_path):
    table = build(
        "table1",
        run(other_extractor(planned("table1", tmp_path)), like_published(), lambda c, s: c["label"] == "sit"),
        verdicts=True,
    )
    sheet = sheet_of(table)
    for title, each in sheet.lines():
        for head, shown in zip(sheet.columns, each.cells, strict=True):
            if "[fashion-cnn-v1@11111111]" in head.name:
                assert each.kind != "published" or shown.gap == "-"
                assert shown.verdict is None
            elif each.kind in ("ours", "difference"):
                assert shown.value == "", (title, each.name, head.name)
    assert cell(sheet, "SiT", "FD[fashion-cnn-v1@11111111]").value == "33.8"
    assert "measured as FD[fashion-cnn-v1@11111111]" in notes(
        table, [*line(sheet, "SiT").notes, *cell(sheet, "SiT", "FID").notes]
    )
    assert sheet.compared == 0
    assert "FD[fashion-cnn-v1@11111111], tail" in [head.name for head in sheet.columns]


def test_columns_of_another_extractor_do_without_the_row_that_they_subtract(tmp_path):
    inputs = run(
        other_extractor(planned("table1", tmp_path)),
        like_published(),
        lambda c, s: c["settings"]["method"]["name"] == "ccua",
    )
    shown = cell(sheet_of(build("table1", inputs)), "CCUA + BRS", "FD[fashion-cnn-v1@11111111]")
    assert (shown.value, shown.change) == ("27.0", "")


# --- verdicts ---------------------------------------------------------------------------------------------------------


def test_verdicts_follow_the_declared_tolerance(tmp_path):
    for scale, words in ((1.02, {"within"}), (1.2, {"worse", "better"}), (0.8, {"worse", "better"})):
        inputs = run(planned("table1", tmp_path), like_published(scale), lambda c, s: c["label"] == "sit")
        sheet = sheet_of(build("table1", inputs, verdicts=True))
        fid, score = cell(sheet, "SiT", "FID"), cell(sheet, "SiT", "IS")
        assert {fid.verdict.word, score.verdict.word} == words
        if scale != 1.02:
            assert (fid.verdict.word == "worse") == (scale > 1)
            assert fid.verdict.difference == pytest.approx((scale - 1) * 33.8)
            assert fid.verdict.allowed == pytest.approx(0.05 * 33.8)  # the larger of 1.3 and 5 %
            assert any(text.startswith("250k steps, SiT, FID: ") for text in sheet.drifted())
        else:
            assert sheet.drifted() == []
        assert (sheet.compared, sheet.printed) == (24, 120)
        assert cell(sheet, "SiT", "FID", "difference").value == f"{(scale - 1) * 33.8:+.1f}"


def test_a_drift_shows_that_it_is_larger_than_what_is_allowed(tmp_path):
    inputs = run(planned("table1", tmp_path), like_published(1.0502), lambda c, s: c["label"] == "sit")
    lines = sheet_of(build("table1", inputs, verdicts=True)).drifted()
    found = next(text for text in lines if text.startswith("250k steps, SiT, FID: "))
    assert found.endswith("worse; ours 35.5, +1.70 against the published number, allowed 1.69")


def test_a_number_without_ours_is_not_compared_and_says_why(tmp_path):
    table = build("table1", partly(planned("table1", tmp_path)), verdicts=True)
    sheet = sheet_of(table)
    assert cell(sheet, "CBDM", "FID").verdict.reason == "no value of ours (running 63 %, failed oom, not run)"
    assert cell(sheet, "SiT", "FID").verdict.word == "within"
    assert (sheet.compared, sheet.printed) == (24, 120)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("grid.resample=[none, 0.2]", "resample (published brs true, here 0.2)"),
        ("dataset.imbalance=0.1", "dataset.imbalance (published imbalance_factor 0.01, here 0.1)"),
    ],
)
def test_a_setting_that_the_paper_states_otherwise_forbids_the_comparison(tmp_path, change, said):
    inputs = planned("table1", tmp_path, changes=[change])
    inputs = run(inputs, like_published(), lambda c, s: c["settings"]["method"]["name"] == "ccua")
    if "resample" in change:  # the row's own selector asks for 0.1: let it take what there is
        row = next(r for r in definition("table1").sheet.rows if r.name == "CCUA + BRS")
        loose = row.model_copy(update={"ours": {"method": "ccua", "resample": 0.2}})
        sheet_ = definition("table1").sheet
        rows = [loose if r is row else r for r in sheet_.rows]
        changed = definition("table1").model_copy(update={"sheet": sheet_.model_copy(update={"rows": rows})})
    else:
        changed = definition("table1")
    from ltbench.report.assemble import build_table

    table = build_table(inputs, changed, verdicts=True)
    verdict = cell(sheet_of(table), "CCUA + BRS", "FID").verdict
    assert verdict.word == ""
    assert said in verdict.reason
    shown = cell(sheet_of(table), "CCUA + BRS", "FID", "difference")
    assert "Cannot be compared" in notes(table, shown.notes)


def test_timing_has_speed_of_trainings_and_no_verdict(tmp_path):
    inputs = planned("timing", tmp_path)
    first = next(c for c in inputs.planned if c["label"].startswith("sit"))
    body = {
        "kind": "train",
        "cell": first["cell"],
        "run": "0" * 12,
        "step": 1000,
        "settings": first["settings"],
    }
    envelope = {"finished": 1.0, "attempt": 1, "device": "NVIDIA H100", "memory_bytes": 24_000_000_000,
                "images_per_s": [[10, 100.0], [20, 480.0], [30, 500.0]]}  # fmt: skip
    table = build(
        "timing", replace(inputs, records=[{"body": body, "digest": digest(body), "envelope": envelope}])
    )
    sheet = sheet_of(table)
    assert cell(sheet, "SiT", "steps/s").value == "10.0"  # the median, over a batch of 48
    assert cell(sheet, "SiT", "GB/image").value == "0.50"
    assert cell(sheet, "CCUA serial", "steps/s").gap == "not run"
    assert cell(sheet, "SiT", "steps/s").verdict.reason == "the definition declares no tolerance"
    on_cpu = {**envelope, "device": "cpu (2 cores)"}
    table = build(
        "timing", replace(inputs, records=[{"body": body, "digest": digest(body), "envelope": on_cpu}])
    )
    assert cell(sheet_of(table), "SiT", "GB/image").gap == "n/a"


def timed(inputs, machine):
    """Every planned training with its speed; machine: (label, seed) -> (device, steps per second, ranks)."""
    records = []
    for each in inputs.planned:
        body = {"kind": "train", "cell": each["cell"], "run": "0" * 12, "step": 1000, "settings": each["settings"]}  # fmt: skip
        device, speed, ranks = machine(each["label"], each["settings"]["seed"])
        envelope = {"finished": 1.0, "attempt": 1, "device": device, "execution": "graphs", "ranks": ranks, "seconds": 9.0,
                    "memory_bytes": 24_000_000_000, "images_per_s": [[10, 48 * speed]]}  # fmt: skip
        records.append({"body": body, "digest": digest(body), "envelope": envelope})
    return replace(inputs, records=records)


def test_speeds_of_two_machines_are_neither_averaged_nor_ranked(tmp_path):
    inputs = planned("timing", tmp_path, changes=["grid.seed=[0, 1, 2]"])

    def one(label, seed):
        return "NVIDIA H100", (9.0 + 0.1 * seed if label.startswith("sit") else 7.0 + 0.07 * seed**2), 1

    table = build("timing", timed(inputs, one))
    assert cell(sheet_of(table), "SiT", "steps/s").mark == "best"
    assert notes(table, line(sheet_of(table), "CCUA serial").notes) == "Ours on NVIDIA H100, graphs."

    def two(label, seed):
        return one(label, seed) if label.startswith("sit") else ("NVIDIA A100", 3.0 + 0.1 * seed, 1)

    table = build("timing", timed(inputs, two))
    sheet = sheet_of(table)
    assert cell(sheet, "SiT", "steps/s").mark == ""
    said = notes(table, line(sheet, "CCUA serial").notes)
    assert "Not ranked against SiT: other machine (NVIDIA H100, graphs; here NVIDIA A100, graphs)" in said

    def astray(label, seed):
        return ("NVIDIA A100", 90.0, 1) if label.startswith("sit") and seed == 2 else one(label, seed)

    table = build("timing", timed(inputs, astray))
    shown = cell(sheet_of(table), "SiT", "steps/s")
    assert (shown.value, [v.seed for v in shown.entry.values]) == ("9.1", [0, 1])
    assert "the others ran on another machine (NVIDIA H100, graphs; here NVIDIA A100" in notes(
        table, [*shown.notes, *line(sheet_of(table), "SiT").notes]
    )


def test_memory_per_image_is_of_the_images_that_one_gpu_holds(tmp_path):
    inputs = planned("timing", tmp_path)
    sheet = sheet_of(build("timing", timed(inputs, lambda label, seed: ("NVIDIA H100", 9.0, 4))))
    assert cell(sheet, "SiT", "GB/image").value == "2.00"  # 24 GB for 12 of 48 images


def test_printed_bold_is_a_policy_of_the_definition(tmp_path):
    inputs = planned("table1", tmp_path)
    assert not [c for _, each in sheet_of(build("table1", inputs)).lines() for c in each.cells if c.mark]
    sheet_ = definition("table1").sheet.model_copy(update={"bold": "printed"})
    from ltbench.report.assemble import build_table

    table = build_table(inputs, definition("table1").model_copy(update={"sheet": sheet_}))
    best = [
        each.name
        for title, each in sheet_of(table).lines()
        if title == "250k steps" and each.kind == "published" and each.cells[0].mark
    ]
    assert best == ["REPA"]  # IS 74.1, as the paper's own table has it
