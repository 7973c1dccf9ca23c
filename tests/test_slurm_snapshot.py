"""The copy of the code that a grid is submitted with: complete, itself, and deaf to what becomes of the checkout."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from ltbench import files, plugins
from ltbench.errors import EnvironmentProblem
from ltbench.launch.slurm import snapshot
from ltbench.provenance import surroundings

ROOT = Path(__file__).resolve().parents[1]
DROPPED = """
from ltbench.methods import Method


class {name}(Method):
    \"\"\"Dropped in.\"\"\"

    def loss(self, net, draw):
        (out,) = self.run(net, draw, draw.y_in)
        return {{"denoise": {factor} * out.pred.square().mean()}}
"""
# What a job finds: digests of all components of three methods, where their files lie, and the commit.
LOOK = """
import json, sys
from ltbench import plugins, provenance
from ltbench.provenance import surroundings
from ltbench.launch.slurm import snapshot
settings = {"dataset": {"name": "digits"}, "network": "SiT-N/4", "seed": 0}
code = {name: provenance.train_code({**settings, "method": {"name": name}}) for name in ("ccua", "single", "nested")}
found = {"code": code, "evaluation": provenance.evaluation_code(), "git": surroundings.git_state(),
         "from": provenance.__file__, "paths": {name: str(plugins.get("methods", name).path) for name in code}}
if len(sys.argv) > 1:
    place = snapshot.take(sys.argv[1])
    found |= {"place": str(place), "environment": snapshot.environment(place, sys.argv[1])}
