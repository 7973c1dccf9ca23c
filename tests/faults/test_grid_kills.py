"""A whole grid through the command `run`, killed at random moments (driver, worker, both, in the middle of a write) and
started again by the same command: in the end one full set of records, bit for bit that of an undisturbed run, and nothing else.

LTBENCH_GRID_KILLS sets the number of kills (8 here; by `make faults` 200, and as many again through exec), LTBENCH_KILL_SEED the
first house's seed: every house prints its own, so a failure is repeated by setting it.
"""

from __future__ import annotations

import os
import random
import shutil
import sys
from collections import Counter
from pathlib import Path

import pytest
import torch

from tests.faults import HOURS, LONG, forked, tell
from tests.faults.grid import House, kill_until_done, timed

KILLS = int(os.environ.get("LTBENCH_GRID_KILLS", "200" if LONG else "8"))
SEED = int(os.environ.get("LTBENCH_KILL_SEED", "20260501"))

pytestmark = [
    pytest.mark.faults,
    pytest.mark.timeout(3600 * HOURS),
    pytest.mark.skipif(sys.platform != "linux", reason="the process table is Linux's"),
]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[House, float]:
    """An undisturbed grid, and how long it takes once everything is imported."""
    torch.set_num_threads(1)
    House(tmp_path_factory.mktemp("warm") / "grid").run_here()  # imports that torch puts off, before any fork
    forked.adopt_orphans()
    house = House(tmp_path_factory.mktemp("whole") / "grid")
    return house, timed(house)


def check(house: House, whole: House, seed: int) -> None:
    """What the last start left."""
    told = f"LTBENCH_KILL_SEED={seed} repeats it; kills: {', '.join(house.kills)}"
    assert forked.all_gone() == [], f"processes are left; {told}"
    assert house.records() == whole.records(), told
    expected, found = whole.results(), house.results()
    assert sorted(found) == sorted(expected), told
    assert [name for name in expected if found[name] != expected[name]] == [], told
    assert house.litter() == [], told


def kill(
    folder: Path,
    whole: tuple[House, float],
    capfd: pytest.CaptureFixture[str],
    through_exec: bool = False,
) -> None:
    """Houses, killed and started again, until there were so many kills."""
    undisturbed, seconds = whole
    assert undisturbed.litter() == []
    kills: list[str] = []
    number = 0
    while len(kills) < KILLS:
        seed = SEED + number
        house = House(folder / f"house-{number}", through_exec)
        kill_until_done(house, random.Random(seed), seconds)
        kills, number = kills + house.kills, number + 1
        text = f"LTBENCH_KILL_SEED={seed}: {', '.join(house.kills) or 'none'}  ({len(kills)} of {KILLS})"
        tell(capfd, text)
        check(house, undisturbed, seed)
        shutil.rmtree(house.place)
    whom = Counter("in a write of a " * (" call " in kill) + kill.split()[0] for kill in kills)
    text = f"{len(kills)} kills of {number} grids, an undisturbed one takes {seconds:.1f} s; none differed; {dict(whom)}"
    tell(capfd, text)


def test_a_grid_killed_anywhere_ends_in_one_full_set(
    whole: tuple[House, float], tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    kill(tmp_path, whole, capfd)


if LONG:  # seconds of imports for every start

    def test_so_it_does_with_processes_of_its_own(
        whole: tuple[House, float], tmp_path: Path, capfd: pytest.CaptureFixture[str]
    ) -> None:
        undisturbed, _ = whole
        own = House(tmp_path / "own", through_exec=True)
        kill(tmp_path, (undisturbed, timed(own)), capfd, through_exec=True)
        check(own, undisturbed, 0)
