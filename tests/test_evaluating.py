"""`sample` and `evaluate --external`: what others made is measured exactly as our own is, and is marked as theirs."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from ltbench import provenance, spec
from ltbench.checkpoint import load_milestone
from ltbench.cli import main
from ltbench.datasets import build_dataset
from ltbench.job import run_job
from ltbench.metrics.extractor import load_extractor
from ltbench.networks.names import SiTSize, network_size
from ltbench.plan import plan, register
from ltbench.spec.cells import expand
from ltbench.store import Record, Run, Store, load_records
from ltbench.tiles import read_grid
from tests import released

SPEC = """
name: ours
dataset: {name: digits, imbalance: 0.1, resolution: 16}
pipeline: sit
network: SiT-N/4
train: {batch: 12, local_batch: 6, milestones: [4], lr: 1e-3, ema: 0.9}
evaluate: [{protocol: small-data, sampler: euler, steps: 2, guidance: [1.5, 3], samples: 70, block: 20}]
grid: {method: [sit], seed: 0}
"""
SETTINGS = {"name": "digits", "imbalance": 0.1, "resolution": 16, "keep_one": False}


class World:
    """A folder with a spec, a store with one trained and evaluated cell, and the program."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "ours.yaml").write_text(SPEC)
        self.store = Store.open(folder / "store", folder / "scratch")
        self.benchmark = spec.load(folder / "ours.yaml")
        (self.cell,) = expand(self.benchmark)
        register([self.cell], self.store)
        places = (str(self.store.root), str(self.store.scratch))
        for work in plan(self.benchmark, self.store).work():
            for stage in work.stages:
                done = run_job(*places, self.cell.id, work.run, stage, {"threads": 1, "device": "cpu"})
                assert done["outcome"] == "done", done

    @property
    def run(self) -> Run:
        return self.store.runs(self.cell.id)[0]

    def own(self, guidance: float) -> Record:
        (found,) = [r for r in self.run.records("evaluation") if r.body["evaluation"]["guidance"] == guidance]
        return found

    def externals(self) -> list[Record]:
        return [r for r in self.store.records("evaluation") if "external" in r.body]


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    provenance.forget()
    return World(tmp_path_factory.mktemp("world"))


@pytest.fixture
def world(trained, tmp_path, monkeypatch):
    """A copy of the trained world that a test may write into."""
    import shutil

    shutil.copytree(trained.folder, tmp_path / "w")
    monkeypatch.chdir(tmp_path / "w")
    monkeypatch.setenv("LTBENCH_STORE", str(tmp_path / "w" / "store"))
    monkeypatch.setenv("LTBENCH_SCRATCH", str(tmp_path / "w" / "scratch"))
    copy = World.__new__(World)
    copy.folder, copy.benchmark, copy.cell = tmp_path / "w", trained.benchmark, trained.cell
    copy.store = Store.open(copy.folder / "store", copy.folder / "scratch")
    return copy


@pytest.fixture
def cli(monkeypatch, capfd):
    def call(*words: Any) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["ltbench", *map(str, words)])
        code = main()
        out, err = capfd.readouterr()
        return code, out, err

    return call


def measured(cli, *words: Any) -> list[dict[str, Any]]:
    code, out, err = cli("evaluate", "ours.yaml", "--external", "theirs", "--device", "cpu", "--json", *words)
    assert code == 0, err
    return json.loads(out)


# --- sample ---------------------------------------------------------------------------------------------------------


def test_our_own_samples_come_back_with_the_very_rows_of_our_own_evaluation(world, cli):
    """Through a file or a folder, the same images give the same numbers to the last bit, per group, class and fold."""
    own = world.own(3.0)
    for target in ("a.npz", "pngs"):
        code, _, err = cli("sample", world.cell.id[:8], "--out", target, "--guidance", 3, "--device", "cpu")
        assert code == 0, err
        measured(cli, "--samples", target)
    (record,) = world.externals()  # the same images: measured once
    assert record.body["rows"] == own.body["rows"]
    assert record.body["per_class"] == own.body["per_class"]
    assert record.body["groups"] == own.body["groups"]
    assert record.body["real"] == own.body["real"]
    assert record.body["facts"] == own.body["facts"]
    assert record.body["evaluation"]["labels"] == "balanced"
    other = world.own(1.5)
    assert record.body["rows"] != other.body["rows"]


