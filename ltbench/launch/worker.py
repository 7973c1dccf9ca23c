"""A worker process: one JSON line in is one stage to run, JSON lines out are its events and its result.

    python -m ltbench.launch.worker --driver PID [--job MODULE:FUNCTION]

Started by `ltbench.launch.local`, in a session of its own. The two protocol pipes are moved away from standard input and
output before anything else is imported, so a plugin that prints, reads or floods touches only the log. The worker imports
torch once, through the module of `--job` (default `ltbench.job:run_job`), and ends when its driver does: at the next step
boundary, by the kernel's parent-death signal where there is one and by asking for its parent's id elsewhere.
"""

from __future__ import annotations

import argparse
import ctypes
import faulthandler
import importlib
import io
import json
import os
import select
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any, TextIO

from ltbench.errors import EnvironmentProblem, LtbenchError
from ltbench.launch.signals import WARNING, unshield

DEFAULT_JOB = "ltbench.job:run_job"
IDLE_POLL = 0.5  # seconds between looks at the stop flag while no job is there
PR_SET_PDEATHSIG = 1  # linux/prctl.h


class _Log(io.FileIO):
    """Standard output and error of plugin code. A reader that is gone is no reason for a training step to fail."""

    def write(self, data: Any, /) -> int:
        try:
            return super().write(data) or 0
        except BrokenPipeError:
            return len(data)


class Channel:
    """The protocol's two ends, on file descriptors of their own; 0, 1 and 2 are left to whoever prints."""

    def __init__(self) -> None:
        self._pid = os.getpid()
        self._in: TextIO = os.fdopen(os.dup(0), "r", encoding="utf-8")
        self._out: TextIO = os.fdopen(os.dup(1), "w", encoding="utf-8")
        nothing = os.open(os.devnull, os.O_RDONLY)
        os.dup2(nothing, 0)
        os.close(nothing)
        os.dup2(2, 1)
        for name, fd in (("stdout", 1), ("stderr", 2)):
            raw = io.BufferedWriter(_Log(fd, "w", closefd=False))
            log = io.TextIOWrapper(raw, encoding="utf-8", errors="backslashreplace", line_buffering=True)
            setattr(sys, name, log)

    def send(self, message: dict[str, Any]) -> None:
        """Write one message. A child that a plugin forked is not the worker: its messages are dropped."""
        if os.getpid() != self._pid:
            return
        try:
            self._out.write(json.dumps(message, default=str) + "\n")
            self._out.flush()
        except BrokenPipeError:
            return  # the driver is gone; stop() says so at the next step boundary

    def jobs(self, stop: Callable[[], bool]) -> Iterator[dict[str, Any]]:
        """Yield jobs until the driver closes its end or `stop()` is true."""
        while not stop():
            if select.select([self._in], [], [], IDLE_POLL)[0]:
                line = self._in.readline()
                if not line:
                    return
                yield json.loads(line)

    def leave_fork(self) -> None:
        """End a forked child of plugin code that came back from a job: it must not run the worker's loop as well."""
        if os.getpid() != self._pid:
            os._exit(0)


class StopFlag:
    """True once a stop was asked for, or once the driver is gone."""

    def __init__(self, driver: int) -> None:
        self._driver = driver
        self._asked = False

    def __call__(self) -> bool:
        return self._asked or os.getppid() != self._driver

    def _set(self, _signum: int, _frame: object) -> None:
        self._asked = True

    def listen(self) -> None:
        """Put the handlers in place; again before every job, because plugin code can replace them."""
        signal.signal(signal.SIGTERM, self._set)
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        # SLURM's warning is for the driver, which asks by SIGTERM. Children inherit the deaf ear, over exec too.
        signal.signal(WARNING, signal.SIG_IGN)
        unshield()


def _die_with_driver() -> None:
    """Ask the kernel for SIGTERM when the driver ends (Linux only; elsewhere StopFlag's parent id does it alone)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)


def load_job(entry: str) -> Callable[..., dict[str, Any]]:
    """Import `module:function`, and with it torch if the module wants it."""
    module, _, name = entry.partition(":")
    if not module or not name:
        raise LtbenchError(f"--job is '{entry}'", f"it reads MODULE:FUNCTION, as in {DEFAULT_JOB}")
    return getattr(importlib.import_module(module), name)


def _use_threads(threads: int) -> str:
    """Set torch's threads, if the job imported torch; return what it will run on, in words."""
    torch = sys.modules.get("torch")
    if torch is None:
        return "cpu"
    torch.set_num_threads(threads)
    return torch.cuda.get_device_name(0) if torch.cuda.is_available() else "cpu"


def failure(error: BaseException) -> dict[str, Any]:
    """The result of a job that let `error` out. `recorded` false asks the driver to write the failure down."""
    if isinstance(error, SystemExit):
        cause, message = "plugin", f"something in the job called sys.exit({error.code!r})"
    elif isinstance(error, MemoryError):
        cause, message = "oom", f"out of memory: {error}"
    elif isinstance(error, EnvironmentProblem):
        cause, message = "disk", str(error)
    elif isinstance(error, LtbenchError):
        cause, message = "code", str(error)
    else:
        cause, message = "code", f"{type(error).__name__}: {error}"
    trace = "".join(traceback.format_exception(error))
    return {
        "outcome": "failed",
        "cause": cause,
        "message": message,
        "traceback": trace[-20_000:],
        "recorded": False,
    }


def _run(
    job: dict[str, Any], run_job: Callable[..., dict[str, Any]], channel: Channel, stop: StopFlag
) -> None:
    stop.listen()
    os.environ.update(job.get("environment", {}))  # its rank in this stage, as torchrun or srun would tell it
    try:
        result = run_job(
            job["store"],
            job["scratch"],
            job["cell"],
            job["run"],
            job["stage"],
            job["options"],
            on_event=channel.send,
            stop=stop,
        )
    except BaseException as error:  # SystemExit and KeyboardInterrupt of plugin code included
        channel.leave_fork()
        result = {**failure(error), "retire": True}
    channel.leave_fork()
    sys.stdout.flush()
    sys.stderr.flush()
    channel.send({**result, "type": "result", "cell": job["cell"], "stage": job["stage"]})


def main(argv: list[str] | None = None) -> int:
    """Run jobs until the driver closes the pipe; 0, or 1 when the job's module cannot be imported."""
    parser = argparse.ArgumentParser(prog="python -m ltbench.launch.worker", description=__doc__)
    parser.add_argument("--driver", type=int, required=True, help="process id of the driver")
    parser.add_argument("--threads", type=int, default=1, help="threads for torch")
    parser.add_argument("--job", default=DEFAULT_JOB, help="the function that runs one stage")
    args = parser.parse_args(argv)
    channel, stop = Channel(), StopFlag(args.driver)
    stop.listen()
    _die_with_driver()
    faulthandler.enable(file=2)
    faulthandler.register(signal.SIGUSR1, file=2)
    try:
        run_job = load_job(args.job)
        device = _use_threads(args.threads)
    except Exception as error:  # whatever an import can raise is the driver's to print
        channel.send({**failure(error), "type": "broken"})
        return 1
    channel.send({"type": "hello", "pid": os.getpid(), "device": device, "threads": args.threads})
    for job in channel.jobs(stop):
        _run(job, run_job, channel, stop)
    return 0


if __name__ == "__main__":
    sys.exit(main())
