"""What a method could leave changed in its process, and how the engine keeps that from the next cell.

A worker runs one cell after another. Its settings are noted before a method's file is imported; a change that alters
numbers ends the cell, every other one is put back, and what cannot be put back (threads, child processes) asks for a fresh
process. Random numbers outside the keyed streams are seeded by step, so even a method that uses them against the contract
repeats bit for bit.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import sys
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

import numpy as np
import torch

from ltbench.errors import LtbenchError


def _deterministic() -> tuple[bool, bool]:
    return torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()


def _set_deterministic(value: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(value[0], warn_only=value[1])


def _set_grad(value: bool) -> None:
    torch.set_grad_enabled(value)


def _set_tf32(value: bool) -> None:
    torch.backends.cuda.matmul.allow_tf32 = value


# Name, how it is read, how it is set: settings on which numbers depend.
NUMERIC: tuple[tuple[str, Callable[[], Any], Callable[[Any], None]], ...] = (
    ("torch's default dtype", torch.get_default_dtype, torch.set_default_dtype),
    ("torch's default device", torch.get_default_device, torch.set_default_device),
    ("torch's grad mode", torch.is_grad_enabled, _set_grad),
    ("torch's number of threads", torch.get_num_threads, torch.set_num_threads),
    ("torch's deterministic algorithms", _deterministic, _set_deterministic),
    ("TF32 matrix products", lambda: torch.backends.cuda.matmul.allow_tf32, _set_tf32),
)


def _cwd() -> str | None:
    try:
        return os.getcwd()
    except OSError:  # the folder was removed
        return None


def _set_cwd(path: str | None) -> None:
    if path is not None:
        with contextlib.suppress(OSError):
            os.chdir(path)


def _set_environment(values: dict[str, str]) -> None:
    os.environ.clear()
    os.environ.update(values)


def _handlers() -> dict[int, Any]:
    return {number: signal.getsignal(number) for number in signal.valid_signals() if number < 32}


def _set_handlers(handlers: dict[int, Any]) -> None:
    if threading.current_thread() is not threading.main_thread():
        return
    for number, handler in handlers.items():
        if handler is not None and signal.getsignal(number) is not handler:
            with contextlib.suppress(OSError, ValueError):
                signal.signal(number, handler)


def _timer() -> float:
    return signal.getitimer(signal.ITIMER_REAL)[0]


def _set_timer(seconds: float) -> None:
    signal.setitimer(signal.ITIMER_REAL, seconds)


# Settings on which no number depends, but the next cell may.
SURROUNDINGS: tuple[tuple[str, Callable[[], Any], Callable[[Any], None]], ...] = (
    ("the working directory", _cwd, _set_cwd),
    ("environment variables", lambda: dict(os.environ), _set_environment),
    ("signal handlers", _handlers, _set_handlers),
    ("the alarm timer", _timer, _set_timer),
    ("sys.path", lambda: list(sys.path), lambda value: sys.path.__setitem__(slice(None), value)),
    ("the recursion limit", sys.getrecursionlimit, sys.setrecursionlimit),
)


class ProcessChanged(LtbenchError):
    """A method changed a setting of the process on which numbers depend."""


class Guard:
    """`with Guard() as guard:` around everything that a method's code may run in.

    At the end every setting is as it was. `changed` then says in words what was put back, and `tainted` whether something
    is left that cannot be: a thread or a child process.
    """

    def __init__(self) -> None:
        import torch._dynamo  # noqa: F401  an optimiser's doing, not the method's; its environment variable changes ours

        self._pid = os.getpid()
        self._numeric = [read() for _, read, _ in NUMERIC]
        self._around = [read() for _, read, _ in SURROUNDINGS]
        self._threads = threading.active_count()
        self._children = has_children()
        self.changed: list[str] = []
        self.tainted = False

    def __enter__(self) -> Guard:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.leave_fork()
        self.changed += self._restore(NUMERIC, self._numeric) + self._restore(SURROUNDINGS, self._around)
        self.tainted = threading.active_count() > self._threads or (has_children() and not self._children)

    def leave_fork(self) -> None:
        """End a child that a method forked and that came back: it must not train, write or release anything."""
        if os.getpid() != self._pid:
            os._exit(0)

    def check(self) -> None:
        """Between steps: end a forked child; raise ProcessChanged where a setting that numbers depend on has changed."""
        self.leave_fork()
        for (name, read, _), before in zip(NUMERIC, self._numeric, strict=True):
            now = read()
            if now != before:
                raise ProcessChanged(
                    f"the method changed {name} from {before} to {now}",
                    "a method leaves the settings of its process as they are: convert its own tensors instead",
                )

    def differences(self) -> list[str]:
        """In words, every setting that is not as it was."""
        return self._told(NUMERIC, self._numeric) + self._told(SURROUNDINGS, self._around)

    def _restore(self, table: Any, before: list[Any]) -> list[str]:
        told = self._told(table, before)
        if told:
            for (_, read, put), value in zip(table, before, strict=True):
                if read() != value:
                    put(value)
        return told

    @staticmethod
    def _told(table: Any, before: list[Any]) -> list[str]:
        told = []
        for (name, read, _), value in zip(table, before, strict=True):
            now = read()
            if now != value:
                short = isinstance(value, dict | list)
                told.append(f"{name}: {_parts(value, now)}" if short else f"{name}: {value} -> {now}")
        return told


def _parts(before: Any, now: Any) -> str:
    """Which entries of a dict or list differ."""
    if isinstance(before, dict):
        keys = [key for key in {**before, **now} if before.get(key) != now.get(key)]
        return ", ".join(signal.Signals(key).name if isinstance(key, int) else str(key) for key in keys[:5])
    return ", ".join(str(item) for item in now if item not in before) or "entries removed"


def has_children() -> bool:
    """Whether this process has a child, running or dead and not waited for. False where the system cannot say."""
    if not hasattr(os, "waitid"):
        return False
    try:
        os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    except ChildProcessError:
        return False
    return True


def seed_globals(seed: int) -> None:
    """Seed the generators that no method may use (torch's, NumPy's and Python's own), so that one that does repeats."""
    torch.manual_seed(seed)
    np.random.seed(seed & 0xFFFFFFFF)
    random.seed(seed)