def test_the_file_is_what_adms_evaluator_reads(world, cli):
    code, out, _ = cli("sample", world.cell.id[:8], "--out", "a.npz", "--n", 23, "--device", "cpu", "--json")
    assert code == 0
    assert json.loads(out)["labels"] == {str(c): 3 if c < 3 else 2 for c in range(10)}
    with np.load("a.npz", allow_pickle=False) as held:
        assert held["arr_0"].shape == (23, 16, 16, 3)
        assert held["arr_0"].dtype == np.uint8
        assert held["arr_1"].tolist() == [k % 10 for k in range(23)]
        first = held["arr_0"]
    cli("sample", world.cell.id[:8], "--out", "more.npz", "--n", 41, "--device", "cpu")
    with np.load("more.npz") as held:
        assert np.array_equal(held["arr_0"][:23], first)  # image k does not depend on how many there are
    code, _, err = cli("sample", world.cell.id[:8], "--out", "a.npz")
    assert code == 2
    assert "a.npz exists" in err


def test_a_sheet_shows_the_first_images_of_each_class(world, cli):
    words = ("sample", world.cell.id[:8], "--classes", "seven,2", "--n", 9, "--device", "cpu")
    code, out, err = cli(*words, "--grid", "g.png", "--out", "some")
    assert code == 0, err
    assert out.split() == ["some", "g.png"]
    sheet = read_grid(Path("g.png").read_bytes(), 16)
    assert sheet.shape == (2, 5, 1, 16, 16)
    labels = Path("some/labels.csv").read_text().splitlines()[1:]
    assert [line.split(",")[1] for line in labels] == ["2", "7"] * 4 + ["2"]
    for row, first in ((0, 0), (1, 1)):
        for column in range(4):
            picture = np.asarray(Image.open(f"some/{first + 2 * column:06d}.png"))
            assert np.array_equal(sheet[row, column, 0], picture)
    assert not sheet[1, 4].any()


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "nothing to write"),
        (("--grid", "g.png", "--step", 5), "no weights of step 5"),
        (("--grid", "g.png", "--classes", "eleven"), "'eleven' is no class"),
        (("--grid", "g.png", "--sampler", "ddim"), "does not belong to pipeline 'sit'"),
        (("--grid", "g.png", "--sampler", "heun"), "needs the key 'steps'"),
        (("--grid", "g.png", "--evaluation", "0123456789ab"), "no evaluation 0123456789ab"),
    ],
)
def test_sample_says_what_it_cannot_do(world, cli, words, said):
    code, _, err = cli("sample", world.cell.id[:8], *words)
    assert code in (1, 2)
    assert said in err
    assert not Path("g.png").exists()


def test_another_sampler_takes_its_own_settings(world, cli):
    code, _, err = cli(
        "sample", world.cell.id[:8], "--sampler", "dopri5", "--n", 10, "--grid", "g.png", "--device", "cpu"
    )
    assert code == 0, err
    assert "dopri5 (atol 1e-06, rtol 0.001, steps shared by blocks of 20), guidance " in err


# --- evaluate -------------------------------------------------------------------------------------------------------


def images(n: int = 70, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, 16, 16, 1), dtype=np.uint8)


def save(path: str = "t.npz", n: int = 70, labels: bool = True) -> str:
    held = {"arr_0": images(n).repeat(3, axis=3)}
    if labels:
        held["arr_1"] = np.arange(n) % 10
    np.savez(path, allow_pickle=False, **held)
    return path


def test_a_record_says_what_was_declared_and_what_was_not(world, cli):
    (found,) = measured(cli, "--samples", save(), "--declare", "sampler=ddim", "--declare", "guidance=2")
    assert found["outcome"] == "done"
    (record,) = world.externals()
    body = record.body
    told = body["external"]
    assert (told["name"], told["kind"]) == ("theirs", "samples")
    assert told["declared"] == {"sampler": "ddim", "guidance": 2}
    asked = body["evaluation"]
    assert (asked["sampler"], asked["guidance"], asked["steps"], asked["quantise"]) == ("ddim", 2, None, None)
    assert (asked["protocol"], asked["samples"]) == ("small-data", 70)
    assert (body["settings"]["dataset"], body["settings"]["sampler"]) == (SETTINGS, "ddim")
    assert (body["step"], body["images_seen"], body["nfe"]) == (0, None, None)
    (again,) = measured(cli, "--samples", "t.npz", "--declare", "sampler=ddim", "--declare", "guidance=2")
    assert again["outcome"] == "known"
    measured(cli, "--samples", "t.npz", "--declare", "sampler=ddpm")  # another declaration is another row
    assert len({r.cell for r in world.externals()}) == 2


