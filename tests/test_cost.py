"""Costs before the queue: against a real tiny run, against the samplers' own counts, and by arithmetic done again here."""

from __future__ import annotations

import dataclasses
import json
import re
import time
from pathlib import Path

import pytest
import torch

from ltbench import plan as plans
from ltbench import plugins, spec
from ltbench.cost import calibrations, space
from ltbench.cost.calibrations import Calibration, Question, questions_json, train_question
from ltbench.cost.estimate import estimate
from ltbench.cost.machine import Machine
from ltbench.cost.rates import assumed
from ltbench.cost.size import Shape, forward_operations
from ltbench.cost.speed import Speeds
from ltbench.cost.work import declared_rows, rows_per_image
from ltbench.curve import window
from ltbench.errors import UsageError
from ltbench.job import run_job
from ltbench.plan.planned import Spent
from ltbench.sampling import nfe
from ltbench.spec.cells import expand
from ltbench.store import Store
from tests import cli_world

cli, here = cli_world.cli, cli_world.here  # fixtures
CPU = Machine("cpu (2 cores)")
A100 = Machine("a100")


def planned(folder: Path, *changes: str):
    path = folder / "little.yaml"
    if not path.exists():
        path.write_text(cli_world.SPEC)
    benchmark = spec.load(path, changes=changes)
    return plans.plan(benchmark, Store.open(folder / "store", folder / "scratch", write=False)).cells


def measured(settings, device="cpu (2 cores)", threads=1, recompute=False, **result) -> Calibration:
    question = train_question(settings, recompute=recompute)
    known = {"seconds_per_step": 0.5, "rows": 1.0, "own_parameters": 0, "terms": 4}
    return Calibration(question.what, question.id, device, threads, question.code(), {**known, **result}, {})


# -- time -------------------------------------------------------------------------------------------------------------


def test_a_measured_step_counts_as_it_is_and_is_named(tmp_path):
    cells = planned(tmp_path)
    known = measured(cells[0].cell.settings)
    cost = estimate(cells, CPU, [known]).cells[0][1]
    assert cost.train.seconds == pytest.approx(0.5 * 40)
    assert cost.train.basis == "measured"
    assert known.name in cost.train.sources[0][1]
    assert "cpu (2 cores)" in cost.train.sources[0][1]


def test_activations_made_again_are_another_step_and_a_third_more_work(tmp_path):
    cells = planned(tmp_path, "train.recompute=true")
    plain = measured(cells[0].cell.settings)
    again = measured(cells[0].cell.settings, recompute=True, seconds_per_step=0.9)
    found = estimate(cells, CPU, [plain]).cells[0][1].train
    assert (found.seconds, found.basis) == (pytest.approx(0.5 * 40 * 4 / 3), "scaled")
    found = estimate(cells, CPU, [plain, again]).cells[0][1].train
    assert (found.seconds, found.basis) == (pytest.approx(0.9 * 40), "measured")
    found = estimate(planned(tmp_path), CPU, [plain, again]).cells[0][1].train
    assert (found.seconds, found.basis) == (pytest.approx(0.5 * 40), "measured")


def test_a_measurement_elsewhere_or_by_older_code_is_no_measurement(tmp_path):
    cells = planned(tmp_path)
    settings = cells[0].cell.settings
    assert estimate(cells, A100, [measured(settings)]).cells[0][1].train.basis == "estimated"
    older = dataclasses.replace(measured(settings), code={"trainer": "0" * 64})
    assert estimate(cells, CPU, [older]).cells[0][1].train.basis == "scaled"


def test_another_network_is_scaled_by_operations_and_passes(tmp_path):
    cells = planned(tmp_path)
    known = [measured(cells[0].cell.settings), measured(cells[2].cell.settings, rows=1.9)]
    assert cells[2].cell.settings["method"]["name"] == "ccua"
    larger = planned(tmp_path, "network=SiT-T/2")
    found = estimate(larger, CPU, known)
    shape = Shape(1, 16, 10)
    ratio = forward_operations("SiT-T/2", shape) / forward_operations("SiT-N/4", shape)
    assert found.cells[0][1].train.seconds == pytest.approx(0.5 * 40 * ratio)
    assert found.cells[0][1].train.basis == "scaled"
    only = estimate(
        larger, CPU, [measured(cells[0].cell.settings), dataclasses.replace(known[1], device="NVIDIA A100")]
    )
    ours, plain = only.cells[2][1].train.seconds, only.cells[0][1].train.seconds
    assert ours / plain == pytest.approx(1.9), "rows counted on another device hold here too"


