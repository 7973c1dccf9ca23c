"""The store's contents: what goes in comes out, and nothing damaged comes out unnoticed."""

from __future__ import annotations

import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import ltbench
from ltbench import files
from ltbench.canonical import digest
from ltbench.errors import EnvironmentProblem, LtbenchError, UsageError
from ltbench.store import Run, Store, load_records
from tests import store_faults as faults
from tests.store_world import CELL, CODE, OTHER, RUN, SETTINGS, evaluation, make


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store", tmp_path / "scratch")


@pytest.fixture
def run(tmp_path: Path, store: Store) -> Run:
    return make(tmp_path)


# --- round trips -------------------------------------------------------------------------------------------------------


def test_a_cell_its_run_and_their_descriptors_come_back(store: Store, run: Run) -> None:
    assert list(store.cells()) == [CELL]
    assert store.cell(CELL) == {
        "format": 1,
        "id": CELL,
        "identity": {"dataset": {"name": "toy"}, "seed": 0},
        "settings": SETTINGS,
    }
    assert [each.run for each in store.runs(CELL)] == [RUN]
    assert run.info() == {"format": 1, "run": RUN, "cell": CELL, "code": CODE, "settings": SETTINGS}
    store.put_cell(CELL, {"changed": 1}, {})  # write-once: the first stays
    run.create({}, {})
    assert store.cell(CELL)["settings"] == run.info()["settings"] == SETTINGS


def test_the_layout_is_the_documented_one(store: Store, run: Run) -> None:
    run.put_record("evaluation", 560, evaluation(store), {})
    run.put_record("train", 560, {"curve": {}}, {})
    record = run.records("evaluation")[0]
    place = store.root / "cells" / "ab" / CELL / "runs" / RUN
    assert (
        record.path
        == place / "records" / f"evaluation-000000560-{record.evaluation}-{record.digest[:16]}.json"
    )
    content = json.loads(record.path.read_text())
    assert content["digest"] == digest(content["body"]) == record.digest
    assert run.records("train")[0].path.name.startswith("train-000000560-")
    assert json.loads((store.root / "FORMAT").read_text()) == {"format": 1, "link": True}
    assert run.checkpoints == store.scratch / "cells" / "ab" / CELL / "runs" / RUN / "checkpoints"


