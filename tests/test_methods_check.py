"""`methods new`, `methods check` and the conformance suite: it passes what is right and names what is wrong, in one row each."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

import ltbench.methods
from ltbench import conformance, plugins
from ltbench.conformance import Report, Row
from ltbench.conformance.suite import child
from ltbench.conformance.suite.checks import CHECKS
from ltbench.conformance.suite.subject import Subject
from ltbench.conformance.words import report_text
from ltbench.errors import UsageError
from tests import cli_world

cli, here = cli_world.cli, cli_world.here  # fixtures

PLAIN = '''
"""The plain loss."""

import random, torch

from ltbench.methods import Method, mean_square
{top}

class Mine(Method):
    """denoise = |f - target|^2."""

    presets = {{"off": {{"weight": 0.0}}}}

    def __init__(self, task, *, weight: float = 1.0):
        super().__init__(task)
        self.weight = weight
        {init}

    def loss(self, net, draw):
        (out,) = self.run(net, draw, draw.y_in)
        error = mean_square(out.pred, draw.target)
        {loss}
        return {{"denoise": error}}
'''
RIGHT = "no label dropped"  # passed by whatever is wrong elsewhere
TERMS, GRADIENTS = "terms are finite, float32, () or (B,)", "gradients reach every parameter"

# Where the bad line goes, the line, every row that must fail because of it, and what one of them must say.
WRONG = {
    "float64": ("loss", "error = error.double()", {TERMS, "bfloat16"}, "'denoise' is torch.float64"),
    "shape": ("loss", "error = out.pred", {TERMS}, r"must be a scalar or \(12,\) tensor"),
    "unused_parameter": (
        "init",
        "self.idle = torch.nn.Parameter(torch.ones(3))",
        {GRADIENTS, "own parameters are trained and saved"},
        "no gradient reaches method.idle",
    ),
    "hidden_module": (
        "init",
        "self.heads = [torch.nn.Linear(2, 2)]",
        {"own parameters are trained and saved"},
        "self.heads holds a module that is not registered",
    ),
    "not_off": (
        "loss",
        "error = error + 0.1",
        {"switched off equals the baseline"},
        "switched off its loss is",
    ),
    "whole_batch": (
        "loss",
        "error = error * error.detach().mean()",
        {"micro-batches change nothing", "switched off equals the baseline"},
        "one micro-batch of 12 and three of 4 part",
    ),
    "state": (
        "loss",
        "self.seen = getattr(self, 'seen', 0) + 1; error = error * self.seen",
        {"resume is bitwise", "the same draw gives the same terms", "micro-batches change nothing"},
        "a resumed run parts from an uninterrupted one",
    ),
    "alone": (
        "loss",
        "error = error / draw.by_local_batch(draw.level).std(1).mean()",
        {"a local batch of one", "micro-batches change nothing", "switched off equals the baseline"},
        "'denoise' is not finite",
    ),
    "all_dropped": (
        "loss",
        "error = error * len(draw.y) / (~draw.dropped).sum()",
        {"all labels dropped", "micro-batches change nothing", "switched off equals the baseline"},
        "'denoise' is not finite",
    ),
    "absent": (
        "loss",
        "error = error + 0 * (1 / self.task.class_counts).sum()",
        {"absent classes", "one class only"},
        "'denoise' is not finite",
    ),
    "in_place": (
        "loss",
        "draw.level.mul_(2)",
        {"the draw is not changed in place"},
        "draw.level is changed in place",
    ),
    "reads": (
        "loss",
        "error = error * float(draw.level.max() > 0)",
        {"nothing is read on the host"},
        r"__float__\(\) of a tensor \(reads.py, line 22\): take draw.kept",
    ),
    "random": (
        "loss",
        "random.random()",
        {"no global random state"},
        "loss() uses Python's random: draw from draw.rng",
    ),
    "threads": (
        "top",
        "torch.set_num_threads(2)",
        {"the process is left as it was"},
        "number of threads: 1 -> 2",
    ),
    "prints": ("loss", "print('hello')", {"no output, processes or files"}, "it prints: hello"),
    "forks": (
        "loss",
        "import subprocess; subprocess.run(['true'])",
        {"no output, processes or files"},
        "it starts a process 'true'",
    ),
    "dies": ("loss", "import os; os._exit(3)", {TERMS}, "ended the process: it exited with code 3"),
}


def write(folder: Path, name: str, **lines: str) -> Path:
    path = folder / f"{name}.py"
    path.write_text(PLAIN.format(**{"top": "", "init": "", "loss": "", **lines}))
    return path


def failed(report: Report) -> set[str]:
    return {row.check for row in report.failures}


def test_a_right_plugin_anywhere_passes_and_costs_one_row(tmp_path: Path) -> None:
    report = conformance.check(write(tmp_path, "right"), pipelines=("sit",))
    report.require()
    off = [row.outcome for row in report.rows if row.check == "switched off equals the baseline"]
    assert off == ["passed"]
    (cost,) = report.costs
    assert (cost.rows, cost.parameters, cost.passes) == (1.0, 0, 1)
    assert cost.time_ratio is not None
    assert 0.1 < cost.time_ratio < 10
    assert "LTBENCH_PLUGINS" not in os.environ or str(tmp_path) not in os.environ["LTBENCH_PLUGINS"]


@pytest.fixture
def rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable[..., dict[str, dict[str, Any]]]]:
    """Write a plugin and run these checks of it on the sit pipeline, a fork each, without starting Python anew."""
    torch.set_num_threads(1)
    paths = list(ltbench.methods.__path__)

    def run(name: str, *checks: str, seconds: float = 30.0, **lines: str) -> dict[str, dict[str, Any]]:
        path = write(tmp_path, name, **lines)
        monkeypatch.setenv("LTBENCH_PLUGINS", "")
        plugins.use([path])
        plugin = plugins.get("methods", name)
        runner = child._Runner(plugin, seconds, time.monotonic() + 500)
        wanted = {CHECKS[0][0], *(checks or (n for n, _ in CHECKS))}
        every = [(n, child._bound(check, Subject(plugin, "sit"))) for n, check in CHECKS if n in wanted]
        return {row["check"]: row for row in child._pipeline(Subject(plugin, "sit"), every, runner)}

    yield run
    ltbench.methods.__path__[:] = paths


@pytest.mark.filterwarnings("default")  # in a process of its own, a warning of the plugin is no error
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_plugin_fails_the_rows_that_are_about_it(rows: Any, name: str) -> None:
    where, line, wrong, says = WRONG[name]
    found = rows(name, RIGHT, *wrong, **{where: line})
    for check in wrong:
        assert found[check]["outcome"] == "failed", found
    assert any(re.search(says, conformance._why(row)) or says in row["why"] for row in found.values()), found
    assert "\n" not in "".join(row["why"] for row in found.values())
    if name not in ("dies", "shape", "raising"):
        assert found[RIGHT]["outcome"] == "passed", "what is right is not blamed"


def test_a_wrong_line_fails_no_row_but_its_own(rows: Any) -> None:
    found = rows("once", loss="draw.level.mul_(2)")
    assert [name for name, row in found.items() if row["outcome"] == "failed"] == [
        "the draw is not changed in place"
    ]


def test_a_hang_costs_its_time_and_the_rest_is_not_tried(rows: Any) -> None:
    found = rows(
        "slow",
        "all labels dropped",
        "no label dropped",
        seconds=3.0,
        loss="\n        while draw.dropped.all(): pass",
    )
    assert found["all labels dropped"]["why"] == "did not end within 3 s"
    assert found["no label dropped"]["outcome"] == "passed"
    stuck = rows("stuck", RIGHT, TERMS, "bfloat16", GRADIENTS, seconds=1.0, loss="\n        while True: pass")
    assert [row["outcome"] for row in stuck.values()].count("failed") == 2
    assert next(reversed(stuck.values()))["why"] == "not tried: 2 checks before it did not end"


def test_what_cannot_be_read_is_a_row_and_starts_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("nothing is to be started"))
    untyped = write(tmp_path, "untyped")
    untyped.write_text(untyped.read_text().replace("weight: float = 1.0", "weight=1.0"))
    assert [row.why for row in conformance.check(untyped).failures] == [
        "parameter `weight` has no type: annotate it, e.g. `weight: float = 1.0`"
    ]
    preset = write(tmp_path, "preset")
    preset.write_text(preset.read_text().replace('{"weight": 0.0}', '{"wait": 0.0}'))
    assert failed(conformance.check(preset)) == {"presets fit the signature"}
    with pytest.raises(UsageError, match="no such file"):
        conformance.check(tmp_path / "absent.py")
    with pytest.raises(UsageError, match="two methods are called 'ccua'"):
        conformance.check(write(tmp_path, "ccua"))
    with pytest.raises(UsageError, match="unknown method 'ccau'"):
        conformance.check("ccau")


def test_the_table_says_a_common_reason_once() -> None:
    rows = (
        Row("imports", "", "passed"),
        Row("bfloat16", "sit", "failed", "no"),
        Row("bfloat16", "ddpm", "failed", "no"),
        Row("resume", "sit", "passed"),
        Row("resume", "ddpm", "n.a.", "because"),
    )
    text = report_text(Report("m", Path("m.py"), rows, (), 2.0), 80)
    assert re.search(r"^bfloat16 +FAILED +FAILED +no$", text, re.M)
    assert re.search(r"^resume +passed +n\.a\. +ddpm: because$", text, re.M)
    assert text.endswith("2 passed, 2 failed, 1 n.a. in 2 s")


# -- methods new ------------------------------------------------------------------------------------------------------


def test_a_new_method_passes_is_listed_and_joins_a_grid(cli, here) -> None:
    code, out, _ = cli("methods", "new", "rare_first", "--folder", here / "mine")
    assert code == 0
    assert "methods check" in out
    assert "--with rare_first" in out
    path = here / "mine" / "rare_first.py"
    assert "class RareFirst(Method)" in path.read_text()
    code, out, err = cli("methods", "check", path)
    assert code == 0, out + err
    assert re.search(r"switched off equals the baseline +passed +passed", out)
    assert "rare_first" in cli("methods", "--plugins", path, "--no-import")[1]
    plan = json.loads(cli("plan", "little.yaml", "--with", "rare_first", "--plugins", path, "--json")[1])
    assert "rare_first" in {cell["label"] for cell in plan["cells"]}


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["new"], "takes one name"),
        (["new", "Bad-Name"], "e.g. bad_name"),
        (["new", "check"], "word of the command line"),
        (["new", "class"], "word of the command line or of Python"),
        (["new", "contract"], "the engine has its own"),
        (["new", "ccua"], "there is a method 'ccua' already"),
        (["new", "here", "--folder", "."], "here.py exists"),
        (["check"], "takes names or paths"),
        (["ccua", "sit"], "one name at a time"),
        (["ccua", "--folder", "."], "--folder goes with"),
    ],
)
def test_bad_words_are_refused_with_a_remedy(cli, here, words, says) -> None:
    (here / "here.py").write_text("")
    code, out, err = cli("methods", *words)
    assert (code, out) == (2, "")
    assert says in err
    assert (here / "here.py").read_text() == ""


# -- methods NAME, and the module as a program -----------------------------------------------------------------------


def test_a_method_is_shown_in_80_columns(cli, monkeypatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    code, out, _ = cli("methods", "ccua", "--no-import")
    assert code == 0
    assert max(map(len, out.splitlines())) <= 80
    for line in (
        r"^    spread = alpha",
        r"^  alpha +a number +0\.05",
        r"^  preset ddpm: alpha=1\.0",
    ):
        assert re.search(line, out, re.M), out
    assert "file: " in out
    shown = json.loads(cli("methods", "sit", "--json")[1])
    assert shown["supports"] == {"sit": None, "ddpm": shown["supports"]["ddpm"]}
    assert "baseline of the sit pipeline" in shown["supports"]["ddpm"]
    assert shown["cost"] == {"sit": {"rows": 1.0, "parameters": 0}}


PUBLISHED = ["sit", "ddpm", "cbdm", "oclt", "diffrop", "repa", "dispersive", "ccua", "coral"]


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_method_says_all_that_a_reader_of_its_row_wants(cli, name: str) -> None:
    """Formula, meaning of every parameter, paper against code, cost, and where it comes from."""
    code, out, _ = cli("methods", name, "--no-import")
    assert code == 0
    assert re.search(r"^    \w+ += ", out, re.M), "a formula on a line of its own"
    assert re.search(r"\(.*(20\d\d|arXiv \d{4}\.\d{5})", out), "a citation"
    assert "\nPaper and code: " in out
    assert "\nCost: " in out
    shown = json.loads(cli("methods", name, "--no-import", "--json")[1])
    assert [key for key, meaning in shown["meanings"].items() if not meaning] == []
    presets = {*shown["presets"]} - {"sit", "ddpm", "check"}
    assert all(f" {preset}" in out for preset in presets)
    assert name in ("sit", "ddpm") or "off" in presets


def test_the_meaning_of_a_parameter_is_the_comment_beside_it(cli, here) -> None:
    cli("methods", "new", "mine", "--folder", here)
    out = cli("methods", "mine", "--plugins", here / "mine.py", "--no-import")[1]
    assert re.search(r"power +a number +0\.5 +0: every image counts the same", out)


def test_the_module_is_a_program_for_other_repositories(tmp_path: Path) -> None:
    bad = write(tmp_path, "foreign", top="import ltbench.trainer\nraise SystemExit(9)")
    words = [sys.executable, "-m", "ltbench.conformance", str(bad), "--json"]
    done = subprocess.run(words, capture_output=True, text=True, cwd=tmp_path, timeout=120)
    assert done.returncode == 1, done.stderr
    (report,) = json.loads(done.stdout)
    why = {row["check"]: row["why"] for row in report["checks"] if row["outcome"] == "failed"}
    assert why["imports only its contract"] == "imports ltbench.trainer"
    assert why["imports"].startswith("SystemExit: 9")
    assert report["passed"] is False