print(json.dumps(found))
"""


def look(environment: dict[str, str], folder: Path, *words: object) -> dict[str, Any]:
    """What a process in `folder` with these variables sees, and with a scratch root what it takes a snapshot of."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("LTBENCH_")}
    done = subprocess.run(
        [sys.executable, "-P", "-c", LOOK, *map(str, words)],
        cwd=folder,
        env={**clean, **environment},
        capture_output=True,
        text=True,
        timeout=400,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """A checkout of its own with plugins of every shape, and the snapshot taken from it."""
    folder = tmp_path_factory.mktemp("snapshot")
    checkout = folder / "checkout"
    skip = shutil.ignore_patterns("__pycache__", "*.npz", "*.safetensors")
    for name in ("ltbench", "methods", "datasets", "benchmarks"):
        shutil.copytree(ROOT / name, checkout / name, ignore=skip)
    shutil.copy(ROOT / "harness.py", checkout)
    (folder / "single.py").write_text(DROPPED.format(name="Single", factor=2.0))
    (folder / "more" / "methods").mkdir(parents=True)
    (folder / "more" / "methods" / "nested.py").write_text(DROPPED.format(name="Nested", factor=3.0))
    (folder / "more" / "data").mkdir()
    (folder / "more" / "data" / "images.bin").write_bytes(b"0" * 1000)
    given = os.pathsep.join([str(folder / "single.py"), str(folder / "more")])
    submitter = {"PYTHONPATH": str(checkout), plugins.VARIABLE: given, "LTBENCH_DATA": "data"}
    return {
        "folder": folder,
        "checkout": checkout,
        "submitter": submitter,
        "before": look(submitter, folder, folder / "scratch"),
    }


def edit_everything(world: dict[str, Any]) -> None:
    """Change the engine, a method of the checkout and both dropped plugins, and remove one file."""
    checkout, folder = world["checkout"], world["folder"]
    for path in (checkout / "ltbench" / "trainer.py", checkout / "methods" / "ccua.py"):
        path.write_text(path.read_text() + "\n\ndef changed_since():\n    return 1\n")
    (folder / "single.py").write_text(DROPPED.format(name="Single", factor=20.0))
    (folder / "more" / "methods" / "nested.py").write_text(DROPPED.format(name="Nested", factor=30.0))
    (checkout / "ltbench" / "groups.py").unlink()


def test_a_job_runs_the_code_of_the_submission_whatever_the_checkout_has_become(
    world: dict[str, Any], tmp_path: Path
) -> None:
    before = world["before"]
    place = Path(before["place"])
    assert place.parent == world["folder"] / "scratch" / "snapshots"
    at_start = look(before["environment"], tmp_path)
    assert at_start["from"] == str(place / "ltbench" / "provenance" / "__init__.py")
    assert (at_start["code"], at_start["evaluation"]) == (before["code"], before["evaluation"])

    edit_everything(world)
    after = look(before["environment"], tmp_path)
    assert (after["code"], after["evaluation"]) == (before["code"], before["evaluation"])
    assert all(Path(path).is_relative_to(place) for path in after["paths"].values())
    (world["checkout"] / "ltbench" / "groups.py").write_text("")
    edited = look(world["submitter"], world["folder"])
    for name in ("ccua", "single", "nested"):
        assert edited["code"][name]["method"]["digest"] != before["code"][name]["method"]["digest"]

    again = look(world["submitter"], world["folder"], world["folder"] / "scratch")
    assert again["place"] != before["place"], "other code has another place"
    assert look(before["environment"], tmp_path)["code"] == before["code"]


def test_a_program_that_runs_from_a_snapshot_is_its_own(world: dict[str, Any], tmp_path: Path) -> None:
    environment = world["before"]["environment"]
    inside = look(environment, tmp_path, tmp_path / "elsewhere")
    assert inside["place"] == world["before"]["place"]
    assert inside["environment"]["PYTHONPATH"] == environment["PYTHONPATH"]
    assert inside["environment"][plugins.VARIABLE] == environment[plugins.VARIABLE]
    assert not (tmp_path / "elsewhere").exists()


def test_paths_are_absolute_and_data_beside_plugins_stays(world: dict[str, Any]) -> None:
    environment, place = world["before"]["environment"], Path(world["before"]["place"])
    assert environment["LTBENCH_DATA"] == str(world["folder"] / "data")
    assert environment["PYTHONPATH"].split(os.pathsep) == [str(place), str(world["checkout"])]
    assert not list(place.rglob("images.bin"))
    assert (place / "benchmarks" / "quickstart.yaml").is_file()
    assert (place / "harness.py").is_file()


def test_the_commit_is_that_of_the_submission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(plugins.VARIABLE, raising=False)
    read_git = surroundings.git_state.__wrapped__  # a job is a process of its own, with nothing cached
    git = {"commit": "c" * 40, "dirty": True, "remote": "https://host/team/repo"}
    monkeypatch.setattr(surroundings, "git_state", lambda: git)
    place = snapshot.take(tmp_path)
    assert snapshot.take(tmp_path) == place, "made once"
    with monkeypatch.context() as inside:
        inside.setattr(plugins, "PACKAGE", place / "ltbench")
        assert read_git() == git
    monkeypatch.setattr(surroundings, "git_state", lambda: {**git, "commit": "d" * 40})
    assert snapshot.take(tmp_path) != place, "equal code of another commit says its own"


def test_a_folder_of_data_is_no_plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "heap").mkdir()
    (tmp_path / "heap" / "weights.bin").write_bytes(b"0" * 5000)
    monkeypatch.setenv(plugins.VARIABLE, str(tmp_path / "heap"))
    monkeypatch.setattr(snapshot, "LIMIT", 4000)
    with pytest.raises(EnvironmentProblem, match="the code and its plugins are"):
        snapshot.take(tmp_path / "scratch")
    assert not (tmp_path / "scratch").exists()


def test_a_disk_that_refuses_leaves_nothing_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(plugins.VARIABLE, raising=False)
    written = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        if path.name == "trainer.py":
            raise OSError(28, "No space left on device")
        return written(path, data)

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(files.StorageProblem, match="cannot write"):
        snapshot.take(tmp_path)
    assert list((tmp_path / "snapshots").iterdir()) == []
