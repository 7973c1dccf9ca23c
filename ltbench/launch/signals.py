"""Signals that ask a run to stop, and how child processes are kept out of their way.

SLURM sends them to every process of a job, so each kind of process has its answer: a driver stops at the next step boundary,
a worker takes SIGTERM from anybody and ignores SIGUSR2, and helpers that a driver starts are shielded from both.
"""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

WARNING = signal.SIGUSR2  # what a profile's --signal asks SLURM for; USR1 would be NCCL's
STOPS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, WARNING)
_SHIELDED = (signal.SIGTERM, WARNING)


@contextmanager
def shielded() -> Iterator[None]:
    """Processes started inside inherit a mask that keeps both signals waiting, until they call `unshield`; threads likewise.

    A handler would not do: it is gone after exec, and the default is to die.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _SHIELDED)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def unshield() -> None:
    """Let through what came meanwhile: after the handlers are in place."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SHIELDED)
