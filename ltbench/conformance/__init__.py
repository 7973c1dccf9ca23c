"""Does a method plugin keep the contract? For authors, inside this repository or out of it.

    python -m ltbench.conformance methods/mine.py other/folder/theirs.py

    from ltbench.conformance import check          # in a test of your own repository
    def test_mine(): check("mine.py").require()

What can be read from the file is checked here, without torch; everything else in a child process, a fork per check.
"""

from __future__ import annotations

import ast
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from ltbench import plugins
from ltbench.conformance.words import report_text
from ltbench.errors import UsageError
from ltbench.launch.process import exit_reason

SECONDS = 20.0  # for one check, which takes half a second on an idle core
BUDGET = 180.0  # for all of them: about 10 s on an idle core
PIPELINES = ("sit", "ddpm")
START = 120.0  # for importing torch on a cold network disk


@dataclass(frozen=True)
class Row:
    """One check. pipeline: "" for a check of the file. outcome: passed, failed or n.a.; why: one line, "" when passed."""

    check: str
    pipeline: str
    outcome: str
    why: str = ""


@dataclass(frozen=True)
class Cost:
    """Beside the baseline of the pipeline, at 10% dropped labels.

    rows: network rows per image (baseline 1). parameters: the method's own, trained. passes: network passes per step.
    time_ratio: process time of a training step over the baseline's (median of interleaved pairs), spread its quartiles;
    both None where it was not timed.
    """

    pipeline: str
    rows: float
    parameters: int
    passes: int
    time_ratio: float | None = None
    spread: tuple[float, float] | None = None


@dataclass(frozen=True)
class Report:
    """What the checks of one plugin found."""

    name: str
    file: Path
    rows: tuple[Row, ...]
    costs: tuple[Cost, ...]
    seconds: float

    @property
    def failures(self) -> list[Row]:
        return [row for row in self.rows if row.outcome == "failed"]

    def require(self) -> None:
        """Raise AssertionError with the whole table when a check failed: one line in a test."""
        assert not self.failures, f"{self.name} breaks the contract of ltbench.methods:\n{self.text()}"

    def text(self, width: int = 100) -> str:
        """The table and the costs, as lines of at most `width` characters where the words allow it."""
        return report_text(self, width)

    def as_json(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "file": str(self.file),
            "passed": not self.failures,
            "checks": [asdict(row) for row in self.rows],
            "cost": [asdict(cost) for cost in self.costs],
            "seconds": round(self.seconds, 1),
        }


@dataclass(frozen=True)
class Look:
    """What a method says of itself when it is imported: per pipeline None or why not, and what it costs there."""

    problem: str | None
    supports: dict[str, str | None]
    costs: tuple[Cost, ...]


def check(
    target: str | Path,
    *,
    seconds: float = SECONDS,
    budget: float = BUDGET,
    pipelines: Sequence[str] = PIPELINES,
) -> Report:
    """Run every check on a plugin: the name of one, or the path of its file anywhere.

    seconds: limit for one check; budget: for all; pipelines: on which. Raises UsageError for a name or path that is not there.
    """
    begun = time.monotonic()
    plugin, env = _find(target)
    rows = list(_file_rows(plugin))
    costs: list[Cost] = []
    if plugin.problem is None:
        answers, ended = _ask(plugin, "check", seconds, budget, env, pipelines)
        for answer in answers:
            if answer["check"] == "cost" and answer["outcome"] == "passed":
                costs.append(_cost(answer))
            else:
                rows.append(Row(answer["check"], answer["pipeline"], answer["outcome"], _why(answer)))
        if ended is not None:
            rows.append(
                Row("the checks run to their end", "", "failed", f"the process that runs them {ended}")
            )
    return Report(plugin.name, plugin.path, tuple(rows), tuple(costs), time.monotonic() - begun)


def look(name: str, *, seconds: float = SECONDS) -> Look:
    """Import a plugin in a child and ask where it runs and what it costs. Raises UsageError for an unknown name."""
    plugin, env = _find(name)
    answers, ended = _ask(plugin, "look", seconds, 4 * seconds, env)
    if ended is not None or not answers:
        return Look(f"the process that imports it {ended}", {}, ())
    if answers[0]["outcome"] != "passed":
        return Look(_why(answers[0]), {}, ())
    costs = tuple(_cost(a) for a in answers[1:] if a["check"] == "cost" and a["outcome"] == "passed")
    said = {a["pipeline"]: a for a in answers[1:] if a["check"] != "cost"}
    reasons = {p: None if a["outcome"] == "passed" else _why(a) for p, a in said.items()}
    return Look(None, reasons, costs)


# --- which file -----------------------------------------------------------------------------------------------------