@pytest.mark.parametrize(
    ("method", "more", "passes"),
    [
        ("sit", {}, 1), ("repa", {}, 1), ("dispersive", {}, 1), ("oclt", {}, 1), ("coral", {}, 1),
        ("cbdm", {}, 1.9), ("cbdm", {"tau": 0.0}, 1), ("ccua", {}, 1.9), ("ccua", {"alpha": 0.0}, 1.9),
        ("ccua", {"alpha": 0.0, "gamma": 0.0}, 1), ("diffrop", {}, 1), ("diffrop", {"form": "pair"}, 1.9),
        ("diffrop", {"form": "pair", "weight": 0.0}, 1),
    ],
)  # fmt: skip
def test_passes_are_read_from_the_methods_file(method, more, passes):
    """Of rows of which a tenth has no label, as tests/test_methods_cost.py counts operations."""
    what = {"method": {"name": method, **more}, "train": {"label_drop": 0.1}}
    assert declared_rows(what) == pytest.approx(passes)


def test_the_tables_second_passes_are_in_its_hours(tmp_path):
    cells = {
        item.cell.settings["method"]["name"]: cost for item, cost in estimate(planned(tmp_path), CPU).cells
    }
    assert cells["ccua"].train.seconds / cells["sit"].train.seconds == pytest.approx(1.9)
    assert "1.9 passes as ccua declares" in cells["ccua"].train.sources[0][1]


def test_passes_that_a_file_does_not_declare_are_said_to_be_unknown(tmp_path, monkeypatch):
    (tmp_path / "methods").mkdir()
    text = cli_world.MINE.replace("draw, draw.y_in)", "draw, draw.y_in, draw.y)").replace("(out,)", "out, _")
    (tmp_path / "methods" / "mine.py").write_text(text)
    monkeypatch.setenv(plugins.VARIABLE, str(tmp_path))
    what = {"method": {"name": "mine"}, "train": {"label_drop": 0.1}}
    assert declared_rows(what) is None
    declared = text.replace("    def __init__", '    single_pass = [{"factor": 0.0}]\n\n    def __init__')
    (tmp_path / "methods" / "mine.py").write_text(declared)
    assert declared_rows(what) == pytest.approx(1.9)
    (tmp_path / "methods" / "mine.py").write_text(declared.replace('"factor"', '"nothing"'))
    with pytest.raises(UsageError, match="`single_pass` names `nothing`"):
        declared_rows(what)


def test_a_measurement_with_other_threads_is_better_than_none_and_is_said(tmp_path):
    cells = planned(tmp_path)
    known = [measured(cells[0].cell.settings, threads=2)]
    fewer = estimate(cells, CPU, known).cells[0][1].train
    assert (fewer.seconds, fewer.basis) == (pytest.approx(2 * 0.5 * 40), "scaled")
    assert "with 2 threads (taken times 2 for 1)" in fewer.sources[0][1]
    more = estimate(cells, dataclasses.replace(CPU, threads=4), known).cells[0][1].train
    assert (more.seconds, more.basis) == (pytest.approx(0.5 * 40), "scaled")
    assert "with 2 threads (4 may be faster)" in more.sources[0][1]
    both = [*known, measured(cells[0].cell.settings, threads=4, seconds_per_step=0.3)]
    assert estimate(cells, dataclasses.replace(CPU, threads=3), both).cells[0][1].train.seconds == pytest.approx(0.4 * 40)  # fmt: skip
    assert estimate(cells, dataclasses.replace(CPU, threads=2), both).cells[0][1].train.basis == "measured"


