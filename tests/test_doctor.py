"""`doctor`: what it finds on machines and clusters that have a fault, and on those that have none."""

from __future__ import annotations

import json
import os
import re
import tomllib
from collections import namedtuple

import pytest

from ltbench import profiles
from ltbench.doctor import cluster, filesystem, machine
from ltbench.doctor.findings import Said
from tests import cli_world
from tests.cli_world import ROOT

cli, here, run = cli_world.cli, cli_world.here, cli_world.run  # fixtures

# Recorded of Slurm 22.05.8, shortened.
CONFIG = """Configuration data as of 2026-11-24T19:55:43
AccountingStorageType   = accounting_storage/none
ClusterName             = test
JobRequeue              = 1
KillWait                = {kill} sec
MaxArraySize            = 1001
MaxJobCount             = 10000
MinJobAge               = 300 sec
PreemptMode             = REQUEUE
PreemptType             = preempt/partition_prio
SchedulerParameters     = (null)
SlurmctldParameters     = {parameters}
SLURM_VERSION           = 22.05.8
"""
PARTITIONS = (
    "PartitionName=low AllowGroups=ALL AllowAccounts=ALL AllowQos=ALL Default=YES GraceTime=60 MaxTime=1-00:00:00 Nodes=n[0-1] "
    "PreemptMode=REQUEUE State=UP TotalCPUs=8\n"
    "PartitionName=high AllowAccounts=vip AllowQos=ALL Default=NO GraceTime=0 MaxTime=UNLIMITED PreemptMode=OFF State=UP\n"
)
NODES = "NodeName=n0 CPUTot=8 AvailableFeatures=ib,big Gres=gpu:a100:4(S:0-1),gpu:v100:2 RealMemory=64000 Partitions=low,high \n"


@pytest.fixture
def cluster_at(here, monkeypatch):
    """A pretend cluster: `cluster_at(kill=5)` sets what scontrol says; sacct is disabled, sbatch takes everything."""
    folder = here / "bin"
    folder.mkdir()
    monkeypatch.setenv("PATH", f"{folder}:/usr/bin:/bin")

    def tool(name, text, code=0, *, to=1):
        (folder / name).write_text(f"#!/bin/sh\ncat >&{to} <<'E'\n{text}\nE\nexit {code}\n")
        (folder / name).chmod(0o755)

    def put(kill=30, parameters="preempt_send_user_signal"):
        tool("sacct", "Slurm accounting storage is disabled", 1, to=2)
        tool("sacctmgr", "You are not running a supported accounting_storage plugin", 1, to=2)
        tool("sbatch", "sbatch: Job 1 to start at 2026-11-24T19:55:43 using 1 processors on nodes n0", to=2)
        for name in ("squeue", "scancel", "srun"):
            tool(name, "")
        answers = {
            "config": CONFIG.format(kill=kill, parameters=parameters),
            "partition": PARTITIONS,
            "node": NODES,
        }
        cases = "".join(f"*{key}*) cat <<'E'\n{text}\nE\n;;\n" for key, text in answers.items())
        (folder / "scontrol").write_text(f'#!/bin/sh\ncase "$*" in\n{cases}esac\n')
        (folder / "scontrol").chmod(0o755)

    put.tool = tool
    put()
    return put


def profile(**keys):
    return profiles.Profile.model_validate({"purge_days": 90, "time": 600, **keys})


def found(**keys):
    return [(each.topic, each.level, each.message) for each in cluster.examine(profile(**keys))]


def bad(**keys):
    return [line for line in found(**keys) if line[1] == "will fail"]


def test_a_good_profile_has_no_failure(cluster_at):
    assert bad(partition="low", gpu_type="a100", gpus=4, cpus_per_gpu=2, constraint="ib") == []
    assert ("accounting", "warning") in [line[:2] for line in found()]


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"partition": "lwo"}, "no partition 'lwo'"),
        ({"time": 2000}, "2000 minutes, partition low allows 1440"),
        ({"gpu_type": "h100"}, "no node of low has GPUs of type h100"),
        ({"gpu_type": "v100", "gpus": 3}, "no node of low has 3 GPUs"),
        ({"gpus": 7}, "no node of low has 7 GPUs"),
        ({"cpus_per_gpu": 16}, "16 cores"),
        ({"memory_per_gpu_gb": 100}, "100 GB"),
        ({"constraint": "infiniband"}, "features ib,big"),
        ({"partition": "high", "account": "mine"}, "partition high does not take mine"),
        ({"max_array_size": 5000}, "the cluster's is 1001"),
        ({"scratch": "/nowhere/at/all"}, "/nowhere/at/all (profile) is not there"),
    ],
)
def test_what_a_cluster_does_not_have_will_fail(cluster_at, keys, words):
    assert any(words in message for _, _, message in bad(**keys)), bad(**keys)


