"""A finding, and how other programs are asked."""

from __future__ import annotations

import subprocess
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

Level = Literal["ok", "warning", "will fail"]
LEVELS: tuple[Level, ...] = ("will fail", "warning", "ok")


@dataclass(frozen=True)
class Finding:
    """topic: what was looked at, in a word. remedy: one sentence, "" where nothing is to be done."""

    topic: str
    level: Level
    message: str
    remedy: str = ""

    def json(self) -> dict[str, Any]:
        """As a JSON object."""
        return asdict(self)


def ok(topic: str, message: str) -> Finding:
    return Finding(topic, "ok", message)


def warning(topic: str, message: str, remedy: str) -> Finding:
    return Finding(topic, "warning", message, remedy)


def failure(topic: str, message: str, remedy: str) -> Finding:
    return Finding(topic, "will fail", message, remedy)


@dataclass(frozen=True)
class Said:
    """What a program answered."""

    code: int
    out: str
    err: str

    @property
    def reason(self) -> str:
        """The last line of its complaint."""
        lines = (self.err.strip() or self.out.strip()).splitlines()
        return lines[-1].strip() if lines else f"exit code {self.code}"


def call(words: Sequence[str], seconds: float = 30.0, text: str | None = None) -> Said | None:
    """Run a program; None where it does not exist or does not answer within `seconds`."""
    try:
        done = subprocess.run(
            words, input=text, capture_output=True, text=True, timeout=seconds, errors="replace"
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return Said(done.returncode, done.stdout, done.stderr)
