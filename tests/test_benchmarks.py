"""The shipped benchmarks: their headers against the published numbers, their grids against the paper, and all of them made small."""

from __future__ import annotations

import csv
import re
from functools import cache
from pathlib import Path

import pytest
import yaml

from ltbench.cost.estimate import estimate
from ltbench.cost.machine import Machine
from ltbench.plan import plan
from ltbench.spec import load
from ltbench.spec.cells import Cell, expand
from ltbench.spec.resolved import Spec
from ltbench.store import Store

ROOT = Path(__file__).resolve().parents[1]
FOLDER = ROOT / "benchmarks"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
OURS = {"quickstart", "smoke", "finetune"}
BEYOND = {"guidance_imagenet_lt", "imbalance_cifar100"}  # no table of the paper
TABLES = {
    re.findall(r"^table(\d+)_|^timing$", name)[0] or "A2": name for name in NAMES if name not in OURS | BEYOND
}


@cache
def benchmark(name: str, *, smoke: bool = False) -> tuple[Spec, tuple[Cell, ...]]:
    found = load(FOLDER / f"{name}.yaml", smoke=smoke)
    return found, tuple(expand(found))


def published() -> list[dict[str, str]]:
    with (ROOT / "results" / "published" / "ccua.csv").open() as file:
        return list(csv.DictReader(file))


def ids(name: str, *labels: str, part: str = "") -> set[str]:
    return {
        cell.id for cell in benchmark(name)[1] if (not labels or cell.label in labels) and part in cell.part
    }


# --- headers ----------------------------------------------------------------------------------------------------------


def test_every_table_of_the_paper_has_a_benchmark() -> None:
    assert set(TABLES) == {row["table"] for row in published()}
    assert all(benchmark(name)[0].name == name for name in NAMES)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in OURS])
def test_a_header_says_what_how_and_at_what_cost(name: str) -> None:
    head = (FOLDER / f"{name}.yaml").read_text().split("\nextends:")[0]
    for wanted in (
        r"^# Reproduces: \S",
        rf"^# Command:    python harness\.py run {name} ",
        "^# Expect and note:$",
    ):
        assert re.search(wanted, head, re.MULTILINE), wanted


@pytest.mark.parametrize("name", [name for name in NAMES if name not in OURS])
def test_the_cost_of_a_header_is_what_plan_says(name: str, tmp_path: Path) -> None:
    head = (FOLDER / f"{name}.yaml").read_text()
    form = rf"^# Costs:      about ([\d,.]+) GPU-hours on an H200, ([\d,.]+) on an A100 \(.*: plan {name} --on h200\)"
    said = re.search(form, head, re.MULTILINE)
    assert said is not None
    spec, cells = benchmark(name)
    planned = plan(spec, Store.open(tmp_path / "store", tmp_path / "scratch"), cells, verify=False).cells
    for hours, device in zip(said.groups(), ("h200", "a100"), strict=True):
        ratio = float(hours.replace(",", "")) / estimate(planned, Machine(device)).hours
        assert 1 / 1.5 < ratio < 1.5, (device, ratio)


@pytest.mark.parametrize("table", sorted(TABLES))
def test_the_numbers_of_a_header_are_the_published_ones(table: str) -> None:
    head = (FOLDER / f"{TABLES[table]}.yaml").read_text()
    known = {
        (
            r["row"],
            r["dataset"],
            r["method"],
            r["variant"].replace(";", ", "),
            r["group"] or "all",
            r["metric"],
        ): r["value"]
        for r in published()
        if r["table"] == table
    }
    lines = re.findall(
        r"^#   row (\d+), (\w+)(?:, \d+k steps)?, (\w+)(?: \((.*?)\))?: (.*)$", head, re.MULTILINE
    )
    assert len(lines) > 1
    for row, dataset, method, variant, values in lines:
        for said in values.split(", "):
            *group, metric, value = said.split(" ")
            assert known[row, dataset, method, variant, "".join(group) or "all", metric] == value, said


def test_published_files_name_their_source_and_a_bib_entry() -> None:
    folder = ROOT / "results" / "published"
    with (folder / "sources.csv").open() as file:
        sources = list(csv.DictReader(file))
    keys = re.findall(r"^@\w+\{(\w+),", (folder / "references.bib").read_text(), re.MULTILINE)
    assert {row["file"] for row in sources} == {path.name for path in folder.glob("*.csv")} - {"sources.csv"}
    assert all(row["bib"] in keys and row["source"] for row in sources)


