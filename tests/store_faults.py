"""Faults to put under the store: a kill or an error at the n-th system call of an action."""

from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

CALLS = ("open", "write", "fsync", "link", "rename", "replace", "unlink", "mkdir")
FAILED = 70  # exit status of a child whose action raised

Strike = Callable[[str, Callable[..., Any], tuple[Any, ...]], Any]


@contextmanager
def counting(
    strike: Strike | None = None,
    at: int = 0,
    *,
    lasting: bool = False,
    only: Callable[..., bool] | None = None,
) -> Iterator[list[str]]:
    """Within the block the calls of os are counted into the list; the `at`-th (and, `lasting`, all later ones) is handed to
    `strike` instead. `only(name, args)` says which calls count."""
    seen: list[str] = []
    real = {name: getattr(os, name) for name in CALLS}

    def stand_in(name: str) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if only is not None and not only(name, args):
                return real[name](*args, **kwargs)
            seen.append(name)
            if strike is not None and (len(seen) == at or (lasting and len(seen) > at)):
                return strike(name, real[name], args)
            return real[name](*args, **kwargs)

        return call

    for name in CALLS:
        setattr(os, name, stand_in(name))
    try:
        yield seen
    finally:
        for name, function in real.items():
            setattr(os, name, function)


def kill(name: str, real: Callable[..., Any], args: tuple[Any, ...]) -> None:
    """SIGKILL ourselves; a write is torn in the middle first."""
    if name == "write":
        real(args[0], bytes(args[1])[: len(args[1]) // 2])
    os.kill(os.getpid(), signal.SIGKILL)


def error(code: int) -> Strike:
    """A strike that fails with this errno."""

    def strike(name: str, real: Callable[..., Any], args: tuple[Any, ...]) -> Any:
        raise OSError(code, os.strerror(code))

    return strike


def writes(name: str, args: tuple[Any, ...]) -> bool:
    """Whether a call can meet a full disk."""
    return name not in ("open", "unlink") or (name == "open" and bool(args[1] & os.O_CREAT))


def fork(action: Callable[[], Any]) -> int:
    """Run `action` in a forked child and return its pid; it exits 0, FAILED after an exception, or is killed."""
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", DeprecationWarning
        )  # Python 3.12 about threads; the child only touches files
        pid = os.fork()
    if pid:
        return pid
    status = FAILED
    try:
        action()
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(status)


def wait(pid: int) -> int:
    """The exit status of a child, negative for the signal that killed it."""
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def until(condition: Callable[[], Any], seconds: float = 300.0) -> None:
    """Wait for `condition`; an AssertionError when it does not come."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"waited for {seconds} s in vain"
        time.sleep(0.005)


@contextmanager
def children(actions: Iterable[Callable[[], Any]]) -> Iterator[list[int]]:
    """Run each action in a child; none outlives the block."""
    pids = [fork(action) for action in actions]
    try:
        yield pids
    finally:
        for pid in pids:
            with suppress(ProcessLookupError, ChildProcessError):
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)


def calls_of(action: Callable[[], Any], **options: Any) -> int:
    """How many calls an undisturbed `action` makes."""
    with counting(**options) as seen:
        action()
    return len(seen)


def kill_at(action: Callable[[], Any], number: int) -> int:
    """Run `action` in a child that is killed at its `number`-th call; its exit status."""

    def doomed() -> None:
        with counting(kill, number):
            action()

    return wait(fork(doomed))


def leftovers(folder: Path) -> list[Path]:
    """Every temporary name below `folder`."""
    return sorted(folder.rglob(".tmp-*"))


def scaled(number: int) -> int:
    """`number`, or ten times it when `make faults` asks for LTBENCH_KILLS=1000."""
    return number * max(1, int(os.environ.get("LTBENCH_KILLS", "100")) // 100)


def damage(data: bytes, number: int, rng: Any) -> bytes:
    """A damaged copy: in turn a flipped bit, a cut, a hole of zeros. `rng` is a random.Random."""
    spot = rng.randrange(len(data))
    if number % 3 == 0:
        return data[:spot] + bytes([data[spot] ^ (1 << rng.randrange(8))]) + data[spot + 1 :]
    if number % 3 == 1:
        return data[:spot]
    while data[spot] == 0:
        spot = rng.randrange(len(data))
    end = min(len(data), spot + rng.randrange(1, 4096))
    return data[:spot] + bytes(end - spot) + data[end:]


DISK_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.ESTALE)


def in_own_mounts(script: str, *arguments: object) -> None:
    """Run Python in a mount namespace of its own; skipped, loudly, where that is not permitted."""
    if (
        shutil.which("unshare") is None
        or subprocess.run(["unshare", "-m", "true"], capture_output=True).returncode
    ):
        pytest.skip("NOT TESTED: full and read-only disks, for want of the right to mount (unshare -m)")
    command = ["unshare", "-m", sys.executable, "-c", script, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
