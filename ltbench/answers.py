"""What is known of cells before they run: whether a method supports its task and its frozen encoders can be had.

A question is the part of a cell's settings on which the answer depends, with the code that would answer. The child process of
`ltbench.questions` answers; answers are kept under the scratch root, where losing them costs a few seconds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from ltbench import files, provenance
from ltbench.canonical import digest

FORMAT = 1
TRAIN = (
    "batch",
    "local_batch",
    "dropout",
    "passes",
    "precision",
    "augment",
)  # of the recipe, what a method may look at


@dataclass(frozen=True)
class Answer:
    """yes; unsupported: the method's own reason; impossible: what this machine lacks; broken: the method's file fails."""

    kind: Literal["yes", "unsupported", "impossible", "broken"]
    reason: str = ""


def question(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a cell's settings that the answer depends on; equal for all seeds."""
    own = {name: settings[name] for name in ("dataset", "pipeline", "network", "method", "resample")}
    return {**own, "train": {name: settings["train"][name] for name in TRAIN if name in settings["train"]}}


class Answers:
    """The answers kept in a scratch folder, each read once."""

    def __init__(self, scratch: Path) -> None:
        self.folder = scratch / "derived" / "answers"
        self._keys: dict[str, str] = {}
        self._read: dict[str, Answer | None] = {}

    def of(self, settings: Mapping[str, Any]) -> Answer | None:
        """What is known of a cell with these settings; None where nobody has asked yet, or the code has changed since."""
        if not self._read and not self.folder.is_dir():
            return None
        key = self.key(settings)
        if key not in self._read:
            self._read[key] = _read(self.folder / f"{key}.json")
        return self._read[key]

    def key(self, settings: Mapping[str, Any]) -> str:
        """16 hex digits of a question and the code that answers it."""
        asked = digest(question(settings))
        if asked not in self._keys:
            code = provenance.train_code(settings)
            parts = {part: entry["digest"] for part, entry in code.items()}
            self._keys[asked] = digest({"format": FORMAT, "question": asked, "code": parts})[:16]
        return self._keys[asked]

    def keep(self, key: str, answer: Answer) -> None:
        """Remember an answer; one that cannot be written is asked for again next time."""
        self._read[key] = answer
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            files.replace(self.folder / f"{key}.json", json.dumps(asdict(answer)).encode(), durable=False)
        except (OSError, files.StorageProblem):
            return


def _read(path: Path) -> Answer | None:
    try:
        return Answer(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
