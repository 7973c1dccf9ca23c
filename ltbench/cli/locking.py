"""`report --lock` and `report --check`: the numbers of a paper pinned in a file, and what has moved since."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ltbench.cli.output import out, plural, say
from ltbench.errors import UsageError

if TYPE_CHECKING:
    from ltbench.report.build import Report
    from ltbench.report.pins import Moved

_HEADINGS = {
    "value": "other values",
    "gone": "gone",
    "new": "new",
    "code": "made by other code",
    "formatting": "printed otherwise",
}


def one_of(lock: Path | None, check: Path | None) -> None:
    """Raises UsageError for both: which of the two states would the file then hold?"""
    if lock is not None and check is not None:
        raise UsageError("--lock writes a lock, --check compares with one: give one of them")


def settle(
    made: Report, as_: str | None, lock: Path | None, check: Path | None, *, quiet: bool = False
) -> Moved | None:
    """Write the lock, or compare with it and say what moved (stdout; not if `quiet`); None where nothing was compared."""
    from ltbench.report import pins

    name = made.table.name + (f" as {as_}" if as_ else "")
    if lock is not None:
        pinned = pins.pin(made.table, made.inputs, made.definition)
        pins.write_lock(lock, name, pinned)
        say(
            f"lock  {lock}: {plural(len(pinned.numbers), 'number')} of {plural(len(pinned.records), 'record')}"
        )
    if check is None:
        return None
    known = pins.read_lock(check)
    if name not in known:
        raise UsageError(f"{check} does not pin {name}, but {', '.join(sorted(known)) or 'nothing'}")
    held = {record["digest"] for record in (*made.inputs.records, *made.inputs.externals)}
    moved = pins.compare(known[name], pins.pin(made.table, made.inputs, made.definition), held)
    if not quiet:
        _tell(check, len(known[name].numbers), moved)
    return moved


def _tell(path: Path, numbers: int, moved: Moved) -> None:
    if not moved:
        out(f"{path}: nothing moved; {plural(numbers, 'number')} as pinned")
        return
    out(f"{path}: moved since it was written")
    for kind, lines in moved.lines.items():
        if lines:
            out(f"{_HEADINGS[kind]}:")
            for line in lines:
                out(f"  {line}")
