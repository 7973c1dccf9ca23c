"""Which log holds what a cell's attempt printed: stages.jsonl beside the logs of one run's workers, written by its driver alone."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

NAME = "stages.jsonl"


@dataclass
class Part:
    """A stretch of a worker's log: what one attempt at a stage printed. end is None while it goes on. job: the SLURM job of which it
    is all that this said itself, over all its starts."""

    cell: str
    stage: str
    attempt: int
    log: Path
    begin: int
    time: float
    host: str
    end: int | None = None
    outcome: str | None = None
    job: str | None = None


class LogIndex:
    """The driver's side: a line when a stage is claimed, a line when it ends. A disk that is full costs lines, not the run."""

    def __init__(self, folder: Path) -> None:
        self._path = folder / NAME
        self._file: IO[str] | None = None

    def begin(self, cell: str, stage: str, attempt: int, log: Path) -> None:
        """An attempt has begun; what follows in `log` is its own."""
        told = {
            "cell": cell,
            "stage": stage,
            "attempt": attempt,
            "time": time.time(),
            "host": os.uname().nodename,
        }
        self._write({**told, "log": log.name, "begin": _size(log)})

    def end(self, cell: str, stage: str, log: Path, outcome: str) -> None:
        """The attempt is over."""
        self._write({"cell": cell, "stage": stage, "log": log.name, "end": _size(log), "outcome": outcome})

    def _write(self, line: dict[str, Any]) -> None:
        try:
            if self._file is None:
                self._file = self._path.open("a", encoding="utf-8")
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()
        except OSError:
            return

    def close(self) -> None:
        """Close the file."""
        if self._file is not None:
            self._file.close()


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def parts(folder: Path, cell: str) -> Iterator[Part]:
    """What `folder` (of one run) holds of a cell, in the order in which it began; a line that was cut short is left out."""
    open_: dict[tuple[str, str], Part] = {}
    found: list[Part] = []
    try:
        text = (folder / NAME).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return
    for line in text.splitlines():
        if cell not in line:
            continue
        try:
            told = json.loads(line)
        except ValueError:
            continue
        key = (told["stage"], told["log"])
        if "begin" in told:
            fields = {name: told[name] for name in ("cell", "stage", "attempt", "begin", "time", "host")}
            open_[key] = Part(log=folder / told["log"], **fields)
            found.append(open_[key])
        elif key in open_:
            open_[key].end, open_[key].outcome = told["end"], told["outcome"]
    yield from found


def folders(scratch: Path) -> Iterator[Path]:
    """Every folder of logs below `scratch`: of runs on some machine, and of the elements of submitted arrays."""
    for place in (scratch / "logs", *sorted(scratch.glob("submissions/*/logs"))):
        yield from (path.parent for path in sorted(place.glob(f"*/{NAME}")))


def of_cell(scratch: Path, cell: str) -> list[Part]:
    """Everything that was printed about a cell, oldest first."""
    return sorted(
        (part for folder in folders(scratch) for part in parts(folder, cell)), key=lambda part: part.time
    )
