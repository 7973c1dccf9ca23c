"""`latents` in a spec: what a cell becomes, what is refused before anything starts, and a run from encoding to a table's record."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from ltbench import plugins, provenance, sources, spec, vaes
from ltbench.errors import SpecError
from ltbench.job import run_job
from ltbench.launch.work import CellWork, Queue
from ltbench.plan import plan, register
from ltbench.plan.helpers import with_helpers
from ltbench.spec.cells import Cell, expand
from ltbench.spec.json_schema import spec_schema
from ltbench.stages.export import export
from ltbench.store import Store
from tests.latent_world import drop_plugin, saved
from tests.test_job import OPTIONS, run_of

SPEC = """
name: coded
dataset: {dataset}
pipeline: sit
network: SiT-N/2
train: {{batch: 12, local_batch: 6, milestones: [2, 4], lr: 1e-3, ema: 0.9{train}}}
evaluate: [{{protocol: small-data, sampler: euler, steps: 2, guidance: 1.5, samples: 24, block: 12, metrics: [KD]}}]
grid: {{method: [{method}], seed: [0]{grid}}}
"""


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The plugin folder, data and weights of their own."""
    import ltbench.datasets

    torch.set_num_threads(1)
    monkeypatch.setenv("LTBENCH_DATA", str(tmp_path))
    monkeypatch.setenv("LTBENCH_PLUGINS", "")
    monkeypatch.setenv("LTBENCH_WEIGHTS", str(tmp_path / "weights"))
    monkeypatch.setattr(vaes, "_SEEN", {})
    before = list(ltbench.datasets.__path__)
    plugins.use([drop_plugin(tmp_path / "plugins")])
    yield tmp_path
    ltbench.datasets.__path__[:] = before


def cells(
    folder: Path,
    dataset: str = "{name: squares, latents: tiny-vae}",
    train: str = "",
    grid: str = "",
    method: str = "sit",
) -> list[Cell]:
    path = folder / "coded.yaml"
    path.write_text(SPEC.format(dataset=dataset, train=train, grid=grid, method=method))
    return expand(spec.load(path))


def refused(folder: Path, **changes: str) -> str:
    with pytest.raises(SpecError) as error:
        cells(folder, **changes)
    return str(error.value)


# --- the spec ---------------------------------------------------------------------------------------------------------


def test_a_cells_identity_names_the_vae_and_a_cell_on_pixels_stays_what_it_was(here: Path) -> None:
    (coded,), (plain,) = cells(here), cells(here, "{name: squares}")
    assert coded.identity["dataset"] == {"name": "squares", "latents": "tiny-vae"}
    assert {**coded.identity, "dataset": {"name": "squares"}} == plain.identity
    assert "latents" not in plain.settings["dataset"]
    (none,) = cells(here, "{name: squares, latents: none}")
    assert none.id == plain.id
    assert coded.missing is None
    assert "latents" in provenance.train_code(coded.settings)
    assert "latents" not in provenance.train_code(plain.settings)


def test_pixels_and_latents_can_be_an_axis(here: Path) -> None:
    found = cells(here, "{name: squares}", grid=", dataset.latents: [none, tiny-vae]")
    assert [cell.settings["dataset"].get("latents") for cell in found] == [None, "tiny-vae"]
    assert len({cell.label for cell in found}) == 2


def test_a_folder_is_content_in_the_id_and_a_place_in_the_job(here: Path) -> None:
    folder = saved(here / "mine")
    (by_path,) = cells(here, f"{{name: squares, latents: {folder}}}")
    name = f"mine#{vaes.content(folder)[:12]}"
    assert by_path.settings["dataset"]["latents"] == name
    assert by_path.options["vae"] == str(folder)
    assert str(folder) not in json.dumps(by_path.settings)
    shutil.copytree(folder, here / "weights" / "mine")
    (by_name,) = cells(here, f"{{name: squares, latents: '{name}'}}")
    assert by_name.id == by_path.id
    assert "vae" not in by_name.options