def test_without_any_measurement_it_is_operations_over_a_rate_that_is_told(tmp_path):
    cost = estimate(planned(tmp_path), CPU).cells[0][1]
    operations = 3 * forward_operations("SiT-N/4", Shape(1, 16, 10)) * 32 * 40
    assert cost.train.seconds == pytest.approx(operations / assumed(CPU.device, "fp32").operations)
    assert cost.train.basis == "estimated"
    assert "8 GFLOP/s assumed" in cost.train.sources[0][1]


def test_records_of_one_seed_are_measurements_for_the_next(tmp_path):
    cells = list(planned(tmp_path))
    evaluation = next(iter(cells[0].cell.evaluations))
    spent = (
        Spent("train", 20, None, 1, 3.0, 0.0, "cpu (2 cores)", 1, images_per_s=320.0),
        Spent("train", 40, None, 1, 6.0, 0.0, "cpu (2 cores)", 1, images_per_s=320.0),
        Spent("evaluation", 40, evaluation, 1, 7.0, 0.0, "cpu (2 cores)", 1, nfe=20),
    )
    cells[0] = dataclasses.replace(cells[0], spent=spent, due=(), state="done", run="0" * 12)
    found = estimate(cells, CPU)
    same_method = found.cells[1][1]
    assert same_method.train.seconds == pytest.approx(40 * 32 / 320.0)
    assert same_method.evaluate.seconds == pytest.approx(2 * 7.0), "two milestones"
    assert same_method.basis == "measured"
    (actual,) = found.actual
    assert actual.seconds == pytest.approx(13.0), "a record tells the seconds since its attempt began"
    assert actual.predicted.train.basis == "estimated", "not predicted from itself"


def test_segments_are_jobs_under_the_limit_and_wall_time_is_not_below_the_longest_cell(tmp_path):
    cells = planned(tmp_path)
    known = [measured(each.cell.settings) for each in cells]
    limited = estimate(cells, Machine("cpu (2 cores)", limit=6.0), known)
    assert [cost.segments for _, cost in limited.cells] == [4] * 4  # 20 s in jobs of 6
    assert limited.segments == 16
    one = estimate(cells, CPU, known)
    many = estimate(cells, Machine("cpu (2 cores)", slots=100), known)
    assert one.wall == pytest.approx(sum(cost.seconds for _, cost in one.cells))
    assert many.wall == pytest.approx(max(cost.seconds for _, cost in one.cells))
    assert one.hours == pytest.approx(many.hours)


@pytest.mark.parametrize(
    ("sampler", "steps", "more"),
    [
        *(("euler", 20, {}), ("heun", 20, {}), ("sde-euler", 20, {"last_step": "mean"})),
        *(("sde-heun", 20, {"last_step": "euler"}), ("sde-euler", 20, {"last_step": "none"})),
        *(("ddim", 20, {}), ("ddim-corrected", 20, {}), ("ddpm", 1000, {})),
    ],
)
def test_rows_per_image_are_those_that_samplers_take(sampler, steps, more):
    for w in (0.0, 1.0, 1.5):
        told = {"sampler": sampler, "steps": steps, "guidance": w, **more}
        assert rows_per_image(told) == nfe(sampler, steps, w, options=more)
    interval = {"name": "interval", "low": 0.0, "high": 0.7}
    told = {"sampler": sampler, "steps": steps, "guidance": 1.5, "schedule": interval, **more}
    exact = nfe(sampler, steps, 1.5, schedule=interval, options=more)
    assert rows_per_image(told) == pytest.approx(exact, rel=0.06)


def test_pairs_are_counted_with_the_reference_images_that_a_protocol_lets_in():
    """1,281,000 images of ImageNet: of all pairs of them the estimate was half an hour on an H200, and none of it was true."""
    plain = {"extractor": {"name": "digits-cnn-v1"}, "metrics": ["KD", "recall"], "estimators": {}}
    capped = {**plain, "estimators": {"reference_cap": 10_000}}
    speeds = Speeds(CPU)
    few = speeds._numbers(plain, {"reference": 10_000}, 5000)
    assert speeds._numbers(capped, {"reference": 1_281_000}, 5000) == few
    assert speeds._numbers(capped, {"reference": 600}, 5000) == speeds._numbers(
        plain, {"reference": 600}, 5000
    )


