"""The lock: what is printed is pinned with its records, and whatever moves is said by kind; archives carry it."""

from __future__ import annotations

import json
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from ltbench.archive.merge import merge
from ltbench.canonical import digest
from ltbench.errors import LtbenchError, UsageError
from ltbench.report.assemble import build_table
from ltbench.report.definition import Definition, TableDefinition
from ltbench.report.pins import Moved, Pins, compare, parse_lock, pin, read_lock, write_lock
from ltbench.report.table import Inputs
from ltbench.store import Store
from tests import cli_world
from tests.report_world import STEPS, planned, quickstart, record

cli, here, run = cli_world.cli, cli_world.here, cli_world.run  # fixtures
PLAIN = Definition(name="plain", table=TableDefinition(differences=True))


def pins(inputs: Inputs, definition: Definition = PLAIN):
    return pin(build_table(inputs, definition), inputs, definition)


def moved(old: Inputs, new: Inputs, definition: Definition = PLAIN) -> Moved:
    return compare(pins(old), pins(new, definition), {each["digest"] for each in new.records})


def kinds(found: Moved) -> set[str]:
    return {kind for kind, lines in found.lines.items() if lines}


def changed(inputs: Inputs, place: int, change) -> Inputs:
    """The inputs with one record's body changed, under its new digest."""
    records = [json.loads(json.dumps(each)) for each in inputs.records]
    change(records[place]["body"])
    records[place]["digest"] = digest(records[place]["body"])
    return replace(inputs, records=records)


def shown(inputs: Inputs) -> int:
    """The place of an evaluation record of the printed step."""
    bodies = [each["body"] for each in inputs.records]
    return next(n for n, b in enumerate(bodies) if b["kind"] == "evaluation" and b["step"] == STEPS[-1])


def test_nothing_moves_while_the_records_stay_whatever_their_order():
    inputs = quickstart()
    assert not moved(inputs, replace(inputs, records=list(reversed(inputs.records))))


def test_every_printed_number_is_pinned_with_every_seed_behind_it():
    inputs = quickstart()
    table, pinned = build_table(inputs, PLAIN), pins(inputs)
    values = {place: each for place, each in pinned.numbers.items() if place[-1] == "value"}
    entries = [
        s.entry(i, j) for s in table.sections for i in range(len(s.rows)) for j in range(len(s.columns))
    ]
    assert len(values) == len(entries)
    assert sorted(each["value"] for each in values.values()) == sorted(e.mean for e in entries)
    assert sum(len(each["from"]) for each in values.values()) == sum(e.n for e in entries)
    assert {place[-1] for place in pinned.numbers} == {"value", "difference", "floor"}
    # The record behind a number is the one that holds it.
    bodies = {each["digest"]: each["body"] for each in inputs.records}
    for place, each in values.items():
        for name, value in each["from"].items():
            assert value in [row["value"] for row in bodies[name]["rows"] if row["group"] == place[4]]


def test_floors_of_two_data_sets_under_one_evaluation_are_both_pinned():
    """Of one part and protocol: nothing but the data set tells the two tables apart."""
    small = {"name": "fashion_mnist", "source": "embedded", "imbalance": 0.01, "resolution": 16}
    cells = [
        planned("sit", 0, label="sit (resolution=32)"),
        planned("sit", 0, label="sit (resolution=16)", dataset=small),
    ]
    inputs = Inputs("q", "Q", cells, [record(cell, STEPS[-1]) for cell in cells])
    sections = build_table(inputs, PLAIN).sections
    floors = [place for place in pins(inputs).numbers if place[-1] == "floor"]
    assert len(sections) == 2
    printed = [(s, at) for s in sections for at in s.floors if at[1] == s.shown]
    assert len(floors) == len(printed)
    assert {place[0] for place in floors} == {
        "sit, {imbalance: 0.01, name: fashion_mnist, resolution: 16, source: embedded}",
        "sit, {imbalance: 0.01, name: fashion_mnist, resolution: 32, source: embedded}",
    }


def test_a_line_of_a_sheet_is_named_without_what_it_has_not():
    place = ("", "", "SiT", "FID", "", 0, "ours")
    one = Pins("d", {}, {place: {"printed": "27.0", "value": 27.0, "from": {}}})
    assert compare(one, Pins("d", {}, {}), set()).lines["gone"] == [
        "SiT / FID (ours): pinned as 27.0, not printed any more"
    ]


def test_a_changed_value_is_named_with_its_cell():
    inputs = quickstart()

    def change(body):
        body["rows"][0]["value"] += 1.0

    found = moved(inputs, changed(inputs, shown(inputs), change))
    assert {"value", "new"} <= kinds(found)
    assert any("sit / FD[" in line and ", all, step 560" in line for line in found.lines["value"])
    assert any("in place of" in line and "no sound copy" in line for line in found.lines["new"])


def test_other_code_of_an_equal_value_is_drift_of_its_own_kind():
    inputs = quickstart()
    found = moved(inputs, changed(inputs, shown(inputs), lambda body: body["code"].update(method=64 * "f")))
    assert kinds(found) == {"code"}
    assert "other code of method" in found.lines["code"][0]


