"""Evaluations as jobs: shares, stops and caches leave the same record to the last bit; a search keeps its images apart."""

from __future__ import annotations

import copy
import errno
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from ltbench import provenance, spec
from ltbench.cli.inputs import gather
from ltbench.cli.planning import totals
from ltbench.compiled import compile_blocks
from ltbench.errors import SpecError
from ltbench.files import writing
from ltbench.job import run_job
from ltbench.plan import plan, register
from ltbench.plan.helpers import with_helpers
from ltbench.report.assemble import build_table
from ltbench.report.definition import Definition, TableDefinition
from ltbench.report.table import Table
from ltbench.sources import features_root, references_root
from ltbench.spec.cells import Cell, expand
from ltbench.store import Store

OPTIONS = {"checkpoint_seconds": 3600.0, "log_every": 2, "threads": 1, "device": "cpu"}
SPEC = """
name: jobs
dataset: {{name: digits, imbalance: 0.1, resolution: 16}}
pipeline: sit
network: SiT-N/4
train: {{batch: 12, local_batch: 6, milestones: [2], lr: 1e-3, ema: 0.9}}
evaluate:
  - {{protocol: small-data, sampler: euler, steps: 2, samples: 60, block: 20, metrics: [FD, KD, recall, CT], {guidance}}}
grid: {{method: [sit], seed: 0}}
"""
SEARCH = "search: {guidance: [1.0, 1.5, 3.0], samples: 20, keep: 2, metric: KD, seed: 7}"


class House:
    """A store with one cell, trained two steps."""

    def __init__(self, folder: Path, guidance: str = "guidance: 1.5") -> None:
        self.folder = folder
        self.store = Store.open(folder / "store", folder / "scratch")
        (folder / "jobs.yaml").write_text(SPEC.format(guidance=guidance))
        self.benchmark = spec.load(folder / "jobs.yaml")
        (self.cell,) = expand(self.benchmark)
        register([self.cell], self.store)
        (self.id,) = self.cell.evaluations

    @property
    def run_name(self) -> str:
        return provenance.run_id(provenance.train_code(self.cell.settings), self.cell.settings)

    def do(self, stage: str, stop: Any = lambda: False, **options: Any) -> str:
        places = (str(self.store.root), str(self.store.scratch))
        found = run_job(
            *places, self.cell.id, self.run_name, stage, {**OPTIONS, **options}, lambda event: None, stop
        )
        assert found["outcome"] != "failed", found
        return found["outcome"]

    def trained(self) -> House:
        assert self.do("train:2") == "done"
        return self

    def records(self, kind: str = "evaluation") -> list[dict[str, Any]]:
        return [record.body for record in self.store.run(self.cell.id, self.run_name).records(kind)]

    def told(self, key: str, kind: str = "evaluation") -> list[Any]:
        """Of each record's envelope."""
        return [
            record.envelope.get(key) for record in self.store.run(self.cell.id, self.run_name).records(kind)
        ]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> House:
    house = House(tmp_path_factory.mktemp("whole")).trained()
    assert house.do(f"evaluate:2:{house.id}") == "done"
    return house


@pytest.fixture
def again(whole: House, tmp_path: Path) -> House:
    """The same trained cell, nothing evaluated."""
    house = House(tmp_path)
    shutil.copytree(whole.folder / "scratch" / "cells", tmp_path / "scratch" / "cells", dirs_exist_ok=True)
    source = whole.store.run(whole.cell.id, whole.run_name).dir / "records"
    target = house.store.run(house.cell.id, house.run_name).dir / "records"
    target.mkdir(parents=True)
    for file in source.glob("train-*"):
        shutil.copy(file, target)
    return house


