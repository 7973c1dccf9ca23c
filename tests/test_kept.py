"""What is kept of a store between looks changes no look: every event, in random order, is seen as without it."""

from __future__ import annotations

import os
import random
import shutil
import time

import pytest

from ltbench import derived, plan, provenance, spec, texts
from ltbench import status as state
from ltbench.provenance import syntax
from ltbench.spec.cells import expand
from ltbench.store import Store, kept, records, sealed
from ltbench.store.kept import Kept

SPEC = """
name: small
dataset: {name: digits}
pipeline: sit
network: SiT-N/2
train: {batch: 32, milestones: [10, 20]}
evaluate: [{protocol: small-data, sampler: euler, steps: 5, guidance: 1.5}]
grid: {method: [sit, ccua], seed: [0, 1]}
"""
WAIT = 0.03  # seconds, some ticks of a file system's clock


class World:
    """A store, what can happen to it, and looks at it with and without what is kept."""

    def __init__(self, folder, seed=0):
        self.random, self.folder = random.Random(seed), folder
        (folder / "small.yaml").write_text(SPEC)
        self.spec = spec.load(folder / "small.yaml")
        self.cells = expand(self.spec)
        self.store = Store.open(folder / "store", folder / "scratch")
        plan.register(self.cells, self.store)
        self.watching = Kept(None, self.store.layers)
        self.now = provenance.evaluation_code()["evaluation"]["digest"]
        self.claims = []

    @property
    def index(self):
        return next(iter((self.folder / "cache").glob("store-*.json")), None)

    def keeper(self):
        return Kept.below(self.folder / "cache", self.store.layers)

    def look(self, reads=kept.LIVE):
        store = Store.open(self.folder / "store", self.folder / "scratch", write=False)
        store.reads = reads
        if isinstance(reads, Kept):
            reads.begin()
        found = plan.plan(self.spec, store, self.cells, verify=False), state.of_store(store)
        if isinstance(reads, Kept):
            reads.save(store.cells)
        return found

    def check(self):
        live = self.look()
        for name, reads in (("fresh", self.keeper()), ("watching", self.watching)):
            assert self.look(reads) == live, name

    # --- events ----------------------------------------------------------------------------------------------------

    def run(self):
        cell = self.random.choice(self.cells)
        code = provenance.train_code(cell.settings)
        plan.register([cell], self.store)  # a removed one comes back
        return cell, self.store.run(cell.id, provenance.run_id(code, cell.settings))

    def trained(self):
        cell, run = self.run()
        run.put_record(
            "train", self.random.choice(cell.milestones), {"settings": cell.settings}, {"attempt": 1}
        )

    def evaluated(self):
        cell, run = self.run()
        key = next(iter(cell.evaluations))
        code = {"evaluation": self.random.choice([self.now, self.now, "0" * 64])}
        body = {"code": code, "rows": [], "value": self.random.randrange(3)}
        step = self.random.choice(cell.milestones)
        run.put_record("evaluation", step, body, {"attempt": self.random.randrange(3)}, evaluation=key)

    def finished(self):
        cell, run = self.run()
        for step in cell.milestones:
            run.put_record("train", step, {"settings": cell.settings}, {"attempt": 1})
            for key in cell.evaluations:
                body = {"code": {"evaluation": self.now}, "rows": []}
                run.put_record("evaluation", step, body, {"attempt": 1}, evaluation=key)

    def claimed(self):
        claim = self.run()[1].claim("train")
        self.claims += [claim] if claim else []

    def beaten(self):
        for claim in self.claims:
            claim._last = float("-inf")
            claim.beat(step=self.random.randrange(20), total=20)

    def released(self):
        if self.claims:
            self.claims.pop().release(self.random.choice(["done", "failed", "preempted"]))

    def elsewhere(self):
        for path in self.store.root.glob("cells/*/*/runs/*/claims/train.*.json"):
            claim = sealed.read_sealed(path)
            claim["owner"] |= {"host": "node17", "kernel": "elsewhere"}
            path.write_bytes(sealed.seal(claim))

    def failed(self):
        self.run()[1].fail("train", 1, step=1, cause="oom", message="no memory")

    def accepted(self):
        self.run()[1].accept("a test", {"evaluation": self.random.choice([self.now, "1" * 64])})

    def outdated(self):
        """Only older code has trained the cell, and its settings were others."""
        cell, present = self.run()
        shutil.rmtree(present.dir)
        code = {**provenance.train_code(cell.settings), "trainer": {"digest": "3" * 64, "files": {}}}
        settings = {**cell.settings, "pipeline": self.random.choice(["sit", "older"])}
        run = self.store.run(cell.id, provenance.run_id(code, settings))
        run.create(code, settings)
        run.put_record("train", 10, {"settings": settings}, {"attempt": 1})

    def run_damaged(self):
        for path in self.store.root.glob("cells/*/*/runs/*/run.json"):
            path.write_bytes(path.read_bytes()[:99])

    def removed(self):
        shutil.rmtree(self.store.root / "cells" / self.run()[0].id[:2], ignore_errors=True)

    def cut(self):
        for path in self.store.root.glob("cells/*/*/runs/*/records/evaluation-*"):
            if self.random.random() < 0.3:
                path.write_bytes(path.read_bytes()[:9])

    def overwritten(self):
        """In place, the same length, and the old time put back."""
        for path in self.store.root.glob("cells/*/*/runs/*/records/evaluation-*"):
            before, data = path.stat(), path.read_bytes()
            path.write_bytes(data.replace(self.now.encode(), b"2" * 64))
            os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))

    def copied(self):
        """Another store at the same place."""
        aside = self.folder / "aside"
        shutil.copytree(self.store.root, aside)
        shutil.rmtree(self.store.root)
        for path in aside.glob("cells/*/*/runs/*/records/train-000000010-*"):
            path.unlink()
        aside.rename(self.store.root)

    def index_damaged(self):
        if self.index:
            data = bytearray(self.index.read_bytes())
            data[self.random.randrange(len(data))] ^= 4
            self.index.write_bytes(data)

    def index_of_another_version(self):
        if self.index:
            derived.write(self.index, [kept.FORMAT + 1, {}, [], "what a later one writes"])


