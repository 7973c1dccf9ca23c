"""A remembered report is the report, and is never told when anything that it was made from has changed or the entry is damaged."""

from __future__ import annotations

import json
import os
import shutil

import pytest

from ltbench import entry
from ltbench.cli.output import say
from ltbench.report import assemble, memory
from ltbench.store import Store
from tests import cli_world

cli, here, run = cli_world.cli, cli_world.here, cli_world.run  # fixtures
ONE = ("--filter", "method=sit", "--filter", "seed=0")  # of four cells
WORDS = ("report", "little.yaml", "--format", "md,csv", "--out", "out", *ONE)


@pytest.fixture
def kept(run, cli, here, monkeypatch):
    """A finished benchmark whose report was made once and is remembered; how often tables are built from now on."""
    monkeypatch.setenv("LTBENCH_CACHE", str(here / "cache"))
    monkeypatch.setattr(memory, "SETTLED", -1e9)  # the files of a test are all young
    run("--workers", "1", *ONE)
    made = []
    build = assemble.build_table
    monkeypatch.setattr("ltbench.report.build.build_table", lambda *a, **k: made.append(1) or build(*a, **k))
    assert cli(*WORDS)[0] == 0
    cli(*WORDS)  # the first one may have made a folder that it listed
    made.clear()
    return made


def tables(here) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((here / "out").iterdir())}


def test_it_tells_the_same_and_writes_the_same(kept, cli, here):
    before = tables(here)
    first = cli(*WORDS)
    assert kept == []
    shutil.rmtree(here / "out")
    again = cli(*WORDS)
    assert kept == []
    assert again == first
    assert tables(here) == before
    (here / "out" / "little.md").write_text("by hand")
    cli(*WORDS)
    assert tables(here) == before
    assert kept == []
    # And what is told is what would be made.
    shutil.rmtree(here / "cache")
    assert cli(*WORDS) == first
    assert kept == [1]


def an_evaluation(here):
    return next(iter(Store.open(here / "store", here / "scratch").records()))


def change_a_record(here):
    old = an_evaluation(here)
    rows = [{**row, "value": row["value"] + 1} for row in old.body["rows"]]
    run = Store.open(here / "store", here / "scratch").run(old.cell, old.run)
    old.path.unlink()
    run.put_record(old.kind, old.step, {**old.body, "rows": rows}, old.envelope, old.evaluation)


def flip_a_bit(here):
    path = an_evaluation(here).path
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def a_later_attempt(here):
    """Another attempt at the same evaluation, which supersedes."""
    old = an_evaluation(here)
    run = Store.open(here / "store", here / "scratch").run(old.cell, old.run)
    rows = [{**row, "value": row["value"] + 2} for row in old.body["rows"]]
    envelope = {**old.envelope, "attempt": old.attempt + 1}
    run.put_record(old.kind, old.step, {**old.body, "rows": rows}, envelope, old.evaluation)


def another_run(here):
    """A record of the same cell by other code, in a run of its own."""
    old = an_evaluation(here)
    run = Store.open(here / "store", here / "scratch").run(old.cell, "0" * 12)
    run.put_record(old.kind, old.step, {**old.body, "run": run.run}, old.envelope, old.evaluation)


def a_failure(here):
    old = an_evaluation(here)
    run = Store.open(here / "store", here / "scratch").run(old.cell, old.run)
    run.fail("train", 9, cause="nan", message="x", step=1)


def a_definition(here):
    (here / "reports").mkdir(exist_ok=True)
    (here / "reports" / "little.yaml").write_text("name: little\ntable: {metrics: [FD]}\n")


def the_spec(here):
    text = (here / "little.yaml").read_text()
    (here / "little.yaml").write_text(text.replace("A little", "Another little"))


