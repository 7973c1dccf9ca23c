"""`extractors`: what can print FID here, as a person asks for it; and that a run asks before it starts."""

from __future__ import annotations

import hashlib
import json

import pytest

from ltbench import extractors
from tests import cli_world

cli, here = cli_world.cli, cli_world.here  # fixtures
NAME = "inception-2015-12-05"


@pytest.fixture(autouse=True)
def _no_weights(monkeypatch, tmp_path):
    monkeypatch.delenv("LTBENCH_WEIGHTS", raising=False)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))


def test_the_list_says_who_prints_fid_and_who_is_here(cli):
    code, out, _ = cli("extractors")
    lines = {line.split()[0]: line for line in out.splitlines() if line[:1].isalpha()}
    assert code == 0
    assert lines["fashion-cnn-v1"].split()[1:] == [
        "FD[fashion-cnn-v1@d0f6190f]",
        "fashion",
        "64",
        "64",
        "10",
        "d0f6190f",
        "MIT",
        "yes",
    ]
    assert lines[NAME].split()[1:] == [
        "FID",
        "inception",
        "2048",
        "2023",
        "1008",
        "6726825d",
        "Apache-2.0",
        "no",
    ]
    assert " FID (torch resize) " in lines[f"{NAME}-torch"]
    assert "--download" in out
    code, out, _ = cli("extractors", "--json")
    found = {one["name"]: one for one in json.loads(out)}
    assert code == 0
    assert found[NAME]["prints"] == "FID"
    assert found[NAME]["file"] is None
    assert found["digits-cnn-v1"]["problem"] is None
    assert [name for name, one in found.items() if one["prints"].startswith("FID")] == [NAME, f"{NAME}-torch"]


def test_one_that_is_not_here_is_exit_code_4_with_its_places(cli, tmp_path):
    code, out, _ = cli("extractors", NAME)
    assert code == 4
    assert str(tmp_path / "torch" / "hub" / "checkpoints" / extractors.INCEPTION_FILES[0]) in out
    assert f"python harness.py extractors {NAME} --download" in out
    assert cli("extractors", "fashion-cnn-v1")[0] == 0


def test_a_file_is_checked_before_anything_uses_it(cli, monkeypatch, tmp_path):
    file = tmp_path / "w.pth"
    file.write_bytes(b"not the network")
    code, out, _ = cli("extractors", f"{NAME}@{file}")
    assert code == 4
    assert "sha256 is " in out
    assert "prints   nothing as it stands" in out
    monkeypatch.setattr(extractors, "INCEPTION_SHA256", hashlib.sha256(b"not the network").hexdigest()[:8])
    code, out, _ = cli("extractors", f"{NAME}@{file}", "--json")
    assert (code, json.loads(out)["file"]) == (0, str(file))


def test_a_timm_model_is_shown_by_name(cli, monkeypatch, tmp_path):
    monkeypatch.setenv("LTBENCH_WEIGHTS", str(tmp_path))
    file = tmp_path / "vit_small_patch14_dinov2.lvd142m.safetensors"
    file.write_bytes(b"weights")
    sha8 = hashlib.sha256(b"weights").hexdigest()[:8]
    code, out, _ = cli("extractors", "timm:vit_small_patch14_dinov2.lvd142m", "--json")
    found = json.loads(out)
    assert (code, found["family"], found["sha256"][:8]) == (0, "dinov2", sha8)
    assert found["prints"] == f"FD[timm:vit_small_patch14_dinov2.lvd142m@{sha8}]"


def test_bad_words_are_usage_errors(cli):
    code, _, err = cli("extractors", "fid")
    assert code == 2
    assert "unknown extractor 'fid'" in err
    code, _, err = cli("extractors", "--download")
    assert code == 2
    code, _, err = cli("extractors", "lite0@x.pth")
    assert code == 2
    assert "write lite0 alone" in err


def test_a_run_whose_extractor_is_not_here_does_not_start(cli, here, tmp_path):
    spec = (here / "little.yaml").read_text().replace("guidance: 1.5", f"guidance: 1.5, extractor: {NAME}")
    (here / "little.yaml").write_text(spec)
    code, out, err = cli("plan", "little.yaml", "--json")
    assert code == 0, err
    assert NAME in out
    code, _, err = cli("run", "little.yaml", "--job", "cli_jobs:run_job")
    assert code == 4
    assert "there are no weights here" in err
    assert f"extractors {NAME} --download" in err
    assert not list((tmp_path / "store").rglob("records/*"))
