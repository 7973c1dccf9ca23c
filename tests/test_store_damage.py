"""The store's damage and conflicts: nothing damaged comes out unnoticed, and of two answers the rule picks."""

from __future__ import annotations

import json
import os
import random
import shutil
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ltbench import files
from ltbench.canonical import digest
from ltbench.store import Record, Records, Run, Store, sealed
from tests import store_faults as faults
from tests.store_world import CELL, CODE, OTHER, RUN, SETTINGS, evaluation, make


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store.open(tmp_path / "store", tmp_path / "scratch")


@pytest.fixture
def run(tmp_path: Path, store: Store) -> Run:
    return make(tmp_path)


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
