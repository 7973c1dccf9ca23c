"""What the tests of the command line share: a spec, a store of its own, the program, a method to drop in."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path

import pytest

from ltbench import provenance
from ltbench.cli import main

TESTS = Path(__file__).parent
ROOT = TESTS.parent
SPEC = """
name: little
title: "A little benchmark"
dataset: {name: fashion_mnist, imbalance: 0.01, resolution: 16}
pipeline: sit
network: SiT-N/4
train: {batch: 32, milestones: [20, 40]}
evaluate: [{protocol: small-data, sampler: euler, steps: 10, guidance: 1.5, samples: 50, block: 50}]
grid:
  method: [sit, ccua]
  seed: [0, 1]
"""
MINE = '''
"""Twice the loss."""

from ltbench.methods import Method


class Mine(Method):
    """The plain loss, doubled."""

    def __init__(self, task, *, factor: float = 1.0) -> None:
        super().__init__(task)
        self.factor = factor

    def loss(self, net, draw):
        # a comment
        (out,) = self.run(net, draw, draw.y_in)
        return {"denoise": 2.0 * self.factor * (out.pred - draw.target).square().mean()}
'''


@pytest.fixture
def here(tmp_path, monkeypatch):
    """An empty directory with a spec and a store of its own, and the stand-in job within reach of workers."""
    monkeypatch.chdir(tmp_path)
    for name in ("LTBENCH_PLUGINS", "FAKE", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("LTBENCH_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("LTBENCH_SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(TESTS), str(TESTS.parent)]))
    monkeypatch.setenv("LTBENCH_ASK", "0")  # a child that imports torch, in every test
    (tmp_path / "little.yaml").write_text(SPEC)
    provenance.forget()
    return tmp_path


@pytest.fixture
def cli(here, monkeypatch, capfd):
    """Call the program in this process: (exit code, stdout, stderr)."""

    def call(*words):
        monkeypatch.setattr(sys, "argv", ["ltbench", *map(str, words)])
        code = main()
        out, err = capfd.readouterr()
        return code, out, err

    return call


@pytest.fixture
def run(cli):
    def go(*words):
        return cli("run", "little.yaml", "--job", "cli_jobs:run_job", *words)

    return go


def fake(monkeypatch, text):
    monkeypatch.setenv("FAKE", text)


def stages(err):
    """`done` lines of stderr as (cell, stage), but for the looks at real images that evaluations wait for."""
    return re.findall(r"done     (.+?), (?!look)(.+?) \(", err)
