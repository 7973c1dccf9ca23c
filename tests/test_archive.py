"""Export and import: the table of a copied store, no duplicates, conflicts named, damaged and hostile archives refused."""

from __future__ import annotations

import errno
import json
import os
import shutil
import zipfile
from pathlib import Path

import pytest

from ltbench.archive import MANIFEST
from ltbench.archive.merge import merge, read_archive
from ltbench.archive.pack import Packed
from ltbench.errors import LtbenchError, UsageError
from ltbench.files import sha256_bytes
from ltbench.store import Store
from tests import cli_world
from tests.store_world import CELL, SETTINGS, evaluation, make

KEY = 20 * "a"  # of images
cli, here, run = cli_world.cli, cli_world.here, cli_world.run  # fixtures


def tree(root: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(root)): path.read_bytes() for path in sorted(root.rglob("*")) if path.is_file()
    }


def rewritten(path: Path, change) -> Path:
    """The archive with its members changed by `change` (name -> bytes) and a manifest that fits them."""
    with zipfile.ZipFile(path) as old:
        members = {name: old.read(name) for name in old.namelist() if name != MANIFEST}
        manifest = json.loads(old.read(MANIFEST))
    change(members)
    manifest["files"] = {n: {"sha256": sha256_bytes(d), "bytes": len(d)} for n, d in members.items()}
    target = path.with_name("changed.zip")
    with zipfile.ZipFile(target, "w") as new:
        for name, data in {**members, MANIFEST: json.dumps(manifest).encode()}.items():
            new.writestr(name, data)
    return target


@pytest.fixture(scope="module")
def kept(tmp_path_factory) -> Path:
    return tmp_path_factory.mktemp("kept") / "store"


@pytest.fixture
def packed(run, cli, here, kept, monkeypatch):
    """The archive of a benchmark that ran with one failure, and where it lies. It runs once for all tests."""
    monkeypatch.setenv("FAKE", "ccua:1=nan")
    if kept.is_dir():
        shutil.copytree(kept, here / "store")
    else:
        run("--workers", "1")
        shutil.copytree(here / "store", kept)
    assert cli("export", "little.yaml", "--out", "a.zip")[0] == 0
    return here / "a.zip"


def test_a_copied_store_gives_the_same_report(packed, cli, here):
    said = cli("report", "little.yaml", "--format", "csv,md", "--out", "one")
    code, out, _ = cli("import", "a.zip", "--store", "other")
    assert code == 0
    assert "there already" in out
    assert (
        cli("report", "little.yaml", "--format", "csv,md", "--out", "two", "--store", "other")[0] == said[0]
    )
    assert tree(here / "one") == tree(here / "two")


def test_imported_results_stand_without_weights_and_are_not_trained_again(packed, cli):
    """Records that are all there are done; what needs weights waits for the place that has them, and `plan`, `why`, `evaluate` say so."""
    where = ("--store", "other", "--scratch", "bare")
    cli("import", "a.zip", *where)

    def planned(*more: str) -> list[dict]:
        cells = json.loads(cli("plan", "little.yaml", *where, "--json", *more)[1])["cells"]
        return [cell for cell in cells if cell["state"] != "failed"]

    assert [(cell["state"], cell["due"]) for cell in planned()] == 3 * [("done", [])]
    other = (
        "evaluate=[{protocol: small-data, sampler: euler, steps: 10, guidance: 4.0, samples: 50, block: 50}]"
    )
    found = planned("--set", other)
    assert [(cell["state"], cell["due"]) for cell in found] == 3 * [("partial", [])]
    told = (
        "weights of step 20, 40 are not here but where it was trained (its record is from the archive a.zip)"
    )
    assert all(told in cell["reason"] for cell in found)
    assert told in cli("why", found[0]["cell"][:12], *where)[1]
    code, out, err = cli("evaluate", "little.yaml", *where, "--set", other, "--filter", "seed=0")
    assert (code, err.count(told)) == (0, 2)
    assert "2 with weights elsewhere" in out
    longer = planned("--set", "train.milestones=[20,40,60]", "--set", other)
    assert all(cell["due"][0]["stage"] == "train:20,40,60" for cell in longer)  # to go on it begins again


def test_a_failure_travels_with_its_cause(packed, cli):
    cli("import", "a.zip", "--store", "other")
    code, out, _ = cli("plan", "little.yaml", "--store", "other", "--json")
    assert code == 0
    (failed,) = [cell for cell in json.loads(out)["cells"] if cell["state"] == "failed"]
    assert failed["cause"] == "nan"