def test_features_are_kept_by_the_images_and_a_changed_pixel_misses_them(world, cli, monkeypatch):
    measured(cli, "--samples", save())
    folder = world.store.scratch / "features"
    before = {path.name for path in folder.iterdir()}
    looked: list[int] = []
    features = type(load_extractor("digits-cnn-v1")).features
    spied = lambda self, rows, *more: looked.append(len(rows)) or features(self, rows, *more)  # noqa: E731
    monkeypatch.setattr("ltbench.metrics.extractor.Extractor.features", spied)
    measured(cli, "--samples", "t.npz", "--declare", "steps=9")
    assert looked == []
    changed = images()
    changed[50, 3, 3] ^= 1
    np.savez("u.npz", arr_0=changed, arr_1=np.arange(70) % 10)
    measured(cli, "--samples", "u.npz")
    assert sum(looked) == 70
    assert len({path.name for path in folder.iterdir()} - before) == 1


def test_without_labels_only_all_classes_together_are_measured(world, cli):
    code, _, err = cli(
        "evaluate", "ours.yaml", "--external", "x", "--samples", save(labels=False), "--device", "cpu"
    )
    assert code == 0
    assert "no labels: all classes are measured together" in err
    (record,) = world.externals()
    assert {row["group"] for row in record.body["rows"]} == {"all"}
    assert record.body["evaluation"]["labels"] is None
    measured(cli, "--samples", save("l.npz"))
    (labelled,) = [r for r in world.externals() if r.cell != record.cell]
    whole = {row["metric"]: row["value"] for row in labelled.body["rows"] if row["group"] == "all"}
    # labels cut images into folds and no value depends on them, but for those that average over classes
    for row in record.body["rows"]:
        if row["metric"] in ("FD", "KD", "precision", "recall"):
            assert row["value"] == pytest.approx(whole[row["metric"]], rel=1e-9)


def test_fewer_images_are_measured_and_said(world, cli):
    code, out, err = cli(
        "evaluate", "ours.yaml", "--external", "x", "--samples", save(), "--n", 50, "--device", "cpu"
    )
    assert code == 0
    assert "50 of 70 images are measured" in err
    assert "50 images are measured where small-data here has 70" in err
    assert "x (external), small-data, 50 images: measured" in out
    (record,) = world.externals()
    assert {row["n_gen"] for row in record.body["rows"] if row["group"] == "all"} == {50}
    assert cli("evaluate", "ours.yaml", "--external", "x", "--samples", "t.npz", "--n", 71)[0] == 2


BAD = {
    "no name": (("--samples", "t.npz"), "name the row with --external NAME"),
    "nothing": (("--external", "x"), "either --samples or --checkpoint"),
    "both": (
        ("--external", "x", "--samples", "t.npz", "--checkpoint", "c.pt"),
        "either --samples or --checkpoint",
    ),
    "no network": (("--external", "x", "--checkpoint", "c.pt"), "--checkpoint needs --network"),
    "protocol": (
        ("--external", "x", "--samples", "t.npz", "--protocol", "adm-50k"),
        "the spec has small-data",
    ),
    "no file": (("--external", "x", "--samples", "no.npz"), "there is no no.npz"),
    "declare": (("--external", "x", "--samples", "t.npz", "--declare", "steps"), "expects key=value"),
    "reserved": (
        ("--external", "x", "--samples", "t.npz", "--declare", "dataset=cifar"),
        "cannot be declared",
    ),
    "twice": (
        ("--external", "x", "--samples", "t.npz", "--declare", "a=1", "--declare", "a=2"),
        "a is said twice",
    ),
    "number": (
        ("--external", "x", "--samples", "t.npz", "--declare", "guidance=high"),
        "guidance is a number",
    ),
    "class": (
        ("--external", "x", "--samples", "few.npz"),
        "4 of the 10 classes of protocol small-data have no image",
    ),
    "network": (
        ("--external", "x", "--checkpoint", "c.pt", "--network", "UNet-16"),
        "no part with the pipeline ddpm",
    ),
}


@pytest.mark.parametrize("name", list(BAD))
def test_a_bad_call_is_refused_and_leaves_no_cell(world, cli, name):
    words, said = BAD[name]
    save()
    np.savez("few.npz", arr_0=images(), arr_1=np.arange(70) % 6)
    code, _, err = cli("evaluate", "ours.yaml", *words)
    assert code == 2
    assert said in " ".join(err.split())
    assert list(world.store.cells()) == [world.cell.id]