# --- grids ------------------------------------------------------------------------------------------------------------


def test_trainings_that_tables_share_are_trained_once() -> None:
    everything = ids("table1_imagenet_lt")
    assert ids("table3_recall") < everything
    assert ids("guidance_imagenet_lt") == everything
    ours = ("sit", "sit (resample=0.1)", "ccua (preset=seed)", "ccua (preset=seed, resample=0.1)")
    assert (
        ids("table11_resampling", *ours) == ids("table1_imagenet_lt", *ours) == ids("table12_diffrop", *ours)
    )
    assert ids("table13_blocks", "ccua (preset=seed, resample=0.1)") == ids(
        "table1_imagenet_lt", "ccua (preset=seed, resample=0.1)"
    )
    # the weights of row 6 are CCUA's own, so these are the cells of Table 1 too, and those of row 13 Table 11's
    assert len(ids("table5_weights") & everything) == 9
    assert len(ids("table5_weights") & ids("table11_resampling")) == 12
    assert not ids("table6_imbalance") & everything
    assert ids("table4_resampling") < ids("table2_ddpm")
    assert ids("table9_cifar_ddim10") == ids("table7_cifar") < ids("table8_cifar_ddpm")
    assert len(ids("table8_cifar_ddpm") - ids("table7_cifar")) == 3, "ADA on CIFAR-100, three seeds"
    assert len(ids("table10_unconditional") - ids("table7_cifar")) == 6, "OCLT from head to tail"


def test_table_3_needs_no_evaluation_beyond_table_1() -> None:
    whole = {key for cell in benchmark("table1_imagenet_lt")[1] for key in cell.evaluations}
    assert {key for cell in benchmark("table3_recall")[1] for key in cell.evaluations} < whole


@pytest.mark.parametrize("table", ["1", "6", "12", "13"])
def test_milestones_are_the_published_steps(table: str) -> None:
    steps = {int(row["steps"]) for row in published() if row["table"] == table}
    assert {cell.milestones for cell in benchmark(TABLES[table])[1]} == {tuple(sorted(steps))}


def test_table_5_holds_the_published_weights() -> None:
    rows = [r for r in published() if r["table"] == "5" and r["metric"] == "FID" and r["method"] == "ccua"]
    wanted = [dict(item.split("=") for item in r["variant"].split(";")) for r in rows]
    cells = [
        c.settings
        for c in benchmark("table5_weights")[1]
        if c.seed == 0 and c.settings["method"]["name"] == "ccua"
    ]
    assert [(float(w["alpha"]), float(w["gamma"]), w["latent"]) for w in wanted] == [
        (c["method"]["alpha"], c["method"]["gamma"], c["method"]["tap"]) for c in cells
    ]
    assert {c["resample"] for c in cells} == {0.1}


def test_the_tables_train_as_the_seed_paper_did() -> None:
    said = {cell.recipe for name in TABLES.values() for cell in benchmark(name)[1]}
    assert said == {
        "seed-sit",
        "seed-ddpm",
        "seed-ddpm-64px",
        "seed-ddpm, but for augment ada (there none)",
        "seed-sit, but for passes serial (there fused)",
    }


def test_only_ddpm_is_trained_on_a_balanced_set() -> None:
    for name in ("table2_ddpm", "table7_cifar", "table8_cifar_ddpm", "table9_cifar_ddim10"):
        balanced = [c for c in benchmark(name)[1] if c.settings["dataset"]["imbalance"] == 1.0]
        assert {c.settings["method"]["name"] for c in balanced} == {"ddpm"}
        assert {c.settings["resample"] for c in balanced} == {None}


