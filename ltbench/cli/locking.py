"""`report --lock` and `report --check`: the numbers of a paper pinned in a file, and what has moved since."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from ltbench.cli.output import out, plural, say
from ltbench.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ltbench.report.build import Report
    from ltbench.report.pins import Moved, Pins

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


def pinned_by(check: Path | None, lock: Path | None) -> Mapping[str, Pins]:
    """What the lock of --check pins, read before any table is made. Raises UsageError where there is no such file, or where it pins
    nothing, LtbenchError for a damaged one, also one that --lock would add to."""
    if check is None and lock is None:
        return {}
    from ltbench.report import pins

    if lock is not None and lock.exists():
        pins.read_lock(lock)
    known = {} if check is None else pins.read_lock(check)
    if check is not None and not known:
        raise UsageError(f"{check} pins nothing", "`report NAME --lock FILE` pins a report")
    return known


def settle(
    made: Report,
    as_: str | None,
    lock: Path | None,
    check: Path | None,
    known: Mapping[str, Pins],
    *,
    of_all: bool = False,
    quiet: bool = False,
) -> Moved | None:
    """Write the lock, or compare with it and say what moved (stdout; not if `quiet`); None where nothing was compared.

    A report that the lock `known` does not pin is an error, but `of_all` reports it is one more that moved.
    """
    if check is None and lock is None:
        return None
    from ltbench.report import pins

    name = made.table.name + (f" as {as_}" if as_ else "")
    if lock is not None:
        pinned = pins.pin(made.table, made.inputs, made.definition)
        if not pinned.numbers:
            say(f"note: {name} prints no number yet; the lock says so, and --check will list each as new")
        pins.write_lock(lock, name, pinned)
        say(
            f"lock  {lock}: {plural(len(pinned.numbers), 'number')} of {plural(len(pinned.records), 'record')}"
        )
    if check is None:
        return None
    if name not in known and of_all:
        moved = pins.Moved({"new": [f"{name}: not pinned at all; `--lock {check}` adds it"]})
        if not quiet:
            _tell(check, 0, moved)
        return moved
    if name not in known:
        raise UsageError(
            f"{check} does not pin {name}, but {', '.join(sorted(known)) or 'nothing'}",
            f"`--lock {check}` with the same words pins it there too; what the file pins already stays",
        )
    held = {record["digest"] for record in (*made.inputs.records, *made.inputs.externals)}
    moved = pins.compare(known[name], pins.pin(made.table, made.inputs, made.definition), held)
    if not quiet:
        _tell(check, len(known[name].numbers), moved)
    return moved


def unchecked(check: Path, known: Mapping[str, Pins], made: Sequence[Report]) -> None:
    """Say which reports a lock pins that `--all` has not made: those of benchmarks, or of other words."""
    if left := sorted(set(known) - {each.table.name for each in made}):
        say(
            f"not checked: {', '.join(left)}, which {check} pins too; `report NAME --check {check}` checks each"
        )


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
