"""The components whose code is digested, each a set of files: some to begin at, and what they import, but for other components.

Code that is moved to another file stays in its component only if that is imported and lies below no name that is left out here.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ltbench import plugins
from ltbench.canonical import digest
from ltbench.provenance.closure import drawn_in
from ltbench.provenance.syntax import names_of
from ltbench.spec.networks import network_numbers

# Files and bookkeeping: they carry values to the code below and change none of them.
PLUMBING = (
    "errors", "canonical", "files", "plugins", "provenance", "plan", "protocols", "searching", "extractors", "spec", "store", "report",
    "redact", "answers", "checkpoint", "stages", "job", "launch", "status", "cli", "shards", "sources", "vaes", "places",
)  # fmt: skip
# What measuring is handed, weights and data, is not of its code.
TRAINED = ("networks", "datasets", "methods", "parts", "trainer")


@functools.cache
def trainer() -> dict[str, Any]:
    """The loop and what it computes with."""
    return _engine(["trainer.py"], "networks", "datasets", "metrics")


@functools.cache
def plugin(kind: str, name: str) -> dict[str, Any]:
    """The plugin's file and the plugins it imports; for a data set also the engine's data code (a method's contract is the
    trainer's)."""
    others = tuple({entry.stem for entry in plugins.PACKAGE.iterdir()} - {kind})
    files = drawn_in([plugins.get(kind, name).path], others)
    if kind == "methods":
        return _component(file for file in files if not file.is_relative_to(plugins.PACKAGE))
    return _component({*files, plugins.PACKAGE / "datasets" / "__init__.py"})


@functools.cache
def network(name: str) -> dict[str, Any]:
    """The network's class and what it imports. Of the table of sizes only this name's numbers count: a new size changes nobody."""
    folder = plugins.PACKAGE / "networks"
    own = folder / ("sit.py" if name.startswith("SiT") else "unet.py")
    files = {*drawn_in([own], (*PLUMBING, "methods", "datasets", "metrics")), folder / "__init__.py"}
    table = folder / "names.py"
    component = _named_files(files - {table})
    functions = {key: value for key, value in names_of(table).items() if key.startswith("function")}
    component[_shown(table)] = {**functions, f"size {name}": digest(network_numbers(name))}
    return _digested(component)


@functools.cache
def latents() -> dict[str, Any]:
    """From pixels to moments of latents."""
    return _engine(["latents/moments.py"], *TRAINED, "metrics", "collect")


@functools.cache
def loader() -> dict[str, Any]:
    """How a cell begins at other weights."""
    return _engine(["start.py"], *TRAINED, "metrics")


@functools.cache
def evaluation() -> dict[str, Any]:
    """From weights to numbers."""
    return _engine(["evaluate.py", "groups.py"], *TRAINED)


@functools.cache
def illustration() -> dict[str, Any]:
    """From weights to pictures with numbers of their own."""
    return _engine(["illustrate.py", "groups.py"], *TRAINED)


@functools.cache
def images() -> dict[str, Any]:
    """From weights to images."""
    return _engine(["generate.py"], *TRAINED)


@functools.cache
def extractor() -> dict[str, Any]:
    """From images to features."""
    return _engine(["metrics/extractor.py"], "metrics.naming")


def _engine(roots: Iterable[str], *without: str) -> dict[str, Any]:
    """Files of the engine and what they import, but for plumbing and the modules of `without`."""
    return _component(drawn_in([plugins.PACKAGE / root for root in roots], (*PLUMBING, *without)))


def _component(files: Iterable[Path]) -> dict[str, Any]:
    return _digested(_named_files(files))


def _named_files(files: Iterable[Path]) -> dict[str, dict[str, str]]:
    return {_shown(path): names_of(path) for path in files}


def _digested(files: dict[str, dict[str, str]]) -> dict[str, Any]:
    short = {
        path: {name: full[:8] for name, full in sorted(names.items())}
        for path, names in sorted(files.items())
    }
    return {"digest": digest(files), "files": short}


def _shown(path: Path) -> str:
    """A path that is equal on every machine: from the checkout, or kind and name for a plugin that lies elsewhere."""
    if path.is_relative_to(plugins.PACKAGE):
        return path.relative_to(plugins.PACKAGE.parent).as_posix()
    kind = "datasets" if plugins.read(path, "methods") is None else "methods"
    return f"{kind}/{path.name}"


CACHED = (trainer, plugin, network, latents, loader, evaluation, illustration, images, extractor)
