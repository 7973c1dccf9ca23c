"""Parts of a long run, each in its time: a process measures them one after another, and another one watches it.

The one that measures writes what it has after every part. A part that raises is told with its traceback, and the next one runs. The one
that watches ends a process whose part has overrun, or takes note that it died, and starts another for the parts that are left.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from ltbench import files

LINES = 40  # of a traceback that are kept
GRACE = 20.0  # seconds over a part's time, for what cannot be interrupted
POLL = 0.5


class Book(Protocol):
    """What parts are measured on. clean: called after each; raises where no other part can be measured in this process."""

    def clean(self) -> None: ...


@dataclass(frozen=True)
class Part:
    """name; seconds that it needs on a present card, compilation included; what it does. It is given twice its need at most."""

    name: str
    needs: float
    run: Callable[[Any], Any]


class Journal:
    """What is known so far, in a file: {part: its numbers, "seconds", "skipped", "failed", "running", "total_s"}."""

    def __init__(self, out: Path, about: dict[str, Any] | None = None) -> None:
        self.out = out
        self.told: dict[str, Any] = read(out) or {**(about or {}), "seconds": {}, "skipped": {}, "failed": {}}
        self.told.setdefault("total_s", 0.0)

    def left(self, names: Sequence[str]) -> list[str]:
        """The parts of which nothing is told."""
        return [name for name in names if not any(name in self.told[key] for key in ("seconds", "skipped"))]

    def write(self, **changes: Any) -> None:
        self.told |= changes
        write(self.out, self.told)

    def end(self, name: str, took: float, failed: str = "") -> None:
        """A part is over, and was measured unless it failed."""
        self.told["seconds"][name] = round(took, 1)
        if failed:
            self.told["failed"][name] = failed
        self.told.pop("running", None)
        self.write()


def read(out: Path) -> dict[str, Any] | None:
    """What was told, if anything was."""
    return json.loads(out.read_text()) if out.exists() else None


def write(out: Path, told: dict[str, Any]) -> None:
    """Beside it and renamed: whoever reads finds a whole file."""
    files.replace(out, (json.dumps(told, indent=1) + "\n").encode())


def run(book: Book, parts: Sequence[Part], journal: Journal, budget: float, patient: bool = False) -> None:
    """Every part of which nothing is told and that the time allows. patient: nobody watches, and a part is begun while any time is left."""
    if not patient and sys.__stderr__ is not None:
        faulthandler.register(signal.SIGUSR1, file=sys.__stderr__, all_threads=True)
    begun, before = time.monotonic(), journal.told["total_s"]
    left = journal.left([part.name for part in parts])
    for part in (part for part in parts if part.name in left):
        rest = budget - (time.monotonic() - begun)
        if rest <= 0 or (rest < part.needs and not patient):
            journal.told["skipped"][part.name] = f"needs {part.needs:.0f} s, {max(0.0, rest):.0f} s left"
            continue
        journal.write(running={"part": part.name, "since": time.time(), "seconds": min(rest, 2 * part.needs)})
        print(f"{part.name} ...", file=sys.stderr, flush=True)
        start, failed = time.monotonic(), ""
        try:
            found = part.run(book)
            journal.told[part.name] = found
            print(json.dumps({part.name: found}), file=sys.stderr, flush=True)
        except Exception:  # one part says nothing about the next
            failed = "\n".join(traceback.format_exc().splitlines()[-LINES:])
            print(failed, file=sys.stderr, flush=True)
        journal.told["total_s"] = round(before + time.monotonic() - begun, 1)
        journal.end(part.name, time.monotonic() - start, failed)
        book.clean()
    journal.write()


def supervise(command: Sequence[str], names: Sequence[str], budget: float, out: Path) -> None:
    """Run a command that measures `names` into `out` (by `run`, given --budget) until nothing is left to be measured."""
    begun = time.monotonic()
    while True:
        before = len(Journal(out).left(names))
        rest = budget - (time.monotonic() - begun)
        words = [*command, "--budget", f"{max(0.0, rest):.1f}"]
        process = subprocess.Popen(words, stdout=subprocess.DEVNULL, start_new_session=True)
        try:
            why = _watched(process, out)
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # what it has started to compile for it, too
            process.wait()
        journal = Journal(out)
        if (at := journal.told.get("running")) is not None:
            journal.end(at["part"], time.time() - at["since"], why)
        left = journal.left(names)
        if not left or len(left) == before:
            for name in left:
                journal.told["failed"][name] = f"not begun: {why}"
            journal.write(total_s=round(time.monotonic() - begun, 1))
            return


def _watched(process: subprocess.Popen[bytes], out: Path) -> str:
    """Wait until it has ended or is to be ended; why, in words."""
    while process.poll() is None:
        at = (read(out) or {}).get("running")
        if at is not None and time.time() > at["since"] + at["seconds"] + GRACE:
            process.send_signal(signal.SIGUSR1)  # it prints where it stands
            time.sleep(POLL)
            return f"ended after {time.time() - at['since']:.0f} s, {at['seconds']:.3g} s were allowed"
        time.sleep(POLL)
    return f"its process ended by itself with status {process.returncode}"
