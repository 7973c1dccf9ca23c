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
from typing import Any

from ltbench.children import in_fork
from ltbench.launch.process import exit_reason

TIMEOUT = 30.0  # seconds for one file
START = 120.0  # seconds for importing torch on a cold network disk


def probe(kind: str, names: Sequence[str], timeout: float = TIMEOUT) -> dict[str, str | None]:
    """Per name: None when `ltbench.<kind>.<name>` imports, else one line that says why not. timeout: seconds per file."""
    lines, why = ask("ltbench.cli.probe", [str(timeout), kind, *names], "", START + timeout * len(names))
    said = {line["name"]: line["problem"] for line in lines}
    return {name: said.get(name, f"not tried: the process that imports files {why}") for name in names}


def ask(module: str, words: Sequence[str], text: str, seconds: float) -> tuple[list[dict[str, Any]], str]:
    """Run `python -m MODULE WORDS` with `text` as its input; the JSON lines it printed, and how it ended, in words."""
    with tempfile.TemporaryFile("w+") as answers, tempfile.TemporaryFile("w+") as asked:
        asked.write(text)
        asked.seek(0)
        child = subprocess.Popen(
            [sys.executable, "-m", module, *words],
            stdin=asked,
            stdout=answers,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
        try:
            child.wait(seconds)
            why = exit_reason(child.returncode)
        except subprocess.TimeoutExpired:
            why = "did not end"
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)  # what an import may have started too
            child.wait()
        answers.seek(0)
        return [json.loads(line) for line in answers.read().splitlines()], why


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
    code, found = in_fork(lambda: {"problem": _problem(module)}, seconds)
    if code is None:
        return f"its import did not end within {seconds:g} s"
    if found is None:
        return f"its import ended the process: it {exit_reason(code)}"
    return found["problem"]


def _problem(module: str) -> str | None:
    try:
        importlib.import_module(module)
    except BaseException as error:  # SystemExit of a script that was dropped in
        return " ".join(f"{type(error).__name__}: {error}".split())
    return None


if __name__ == "__main__":
    main(sys.argv[1:])
