"""The driver's side of one worker process: start it, feed it, read what it says, end it with everything it started."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from ltbench.launch.signals import shielded
from ltbench.launch.work import Job
from ltbench.plugins import PACKAGE

LOG_CAP = 50 * 1024 * 1024  # bytes of output kept per worker; a plugin that floods fills no disk
CHUNK = 65536


class CappedLog:
    """A file that takes `cap` bytes and then says once that it drops the rest."""

    def __init__(self, path: Path, cap: int = LOG_CAP) -> None:
        self.path = path
        self._left = cap
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file: IO[bytes] = path.open("ab", buffering=0)

    def write(self, data: bytes) -> None:
        """Append `data`, cut at the cap."""
        if self._left <= 0:
            return
        self._file.write(data[: self._left])
        self._left -= len(data)
        if self._left <= 0:
            self._file.write(b"\n[the log is full: what follows is dropped]\n")

    def tail(self, size: int = 2000) -> str:
        """The last `size` bytes, as text."""
        with self.path.open("rb") as file:
            file.seek(max(0, self.path.stat().st_size - size))
            return file.read().decode("utf-8", "replace").strip()

    def close(self) -> None:
        self._file.close()


def exit_reason(code: int) -> str:
    """A return code of `subprocess` in words."""
    if code >= 0:
        return f"exited with code {code}"
    try:
        name = signal.Signals(-code).name
    except ValueError:
        name = f"signal {-code}"
    likely = " (out of memory, perhaps)" if name == "SIGKILL" else ""
    return f"was killed by {name}{likely}"


class WorkerProcess:
    """One `ltbench.launch.worker`. `job` is what it works on, None while it is idle or starting."""

    def __init__(self, index: int, *, device: str | None, threads: int, entry: str, log: CappedLog) -> None:
        self.index = index
        self.log = log
        self.job: Job | None = None
        self.hello: dict[str, Any] | None = None
        self.broken: dict[str, Any] | None = None
        self.closing = False
        self.heard = time.monotonic()
        self._partial = b""
        with shielded():  # until the worker has its handlers
            self._process = subprocess.Popen(
                [
                    *(sys.executable, "-P", "-m", "ltbench.launch.worker"),
                    *(f"--driver={os.getpid()}", f"--threads={threads}", f"--job={entry}"),
                ],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
                env=_environment(device, threads),
            )
        for pipe in (self._process.stdout, self._process.stderr):
            assert pipe is not None, "both pipes were asked for"
            os.set_blocking(pipe.fileno(), False)

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def idle(self) -> bool:
        return self.hello is not None and self.job is None and not self.closing

    def filenos(self) -> list[int]:
        """Descriptors to wait on: messages and log."""
        pipes = (self._process.stdout, self._process.stderr)
        return [pipe.fileno() for pipe in pipes if pipe is not None and not pipe.closed]

    def send(self, job: Job, message: dict[str, Any]) -> None:
        """Give the worker its next job."""
        assert self._process.stdin is not None, "the pipe was asked for"
        self.job = job
        self.heard = time.monotonic()
        with contextlib.suppress(BrokenPipeError):  # it died just now; returncode() will say so
            self._process.stdin.write((json.dumps(message) + "\n").encode())
            self._process.stdin.flush()

    def messages(self) -> Iterator[dict[str, Any]]:
        """Whole messages that have arrived; what was printed goes to the log."""
        self.log.write(_drain(self._process.stderr))
        data = self._partial + _drain(self._process.stdout)
        *lines, self._partial = data.split(b"\n")
        for line in lines:
            self.heard = time.monotonic()
            yield json.loads(line)

    def returncode(self) -> int | None:
        """The exit code once the process is gone; whatever it had started is then killed too."""
        code = self._process.poll()
        if code is not None:
            self.kill()
        return code

    def close(self) -> None:
        """Ask an idle worker to end: its pipe is closed."""
        self.closing = True
        if self._process.stdin is not None:
            with contextlib.suppress(BrokenPipeError):
                self._process.stdin.close()

    def stop(self) -> None:
        """Ask for a stop at the next step boundary."""
        self.close()
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def dump_stacks(self) -> None:
        """Let a silent worker write the stacks of its threads to its log."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGUSR1)

    def kill(self) -> None:
        """SIGKILL to the worker's whole process group: children that a plugin started included."""
        self.closing = True  # it can stay in the process table for a moment, and is given nothing more
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(self._process.pid, signal.SIGKILL)

    def finish(self) -> None:
        """Reap the process and close this side's pipes."""
        self.kill()
        self._process.wait()
        self.log.write(_drain(self._process.stderr))
        for pipe in (self._process.stdin, self._process.stdout, self._process.stderr):
            if pipe is not None:
                with contextlib.suppress(BrokenPipeError):
                    pipe.close()


def _environment(device: str | None, threads: int) -> dict[str, str]:
    """The driver's environment, with its own device and `threads` threads for every numeric library.

    The worker finds the driver's own ltbench first, wherever it is started: a snapshot's job starts in the checkout's folder.
    """
    limits = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    cards = {} if device is None else {"CUDA_VISIBLE_DEVICES": device}
    paths = [str(PACKAGE.parent), *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep))]
    return {**os.environ, **limits, **cards, "PYTHONPATH": os.pathsep.join(dict.fromkeys(paths))}


def _drain(pipe: IO[bytes] | None) -> bytes:
    """Everything that can be read now without waiting."""
    parts = []
    while pipe is not None and not pipe.closed:
        try:
            data = os.read(pipe.fileno(), CHUNK)
        except BlockingIOError:
            break
        if not data:
            break
        parts.append(data)
        if len(parts) > 64:
            break  # a flood: let the driver do something else in between
    return b"".join(parts)
