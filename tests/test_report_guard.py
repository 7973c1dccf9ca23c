"""What may not be compared is refused or footnoted, with both sides named: each guard meets a planted fault."""

from __future__ import annotations

import json
import random

import pytest

from ltbench.canonical import digest
from ltbench.report.assemble import build_table
from ltbench.report.definition import Definition, TableDefinition
from ltbench.report.identity import family_id, section_id
from ltbench.report.table import Inputs
from ltbench.report.words import section_line
from tests.report_world import GROUPS, evaluation, planned, record

NARROW = Definition(name="n", table=TableDefinition(metrics=["FD", "KD"], groups=["all", "tail"]))


def build(cells, records, definition=NARROW):
    return build_table(Inputs("b", "B", cells, records), definition)


def change(one, edit, finished=None):
    body = json.loads(json.dumps(one["body"]))
    edit(body)
    envelope = one["envelope"] if finished is None else {"finished": finished, "attempt": 1}
    return {"body": body, "digest": digest(body), "envelope": envelope}


def entry(table, label, metric="FD", group="all"):
    section = table.sections[0]
    i = next(i for i, r in enumerate(section.rows) if r.label == label)
    j = next(j for j, c in enumerate(section.columns) if (c.metric, c.group) == (metric, group))
    return section.entry(i, j)


def notes(table, found):
    return " ".join(table.notes[number - 1] for number in found.notes)


def with_metrics(*metrics):
    core = {**{k: v for k, v in evaluation().items() if k != "id"}, "metrics": list(metrics)}
    return {"id": digest(core)[:12], **core}


def only(kinds):
    return lambda body: body.update(rows=[row for row in body["rows"] if row["metric"] in kinds])


def two_cells():
    cells = [planned(m, s) for m in ("sit", "ccua") for s in (0, 1)]
    return cells, [record(cell, 560) for cell in cells]


# sections and evaluations


def test_a_section_is_an_evaluation_without_its_list_of_metrics():
    plain = evaluation()
    assert section_id(plain) == plain["id"] == section_id(with_metrics("FD"))
    for key, value in {
        "protocol": "adm-50k", "sampler": "heun", "steps": 40, "guidance": 2.0, "samples": 100, "seed": 1,
        "block": 50, "quantise": "floor", "labels": None, "reference": "other", "extractor": {"name": "x", "sha256": "0" * 64},
    }.items():  # fmt: skip
        other = {**plain, key: value}
        assert section_id(other) != section_id(plain), key
        assert (family_id(other) == family_id(plain)) == (key == "guidance")


def test_evaluations_that_differ_in_their_metrics_only_share_a_section():
    old, new = with_metrics("FD"), with_metrics("KD")
    cells = [planned(m, s, evaluations=[old, new]) for m in ("sit", "ccua") for s in (0, 1)]
    records = [change(record(c, 560, old), only(["FD"])) for c in cells]
    records += [change(record(c, 560, new), only(["KD"])) for c in cells[:3]]
    table = build(cells, records)
    (section,) = table.sections
    assert section.ids == (old["id"], new["id"])
    assert [entry(table, "ccua", metric).n for metric in ("FD", "KD")] == [2, 1]
    assert entry(table, "ccua", "KD").missing[0].text == "not measured"
    assert f"evaluations {old['id']}, {new['id']}, which differ only in their metrics" in section_line(
        section
    )
    assert len(section.rows[0].cells) == 2  # a cell planned twice is one cell
    for seed in range(3):
        random.Random(seed).shuffle(records)
        assert build(cells, records) == table


def test_two_values_of_one_metric_are_named_and_the_later_is_used():
    old, new = with_metrics("FD"), with_metrics("FD", "KD")
    cells = [planned("sit", 0, evaluations=[old, new])]
    first = change(record(cells[0], 560, old), only(["FD"]), finished=1.0)
    second = change(record(cells[0], 560, new), only(["FD", "KD"]), finished=2.0)
    assert build(cells, [first, second]).notes == ()

    def other(body):
        body["rows"][0]["value"] = 99.0

    for one, two, used in ((first, change(second, other), 99.0), (change(first, other), second, 99.0)):
        table = build(cells, [two, one])
        found = entry(table, "sit")
        assert found.values[0].value == two["body"]["rows"][0]["value"]
        text = notes(table, found)
        assert "the records differ" in text
        assert repr(used) in text
        assert one["digest"][:8] in text
        assert two["digest"][:8] in text
        assert build(cells, [one, two]) == table


