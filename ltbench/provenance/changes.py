"""What changed between two codes, in sentences: "methods/ccua.py: method `CCUA.loss` changed"."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ltbench.provenance import Code


def changes(old: Code, new: Code) -> list[str]:
    """What changed between two codes, in sentences; components that only one of them has are left out."""
    said: list[str] = []
    for component in sorted(set(old) & set(new)):
        if old[component]["digest"] == new[component]["digest"]:
            continue
        before, after = old[component].get("files", {}), new[component].get("files", {})
        found = [
            line
            for path in sorted({*before, *after})
            for line in _file_changes(path, before.get(path), after.get(path))
        ]
        said += found or [f"the {component} code changed"]
    return list(dict.fromkeys(said))


def _file_changes(path: str, old: dict[str, str] | None, new: dict[str, str] | None) -> Iterator[str]:
    if old is None or new is None:
        yield f"{path}: {'is new' if old is None else 'is no longer used'}"
        return
    for name in sorted({*old, *new}):
        if old.get(name) != new.get(name):
            verb = "added" if name not in old else "removed" if name not in new else "changed"
            kind, _, own = name.partition(" ")
            yield f"{path}: {kind} `{own}` {verb}" if own else f"{path}: {kind} {verb}"
