"""The command line's own processes, forked from one that has torch already: seconds of import are saved per process, nothing else.

`driver(words)` forks, and the fork calls the same `main` as harness.py. Where the driver would start
`python -m ltbench.launch.worker`, it forks again and calls the worker's `main` on real pipes, in a session of its own. Only
exec is missing: signals, pipes, process groups, parent-death signals and files are the real ones.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import io
import os
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from ltbench import plugins, provenance
from ltbench.launch import process, worker
from tests.test_layers import ROOT

MORTAL = ROOT / "tests" / "faults" / "mortal"
PR_SET_CHILD_SUBREAPER = 36  # linux/prctl.h: orphans come to us, so that none can hide


def adopt_orphans() -> None:
    """From now on a process that loses its parent becomes this one's child."""
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def driver(words: Sequence[str], place: Path, before: Callable[[int], object] | None = None) -> int:
    """Start `ltbench WORDS` in `place` as a fork and return its pid. `before(k)` runs in its k-th worker, first of all."""
    pid = os.fork()
    if pid:
        return pid
    code = 70
    try:
        os.setsid()
        _settle(place)
        process.subprocess = _Forking(before)  # pyright: ignore[reportAttributeAccessIssue]
        sys.argv = ["ltbench", *words]
        from ltbench.cli import main

        code = main()
    except BaseException:
        traceback.print_exc()
    finally:
        with contextlib.suppress(Exception):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def command(words: Sequence[str], place: Path, dies: str | None = None) -> int:
    """As `driver`, through exec: `python harness.py WORDS`, which starts its workers as it does anywhere.

    `dies`: which of its processes kills itself in a write, in the words of tests/faults/mortal/sitecustomize.py.
    """
    pid = os.fork()
    if pid:
        return pid
    try:
        os.setsid()
        _settle(place)
        os.environ["PYTHONPATH"] = str(ROOT)
        if dies is not None:
            os.environ["LTBENCH_DIES"] = f"{dies} {tempfile.mkdtemp(dir=place.parent)}"
            os.environ["PYTHONPATH"] = f"{MORTAL}{os.pathsep}{ROOT}"
        os.execv(sys.executable, [sys.executable, str(ROOT / "harness.py"), *words])
    finally:
        os._exit(72)


def _settle(place: Path) -> None:
    """What exec and a shell would have set: the directory, HOME, temporary files, output to a file."""
    os.chdir(place / "here")
    os.environ.update(
        HOME=str(place / "home"),
        TMPDIR=str(place / "tmp"),
        LTBENCH_STORE=str(place / "store"),
        LTBENCH_SCRATCH=str(place / "scratch"),
    )
    tempfile.tempdir = None
    said = os.open(place / "said", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(said, 1)
    os.dup2(said, 2)
    os.close(said)
    sys.stdout = io.TextIOWrapper(io.FileIO(1, "w", closefd=False), encoding="utf-8", line_buffering=True)
    sys.stderr = io.TextIOWrapper(io.FileIO(2, "w", closefd=False), encoding="utf-8", line_buffering=True)
    provenance.forget()
    plugins.use([])  # LTBENCH_PLUGINS as it is now


class _Forking:
    """Stands in for the module `subprocess` in `ltbench.launch.process`."""

    PIPE = subprocess.PIPE

    def __init__(self, before: Callable[[int], object] | None) -> None:
        self._before = before
        self._started = 0

    def Popen(self, command: Sequence[str], **options: Any) -> _Worker:
        self._started += 1
        return _Worker(command[command.index("-m") + 2 :], options["env"], self._started - 1, self._before)


class _Worker:
    """A forked worker with the part of `subprocess.Popen` that the driver uses."""

    def __init__(
        self, words: Sequence[str], env: dict[str, str], number: int, before: Callable[[int], object] | None
    ) -> None:
        self.returncode: int | None = None
        pipes = [os.pipe() for _ in range(3)]
        (in_r, in_w), (out_r, out_w), (err_r, err_w) = pipes
        self.pid = os.fork()
        if self.pid == 0:
            _work(words, env, (in_r, out_w, err_w), number, before)
        for end in (in_r, out_w, err_w):
            os.close(end)
        self.stdin, self.stdout, self.stderr = (
            os.fdopen(in_w, "wb"),
            os.fdopen(out_r, "rb"),
            os.fdopen(err_r, "rb"),
        )

    def poll(self) -> int | None:
        if self.returncode is None:
            done, status = os.waitpid(self.pid, os.WNOHANG)
            if done:
                self.returncode = os.waitstatus_to_exitcode(status)
        return self.returncode

    def wait(self) -> int:
        if self.returncode is None:
            self.returncode = os.waitstatus_to_exitcode(os.waitpid(self.pid, 0)[1])
        return self.returncode

    def send_signal(self, number: int) -> None:
        os.kill(self.pid, number)


def _work(
    words: Sequence[str],
    env: dict[str, str],
    ends: tuple[int, int, int],
    number: int,
    before: Callable[[int], object] | None,
) -> None:
    code = 71
    try:
        os.setsid()
        for target, end in enumerate(ends):
            os.dup2(end, target)
        os.closerange(3, 1024)  # as exec would: a worker must not hold its own driver's ends open
        gc.disable()  # finalisers of the driver's files would close descriptors that are the worker's now
        for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(each, signal.SIG_DFL)
        os.environ.clear()
        os.environ.update(env)
        if before is not None:
            before(number)
        code = worker.main(list(words))
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def children() -> list[int]:
    """The living children of this process, adopted ones included; dead ones are reaped."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass
    return [int(pid) for pid in Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()]


def children_of(pid: int) -> list[int]:
    """The children of another process, [] when it is gone."""
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def wait(pid: int, seconds: float, until: Callable[[], bool] | None = None) -> int | None:
    """The exit code of a child, None when it is still there after so long, or once `until()` is true."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        if until is not None and until():
            return None
        time.sleep(0.003 if until is None else 0.02)
    return None


def all_gone(seconds: float = 300.0) -> list[int]:
    """Wait until no process of ours is left; those that stayed."""
    end = time.monotonic() + seconds
    while (left := children()) and time.monotonic() < end:
        time.sleep(0.01)
    return left
