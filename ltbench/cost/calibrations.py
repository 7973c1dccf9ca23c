"""What was measured on a device, kept in the store: one small sealed file per measurement, written once.

    STORE/calibrations/QUESTION-KEY.json

QUESTION is the digest of what was asked: of a training step (`train`), of a network row while sampling (`sample`), of an image seen
by an extractor (`extract`). KEY adds the device, the threads, and the code that was timed, so that edited code is measured anew
and what is there is not measured again.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ltbench import files, provenance, vaes
from ltbench.canonical import digest
from ltbench.cost.work import data_shape
from ltbench.errors import LtbenchError
from ltbench.protocols import sampled_in
from ltbench.provenance import surroundings
from ltbench.store import Store, sealed

FOLDER = "calibrations"
RECIPE = (  # of the recipe, what may change how long a step takes
    *("batch", "local_batch", "optimizer", "clip_norm", "precision", "label_drop", "label_drop_mode"),
    *("dropout", "passes", "augment"),
)


@dataclass(frozen=True)
class Question:
    """Something to measure. what: its kind and everything that decides the answer but the device. settings, evaluation: of a cell
    that asks it."""

    what: dict[str, Any]
    settings: Mapping[str, Any]
    evaluation: Mapping[str, Any] | None = None

    @property
    def kind(self) -> str:
        return self.what["kind"]

    @property
    def id(self) -> str:
        """16 hex digits."""
        return digest(self.what)[:16]

    def code(self) -> dict[str, str]:
        """Digests of the code that is timed."""
        if self.kind == "extract":
            return {"extractor": provenance.extractor_code()}
        code = {part: entry["digest"] for part, entry in provenance.train_code(self.settings).items()}
        if self.kind == "sample":
            return {"sampling": provenance.sampling_code(), "network": code["network"]}
        return {part: code[part] for part in ("trainer", "method", "network")}


def step_options(options: Mapping[str, Any]) -> dict[str, Any]:
    """Of a cell's options, what changes the time and the memory of a training step."""
    return {"micro_batch": options.get("micro_batch"), "recompute": bool(options.get("recompute"))}


def train_question(
    settings: Mapping[str, Any], micro_batch: int | None = None, recompute: bool = False
) -> Question:
    """How long a training step of a cell takes: its seed and its resampling change nothing about that. recompute: activations are
    made again in the backward pass."""
    train = settings["train"]
    what = {
        "kind": "train",
        "pipeline": settings["pipeline"],
        "network": settings["network"],
        "method": settings["method"],
        "data": _seen(settings),
        "latents": bool(vaes.named(settings["dataset"])),
        "recipe": {key: train[key] for key in RECIPE if key in train},
        "micro_batch": micro_batch,
    }
    what["recipe"]["clip_norm"] = train.get("clip_norm") is not None
    if recompute:  # absent otherwise: the question of a plain step is what it was
        what["recompute"] = True
    return Question(what, settings)


def sample_question(settings: Mapping[str, Any], evaluation: Mapping[str, Any]) -> Question:
    """How long a network row takes while sampling in blocks of this size, and what an image costs beside."""
    train = settings["train"]
    what = {
        "kind": "sample",
        "pipeline": settings["pipeline"],
        "network": settings["network"],
        "data": _seen(settings),
        "latents": vaes.named(settings["dataset"]),
        "block": int(evaluation["block"]),
        "precision": sampled_in(evaluation, train["precision"]),
        "augmented": train.get("augment", "none") != "none",
    }
    return Question(what, settings, evaluation)


def extract_question(settings: Mapping[str, Any], evaluation: Mapping[str, Any]) -> Question:
    """How long an extractor looks at an image."""
    what = {
        "kind": "extract",
        "extractor": dict(evaluation["extractor"]),
        "dataset": {k: v for k, v in settings["dataset"].items() if k != "imbalance"},
        "images": [evaluation["reference"], evaluation["crop"]],
        "data": _seen(settings),
        "block": int(evaluation["block"]),
        "float": evaluation["quantise"] == "none",
    }
    return Question(what, settings, evaluation)


def _seen(settings: Mapping[str, Any]) -> dict[str, int]:
    """What a network sees."""
    shape = data_shape(settings["dataset"])
    channels, side = shape.seen
    return {"channels": channels, "resolution": side, "classes": shape.classes}


@dataclass(frozen=True)
class Calibration:
    """One measurement. result: numbers, in seconds, bytes and counts; envelope: date, host, versions."""

    what: dict[str, Any]
    question: str
    device: str
    threads: int
    code: dict[str, str]
    result: dict[str, Any]
    envelope: dict[str, Any]

    @property
    def kind(self) -> str:
        return self.what["kind"]

    @property
    def key(self) -> str:
        """16 hex digits of the question, the device and the code."""
        return key_of(self.question, self.device, self.threads, self.code)

    @property
    def name(self) -> str:
        """Beginning of its file's name, for people."""
        return f"{self.question[:8]}-{self.key[:8]}"


def key_of(question: str, device: str, threads: int, code: Mapping[str, str]) -> str:
    """16 hex digits. On a GPU the threads of the host are no part of it."""
    own = {"threads": threads} if device.startswith("cpu") else {}
    return digest({"question": question, "device": device, "code": dict(code), **own})[:16]


def keep(store: Store, question: Question, device: str, threads: int, result: Mapping[str, Any]) -> Path:
    """Write a measurement down, unless one of its key is there; its file. Raises files.StorageProblem."""
    store.require_writable()
    code = question.code()
    key = key_of(question.id, device, threads, code)
    envelope = {"date": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **surroundings.environment()}
    content = {
        "format": sealed.FORMAT,
        "what": question.what,
        "question": question.id,
        "device": device,
        "threads": threads,
        "code": code,
        "result": dict(result),
        "envelope": envelope,
    }
    path = store.root / FOLDER / f"{question.id}-{key}.json"
    files.make_directory(path.parent)
    sealed.keep_once(path, content, link=store.link)
    return path


def read_all(store: Store) -> tuple[list[Calibration], list[str]]:
    """The calibrations of all layers, by name, and one line for each that cannot be read."""
    found: dict[str, Calibration] = {}
    bad: list[str] = []
    for root in store.layers:
        folder = root / FOLDER
        for path in sorted(folder.glob("*-*.json")) if folder.is_dir() else ():
            try:
                content = sealed.read_sealed(path)
                content.pop("format")
                found.setdefault(path.name, Calibration(**content))
            except (LtbenchError, FileNotFoundError, TypeError) as problem:
                bad.append(f"{path.name} is not used: {problem}")
    return [found[name] for name in sorted(found)], bad


def present(
    known: Iterable[Calibration], question: Question, device: str, threads: int
) -> Calibration | None:
    """The measurement that this code made of a question on this device, if there is one."""
    key = key_of(question.id, device, threads, question.code())
    return next((each for each in known if each.key == key), None)


def questions_json(questions: Iterable[Question]) -> str:
    """One line each, for the process that measures."""
    return "\n".join(
        json.dumps({"what": q.what, "settings": dict(q.settings), "evaluation": q.evaluation})
        for q in questions
    )
