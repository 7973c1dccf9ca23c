"""Runs the checks: one fork per check, so that a hang or a crash is one failed row and the others go on.

    python -m ltbench.conformance.suite.child '{"name": "ccua", "want": "check", "pipelines": ["sit"], "seconds": 10, "budget": 60}'

Imports torch and the engine once and prints one JSON line per row on a copy of stdout that no plugin sees. `want` is check,
or look (supports() and network rows alone).
"""

from __future__ import annotations

import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from typing import Any

import torch

from ltbench import plugins
from ltbench.children import wait_or_kill
from ltbench.conformance.suite.checks import CHECKS
from ltbench.conformance.suite.cost import cost, size
from ltbench.conformance.suite.subject import DoesNotApply, Failed, Subject, last_line
from ltbench.conformance.words import UNSUPPORTED
from ltbench.trainer import set_precision

PATIENCE = 2  # checks of one pipeline that may hang before the rest is not tried

Row = dict[
    str, Any
]  # check, pipeline, outcome ("passed", "failed", "n.a."), why, code (of a process that ended), data


def main(argv: list[str]) -> None:
    request = json.loads(argv[0])
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    torch.set_num_threads(1)
    set_precision("fp32")
    plugin = plugins.get("methods", request["name"])
    runner = _Runner(plugin, float(request["seconds"]), time.monotonic() + float(request["budget"]))
    for row in _rows(plugin, request["want"], request["pipelines"], runner):
        answers.write(json.dumps(row) + "\n")
        answers.flush()


def _rows(plugin: plugins.Plugin, want: str, pipelines: list[str], runner: _Runner) -> Iterator[Row]:
    imported = runner.run("imports", "", lambda: Subject(plugin, "").cls)
    yield imported
    if imported["outcome"] != "passed":
        return
    for pipeline in pipelines:
        subject = Subject(plugin, pipeline)
        checks = [(name, _bound(check, subject)) for name, check in CHECKS]
        if want == "look":
            answer = runner.run(*_named(checks[0], pipeline))
            yield answer
            if answer["outcome"] == "passed":
                yield runner.run("cost", pipeline, _bound(size, subject))
            continue
        yield from _pipeline(subject, checks, runner)


def _bound(check: Callable[[Subject], Any], subject: Subject) -> Callable[[], Any]:
    return lambda: check(subject)


def _named(check: tuple[str, Callable[[], Any]], pipeline: str) -> tuple[str, str, Callable[[], Any]]:
    return check[0], pipeline, check[1]


def _pipeline(
    subject: Subject, checks: list[tuple[str, Callable[[], Any]]], runner: _Runner
) -> Iterator[Row]:
    pipeline, stop, hung, broken = subject.pipeline, "", 0, False
    for number, (name, check) in enumerate(checks):
        if stop:
            yield {"check": name, "pipeline": pipeline, "outcome": "n.a.", "why": stop}
            continue
        row = runner.run(name, pipeline, check)
        yield row
        hung += row.get("code") == "timeout"
        broken = broken or row["outcome"] == "failed"
        if number == 0 and row["outcome"] != "passed":
            stop = UNSUPPORTED if row["outcome"] == "n.a." else "not tried: supports() failed"
        elif hung >= PATIENCE:
            stop = f"not tried: {PATIENCE} checks before it did not end"
    if not stop and not broken:
        yield runner.run("cost", pipeline, lambda: cost(subject))


class _Runner:
    def __init__(self, plugin: plugins.Plugin, seconds: float, deadline: float) -> None:
        self.file, self.seconds, self.deadline = str(plugin.path), seconds, deadline

    def run(self, name: str, pipeline: str, check: Callable[[], Any]) -> Row:
        """One check in a process of its own."""
        row: Row = {"check": name, "pipeline": pipeline}
        seconds = min(self.seconds, self.deadline - time.monotonic())
        if seconds <= 0:
            return {**row, "outcome": "failed", "why": "not tried: the time for all checks was over"}
        with tempfile.TemporaryFile("w+") as told, tempfile.TemporaryFile() as output:
            pid = os.fork()
            if pid == 0:
                _tell(check, self.file, told, output.fileno())
            code = wait_or_kill(pid, seconds)
            told.seek(0)
            text = told.read()
        if code is None:
            return {
                **row,
                "outcome": "failed",
                "why": f"did not end within {seconds:.0f} s",
                "code": "timeout",
            }
        if not text:
            return {**row, "outcome": "failed", "why": "ended the process", "code": code}
        return {**row, **json.loads(text)}


def _tell(check: Callable[[], Any], file: str, told: Any, output: int) -> None:
    """The child: run the check, write its row, end without any handler that the plugin may have left."""
    me = os.getpid()
    os.dup2(output, 1)
    os.dup2(output, 2)
    sys.stdout, sys.stderr = (os.fdopen(fd, "w", buffering=1, closefd=False) for fd in (1, 2))
    try:
        try:
            found = check()
            row: Row = {"outcome": "passed", "why": "", "data": found if isinstance(found, dict) else None}
        except DoesNotApply as reason:
            row = {"outcome": "n.a.", "why": str(reason)}
        except Failed as reason:
            row = {"outcome": "failed", "why": str(reason)}
        except BaseException as error:
            row = {"outcome": "failed", "why": _in_words(error, file)}
        if os.getpid() == me:  # else a child that the plugin forked has come back here
            told.write(json.dumps(row))
            told.flush()
    finally:
        os._exit(0)


def _in_words(error: BaseException, file: str) -> str:
    """Type, message and the plugin's own line, in one line."""
    return " ".join(f"{type(error).__name__}: {error}".split()) + last_line(error, file)


if __name__ == "__main__":
    main(sys.argv[1:])