def test_preemption_without_a_warning_or_without_time_is_said(cluster_at):
    said = [line for line in found() if line[0] == "preemption"]
    assert [level for _, level, _ in said] == ["ok"]
    cluster_at(kill=5, parameters="(null)")
    said = [line for line in found() if line[0] == "preemption"]
    assert [level for _, level, _ in said] == ["warning"]
    assert "no warning signal" in said[0][2]


def test_what_sbatch_refuses_will_fail(cluster_at):
    cluster_at.tool(
        "sbatch", "sbatch: error: invalid partition\nallocation failure: Invalid account", 1, to=2
    )
    assert any("Invalid account" in message for _, _, message in bad())


def test_accounts_that_accounting_does_not_know_will_fail(cluster_at):
    cluster_at.tool("sacctmgr", "one|normal,long|200\ntwo|normal|")
    assert any("no account 'three'" in message for _, _, message in bad(account="three"))
    assert any("may not use qos 'urgent'" in message for _, _, message in bad(qos="urgent"))
    assert bad(account="two") == []


def test_a_controller_that_does_not_answer_is_one_failure(cluster_at, monkeypatch):
    cluster_at.tool("scontrol", "slurm_load_ctl_conf error: Unable to contact slurm controller", 1, to=2)
    assert [topic for topic, _, _ in bad()] == ["slurm"]
    monkeypatch.setenv("PATH", "/nowhere")
    assert "not found" in bad()[0][2]


@pytest.mark.parametrize(
    ("text", "minutes"),
    [
        ("UNLIMITED", cluster.UNLIMITED),
        ("1-00:00:00", 1440),
        ("2-12", 3600),
        ("12:30:00", 750),
        ("30:00", 30),
        ("45", 45),
        ("NONE", None),
    ],
)
def test_times_of_slurm(text, minutes):
    assert cluster._minutes(text) == minutes


def test_gpus_of_a_node():
    assert cluster.gpus({"Gres": "gpu:a100:4(S:0-1),gpu:v100:2,fpga:1"}) == {"a100": 4, "v100": 2}
    assert cluster.gpus({"Gres": "gpu:2"}) == {"": 2}
    assert cluster.gpus({"Gres": "(null)"}) == {}


# --- the machine --------------------------------------------------------------------------------------------------------


def test_bounds_are_those_of_the_project():
    text = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert dict(re.fullmatch(r"([\w-]+)>=([\d.]+)", line).groups() for line in text) == machine.NEEDED


def test_a_torch_that_does_not_load_will_fail(monkeypatch):
    monkeypatch.setattr(machine, "TORCH", "raise ImportError('libcudart.so.12: cannot open')")
    (finding,) = machine.torch()
    assert finding.level == "will fail"
    assert "libcudart" in finding.message


def test_a_full_disk_and_a_quota_are_seen(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(filesystem.shutil, "disk_usage", lambda place: usage(1, 1, 1000))
    assert next(filesystem.room("store", tmp_path)).level == "will fail"
    answer = Said(0, f"     {tmp_path} 95000000 100000000 110000000       -  1000  0 900000 -\n", "")
    monkeypatch.setattr(filesystem, "call", lambda words, seconds: answer)
    first, second = filesystem.quota("scratch", tmp_path)
    assert (first.level, second.level) == ("warning", "ok")
    assert "91 GiB of 95 GiB" in first.message


def test_a_file_system_that_breaks_a_promise_will_fail(tmp_path, monkeypatch):
    assert {each.level for each in filesystem.promises("store", tmp_path)} == {"ok"}
    assert list(tmp_path.iterdir()) == []
    monkeypatch.setattr(filesystem, "_exclusive", lambda place: False)
    assert (
        "two processes"
        in next(e for e in filesystem.promises("store", tmp_path) if e.level == "will fail").message
    )
    monkeypatch.setattr("ltbench.files.folders.link_or_none", lambda *paths: None)
    assert any("no hard links" in each.message for each in filesystem.promises("store", tmp_path))


def test_doctor_is_json_and_writes_nothing(cli, here, cluster_at, monkeypatch):
    monkeypatch.setattr(
        machine,
        "TORCH",
        'print(\'{"version": "2", "cuda": null, "available": false, "threads": 1, "cards": []}\')',
    )
    monkeypatch.setattr(
        "ltbench.cli.doctoring._plugin_problems", lambda: {"methods": {"mine": "SyntaxError: line 3"}}
    )
    (here / "mine.yaml").write_text("partition: nope\n")
    before = sorted(os.listdir(here))
    code, out, _ = cli("doctor", "--profile", "mine.yaml", "--json")
    told = json.loads(out)
    assert code == 4
    assert told["counts"]["will fail"] >= 1
    assert all(each["remedy"] for each in told["findings"] if each["level"] != "ok")
    assert any("mine does not load: SyntaxError" in each["message"] for each in told["findings"])
    assert sorted(os.listdir(here)) == before
    code, out, _ = cli("doctor")
    assert code == 0
    assert "-> " in out
    assert cli("doctor", "--probe")[0] == 2