def test_ten_thousand_cells_are_estimated_from_a_few_distinct_settings(tmp_path, monkeypatch):
    cells = planned(tmp_path, "grid.seed=[" + ",".join(map(str, range(500))) + "]")
    cells = list(cells) * 10
    calls = []
    real = train_question
    monkeypatch.setattr("ltbench.cost.speed.train_question", lambda *a: calls.append(a) or real(*a))
    begun = time.process_time()
    found = estimate(cells, CPU)
    spent = time.process_time() - begun
    assert len(found.cells) == 10_000
    assert len(calls) <= 8, "once per distinct settings, not once per cell"
    print(f"{spent:.3f} s of process time")


# -- bytes and files ----------------------------------------------------------------------------------------------------


def test_points_of_a_curve_are_those_of_the_curve():
    for every, step in ((1, 40), (2, 3000), (20, 900_000), (5, 2500), (5, 2501)):
        count = sum(s % window(s, every) == 0 for s in range(1, step + 1))
        assert abs(space.points(step, every) - count) <= 1


def test_bytes_and_files_are_those_of_a_real_run(tmp_path):
    """Files and weights exactly; JSON within a fifth; pictures, whose size depends on what they show, at most what is said."""
    cells = planned(tmp_path, "grid.method=[sit]", "grid.seed=0")
    known = measured(cells[0].cell.settings)
    cost = estimate(cells, CPU, [known])
    house = Store.open(tmp_path / "store", tmp_path / "scratch")
    plans.register([cells[0].cell], house)
    work = plans.Plan(spec.load(tmp_path / "little.yaml"), cells).work()[0]
    options = {**cells[0].cell.options, "threads": 1, "device": "cpu"}
    for stage in work.stages:
        outcome = run_job(str(house.root), str(house.scratch), work.cell.id, work.run, stage, options)
        assert outcome["outcome"] == "done", outcome
    own = cost.cells[0][1]
    weights = [*tmp_path.glob("scratch/cells/**/*.safetensors")]
    kept = space.Kept(cells[0].cell.settings, *_shape_and_parameters(cells[0].cell.settings))
    exact = 2 * space.safetensors_bytes(kept.shapes) + 2 * (
        kept.checkpoint(40).bytes - 660 - 120 - space.points(40, 20) * (60 + 40 * 4)
    )
    assert sum(path.stat().st_size for path in weights) == exact
    made = [*tmp_path.glob("scratch/cells/**/*.*"), *tmp_path.glob("scratch/features/**/*.*")]
    made = [path for path in made if path.is_file()]
    assert len(made) == own.scratch.files
    assert sum(p.stat().st_size for p in made) == pytest.approx(own.scratch.bytes, rel=0.02)
    store = [path for path in tmp_path.glob("store/cells/**/*.*") if path.is_file()]
    pictures = [path for path in store if path.suffix == ".png"]
    text = sum(path.stat().st_size for path in store if path not in pictures)
    told_pictures = 2 * 24 * 256 + 2 * 10 * 5 * 256 + 8 * 10 * 256
    assert len([p for p in store if p not in pictures]) == own.store.files - 5
    assert len(pictures) <= 5
    assert text == pytest.approx(own.store.bytes - told_pictures, rel=0.2)
    assert sum(path.stat().st_size for path in pictures) <= told_pictures


def _shape_and_parameters(settings):
    from ltbench.cost.size import parameter_shapes
    from ltbench.cost.work import data_shape

    data = data_shape(settings["dataset"])
    return data, parameter_shapes(settings["network"], data.network(settings["train"]))


# -- calibrate ----------------------------------------------------------------------------------------------------------

BAD = '''
"""Ends the process."""

import os

from ltbench.methods import Method


class Bad(Method):
    """Ends the process in its first step."""

    def loss(self, net, draw):
        os._exit(7)
'''