# --- statistics -----------------------------------------------------------------------------------------------------


def statistics(path: str, **more: Any) -> dict[str, np.ndarray]:
    """ADM's statistics of the reference images, by NumPy's own mean and covariance."""
    made = load_extractor("digits-cnn-v1").features(
        torch.from_numpy(build_dataset(SETTINGS).reference().images)
    )
    held = {}
    for layer, (mu, sigma) in {"pool": ("mu", "sigma"), "spatial": ("mu_s", "sigma_s")}.items():
        rows = made[layer].numpy().astype(np.float64)
        held |= {mu: np.mean(rows, axis=0), sigma: np.cov(rows, rowvar=False)}
    np.savez(path, **held, **more)
    return held


def values(record: Record | dict[str, Any], group: str = "all") -> dict[str, dict[str, Any]]:
    rows = record.body["rows"] if isinstance(record, Record) else record["rows"]
    return {row["metric"]: row for row in rows if row["group"] == group}


def test_statistics_of_the_reference_give_the_frechet_distance_of_its_images(world, cli):
    statistics("ref.npz")
    (plain,) = measured(cli, "--samples", save())
    (found,) = measured(cli, "--samples", "t.npz", "--reference", "ref.npz")
    one, other = values(plain), values(found)
    assert other["FD"]["value"] == pytest.approx(one["FD"]["value"], rel=1e-6)
    assert other["FD"]["floor"] == pytest.approx(one["FD"]["floor"], rel=1e-6)
    for kind in ("KD", "precision", "recall", "coverage"):
        assert other[kind]["value"] is None
        assert other[kind]["reason"] == "the reference holds statistics and no images"
    assert values(found, "tail")["FD"]["reason"] == "the reference's statistics are of all classes together"
    assert any("the reference is ref@" in note for note in found["notes"])


def test_images_beside_statistics_serve_precision_and_recall(world, cli):
    real = build_dataset(SETTINGS).reference()
    pictures = real.images.transpose(0, 2, 3, 1)
    statistics("ref.npz", arr_0=pictures, arr_1=real.labels)
    statistics("blind.npz", arr_0=pictures)
    (plain,) = measured(cli, "--samples", save())
    for group in ("all", "tail"):
        (found,) = measured(cli, "--samples", "t.npz", "--reference", "ref.npz")
        one, other = values(plain, group), values(found, group)
        for kind in ("precision", "recall", "KD"):
            assert (other[kind]["value"], other[kind]["folds"]) == (one[kind]["value"], one[kind]["folds"])
    (found,) = measured(cli, "--samples", "t.npz", "--reference", "blind.npz")
    assert {row["group"] for row in found["rows"]} == {"all"}
    assert values(found)["recall"]["value"] == pytest.approx(values(plain)["recall"]["value"], rel=1e-9)
    assert any("the images in blind.npz have no labels" in note for note in found["notes"])


def test_with_statistics_the_reference_images_are_not_looked_at(world, cli):
    """ImageNet's are 1.28 million: whoever has their statistics needs only the held-out images, for the floor."""
    import shutil

    statistics("ref.npz")
    shutil.rmtree(world.store.scratch / "references")
    measured(cli, "--samples", save(), "--reference", "ref.npz")
    made = {
        path.name.partition("-")[0] for path in (world.store.scratch / "references").rglob("*.safetensors")
    }
    assert "holdout" in made
    assert "reference" not in made


def test_statistics_of_another_extractor_are_refused(world, cli):
    np.savez("inception.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    code, _, err = cli(
        "evaluate", "ours.yaml", "--external", "x", "--samples", save(), "--reference", "inception.npz"
    )
    assert code == 2
    assert "mu has 2048 dimensions, extractor 'digits-cnn-v1' gives" in err
    np.savez("half.npz", mu=np.zeros(8))
    code, _, err = cli(
        "evaluate", "ours.yaml", "--external", "x", "--samples", "t.npz", "--reference", "half.npz"
    )
    assert code == 2
    assert "has no sigma" in err


# --- weights --------------------------------------------------------------------------------------------------------


