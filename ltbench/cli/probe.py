"""Does a plugin file import? Asked of other processes, so that a file that hangs, exits or crashes costs one line of a list.

    python -m ltbench.cli.probe SECONDS methods ccua cbdm ...

imports the contract once (and torch with it), forks for every file, and prints one JSON line per file.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from typing import IO

from ltbench.children import wait_or_kill
from ltbench.launch.process import exit_reason

TIMEOUT = 30.0  # seconds for one file
START = 120.0  # seconds for importing torch on a cold network disk


def probe(kind: str, names: Sequence[str], timeout: float = TIMEOUT) -> dict[str, str | None]:
    """Per name: None when `ltbench.<kind>.<name>` imports, else one line that says why not. timeout: seconds per file."""
    with tempfile.TemporaryFile("w+") as answers:
        child = subprocess.Popen(
            [sys.executable, "-m", "ltbench.cli.probe", str(timeout), kind, *names],
            stdin=subprocess.DEVNULL,
            stdout=answers,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            child.wait(START + timeout * len(names))
            why = exit_reason(child.returncode)
        except subprocess.TimeoutExpired:
            why = "did not end"
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)  # what an import may have started too
            child.wait()
        answers.seek(0)
        said = {line["name"]: line["problem"] for line in map(json.loads, answers.read().splitlines())}
    return {name: said.get(name, f"not tried: the process that imports files {why}") for name in names}


def main(argv: Sequence[str]) -> None:
    """SECONDS KIND NAME...: one JSON line {"name", "problem"} per name, on a copy of stdout that no plugin sees."""
    seconds, kind, *names = argv
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    with contextlib.suppress(Exception):  # each file's own import will say it
        importlib.import_module(f"ltbench.{kind}")
    for name in names:
        problem = _in_fork(f"ltbench.{kind}.{name}", float(seconds))
        answers.write(json.dumps({"name": name, "problem": problem}) + "\n")
        answers.flush()


def _in_fork(module: str, seconds: float) -> str | None:
    """Import a module in a child; why that failed, None when it did not."""
    with tempfile.TemporaryFile("w+") as told:
        pid = os.fork()
        if pid == 0:
            _tell(module, told)
        code = wait_or_kill(pid, seconds)
        told.seek(0)
        text = told.read()
    if code is None:
        return f"its import did not end within {seconds:g} s"
    if not text:
        return f"its import ended the process: it {exit_reason(code)}"
    return json.loads(text)


def _tell(module: str, told: IO[str]) -> None:
    """The child: write None or the error as JSON, and end without any handler that the module may have left."""
    problem = None
    try:
        importlib.import_module(module)
    except BaseException as error:  # SystemExit of a script that was dropped in
        problem = " ".join(f"{type(error).__name__}: {error}".split())
    told.write(json.dumps(problem))
    told.flush()
    os._exit(0)


if __name__ == "__main__":
    main(sys.argv[1:])
