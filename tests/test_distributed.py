"""Two ranks equal one process of the same global batch: for every method in methods/, in gradients, weights and curve."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from ltbench.distributed import Ranks, World, from_environment
from ltbench.errors import UsageError
from tests.rank_jobs import CASES, CROSSED, all_methods, all_trained, in_ranks

SRUN = {"SLURM_PROCID": "1", "SLURM_LOCALID": "1", "SLURM_NTASKS": "4", "SLURM_JOB_ID": "77"}
TORCHRUN = {
    "RANK": "2",
    "LOCAL_RANK": "2",
    "WORLD_SIZE": "4",
    "MASTER_ADDR": "localhost",
    "MASTER_PORT": "4321",
}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two ranks found, for all methods."""
    return in_ranks(tmp_path_factory.mktemp("pair"), all_methods)


@pytest.fixture(scope="module")
def alone() -> dict[str, Any]:
    return all_trained(Ranks())


NAMES = [f"{name}/{pipeline}" for name, pipeline in CASES]
NAMES += [f"{name}/{pipeline}/crossed" for name, pipeline in CROSSED]
every = pytest.mark.parametrize("case", NAMES)


@every
def test_two_ranks_equal_one_process(case: str, pair: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    """Up to the order of float32 sums: gradients to 1e-6 of the largest, weights to a thirtieth of what Adam moves them."""
    one, two = alone[case], pair[0][case]
    if one is None:
        assert two is None
        pytest.skip("the method does not support this pipeline")
    assert one["gradients"].keys() == two["gradients"].keys()
    largest = max(float(value.abs().max()) for value in one["gradients"].values())
    for name, value in one["gradients"].items():
        assert float((two["gradients"][name] - value).abs().max()) <= 1e-6 * largest, name
    for file in ("model", "ema"):
        for name, value in one[file].items():
            torch.testing.assert_close(two[file][name], value, rtol=0, atol=1e-4)
    assert len(one["points"]) == len(two["points"])
    for ours, theirs in zip(one["points"], two["points"], strict=True):
        assert ours["terms"].keys() == theirs["terms"].keys()
        for name, value in ours["terms"].items():
            assert theirs["terms"][name] == (
                value if value is None else pytest.approx(value, rel=1e-4, abs=1e-7)
            )
        assert theirs["grad_norm"] == pytest.approx(ours["grad_norm"], rel=1e-4)


@every
def test_ranks_stay_bitwise_equal(case: str, pair: list[dict[str, Any]]) -> None:
    """Network, a method's own parameters, EMA, optimiser, and what is logged."""
    left, right = pair[0][case], pair[1][case]
    if left is None:
        pytest.skip("the method does not support this pipeline")
    for file in ("gradients", "model", "ema", "optim"):
        assert left[file].keys() == right[file].keys()
        assert not [name for name, value in left[file].items() if not torch.equal(value, right[file][name])]
    assert left["points"] == right["points"]


def test_the_environment_of_srun_and_torchrun_names_the_rank() -> None:
    assert from_environment({}) is None
    assert from_environment({**SRUN, "SLURM_NTASKS": "1", "SLURM_PROCID": "0", "SLURM_LOCALID": "0"}) is None
    assert from_environment(TORCHRUN) == World(2, 4, "localhost", 4321)
    found = from_environment(SRUN)
    assert found is not None
    assert (found.rank, found.size, found.address) == (1, 4, "127.0.0.1")
    assert from_environment({**SRUN, "SLURM_PROCID": "3", "SLURM_LOCALID": "3"}) == World(
        3, 4, "127.0.0.1", found.port
    )
    # A worker of ours says so itself, whatever SLURM allocation it was started in.
    assert from_environment({**SRUN, "RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1"}) is None


@pytest.mark.parametrize(
    ("env", "says"),
    [
        ({**SRUN, "SLURM_LOCALID": "0"}, "one node only"),
        ({**SRUN, "SLURM_NNODES": "2"}, "one node only"),
        ({**TORCHRUN, "LOCAL_WORLD_SIZE": "2"}, "one node only"),
        ({**TORCHRUN, "RANK": "7", "LOCAL_RANK": "7"}, "no rank of WORLD_SIZE=4"),
        ({**TORCHRUN, "RANK": "first"}, "RANK is 'first'"),
        ({"WORLD_SIZE": "4", "RANK": "0"}, "LOCAL_RANK is not set"),
    ],
)
def test_a_place_that_cannot_be_is_refused(env: dict[str, str], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        from_environment(env)


def test_local_batches_are_shared_evenly_or_not_at_all() -> None:
    ranks = Ranks()
    ranks.rank, ranks.size = 1, 2
    assert ranks.shards(4) == range(2, 4)
    ranks.size = 3
    with pytest.raises(UsageError, match=r"3 ranks cannot share 4 local batches.*\n?.*1, 2, 4"):
        ranks.shards(4)