@pytest.fixture(autouse=True)
def small_shards(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ltbench.collect.SHARD_IMAGES", 20)


def test_the_record_is_the_same_whatever_the_split(whole: House, again: House) -> None:
    for part in (2, 0, 1):
        assert again.do(f"sample:2:{again.id}:{part}/3") == "done"
    again.do(f"reference:{again.id}")
    shards = sorted(path.name for path in features_root(again.store.scratch).rglob("*.safetensors"))
    assert len(shards) == 3
    again.do(f"evaluate:2:{again.id}")
    assert (
        again.records() == whole.records()
    )  # whose features lie in one file: `whole` was made with larger shards


def test_a_stopped_evaluation_goes_on_where_it_was_and_tells_how_it_was_run(
    whole: House, again: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(*_: object) -> object:
        raise RuntimeError("no C++ compiler here")

    asked: list[int] = []

    def stop() -> bool:
        asked.append(1)
        return True

    monkeypatch.setattr("ltbench.collect.SHARD_IMAGES", 60)  # else there is no block to stop after
    assert again.do(f"evaluate:2:{again.id}", stop) == "preempted"
    broken = partial(compile_blocks, backend=missing)
    monkeypatch.setattr("ltbench.sampling.forward.compile_blocks", lambda network, backend: broken(network))
    again.do(f"evaluate:2:{again.id}", execution="compiled")
    assert again.records() == whole.records()
    assert whole.told("execution") == ["eager"]
    assert again.told("execution") == ["eager"]  # and not what was asked for
    (why,) = again.told("execution_fallback")
    assert why.startswith("sampling without compiled blocks: ")
    assert "no C++ compiler here" in why


def test_a_measure_is_added_without_sampling_or_training(
    whole: House, again: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    again.do(f"evaluate:2:{again.id}")
    described = {**again.store.get_evaluation(again.id), "metrics": ["vendi", "density"], "groups": "shots"}
    later = again.store.put_evaluation(described)

    def none(*_: Any, **__: Any) -> None:
        raise AssertionError("an image was sampled again")

    monkeypatch.setattr("ltbench.evaluate.blocks", none)
    shutil.rmtree(again.store.run(again.cell.id, again.run_name).milestones)
    again.do(f"evaluate:2:{later}")
    added = next(body for body in again.records() if body["evaluation"]["id"] == later)
    assert {row["metric"] for row in added["rows"]} == {"vendi", "density"}
    assert sorted(again.told("execution")) == ["eager", "none"]  # a network was run for one of them
    assert set(added["groups"]) == {"many", "medium", "few"} & set(added["groups"])


def test_real_images_are_looked_at_once_for_all_cells(again: House) -> None:
    work = plan(again.benchmark, again.store).work()
    (first,) = with_helpers(plan(again.benchmark, again.store), work, again.store.scratch, split=2)
    assert first.stages[0] == f"reference:{again.id}"
    assert [s for s in first.stages if s.startswith("sample")] == [
        f"sample:2:{again.id}:{part}/2" for part in (0, 1)
    ]
    again.do(first.stages[0])
    (second,) = with_helpers(plan(again.benchmark, again.store), work, again.store.scratch)
    assert second.stages == (f"evaluate:2:{again.id}",)
    names = {
        path.name.partition("-")[0] for path in references_root(again.store.scratch).rglob("*.safetensors")
    }
    assert names == {"reference", "holdout", "train"}


def test_a_changed_real_image_is_another_reference(
    whole: House, again: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ltbench.datasets import Images, digits  # pyright: ignore[reportAttributeAccessIssue]

    again.do(f"evaluate:2:{again.id}")
    plain = digits.Digits.reference

    def changed(self: Any) -> Images:
        images = plain(self)
        pixels = images.images.copy()
        pixels[0, 0, 8, 8] ^= 255
        return Images(pixels, images.labels, images.index)

    monkeypatch.setattr(digits.Digits, "reference", changed)
    described = {**again.store.get_evaluation(again.id), "metrics": ["FD"]}
    later = again.store.put_evaluation(described)
    again.do(f"evaluate:2:{later}")
    bodies = {body["evaluation"]["id"]: body for body in again.records()}
    assert bodies[later]["real"]["reference"] != bodies[again.id]["real"]["reference"]
    values = [bodies[key]["rows"][0]["value"] for key in (again.id, later)]
    assert values[0] != values[1]


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> House:
    house = House(tmp_path_factory.mktemp("searched"), SEARCH).trained()
    assert plan(house.benchmark, house.store).cells[0].done == 1
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("ltbench.collect.SHARD_IMAGES", 20)
        house.do(f"evaluate:2:{house.id}")
    return house


def test_a_search_keeps_every_point_and_reports_on_other_images(searched: House) -> None:
    house = searched
    (selection,) = house.records("selection")
    assert house.told("execution", "selection") == ["eager"]
    assert set(house.told("execution")) == {"eager"}
    points = selection["candidates"]
    assert [(point["guidance"], point["n"]) for point in points[:3]] == [(1.0, 20), (1.5, 20), (3.0, 20)]
    finalists = points[3:]
    first = sorted(points[:3], key=lambda point: point["value"])
    assert {p["guidance"] for p in finalists} == {p["guidance"] for p in first[:2]}
    assert selection["chosen"] == min(finalists, key=lambda point: point["value"])["guidance"]
    bodies = {body["evaluation"]["id"]: body for body in house.records()}
    final = bodies.pop(selection["final"])
    assert final["evaluation"]["seed"] == 0
    assert final["evaluation"]["samples"] == 60
    assert {body["evaluation"]["seed"] for body in bodies.values()} == {7}
    assert set(bodies) == {point["evaluation"] for point in points}
    planned = plan(house.benchmark, house.store).cells[0]
    assert (planned.state, planned.done, planned.total) == ("done", 2, 2)
    # the first 20 of a finalist's 60 images are those of the first round; the winner is sampled afresh
    shards = list(features_root(house.store.scratch).rglob("*.safetensors"))
    assert len(shards) == 3 + 2 * 2 + 3


def table_of(house: House, records: Any = lambda known: known, **asked: Any) -> Table:
    inputs = gather(plan(house.benchmark, house.store), house.store)
    inputs = replace(inputs, records=records(inputs.records))
    return build_table(
        inputs, Definition(name="n", table=TableDefinition(metrics=["FD"], groups=["all"], **asked))
    )


def test_a_search_is_reported_at_what_it_chose(searched: House) -> None:
    (selection,) = searched.records("selection")
    final = next(b for b in searched.records() if b["evaluation"]["id"] == selection["final"])
    value = next(row["value"] for row in final["rows"] if (row["metric"], row["group"]) == ("FD", "all"))
    for asked in ({}, {"guidance": "best"}):
        (section,) = table_of(searched, **asked).sections
        assert [row.label for row in section.rows] == [f"sit, w={selection['chosen']:g}"]
        assert section.entry(0, 0).mean == value
        assert section.missing == ()
        assert "guidance searched in 1, 1.5, 3" in section.title
        assert "chose for it by KD, all, on images of its own (seed 7" in section.chosen_by


def test_a_search_without_its_selection_or_its_final_evaluation_says_so(searched: House) -> None:
    (selection,) = searched.records("selection")

    def without(kind: str, name: str) -> Any:
        return lambda known: [
            r for r in known if (r["body"]["kind"], r["body"].get("evaluation", {}).get("id")) != (kind, name)
        ]

    (section,) = table_of(searched, without("selection", searched.id)).sections
    (gap,) = section.missing
    assert (gap.text, gap.detail) == ("not evaluated", "trained, its search has chosen no guidance yet")
    (section,) = table_of(searched, without("evaluation", selection["final"])).sections
    (gap,) = section.missing
    assert gap.text == "no guidance chosen"
    assert f"its evaluation {selection['final']} is not in the store" in gap.detail


def test_what_a_search_did_not_ask_for_is_not_its_result(searched: House) -> None:
    (selection,) = searched.records("selection")

    def resampled(known: Any) -> Any:
        changed = [copy.deepcopy(r) for r in known]
        for record in changed:
            if record["body"].get("evaluation", {}).get("id") == selection["final"]:
                record["body"]["evaluation"]["seed"] = 7
        return changed

    (section,) = table_of(searched, resampled).sections
    assert "other seed (0, here 7)" in section.missing[0].detail


def test_one_guidance_for_all_comes_from_what_searches_tried(searched: House) -> None:
    (selection,) = searched.records("selection")
    (section,) = table_of(searched, guidance="common").sections
    tried = {p["guidance"]: p["value"] for p in selection["candidates"] if p["n"] == 20}
    best = min(tried, key=lambda w: tried[w])
    assert f"Guidance {best:g} is common to all rows" in section.chosen_by
    other = next(w for w in tried if w != selection["chosen"])
    (section,) = table_of(searched, guidance="common", common_guidance=other).sections
    (gap,) = section.missing
    assert (gap.text, f"--add 'guidance: {other:g}'" in gap.detail) == ("not evaluated", True)
    (section,) = table_of(searched, guidance="common", common_guidance=selection["chosen"]).sections
    assert section.missing == ()


def test_the_images_of_a_search_are_counted(tmp_path: Path) -> None:
    house = House(tmp_path, SEARCH)
    assert totals(plan(house.benchmark, house.store))["generated_images"] == 3 * 20 + 2 * 40 + 60


def failing(house: House, evaluation: str) -> dict[str, Any]:
    places = (str(house.store.root), str(house.store.scratch))
    return run_job(
        *places, house.cell.id, house.run_name, f"evaluate:2:{evaluation}", OPTIONS, lambda e: None, bool
    )


def test_a_class_that_no_label_was_drawn_of_is_told_before_sampling(again: House) -> None:
    described = {**again.store.get_evaluation(again.id), "labels": "uniform", "samples": 12, "block": 6}
    found = failing(again, again.store.put_evaluation(described))
    assert found["outcome"] == "failed"
    assert "classes get no image among 12 (labels: uniform, seed 0)" in found["message"]
    assert not list(features_root(again.store.scratch).rglob("*.safetensors"))


def test_a_crop_that_the_data_set_does_not_have_is_refused(
    again: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ltbench.datasets import digits  # pyright: ignore[reportAttributeAccessIssue]

    described = {**again.store.get_evaluation(again.id), "crop": "squash"}
    monkeypatch.setattr(digits.Digits, "crops", ("center",))
    found = failing(again, again.store.put_evaluation(described))
    assert "made square by 'squash'; data set 'digits' has center" in found["message"]
    monkeypatch.setattr(digits.Digits, "crops", ("center", "squash"))
    assert (
        failing(again, again.store.put_evaluation(described))["outcome"] == "done"
    )  # its originals are square


def test_a_full_disk_is_named_and_what_was_finished_serves_again(
    whole: House, again: House, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, wrote = writing._write_new, []

    def full(path: Path, data: bytes, durable: bool = True) -> None:
        if "features" in path.parts and len(wrote) == 1:
            raise OSError(errno.ENOSPC, "No space left on device")
        wrote.extend([path] if "features" in path.parts else [])
        plain(path, data, durable)

    monkeypatch.setattr(writing, "_write_new", full)
    found = failing(again, again.id)
    assert (found["outcome"], "No space left" in found["message"]) == ("failed", True), found
    monkeypatch.undo()
    monkeypatch.setattr("ltbench.collect.SHARD_IMAGES", 20)
    assert found["cause"] == "disk"
    kept = list(features_root(again.store.scratch).rglob("*.safetensors"))
    assert len(kept) == 1
    again.do(f"evaluate:2:{again.id}")
    assert again.records() == whole.records()


def test_a_search_and_a_given_guidance_are_added_to_each_other(tmp_path: Path) -> None:
    for own, more in ((SEARCH, "guidance: 2"), ("guidance: 2", SEARCH)):
        (tmp_path / "jobs.yaml").write_text(SPEC.format(guidance=own))
        (cell,) = expand(spec.load(tmp_path / "jobs.yaml", measures=[more]))
        found = {("search" in each, each["guidance"]) for each in cell.evaluations.values()}
        assert found == {(True, None), (False, 2.0)}


THREE = "search: {guidance: [1.0, 2.0, 3.0], "
MISTAKES = [
    ("search: {guidance: [1.0, 2.0, 3.0], seed: 0, samples: 20}", "seed is 0 like the entry's"),
    ("search: {guidance: [1.0, 2.0, 3.0], metric: sFD, samples: 20}", "'sFD' is not measured here"),
    ("search: {guidance: [1.0, 2.0, 3.0], metric: vendi, samples: 20}", "or has no better end"),
    ("search: {guidance: [1.0, 2.0, 3.0], group: few, samples: 20}", "there is no group 'few'"),
    ("search: {guidance: [1.0, 2.0, 3.0], samples: 80}", "the first round has 80 images, the last 60"),
    ("search: {guidance: [1.0, 2.0], samples: 20}", "keeps 2 of 2 values"),
    (THREE + "samples: 20, kept_samples: 80}", "the last round has 80 images, the reported evaluation 60"),
    (THREE + "samples: 40, kept_samples: 20}", "the first round has 40 images, the last 20"),
    (THREE + "samples: 20, coarse: {sampler: ddim}}", "its samplers are euler, heun"),
    (THREE + "samples: 20, coarse: {sampler: euler, steps: 2}}", "is the sampler of the entry"),
]


@pytest.mark.parametrize(("guidance", "said"), MISTAKES)
def test_a_search_that_makes_no_sense_is_refused(tmp_path: Path, guidance: str, said: str) -> None:
    (tmp_path / "jobs.yaml").write_text(SPEC.format(guidance=guidance))
    with pytest.raises(SpecError) as caught:
        spec.load(tmp_path / "jobs.yaml")
    assert said in " ".join(problem.message for problem in caught.value.problems)


def test_cells_differ_in_nothing_by_what_is_evaluated(tmp_path: Path, whole: House) -> None:
    other: Cell = House(tmp_path, SEARCH).cell
    assert other.id == whole.cell.id


def test_large_images_are_kept_as_thumbnails(again: House) -> None:
    import numpy as np

    from ltbench.evaluate import Tiles
    from ltbench.stages.common import put_tiles
    from ltbench.tiles import read_grid

    noise = np.random.default_rng(0).integers(0, 256, (12, 8, 3, 128, 128), dtype=np.uint8)
    run = again.store.run(again.cell.id, again.run_name)
    kept = put_tiles(run, Tiles(noise, list(range(12)), list(range(8))))
    assert kept["tile"] == 32
    small = read_grid(run.facts.read(kept["file"]), 32)
    expected = noise[3, 5, 1, 40:42, 60:62].astype(float).mean()
    once = noise.reshape(12, 8, 3, 64, 2, 64, 2).mean((4, 6)).round()
    assert abs(once[3, 5, 1, 20, 30] - expected) <= 0.5
    assert np.array_equal(small, once.reshape(12, 8, 3, 32, 2, 32, 2).mean((4, 6)).round().astype(np.uint8))