def test_our_own_weights_as_a_foreign_file_give_our_own_rows(world, cli):
    weights, _ = load_milestone(world.run.milestones, 4)
    torch.save({"ema": weights, "steps": 4}, "c.pt")
    found = measured(cli, "--checkpoint", "c.pt", "--network", "SiT-N/4", "--declare", "data=digits")
    assert len(found) == 2  # at both guidance values of the spec
    for record in world.externals():
        body = record.body
        own = world.own(body["evaluation"]["guidance"])
        assert body["rows"] == own.body["rows"]
        assert body["evaluation"] == own.body["evaluation"]
        assert (body["step"], body["nfe"]) == (4, own.body["nfe"])
        assert body["external"]["kind"] == "checkpoint"
        assert body["external"]["declared"] == {
            "data": "digits",
            "network": "SiT-N/4",
            "family": "ltbench",
            "weights": "ema",
        }
    assert len(world.externals()) == 2


def test_a_released_file_is_sampled_by_our_own_samplers(world, cli):
    """Of the family that its names tell, from its EMA weights, with its own command line beside them; other tensors do not count."""
    size = network_size("SiT-N/4", 16)
    assert isinstance(size, SiTSize)
    shape: dict[str, Any] = {
        "depth": size.depth,
        "width": size.width,
        "patch": 4,
        "channels": 1,
        "size": 16,
        "classes": 10,
    }
    ema, model = (released.sit_state(**shape, seed=seed) for seed in (1, 2))
    torch.save(released.sit_file(ema, model), "release.pt")
    words = ("--network", "SiT-N/4", "--set", "evaluate.0.guidance=1.5")
    (found,) = measured(cli, "--checkpoint", "release.pt", *words)
    assert found["external"]["declared"] == {"network": "SiT-N/4", "family": "sit", "weights": "ema"}
    (record,) = world.externals()
    assert record.body["evaluation"] == world.own(1.5).body["evaluation"]
    (other,) = measured(cli, "--checkpoint", "release.pt", *words, "--weights", "model")
    assert other["rows"] != found["rows"]
    code, _, err = cli(
        "evaluate", "ours.yaml", "--external", "x", "--checkpoint", "release.pt", "--network", "SiT-N/8"
    )
    assert code == 1
    assert "does not fit the network" in err


class Bomb:
    def __reduce__(self) -> Any:
        return (os.mkdir, ("ran",))


def test_code_in_a_weights_file_is_not_run(world, cli):
    torch.save({"ema": Bomb()}, "bad.pt")
    code, _, err = cli(
        "evaluate", "ours.yaml", "--external", "x", "--checkpoint", "bad.pt", "--network", "SiT-N/4"
    )
    assert code != 0
    assert "would have to run code to be read" in err
    assert not Path("ran").exists()
    assert list(world.store.cells()) == [world.cell.id]


# --- readers --------------------------------------------------------------------------------------------------------


def test_reports_mark_what_is_external_and_rank_only_our_own(world, cli):
    measured(cli, "--samples", save(), "--declare", "sampler=ddim")
    code, out, err = cli("report", "ours.yaml", "--format", "md,csv,html", "--out", "made")
    assert code == 0, err
    text = " ".join(out.split())
    assert "theirs" in text
    assert "(external)" in text  # a narrow terminal breaks a row's label
    assert "not trained here, and not ranked. Declared: sampler ddim." in text
    assert "Not the section's: sampler (euler, here ddim)" in text
    for file in ("ours.md", "ours.csv", "ours.html"):
        (path,) = list(Path("made").glob(f"*{Path(file).suffix}"))
        assert "theirs (external)" in path.read_text()


def test_externals_of_another_data_set_stay_out_of_a_report(world, cli):
    measured(cli, "--samples", save(), "--set", "dataset.imbalance=0.5")
    code, out, _ = cli("report", "ours.yaml", "--format", "md", "--out", "made")
    assert code == 0
    assert "theirs" not in out


def test_every_reader_of_the_store_takes_an_external_cell(world, cli):
    (found,) = measured(cli, "--samples", save(), "--declare", "sampler=ddim")
    code, out, err = cli("status")
    assert code == 0, err
    assert "theirs (digits 16, external)" in out
    assert "done" in out
    for verb in ("show", "why"):
        code, out, err = cli(verb, found["cell"][:8])
        assert code == 0, err
    assert cli("show", found["cell"][:8], "--json")[0] == 0
    code, _, err = cli("accept", found["cell"][:8], "--because", "x")
    assert code == 2
    assert "nothing to accept" in err
    assert cli("plan", "ours.yaml", "--all")[0] == 0
    code, _, err = cli("sample", found["cell"][:8], "--grid", "g.png")
    assert code == 2
    assert "was not trained here" in err
    frame = load_records(world.store)
    assert set(frame["external.name"].dropna()) == {"theirs"}
    assert world.store.damaged() == []
