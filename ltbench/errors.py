"""Errors that a person can act on: what was wrong, where, the value, what is allowed, what to do.

Every error the command line prints on purpose descends from `LtbenchError`; its `exit_code` is the process's (design: 0 ok,
1 some cells failed, 2 bad spec or usage, 3 drift, 4 environment).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


class LtbenchError(Exception):
    """An error with a remedy. `hint` says what to do next and is printed on a line of its own."""

    exit_code = 1

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint

    def __str__(self) -> str:
        return self.message if self.hint is None else f"{self.message}\n  {self.hint}"


class UsageError(LtbenchError):
    """A command was called with something it does not take."""

    exit_code = 2


class DriftError(LtbenchError):
    """Numbers moved away from the published or the pinned ones."""

    exit_code = 3


class EnvironmentProblem(LtbenchError):
    """The machine lacks something: a writable store, disk, data, weights."""

    exit_code = 4


@dataclass(frozen=True)
class Problem:
    """One mistake in a spec. `line` and `column` count from 1; None where the mistake has no place in a file."""

    message: str
    file: str | None = None
    line: int | None = None
    column: int | None = None
    value: str | None = None
    allowed: str | None = None
    suggestion: str | None = None

    def __str__(self) -> str:
        where = ":".join(str(part) for part in (self.file, self.line, self.column) if part is not None)
        text = f"{where}: {self.message}" if where else self.message
        if self.value is not None:
            text += f" (got {self.value})"
        if self.allowed is not None:
            text += f"; allowed: {self.allowed}"
        if self.suggestion is not None:
            text += f"; did you mean '{self.suggestion}'?"
        return text


class SpecError(LtbenchError):
    """All mistakes of a spec at once."""

    exit_code = 2

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(str(problem) for problem in self.problems))


def first_line(error: BaseException) -> str:
    """What an error of somebody else's code says, in one line."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
