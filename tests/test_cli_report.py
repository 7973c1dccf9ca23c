"""`report` by the name of a definition, beside published numbers, and what it answers to names that there are not."""

from __future__ import annotations

import pytest

from tests.cli_world import cli, here  # noqa: F401
from tests.paper_world import CSV

HEAD = CSV.read_text().splitlines()[0]
DEFINITION = """name: thesis
title: A table of one's own
benchmark: little.yaml
sheet:
  published: mine
  rows:
    - {name: SiT, ours: {method: sit}, theirs: {method: sit}}
    - {name: CCUA, ours: {method: ccua}, theirs: {method: ccua}}
  columns:
    - {name: FID, ours: {metric: FD}, theirs: {metric: FID}, decimals: 2, better: lower, tolerance: {relative: 0.05}}
"""


@pytest.fixture
def thesis(here):  # noqa: F811
    """A definition, its published numbers and its benchmark, in a folder of their own."""
    (here / "reports").mkdir()
    (here / "reports" / "thesis.yaml").write_text(DEFINITION)
    (here / "results" / "published").mkdir(parents=True)
    lines = [
        f"1,1,,,,sit,,40,{method},,all,FID,{value},"
        for method, value in (("sit", "30.00"), ("ccua", "25.00"))
    ]
    (here / "results" / "published" / "mine.csv").write_text("\n".join([HEAD, *lines]) + "\n")
    return here


def test_a_store_that_is_not_there_is_named_where_one_was_asked_for(cli, here, monkeypatch):  # noqa: F811
    for words in (["report", "little.yaml", "--format", "md"], ["status", "little.yaml"], ["status"]):
        code, _, err = cli(*words, "--store", "typo")
        assert code in (0, 1)
        assert err.count("there is no store at") == 1
        assert str(here / "typo") in err
    monkeypatch.delenv("LTBENCH_STORE")
    assert "no store" not in cli("status", "little.yaml")[2], "the usual place is made by the first run"


def test_a_table_of_the_paper_is_printed_before_anything_has_run(cli, here):  # noqa: F811
    code, out, err = cli("report", "table4", "--format", "md,csv")
    assert code == 0
    assert "17.2 (-1.5)" in out
    assert "not run" in out
    assert (here / "reports/build/table4/table4.md").exists()
    assert "reports/build/table4/table4.csv" in err
    assert not (here / "store").exists()


def test_an_added_method_has_a_row_in_a_table_of_the_paper(cli, here):  # noqa: F811
    code, out, _ = cli("report", "table4", "--format", "md", "--with", "cbdm")
    assert code == 0
    assert any(line.split("ours")[0].split() == ["cbdm"] for line in out.splitlines() if "ours" in line)


def test_drift_has_an_exit_code_and_names_the_cells(cli, thesis):  # noqa: F811
    code, out, err = cli("report", "thesis", "--format", "md", "--fail-on", "drift")
    assert (code, "0 of 2 published numbers compared." in err) == (0, True)
    code, _, err = cli("run", "little.yaml", "--job", "paper_jobs:run_job")
    assert code == 0, err
    code, out, err = cli("report", "thesis", "--format", "md", "--fail-on", "drift")
    assert code == 3
    assert "1 cells drifted" in err
    assert "CCUA, FID: worse; ours 32.05, +7.05 against the published number, allowed 1.25" in err
    assert "SiT" not in err
    assert "+1.05 within" in out
    assert "+7.05 worse" in out
    code, out, err = cli("report", "thesis", "--format", "md")
    assert code == 0
    assert "within" not in out
    code, out, err = cli("report", "thesis", "--format", "md", "--fail-on", "drift", "--filter", "method=sit")
    assert code == 0
    assert "1 of 2 published numbers compared: 1 within." in err


def test_a_spec_is_still_a_spec(cli, here):  # noqa: F811
    code, out, _ = cli("report", "little.yaml", "--format", "md")
    assert (code, "A little benchmark" in out) == (0, True)
    code, out, _ = cli("report", "little.yaml", "--as", "groups", "--format", "md")
    assert (code, "body" in out) == (0, True)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["tabel1"], "did you mean 'table1'?"),
        (["groups"], "report SPEC --as groups"),
        (["little.yaml", "--as", "tabel1"], "did you mean 'table1'?"),
        (["little.yaml", "--fail-on", "drift"], "no published numbers"),
        (["little.yaml", "--fail-on", "rain"], "rain"),
        (["nowhere/x.yaml"], "there is no file nowhere/x.yaml"),
    ],
)
def test_a_name_that_means_nothing_is_an_error_with_a_way_out(words, said, cli, here):  # noqa: F811
    code, _, err = cli("report", *words, "--format", "md")
    assert code == 2
    assert said in err


def test_a_definition_of_numbers_that_are_not_there_says_which_there_are(cli, thesis):  # noqa: F811
    file = thesis / "reports" / "thesis.yaml"
    file.write_text(DEFINITION.replace("published: mine", "published: yours"))
    code, _, err = cli("report", "thesis", "--format", "md")
    assert code == 2
    assert "yours.csv" in err
    assert "ccua, mine" in err
    file.write_text(DEFINITION.replace("theirs: {method: ccua}", "theirs: {method: ccau}"))
    code, _, err = cli("report", "thesis", "--format", "md")
    assert code == 2
    assert "CCUA: no published number of mine.csv fits `theirs`" in err
