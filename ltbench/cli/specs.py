"""From what a person types as SPEC to a file, a benchmark and its plan."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from ltbench.errors import LtbenchError, UsageError

CHECKOUT = Path(__file__).resolve().parents[2]


def folders() -> list[Path]:
    """Where specs are looked for by name: benchmarks/ here and in the checkout, then what the store's layers derived."""
    from ltbench.cli.stores import derived_specs

    found = [Path("benchmarks"), CHECKOUT / "benchmarks", *derived_specs()]
    unique: dict[Path, Path] = {}
    for folder in found:
        if folder.is_dir():
            unique.setdefault(folder.resolve(), folder)
    return list(unique.values())


def find(name: str) -> Path:
    """The file that `name` means: a path, or a name in one of `folders()`. Raises UsageError with the nearest name."""
    path = Path(name)
    if path.is_file():
        return path
    known: dict[str, Path] = {}
    for folder in folders():
        for file in sorted(folder.glob("*.yaml")):
            known.setdefault(file.stem, file)
    if name.removesuffix(".yaml") in known:
        return known[name.removesuffix(".yaml")]
    if path.suffix or len(path.parts) > 1:
        raise UsageError(f"there is no file {name}", _names(known))
    near = difflib.get_close_matches(name, known, 1)
    hint = f"did you mean '{near[0]}'?" if near else _names(known)
    raise UsageError(f"there is no spec '{name}': neither a file nor a name in benchmarks/", hint)


def _names(known: dict[str, Path]) -> str:
    return f"there are {', '.join(sorted(known))}" if known else "benchmarks/ holds none"


def headings() -> list[dict[str, Any]]:
    """Name, title, cells, data sets, pipelines and file of every spec in benchmarks/; of one that cannot be read, its problem as `title`."""
    rows = []
    for folder in folders():
        if folder.name == "benchmarks":
            rows += [_heading(file) for file in sorted(folder.glob("*.yaml"))]
    return rows


def _heading(file: Path) -> dict[str, Any]:
    from ltbench import spec
    from ltbench.spec.cells import expand

    row: dict[str, Any] = {"name": file.stem, "title": "", "cells": 0, "datasets": [], "pipelines": []}
    try:
        found = spec.load(file)
        cells = expand(found)
    except LtbenchError as error:
        return {**row, "title": f"not readable: {error.message}", "file": str(file)}
    row |= {
        "title": found.title,
        "cells": len(cells),
        "datasets": list(dict.fromkeys(cell.settings["dataset"]["name"] for cell in cells)),
        "pipelines": list(dict.fromkeys(part.pipeline for part in found.parts)),
    }
    return {**row, "file": str(file)}
