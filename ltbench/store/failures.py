"""Failures of stages: what is written down of one, with its secrets hidden, and reading them back."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from ltbench import files, redact
from ltbench.store import claims, sealed
from ltbench.store.kept import Reads

CAUSES = ("nan", "unsupported", "oom", "plugin", "data", "disk", "killed", "code")
CAUSES += (
    "preempted",
    "node",
    "timeout",
    "cancelled",
    "no-progress",
)  # ends of a SLURM job that its processes could not write down
TRACEBACK_LIMIT = 20_000  # characters


def content(stage: str, attempt: int, fields: Mapping[str, Any]) -> dict[str, Any]:
    """What is kept of a failure. Raises ValueError for a cause that is none of CAUSES."""
    if fields.get("cause") not in CAUSES:
        raise ValueError(f"cause {fields.get('cause')!r} is not one of {', '.join(CAUSES)}")
    traceback = redact.clean(fields.get("traceback") or "")[-TRACEBACK_LIMIT:]
    told = redact.clean_all(sealed.finite({**fields, "traceback": traceback}))
    return {
        "format": sealed.FORMAT,
        "stage": claims.check_stage(stage),
        "attempt": attempt,
        "time": now(),
    } | told


def read(
    places: Sequence[str], reads: Reads, stage: str | None = None
) -> Iterator[tuple[str, str, dict[str, Any] | str]]:
    """(folder, file, content or the reason why it cannot be read) by stage and attempt, of files that are named for `stage`.

    places: the run's folder in every layer.
    """
    for place in places:
        folder = f"{place}/failed"
        there = reads.names(folder)
        own = there if stage is None else [name for name in there if name.startswith(f"{stage}.")]
        for name in sorted(own, key=stage_and_attempt):
            try:
                value = reads.sealed(f"{folder}/{name}")
            except FileNotFoundError:
                continue
            except files.Unreadable as problem:
                value = problem.reason
            yield folder, name, value


def stage_and_attempt(name: str) -> tuple[str, int, str]:
    """Of a failure's file name; the name itself last, as an order for those that are misnamed."""
    stage, _, number = name.removesuffix(".json").partition(".")
    return stage, int(number) if number.isdigit() else 0, name


def now() -> str:
    """The time for people, never for comparisons."""
    return datetime.now(UTC).isoformat(timespec="seconds")
