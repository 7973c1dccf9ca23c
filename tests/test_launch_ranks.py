"""Several workers that run one stage: who counts, who is ended, and what else goes on."""

from __future__ import annotations

import pytest

from ltbench import spec
from ltbench.errors import EnvironmentProblem, UsageError
from ltbench.launch import devices
from ltbench.spec.cells import expand
from ltbench.store import Store
from tests import cli_world, test_launch
from tests.cli_world import ROOT, SPEC
from tests.test_launch import only

cli, here, launch = cli_world.cli, cli_world.here, test_launch.launch  # fixtures


def test_ranks_are_told_who_they_are_and_end_as_one_stage(launch, tmp_path):
    run = launch("rank-ok", "rank-ok-2", ranks=2)
    assert {o.outcome for o in run.outcomes} == {"done"}
    assert len(run.outcomes) == 2
    first, second = ((tmp_path / f"rank-ok.{rank}").read_text() for rank in (0, 1))
    assert first == second
    assert first.endswith(" of 2")
    steps = [event["step"] for event in run.notes.events if event["type"] == "progress"]
    assert steps == [1, 2, 3] * 2, "the leader alone is heard"


@pytest.mark.parametrize(
    ("what", "cause", "says"),
    [("kill", "killed", "rank 1 was killed by SIGKILL"), ("exit", "plugin", "rank 1 exited with code 5")],
)
def test_a_rank_that_dies_ends_the_others_with_its_cause(launch, monkeypatch, what, cause, says):
    monkeypatch.setattr("ltbench.launch.team.GRACE", 0.5)
    run = launch(f"rank-{what}", "ok", ranks=2)
    bad = run.ends["rank-" + what, "train:3"]
    assert (bad.outcome, bad.cause) == ("failed", cause)
    assert bad.message.startswith(says)
    assert bad.seconds < 300, "nobody waits for the others for ever"
    assert run.ends["ok", "train:3"].outcome == "done"
    ((job, failure),) = run.recorded
    assert (job.cell, failure["cause"]) == (f"rank-{what}", cause)


def test_the_rank_that_failed_by_itself_is_the_cause_and_not_who_noticed(launch):
    run = launch("peer", ranks=2)
    assert (only(run).cause, only(run).message) == ("oom", "too large")
    assert run.recorded == [], "it has written the failure itself"


def test_evaluations_go_to_every_worker_of_a_seat(launch):
    stages = ("train:3", *(f"evaluate:3:{k:012d}" for k in range(4)))
    run = launch("ok", ranks=2, stages=stages, options={"pause": 0.05})
    assert {o.outcome for o in run.outcomes} == {"done"}
    assert len(run.outcomes) == 5
    assert len({line["pid"] for line in run.diary if line["stage"].startswith("evaluate")}) == 2


def test_seats_of_several_ranks_take_neighbouring_devices(monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6,7,8")
    asked = {"workers": None, "threads": 1, "device": None}
    assert devices.seats(9, ranks=2, **asked) == devices.Seats(("4", "5", "6", "7"), 1, 2)
    assert devices.seats(1, ranks=4, **asked) == devices.Seats(("4", "5", "6", "7"), 1, 4)
    with pytest.raises(EnvironmentProblem, match="--ranks 6: 5 GPUs are visible"):
        devices.seats(9, ranks=6, **asked)
    with pytest.raises(UsageError, match="--ranks is 0"):
        devices.check(None, None, None, 0)


def test_on_cpu_the_threads_are_shared_by_all_processes(monkeypatch):
    monkeypatch.setattr(devices, "cores", lambda: 8)
    found = devices.seats(1, workers=None, threads=None, device="cpu", ranks=4)
    assert found == devices.Seats(("",) * 4, 2, 4)


def test_run_trains_a_real_cell_with_two_ranks(cli, here, monkeypatch):
    """The whole way: command line, driver, two workers, gloo, records; and numbers that cannot share a batch are refused."""
    spec_file = here / "pair.yaml"
    spec_file.write_text(
        SPEC.replace("[20, 40]", "[4]").replace("batch: 32", "batch: 32, local_batch: 8")
        .replace("[sit, ccua]", "[ccua]").replace("[0, 1]", "[0]").replace("name: little", "name: pair")
    )  # fmt: skip
    code, _, err = cli("run", "pair.yaml", "--ranks", 3, "--device", "cpu")
    assert code == 2
    assert "allowed here: 1, 2, 4" in err
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    for name in ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS"):
        monkeypatch.setenv(name, "7")  # of an allocation that we are started in
    code, _, err = cli("run", "pair.yaml", "--ranks", 2, "--workers", 1, "--device", "cpu")
    assert code == 0, err
    assert "2 train a cell together" in err
    (cell,) = expand(spec.load(spec_file))
    (run,) = Store.open(here / "store", here / "scratch").runs(cell.id)
    assert [record.envelope["ranks"] for record in run.records()] == [1, 2]  # evaluation, train
