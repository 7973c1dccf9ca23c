"""Does a plugin file import? Asked of a child process, so that a file that hangs, exits or crashes costs one line of a list.

    python -m ltbench.cli.probe methods ccua cbdm ...

The child says, on a pipe of its own, which file it is about to import and how that went.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence

from ltbench.launch.process import exit_reason

TIMEOUT = 60.0  # seconds for all files together; torch alone takes two or three


def probe(kind: str, names: Sequence[str], timeout: float = TIMEOUT) -> dict[str, str | None]:
    """Per name: None when `ltbench.<kind>.<name>` imports, else one line that says why not.

    A file that ends the child is the last one it was about to import; another child goes on after it.
    """
    found: dict[str, str | None] = {}
    left, end = list(names), time.monotonic() + timeout
    while left:
        said, reason = _one_child(kind, left, max(1.0, end - time.monotonic()))
        found.update(said)
        left = [name for name in left if name not in found]
        if left and reason is not None:
            found[left.pop(0)] = reason
        elif left:
            found.update(dict.fromkeys(left, "the child process that imports files did not get to it"))
            break
    return found


def _one_child(kind: str, names: list[str], seconds: float) -> tuple[dict[str, str | None], str | None]:
    """What one child found out, and why it ended before the last name (None if it did not)."""
    with tempfile.TemporaryFile("w+") as answers:
        child = subprocess.Popen(
            [sys.executable, "-m", "ltbench.cli.probe", str(answers.fileno()), kind, *names],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[answers.fileno()],
            start_new_session=True,
        )
        try:
            code: int | None = child.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, 9)  # what the import may have started too
            child.wait()
        answers.seek(0)
        lines = [json.loads(line) for line in answers.read().splitlines()]
    said = {line["name"]: line["problem"] for line in lines}
    if len(said) == len(names):
        return said, None
    if code is None:
        return said, f"its import did not end within {seconds:.0f} s"
    return said, f"its import ended the process: it {exit_reason(code)}"


def main(argv: Sequence[str]) -> None:
    """The child: FD KIND NAME... writes one JSON line per name to the file descriptor."""
    fd, kind, *names = argv
    me = os.getpid()
    with os.fdopen(int(fd), "w") as answers:
        for name in names:
            problem = _import(f"ltbench.{kind}.{name}")
            if os.getpid() != me:
                os._exit(0)  # a fork that the imported file made and that came back here
            answers.write(json.dumps({"name": name, "problem": problem}) + "\n")
            answers.flush()


def _import(module: str) -> str | None:
    try:
        importlib.import_module(module)
    except BaseException as error:  # SystemExit of a script that was dropped in
        return " ".join(f"{type(error).__name__}: {error}".split())
    return None


if __name__ == "__main__":
    main(sys.argv[1:])
