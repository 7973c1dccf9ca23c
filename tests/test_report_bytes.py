"""The same records give the same bytes: whatever the listing order, locale, hash seed, time zone, width or order of layers."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from ltbench.report.pins import read_lock
from ltbench.store import Store
from tests import cli_world

cli, here, run = cli_world.cli, cli_world.here, cli_world.run  # fixtures

# The program with every listing of a folder in an order of its own.
SHUFFLED = """
import os, random, sys
dice = random.Random(int(sys.argv.pop(1)))
listed, scanned = os.listdir, os.scandir
def listdir(*a): names = listed(*a); dice.shuffle(names); return names
class Entries(list):
    def __enter__(self): return self
    def __exit__(self, *a): pass
    def close(self): pass
    def __iter__(self): return (self.pop() for _ in range(len(self)))
    def __next__(self):
        if not self: raise StopIteration
        return self.pop()
def scandir(*a): found = list(scanned(*a)); dice.shuffle(found); return Entries(found)
os.listdir, os.scandir = listdir, scandir
from ltbench.cli import main
sys.exit(main())
"""


def files(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def report(here: Path, number: int, store: str, **variables: str) -> tuple[dict[str, bytes], bytes]:
    """Files and stdout of `report` in a process of its own."""
    out = here / f"out{number}"
    words = ["report", "little.yaml", "--store", store, "--out", str(out), "--lock", str(out / "paper.lock")]
    env = {
        **os.environ,
        "PYTHONHASHSEED": str(number),
        "MPLCONFIGDIR": str(here / f"mpl{number}"),
        **variables,
    }
    done = subprocess.run(
        [sys.executable, "-c", SHUFFLED, str(number), *words],
        env=env,
        cwd=here,
        capture_output=True,
        check=True,
    )
    return files(out), done.stdout


@pytest.fixture
def layers(run, here) -> tuple[str, str]:
    """Two stores that hold a benchmark's records between them: some in one, some in the other, some in both."""
    run("--workers", "1")
    one, other = here / "one", here / "other"
    shutil.copytree(here / "store", one)
    shutil.copytree(here / "store", other)
    for folder, rest in ((one, (0,)), (other, (1,))):
        for number, path in enumerate(sorted((here / "store").rglob("records/*.json"))):
            if number % 3 in rest:
                (folder / path.relative_to(here / "store")).unlink()
    return str(one), str(other)


def test_the_same_records_give_the_same_bytes(layers, here):
    one, other = layers
    both = [os.pathsep.join(pair) for pair in ((one, other), (other, one))]
    first, printed = report(here, 0, str(here / "store"), COLUMNS="120", LC_ALL="C", TZ="UTC")
    assert {name.rpartition(".")[2] for name in first} >= {"md", "tex", "csv", "html", "png", "lock"}
    worlds = [
        ("120", both[0], {"LC_ALL": "POSIX", "TZ": "UTC+11", "SOURCE_DATE_EPOCH": "12345"}),
        ("40", both[1], {"LC_ALL": "C.UTF-8", "TZ": "Asia/Kathmandu", "LANG": "tr_TR.UTF-8"}),
    ]
    for number, (width, store, more) in enumerate(worlds, 1):
        made, said = report(here, number, store, COLUMNS=width, **more)
        assert made.keys() == first.keys()
        assert [name for name in made if made[name] != first[name]] == []
        # A narrow terminal folds what is printed there, and no file.
        assert (said == printed) == (width == "120")
    for name, data in first.items():
        if name.endswith((".png", ".pdf", ".svg")):
            assert b"CreationDate" not in data, name
            assert b"date:create" not in data, name
            assert b"tIME" not in data, name
    assert read_lock(here / "out0" / "paper.lock")["little"].records


def test_a_labs_layer_under_ones_own_is_read_as_one_and_show_says_whose_each_is(layers, here, cli):
    one, other = layers
    whole = {r.digest for r in Store.open(here / "store", here / "s", write=False).records()}
    opened = Store.open(Path(one), here / "s", write=False, readonly=[Path(other)])
    parts = [{r.digest for r in Store.open(Path(p), here / "s", write=False).records()} for p in (one, other)]
    assert {r.digest for r in opened.records()} == whole == parts[0] | parts[1]
    assert parts[0] != whole
    assert parts[1] != whole
    before = files(Path(other))
    lent = next(r for r in opened.records() if r.path.is_relative_to(other))
    code, out, _ = cli("show", lent.cell, "--store", os.pathsep.join((one, other)))
    assert code == 0
    assert f"read-only layer {other}" in out
    lines = [line for line in out.splitlines() if line.strip().startswith("evaluation ")]
    whose = {"own" if line.split()[-1] == "own" else "lent" for line in lines}
    assert "lent" in whose
    assert files(Path(other)) == before
    # Where there is one store, no column speaks of layers.
    alone = cli("show", lent.cell, "--store", str(here / "store"))[1]
    assert "read-only" not in alone
    assert not any(line.split()[-1:] == ["layer"] for line in alone.splitlines())


def test_two_layers_that_differ_keep_the_later_record_and_say_so(layers, here, cli):
    """Two clusters made one cell by the same code, each as its attempt 1: another device, other last digits."""
    shutil.copytree(here / "store", here / "theirs")
    store = Store.open(here / "store", here / "scratch")
    theirs = Store.open(here / "theirs", here / "scratch")
    old = next(iter(store.records()))
    (here / "theirs" / old.path.relative_to(here / "store")).unlink()
    body = {**old.body, "rows": [{**row, "value": row["value"] + 0.5} for row in old.body["rows"]]}
    envelope = {**old.envelope, "finished": float(old.envelope.get("finished") or 0) + 5}
    theirs.run(old.cell, old.run).put_record(old.kind, old.step, body, envelope, old.evaluation)
    outputs = set()
    for pair in ((here / "store", here / "theirs"), (here / "theirs", here / "store")):
        found = (
            Store.open(pair[0], here / "s", write=False, readonly=pair[1:]).run(old.cell, old.run).records()
        )
        assert [r.body["rows"][0]["value"] for r in found if r.slot == old.slot] == [body["rows"][0]["value"]]
        assert [r.digest for r in found.shadowed] == [old.digest]
        joined = os.pathsep.join(map(str, pair))
        assert cli("report", "little.yaml", "--format", "md", "--out", here / "o", "--store", joined)[0] == 0
        outputs.add((here / "o" / "little.md").read_text())
    assert len(outputs) == 1
    assert "another layer of the store has a later record" in outputs.pop()