def test_a_record_that_is_gone_or_new_is_named():
    inputs = quickstart()
    fewer = replace(inputs, records=[r for n, r in enumerate(inputs.records) if n != shown(inputs)])
    gone = moved(inputs, fewer)
    assert any(line.startswith("record ") and "no sound copy" in line for line in gone.lines["gone"])
    new = moved(fewer, inputs)
    assert any(line.startswith("record ") and "not pinned" in line for line in new.lines["new"])


def test_a_record_passed_over_is_told_from_one_that_is_lost():
    cell = planned("sit", 0)
    first, later = (
        record(cell, STEPS[-1]),
        record(cell, STEPS[-1], code=dict.fromkeys(("trainer",), 64 * "b")),
    )
    later["envelope"]["finished"] = 99.0
    old = Inputs("x", "X", [cell], [first])
    found = moved(old, replace(old, records=[first, later]))
    assert "the store still holds it" in found.lines["code"][0]


def test_formatting_alone_is_told_from_values():
    inputs = quickstart()
    more = Definition(name="plain", table=TableDefinition(differences=True, decimals={"FD": 1}))
    found = moved(inputs, inputs, more)
    assert kinds(found) == {"formatting"}
    assert any("the definition was" in line for line in found.lines["formatting"])


def test_a_published_number_is_pinned_by_its_text():
    """It comes from no record: another digit in the csv is another value, not another format."""
    place = ("250k steps", "", "SiT", "FID", "", 0, "published")
    old, new = (
        Pins("d", {}, {place: {"printed": text, "value": None, "from": {}}}) for text in ("33.8", "33.9")
    )
    assert kinds(compare(old, new, set())) == {"value"}
    assert not compare(old, old, set())


def test_the_file_is_sorted_reads_back_and_holds_several_reports(tmp_path):
    inputs, path = quickstart(), tmp_path / "paper.lock"
    write_lock(path, "zeta", pins(inputs))
    write_lock(path, "alpha", pins(inputs))
    assert list(read_lock(path)) == ["alpha", "zeta"]
    assert read_lock(path)["zeta"] == pins(inputs)
    before = path.read_bytes()
    write_lock(path, "zeta", pins(replace(inputs, records=list(reversed(inputs.records)))))
    assert path.read_bytes() == before
    assert len(before.splitlines()) < 1000


def test_a_name_adds_no_line_to_the_file(tmp_path):
    cell = planned("sit", 0, label='x"\n},\n"format": 9')
    write_lock(tmp_path / "a.lock", "x", pins(Inputs("x", "X", [cell], [record(cell, STEPS[-1])])))
    assert set(read_lock(tmp_path / "a.lock")) == {"x"}


@pytest.mark.parametrize("data", [b"", b"{}", b"[]", b'{"format": 1}', b"\xff", b'{"format":1,"reports":[1]}',
                                  b'{"format":1,"reports":{"a":{"definition":"d","records":{},"numbers":[{}]}}}'])  # fmt: skip
def test_what_is_no_lock_is_said(data):
    with pytest.raises(LtbenchError, match="no lock"):
        parse_lock(Path("x.lock"), data)


def test_a_newer_lock_is_left_alone(tmp_path):
    (tmp_path / "new.lock").write_text('{"format": 2, "reports": {}}')
    with pytest.raises(LtbenchError, match="update ltbench"):
        write_lock(tmp_path / "new.lock", "x", pins(quickstart()))
    assert (tmp_path / "new.lock").read_text() == '{"format": 2, "reports": {}}'


def test_from_the_command_line_to_a_supplement(run, cli, here):
    run("--workers", "1")
    assert cli("report", "little.yaml", "--format", "md", "--lock", "paper.lock")[0] == 0
    code, out, _ = cli("report", "little.yaml", "--format", "md", "--check", "paper.lock")
    assert code == 0
    assert "nothing moved" in out
    assert cli("report", "little.yaml", "--check", "paper.lock", "--lock", "paper.lock")[0] == 2
    assert cli("report", "little.yaml", "--check", "none.lock")[0] == 2

    assert cli("export", "little.yaml", "--lock", "paper.lock", "--out", "a.zip")[0] == 0
    with zipfile.ZipFile(here / "a.zip") as archive:
        assert archive.read("lock/paper.lock") == (here / "paper.lock").read_bytes()
    merge(here / "a.zip", Store.open(here / "other", here / "scratch"))
    code, out, _ = cli("report", "little.yaml", "--format", "md", "--check", "paper.lock", "--store", "other")
    assert code == 0

    victim = next((here / "store").rglob("evaluation-000000040*.json"))
    victim.unlink()
    code, out, _ = cli("report", "little.yaml", "--format", "md", "--check", "paper.lock", "--store", "store")
    assert code == 3
    assert "no sound copy" in out
    code, _, err = cli("export", "little.yaml", "--lock", "paper.lock", "--out", "b.zip", "--store", "store")
    assert code == 1
    assert "does not hold" in err
    assert not (here / "b.zip").exists()


def test_check_needs_the_report_to_be_pinned(run, cli, here):
    write_lock(here / "other.lock", "other", pins(quickstart()))
    code, _, err = cli("report", "little.yaml", "--format", "md", "--check", "other.lock")
    assert code == 2
    assert "does not pin little" in err
    with pytest.raises(UsageError):
        read_lock(here / "none.lock")