def test_a_record_under_a_false_evaluation_id_is_refused_by_both_names():
    cells, records = two_cells()
    planted = change(records[3], lambda body: body["evaluation"].update(protocol="adm-50k", samples=50000))
    table = build(cells, [*records[:3], planted])
    found = entry(table, "ccua")
    here, there = evaluation()["id"], section_id(planted["body"]["evaluation"])
    assert (found.n, found.missing[0].text) == (1, "refused")
    text = notes(table, found)
    assert f"is of {there}, not {here}" in text
    assert "protocol (small-data, here adm-50k)" in text
    assert "samples (500, here 50000)" in text


# columns


@pytest.mark.parametrize(
    ("edit", "said"),
    [
        (lambda b: b["rows"][0].update(estimator="scipy"), "estimator (FD by hand, here scipy)"),
        (lambda b: b["rows"][0].pop("estimator"), "estimator (FD by hand, here not named)"),
        (lambda b: b.update(nfe=80), "evaluations per image (40, here 80)"),
        (lambda b: b.pop("nfe"), "evaluations per image (40, here not named)"),
        (
            lambda b: b.update(groups={**GROUPS, "head": [0, 1], "body": [2, 3, 4, 5, 6]}),
            f"classes ({digest(GROUPS)[:8]}, here {digest({**GROUPS, 'head': [0, 1], 'body': [2, 3, 4, 5, 6]})[:8]})",
        ),
    ],
)
def test_another_estimator_cost_or_grouping_is_refused(edit, said):
    cells, records = two_cells()
    table = build(cells, [*records[:3], change(records[3], edit)])
    found = entry(table, "ccua")
    assert (found.n, found.missing[0].text) == (1, "refused")
    assert said in notes(table, found)


def test_records_of_one_older_kind_stand_together():
    def old(body):
        for row in body["rows"]:
            for key in ("se", "corrected", "folds", "estimator"):
                row.pop(key)

    cells, records = two_cells()
    table = build(cells, [change(one, old) for one in records])
    assert entry(table, "ccua").n == 2
    assert table.notes == ()


def test_an_adaptive_sampler_may_cost_each_row_its_own_and_the_table_says_what():
    core = {
        **{k: v for k, v in evaluation("dopri5").items() if k != "id"},
        "steps": None,
        "atol": 1e-6,
        "rtol": 1e-3,
    }
    adaptive = {"id": digest(core)[:12], **core}
    cells = [planned(m, 0, evaluations=[adaptive]) for m in ("sit", "ccua")]
    spent = {"sit": 93.25, "ccua": 101.5}
    records = [record(cell, 560, nfe=spent[cell["label"]]) for cell in cells]
    table = build(cells, records)
    assert all(entry(table, label).n == 1 for label in spent)
    text = "Evaluations of the network per image differ between rows: sit: 93.25; ccua: 101.5."
    assert [table.notes[row.notes[0] - 1] for row in table.sections[0].rows] == [text, text]


@pytest.mark.parametrize("name", ["reference", "holdout"])
def test_values_against_other_real_images_are_refused(name):
    cells, records = two_cells()
    real = {"reference": "a" * 64, "holdout": "b" * 64}
    records = [change(r, lambda body: body.update(real=dict(real))) for r in records]
    assert entry(build(cells, records), "ccua").n == 2
    records[3] = change(records[3], lambda body: body["real"].update({name: "c" * 64}))
    table = build(cells, records)
    found = entry(table, "ccua")
    assert found.n == 1
    assert f"other {name} images ({real[name][:8]}, here cccccccc)" in notes(table, found)


def test_rows_sampled_in_another_precision_are_marked():
    cells, records = two_cells()
    assert build(cells, records).notes == ()
    train = {**cells[0]["settings"]["train"], "precision": "tf32"}
    planted = [change(one, lambda body: body["settings"].update(train=train)) for one in records[2:]]
    table = build(cells, [*records[:2], *planted])
    assert [row.notes for row in table.sections[0].rows].count(()) == 1
    assert table.notes == (
        "Mixed precision of sampling: fp32 in sit seed 0, sit seed 1; tf32 in ccua seed 0, ccua seed 1.",
    )