EVENTS = [
    name for name in vars(World) if name not in ("index", "keeper", "look", "check", "run") and name[0] != "_"
]


@pytest.fixture
def quick(monkeypatch):
    """Time passes quickly, and every look writes what it keeps."""
    monkeypatch.setattr(kept, "SETTLED", WAIT / 2)
    monkeypatch.setattr(kept, "SHARE", 10**9)


def test_every_event_is_seen_as_without_it(tmp_path, quick, monkeypatch):
    world = World(tmp_path)
    for number in range(2 * len(EVENTS)):
        monkeypatch.setattr(
            time, "time_ns", lambda back=number % 5 == 4: int((time.time() - 3600 * back) * 1e9)
        )
        getattr(world, EVENTS[number] if number < len(EVENTS) else world.random.choice(EVENTS))()
        if number % 3 == 0:  # at once, and when everything has settled
            world.check()
        time.sleep(WAIT)
        world.check()


def test_an_unchanged_store_is_neither_listed_nor_opened(tmp_path, quick, monkeypatch):
    world = World(tmp_path)
    for event in (
        world.finished,
        world.trained,
        world.evaluated,
        world.failed,
        world.claimed,
        world.released,
        world.outdated,
    ):
        event()
    time.sleep(WAIT)
    live = world.look(world.keeper())[0]

    def never(*_):
        raise AssertionError("read again")

    for module, name in ((kept, "names"), (records, "glimpse"), (sealed, "read_known")):
        monkeypatch.setattr(module, name, never)
    store = Store.open(world.folder / "store", world.folder / "scratch", write=False)
    monkeypatch.setattr(store, "cells", lambda: iter(sorted(cell.id for cell in world.cells)))
    store.reads = world.keeper()
    assert plan.plan(world.spec, store, world.cells, verify=False) == live


def test_what_a_run_was_made_of_is_told_until_its_file_changes(tmp_path, quick):
    world = World(tmp_path)
    world.outdated()
    time.sleep(WAIT)
    world.check()
    world.run_damaged()
    world.check()
    reasons = [reason for _, reason, _ in world.look()[0].reasons()]
    assert any("cannot be compared" in reason for reason in reasons), reasons


def test_what_has_just_changed_is_not_kept(tmp_path, monkeypatch):
    monkeypatch.setattr(kept, "SHARE", 10**9)
    world = World(tmp_path)
    world.finished()
    world.check()
    assert world.index is None
    monkeypatch.setattr(time, "time_ns", lambda: int((time.time() + 61) * 1e9))
    world.check()
    assert world.index is not None


def test_a_look_needs_no_place_to_keep_anything(tmp_path, quick, capfd):
    world = World(tmp_path)
    world.finished()
    (tmp_path / "cache").write_text("a file where a folder should be")
    time.sleep(WAIT)
    world.check()
    with provenance.kept_in(tmp_path / "cache"):
        provenance.forget()
        assert provenance.evaluation_code()["evaluation"]["digest"] == world.now
    assert capfd.readouterr() == ("", "")


def test_removed_cells_are_forgotten(tmp_path, quick):
    world = World(tmp_path)
    world.finished()
    time.sleep(WAIT)
    world.look(world.keeper())
    assert world.index is not None
    gone = next(
        path.parent
        for path in world.store.root.glob("cells/*/*/runs")
        if path.parent.name in world.index.read_text()
    )
    shutil.rmtree(gone)
    world.cells = [cell for cell in world.cells if cell.id != gone.name]
    world.finished()
    time.sleep(WAIT)
    world.look(world.keeper())
    assert gone.name not in world.index.read_text()


def test_source_files_say_the_same_from_memory(tmp_path):
    def digests():
        provenance.forget()
        return provenance.evaluation_code(), provenance.data_code("digits")

    plain = digests()
    for _ in range(2):
        with provenance.kept_in(tmp_path):
            assert digests() == plain
    (path,) = tmp_path.glob("code-*.json")
    path.write_bytes(path.read_bytes()[:-9] + b"x" * 9)
    with provenance.kept_in(tmp_path):
        assert digests() == plain
    with texts.kept_in(tmp_path, __file__):
        assert texts.say(b"a = 1", len_of) == 5
        assert texts.say(b"a = 12", len_of) == 6
    provenance.forget()


def len_of(text):
    return len(text)


def test_what_makes_results_leaves_what_it_read_and_takes_nothing(tmp_path, monkeypatch):
    def code():
        return provenance.data_code("digits"), provenance.evaluation_code()

    provenance.forget()
    plain = code()
    provenance.leave(tmp_path)
    provenance.forget()
    with monkeypatch.context() as change, provenance.kept_in(tmp_path):
        change.setattr(syntax, "parsed", None)  # nothing is parsed again
        assert code() == plain
    (path,) = tmp_path.glob("code-*.json")
    derived.write(path, {key: type(said)() for key, said in derived.read(path).items()})
    provenance.forget()
    assert code() == plain
    provenance.leave(tmp_path)
    provenance.forget()
    with provenance.kept_in(tmp_path):
        assert code() != plain, "a look takes what is there"
    provenance.forget()
    assert code() == plain
    with provenance.kept_in(tmp_path), provenance.reading():
        assert code() == plain