def test_calibrate_measures_once_and_survives_a_method_that_ends_the_process(cli, here):
    (here / "bad.py").write_text(BAD)
    words = ("calibrate", "little.yaml", "--steps", "2", "--filter", "seed=0", "--threads", "1")
    code, out, err = cli(*words, "--with", "bad", "--plugins", here / "bad.py")
    assert code == 1
    assert "bad" in err
    assert "ended the process" in err
    assert "ms a step" in out
    kept = sorted((here / "store" / "calibrations").iterdir())
    assert len(kept) == 4, "two methods, a sampler and an extractor"
    assert not (here / "store" / "cells").exists(), "no cell learns of it"
    code, out, err = cli(*words, "--json")
    assert code == 0
    assert "4 of them there already" in err
    assert {row["outcome"] for row in json.loads(out)} == {"there"}
    assert sorted((here / "store" / "calibrations").iterdir()) == kept
    rows = {
        row["what"]["method"]["name"]: row["result"] for row in json.loads(out) if "method" in row["what"]
    }
    assert rows["sit"]["rows"] == 1
    assert 1.7 < rows["ccua"]["rows"] <= 2
    assert rows["sit"]["parameters"] == rows["ccua"]["parameters"]
    assert all(row["data"] == "real" for row in rows.values())
    cli("report", "little.yaml", "--format", "md", "--out", here / "out")
    assert re.search(r"\| ccua \(calibrated\) \| [\d.]+ \|", (here / "out" / "little.md").read_text())
    code, out, _ = cli("plan", "little.yaml", "--json", "--on", "cpu", "--no-ask")
    cost = json.loads(out)["cost"]
    threads = cost["machine"]["threads"]
    assert {c["train"]["basis"] for c in cost["cells"]} == {"measured" if threads == 1 else "scaled"}


def test_what_is_asked_with_activations_made_again_is_measured_so(monkeypatch, tmp_path):
    from ltbench import calibrate

    (item, *_) = planned(tmp_path)
    seen = []
    monkeypatch.setattr(calibrate, "WARM_UP", {"cpu": 0})
    monkeypatch.setattr("ltbench.parts.checkpoint_blocks", seen.append)
    for recompute, blocks in ((True, 1), (False, 1)):
        asked = Question(**json.loads(questions_json([train_question(item.cell.settings, None, recompute)])))
        assert calibrate.measure(asked, torch.device("cpu"), 1)["steps"] == 1
        assert len(seen) == blocks


def test_calibrate_on_a_cluster_refuses_before_the_queue_what_its_job_would(cli, here):
    (here / "cluster.yaml").write_text("gpus: 0\ncpus: 2\n")
    words = ("calibrate", "little.yaml", "--profile", "cluster.yaml")
    code, _, err = cli(*words, "--device", "tpu")
    assert (code, "--device is 'tpu'" in err) == (2, True), err
    code, _, err = cli(*words, "--threads", "3")
    assert (code, "a training of this profile gets 2 cores" in err) == (2, True), err
    assert not (here / "scratch" / "submissions").exists()


def test_what_was_spent_counts_cells_and_keeps_parts_apart(tmp_path, monkeypatch, capsys):
    """One cell that ran with one thread and then with two is one cell; `ccua` of two parts is two rows."""
    from ltbench.cli.costing import show_actual

    benchmark = spec.load(cli_world.ROOT / "benchmarks" / "smoke.yaml")
    store = Store.open(tmp_path / "store", tmp_path / "scratch")
    found = plans.plan(benchmark, store, [c for c in expand(benchmark) if c.label == "ccua" and c.seed == 0])
    spent = [Spent("train", 15, None, attempt=n, seconds=9.0, gpu_hours=0.0, device="cpu (2 cores)", threads=n) for n in (1, 2)]  # fmt: skip
    items = [dataclasses.replace(item, spent=tuple(spent)) for item in found.cells]
    show_actual(estimate(items, Machine("cpu (2 cores)")).actual)
    rows = [line.split()[:3] for line in capsys.readouterr().out.splitlines() if "ccua" in line]
    assert rows == [["flow", "ccua", "1"], ["ddpm", "ccua", "1"]]


