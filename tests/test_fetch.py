"""What a benchmark needs from elsewhere, where it goes, and that jobs look exactly there."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ltbench import caches, needs, spec
from ltbench.errors import EnvironmentProblem
from ltbench.extractors import extractor_problem, hub_folders, torch_hub
from ltbench.spec.cells import expand
from tests import cli_world
from tests.file_server import Behaviour, serving

cli, here = cli_world.cli, cli_world.here  # fixtures
CONTENT = hashlib.shake_128(b"weights").digest(2 << 20)
SPEC = cli_world.SPEC.replace("protocol: small-data", "protocol: small-data, extractor: inception-2015-12-05")


@pytest.fixture(autouse=True)
def fresh(monkeypatch, tmp_path):
    """No caches of whoever runs the tests."""
    names = ("HF_HUB_CACHE", "LTBENCH_WEIGHTS", "LTBENCH_DATA", "XDG_CACHE_HOME", *caches.OFFLINE)
    for name in (*caches.PLACES, caches.MARK, *names, "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))


@pytest.fixture
def weights(monkeypatch):
    """Small stand-ins for the Inception weights: their address and hash, wherever these are asked for."""
    sha = hashlib.sha256(CONTENT).hexdigest()[:8]  # as many digits as are known of the real ones
    for module in ("ltbench.extractors", "ltbench.metrics.naming"):
        monkeypatch.setattr(f"{module}.INCEPTION_SHA256", sha)
    monkeypatch.setattr("ltbench.extractors.PACKAGES", {})
    with serving(how := Behaviour(CONTENT)) as url:
        monkeypatch.setattr("ltbench.needs.INCEPTION_URL", url)
        yield how


# -- places -----------------------------------------------------------------------------------------------------------


def test_libraries_look_where_we_say(tmp_path):
    """The libraries' own words, in a process with the environment of a job."""
    script = """
import json, huggingface_hub.constants as hub, matplotlib, torch.hub
from torch._inductor.runtime.cache_dir_utils import cache_dir
offline = bool(hub.HF_HUB_OFFLINE)
print(json.dumps([hub.HF_HUB_CACHE, torch.hub.get_dir(), matplotlib.get_configdir(), cache_dir(), offline]))
"""
    home = {key: value for key, value in os.environ.items() if key not in caches.PLACES}
    env = {**home, **caches.environment(tmp_path / "scratch", offline=True)}
    told = subprocess.run([sys.executable, "-c", script], env=env, capture_output=True, text=True, check=True)
    hub, torch_home, mpl, inductor, offline = json.loads(told.stdout)
    root = tmp_path / "scratch" / "caches"
    assert hub == str(root / "huggingface" / "hub")
    assert torch_home == str(root / "torch" / "hub")
    assert mpl.startswith(str(root / "matplotlib"))
    assert inductor == str(root / "inductor")
    assert offline is True


def test_fetch_and_jobs_mean_the_same_places(tmp_path, monkeypatch):
    for name, value in caches.environment(tmp_path / "scratch").items():
        monkeypatch.setenv(name, value)
    assert torch_hub() == tmp_path / "scratch" / "caches" / "torch" / "hub"
    assert next(iter(hub_folders("timm/x"))).is_relative_to(tmp_path / "scratch/caches/huggingface/hub")


def test_what_a_user_has_set_stays_and_what_they_have_is_linked(tmp_path, monkeypatch):
    model = tmp_path / "home/.cache/huggingface/hub/models--timm--x"
    (model / "refs").mkdir(parents=True)
    (model / "refs/main").write_text("abc")
    (model / "snapshots/abc").mkdir(parents=True)
    (model / "snapshots/abc/model.safetensors").write_bytes(b"w")
    caches.use(tmp_path / "scratch")
    found = next(iter(hub_folders("timm/x"))) / "model.safetensors"
    assert found.is_relative_to(tmp_path / "scratch")
    assert found.read_bytes() == b"w"
    caches.use(tmp_path / "scratch")  # again is nothing
    caches.use(tmp_path / "other")
    assert os.environ["HF_HOME"] == str(tmp_path / "other/caches/huggingface"), "ours move along"
    for name in (*caches.PLACES, caches.MARK):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "mine"))
    caches.use(tmp_path / "scratch")
    assert os.environ["HF_HOME"] == str(tmp_path / "mine")
    assert "HF_HOME" not in caches.environment(tmp_path / "scratch")


# -- fetch ------------------------------------------------------------------------------------------------------------