def test_the_same_results_give_the_same_bytes(packed, cli, here):
    cli("export", "little.yaml", "--out", "b.zip")
    assert packed.read_bytes() == (here / "b.zip").read_bytes()


def test_importing_twice_adds_nothing(packed, cli, here):
    cli("import", "a.zip", "--store", "other")
    before = tree(here / "other")
    code, out, _ = cli("import", "a.zip", "--store", "other")
    assert code == 0
    assert " 0 records added" in out
    assert tree(here / "other") == before


def test_halves_of_a_grid_from_two_clusters_make_the_whole(packed, cli, here):
    for seed in (0, 1):
        cli("export", "little.yaml", "--filter", f"seed={seed}", "--out", f"{seed}.zip")
    cli("import", "0.zip", "1.zip", "--store", "other")
    cli("export", "little.yaml", "--out", "again.zip", "--store", "other")
    one, two = (dict(read_archive(here / name)) for name in ("a.zip", "again.zip"))
    moved = [
        name.replace("failed/train.1", "failed/train.0") for name in one
    ]  # before any attempt of the other
    assert moved == list(two)

    def bodies(members):
        return {name: json.loads(data)["digest"] for name, data in members.items() if "/records/" in name}

    assert bodies(one) == bodies(two)
    assert len(bodies(one)) == 12


def test_an_imported_record_counts_beside_later_attempts_of_this_store(tmp_path):
    """The writer's attempt means nothing among the claims of another store."""
    theirs, ours = make(tmp_path / "theirs"), make(tmp_path / "ours")
    with theirs.claim("train") as claim:
        theirs.put_record("train", 20, {"milestone": "aa"}, {"attempt": claim.attempt})
    for _ in range(3):
        with ours.claim("train") as claim:
            claim.release("preempted")
    archive = pack_run(tmp_path, theirs).path
    assert merge(archive, ours.store).added["record"] == 1
    (record,) = ours.records()
    assert record.envelope["imported"] == {"from": "run.zip", "attempt": 1}


def test_what_is_added_above_a_layer_stands_without_it(tmp_path):
    """The lab's store says what the cell is; one's own says it too, once it has a record that the lab's has not."""
    theirs, lab = make(tmp_path / "theirs"), make(tmp_path / "lab")
    theirs.put_record("train", 20, {"milestone": "aa"}, {"attempt": 1})
    archive = pack_run(tmp_path, theirs).path
    own = Store.open(tmp_path / "own", tmp_path / "scratch", readonly=[lab.store.root])
    assert merge(archive, own).present["cell"] == 1
    alone = Store.open(tmp_path / "own", tmp_path / "scratch")
    assert alone.cell(CELL) == lab.store.cell(CELL)
    (run,) = alone.runs(CELL)
    assert run.info() == theirs.info()
    assert pack_run(tmp_path, run).records == 1


def test_records_of_a_cell_that_nothing_describes_are_not_exported(tmp_path):
    run = make(tmp_path / "own")
    (file,) = run.store.root.rglob("cell.json")
    file.unlink()
    with pytest.raises(LtbenchError, match="has none of the 1 cells"):
        pack_run(tmp_path, run)
    run.put_record("train", 20, {"milestone": "aa"}, {"attempt": 1})
    with pytest.raises(LtbenchError, match=f"records of cell {CELL[:12]}, but nothing says what it is"):
        pack_run(tmp_path, run)


def test_a_record_with_other_values_is_named_and_left_out(tmp_path):
    theirs, ours = make(tmp_path / "theirs"), make(tmp_path / "ours")
    for run, value in ((theirs, 2.0), (ours, 1.0)):
        run.put_record("evaluation", 20, evaluation(run.store, value), {"attempt": 1})
    before = [record.digest for record in ours.records()]
    done = merge(pack_run(tmp_path, theirs).path, ours.store)
    assert len(done.conflicts) == 1
    assert CELL[:12] in done.conflicts[0]
    assert "step 20" in done.conflicts[0]
    assert [record.digest for record in ours.records()] == before
    assert not done.added["record"]


def test_the_exit_code_tells_of_conflicts(packed, cli, here):
    cli("import", "a.zip", "--store", "other")

    def other_value(members):
        from ltbench.store.records import record_file

        name = next(name for name in members if "/records/evaluation" in name)
        value = json.loads(members.pop(name))
        value["body"]["rows"][0]["value"] += 1
        new, data = record_file(value["body"], value["envelope"])
        members[f"{name.rpartition('/')[0]}/{new}"] = data

    rewritten(packed, other_value)
    code, out, _ = cli("import", "changed.zip", "--store", "other")
    assert code == 1
    assert "left out: cell" in out


