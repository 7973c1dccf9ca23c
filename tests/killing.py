"""A fork server that kills: torch is imported once, every attempt is a fork, and the parent sends SIGKILL when it likes."""

from __future__ import annotations

import os
import random
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

CALLS = ("fsync", "link", "rename", "replace", "write")  # what a commit is made of


def attempt(work: Callable[[], None], log: Path, *, kill_after: float | None = None) -> bool:
    """Run `work` in a fork, SIGKILLed after so many seconds; whether it came to its end. Raises when it failed by itself."""
    child = os.fork()
    if child == 0:
        try:
            work()
        except BaseException:
            log.write_text(traceback.format_exc())
            os._exit(1)
        os._exit(0)
    status = _wait(child, kill_after)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status) == 1:
        raise AssertionError(log.read_text())
    assert os.WIFEXITED(status) or os.WTERMSIG(status) == signal.SIGKILL, f"ended with status {status}"
    return os.WIFEXITED(status)


def _wait(child: int, kill_after: float | None) -> int:
    if kill_after is None:
        return os.waitpid(child, 0)[1]
    end = time.monotonic() + kill_after
    while time.monotonic() < end:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return status
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    return os.waitpid(child, 0)[1]


def die_in_write(number: int) -> dict[str, Callable[..., object]]:
    """SIGKILL oneself before or after the `number`-th system call of a commit from now on: by turns, so that both sides are seen.

    The functions as they were, by name.
    """
    left = [number]
    originals = {name: getattr(os, name) for name in CALLS}

    def mortal(name: str) -> Callable[..., object]:
        def call(*args: object, **kwargs: object) -> object:
            left[0] -= 1
            if left[0] == 0 and number % 2:
                os.kill(os.getpid(), signal.SIGKILL)
            result = originals[name](*args, **kwargs)
            if left[0] == 0:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call

    for name in CALLS:
        setattr(os, name, mortal(name))
    return originals


@contextmanager
def dying_in_write(number: int) -> Iterator[None]:
    """`die_in_write` within the block."""
    originals = die_in_write(number)
    try:
        yield
    finally:
        for name, original in originals.items():
            setattr(os, name, original)


def count_calls(work: Callable[[], None], log: Path) -> int:
    """How many system calls of commits `work` makes, counted in a fork."""

    def counting() -> None:
        made = [0]
        for name in CALLS:
            original = getattr(os, name)

            def call(*args: object, _original: Callable[..., object] = original, **kwargs: object) -> object:
                made[0] += 1
                return _original(*args, **kwargs)

            setattr(os, name, call)
        work()
        log.write_text(str(made[0]))

    attempt(counting, log)
    return int(log.read_text())


def kill_until_done(
    work: Callable[[], None], log: Path, chance: random.Random, seconds: float, calls: int
) -> tuple[int, int]:
    """Kill `work` again and again until it comes to its end; (kills at a random time, kills inside a write)."""
    timed = inside = 0
    for _ in range(200):
        if chance.random() < 0.3:
            number = chance.randint(1, calls)

            def mortal(number: int = number) -> None:
                with dying_in_write(number):
                    work()

            if attempt(mortal, log):
                return timed, inside
            inside += 1
        else:
            if attempt(work, log, kill_after=chance.uniform(0, seconds)):
                return timed, inside
            timed += 1
    raise AssertionError("200 kills and no end: every attempt repeats the work of the one before")