def _find(target: str | Path) -> tuple[plugins.Plugin, dict[str, str]]:
    """The plugin and an environment in which its name is importable."""
    if isinstance(target, str) and plugins.NAME.fullmatch(target) and not Path(target).is_file():
        found = plugins.find("methods")
        return (found[target] if target in found else plugins.get("methods", target)), dict(os.environ)
    path = Path(target).expanduser().resolve()
    if not path.is_file():
        raise UsageError(
            f"{target}: there is no such file", "give the name of a method or the path of its file"
        )
    plugin = plugins.read(path, "methods")
    if plugin is None:
        raise UsageError(f"{path} holds a data set", "`methods check` takes methods")
    other = plugins.find("methods").get(plugin.name)
    if other is not None and other.path != path:
        raise UsageError(
            f"two methods are called '{plugin.name}': {other.path} and {path}", "rename the file"
        )
    extra = [*filter(None, os.environ.get(plugins.VARIABLE, "").split(os.pathsep)), str(path)]
    return plugin, {**os.environ, plugins.VARIABLE: os.pathsep.join(dict.fromkeys(extra))}


# --- what can be read -----------------------------------------------------------------------------------------------


def _file_rows(plugin: plugins.Plugin) -> list[Row]:
    problem = plugin.problem or ""
    of_presets = problem.startswith(("preset ", "`presets`"))
    rows = [
        _row("one class, typed parameters, literal defaults", "" if of_presets else problem),
        _row("presets fit the signature", problem if of_presets else ""),
    ]
    try:
        tree = ast.parse(plugin.path.read_bytes())
    except (OSError, ValueError, SyntaxError, RecursionError):
        return rows
    foreign = _foreign_imports(tree)
    rows.append(_row("imports only its contract", f"imports {', '.join(foreign)}" if foreign else ""))
    if not problem:
        missing = (
            ""
            if plugin.doc.strip()
            else "write what loss() returns, as a formula, under the class or the file"
        )
        rows.append(_row("has a docstring", missing))
    return rows


def _row(check: str, why: str) -> Row:
    return Row(check, "", "failed" if why else "passed", why)


def _foreign_imports(tree: ast.Module) -> list[str]:
    """What a plugin imports of ltbench beside `ltbench.methods` and the engine's own modules in it."""
    modules: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom):
            inside = (
                [f"{node.module}.{alias.name}" for alias in node.names] if node.module == "ltbench" else []
            )
            modules += (
                ["." * node.level + (node.module or "")] if node.level else inside or [node.module or ""]
            )
        elif isinstance(node, ast.Import):
            modules += [alias.name for alias in node.names]
    own = {"ltbench.methods"} | {
        f"ltbench.methods.{p.stem}" for p in (plugins.PACKAGE / "methods").glob("*.py")
    }
    return sorted(
        {m for m in modules if m.startswith(".") or (m.partition(".")[0] == "ltbench" and m not in own)}
    )


# --- the child ------------------------------------------------------------------------------------------------------


def _ask(
    plugin: plugins.Plugin,
    want: str,
    seconds: float,
    budget: float,
    env: dict[str, str],
    pipelines: Sequence[str] = PIPELINES,
) -> tuple[list[dict[str, Any]], str | None]:
    """The child's rows, and in words how it ended if not as it should."""
    limits = {"seconds": seconds, "budget": budget}
    request = json.dumps({"name": plugin.name, "want": want, "pipelines": list(pipelines), **limits})
    with tempfile.TemporaryFile("w+") as answers, tempfile.TemporaryFile("w+") as noise:
        child = subprocess.Popen(
            [sys.executable, "-m", "ltbench.conformance.suite.child", request],
            stdin=subprocess.DEVNULL,
            stdout=answers,
            stderr=noise,
            start_new_session=True,
            env={**env, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
        )
        try:
            child.wait(START + budget + 2 * seconds)
            ended = None if child.returncode == 0 else exit_reason(child.returncode)
        except subprocess.TimeoutExpired:
            ended = "did not end"
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)  # what a plugin may have started too
            child.wait()
        answers.seek(0)
        noise.seek(0)
        said = noise.read().strip().splitlines()
        rows = [json.loads(line) for line in answers.read().splitlines()]
    return rows, f"{ended}: {said[-1]}" if ended and said else ended


def _why(answer: dict[str, Any]) -> str:
    code = answer.get("code")
    return f"{answer['why']}: it {exit_reason(code)}" if isinstance(code, int) else answer["why"]


def _cost(answer: dict[str, Any]) -> Cost:
    data = dict(answer["data"])
    spread = data.get("spread")
    return Cost(
        answer["pipeline"],
        data["rows"],
        data["parameters"],
        data["passes"],
        data.get("time_ratio"),
        None if spread is None else (spread[0], spread[1]),
    )
