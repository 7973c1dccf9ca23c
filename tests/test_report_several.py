"""Definitions over several benchmarks, all definitions at once, and the messages where one of them has nothing."""

from __future__ import annotations

import json

import pytest

from tests import cli_world

cli, here, run = cli_world.cli, cli_world.here, cli_world.run  # fixtures

BOTH = """
name: both
title: Both
benchmark: [little, second]
sheet:
  baseline: sit
  blocks:
    - {title: short, ours: {benchmark: little}}
    - {title: long, ours: {benchmark: second}}
  rows:
    - {name: sit, ours: {method: sit}}
    - {name: ccua, ours: {method: ccua}, against: sit}
  columns: [{name: FD, ours: {metric: FD}, decimals: 2, improvement: true}]
"""


@pytest.fixture
def both(here):
    """A definition of two benchmarks that share every cell and differ in their last milestone."""
    for folder in ("benchmarks", "reports"):
        (here / folder).mkdir()
    text = (here / "little.yaml").read_text()
    (here / "benchmarks" / "little.yaml").write_text(text)
    second = text.replace("name: little", "name: second").replace("[20, 40]", "[20, 80]")
    (here / "benchmarks" / "second.yaml").write_text(second)
    (here / "reports" / "both.yaml").write_text(BOTH)
    return here


def columns(here) -> dict[str, list[str]]:
    """Block title -> FD of sit and of ccua, as the Markdown prints them."""
    text = (here / "reports" / "build" / "both" / "both.md").read_text()
    found: dict[str, list[str]] = {}
    title = ""
    for line in text.splitlines():
        title = next((name for name in ("short", "long") if name in line and "|" not in line), title)
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) > 3 and cells[1].split("<")[0].strip() in ("sit", "ccua"):
            found.setdefault(title, []).append(cells[3])
    return found


def fd(method: str, step: int) -> float:
    """The stand-in job's FD over all classes, mean of seeds 0 and 1."""
    return len(method) + 0.05 + 1000 / step + 3


def test_a_table_of_two_benchmarks_of_which_one_and_then_both_have_records(run, cli, both):
    run("--workers", "1")
    assert cli("report", "both", "--format", "md", "--lock", "a.lock")[0] == 0
    found = columns(both)
    assert str(f"{fd('sit', 40):.2f}") in found["short"][0]
    assert all(
        "not run" in text or "interrupted" in text or "not evaluated" in text for text in found["long"]
    )
    assert cli("run", "second", "--job", "cli_jobs:run_job", "--workers", "1")[0] == 0
    code, out, _ = cli("report", "both", "--format", "md", "--check", "a.lock")
    assert code == 3
    assert "long / sit / FD" in out
    found = columns(both)
    for block, step in (("short", 40), ("long", 80)):
        assert f"{fd('sit', step):.2f}" in found[block][0]
        assert f"{fd('ccua', step):.2f}" in found[block][1]


def test_all_definitions_are_checked_against_one_lock(cli, both, monkeypatch):
    monkeypatch.setattr("ltbench.cli.definitions.CHECKOUT", both)  # not the house's own 14
    assert cli("report", "--all", "--format", "md", "--check", "none.lock")[0] == 2
    code, _, err = cli("report", "--all", "--format", "md", "--lock", "a.lock")
    assert code == 0
    assert "prints no number yet" in err
    (both / "reports" / "more.yaml").write_text(BOTH.replace("name: both", "name: more"))
    code, out, _ = cli("report", "--all", "--format", "md", "--check", "a.lock", "--json")
    assert code == 3
    assert {each["name"]: bool(each["moved"].get("new")) for each in json.loads(out)} == {
        "both": False,
        "more": True,
    }
    assert cli("report", "both", "--all")[0] == 2
    assert cli("report")[0] == 2


@pytest.mark.parametrize(
    ("names", "said"), [("[little, secund]", "second"), ("[little, little]", "twice"), ("[other]", "no spec")]
)
def test_a_benchmark_that_a_definition_names_wrongly_is_said_with_its_file(cli, both, names, said):
    (both / "reports" / "both.yaml").write_text(BOTH.replace("[little, second]", names))
    code, _, err = cli("report", "both")
    assert code == 2
    assert "reports/both.yaml" in err
    assert said in err
