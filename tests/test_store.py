"""The store's contents: what goes in comes out, and nothing damaged comes out unnoticed."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ltbench import files
from ltbench.canonical import digest
from ltbench.errors import EnvironmentProblem, LtbenchError, UsageError
from ltbench.store import Record, Records, Run, Store, load_records, run_id, sealed
from tests import store_faults as faults

CELL, OTHER = "ab" * 32, "ab" * 31 + "cd"
SETTINGS = {"dataset": {"name": "toy", "imbalance": 0.01}, "method": {"name": "sit"}, "seed": 0}
CODE = {"trainer": {"digest": "11", "files": {"ltbench/trainer.py": {"train": "0a0b0c0d"}}}}
RUN = run_id({"trainer": "11"}, SETTINGS)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store", tmp_path / "scratch")


@pytest.fixture
def run(store: Store) -> Run:
    store.put_cell(CELL, {"dataset": {"name": "toy"}, "seed": 0}, SETTINGS)
    run = store.run(CELL, RUN)
    run.create(CODE, SETTINGS)
    return run


def evaluation(store: Store, value: float = 1.0, guidance: float = 1.5) -> dict[str, Any]:
    told = {"protocol": "small-data", "guidance": guidance}
    rows = [{"metric": "FD", "group": group, "value": value, "n_gen": 500} for group in ("head", "tail")]
    return {"settings": SETTINGS, "evaluation": {"id": store.put_evaluation(told), **told}, "rows": rows}


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
    name = run.put_fact(b"picture", "png")
    assert name == run.put_fact(b"picture", ".png")
    assert run.fact(name).read_bytes() == run.read_fact(name) == b"picture"
    run.fact(name).write_bytes(b"pictura")
    with pytest.raises(files.Unreadable, match="sha256"):
        run.read_fact(name)
    assert run.put_fact(b"picture", "png") == name  # made again: repaired
    assert run.read_fact(name) == b"picture"
    with pytest.raises(LtbenchError, match="missing"):
        run.fact("0" * 16 + ".png")
    for bad in ("../../x.png", name + "/..", "x"):
        with pytest.raises(ValueError, match="not the name"):
            run.fact(bad)
    with pytest.raises(ValueError, match="1,048,576"):
        run.put_fact(bytes((1 << 20) + 1), "npz")
    with pytest.raises(ValueError, match="png or an npz"):
        run.put_fact(b"", "pkl")


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
    fact = run.put_fact(b"x", "png")
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
    assert twin.read_fact(fact) == b"x"
    assert own.get_evaluation(evaluation_id) == {"a": 1}
    assert {path: path.read_bytes() for path in store.root.rglob("*") if path.is_file()} == frozen


# --- damage ------------------------------------------------------------------------------------------------------------


def put_one(run: Run, step: int = 5) -> Path:
    return run.put_record("train", step, {"curve": {"loss": [0.5]}}, {"attempt": 1})


def spoil_nan(path: Path) -> None:
    path.write_text(path.read_text().replace("0.5", "NaN"))


def spoil_newer(path: Path) -> None:
    content = sealed.unseal(path.read_bytes())
    content["body"]["format"] = 2
    content["digest"] = digest(content["body"])
    path.write_bytes(sealed.seal(content))


def spoil_symlink(path: Path) -> None:
    path.rename(path.parent.parent / "away")
    path.symlink_to(path.parent.parent / "away")


def spoil_fifo(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def spoil_huge(path: Path) -> None:
    with open(path, "r+b") as file:
        file.truncate(1 << 30)


def spoil_schema(path: Path) -> None:
    content = sealed.unseal(path.read_bytes())
    del content["body"]["cell"]
    path.write_bytes(sealed.seal(content))


def spoil_extra(path: Path) -> None:
    path.write_bytes(sealed.seal(sealed.unseal(path.read_bytes()) | {"more": 1}))


def spoil_digest(path: Path) -> None:
    content = sealed.unseal(path.read_bytes())
    content["body"]["curve"]["loss"] = [0.25]
    path.write_text(json.dumps(content))  # by another program, without a seal


@pytest.mark.parametrize(
    ("spoil", "reason"),
    [
        (lambda path: path.write_bytes(path.read_bytes()[:-40]), "not JSON"),
        (lambda path: path.write_bytes(b""), "not JSON"),
        (lambda path: path.write_bytes(b"\xff\xfe" * 50), "not UTF-8"),
        (lambda path: path.write_text("[" * 100_000), "too deeply"),
        (lambda path: path.write_text("[1]"), "holds a list"),
        (lambda path: path.write_text(path.read_text().replace("0.5", "0.6")), "seal"),
        (lambda path: path.rename(path.with_name("notes.txt")), "name"),
        (lambda path: (path.unlink(), path.mkdir()), "regular"),
        (spoil_nan, "NaN"),
        (spoil_newer, "format 2"),
        (spoil_symlink, "symbolic"),
        (spoil_fifo, "regular"),
        (spoil_huge, "1,073,741,824"),
        (spoil_schema, "'cell'"),
        (spoil_extra, ": more"),
        (spoil_digest, "digest"),
    ],
)
def test_a_damaged_record_is_skipped_and_listed(store: Store, run: Run, spoil: Any, reason: str) -> None:
    put_one(run, 4)
    spoil(put_one(run, 5))
    found = run.records("train")
    assert [record.step for record in found] == [4]
    assert [record.step for record in store.records("train")] == [4]
    (damaged,) = found.damaged
    assert reason in damaged.reason
    assert store.damaged() == [damaged]


def test_a_damaged_record_is_made_whole_by_doing_its_work_again(run: Run) -> None:
    path = put_one(run)
    path.write_bytes(path.read_bytes()[:50])
    assert put_one(run) == path
    assert [record.step for record in run.records()] == [5]


def test_nan_in_a_foreign_record_is_refused(run: Run) -> None:
    path = put_one(run)
    path.write_text('{"body":{"value":NaN},"digest":"0","envelope":{}}')
    assert "NaN" in run.records().damaged[0].reason


def test_a_record_in_the_wrong_place_does_not_count(store: Store, run: Run) -> None:
    path = put_one(run)
    store.put_cell(OTHER, {}, {"x": 1})
    there = store.run(OTHER, RUN)
    there.create(CODE, {})
    shutil.copytree(path.parent, there.dir / "records")
    (damaged,) = there.records().damaged
    assert "misplaced" in damaged.reason
    assert [record.cell for record in store.records("train")] == [CELL]


def test_damaged_descriptors_are_listed_and_mended(store: Store, run: Run) -> None:
    for path in (run.dir / "run.json", run.dir.parent.parent / "cell.json"):
        path.write_bytes(path.read_bytes().replace(b"toy", b"tox"))
    run.fail("train", 1, cause="nan", step=3, message="x")
    failed = run.dir / "failed" / "train.1.json"
    failed.write_bytes(b"{}")
    put_one(run)
    assert {each.path.name for each in store.damaged()} == {"run.json", "cell.json", "train.1.json"}
    with pytest.raises(files.Unreadable, match="seal"):
        store.cell(CELL)
    assert len(list(store.records("train"))) == 1  # a record stands for itself
    assert run.failures() == []
    store.put_cell(CELL, {}, SETTINGS)
    run.create(CODE, SETTINGS)
    assert store.cell(CELL)["settings"] == run.info()["settings"] == SETTINGS


def test_a_descriptor_of_a_newer_format_is_left_alone(store: Store, run: Run) -> None:
    path = run.dir / "run.json"
    path.write_bytes(sealed.seal({"format": 2, "all": "new"}))
    with pytest.raises(sealed.NewerFormat):
        run.create(CODE, SETTINGS)
    assert sealed.unseal(path.read_bytes()) == {"format": 2, "all": "new"}


@pytest.mark.faults
def test_every_mutation_of_a_record_is_noticed(store: Store, run: Run) -> None:
    path = run.put_record(
        "evaluation", 5, evaluation(store, 1e-7), {"attempt": 1, "seconds": 1e22, "host": "é"}
    )
    sound, rng = path.read_bytes(), random.Random(0)
    for number in range(faults.scaled(1000)):
        path.write_bytes(faults.damage(sound, number, rng))
        found = run.records()
        assert (len(found), len(found.damaged)) == (0, 1), f"mutation {number} was not noticed"
    path.write_bytes(sound)
    assert len(run.records()) == 1


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=20,
)


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(st.text(), VALUES, min_size=1, max_size=4))
def test_seal_and_unseal_are_inverse(value: dict[str, Any]) -> None:
    try:
        data = sealed.seal(value)
    except UnicodeEncodeError:
        return  # lone surrogates are no text
    assert digest(sealed.unseal(data)) == digest(value)
    assert digest(json.loads(data)) == digest(sealed.unseal(data) | {"seal": json.loads(data)["seal"]})


# --- conflicts ---------------------------------------------------------------------------------------------------------


def values(records: list[Record]) -> list[float]:
    return [record.body["rows"][0]["value"] for record in records]


def test_the_later_attempt_counts_and_the_older_is_listed(store: Store, run: Run) -> None:
    for attempt, value in ((2, 20.0), (1, 10.0), (3, 30.0)):
        run.put_record("evaluation", 5, evaluation(store, value), {"attempt": attempt})
    found = run.records("evaluation")
    assert values(found) == [30.0]
    assert sorted(values(found.superseded)) == [10.0, 20.0]
    assert found.conflicts == []


def test_two_bodies_of_one_attempt_are_a_conflict(store: Store, run: Run) -> None:
    for value in (10.0, 20.0):
        run.put_record("evaluation", 5, evaluation(store, value), {"attempt": 2})
    run.put_record("evaluation", 5, evaluation(store, 5.0), {"attempt": 1})
    found = run.records()
    assert (values(found), sorted(values(found.conflicts)), values(found.superseded)) == (
        [],
        [10.0, 20.0],
        [5.0],
    )


def test_other_steps_guidance_or_evaluation_code_are_no_conflict(store: Store, run: Run) -> None:
    run.put_record("evaluation", 5, evaluation(store, 1.0), {"attempt": 1})
    run.put_record("evaluation", 6, evaluation(store, 2.0), {"attempt": 1})
    run.put_record("evaluation", 5, evaluation(store, 3.0, guidance=3.0), {"attempt": 1})
    run.put_record("evaluation", 5, evaluation(store, 4.0) | {"code": {"evaluation": "new"}}, {"attempt": 1})
    found = run.records()
    assert sorted(values(found)) == [1.0, 2.0, 3.0, 4.0]
    assert not found.superseded
    assert not found.conflicts


def test_order_does_not_depend_on_the_directory(
    store: Store, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in range(20):
        run.put_record("evaluation", step, evaluation(store, float(step)), {"attempt": 1})
        run.put_record("evaluation", step, evaluation(store, step + 0.5), {"attempt": 2})
    real, orders = os.listdir, []
    for seed in range(5):
        monkeypatch.setattr(
            os, "listdir", lambda path, seed=seed: random.Random(seed).sample(names := real(path), len(names))
        )
        found: Records = run.records()
        orders.append(([each.digest for each in found], [each.digest for each in found.superseded]))
    assert all(order == orders[0] for order in orders)
    assert [each.step for each in run.records()] == list(range(20))


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


def test_the_store_imports_neither_torch_nor_pandas() -> None:
    code = "import sys, ltbench.store; assert not {'torch', 'pandas', 'numpy'} & set(sys.modules), 'imported'"
    subprocess.run([sys.executable, "-c", code], check=True)
