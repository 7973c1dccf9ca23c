"""What is kept of records between processes is what their files say, and changes no table, whatever happens to the files or to it."""

from __future__ import annotations

import json
import math
import os
import random
import shutil
import statistics
import time

import pytest

from ltbench import plan, provenance, spec
from ltbench.canonical import canonical_json
from ltbench.cli import inputs
from ltbench.report.assemble import build_table
from ltbench.report.definition import Definition
from ltbench.spec.cells import expand
from ltbench.store import Store, records, values
from ltbench.store.values import Values

SPEC = """
name: small
dataset: {name: digits}
pipeline: sit
network: SiT-N/2
train: {batch: 32, milestones: [10, 20]}
evaluate: [{protocol: small-data, sampler: euler, steps: 5, guidance: 1.5}]
grid: {method: [sit, cbdm, ccua], seed: [0, 1]}
"""
NAME = "[digits-cnn-v1@1a2b3c4d]"
WAIT = 0.03  # seconds, some ticks of a file system's clock


class World:
    """A store, what can happen to its records and to what is kept of them, and looks at it."""

    def __init__(self, folder, seed):
        self.random, self.folder, self.attempt = random.Random(seed), folder, 0
        (folder / "small.yaml").write_text(SPEC)
        self.spec = spec.load(folder / "small.yaml")
        self.cells = expand(self.spec)
        self.store = Store.open(folder / "store", folder / "scratch")
        plan.register(self.cells, self.store)
        self.code = {name: part["digest"] for name, part in provenance.evaluation_code().items()}

    def files(self):
        return sorted(self.store.root.glob("cells/*/*/runs/*/records/*.json"))

    def segments(self):
        return sorted((self.folder / "cache").glob("values-*/*.segment"))

    def look(self, kept=None):
        """Everything that a report asks for, with what is kept and without."""
        store = Store.open(self.folder / "store", self.folder / "scratch", write=False)
        with store.looking():
            found = plan.plan(self.spec, store, self.cells)
            gathered = inputs.gather(found, store)
            table = build_table(gathered, Definition.model_validate({"name": "x"}))
        return gathered.records, gathered.problems, table

    # --- events ----------------------------------------------------------------------------------------------------

    def value(self):
        return self.random.choice([self.random.uniform(-9, 9), -0.0, 1e-300, 3, 1e22])

    def row(self, group):
        row = {"metric": "FD", "name": f"FD{NAME}", "group": group, "better": "lower", "scale": 1, "k": None}
        row |= {"value": self.value(), "floor": 1.25, "n_gen": 9, "n_ref": 5, "n_floor": 5, "estimator": "x"}
        some = self.random.choice([{}, {"note": ':1.5,"[2.5]'}, {"deep": {"x": [1.5, None, {"y": 2e-9}]}}])
        return row | {"folds": [self.random.random() for _ in range(3)], "se": self.value()} | some

    def measured(self):
        cell = self.random.choice(self.cells)
        run = self.store.run(cell.id, provenance.run_id(provenance.train_code(cell.settings), cell.settings))
        self.attempt += 1
        told = {"attempt": self.attempt, "finished": float(self.attempt), "seconds": 1.5, "device": "cpu"}
        body = {"settings": cell.settings, "code": self.code, "train_counts": [10] * 10, "curve": {}}
        step = self.random.choice(cell.milestones)
        run.put_record("train", step, body, told)
        ((key, what),) = cell.evaluations.items()
        groups = {"head": [0, 1, 2], "body": [3, 4, 5, 6], "tail": [7, 8, 9]}
        body |= {"evaluation": what, "groups": groups, "nfe": 5, "classes": [str(n) for n in range(10)]}
        body |= {"rows": [self.row(group) for group in ("all", *groups)], "facts": {}}
        run.put_record("evaluation", step, body, told, evaluation=key)

    def a_file(self, found):
        return self.random.choice(found) if found else None

    def flipped(self, found=None):
        if path := self.a_file(self.files() if found is None else found):
            data = bytearray(path.read_bytes())
            data[self.random.randrange(len(data))] ^= 1 << self.random.randrange(8)
            path.write_bytes(data)

    def removed(self):
        if path := self.a_file(self.files()):
            path.unlink()

    def copied(self):
        """The same bytes in another file, as after a restore."""
        if path := self.a_file(self.files()):
            shutil.copy(path, path.with_suffix(".copy"))
            path.with_suffix(".copy").rename(path)

    def spoilt(self):
        """Of what is kept."""
        how = self.random.randrange(4)
        if how == 0:
            self.flipped(self.segments())
        elif how == 1 and (path := self.a_file(self.segments())):
            path.write_bytes(path.read_bytes()[: self.random.randrange(path.stat().st_size)])
        elif how == 2 and (path := self.a_file(self.segments())):
            path.unlink()
        elif path := self.a_file(self.segments()):
            path.with_name(f"{time.time_ns():020d}-other.segment").write_bytes(path.read_bytes()[7:])


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """Where it is kept, from whatever is older than a tick; small enough to be written anew often."""
    monkeypatch.setattr(values, "SETTLED", 0.0)
    monkeypatch.setattr(values, "SEGMENTS", 3)

    def on(kept: bool):
        monkeypatch.setenv("LTBENCH_CACHE", str(tmp_path / "cache") if kept else "")

    on(True)
    return on


