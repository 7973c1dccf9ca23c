"""One thing on disk that may go or stay as a whole: its kind, its size, and the verdict. Links are never followed."""

from __future__ import annotations

import os
import stat
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ltbench import files

Verdict = Literal["goes", "asked", "stays"]

DAY = 86400.0  # seconds


@dataclass(frozen=True)
class Kind:
    """A kind of thing. free: it goes without being asked for by name. what: what it is, for --help."""

    name: str
    free: bool
    what: str


KINDS = {
    kind.name: kind
    for kind in (
        Kind("leftovers", True, "half-written by processes that are gone"),
        Kind("checkpoints", True, "of trainings that are over"),
        Kind("calls", True, "what submitit kept of jobs that are over"),
        Kind("snapshots", True, "code of submissions that are over"),
        Kind("stale", False, "checkpoints of unfinished trainings by other code"),
        Kind("weights", False, "EMA weights of milestones"),
        Kind("samples", False, "images that --keep-samples kept"),
        Kind("features", False, "features of generated images"),
        Kind("references", False, "features of real images"),
        Kind("latents", False, "encoded training images"),
        Kind("logs", False, "what runs on some machine printed"),
        Kind("submissions", False, "submissions that ended well, with their logs"),
        Kind("traces", False, "of run --profile-step"),
        Kind("answers", False, "what machines were found to lack"),
        Kind("compiled", False, "what Triton, Inductor and CUDA compiled"),
        Kind("downloads", False, "weights that fetch brought into scratch"),
        Kind("data", False, "data sets that datasets prepare made"),
        Kind("unknown", False, "cells of no store that is open, and what is not ours"),
    )
}
NAMED = ("data", "unknown")  # what --kind does not take: one is named itself, the other never goes


@dataclass
class Size:
    """bytes and files of everything in a tree. newest: the last change (seconds since 1970), 0 of nothing. link: it is a symbolic
    link itself. temporaries: half-written things inside, not counted. unread: folders that may not be listed."""

    bytes: int = 0
    files: int = 0
    newest: float = 0.0
    link: bool = False
    temporaries: list[Path] = field(default_factory=list)
    unread: list[Path] = field(default_factory=list)


@dataclass(frozen=True)
class Item:
    """A thing and what becomes of it. why: the reason, the same for many; detail: what is special to this one.

    cell, run: whose it is alone; None of what cells share. step: of a milestone.
    """

    kind: str
    path: Path
    size: Size
    verdict: Verdict
    why: str
    detail: str = ""
    cell: str | None = None
    run: str | None = None
    step: int | None = None

    def json(self) -> dict[str, Any]:
        """As a JSON object."""
        found = {
            name: getattr(self, name) for name in ("kind", "verdict", "why", "detail", "cell", "run", "step")
        }
        size = {"bytes": self.size.bytes, "files": self.size.files, "newest": self.size.newest}
        return {**found, "path": str(self.path), **size}


def measure(path: Path) -> Size:
    """How large a file or a tree is. What is removed meanwhile counts as far as it was seen."""
    found = Size()
    try:
        own = os.lstat(path)
    except OSError:
        return found
    found.link = stat.S_ISLNK(own.st_mode)
    found.newest = own.st_mtime
    if not stat.S_ISDIR(own.st_mode):
        found.bytes, found.files = own.st_size, 1
        return found
    waiting = [path]
    while waiting:
        folder = waiting.pop()
        try:
            entries = list(os.scandir(folder))
        except FileNotFoundError:
            continue
        except OSError:
            found.unread.append(folder)
            continue
        for entry in entries:
            if files.writer(entry.name) is not None:
                found.temporaries.append(Path(entry.path))
                continue
            try:
                told = entry.stat(follow_symlinks=False)
            except OSError:
                continue
            found.newest = max(found.newest, told.st_mtime)
            if stat.S_ISDIR(told.st_mode):
                waiting.append(Path(entry.path))
            else:
                found.bytes, found.files = found.bytes + told.st_size, found.files + 1
    return found
