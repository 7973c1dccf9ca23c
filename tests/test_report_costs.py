"""The cost section: what is compared with what, where each number leads, and the same bytes for the same records."""

from __future__ import annotations

import csv
import io
import random
import statistics
from dataclasses import replace
from pathlib import Path

import pytest

from ltbench.canonical import digest
from ltbench.cost.calibrations import train_question
from ltbench.cost.size import Shape, forward_operations
from ltbench.report import cost_words, render_csv, render_html, render_markdown
from ltbench.report.assemble import build_table
from ltbench.report.build import write_report
from ltbench.report.cost_table import Costs
from ltbench.report.costs import build_costs
from ltbench.report.definition import load_definition
from ltbench.report.table import Inputs
from tests.report_world import planned, quickstart, record, train_record
from tests.test_report_views import HOSTILE

SUMMARY = load_definition(Path(__file__).resolve().parents[1] / "reports" / "summary.yaml")
TRAIN = {
    "batch": 64,
    "local_batch": 16,
    "optimizer": "adamw",
    "lr": 0.002,
    "clip_norm": None,
    "precision": "bf16",
    "label_drop": 0.1,
    "label_drop_mode": "sample",
    "dropout": 0.0,
    "passes": "fused",
}
DATA = {"name": "fashion_mnist", "imbalance": 0.01, "resolution": 32}
GPU, OTHER = "NVIDIA H200", "NVIDIA A100"


def cell(method, seed=0, **train):
    return planned(method, seed, dataset=DATA, train={**TRAIN, **train})


def told(made, device=GPU, seconds=36.0, rate=6400.0, started=1.0, **more):
    """A record with circumstances; training notes one slow window, as a preview makes it."""
    gpu = not device.startswith("cpu")
    envelope = {"device": device, "threads": 2, "ranks": 1, "execution": "graphs" if gpu else "eager"}
    envelope |= {"seconds": seconds, "gpu_hours": seconds / 3600 if gpu else 0.0, "started": started}
    envelope |= {"host": "n", "memory_bytes": 2_000_000_000, "finished": 2.0, "attempt": 1}
    if made["body"]["kind"] == "train":
        envelope["images_per_s"] = [[20, rate], [40, 10.0], [60, rate]]
    return {**made, "envelope": {**envelope, **more}}


def calibrated(of, rows=1.9, seconds=0.02, device=GPU):
    result = {"seconds_per_step": seconds, "rows": rows, "memory_bytes": 3_000_000_000, "execution": "graphs"}
    what = train_question(of["settings"]).what
    return {"name": f"c{digest(what)[:8]}", "what": what, "device": device, "threads": 2, "result": result, "date": "2026"}  # fmt: skip


def world() -> Inputs:
    """sit, ccua and cbdm on one GPU, dispersive on another, diffrop nowhere; cbdm was only calibrated."""
    cells = {name: cell(name) for name in ("sit", "ccua", "cbdm", "dispersive", "diffrop")}
    records = [told(train_record(cells["sit"], step), seconds=0.1 * step) for step in (280, 560)]
    records += [told(train_record(cells["ccua"], 560), rate=4800.0, memory_bytes=2_500_000_000)]
    records += [told(train_record(cells["dispersive"], 560), OTHER)]
    records += [told(record(cells["sit"], step), seconds=18.0, started=9.0 + step) for step in (280, 560)]
    known = [calibrated(cells["ccua"]), calibrated(cells["cbdm"])]
    states = {cells["diffrop"]["cell"]: {"text": "failed nan", "detail": ""}}
    return Inputs("costs", "What it costs", list(cells.values()), records, states, calibrations=known)


def costs_of(inputs) -> Costs:
    return built(inputs.planned, inputs.records, inputs.calibrations, inputs.states)


def built(*world) -> Costs:
    costs = build_costs(*world)
    assert costs is not None
    return costs


def values(block, label):
    row = next(row for row in block.rows if row.label == label)
    return {key: known.value for key, known in row.values.items()}


def test_a_block_compares_what_ran_alike_and_nothing_else():
    costs = costs_of(world())
    assert [(b.where.device, [r.label for r in b.rows]) for b in costs.blocks] == [
        (GPU, ["sit", "ccua", "cbdm"]),
        (OTHER, ["dispersive"]),
    ]
    here, there = costs.blocks
    each = 3 * forward_operations("SiT-T/8", Shape(1, 32, 10))
    sit, ccua, cbdm = (values(here, label) for label in ("sit", "ccua", "cbdm"))
    assert (sit["steps_per_s"], sit["images_per_s"]) == (100.0, 6400.0)
    assert (sit["image_operations"], sit["step_operations"]) == (each, 64 * each)
    assert sit["operations_per_s"] == 6400 * each
    assert ccua["time_ratio"] == pytest.approx(100 / 75)
    assert ccua["operations_ratio"] == 1.9
    assert ccua["image_operations"] == pytest.approx(1.9 * each)
    assert (cbdm["steps_per_s"], cbdm["memory_bytes"], cbdm["train_hours"]) == (50.0, 3e9, None)
    assert sit["train_hours"] == pytest.approx(56 / 3600), "the last record tells of the whole attempt"
    assert sit["evaluation_hours"] == pytest.approx(36 / 3600)
    ratio = there.rows[0].values["time_ratio"]
    assert ratio.value is None
    assert GPU in ratio.why
    assert costs.missing == (("diffrop", "failed nan"),)
    assert "ccua 1.33 times the time for 1.90 times the FLOPs" in cost_words.remarks(here)[0]
    assert "cbdm 2.00" not in cost_words.remarks(here)[0], "as slow as its FLOPs say"