def spelled(looked):
    """Bytes of everything that was seen: 3 is not 3.0, nor 0.0 -0.0."""
    found, problems, table = looked
    plain = [{**r, "body": {**r["body"], "rows": list(r["body"].get("rows", ()))}} for r in found]
    return canonical_json([plain, problems]), repr(table)


EVENTS = ("measured",) * 4 + ("flipped", "removed", "copied", "spoilt", "spoilt")


@pytest.mark.parametrize("seed", range(2))
def test_what_is_kept_changes_no_look_whatever_happens(tmp_path, cache, seed):
    world = World(tmp_path, seed)
    for _ in range(14):
        getattr(world, world.random.choice(EVENTS))()
        time.sleep(WAIT)
        seen = spelled(world.look())
        cache(False)
        assert seen == spelled(world.look())
        cache(True)


def test_values_are_a_fold_over_the_records_and_no_record_is_read_for_them(tmp_path, cache, monkeypatch):
    world = World(tmp_path, 7)
    for _ in range(12):
        world.measured()
    time.sleep(WAIT)
    read = []
    monkeypatch.setattr(records, "parse_record", lambda path, *a, **k: read.append(path))
    _, problems, table = world.look()
    assert read == problems == []
    monkeypatch.undo()

    latest, told = {}, {cell.id: (cell.label, cell.settings["seed"]) for cell in world.cells}
    for path in world.files():
        record = json.loads(path.read_text())
        body = record["body"]
        key = (body["cell"], body["step"])
        if body["kind"] == "evaluation":
            latest[key] = max(
                latest.get(key, (0,)), (record["envelope"]["attempt"], body), key=lambda e: e[0]
            )
    (section,) = table.sections
    seen = 0
    for i, row in enumerate(section.rows):
        for j, column in enumerate(section.columns):
            for step in section.steps:
                known = [
                    float(each["value"])
                    for (cell, at), (_, body) in sorted(latest.items(), key=lambda e: told[e[0][0]][1])
                    if at == step and told[cell][0] == row.label
                    for each in body["rows"]
                    if (each["metric"], each["group"]) == (column.metric, column.group)
                ]
                entry = section.entry(i, j, step)
                assert [value.value for value in entry.values] == known
                assert entry.mean == (math.fsum(known) / len(known) if known else None)
                seen += len(known)
    assert seen == 4 * len(latest) > 20
    assert statistics.fmean(v.value for e in section.entries.values() for v in e.values) != 0


def test_a_record_that_was_written_a_moment_ago_is_read(tmp_path, cache, monkeypatch):
    world = World(tmp_path, 1)
    world.measured()
    monkeypatch.setattr(values, "SETTLED", 60.0)
    store = Store.open(tmp_path / "store", tmp_path / "scratch", write=False)
    path = str(world.files()[0])
    known = Values.of(store.layers)
    assert known is not None
    assert known.get(path, world.files()[0].stat()) is None
    monkeypatch.setattr(values, "SETTLED", 0.0)
    assert known.get(path, world.files()[0].stat()) is not None


def test_many_segments_become_one_and_what_is_gone_goes(tmp_path, cache):
    world = World(tmp_path, 2)
    for _ in range(5):
        world.measured()
        values._OWN.clear()  # as another process would
    for path in world.files()[:4]:
        path.unlink()
    time.sleep(WAIT)
    assert len(world.segments()) == 5
    before = sum(path.stat().st_size for path in world.segments())
    seen = spelled(world.look())
    (segment,) = world.segments()
    assert segment.stat().st_size < before
    assert spelled(world.look()) == seen
    world.measured()  # its own segment was taken away
    time.sleep(WAIT)
    assert len(world.segments()) == 2
    assert Values.of(world.store.layers)._entries.keys() == {str(path) for path in world.files()}


def test_of_a_damaged_segment_nothing_damaged_is_told(tmp_path, cache):
    world = World(tmp_path, 4)
    for _ in range(3):
        world.measured()
    time.sleep(WAIT)
    (segment,) = world.segments()
    data, told = segment.read_bytes(), {str(p): json.loads(p.read_text())["body"] for p in world.files()}
    frames = [at for at in range(len(data)) if data.startswith(values._MAGIC, at)]
    assert len(frames) == len(told) == 6
    spoilt = [data[: frames[1]] + data[frames[2] :], data[frames[1] :], data + data, b""]
    for _ in range(150):
        at = world.random.randrange(len(data))
        spoilt += [data[:at], data[:at] + bytes([data[at] ^ 1 << world.random.randrange(8)]) + data[at + 1 :]]
    for each in spoilt:
        segment.write_bytes(each)
        known, found = Values.of(world.store.layers), 0
        for path, body in told.items():
            if record := known.get(path, os.stat(path)):
                found += 1
                assert canonical_json(
                    {**record.body, "rows": list(record.body.get("rows", ()))}
                ) == canonical_json({**body, "rows": body.get("rows", [])})
        assert found < len(told) or each == data + data


def test_a_folder_that_cannot_be_written_costs_a_record_nothing(tmp_path, cache, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("LTBENCH_CACHE", str(tmp_path / "file" / "below"))
    world = World(tmp_path, 3)
    world.measured()
    assert len(world.look()[0]) == 2
