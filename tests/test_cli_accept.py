"""`why` and `accept` where only the evaluation's code, a default or a package's version changed; the table keeps it with a footnote."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from ltbench import provenance
from ltbench.errors import UsageError
from ltbench.provenance import surroundings
from ltbench.report.assemble import build_table
from ltbench.report.definition import Definition
from ltbench.store import Store
from tests import cli_world
from tests.report_world import quickstart

cli, here, run = cli_world.cli, cli_world.here, cli_world.run  # fixtures


@pytest.fixture
def done(run, here) -> str:
    """The id of a finished cell of a benchmark of one."""
    assert run("--filter", "method=sit", "--filter", "seed=0")[0] == 0
    return next(iter(Store.open(here / "store", here / "scratch").records())).cell


def state(cli) -> dict:
    words = ["plan", "little.yaml", "--filter", "method=sit", "--filter", "seed=0", "--json"]
    return json.loads(cli(*words)[1])["cells"][0]


def test_changed_evaluation_code_is_explained_and_acceptable(done, cli, monkeypatch):
    assert "present one" in cli("why", done)[1]
    assert cli("accept", done, "--because", "x")[0] == 2  # nothing to accept
    other = {"evaluation": {"digest": 64 * "e", "files": {}}}
    monkeypatch.setattr(provenance, "evaluation_code", lambda: other)
    assert state(cli)["state"] == "stale"
    out = cli("why", done)[1]
    assert "was measured by other code" in out
    assert "evaluation code changed" in out
    assert "accept" in out
    assert "accepted with" not in cli("report", "little.yaml", "--format", "md")[1]
    assert cli("accept", done, "--because", "a comment moved")[0] == 0
    assert (
        "sit: results of other code, accepted with the reason: a comment moved."
        in cli("report", "little.yaml")[1]
    )
    assert state(cli)["state"] == "done"
    out = cli("why", done)[1]
    assert "accepted: a comment moved" in out
    assert "next:" not in out
    # Accepted was for that code, not for whatever comes.
    monkeypatch.setattr(
        provenance, "evaluation_code", lambda: {"evaluation": {"digest": 64 * "f", "files": {}}}
    )
    assert state(cli)["state"] == "stale"
    out = cli("why", done)[1]
    assert "(accepted for code that has changed since: a comment moved)" in out
    assert f"next: run it again, or keep the old: python harness.py accept {done[:12]}" in out


def test_an_accepted_training_is_not_offered_to_be_accepted_again(done, cli, monkeypatch):
    real = provenance.train_code
    monkeypatch.setattr(
        provenance,
        "train_code",
        lambda settings: {**real(settings), "trainer": {"digest": 64 * "e", "files": {}}},
    )
    assert "next: run it again, or keep the old" in cli("why", done)[1]
    assert cli("accept", done, "--because", "a comment moved")[0] == 0
    out = cli("why", done)[1]
    assert "was made by other code (accepted: a comment moved)" in out
    assert "next:" not in out


def test_records_of_a_method_that_is_gone_are_no_cell_that_has_not_begun(done, cli, monkeypatch):
    def gone(settings):
        raise UsageError("unknown method 'sit'")

    monkeypatch.setattr(provenance, "train_code", gone)
    out = cli("why", done)[1]
    assert "the present code cannot run it: unknown method 'sit'" in out
    assert "4 records of it stay in the store" in out
    assert "not begun" not in out


def test_changed_versions_are_named(done, cli, here):
    store = Store.open(here / "store", here / "scratch")
    old = next(iter(store.records()))
    old.path.unlink()
    envelope = {
        **old.envelope,
        "versions": {**surroundings.versions(), "numpy": "0.1", "gone": "9"},
        "finished": 1e12,
    }
    store.run(old.cell, old.run).put_record(old.kind, old.step, old.body, envelope, old.evaluation)
    out = cli("why", done)[1]
    assert f"numpy was 0.1 and is {surroundings.versions()['numpy']}" in out
    assert "gone was 9 and is not installed" in out


def test_mixed_versions_stay_in_the_table_with_a_footnote():
    inputs = quickstart()
    records = [json.loads(json.dumps(each)) for each in inputs.records]
    for record in records:
        new = record["body"]["settings"]["method"]["name"] == "cbdm"
        record["envelope"]["versions"] = {"torch": "2.7.1" if new else "2.6.0", "numpy": "2.0"}
    tables = [
        build_table(replace(inputs, records=order), Definition(name="x"))
        for order in (records, records[::-1])
    ]
    table = tables[0]
    assert tables[0].notes == tables[1].notes
    (note,) = [text for text in table.notes if "versions" in text]
    assert note == "Mixed versions: torch 2.6.0 in most records; torch 2.7.1 in cbdm."
    number = table.notes.index(note) + 1
    marked = {row.label for section in table.sections for row in section.rows if number in row.notes}
    assert marked == {"cbdm"}
    plain = build_table(inputs, Definition(name="x"))
    assert [s.entries for s in plain.sections] == [s.entries for s in table.sections]