# --- made small -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_small_benchmark_has_the_rows_and_no_cell_of_the_real_one(name: str) -> None:
    (real, whole), (small, cells) = benchmark(name), benchmark(name, smoke=True)
    assert small.name == f"{name}-smoke"
    assert "numbers mean nothing" in small.title
    assert not {cell.id for cell in whole} & {cell.id for cell in cells}
    evaluations = {key for cell in cells for key in cell.evaluations}
    assert not evaluations & {key for cell in whole for key in cell.evaluations}
    assert [part.name for part in small.parts] == [part.name for part in real.parts] or len(real.parts) == 1
    first = min(cell.seed for cell in whole)
    assert len(cells) == len([cell for cell in whole if cell.seed == first])
    for one, other in zip([c for c in whole if c.seed == first], cells, strict=True):
        assert one.settings["method"]["name"] == other.settings["method"]["name"]
        assert one.settings["method"].get("tap") == other.settings["method"].get("tap")
        assert one.settings["resample"] == other.settings["resample"]
        assert one.settings["dataset"]["imbalance"] == other.settings["dataset"]["imbalance"]
    assert all(cell.missing is None or "diffusers" in cell.missing for cell in cells), (
        "runs without a download"
    )


@pytest.mark.parametrize("name", NAMES)
def test_a_small_benchmark_is_small_and_of_the_real_format(name: str) -> None:
    whole, cells = benchmark(name)[1], benchmark(name, smoke=True)[1]
    for cell in cells:
        data = cell.settings["dataset"]
        assert data["name"] == "standin"
        assert data["resolution"] <= 64
        assert cell.settings["train"]["batch"] == 8
        assert max(cell.milestones) <= 8
        for one in cell.evaluations.values():
            assert one["extractor"]["name"] == "fashion-cnn-v1"
            assert one["samples"] <= 48
            assert one["steps"] is None or one["steps"] <= 4
    protocols = [
        [sorted({e["protocol"] for e in c.evaluations.values()}) for c in some] for some in (whole, cells)
    ]
    assert {str(p) for p in protocols[0]} == {str(p) for p in protocols[1]}
    latents = {cell.settings["dataset"].get("latents") for cell in cells}
    assert latents == ({"tiny-vae"} if whole[0].settings["dataset"].get("latents") else {None})


def test_a_small_benchmark_is_written_as_a_spec_of_its_own(tmp_path: Path) -> None:
    found = load(FOLDER / "table2_ddpm.yaml", smoke=True, changes=["train.ema=0.5"])
    assert re.fullmatch(r"table2_ddpm-[0-9a-f]{8}-smoke", found.name)
    assert found.derived is not None
    assert found.derived.startswith("# table2_ddpm-")
    path = tmp_path / "kept.yaml"
    path.write_text(found.derived)
    again = load(path)
    assert (again.name, [c.id for c in expand(again)]) == (found.name, [c.id for c in expand(found)])
    assert yaml.safe_load(found.derived)["parts"][0]["dataset"]["name"] == "standin"


def test_smoke_leaves_out_files_and_moves_steps_of_starts(tmp_path: Path) -> None:
    path = tmp_path / "spec.yaml"
    path.write_text(
        "name: started\ndataset: {name: digits}\npipeline: sit\nnetwork: SiT-N/2\n"
        "train: {batch: 24, milestones: [10, 20, 30], micro_batch: 12, local_batch: 12}\n"
        "evaluate: {protocol: small-data, sampler: euler, steps: 5, search: {guidance: [1, 2, 3], keep: 2, samples: 100}}\n"
        "grid:\n  method:\n    - sit\n    - {name: cbdm, init: {method: sit, step: 20, train: {ema: 0.5}}}\n"
        f"    - {{name: ccua, init: {{checkpoint: x.pt, sha256: {'a' * 64}, prior_steps: 5}}}}\n"
        "  train.batch: [24, 48]\n  train.lr: [1e-3, 1e-4]\n  seed: [0, 1]\n"
        "exclude: [{train.batch: 48, method: ccua}, {seed: 1, method: cbdm}, {train.lr: 1e-4, method: ccua}]\n"
    )
    cells = expand(load(path, smoke=True))
    assert [
        (c.label, c.settings["train"]["lr"]) for c in cells if c.settings["method"]["name"] == "ccua"
    ] == [("ccua (lr=0.001)", 0.001)]
    assert len(cells) == 5, "the axis of batches and the second seed are gone, the exclusion by rate is not"
    started = next(c for c in cells if c.source)
    assert started.source is not None
    assert (started.source.step, started.milestones) == (4, (4, 6))
    (one,) = started.evaluations.values()
    assert one["search"] == {
        "guidance": [1, 3], "samples": one["samples"], "keep": 1, "metric": "FD", "group": "all", "seed": 1
    }  # fmt: skip
