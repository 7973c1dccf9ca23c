"""Waiting for a child process no longer than one is willing to."""

from __future__ import annotations

import os
import signal
import time


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
