"""How the command line speaks: results to stdout, everything else to stderr, JSON on request, plain text without a terminal.

Both may be kept (a SLURM job's are, by default), so no secret gets into them.
"""

from __future__ import annotations

import functools
import json
import os
import re
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from typing import IO, TYPE_CHECKING, Any

from ltbench import redact
from ltbench.errors import LtbenchError

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

_PLAIN = re.compile(r"[\n\t\x20-\x7e]*")
_ACTING = ("Cc", "Cf", "Cs", "Co")  # control, format (text that runs backwards), surrogate, private
_NESTED = frozenset({dict, list})  # what `clean_all` leaves of things that hold others
PIPE_WIDTH = 200  # columns where nobody looks: wide enough that a line stays one line for grep


def console(*, stderr: bool = False) -> Console:
    """A rich console that neither colours numbers nor reads markup in text that came from files.

    Without a terminal it is `PIPE_WIDTH` wide (or COLUMNS), so that a pipe gets whole lines.
    """
    from rich.console import Console

    file: IO[str] = sys.stderr if stderr else sys.stdout
    width = None if file.isatty() or os.environ.get("COLUMNS") else PIPE_WIDTH
    return Console(file=file, highlight=False, markup=False, emoji=False, soft_wrap=False, width=width)


def safe(text: str) -> str:
    """`text` without secrets, and with a mark for every character that would do something to a terminal but newline and tab."""
    return _shown(redact.clean(text))


def _shown(text: str) -> str:
    if _PLAIN.fullmatch(text):
        return text
    return "".join("\ufffd" if c not in "\n\t" and unicodedata.category(c) in _ACTING else c for c in text)


def say(text: str = "") -> None:
    """A line for the person at the terminal (stderr)."""
    print(safe(text), file=sys.stderr, flush=True)


def out(text: str = "") -> None:
    """A line of the result (stdout)."""
    print(safe(text))


def out_all(lines: Iterable[str]) -> None:
    """Thousands of lines of the result (stdout), as `out` has each: what is secret is found out once."""
    sys.stdout.writelines([f"{_shown(line)}\n" for line in redact.clean_all(list(lines))])


def dump(value: Any) -> None:
    """A result as JSON (stdout): strict, so never NaN."""
    print(_json(redact.clean_all(value)))


def _json(value: Any, depth: int = 0) -> str:
    """`json.dumps` with an indent of 1, which alone takes the encoder that is written in Python: here an object or a list without
    others in it is left to the one in C."""
    inner = list(value.values()) if isinstance(value, dict) else value if isinstance(value, list) else []
    between = ",\n" + " " * (depth + 1)
    if _NESTED.isdisjoint(map(type, inner)):
        text = _encoder(between).encode(value)
        return f"{text[0]}{between[1:]}{text[1:-1]}\n{' ' * depth}{text[-1]}" if inner else text
    said = [_json(item, depth + 1) for item in inner]
    if isinstance(value, dict):
        keys = [_encoder(",").encode({key: 0})[1:-4] for key in value]
        said = [f"{key}: {item}" for key, item in zip(keys, said, strict=True)]
    first, last = "{}" if isinstance(value, dict) else "[]"
    return f"{first}{between[1:]}{between.join(said)}\n{' ' * depth}{last}"


@functools.cache
def _encoder(between: str) -> json.JSONEncoder:
    return json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(between, ": "), default=str)


def table(
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    *,
    right: Sequence[str] = (),
    keep: Sequence[str] = (),
) -> None:
    """Rows under headings (stdout), without frames. `right` names columns set flush right, `keep` those never wrapped."""
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, pad_edge=False, show_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name in columns:
        justify = "right" if name in right else "left"
        grid.add_column(name, justify=justify, no_wrap=name in keep, overflow="fold")
    for row in rows:
        grid.add_row(*(Text(str(cell)) for cell in row))
    show(grid)


def show(picture: RenderableType) -> None:
    """Print something rich (stdout); in a pipe without the spaces that fill up its lines."""
    screen = console()
    screen.print(picture) if screen.is_terminal else out(plain(picture))


def plain(picture: RenderableType) -> str:
    """Something rich as text, without colours and without the spaces that fill up its lines."""
    screen = console()
    with screen.capture() as captured:
        screen.print(picture)
    return "\n".join(line.rstrip() for line in captured.get().rstrip("\n").split("\n"))


def complain(error: LtbenchError) -> int:
    """Print an error and its remedy, no traceback; return the exit code."""
    lines = error.message.splitlines() or [type(error).__name__]
    say(f"error: {lines[0]}" if len(lines) == 1 else "\n".join(["error:", *(f"  {line}" for line in lines)]))
    if error.hint:
        say("\n".join(f"  {line}" for line in error.hint.splitlines()))
    return error.exit_code


def duration(seconds: float | None) -> str:
    """Seconds as a person says them: `48 s`, `3 min 20 s`, `2 h 05 min`; `?` for None."""
    if seconds is None:
        return "?"
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"


def clip(text: str, width: int) -> str:
    """The first line of `text`, at most `width` characters, with an ellipsis where something was cut."""
    lines = text.strip().splitlines()
    first = lines[0] if lines else ""
    return first if len(first) <= width and len(lines) <= 1 else first[: max(0, width - 1)] + "…"


def plural(count: int, noun: str) -> str:
    """`1 cell`, `3 cells`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
