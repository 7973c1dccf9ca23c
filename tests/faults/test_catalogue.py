"""The catalogue tells the truth: every number, every test, and every guard is needed."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults import LONG
from tests.faults.__main__ import table
from tests.faults.catalogue import FAULTS, MUTANTS, NUMBERS, Mutant
from tests.test_layers import ROOT

TESTS = ROOT / "tests"
QUICK = (
    "ltbench.files.writing",
    "ltbench.files.reading",
    "ltbench.store.records",
    "ltbench.spec.yaml_io",
)  # no torch, no workers: a second each


def test_every_fault_is_there_once() -> None:
    numbers = [fault.number for fault in FAULTS]
    assert numbers == sorted(NUMBERS)


def test_every_test_exists_and_every_gap_is_said() -> None:
    for fault in FAULTS:
        assert fault.tests or fault.lacking, f"{fault.number} is shown nowhere and does not say so"
        for test in fault.tests:
            _require(test)
        assert bool(fault.tests) == bool(fault.guard), (
            f"{fault.number}: a test needs a guard, and a guard a test"
        )
    for mutant in MUTANTS:
        _require(mutant.test)
        assert mutant.faults in NUMBERS
        source = ROOT.joinpath(*mutant.module.split(".")).with_suffix(".py").read_text()
        assert source.count(mutant.old) == 1, (
            f"{mutant.name}: the guard is there {source.count(mutant.old)} times"
        )


def test_the_table_shows_every_fault() -> None:
    text = table()
    assert set(re.findall(r"^(F\d\d)  ", text, re.M)) == NUMBERS
    assert re.search(rf"{len(NUMBERS)} faults: \d+ shown, \d+ partly, \d+ not yet$", text)


def _chosen() -> list[Mutant]:
    if LONG:
        return list(MUTANTS)
    firsts = {mutant.module: mutant for mutant in reversed(MUTANTS) if mutant.module in QUICK}
    return list(firsts.values())


@pytest.mark.faults
@pytest.mark.parametrize("mutant", _chosen(), ids=lambda mutant: mutant.name)
def test_without_its_guard_its_test_fails(mutant: Mutant, tmp_path: Path) -> None:
    options = f"-q -x --no-header --timeout 60 -p no:cacheprovider -p tests.faults.mutant --basetemp={tmp_path / 'base'}"
    done = subprocess.run(
        [sys.executable, "-m", "pytest", *options.split(), f"tests/{mutant.test}"],
        cwd=ROOT,
        env={
            **os.environ,
            "LTBENCH_MUTANT": str(MUTANTS.index(mutant)),
            "PYTHONPATH": str(ROOT),
            "LTBENCH_KILLS": "20",
        },
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 1, f"exit code {done.returncode}: {done.stdout[-2000:]}{done.stderr[-2000:]}"
    assert "1 failed" in done.stdout, done.stdout[-2000:]


def _require(test: str) -> None:
    file, _, name = test.partition("::")
    tree = ast.parse((TESTS / file).read_text())
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}, (
        f"there is no test {test}"
    )
