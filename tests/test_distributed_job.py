"""A stage run by two ranks: what it leaves, how it goes on after an interruption, and that no rank outlives another."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from ltbench.checkpoint import load_milestone
from ltbench.job import run_job
from ltbench.spec.cells import Cell
from tests.rank_jobs import in_ranks
from tests.test_job import OPTIONS, House, run_of

STAGE = "train:4,8"


def stage(
    house: House, cell: Cell, events: list[Any], stop: Callable[[], bool] = lambda: False
) -> dict[str, Any]:
    """The stage as srun would have it called, with a checkpoint after every step."""
    places = (str(house.store.root), str(house.store.scratch))
    options = {**OPTIONS, "checkpoint_seconds": 0.0}
    return run_job(*places, cell.id, run_of(cell), STAGE, options, events.append, stop)


def both(house: House, cell: Cell, at: int = 1000, what: Callable[[], bool] = lambda: True) -> list[Any]:
    """(result, events, when) of each rank; at its `at`-th step boundary, rank 1 alone does `what`."""

    def work(rank: int) -> Any:
        seen, events = [0], []

        def stop() -> bool:
            seen[0] += 1
            return rank == 1 and seen[0] >= at and what()

        result = stage(house, cell, events, stop)
        return result, events, time.monotonic()

    return in_ranks(house.folder / "ranks", work)


def kill() -> bool:
    os.kill(os.getpid(), signal.SIGKILL)
    raise AssertionError("dead")


def fault() -> bool:
    raise KeyError("no such thing")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[House, Cell]:
    """Trained by two ranks without interruption."""
    torch.set_num_threads(1)
    house = House(tmp_path_factory.mktemp("whole"))
    cell = house.cell()
    (one, events, _), (two, silent, _) = both(house, cell)
    assert one == two == {"outcome": "done", "step": 8}
    assert [event["step"] for event in events if event["type"] == "milestone"] == [4, 8]
    assert silent == []
    return house, cell


def test_the_leader_writes_and_the_record_says_how_many_ranks(whole: tuple[House, Cell]) -> None:
    house, cell = whole
    records = house.result(cell).records("train")
    assert [record.step for record in records] == [4, 8]
    assert [record.envelope["ranks"] for record in records] == [2, 2]
    assert records[1].body["curve"]["step"] == [2, 4, 6, 8]


def test_a_second_call_finds_nothing_to_do_and_the_plan_neither(whole: tuple[House, Cell]) -> None:
    house, cell = whole
    before = house.bodies(cell)
    assert [result for result, *_ in both(house, cell)] == [{"outcome": "done", "step": 8}] * 2
    assert house.bodies(cell) == before


def test_one_process_gives_the_same_up_to_rounding_under_the_same_id(
    whole: tuple[House, Cell], tmp_path: Path
) -> None:
    other = House(tmp_path / "other")
    cell = other.cell()
    assert cell.id == whole[1].id
    other.run(cell, STAGE)
    assert_close(whole, (other, cell))


def assert_close(left: tuple[House, Cell], right: tuple[House, Cell]) -> None:
    """Milestone weights that differ by the order of sums at most: Adam at 1e-3 moves a weight by up to 8e-3 in 8 steps."""
    a, b = (load_milestone(house.result(cell).milestones, 8)[0] for house, cell in (left, right))
    for name in a:
        torch.testing.assert_close(a[name], b[name], rtol=0, atol=1e-4)


def test_stopped_killed_and_failed_on_the_way_it_ends_bit_for_bit_where_it_would_have(
    whole: tuple[House, Cell], tmp_path: Path
) -> None:
    house = House(tmp_path / "cut")
    cell = house.cell()
    stopped = both(house, cell, at=4)
    assert [result for result, *_ in stopped] == [{"outcome": "preempted", "step": 3}] * 2

    started = time.monotonic()
    (left, _, ended), signal_of_the_other = both(house, cell, at=3, what=kill)
    assert signal_of_the_other == -signal.SIGKILL
    assert (left["outcome"], left["cause"], left["message"]) == (
        "failed",
        "killed",
        "rank 1 ended without a word",
    )
    assert ended - started < 300, "not the group's own patience"
    (failure,) = house.result(cell).failures("train")
    assert (failure["cause"], failure["message"]) == ("killed", "rank 1 ended without a word")

    (left, *_), (right, *_) = both(house, cell, at=2, what=fault)
    assert right == {**right, "outcome": "failed", "cause": "code", "peer": False, "retire": True}
    assert left == {**left, "outcome": "failed", "cause": "code", "peer": True, "retire": True}
    assert "rank 1: KeyError: 'no such thing'" in left["message"]
    failure = house.result(cell).failures("train")[-1]
    assert failure["evidence"]["rank"] == 1
    assert "in fault" in failure["traceback"]

    done = both(house, cell)
    assert [result["outcome"] for result, *_ in done] == ["done", "done"]
    assert "resuming from step 6" in [event["message"] for event in done[0][1] if event["type"] == "notice"]
    assert house.bodies(cell) == whole[0].bodies(cell)


def test_one_process_goes_on_where_two_ranks_stopped(whole: tuple[House, Cell], tmp_path: Path) -> None:
    house = House(tmp_path / "fewer")
    cell = house.cell()
    both(house, cell, at=6)
    assert house.run(cell, STAGE)["outcome"] == "done"
    assert [record.envelope["ranks"] for record in house.result(cell).records("train")] == [2, 1]
    assert_close(whole, (house, cell))


def test_a_loss_that_is_not_finite_on_one_rank_stops_both_with_its_images(tmp_path: Path) -> None:
    house = House(tmp_path)
    cell = house.cell()

    def work(rank: int) -> Any:
        import ltbench.methods.sit as module

        plain = module.SiT.loss

        def poisoned(self: Any, net: Any, draw: Any) -> Any:
            terms = plain(self, net, draw)
            return {"denoise": terms["denoise"] * (float("nan") if poisoned.calls(rank) else 1.0)}

        seen = [0]

        def calls(rank: int) -> bool:
            seen[0] += 1
            return rank == 1 and seen[0] >= 3  # the second try too

        poisoned.calls = calls
        module.SiT.loss = poisoned
        return stage(house, cell, [])

    left, right = in_ranks(tmp_path / "ranks", work)
    for result in (left, right):
        assert (result["outcome"], result["cause"], result["step"]) == ("failed", "nan", 3)
    (failure,) = house.result(cell).failures("train")
    assert failure["evidence"]["terms"] == {"denoise": "nan"}
    assert len(failure["evidence"]["rows"]) == 6  # the images of rank 1, a local batch of 6
    assert max(path.name for path in house.result(cell).checkpoints.iterdir()).startswith("step-000000002")


def test_a_stage_that_somebody_runs_is_left_to_them_by_all(tmp_path: Path) -> None:
    house = House(tmp_path)
    cell = house.cell()
    with house.store.run(cell.id, run_of(cell)).claim("train"):
        for result, *_ in both(house, cell):
            assert result["outcome"] == "held"
            assert f"pid {os.getpid()}" in result["message"]


def test_ranks_that_cannot_share_the_batch_say_what_can(tmp_path: Path) -> None:
    house = House(tmp_path)
    cell = house.cell()
    results = in_ranks(tmp_path / "ranks", lambda rank: stage(house, cell, []), size=3)
    assert [result["outcome"] for result in results] == ["failed"] * 3
    assert "3 ranks cannot share 2 local batches evenly" in results[0]["message"]
    assert "allowed numbers of ranks: 1, 2" in house.result(cell).failures("train")[0]["message"]