def test_a_damaged_calibration_is_named_and_not_used(cli, here):
    house = Store.open(here / "store", here / "scratch")
    cell = planned(here)[0].cell
    result = {"seconds_per_step": 0.5, "rows": 1.0, "own_parameters": 0, "terms": 4}
    path = calibrations.keep(house, train_question(cell.settings), "cpu (2 cores)", 1, result)
    known, bad = calibrations.read_all(house)
    assert [each.result for each in known] == [result]
    assert bad == []
    path.write_bytes(path.read_bytes().replace(b"0.5", b"0.6"))
    known, bad = calibrations.read_all(house)
    assert known == []
    code, _, err = cli("plan", "little.yaml", "--no-ask")
    assert code == 0
    assert path.name in err


def test_stand_in_data_has_the_shape_of_what_is_missing(monkeypatch, tmp_path):
    from ltbench.calibrate import STAND_IN, StandIn
    from ltbench.datasets import build_dataset

    monkeypatch.setenv("LTBENCH_DATA", str(tmp_path))
    real = build_dataset({"name": "cifar100_lt", "imbalance": 0.01})
    assert real.missing()
    images = StandIn(real).train()
    assert images.images.shape[1:] == (3, 32, 32)
    assert len(images) <= STAND_IN + 100
    assert set(images.labels.tolist()) == set(range(100))


# -- plan ---------------------------------------------------------------------------------------------------------------


def test_plan_prints_cost_and_what_it_rests_on(cli, here):
    code, out, _ = cli("plan", "little.yaml", "--no-ask", "--on", "a100", "--limit", "24h", "--slots", "8")
    assert code == 0
    assert "GPU-hours" in out
    assert "8 cells at a time" in out
    assert "4 segments of training, each within a job of at most 24 h" in out
    assert re.search(r"estimated: 20% of 19.5 TFLOP/s \(fp32\) assumed for a100", out)
    assert "python harness.py calibrate little.yaml" in out
    code, out, _ = cli("plan", "little.yaml", "--no-ask", "--on", "a100", "--all", "--json")
    cost = json.loads(out)["cost"]
    assert cost["unit"] == "GPU-hours"
    assert cost["hours"] == pytest.approx(sum(cell["hours"] for cell in cost["cells"]))


@pytest.mark.parametrize(
    ("text", "seconds"),
    [("24h", 86400), ("90min", 5400), ("12:00:00", 43200), ("1-12:00:00", 129600), ("00:30", 1800)],
)
def test_times(text, seconds):
    from ltbench.cli.costing import seconds_of

    assert seconds_of(text) == seconds


def test_a_wrong_time_is_refused_in_words(cli, here):
    code, _, err = cli("plan", "little.yaml", "--no-ask", "--limit", "soon")
    assert code == 2
    assert "'soon' is not a time" in err


def test_a_profile_gives_device_limit_and_slots(cli, here):
    (here / "cluster.yaml").write_text("gpu_type: a100\ntime: 12:00:00\nat_once: 3\n")
    words = ("plan", "little.yaml", "--no-ask", "--json", "--profile", "cluster.yaml")
    machine = json.loads(cli(*words)[1])["cost"]["machine"]
    assert (machine["device"], machine["limit_seconds"], machine["slots"]) == ("a100", 43200, 3)
    machine = json.loads(cli(*words, "--on", "h100", "--limit", "2h", "--slots", "9")[1])["cost"]["machine"]
    assert (machine["device"], machine["limit_seconds"], machine["slots"]) == ("h100", 7200, 9)


@pytest.mark.parametrize(
    ("keys", "slots"),
    [("", 4), ("at_once: 3", 3), ("at_once: 1\npack: 2", 2), ("at_once: 3\npack: 2", 4), ("pack: 2", 4)],
)
def test_cells_at_a_time_are_those_that_the_profile_lets_run(cli, here, keys, slots):
    """Of the four cells that there are; cells that share a job run at the same time."""
    (here / "cluster.yaml").write_text(f"gpus: 0\ncpus: 2\n{keys}\n")
    found = json.loads(cli("plan", "little.yaml", "--no-ask", "--json", "--profile", "cluster.yaml")[1])[
        "cost"
    ]
    assert found["machine"]["slots"] == slots
    cells = [each["wall_seconds"] for each in found["cells"]]
    assert found["wall_seconds"] == pytest.approx(max(max(cells), sum(cells) / slots))