def test_what_was_added_before_a_damaged_archive_is_told(packed, cli, here):
    (here / "cut.zip").write_bytes(packed.read_bytes()[:900])
    code, out, err = cli("import", "a.zip", "cut.zip", "--store", "other")
    assert code == 1
    assert "a.zip: " in out
    assert "records added" in out
    assert "cut.zip is damaged" in err


def test_the_next_command_is_one_that_a_shell_takes(packed, cli):
    _, out, _ = cli("export", "little.yaml", "--out", "my results.zip")
    assert "next: python harness.py import 'my results.zip' --store DIR" in out


def test_what_reports_need_and_a_checkout_has_not_can_be_taken_from_the_archive(packed, cli, here):
    own = packed.with_name("own.zip")
    changed = rewritten(packed, lambda m: m.update({"plugins/methods/mine.py": m["plugins/methods/sit.py"]}))
    changed.rename(own)
    _, out, err = cli("import", "own.zip", "--store", "other")
    assert "own.zip also holds plugins/methods/mine.py, spec/little.yaml, which this checkout has not" in err
    command = next(line for line in out.splitlines() if line.startswith("next: "))
    assert command == (
        "next: unzip -n own.zip plugins/methods/mine.py spec/little.yaml -d own && "
        "python harness.py report own/spec/little.yaml --plugins own/plugins/methods/mine.py"
    )
    with zipfile.ZipFile(own) as archive:
        archive.extractall(here / "own", ["plugins/methods/mine.py", "spec/little.yaml"])
    words = command.rpartition("harness.py ")[2].split()
    assert cli(*words, "--store", "other", "--format", "md")[0] == 0


def test_rows_that_were_not_trained_here_travel_with_the_table(packed, cli, here):
    """External results of the benchmark's data set, as `evaluate --external` leaves them; of another data set they stay."""
    store = Store.open(here / "store", here / "scratch")
    mine = next(record for record in store.records() if record.kind == "evaluation")
    for name, dataset in (("a", mine.body["settings"]["dataset"]), ("b", {"name": "digits"})):
        settings = {"external": {"name": name}, "dataset": dataset}
        store.put_cell(64 * name, settings, settings)
        other = store.run(64 * name, 12 * name)
        other.create({}, settings)
        body = {"settings": settings, "evaluation": mine.body["evaluation"], "rows": mine.body["rows"]}
        other.put_record("evaluation", 0, body, {"attempt": 1}, evaluation=mine.evaluation)
    assert cli("export", "little.yaml", "--out", "more.zip")[0] == 0
    assert cli("import", "more.zip", "--store", "other")[0] == 0
    cells = set(Store.open(here / "other", here / "x", write=False).cells())
    assert 64 * "a" in cells
    assert 64 * "b" not in cells


@pytest.mark.parametrize(
    "name",
    [
        "../evil",
        "/etc/evil",
        "store/cells/../../evil",
        "store/FORMAT",
        "results/x.json",
        "store/cells/ab/x/run.json",
    ],
)
def test_a_name_without_a_place_is_refused_before_anything_is_written(packed, here, name):
    bad = rewritten(packed, lambda members: members.update({name: b"{}"}))
    store = Store.open(here / "other", here / "scratch")
    before = tree(here / "other")
    with pytest.raises(LtbenchError, match="no place"):
        merge(bad, store)
    assert tree(here / "other") == before