def test_a_published_vae_that_is_not_here_is_said_before_anything_starts(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(here / "empty"))
    monkeypatch.delenv("HF_HUB_CACHE", raising=False)
    (cell,) = cells(here, "{name: squares, resolution: 64, latents: sd-vae-ft-ema}")
    assert "VAE 'sd-vae-ft-ema' is not here" in (cell.missing or "")
    assert "hf download stabilityai/sd-vae-ft-ema" in (cell.missing or "")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"dataset": "{name: squares, latents: sd-vae-ft-em}"}, "did you mean 'sd-vae-ft-ema'"),
        ({"dataset": "{name: squares, latents: 3}"}, "expects the name of a VAE"),
        ({"dataset": "{name: squares, latents: ./nowhere}"}, "is no folder"),
        ({"dataset": "{name: digits, latents: tiny-vae}"}, "codes RGB images"),
        (
            {"dataset": "{name: squares, resolution: 28, latents: tiny-vae}"},
            "do not divide the resolution 28",
        ),
        ({"train": ", augment: ada"}, "latents (tiny-vae) are encoded once"),
        ({"grid": ", train.augment: [none, ada]"}, "latents (tiny-vae) are encoded once"),
        ({"grid": ", dataset.latents: [tiny-vae, tiny-va]"}, "unknown VAE 'tiny-va'"),
    ],
)
def test_what_cannot_be_is_refused_where_it_is_written(
    changes: dict[str, str], said: str, here: Path
) -> None:
    text = refused(here, **changes)
    assert said in text
    assert "coded.yaml:" in text


def test_a_network_is_checked_against_the_latents(here: Path) -> None:
    """32 pixels are 4 x 4 latents: patches of 8 fit the one and not the other."""
    path = here / "patch.yaml"
    path.write_text(
        SPEC.format(dataset="{name: squares, latents: tiny-vae}", train="", grid="", method="sit").replace(
            "SiT-N/2", "SiT-N/8"
        )
    )
    with pytest.raises(SpecError, match="do not divide the resolution 4"):
        spec.load(path)


def test_editors_are_told_of_latents(here: Path) -> None:
    choices = spec_schema()["$defs"]["DatasetChoice"]["anyOf"]
    assert all("latents" in choice["properties"] for choice in choices)


# --- the work ---------------------------------------------------------------------------------------------------------


def test_latents_are_one_job_that_their_trainings_wait_for(here: Path) -> None:
    found = cells(here, "{name: squares}", grid=", dataset.latents: [none, tiny-vae]", method="sit, cbdm")
    store = Store.open(here / "store", here / "scratch")
    whole = plan(spec.load(here / "coded.yaml"), store)
    work = with_helpers(whole, whole.work(), store.scratch)
    coding = [stage for item in work for stage in item.stages if stage.startswith("encode:")]
    key = sources.latents_key(
        next(c for c in found if "latents" in c.settings["dataset"]).settings["dataset"]
    )
    assert coding == [f"encode:{key}"]
    assert [item.latents for item in work] == [c.settings["dataset"].get("latents") and key for c in found]

    only = [
        CellWork(
            w.cell.id, w.cell.label, 0, tuple(s for s in w.stages if s[0] in "te"), w.run, latents=w.latents
        )
        for w in work
    ]
    queue, order = Queue(only), []
    encode = queue.next()
    assert encode is not None
    assert encode.kind == "encode"
    while job := queue.next():
        order.append((job.kind, job.work.latents))
        queue.done(job)
    assert ("train", None) in order, "pixels wait for nothing"
    assert ("train", key) not in order
    queue.done(encode)
    job = queue.next()
    assert job is not None
    assert (job.kind, job.work.latents) == ("train", key)


def test_trainings_go_on_when_the_encoding_was_lost(here: Path) -> None:
    queue = Queue([CellWork("a", "a", 0, ("encode:k", "train:2"), "r" * 12, latents="k")])
    job = queue.next()
    assert job is not None
    assert queue.next() is None
    assert queue.drop(job) == [], "the training makes what is missing, or fails with the cause"
    rest = queue.next()
    assert rest is not None
    assert rest.stage == "train:2"


def run(store: Store, cell: Cell, stage: str, stop: Any = lambda: False, **options: Any) -> dict[str, Any]:
    places = (str(store.root), str(store.scratch))
    how = {**OPTIONS, **cell.options, **options}
    return run_job(*places, cell.id, run_of(cell), stage, how, stop=stop)


def everything(store: Store, cell: Cell, benchmark: Path) -> list[str]:
    whole = plan(spec.load(benchmark), store)
    stages = [s for item in with_helpers(whole, whole.work(), store.scratch) for s in item.stages]
    for stage in stages:
        outcome = run(store, cell, stage)
        assert outcome["outcome"] == "done", outcome
    return [stage.partition(":")[0] for stage in stages]


