"""The table object: what stands in a cell, what is refused, what is missing, and what may be called best."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import random
import statistics
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from ltbench.canonical import digest
from ltbench.errors import SpecError
from ltbench.report.assemble import build_table
from ltbench.report.definition import Definition, TableDefinition, load_definition
from ltbench.report.table import Inputs
from tests.report_world import (
    GROUPS,
    STEPS,
    evaluation,
    planned,
    quickstart,
    record,
    train_record,
    value_of,
)

ROOT = Path(__file__).resolve().parents[1]
SUMMARY = load_definition(ROOT / "reports" / "summary.yaml")


def build(cells, records, states=None, definition=SUMMARY):
    return build_table(Inputs("b", "B", cells, records, states or {}), definition)


def place(section, metric, group):
    return next(j for j, c in enumerate(section.columns) if (c.metric, c.group) == (metric, group))


def row(section, label):
    return next(i for i, r in enumerate(section.rows) if r.label == label)


def entry(section, label, metric="FD", group="all", step=None):
    return section.entry(row(section, label), place(section, metric, group), step)


def change(one, edit):
    """A copy of a record whose body was edited, with its own digest."""
    body = json.loads(json.dumps(one["body"]))
    edit(body)
    return {**one, "body": body, "digest": digest(body)}


# values


def test_a_cell_is_the_mean_over_seeds_with_its_spread_floor_counts_and_records():
    inputs = quickstart()
    sit, ddpm = build_table(inputs, SUMMARY).sections
    assert [r.label for r in sit.rows] == ["sit", "cbdm", "dispersive", "ccua"]
    assert [r.label for r in ddpm.rows] == ["ddpm", "ccua"]
    assert (sit.part, sit.shown, sit.steps, sit.seeds_planned) == ("sit", 560, STEPS, 2)
    for step in STEPS:
        found = entry(sit, "cbdm", "FD", "tail", step)
        values = [value_of("FD", "tail", "cbdm", seed, step) for seed in (0, 1)]
        assert found.mean == pytest.approx(statistics.mean(values), rel=1e-15)
        assert found.sd == pytest.approx(statistics.stdev(values), rel=1e-12)
        assert (found.n, found.planned, found.missing) == (2, 2, ())
        assert [v.seed for v in found.values] == [0, 1]
        known = {r["digest"]: r["body"] for r in inputs.records}
        assert [known[v.digest]["step"] for v in found.values] == [step, step]
        assert [known[v.digest]["cell"] for v in found.values] == [v.cell for v in found.values]
    j = place(sit, "FD", "tail")
    column = sit.columns[j]
    assert (column.n_gen, column.n_ref, column.n_floor, column.name) == (
        150,
        600,
        150,
        "FD[fashion-cnn-v1@1a2b3c4d]",
    )
    assert sit.floors[j, 560] == pytest.approx(1.2)
    single = entry(ddpm, "ddpm")
    assert (single.n, single.planned, single.sd) == (1, 1, None)


def test_columns_are_the_definitions_metrics_by_groups():
    section = build_table(quickstart(), SUMMARY).sections[0]
    wanted = [(m, g) for m in ("FD", "KD", "precision", "recall") for g in ("all", "head", "body", "tail")]
    assert [(c.metric, c.group) for c in section.columns] == wanted
    narrow = Definition(name="n", table=TableDefinition(metrics=None, groups=["tail"], step=280))
    section = build_table(quickstart(), narrow).sections[0]
    assert [(c.metric, c.group) for c in section.columns] == [
        (m, "tail") for m in ("FD", "KD", "precision", "recall")
    ]
    assert section.shown == 280


def test_the_training_recipe_and_what_it_does_otherwise_stand_below_the_table():
    inputs = quickstart()
    same = [{**cell, "recipe": "seed-sit, but for batch 96 (there 48)"} for cell in inputs.planned]
    table = build_table(replace(inputs, planned=same), SUMMARY)
    assert table.notes.count("Every row is trained as seed-sit, but for batch 96 (there 48).") == 1
    mixed = [cell if cell["label"] == "sit" else {**cell, "recipe": "repa"} for cell in inputs.planned]
    table = build_table(replace(inputs, planned=mixed), SUMMARY)
    told = {r.label: [table.notes[n - 1] for n in r.notes] for r in table.sections[0].rows}
    assert "cbdm is trained as repa." in told["cbdm"]
    assert not any("trained as" in text for text in told["sit"])


def test_the_order_in_which_records_are_listed_changes_nothing():
    inputs = quickstart()
    expected = build_table(inputs, SUMMARY)
    for seed in range(5):
        shuffled = list(inputs.records)
        random.Random(seed).shuffle(shuffled)
        shuffled += shuffled[:3]  # and a record seen in two stores counts once
        assert build_table(replace(inputs, records=shuffled), SUMMARY) == expected


def test_records_of_other_cells_steps_and_evaluations_stay_out():
    cells = [planned("sit", s) for s in (0, 1)]
    mine = [record(cell, 560) for cell in cells]
    other = [
        record(planned("cbdm", 0), 560),
        record(cells[0], 300),
        record(cells[0], 560, evaluation("euler", 3.0)),
    ]
    assert build(cells, mine + other) == build(cells, mine)


# rows and sections


def test_rows_follow_the_plan_and_name_what_differs():
    cells = [planned("ccua", s, label="ccua (resample=0.1)", resample=0.1) for s in (0, 1)]
    cells += [planned("ccua", s) for s in (0, 1)]
    section = build(cells, []).sections[0]
    assert [(r.label, r.axes) for r in section.rows] == [
        ("ccua (resample=0.1)", ("0.1",)),
        ("ccua", ("none",)),
    ]
    assert section.axes == ("resample",)
    silent = [planned("ccua", 0), planned("ccua", 0, train={"batch": 32, "lr": 0.002})]
    section = build(silent, []).sections[0]
    assert [r.label for r in section.rows] == [
        "ccua (batch=64, betas=[0.9, 0.999])",
        "ccua (batch=32, betas=none)",
    ]
    weights = [planned("ccua", 0, parameters={"alpha": a}) for a in (0.05, 0.5)]
    assert [r.label for r in build(weights, []).sections[0].rows] == ["ccua (alpha=0.05)", "ccua (alpha=0.5)"]


def test_a_row_of_other_settings_than_the_first_has_them_in_a_footnote():
    """However its label calls it: marks compare it with rows that had another budget, or saw other batches."""
    cells = [
        planned("sit", 0),
        planned("ccua", 0),
        planned("ccua", 0, label="ccua (resample=0.1)", resample=0.1),
        planned(
            "cbdm", 0, label="cbdm (batch=128)", train={"batch": 128, "lr": 0.002, "betas": [0.9, 0.999]}
        ),
    ]
    table = build_table(Inputs("q", "Q", cells, [record(cell, STEPS[-1]) for cell in cells]), SUMMARY)
    told = {r.label: [table.notes[n - 1] for n in r.notes] for r in table.sections[0].rows}
    assert told["sit"] == told["ccua"] == []
    end = " than in sit; marks compare rows of all settings."
    assert told["ccua (resample=0.1)"] == [f"Other resampling (none, here 0.1){end}"]
    assert told["cbdm (batch=128)"] == [
        f"Other images seen (35,840, here 71,680), train.batch (64, here 128){end}"
    ]


def test_what_is_unequal_between_two_labels_is_said_even_if_no_label_says_it():
    cells = [planned("sit", 0), planned("cbdm", 0, network="SiT-N/8")]
    section = build(cells, []).sections[0]
    assert [r.label for r in section.rows] == ["sit (network=SiT-T/8)", "cbdm (network=SiT-N/8)"]


def test_guidance_sampler_and_data_make_sections_never_columns():
    both = [evaluation("euler", 1.5), evaluation("euler", 3.0)]
    cells = [planned("sit", s, evaluations=both) for s in (0, 1)]
    records = [record(cell, step, which) for cell in cells for step in STEPS for which in both]
    table = build(cells, records)
    assert [s.evaluation["guidance"] for s in table.sections] == [1.5, 3.0]
    assert [
        s.title.endswith(g) for s, g in zip(table.sections, ("guidance 1.5", "guidance 3"), strict=True)
    ] == [True] * 2
    data = {"name": "fashion_mnist", "source": "embedded", "imbalance": 0.1, "resolution": 32}
    assert len(build([planned("sit", 0), planned("sit", 0, dataset=data)], []).sections) == 2


# missing


def test_figures_wait_for_what_the_plan_will_bring_and_for_nothing_else():
    everything = load_definition(ROOT / "reports" / "figures.yaml")
    done = quickstart()
    assert build_table(done, SUMMARY).undrawn == ()  # one guidance and no illustration are its plan
    (asked,) = build_table(done, everything).undrawn
    assert "no illustration is planned" in asked
    assert "where the weights are" in asked

    both = [evaluation("euler", 1.5), evaluation("euler", 3.0)]
    cells = [planned(m, 0, evaluations=both) for m in ("sit", "ccua")]
    low, high = build(cells, []).undrawn
    assert "guidance 1.5, step 560: drawn from the first record on: samples beside real images, FD of" in low
    assert "recall against class frequency, FD against the cost" in low
    assert "from the first trained milestone on: curves of the loss" in low
    assert "guidance 3, step 560: drawn from" in high
    assert "; from records of w = 1.5, 3 on: FD against guidance" in low
    assert "against guidance" not in high
    records = [record(cells[0], 560, both[0]), train_record(cells[0], 560)]
    left = build(cells, records).undrawn
    assert left[0].endswith(
        "step 560: drawn from records of w = 3 on: FD against guidance."
    )  # one row is enough for others
    assert high.startswith(left[1][:-1])  # the loss is drawn by now
    assert build([planned("sit", 0, unsupported="needs mid")], []).undrawn == ()


def test_missing_seeds_are_counted_named_and_explained():
    cells = [planned(m, s) for m in ("sit", "ccua", "cbdm", "repa") for s in (0, 1)]
    lost, failed, running = cells[2]["cell"], cells[4]["cell"], cells[5]["cell"]
    cells[6]["unsupported"] = cells[7]["unsupported"] = "needs a block named mid"
    states = {
        failed: {"text": "failed: nan", "detail": "loss is NaN at step 120"},
        running: {"text": "running 63 %"},
    }
    records = [record(cell, step) for cell in cells[:2] + cells[3:4] for step in STEPS]
    records += [record(cells[5], 280), train_record(cells[2], 560)]
    section = build(cells, records, states).sections[0]
    found = entry(section, "ccua")
    assert (found.n, found.planned, found.sd) == (1, 2, None)
    assert found.mean == value_of("FD", "all", "ccua", 1, 560)
    texts = {(m.label, m.seed): (m.text, m.detail) for m in section.missing}
    assert texts == {
        ("ccua", 0): ("not evaluated", "trained, not evaluated"),
        ("cbdm", 0): ("failed: nan", "loss is NaN at step 120"),
        ("cbdm", 1): ("running 63 %", ""),
        ("repa", 0): ("n/a", "needs a block named mid"),
        ("repa", 1): ("n/a", "needs a block named mid"),
    }
    assert {m.cell for m in section.missing} >= {lost, failed, running}
    assert entry(section, "cbdm").mean is None
    assert entry(section, "cbdm", step=280).n == 1  # the earlier milestone is not shown in place of the later
    nothing = build(cells[:2], []).sections[0]
    assert {m.text for m in nothing.missing} == {"not run"}
    assert nothing.columns[0].name == "FD[fashion-cnn-v1@1a2b3c4d]"


def test_an_undefined_value_is_missing_with_its_reason():
    cells = [planned("sit", s) for s in (0, 1)]
    records = [record(cell, 560) for cell in cells]

    def undefine(body):
        tail = next(r for r in body["rows"] if (r["metric"], r["group"]) == ("recall", "tail"))
        tail |= {"value": None, "reason": "recall at k = 3 needs 4 images; the first set has 3"}

    table = build(cells, [records[0], change(records[1], undefine)])
    found = entry(table.sections[0], "sit", "recall", "tail")
    assert (found.n, found.missing[0].text) == (1, "undefined")
    assert "needs 4 images" in table.notes[found.notes[0] - 1]
    assert entry(table.sections[0], "sit", "recall", "head").notes == ()


# refusals and footnotes


@pytest.mark.parametrize(
    ("key", "value", "word"),
    [
        ("name", "FD[other@00000000]", "other@00000000"),
        ("n_gen", 400, "n_gen (500, here 400)"),
        ("n_ref", 900, "n_ref"),
        ("better", "higher", "better"),
        ("scale", 100, "scale"),
    ],
)
def test_a_column_refuses_what_does_not_belong_to_it(key, value, word):
    cells = [planned(m, s) for m in ("sit", "ccua") for s in (0, 1)]
    records = [record(cell, 560) for cell in cells]
    records[3] = change(records[3], lambda body: body["rows"][0].update({key: value}))
    table = build(cells, records)
    found = entry(table.sections[0], "ccua")
    assert (found.n, found.missing[0].text) == (1, "refused")
    assert found.values[0].seed == 0
    assert word in table.notes[found.notes[0] - 1]
    assert entry(table.sections[0], "ccua", "FD", "head").n == 2


def test_another_head_body_tail_is_refused_everywhere():
    cells = [planned("sit", s) for s in (0, 1, 2)]
    records = [record(cell, 560) for cell in cells]
    moved = {**GROUPS, "head": [0, 1], "body": [2, 3, 4, 5, 6]}
    records[2] = change(records[2], lambda body: body.update(groups=moved))
    table = build(cells, records)
    assert entry(table.sections[0], "sit", "FD", "tail").n == 2
    assert any("group classes" in note for note in table.notes)


def test_mixed_code_and_data_are_footnotes_on_the_rows_they_concern():
    cells = [planned(m, s) for m in ("sit", "ccua", "cbdm") for s in (0, 1)]
    records = [record(cell, 560) for cell in cells]
    assert build(cells, records).notes == ()
    edited = list(records)
    edited[2] = change(records[2], lambda body: body["code"].update(trainer=64 * "b"))
    edited[5] = change(records[5], lambda body: body["code"].update(method=64 * "c"))
    table = build(cells, edited)
    rows = {r.label: r.notes for r in table.sections[0].rows}
    assert rows["sit"] == ()
    assert "Mixed trainer code: aaaaaaaa in" in table.notes[rows["ccua"][0] - 1]
    assert "bbbbbbbb in ccua seed 0" in table.notes[rows["ccua"][0] - 1]
    assert "Mixed method code" in table.notes[rows["cbdm"][0] - 1]
    edited = [*records[:5], change(records[5], lambda body: body.update(data_sha256=64 * "e"))]
    assert "Mixed training data" in build(cells, edited).notes[0]


def test_of_two_records_of_a_cell_the_later_counts_and_the_other_is_mentioned():
    cells = [planned("sit", s) for s in (0, 1)]
    records = [record(cell, 560) for cell in cells]

    def better(body):
        body["run"] = "1" * 12
        body["rows"][0]["value"] = 1.0

    newer = {**change(records[0], better), "envelope": {"finished": 99.0, "attempt": 1}}
    table = build(cells, [newer, *records])
    assert entry(table.sections[0], "sit").values[0].value == 1.0
    assert "1 older record" in table.notes[table.sections[0].rows[0].notes[0] - 1]
    older = {**newer, "envelope": {"finished": 0.5, "attempt": 1}}
    assert entry(build(cells, [older, *records]).sections[0], "sit").values[0].value != 1.0


def test_a_method_trained_against_the_extractor_is_flagged():
    cells = [planned("repa", 0, parameters={"encoder": "fashion-cnn-v1"}), planned("sit", 0)]
    table = build(cells, [record(cell, 560) for cell in cells])
    assert "flattered" in table.notes[table.sections[0].rows[0].notes[0] - 1]
    assert table.sections[0].rows[1].notes == ()


@pytest.mark.parametrize(
    ("parameters", "extractor", "flagged"),
    [
        ({"encoder": "timm:vit_base_patch14_dinov2.lvd142m"}, "timm:vit_large_patch14_dinov2.lvd142m", True),
        (
            {"encoder": ["random", "timm:vit_base_patch14_dinov2@w.pth"]},
            "timm:vit_large_patch14_dinov2",
            True,
        ),
        ({"encoder": "timm:vit_base_patch14_dinov2.lvd142m"}, "inception-2015-12-05", False),
        ({"mode": "dinov2"}, "timm:vit_large_patch14_dinov2", False),  # not an encoder
        ({"encoder": "lite0"}, "timm:efficientnet_lite0.ra_in1k", True),
    ],
)
def test_an_encoder_of_the_extractors_family_is_flagged(parameters, extractor, flagged):
    which = evaluation(extractor=extractor)
    cells = [
        planned("repa", 0, parameters=parameters, evaluations=[which]),
        planned("sit", 0, evaluations=[which]),
    ]
    table = build(cells, [record(cell, 560) for cell in cells])
    assert any("of the same family" in note for note in table.notes) is flagged
    assert bool(table.sections[0].rows[0].notes) is flagged
    assert table.sections[0].rows[1].notes == ()


def test_what_could_not_be_read_is_said_below_the_table():
    inputs = replace(quickstart(), problems=["b.json: its bytes changed", "a.json: is empty"])
    assert build_table(inputs, SUMMARY).notes == (
        "Left out: a.json: is empty.",
        "Left out: b.json: its bytes changed.",
    )


def test_floors_that_differ_are_noted():
    cells = [planned("sit", s) for s in (0, 1)]
    records = [record(cell, 560) for cell in cells]
    records[1] = change(records[1], lambda body: body["rows"][0].update(floor=1.3))
    table = build(cells, records)
    assert table.sections[0].floors[0, 560] == pytest.approx(1.25)
    assert any("floor of FD" in note for note in table.notes)


# marks


def test_marks_reach_the_table():
    cells = [planned(m, s) for m in ("sit", "ccua", "cbdm") for s in (0, 1)]
    levels = {"sit": 10.0, "ccua": 5.0, "cbdm": 7.0}

    def fix(body):
        body["rows"][0]["value"] = levels[body["settings"]["method"]["name"]] * (
            1 + 0.1 * body["settings"]["seed"]
        )

    section = build(cells, [change(record(cell, 560), fix) for cell in cells]).sections[0]
    assert [entry(section, label).mark for label in ("sit", "ccua", "cbdm")] == ["", "best", "second"]


# definitions


def test_a_definition_says_all_its_mistakes_with_their_lines(tmp_path):
    path = tmp_path / "bad.yaml"
    path.write_text(
        "name: bad\ntable:\n  metrics: [FD]\n  gruops: [all]\n  step: sometimes\n"
        "figures:\n  - {kind: group_bars, metric: FD, colour: red}\n  - {kind: pie, metric: FD}\n"
    )
    with pytest.raises(SpecError) as caught:
        load_definition(path)
    places = {(p.line, p.message.split(":")[0]) for p in caught.value.problems}
    assert {(4, "table.gruops"), (7, "figures.0.colour"), (8, "figures.1")} <= places
    assert any(line == 5 for line, _ in places)
    assert all(p.file == str(path) for p in caught.value.problems)


def test_published_numbers_are_data():
    data = (ROOT / "results/published/ccua.csv").read_bytes()
    assert hashlib.sha256(data).hexdigest().startswith("33c2249a547154ad")  # corrections are deliberate
    rows = list(csv.DictReader(io.StringIO(data.decode(), newline="")))
    columns = "table,row,dataset,imbalance_factor,resolution,pipeline,sampler,steps,method,variant,group,metric,value,note"
    assert list(rows[0]) == columns.split(",")
    assert len(rows) == 560
    assert all(math.isfinite(float(r["value"])) for r in rows)
    assert sum(r["table"] == "1" for r in rows) == 120
    first = next(
        r
        for r in rows
        if (r["table"], r["method"], r["metric"], r["steps"]) == ("1", "ccua", "FID", "250000")
    )
    assert first["value"] == "27.0"


def test_the_report_loads_neither_torch_nor_drawing_libraries():
    code = (
        "import sys, ltbench.report.build, ltbench.report.render_terminal\n"
        "heavy = {'torch', 'matplotlib', 'seaborn', 'pandas', 'numpy', 'jinja2'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=ROOT)


def test_figures_list_classes_from_head_to_tail_although_stored_groups_are_sorted_by_name():
    from ltbench.report.figure_data import ranked_classes

    body = {
        "groups": {"body": [2, 0], "head": [3, 1], "tail": [4, 5]},
        "train_counts": [30, 90, 60, 100, 9, 4],
    }
    assert ranked_classes(body) == [3, 1, 2, 0, 4, 5]