def test_fetch_brings_weights_and_then_nothing_is_missing(cli, here, weights):
    (here / "little.yaml").write_text(SPEC)
    code, out, _ = cli("fetch", "little.yaml", "--dry-run", "--json")
    assert code == 0
    (row,) = json.loads(out)
    assert (row["present"], row["fetchable"], row["licence"]) == (False, True, "Apache-2.0")
    assert weights.asked == [], "a dry run asks nobody"
    assert not (here / "scratch" / "caches").exists()
    cells = expand(spec.load(here / "little.yaml"))
    ((what, command),) = needs.missing_assets(cells, "little")
    assert "inception-2015-12-05" in what
    assert command == "python harness.py fetch little"
    code, out, err = cli("fetch", "little.yaml")
    assert code == 0, err
    assert "here" in out
    assert len(weights.asked) == 1
    assert Path(row["place"]).read_bytes() == CONTENT
    assert extractor_problem("inception-2015-12-05") is None, "where it was put is where it is looked for"
    assert needs.missing_assets(cells) == []
    assert cli("fetch", "little.yaml")[0] == 0
    assert len(weights.asked) == 1


def test_fetch_with_a_profile_brings_things_to_where_its_jobs_look(cli, here, weights, monkeypatch):
    for name in ("LTBENCH_SCRATCH", "LTBENCH_WEIGHTS"):
        monkeypatch.delenv(name, raising=False)
    (here / "little.yaml").write_text(SPEC)
    (here / "mine.yaml").write_text(f"gpus: 0\nscratch: {here}/far\n")
    code, out, err = cli("fetch", "little.yaml", "--profile", "mine.yaml", "--json")
    assert code == 0, err
    (row,) = json.loads(out)
    assert Path(row["place"]).is_relative_to(here / "far")
    assert Path(row["place"]).read_bytes() == CONTENT


def test_a_download_that_breaks_off_is_resumed(cli, here, weights, monkeypatch):
    monkeypatch.setattr("ltbench.download.PAUSES", ())
    (here / "little.yaml").write_text(SPEC)
    weights.cuts = [1 << 20]
    cli("fetch", "little.yaml")
    code, _, err = cli("fetch", "little.yaml")
    assert code == 0, err
    assert weights.asked[-1] == f"bytes={1 << 20}-"


def test_other_bytes_are_refused(cli, here, weights):
    (here / "little.yaml").write_text(SPEC)
    weights.content = CONTENT[:-1] + b"x"
    code, out, err = cli("fetch", "little.yaml")
    assert code == EnvironmentProblem.exit_code
    assert "sha256" in err
    assert "missing" in out


def test_what_needs_a_registration_is_named_and_left(cli, here):
    text = cli_world.SPEC.replace("name: fashion_mnist", "name: imagenet_lt").replace(
        "resolution: 16", "resolution: 64"
    )
    (here / "little.yaml").write_text(
        text.replace("small-data", "small-data, extractor: lite0, labels: uniform").replace(
            "samples: 50", "samples: 5000"
        )
    )
    code, out, _ = cli("fetch", "little.yaml", "--dry-run")
    assert code == 0
    assert "ILSVRC2012_img_train.tar" in out
    assert "by hand" in out
    code, _, err = cli("fetch", "little.yaml")
    assert code == EnvironmentProblem.exit_code, err


def test_every_kind_of_need_is_known_without_torch(tmp_path, monkeypatch):
    """An encoder among a method's parameters, a VAE, an extractor of timm."""
    text = """
name: kinds
title: "kinds"
dataset: {name: folder, folder: pictures, resolution: 64, latents: sd-vae-ft-mse}
pipeline: sit
network: SiT-N/2
train: {batch: 8, milestones: [10]}
evaluate: [{protocol: small-data, extractor: "timm:resnet18.a1_in1k#12345678", sampler: euler, steps: 5, guidance: 1.5, samples: 51, block: 51}]
grid: {method: [{name: repa, encoder: "timm:vit_base_patch14_dinov2.lvd142m"}], seed: 0}
"""
    folder = tmp_path / "pictures"
    monkeypatch.setenv("LTBENCH_DATA", str(tmp_path))
    from PIL import Image

    for name in ("a", "b", "c"):
        (folder / name).mkdir(parents=True)
        for k in range(70):
            Image.new("RGB", (64, 64), (k, 0, 0)).save(folder / name / f"{k}.png")
    (tmp_path / "kinds.yaml").write_text(text)
    found = {need.what: need for need in needs.needs(expand(spec.load(tmp_path / "kinds.yaml")))}
    encoder = found["encoder timm:vit_base_patch14_dinov2.lvd142m"]
    assert encoder.source == needs.Hub("timm/vit_base_patch14_dinov2.lvd142m", ("model.safetensors",))
    assert found["extractor timm:resnet18.a1_in1k#12345678"].fetchable
    vae = found["VAE sd-vae-ft-mse"]
    assert (vae.bytes, vae.licence) == (334_643_276, "MIT")
    assert vae.source == needs.Hub(
        "stabilityai/sd-vae-ft-mse", ("config.json", "diffusion_pytorch_model.safetensors")
    )
    assert len(found) == 3


def test_the_address_of_the_inception_weights_is_torch_fidelitys():
    fidelity = pytest.importorskip("torch_fidelity.feature_extractor_inceptionv3")
    assert needs.INCEPTION_URL == fidelity.URL_INCEPTION_V3
