"""From published archives to a table by the command line alone: prepare, encode, train, evaluate against streamed images, report."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from tests import cli_world, photo_files

cli, here = cli_world.cli, cli_world.here  # fixtures
PLUGIN = f'''
from ltbench.datasets.imagenet import ImageNet
from ltbench.datasets.longtail import profile
from ltbench.datasets.photos import Decoder


class LittleImagenet(ImageNet):
    """ImageNet's own files with four classes."""

    folders = words = {photo_files.SYNSETS}
    total, per_holdout = {4 * photo_files.PER_CLASS}, {photo_files.PER_HOLDOUT}

    def __init__(self, *, imbalance: float = 0.1, resolution: int = 64) -> None:
        self.imbalance = imbalance
        self._set_up(Decoder(resolution), imbalance=imbalance, resolution=resolution)

    def chosen(self, sizes):
        return profile(self.total / 4, 4, self.imbalance, sizes, True)
'''
SPEC = """
name: little
dataset: {name: little_imagenet, latents: tiny-vae}
pipeline: sit
network: SiT-N/2
train: {batch: 8, local_batch: 4, milestones: [2], lr: 1e-3, ema: 0.9}
evaluate: [{protocol: small-data, sampler: euler, steps: 2, guidance: 1.5, samples: 8, block: 8, metrics: [FD, KD]}]
grid: {method: [{name: repa, encoder: random, hidden: 16}], seed: 0}
"""


@pytest.mark.timeout(900)  # half a minute of work, in processes of their own on a machine that may be busy
def test_from_archives_to_a_table(here, monkeypatch):
    pytest.importorskip("diffusers")
    pytest.importorskip("efficientnet_lite_pytorch")
    away = here / "away"
    photo_files.imagenet_tars(away)
    (here / "plugins" / "datasets").mkdir(parents=True)
    (here / "plugins" / "datasets" / "little_imagenet.py").write_text(PLUGIN)
    (here / "spec.yaml").write_text(SPEC)
    monkeypatch.setenv("LTBENCH_PLUGINS", str(here / "plugins"))
    monkeypatch.setenv("LTBENCH_DATA", str(here / "data"))

    def ltbench(*words: str) -> tuple[int, str]:
        command = [sys.executable, str(cli_world.ROOT / "harness.py"), *words]
        done = subprocess.run(
            command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        return done.returncode, done.stdout + done.stderr

    code, said = ltbench("run", "spec.yaml")
    assert code == 4
    assert "ImageNet was not found" in said
    assert "datasets prepare --from PATH" in said
    (here / "data").mkdir()
    (here / "data" / "imagenet").symlink_to(away)
    told = "not prepared here; run: python harness.py datasets prepare little_imagenet\n"
    for verb in ("run", "plan", "fetch"):
        assert told in ltbench(verb, "spec.yaml")[1], verb
    (here / "data" / "imagenet").unlink()
    prepare = ("datasets", "prepare", "little_imagenet", "--workers", "1", "--from", str(away))
    code, said = ltbench(*prepare)
    assert code == 4
    assert "md5 is" in said, "the published sum"
    code, said = ltbench(*prepare, "--no-checksums")
    assert code == 0, said
    assert "20 training images in 4 classes" in said
    assert "needs nothing from elsewhere" in ltbench("fetch", "spec.yaml")[1]
    code, said = ltbench("run", "spec.yaml", "--workers", "1", "--threads", "1", "--report")
    assert code == 0, said
    table = (here / "reports" / "build" / "little" / "little.md").read_text()
    assert "FD\\[lite0@" in table
    assert "repa" in table
