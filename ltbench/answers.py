"""What is known of cells before they run: whether a method supports its task and its frozen encoders can be had.

A question is the part of a cell's settings on which the answer depends, with the code that would answer. The child process of
`ltbench.questions` answers. Answers are kept beside the store's records, so that a copy of the store can say n/a too; what
a machine lacks is kept in its scratch folder. Losing them costs a few seconds.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from operator import itemgetter
from pathlib import Path
from typing import Any, Literal

from ltbench import files, provenance, redact
from ltbench.canonical import digest
from ltbench.store import Store

FORMAT = 1
TRAIN = (
    "batch",
    "local_batch",
    "dropout",
    "passes",
    "precision",
    "augment",
)  # of the recipe, what a method may look at
PARTS = ("dataset", "pipeline", "network", "method", "resample", "train")  # of the settings
_PARTS = itemgetter(*PARTS)


@dataclass(frozen=True)
class Answer:
    """yes; unsupported: the method's own reason; impossible: what this machine lacks; broken: the method's file fails."""

    kind: Literal["yes", "unsupported", "impossible", "broken"]
    reason: str = ""


def question(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The part of a cell's settings that the answer depends on; equal for all seeds."""
    own = {name: settings[name] for name in PARTS if name != "train"}
    return {**own, "train": {name: settings["train"][name] for name in TRAIN if name in settings["train"]}}


class Answers:
    """The answers kept for a store, each read once."""

    def __init__(self, store: Store) -> None:
        self._store = store.root
        self._local, self._shared = (root / "derived" / "answers" for root in (store.scratch, store.root))
        self._keys: dict[str, str] = {}
        self._asked: dict[tuple[Any, ...], tuple[Mapping[str, Any], str]] = {}
        self._read: dict[str, Answer | None] = {}
        self._none = not self._local.is_dir() and not self._shared.is_dir()  # asked once: cells are thousands

    def of(self, settings: Mapping[str, Any]) -> Answer | None:
        """What is known of a cell with these settings; None where nobody has asked yet, or the code has changed since."""
        if self._none:
            return None
        key = self.key(settings)
        if key not in self._read:
            name = f"{key}.json"
            self._read[key] = _read(self._local / name) or _read(self._shared / name)
        return self._read[key]

    def key(self, settings: Mapping[str, Any]) -> str:
        """16 hex digits of a question and the code that answers it."""
        same = tuple(map(id, _PARTS(settings)))  # seeds share them
        if same not in self._asked:
            self._asked[same] = (settings, self._key(settings))  # kept, so that the ids stay their own
        return self._asked[same][1]

    def _key(self, settings: Mapping[str, Any]) -> str:
        asked = digest(question(settings))
        if asked not in self._keys:
            code = provenance.train_code(settings)
            parts = {part: entry["digest"] for part, entry in code.items()}
            self._keys[asked] = digest({"format": FORMAT, "question": asked, "code": parts})[:16]
        return self._keys[asked]

    def keep(self, key: str, answer: Answer) -> None:
        """Remember an answer; one that cannot be written is asked for again next time."""
        answer = replace(answer, reason=redact.clean(answer.reason))
        self._none, self._read[key] = False, answer
        shared = answer.kind != "impossible" and self._store.is_dir()  # a plan makes no store
        folder, name = self._shared if shared else self._local, f"{key}.json"
        try:
            if _read(folder / name) != answer:
                folder.mkdir(parents=True, exist_ok=True)
                files.replace(folder / name, json.dumps(asdict(answer)).encode(), durable=False)
            if shared:
                (self._local / name).unlink(missing_ok=True)
        except (OSError, files.StorageProblem):
            return


def _read(path: Path) -> Answer | None:
    try:
        return Answer(**json.loads(path.read_bytes()))
    except (OSError, ValueError, TypeError):
        return None
