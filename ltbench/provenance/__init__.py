"""What made a result: a digest of the code of each component, the commit, and the versions of the tools.

Code is digested over syntax trees, so that only a change of meaning changes a digest, and name by name, so that a change can be
said: "methods/ccua.py: method `CCUA.loss` changed".

components.py     which files each component is made of
closure.py        the files that a file draws in by its imports
syntax.py         what one source text says: its imports, and a digest of each name
changes.py        what changed between two codes, in sentences
surroundings.py   commit, versions, environment
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ltbench import texts
from ltbench.canonical import Digester, digest
from ltbench.provenance import closure, components, surroundings, syntax

COMPONENTS = ("trainer", "method", "network", "data")  # what a run's weights depend on
LATENTS = "latents"  # where they train on latents, the code that made these
START = "init"  # and, where they begin at other weights, the code that made and loaded these

Code = dict[str, dict[str, Any]]  # component -> {"digest": 64 hex, "files": {path: {name: 8 hex}}}


def train_code(settings: Mapping[str, Any]) -> Code:
    """Code that decides a run's weights. Raises UsageError when the method or the data set is not there any more.

    Of what was trained elsewhere that is the data set it is compared with, and the network that its weights were put into.
    """
    if "external" in settings:
        loaded = settings["external"]["kind"] == "checkpoint"
        network = {"network": components.network(settings["network"])} if loaded else {}
        return {**network, "data": data_code(settings["dataset"]["name"])}
    code = {
        "trainer": components.trainer(),
        "method": components.plugin("methods", settings["method"]["name"]),
        "network": components.network(settings["network"]),
        "data": data_code(settings["dataset"]["name"]),
    }
    if settings["dataset"].get("latents"):
        code[LATENTS] = latents_code()
    if "init" in settings:
        code[START] = _start(settings["init"])
    return code


def _start(init: Mapping[str, Any]) -> dict[str, Any]:
    """How starting weights are loaded, and the code that trained them where that is ours."""
    own = components.loader()
    if "source" not in init:
        return own
    made = train_code(init["source"])
    files = dict(own["files"])
    for part in made.values():
        files |= part["files"]
    digests = {part: entry["digest"] for part, entry in made.items()}
    return {"digest": digest({"own": own["digest"], "source": digests}), "files": files}


def data_code(name: str) -> dict[str, Any]:
    """Digest and files of the code of a data set."""
    return components.plugin("datasets", name)


def latents_code() -> dict[str, Any]:
    """Digest and files of the code that turns pixels into cached latents."""
    return components.latents()


def evaluation_code() -> Code:
    """Code that decides an evaluation's numbers, given weights and data."""
    return {"evaluation": components.evaluation()}


def measuring_code(kind: str) -> dict[str, Any]:
    """Digest and files of the code that makes records of a kind: evaluation, selection or illustration. Pictures need all that
    numbers need, and more: their code may change while every number stays."""
    return components.illustration() if kind == "illustration" else evaluation_code()["evaluation"]


def sampling_code() -> str:
    """Digest of the code that turns weights into images."""
    return components.images()["digest"]


def extractor_code() -> str:
    """Digest of the code that turns images into features."""
    return components.extractor()["digest"]


def run_id(code: Code, settings: Mapping[str, Any], digester: Digester | None = None) -> str:
    """12 hex digits: the directory of runs of these settings by this code. A `digester` spells what many cells share once."""
    parts = {part: code[part]["digest"] for part in (*COMPONENTS, LATENTS, START) if part in code}
    whole = {"code": parts, "settings": dict(settings)}
    return (digest(whole) if digester is None else digester.digest(whole, depth=2))[:12]


# --- what was read already ------------------------------------------------------------------------------------------


def kept_in(folder: Path | None) -> contextlib.AbstractContextManager[None]:
    """In the block, what is in source files is taken from `folder` where their text was seen before; for commands that look."""
    return texts.kept_in(folder, syntax.__file__)


def leave(folder: Path | None) -> None:
    """Leave in `folder` what this process has read in source files, and all that records are compared with, for commands that look."""
    if folder is not None:
        for kind in ("evaluation", "illustration"):
            measuring_code(kind)
        texts.leave(folder, syntax.__file__)


def reading() -> contextlib.AbstractContextManager[None]:
    """In the block, every file is read anew, though a command looks: for what is kept beside results."""
    forget()
    return kept_in(None)


def forget() -> None:
    """Read every file again at the next call: for tests and for long-lived processes."""
    for module in (components, closure, syntax, surroundings):
        for cached in module.CACHED:
            cached.cache_clear()
    texts.forget()