def test_put_record_is_idempotent_and_fills_in_what_it_knows(store: Store, run: Run) -> None:
    first = run.put_record("train", 5, {"curve": {"loss": [0.1, None]}}, {"attempt": 1, "host": "a"})
    before = first.read_bytes()
    assert run.put_record("train", 5, {"curve": {"loss": [0.1, None]}}, {"attempt": 2, "host": "b"}) == first
    assert first.read_bytes() == before
    (record,) = run.records()
    assert (record.cell, record.run, record.step, record.kind, record.attempt) == (CELL, RUN, 5, "train", 1)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"rows": [{"value": math.nan}]}, r"nan.*rows\[0\]\.value"),
        ({"curve": {"loss": (1.0, math.inf)}}, r"inf.*curve\.loss\[1\]"),
        ({"cell": OTHER}, "body for"),
        ({"step": 6}, "body for"),
        ({"thing": Path("x")}, "Path.*thing"),
    ],
)
def test_a_body_that_readers_would_refuse_is_refused(run: Run, body: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        run.put_record("train", 5, body, {})
    assert not run.records()


def test_an_evaluation_record_needs_its_id_and_rows(store: Store, run: Run) -> None:
    with pytest.raises(ValueError, match="evaluation"):
        run.put_record("evaluation", 5, {"rows": []}, {})
    with pytest.raises(ValueError, match="rows"):
        run.put_record("evaluation", 5, {}, {}, evaluation="0" * 12)
    run.put_record("evaluation", 5, {"rows": []}, {}, evaluation="0" * 12)
    assert run.records()[0].evaluation == "0" * 12


def test_facts_come_back_verified(run: Run) -> None:
    name = run.facts.put(b"picture", "png")
    assert name == run.facts.put(b"picture", ".png")
    assert run.facts.file(name).read_bytes() == run.facts.read(name) == b"picture"
    run.facts.file(name).write_bytes(b"pictura")
    with pytest.raises(files.Unreadable, match="sha256"):
        run.facts.read(name)
    assert run.facts.put(b"picture", "png") == name  # made again: repaired
    assert run.facts.read(name) == b"picture"
    with pytest.raises(LtbenchError, match="missing"):
        run.facts.file("0" * 16 + ".png")
    for bad in ("../../x.png", name + "/..", "x"):
        with pytest.raises(ValueError, match="not the name"):
            run.facts.file(bad)
    with pytest.raises(ValueError, match="1,048,576"):
        run.facts.put(bytes((1 << 20) + 1), "npz")
    with pytest.raises(ValueError, match="png or an npz"):
        run.facts.put(b"", "pkl")


def test_evaluations_are_named_by_their_content(store: Store) -> None:
    told = {"protocol": "small-data", "guidance": 1.5}
    name = store.put_evaluation({**told, "id": "ignored"})
    assert name == digest(told)[:12]
    assert store.get_evaluation(name) == told
    path = store.root / "evaluations" / f"{name}.json"
    path.write_text("{}")
    with pytest.raises(files.Unreadable):
        store.get_evaluation(name)
    assert [each.path for each in store.damaged()] == [path]
    assert store.put_evaluation(told) == name
    assert store.get_evaluation(name) == told
    with pytest.raises(UsageError):
        store.get_evaluation("../../FORMAT")


def test_specs_and_acceptances(store: Store, run: Run) -> None:
    store.put_spec("smoke-with-mine", "name: x\n")
    assert store.put_spec("smoke-with-mine", "name: y\n").read_text() == "name: y\n"
    assert list(store.specs()) == ["smoke-with-mine"]
    for bad in ("../x", "a/b", "", "-rf", "x" * 65, "a..b"):
        with pytest.raises(UsageError):
            store.put_spec(bad, "")
    assert run.accepted() is None
    run.accept("only a log line", {"trainer": "22"})
    accepted = run.accepted()
    assert accepted is not None
    assert (accepted["because"], accepted["code"]) == ("only a log line", {"trainer": "22"})


def test_prefixes(store: Store) -> None:
    for cell in (CELL, OTHER, "12" * 32):
        store.put_cell(cell, {}, {"x": 1})
    assert store.resolve("121212") == store.resolve("12" * 32) == "12" * 32
    assert store.resolve(CELL.upper()) == CELL
    for bad, message in {
        "ababab": "beginning of 2 cells",
        "1212": "at least 6",
        "../../": "hex",
        "fedcba": "no cell",
    }.items():
        with pytest.raises(UsageError, match=message):
            store.resolve(bad)
    for bad in ("../" * 8, "AB" * 32, "ab\n" * 12):
        with pytest.raises(UsageError):
            store.cell(bad)
        with pytest.raises(UsageError):
            store.run(CELL, bad)


# --- opening -----------------------------------------------------------------------------------------------------------


def test_where_the_store_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("LTBENCH_STORE", raising=False)
    monkeypatch.delenv("LTBENCH_SCRATCH", raising=False)
    assert Store.open(write=False).root == tmp_path / "results" / "store"
    assert not (tmp_path / "results").exists()  # reading makes nothing
    assert list(Store.open(write=False).cells()) == []
    Store.open(tmp_path / "shared", tmp_path / "x")
    monkeypatch.setenv("LTBENCH_STORE", f"{tmp_path / 'own'}:{tmp_path / 'shared'}")
    monkeypatch.setenv("LTBENCH_SCRATCH", "heavy")
    opened = Store.open()
    assert opened.layers == (tmp_path / "own", tmp_path / "shared")
    assert opened.scratch == tmp_path / "heavy"
    assert not faults.leftovers(tmp_path)


def test_a_store_that_cannot_be_used_says_why(tmp_path: Path) -> None:
    (tmp_path / "FORMAT").write_text('{"format":2,"link":true}')
    for write in (True, False):
        with pytest.raises(EnvironmentProblem, match="has format 2; this ltbench reads up to 1"):
            Store.open(tmp_path, tmp_path / "x", write=write)
    (tmp_path / "FORMAT").write_text('{"form')
    with pytest.raises(EnvironmentProblem, match="FORMAT cannot be read") as caught:
        Store.open(tmp_path, tmp_path / "x")
    assert '{"format":1,"link":true}' in str(caught.value)
    with pytest.raises(EnvironmentProblem, match="not a store"):
        Store.open(tmp_path / "own", tmp_path / "x", readonly=[tmp_path / "nothing"])
    (tmp_path / "file").touch()
    with pytest.raises(EnvironmentProblem, match="cannot write"):
        Store.open(tmp_path / "file", tmp_path / "x")


def test_a_store_opened_for_reading_writes_nothing(store: Store, run: Run) -> None:
    reading = Store.open(store.root, store.scratch, write=False)
    before = sorted(store.root.rglob("*"))
    twin = reading.run(CELL, RUN)
    for write in (
        lambda: reading.put_cell(OTHER, {}, {}),
        lambda: reading.put_evaluation({"a": 1}),
        lambda: twin.put_record("train", 1, {}, {}),
        lambda: twin.claim("train"),
        lambda: twin.fail("train", 1, cause="code"),
    ):
        with pytest.raises(UsageError, match="for reading"):
            write()
    assert sorted(store.root.rglob("*")) == before


def test_layers_are_read_as_one_and_never_written(store: Store, run: Run, tmp_path: Path) -> None:
    run.put_record("train", 1, {"curve": {}}, {"attempt": 1})
    fact = run.facts.put(b"x", "png")
    evaluation_id = store.put_evaluation({"a": 1})
    frozen = {path: path.read_bytes() for path in store.root.rglob("*") if path.is_file()}
    own = Store.open(tmp_path / "own", tmp_path / "s", readonly=[store.root])
    twin = own.run(CELL, RUN)
    assert list(own.cells()) == [CELL]
    assert [record.step for record in own.records("train")] == [1]
    assert own.cell(CELL)["settings"] == twin.info()["settings"] == SETTINGS
    twin.put_record("train", 1, {"curve": {}}, {"attempt": 1})  # the same work again: one record
    twin.put_record("train", 2, {"curve": {}}, {"attempt": 1})
    own.put_cell(OTHER, {}, {"y": 1})
    assert [record.step for record in twin.records()] == [1, 2]
    assert list(own.cells()) == [CELL, OTHER]
    assert [each.run for each in own.runs(CELL)] == [RUN]
    assert own.resolve(CELL) == CELL
    assert twin.facts.read(fact) == b"x"
    assert own.get_evaluation(evaluation_id) == {"a": 1}
    assert {path: path.read_bytes() for path in store.root.rglob("*") if path.is_file()} == frozen


# --- for notebooks -----------------------------------------------------------------------------------------------------


def test_load_records_is_one_row_per_value(store: Store, run: Run) -> None:
    run.put_record(
        "evaluation", 5, evaluation(store, 2.5) | {"images_seen": 320}, {"attempt": 1, "host": "h"}
    )
    frame = load_records(store)
    assert list(frame["group"]) == ["head", "tail"]
    assert set(frame["value"]) == {2.5}
    row = frame.iloc[0]
    assert (row["cell"], row["step"], row["images_seen"], row["dataset.imbalance"]) == (CELL, 5, 320, 0.01)
    assert (row["method.name"], row["evaluation.guidance"], row["host"]) == ("sit", 1.5, "h")


def test_load_records_of_nothing_has_columns_and_of_no_store_is_an_error(tmp_path: Path) -> None:
    Store.open(tmp_path / "empty", tmp_path / "x")
    frame = ltbench.load_records(tmp_path / "empty")
    assert frame["cell"].nunique() == 0
    assert frame.groupby(["metric", "group"])["value"].mean().empty
    with pytest.raises(UsageError, match="there is no store"):
        ltbench.load_records(tmp_path / "typo")


def test_the_store_imports_neither_torch_nor_pandas() -> None:
    code = "import sys, ltbench.store; assert not {'torch', 'pandas', 'numpy'} & set(sys.modules), 'imported'"
    subprocess.run([sys.executable, "-c", code], check=True)