def test_other_batches_precisions_threads_and_executions_are_other_blocks():
    """None of them has a ratio across; passes and resampling do not keep a row from its baseline."""
    cells = [cell("sit"), cell("ccua", batch=32), cell("ccua", precision="fp32"), cell("ccua")]
    cells.append(cell("cbdm", passes="serial"))
    records = [told(train_record(each, 560)) for each in (*cells[:3], cells[4])]
    records.append(told(train_record(cells[3], 560), execution="eager"))
    costs = built(cells, records, (), {})
    assert sorted(len(block.rows) for block in costs.blocks) == [1, 1, 1, 2]
    ratios = [row.values["time_ratio"] for block in costs.blocks for row in block.rows if row.method != "sit"]
    assert [known.value for known in ratios] == [1.0, None, None, None]
    assert all(known.why for known in ratios[1:])


def test_attempts_add_up_and_a_speed_is_the_middle_of_them():
    of = cell("sit")
    first = [told(train_record(of, 280), seconds=s, rate=6400.0, started=1.0) for s in (10.0,)]
    later = told(train_record(of, 560), seconds=30.0, rate=3200.0, started=5.0)
    (block,) = built([of], [*first, later], (), {}).blocks
    row = block.rows[0].values
    assert row["train_hours"].value == pytest.approx(40 / 3600)
    assert row["images_per_s"].value == statistics.median([6400.0, 3200.0])
    assert {s.name for s in row["images_per_s"].sources} == {first[0]["digest"], later["digest"]}


def test_views_show_the_same_numbers_and_lead_to_records():
    inputs = world()
    table = build_table(inputs, SUMMARY)
    assert table.costs is not None
    known = {each["digest"] for each in inputs.records} | {each["name"] for each in inputs.calibrations}
    rows = [row for row in csv.DictReader(io.StringIO(render_csv.render_csv(table))) if row["kind"] == "cost"]
    page, markdown = render_html.render_html(table, [], []), render_markdown.render_markdown(table)
    for block in table.costs.blocks:
        for row in block.rows:
            for key, found in row.values.items():
                (line,) = [r for r in rows if (r["label"], r["metric"]) == (row.label, key)]
                assert line["value"] == ("" if found.value is None else repr(found.value))
                assert found.value is not None or found.why
                assert set(filter(None, line["record"].split("; "))) <= known
                shown = cost_words.text(key, found)
                assert shown in page
                assert shown in markdown
    assert "failed nan" in page
    assert "times of two devices are not compared" in page
    assert next(r for r in rows if r["metric"] == "time_ratio" and r["label"] == "ccua")["baseline"] == "sit"


def test_the_same_records_give_the_same_bytes(tmp_path):
    inputs = world()
    formats = ("md", "tex", "csv", "html")
    first = write_report(inputs, SUMMARY, lambda made, name: None, tmp_path / "a", formats)
    assert "cost.tex" in first.paths
    records, known = list(inputs.records), list(inputs.calibrations)
    random.Random(1).shuffle(records)
    other = replace(inputs, records=records, calibrations=known[::-1])
    again = write_report(other, SUMMARY, lambda made, name: None, tmp_path / "b", formats)
    for name, path in first.paths.items():
        assert path.read_bytes() == again.paths[name].read_bytes(), name


def test_devices_and_labels_stay_text():
    cells = [{**cell(f"m{k}"), "label": text} for k, text in enumerate(HOSTILE)]
    records = [told(train_record(each, 560), each["label"]) for each in cells]
    table = build_table(Inputs("hostile", "x", cells, records), SUMMARY)
    assert table.costs is not None
    assert len(table.costs.blocks) == len(HOSTILE)
    page = render_html.render_html(table, [], [])
    assert page.count("<script") == 1  # its own
    assert "onerror=alert(1)>" not in page
    assert "<!--" not in render_markdown.render_markdown(table)
    for row in csv.DictReader(io.StringIO(render_csv.render_csv(table))):
        assert row["where"][:1] not in ("=", "+", "-", "@") or not row["where"]


def test_without_circumstances_there_is_no_section(tmp_path):
    inputs = quickstart()
    assert build_table(inputs, SUMMARY).costs is None
    report = write_report(inputs, SUMMARY, lambda made, name: None, tmp_path, ("md", "tex", "html"))
    assert set(report.paths) == {"md", "tex", "html"}
    assert 'class="cost"' not in report.paths["html"].read_text()
