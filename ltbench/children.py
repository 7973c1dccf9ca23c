"""Waiting for a child process no longer than one is willing to."""

from __future__ import annotations

import json
import os
import signal
import tempfile
import time
from collections.abc import Callable
from typing import Any


def wait_or_kill(pid: int, seconds: float) -> int | None:
    """The exit code of a child as `subprocess` counts it; None when it had to be killed after `seconds`."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    return None


def in_fork(work: Callable[[], Any], seconds: float) -> tuple[int | None, Any]:
    """(exit code, what `work` gave, through JSON) of a fork; no code where it had to be killed, None where it gave nothing."""
    with tempfile.TemporaryFile("w+") as told:
        pid = os.fork()
        if pid == 0:
            try:
                told.write(json.dumps(work()))
                told.flush()
            finally:
                os._exit(0)  # without any handler that `work` may have left
        code = wait_or_kill(pid, seconds)
        told.seek(0)
        text = told.read()
    return code, json.loads(text) if text else None