CHANGES = {
    "record": change_a_record,
    "bit": flip_a_bit,
    "superseded": a_later_attempt,
    "added": another_run,
    "gone": lambda here: an_evaluation(here).path.unlink(),
    "failure": a_failure,
    "definition": a_definition,
    "spec": the_spec,
}


@pytest.mark.parametrize("name", CHANGES)
def test_any_change_of_what_it_was_made_from_makes_it_anew(kept, cli, here, name, monkeypatch):
    CHANGES[name](here)
    told = cli(*WORDS)
    assert kept == [1]
    monkeypatch.setenv("LTBENCH_CACHE", "")
    assert cli(*WORDS) == told


def test_another_command_screen_or_plugin_folder_is_another_report(kept, cli, here, monkeypatch):
    cli(*WORDS, "--json")
    assert kept == [1]
    monkeypatch.setenv("COLUMNS", "60")
    cli(*WORDS)
    assert kept == [1, 1]
    cli(*WORDS, "--plugins", str(here))
    assert kept == [1, 1, 1]


def test_another_version_or_copy_of_the_program_tells_nothing_of_this_one(kept, cli, here, monkeypatch):
    monkeypatch.setattr(memory, "FORMAT", memory.FORMAT + 1)
    cli(*WORDS)
    assert kept == [1]
    monkeypatch.setattr(memory, "PACKAGE", here)
    cli(*WORDS)
    assert kept == [1, 1]


def test_it_is_told_before_the_command_line_is_asked(kept, cli, monkeypatch, capfd):
    told = cli(*WORDS)
    monkeypatch.setattr("ltbench.cli.main", lambda: pytest.fail("was imported and asked"))
    assert entry.main() == 0
    assert capfd.readouterr() == told[1:]


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "foreign"])
def test_a_damaged_entry_is_made_anew(kept, cli, here, damage):
    (entry,) = [
        path for path in (here / "cache").iterdir() if path.name == f"report-{memory_name(here, cli)}.json"
    ]
    data = entry.read_bytes()
    entry.write_bytes({
        "cut": data[: len(data) // 2],
        "flip": data[:2000] + bytes([data[2000] ^ 1]) + data[2001:],
        "empty": b"",
        "foreign": json.dumps({"marks": 3}).encode(),
    }[damage])  # fmt: skip
    told = cli(*WORDS)
    assert kept == [1]
    assert cli(*WORDS) == told
    assert kept == [1]


def memory_name(here, cli) -> str:
    """The newest entry's name."""
    newest = max((here / "cache").glob("report-*"), key=lambda path: path.stat().st_mtime_ns)
    return newest.stem.removeprefix("report-")


def test_what_still_runs_or_is_young_is_not_remembered(run, cli, here, monkeypatch):
    monkeypatch.setenv("LTBENCH_CACHE", str(here / "cache"))
    run("--workers", "1", *ONE)
    cli(*WORDS[:-2])  # one cell of two is missing
    assert not [*(here / "cache").glob("report-*")]
    monkeypatch.setattr(memory, "SETTLED", 3600.0)  # however slow the machine is
    cli(*WORDS)  # complete, but written within that time
    assert not [*(here / "cache").glob("report-*")]


def test_a_cache_that_cannot_be_written_costs_nothing_but_time(kept, cli, here, monkeypatch):
    (here / "file").write_text("")
    monkeypatch.setenv("LTBENCH_CACHE", str(here / "file" / "below"))
    assert cli(*WORDS)[0] == 0
    monkeypatch.delenv("LTBENCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(here / "xdg"))
    assert memory.root() == here / "xdg" / "ltbench"
    assert os.environ.get("LTBENCH_CACHE") is None


def test_words_of_the_moment_are_said_and_not_kept(capsys):
    with memory.remembering("x") as seen:
        say("kept")
        with memory.aside():
            say("in passing")
        say("kept too")
    assert seen.stderr.getvalue() == "kept\nkept too\n"
    assert capsys.readouterr().err == "kept\nin passing\nkept too\n"
