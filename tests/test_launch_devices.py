"""How many workers on what, by what the system says."""

from __future__ import annotations

import os
import stat

import pytest

from ltbench.errors import EnvironmentProblem, UsageError
from ltbench.launch import devices

TWO_CARDS = """GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-aaaa-1)
GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-bbbb-2)
"""
SLICED = """GPU 0: NVIDIA H100 80GB HBM3 (UUID: GPU-aaaa-1)
  MIG 3g.40gb     Device  0: (UUID: MIG-1111)
  MIG 3g.40gb     Device  1: (UUID: MIG-2222)
GPU 1: NVIDIA H100 80GB HBM3 (UUID: GPU-bbbb-2)
"""


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine with this nvidia-smi (None: without), these cores and this container quota."""

    def make(listing, cores=8, quota="max 100000", fails=False):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        monkeypatch.setenv("PATH", str(tmp_path))
        monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(cores)), raising=False)
        limit = tmp_path / "cpu.max"
        limit.write_text(quota)
        monkeypatch.setattr(devices, "CGROUP_QUOTA", limit)
        if listing is not None:
            tool = tmp_path / "nvidia-smi"
            tool.write_text(f"#!/bin/sh\n/bin/cat <<'E'\n{listing}E\nexit {int(fails)}\n")
            tool.chmod(tool.stat().st_mode | stat.S_IXUSR)

    return make


def seats(cells=10, workers=None, threads=None, device=None):
    return devices.seats(cells, workers=workers, threads=threads, device=device)


def test_without_gpus_cores_are_shared_evenly(machine):
    machine(None, cores=8)
    assert seats(cells=10) == devices.Seats((None,) * 8, 1)
    assert seats(cells=3) == devices.Seats((None,) * 3, 2)
    assert seats(cells=3, workers=5) == devices.Seats((None,) * 5, 1)
    assert seats(workers=2, threads=7).threads == 7


def test_a_containers_quota_cuts_the_cores(machine):
    machine(None, cores=64, quota="200000 100000")
    assert seats().workers == 2


def test_one_worker_per_gpu_or_slice(machine):
    machine(TWO_CARDS)
    assert seats() == devices.Seats(("GPU-aaaa-1", "GPU-bbbb-2"), 4)
    assert seats(workers=3).devices == ("GPU-aaaa-1", "GPU-bbbb-2", "GPU-aaaa-1")
    assert seats(device="cpu").devices == ("",) * 8, "told to stay off the GPUs"
    machine(SLICED)
    assert devices.gpus() == ["MIG-1111", "MIG-2222", "GPU-bbbb-2"]


def test_a_broken_driver_is_no_gpu(machine):
    machine("NVIDIA-SMI has failed because it couldn't communicate with the driver\n", fails=True)
    assert devices.gpus() == []


@pytest.mark.parametrize(
    ("value", "found"),
    [("0,2", ["0", "2"]), ("", []), ("-1", []), ("GPU-x, 1", ["GPU-x", "1"]), ("0,-1,1", ["0"])],
)
def test_cuda_visible_devices_is_obeyed(machine, monkeypatch, value, found):
    machine(TWO_CARDS)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", value)
    assert devices.gpus() == found


def test_what_cannot_be_is_refused(machine):
    machine(None)
    with pytest.raises(EnvironmentProblem, match="no GPU is visible"):
        seats(device="cuda")
    for wrong in ({"workers": 0}, {"threads": -1}, {"device": "tpu"}):
        with pytest.raises(UsageError):
            seats(**wrong)
