"""From weights to a record's numbers: keyed noise, blocks, counted network rows, and sampling without labels."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch
from torch import Tensor

from ltbench import seeds
from ltbench.collect import Collected
from ltbench.datasets import build_dataset
from ltbench.evaluate import (
    Bench,
    Milestone,
    estimators_of,
    evaluate,
    measured_rows,
    planned_extractor,
    unlabelled_tiles,
)
from ltbench.generate import blocks, build_sampler, initial_noise, labels_of, quantised, step_noise, to_uint8
from ltbench.metrics.catalogue import CATALOGUE, Estimators
from ltbench.metrics.measure import measure
from ltbench.metrics.sets import FeatureSet, interleaved
from ltbench.networks import Network, build_network
from ltbench.protocols import METRICS, OF_TRAINING, PROTOCOLS, UNDIRECTED, extractor, sampler_options
from ltbench.sampling import nfe
from tests.sampling_oracles import Oracle

torch.set_num_threads(1)
CPU = torch.device("cpu")
SHAPE = (1, 16, 16)
DATASET = {"name": "digits", "imbalance": 0.1, "resolution": 16}
NETWORKS = {"sit": "SiT-N/4", "ddpm": "UNet-16"}
CASES = [
    ("euler", 4),
    ("dopri5", None),
    ("sde-euler", 5),
    ("sde-heun", 4),
    ("ddim", 4),
    ("ddim-corrected", 4),
]
CHAIN = ("ddim", "ddim-corrected", "ddpm")


def settings(pipeline: str, dropout: float = 0.0) -> dict[str, Any]:
    return {
        "dataset": DATASET,
        "pipeline": pipeline,
        "network": NETWORKS[pipeline],
        "train": {"dropout": dropout},
    }


def weights(pipeline: str) -> dict[str, Tensor]:
    """Weights that look trained: the zero layers are filled, so that the output depends on everything."""
    with torch.random.fork_rng():
        torch.manual_seed(3)
        network = build_network(NETWORKS[pipeline], channels=1, resolution=16, classes=10, dropout=0.0)
        return {k: v + 0.03 * torch.randn_like(v) for k, v in network.state_dict().items()}


def evaluation(sampler: str, steps: int | None, **more: Any) -> dict[str, Any]:
    core = {
        "protocol": "small-data",
        "samples": 40,
        "classes": "all",
        "labels": "balanced",
        "sampler": sampler,
        "steps": steps,
        "guidance": 1.5,
        "block": 20,
        "seed": 0,
        "quantise": "round",
        "extractor": extractor("digits-cnn-v1"),
        "reference": "digits:test-balanced",
        "crop": "center",
        "metrics": ["FD", "KD", "precision", "recall"],
        "estimators": {},
    }
    return {**core, **sampler_options({"sampler": sampler, **more}), **more}


def pipeline_of(sampler: str) -> str:
    return "ddpm" if sampler in CHAIN else "sit"


def generate(network: Any, pipeline: str, wanted: dict[str, Any], count: int, shape: Any = SHAPE) -> Any:
    """(count, C, H, W) uint8 and the network rows that each block spent per image."""
    numbers = range(-(-count // wanted["block"]))
    made = list(blocks(network, pipeline, wanted, range(10), shape, CPU, numbers))
    return np.concatenate([to_uint8(b.images).numpy() for b in made])[:count], [b.nfe for b in made]


def images(sampler: str, steps: int | None, count: int, **more: Any) -> np.ndarray:
    pipeline = pipeline_of(sampler)
    network = build_sampler(settings(pipeline), build_dataset(DATASET), weights(pipeline), CPU)
    made, _ = generate(network, pipeline, evaluation(sampler, steps, **more), count)
    assert made.shape == (count, *SHAPE)
    return made.astype(int)


def differ(a: np.ndarray, b: np.ndarray) -> float:
    """Share of pixels that differ by more than one level: batched sums round differently, and a level may flip."""
    return float((np.abs(a - b) > 1).mean())


@pytest.mark.parametrize(("sampler", "steps"), [case for case in CASES if case[0] != "dopri5"])
def test_an_image_does_not_depend_on_its_block_or_on_how_many_there_are(sampler: str, steps: int) -> None:
    whole = images(sampler, steps, 12, block=12)
    assert differ(whole, images(sampler, steps, 12, block=5)) == 0
    assert differ(whole[:7], images(sampler, steps, 7, block=3)) == 0
    assert differ(whole, images(sampler, steps, 12, block=12, seed=1)) > 0.5


def test_images_of_dopri5_depend_on_their_block_within_its_tolerance() -> None:
    whole = images("dopri5", None, 12, block=12)
    assert np.array_equal(whole, images("dopri5", None, 12, block=12))
    assert np.abs(whole - images("dopri5", None, 12, block=5)).max() <= 4
    tight = {"rtol": 1e-6, "atol": 1e-8}
    assert (
        differ(images("dopri5", None, 12, block=12, **tight), images("dopri5", None, 12, block=5, **tight))
        == 0
    )


def test_ddpm_is_keyed_too() -> None:
    # a thousand calls of the U-Net would take ten seconds; any function of row, time and label shows the same
    network = Oracle(lambda x, t, y: torch.tanh(x + 0.001 * t.view(-1, 1, 1, 1) + 0.1 * y.view(-1, 1, 1, 1)))
    vars(network)["null_label"] = 10

    def made(count: int, block: int) -> np.ndarray:
        wanted = evaluation("ddpm", 1000, block=block)
        return generate(cast(Network, network), "ddpm", wanted, count, (1, 4, 4))[0]

    whole = made(5, 5)
    assert np.array_equal(whole, made(5, 2))
    assert np.array_equal(whole[:3], made(3, 3))
    assert len(np.unique(whole)) > 20


def test_the_noise_of_a_step_comes_from_the_images_own_stream() -> None:
    fresh = step_noise(7, [4, 9], SHAPE, CPU)
    drawn = [fresh() for _ in range(3)]
    for row, k in enumerate((4, 9)):
        own = seeds.stream(7, "sampling-steps", k)
        for step in drawn:
            assert np.array_equal(step[row].numpy(), own.standard_normal(SHAPE, np.float32))
    assert drawn[0].dtype == torch.float32
    start = initial_noise(7, [4, 9], SHAPE)
    every = torch.stack([start, *drawn]).reshape(8, -1)
    correlation = torch.corrcoef(every) - torch.eye(8)
    assert correlation.abs().max() < 0.35  # 256 pixels: five standard deviations


@pytest.mark.parametrize(("sampler", "steps"), CASES)
def test_nfe_is_what_the_network_was_given(sampler: str, steps: int | None) -> None:
    pipeline = pipeline_of(sampler)
    network = build_sampler(settings(pipeline), build_dataset(DATASET), weights(pipeline), CPU)
    rows = []
    network.register_forward_pre_hook(lambda module, arguments: rows.append(len(arguments[0])))
    wanted = evaluation(sampler, steps, block=4)
    _, spent = generate(network, pipeline, wanted, 6)
    assert sum(spent) * 4 == sum(rows)
    assert len(spent) == 2
    if steps is not None:
        assert spent == [nfe(sampler, steps, 1.5, options=sampler_options(wanted))] * 2


def run(sampler: str, steps: int | None, dropout: float = 0.0, **more: Any) -> Any:
    pipeline, data = pipeline_of(sampler), build_dataset(DATASET)
    milestone = Milestone("0" * 64, lambda: weights(pipeline), "network")
    with tempfile.TemporaryDirectory() as scratch:
        bench = Bench(Path(scratch), CPU)
        return evaluate(
            settings(pipeline, dropout), evaluation(sampler, steps, **more), milestone, data, bench
        )


def test_dropout_is_off_while_sampling() -> None:
    # with dropout on, the forward would ask for its random streams and fail, and the numbers would differ
    assert run("ddim", 4, dropout=0.5).body == run("ddim", 4).body


def test_a_schedule_and_its_cost_reach_the_record() -> None:
    plain, scheduled = (
        run("euler", 5),
        run("euler", 5, schedule={"name": "interval", "low": 0.0, "high": 0.5}),
    )
    assert (plain.body["nfe"], scheduled.body["nfe"]) == (10, 7)  # guided at levels .4 and .2
    assert [row["value"] for row in plain.body["rows"]] != [row["value"] for row in scheduled.body["rows"]]


def test_dopri5_records_its_mean_cost_and_its_range() -> None:
    body = run("dopri5", None, rtol=1e-2).body
    low, high = body.get("nfe_range", [body["nfe"]] * 2)
    assert 2 * 8 <= low <= body["nfe"] <= high
    assert body["nfe"] % 1 == 0 or low != high


def test_without_labels_there_is_one_group_and_one_row_per_call() -> None:
    found = run("euler", 3, labels=None, guidance=0.0)
    assert found.body["nfe"] == 3
    assert [(row["metric"], row["group"]) for row in found.body["rows"]] == [
        (kind, "all") for kind in ("FD", "KD", "precision", "recall")
    ]
    assert all(value in ([], {}) for value in found.body["per_class"].values())
    assert found.samples.rows == [None] * 5
    assert found.samples.images.shape == (5, 8, *SHAPE)
    assert found.samples.columns == list(range(8))
    assert found.reference.rows == list(range(10))


def test_without_labels_the_network_sees_none() -> None:
    network = build_sampler(settings("sit"), build_dataset(DATASET), weights("sit"), CPU)
    seen: list[Tensor] = []
    network.register_forward_pre_hook(lambda module, arguments: seen.append(arguments[2]))
    wanted = evaluation("euler", 3, labels=None, guidance=0.0)
    generate(network, "sit", wanted, 4)
    assert all((y == 10).all() for y in seen)


def test_without_labels_the_metrics_are_those_of_all_classes_together() -> None:
    # features in hand: whatever the labels are, group `all` compares the same two sets, and the floor's n images hold all
    # classes alike
    generator = np.random.default_rng(5)
    gen, ref = generator.normal(size=(60, 8)), generator.normal(size=(80, 8))
    holdout = generator.normal(size=(100, 8))
    kinds = {"gen": np.arange(60) % 10, "ref": np.arange(80) % 10, "holdout": np.repeat(np.arange(10), 10)}
    ranked = {"head": [0, 1, 2], "body": [3, 4, 5, 6], "tail": [7, 8, 9]}
    name = "digits-cnn-v1@" + "0" * 64
    made = Collected({"pool": gen}, np.zeros(60), [1], np.empty(0), np.empty(0))
    real = {"reference": {"pool": ref, "labels": kinds["ref"]}}
    real |= {"holdout": {"pool": holdout, "labels": kinds["holdout"]}}
    extractor = planned_extractor(evaluation("euler", 2), CPU)
    extractor.sha256 = "0" * 64
    free = measured_rows(made, real, evaluation("euler", 2, labels=None), {}, extractor)["rows"]
    sets = [
        FeatureSet(gen, kinds["gen"]),
        FeatureSet(ref, kinds["ref"]),
        FeatureSet(holdout, kinds["holdout"]),
    ]
    known = measure(*sets, ranked, evaluation("euler", 2)["metrics"], name, Estimators())["rows"]
    for one, other in zip(free, (row for row in known if row["group"] == "all"), strict=True):
        assert one["value"] == pytest.approx(other["value"])
        assert one["floor"] == pytest.approx(other["floor"])
        assert one["n_floor"] == other["n_floor"] == 60


def test_interleaved_takes_turns_among_the_classes() -> None:
    labels = np.array([1, 1, 1, 0, 0, 2, 1])
    order = interleaved(labels)
    assert order.tolist() == [3, 0, 5, 4, 1, 2, 6]
    assert sorted(order.tolist()) == list(range(7))


def test_unlabelled_tiles_stand_in_reading_order() -> None:
    pictures = np.arange(20, dtype=np.uint8).reshape(20, 1, 1, 1).repeat(4, 2).repeat(4, 3)
    shown = unlabelled_tiles(pictures)
    assert shown.images[:, :, 0, 0, 0].tolist() == [list(range(8)), list(range(8, 16))]
    assert unlabelled_tiles(pictures[:3]).images.shape == (1, 3, 1, 4, 4)
    assert unlabelled_tiles(np.zeros((500, 1, 4, 4), np.uint8)).images.shape[:2] == (12, 8)


def test_labels_are_a_function_of_the_images_number() -> None:
    balanced = labels_of(range(7), {"labels": "balanced", "seed": 0}, [2, 5, 9], 10)
    assert balanced.tolist() == [2, 5, 9, 2, 5, 9, 2]
    wanted = {"labels": "uniform", "seed": 3}
    drawn = labels_of(range(3000), wanted, range(10), 10)
    assert np.array_equal(drawn[1000:1100], labels_of(range(1000, 1100), wanted, range(10), 10))
    counts = np.bincount(drawn, minlength=10)
    assert ((counts - 300) ** 2 / 300).sum() < 27.9  # chi-square with 9 degrees of freedom, p = 0.001
    assert not np.array_equal(drawn, labels_of(range(3000), {**wanted, "seed": 4}, range(10), 10))
    assert labels_of(range(3), {"labels": None}, (), 10).tolist() == [10, 10, 10]


def test_the_rules_that_turn_floats_into_what_an_extractor_sees() -> None:
    x = torch.tensor([-1.5, -1.0, -0.996, 0.0, 0.5, 1.0, 2.0]).reshape(1, 1, 1, 7)
    levels = [float(v) * 127.5 + 127.5 for v in x.flatten()]
    floor = [min(255, max(0, int(v // 1))) for v in levels]
    near = [min(255, max(0, round(v))) for v in levels]
    assert quantised(x, "floor").flatten().tolist() == floor
    assert quantised(x, "round").flatten().tolist() == near
    assert quantised(x, "none").dtype == torch.float32
    assert quantised(x, "none").flatten().tolist() == pytest.approx([min(1, max(0, v / 255)) for v in levels])


def test_every_protocol_names_metrics_and_estimators_that_exist() -> None:
    for name, protocol in PROTOCOLS.items():
        assert set(protocol.metrics) <= set(CATALOGUE), name
        assert estimators_of({"estimators": protocol.estimators}), name
    assert set(METRICS) == set(CATALOGUE)
    assert {kind for kind, metric in CATALOGUE.items() if metric.better == ""} == set(UNDIRECTED)
    assert {kind for kind, metric in CATALOGUE.items() if "train" in metric.needs} == set(OF_TRAINING)


def test_only_the_sampled_group_is_measured() -> None:
    found = run("euler", 3, classes="tail", samples=30)
    assert {row["group"] for row in found.body["rows"]} == {"tail"}
    assert {row["n_gen"] for row in found.body["rows"]} == {30}
    assert found.groups == {"tail": [7, 8, 9]}
    assert found.samples.rows == [7, 8, 9]
    assert found.body["per_class"]["classes"] == [7, 8, 9]


def test_copying_is_measured_against_the_training_images() -> None:
    rows = run("euler", 3, metrics=["CT", "copied", "authenticity", "vendi"], samples=100).body["rows"]
    assert {row["metric"] for row in rows} == {"CT", "copied", "authenticity", "vendi"}
    assert all(row["value"] is not None for row in rows if row["group"] == "all")