def test_every_damage_is_found(packed, here):
    data = packed.read_bytes()
    store = Store.open(here / "other", here / "scratch")
    before, bad = tree(here / "other"), here / "bad.zip"
    for place in range(0, len(data), max(1, len(data) // 60)):
        for broken in (data[:place], data[:place] + bytes([data[place] ^ 0x10]) + data[place + 1 :]):
            bad.write_bytes(broken)
            try:
                members = read_archive(bad)
            except LtbenchError:
                continue
            assert members == read_archive(packed)  # a bit of zip's own bookkeeping that changes no member
    assert tree(here / "other") == before
    assert len(store.damaged()) == 0


def test_what_is_no_archive_is_said(here, cli):
    (here / "text.zip").write_text("hello")
    with zipfile.ZipFile(here / "empty.zip", "w") as archive:
        archive.writestr("a", "b")
    for name, word in (
        ("text.zip", "no zip"),
        ("empty.zip", "MANIFEST"),
        ("none.zip", "there is no archive"),
    ):
        code, _, err = cli("import", name)
        assert code in (1, 2)
        assert word in err


def test_a_newer_archive_is_left_alone(packed, here):
    with zipfile.ZipFile(packed) as old, zipfile.ZipFile(here / "new.zip", "w") as new:
        for name in old.namelist():
            data = old.read(name)
            new.writestr(name, data.replace(b'"format": 1', b'"format": 2') if name == MANIFEST else data)
    with pytest.raises(LtbenchError, match="update ltbench"):
        read_archive(here / "new.zip")


def test_kept_images_travel_and_come_to_lie_where_evaluations_find_them(tmp_path):
    theirs, data = make(tmp_path / "theirs"), bytes(range(256)) * 100
    name = f"shard-000000-0002-{sha256_bytes(data)[:16]}.safetensors"
    folder = theirs.store.scratch / "samples" / KEY
    folder.mkdir(parents=True)
    (folder / name).write_bytes(data)
    (folder / f"shard-000001-0001-{16 * '0'}.safetensors").write_bytes(b"flipped")
    keys = {1: KEY, 2: 20 * "b", 3: "../../evil"}
    for step, key in keys.items():
        body = evaluation(theirs.store, float(step))
        theirs.put_record("evaluation", step, body, {"attempt": 1, "images": key}, body["evaluation"]["id"])
    packed = pack_run(tmp_path, theirs, samples=True)
    kept = packed.images
    assert kept is not None
    assert (list(kept.members), kept.bytes) == ([f"images/{KEY}/{name}"], len(data))
    assert [record.step for record in kept.without] == [2, 3]
    assert len(kept.damaged) == 1
    assert pack_run(tmp_path, theirs).images is None

    archive = pack_run(tmp_path, theirs, samples=True).path
    ours = make(tmp_path / "ours").store
    assert merge(archive, ours).added["image"] == 1
    assert (ours.scratch / "samples" / KEY / name).read_bytes() == data
    assert merge(archive, ours).present["image"] == 1
    other = ours.scratch / "samples" / KEY / f"shard-000000-0002-{16 * 'c'}.safetensors"
    (ours.scratch / "samples" / KEY / name).rename(other)
    done = merge(archive, ours)
    assert (done.added["image"], len(done.conflicts)) == (0, 1)
    assert KEY in done.conflicts[0]
    assert other.read_bytes() == data

    place = f"images/{KEY}/{name}"
    with pytest.raises(LtbenchError, match="does not match its name"):
        read_archive(rewritten(archive, lambda members: members.update({place: b"other"})))
    spoiled = archive.read_bytes().replace(data[:256], data[:255] + b"x", 1)
    (tmp_path / "spoiled.zip").write_bytes(spoiled)
    with pytest.raises(LtbenchError):
        merge(tmp_path / "spoiled.zip", make(tmp_path / "third").store)
    assert not (tmp_path / "third" / "scratch" / "samples").exists()


def test_a_file_system_that_takes_nothing_is_said_without_a_traceback(packed, cli, monkeypatch):
    """It refuses the temporary file, and then to remove it."""

    def but_for_temporary(real):
        def call(path, *more, **named):
            if Path(path).name.startswith(".tmp-"):
                raise OSError(errno.EROFS, os.strerror(errno.EROFS))
            return real(path, *more, **named)

        return call

    monkeypatch.setattr(Path, "open", but_for_temporary(Path.open))
    monkeypatch.setattr(os, "unlink", but_for_temporary(os.unlink))
    code, _, err = cli("export", "little.yaml", "--out", "b.zip")
    assert code == 4
    assert "b.zip: Read-only file system" in err
    assert "Traceback" not in err


def test_nothing_to_export_is_an_error(here, cli):
    code, _, err = cli("export", "little.yaml")
    assert code == 1
    assert "none of the 4 cells" in err
    assert not (here / "little.zip").exists()


def pack_run(folder: Path, run, *, samples: bool = False) -> Packed:
    """The archive of the one cell of a store, as `export` makes it."""
    from types import SimpleNamespace

    from ltbench.archive.pack import pack

    settings = {**SETTINGS, "method": {"name": "sit"}, "dataset": {"name": "digits"}}
    cell = SimpleNamespace(id=CELL, settings=settings)
    cells: list = [cell]
    return pack(folder / "run.zip", "toy", b"name: toy\n", cells, run.store, samples=samples)


def test_code_and_spec_are_inside(packed):
    members = read_archive(packed)
    assert b"grid" in members["spec/little.yaml"]
    assert b"class" in members["plugins/methods/ccua.py"]
    assert "plugins/datasets/fashion_mnist.py" in members


def test_unknown_archive_is_usage(here):
    with pytest.raises(UsageError):
        read_archive(here / "no.zip")
