"""Take away what was judged to go: asked once more whether somebody needs it, renamed aside, asked again, deleted.

A rename is one step, so nobody ever sees half of a thing. What a kill leaves is a half-written name that the next `gc` lists among
the leftovers. Whoever begins between the two questions finds the thing put back; whoever begins after them finds it gone.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ltbench import files
from ltbench.clearing.items import Item, measure
from ltbench.clearing.living import Life

SHARED = ("features", "samples", "references", "latents", "compiled", "downloads", "answers", "data")


@dataclass(frozen=True)
class Removed:
    """What became of an item: gone, kept because somebody needs it after all, or failed. bytes, files: freed."""

    item: Item
    outcome: Literal["gone", "kept", "failed"]
    why: str = ""
    bytes: int = 0
    files: int = 0

    def json(self) -> dict[str, Any]:
        """As a JSON object."""
        return {**self.item.json(), "outcome": self.outcome, "reason": self.why, "freed": self.bytes}


def remove(items: Iterable[Item], life: Life, roots: Sequence[Path]) -> Iterator[Removed]:
    """Delete those of `items` that are to go, one after another. roots: nothing outside these folders is touched, nor what is
    reached from them through a link."""
    chosen = [item for item in items if item.verdict == "goes"]
    shared = [item.kind for item in chosen if item.kind in SHARED]
    in_use = life.anyone_again() if shared else None
    for item in chosen:
        yield _remove(item, lambda item=item: needed(item, life, in_use), roots)


def needed(item: Item, life: Life, in_use: str | None) -> str | None:
    """Why an item must stay, asked anew; None: it may go. in_use: why what cells share must."""
    if item.kind == "leftovers":
        return "a process is writing it" if files.writer(item.path.name) == "here" else None
    if item.kind == "snapshots":
        user = life.uses(str(item.path))
        return None if user is None else f"submission {user} needs it"
    if item.kind in SHARED:
        return in_use
    return None if item.cell is None else life.again(item.cell, item.run)


def _remove(item: Item, still: Callable[[], str | None], roots: Sequence[Path]) -> Removed:
    path = item.path
    if (why := still()) is not None:
        return Removed(item, "kept", why)
    if not below(path, roots) or path.is_symlink():
        return Removed(item, "kept", "a link leads to it")
    aside = files.temporary_beside(path)
    try:
        os.rename(path, aside)
    except FileNotFoundError:
        return Removed(item, "gone")
    except OSError as error:
        return Removed(item, "failed", error.strerror or str(error))
    if (why := still()) is not None and _put_back(aside, path):
        return Removed(item, "kept", why)
    why = _delete(aside)
    left = measure(aside)
    freed = item.size.bytes - left.bytes, item.size.files - left.files
    return Removed(item, "gone" if why is None else "failed", why or "", *freed)


def below(path: Path, roots: Sequence[Path]) -> bool:
    """Whether a path lies below one of the folders, with real folders all the way."""
    for root in roots:
        if path != root and path.is_relative_to(root):
            between = path.parent.relative_to(root).parts
            steps = [root.joinpath(*between[: number + 1]) for number in range(len(between))]
            return not any(step.is_symlink() for step in steps)
    return False


def _put_back(aside: Path, path: Path) -> bool:
    """False where another has begun anew in the meantime: then what was aside is of no use to anybody."""
    try:
        if os.path.lexists(path):
            return False
        os.rename(aside, path)
    except OSError:
        return False
    return True


def _delete(path: Path) -> str | None:
    """Why it could not be deleted as a whole; None where it was. A link inside goes, what it leads to stays."""
    try:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
            if os.path.lexists(path):
                shutil.rmtree(path)
        else:
            path.unlink(missing_ok=True)
    except OSError as error:
        return f"{error.strerror or error} ({error.filename})"
    return None