def test_a_cell_on_latents_from_encoding_to_its_records(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By a folder that only the spec names: job, evaluation, export; interrupted and not, with equal bytes."""
    folder = saved(here / "mine")
    (cell,) = cells(here, f"{{name: squares, latents: {folder}}}")
    store = Store.open(here / "store", here / "scratch")
    register([cell], store)
    stages = everything(store, cell, here / "coded.yaml")
    assert stages == ["encode", "reference", "train", "evaluate", "evaluate"]
    (result,) = store.runs(cell.id)
    weights = {"name": cell.settings["dataset"]["latents"], "sha256": _sha(folder)}
    records = result.records()
    assert {record.body["kind"] for record in records} == {"train", "evaluation"}
    assert all(record.body["vae"] == weights for record in records)
    made = next(r for r in result.records("evaluation") if r.step == 4)
    assert np.isfinite([row["value"] for row in made.body["rows"]]).all()
    assert plan(spec.load(here / "coded.yaml"), store).work() == []

    monkeypatch.setenv("LTBENCH_STORE", str(store.root))
    monkeypatch.setenv("LTBENCH_SCRATCH", str(store.scratch))
    out = here / "images.npz"
    export(cell.id, 4, cell.settings, made.body["evaluation"], 10, out=out, device="cpu")
    with np.load(out) as arrays:
        assert arrays["arr_0"].shape == (10, 32, 32, 3)
        assert arrays["arr_0"].dtype == np.uint8

    other = Store.open(here / "other", here / "other-scratch")
    register([cell], other)
    asked: list[int] = []
    cut = run(other, cell, "train:2,4", stop=lambda: asked.append(1) or len(asked) in (2, 6))
    assert cut["outcome"] == "preempted"
    while run(other, cell, "train:2,4", stop=lambda: asked.append(1) or len(asked) == 9)["outcome"] != "done":
        assert len(asked) < 100
    one, two = ({r.path.name: r.digest for r in s.runs(cell.id)[0].records("train")} for s in (store, other))
    assert one == two


def _sha(folder: Path) -> str:
    import hashlib

    return hashlib.sha256((folder / vaes.WEIGHTS).read_bytes()).hexdigest()


def test_weights_that_changed_since_the_plan_are_refused(here: Path) -> None:
    folder = saved(here / "mine")
    (cell,) = cells(here, f"{{name: squares, latents: {folder}}}")
    store = Store.open(here / "store", here / "scratch")
    register([cell], store)
    shutil.rmtree(folder)
    saved(folder, seed=1)
    outcome = run(store, cell, "train:2,4")
    assert outcome["outcome"] == "failed"
    assert outcome["cause"] == "data"
    assert "another VAE" in outcome["message"]


def test_a_key_of_another_plan_is_refused(here: Path) -> None:
    (cell,) = cells(here)
    store = Store.open(here / "store", here / "scratch")
    register([cell], store)
    assert "changed since this job was planned" in run(store, cell, f"encode:{'0' * 20}")["message"]


def test_methods_are_asked_on_latents_too(here: Path) -> None:
    from ltbench.questions import answer

    (cell,) = cells(here, method="{name: repa, encoder: random}")
    assert answer(cell.settings).kind == "yes"
    moved = {**cell.settings, "train": {**cell.settings["train"], "augment": "ada"}}
    assert answer(moved).kind == "unsupported", "also where no spec was asked, as for the source of an `init`"


def test_the_child_that_asks_methods_is_told_of_the_folder(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a factor of 4 a latent of 32 pixels has 8 x 8 places, of the usual 8 it has 4 x 4, where patches of 8 do not fit."""
    import subprocess
    import sys

    (cell,) = cells(here, f"{{name: squares, latents: {saved(here / 'mine')}}}")
    settings = {**cell.settings, "network": "SiT-N/8"}
    asked = json.dumps({"key": "k", "settings": settings, "vae": cell.options["vae"]})
    monkeypatch.setenv("LTBENCH_PLUGINS", str(here / "plugins"))
    command = [sys.executable, "-m", "ltbench.questions", "60"]
    found = subprocess.run(command, input=asked, capture_output=True, text=True, check=True)
    assert json.loads(found.stdout)["kind"] == "yes", found
