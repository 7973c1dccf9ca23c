"""The paper's benchmarks as if they had been run: records in the documented form, with values that a test chooses."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

from ltbench.canonical import digest
from ltbench.cli import inputs, targets
from ltbench.metrics.naming import metric_name
from ltbench.plan import plan
from ltbench.report.assemble import build_table
from ltbench.report.definition import Definition, load_definition
from ltbench.report.published import Publication, load_publication
from ltbench.report.sheet import Sheet, SheetCell, SheetLine
from ltbench.report.table import Inputs, Table
from ltbench.store import Store

ROOT = Path(__file__).resolve().parents[1]
CSV = ROOT / "results" / "published" / "ccua.csv"
TABLES = {str(n): f"table{n}" for n in range(1, 14)} | {"A2": "timing"}  # of the paper -> its definition
BETTER = {"FD": "lower", "sFD": "lower", "KD": "lower", "KD-subsets": "lower"}
FLOORS = {
    "FD": 1.5,
    "sFD": 2.5,
    "CS": 200.0,
    "precision": 0.75,
    "recall": 0.65,
    "KD": 0.0001,
    "KD-subsets": 0.0001,
}
Value = Callable[[Mapping[str, Any], int, str, str], float]
"""(planned cell, step, metric, group) -> our unscaled value."""


@cache
def published() -> Publication:
    return load_publication(CSV)


@cache
def definition(name: str) -> Definition:
    return load_definition(ROOT / "reports" / f"{name}.yaml")


def planned(name: str, tmp: Path, *, changes: Iterable[str] = (), methods: Iterable[str] = ()) -> Inputs:
    """What the command line would gather for a definition with an empty store."""
    store = Store.open(tmp / "store", tmp / "scratch", write=False)
    spec = targets.load(definition(name).benchmarks[0], list(changes), list(methods))
    found = inputs.gather_all([plan(spec, store, targets.cells_of(spec))], store, name)
    return replace(found, published=published())


def record(
    cell: Mapping[str, Any], step: int, which: Mapping[str, Any], value: Value, **body: Any
) -> dict[str, Any]:
    """An evaluation record of a planned cell with every metric of the evaluation for all, head, body and tail."""
    extractor = which["extractor"]
    groups = ["all", "head", "body", "tail"] if which["classes"] == "all" else [which["classes"]]
    if which["labels"] is None:
        groups = ["all"]
    rows = []
    for kind in which["metrics"]:
        for group in groups:
            rows.append(
                {
                    "metric": kind,
                    "name": metric_name(kind, f"{extractor['name']}@{extractor['sha256']}"),
                    "group": group,
                    "better": BETTER.get(kind, "higher"),
                    "value": value(cell, step, kind, group),
                    "floor": FLOORS.get(kind, 0.5),
                    "k": 3 if kind in ("precision", "recall", "density", "coverage") else None,
                    "estimator": f"{kind} by hand",
                    "scale": 1000 if kind.startswith("KD") else 1,
                    "n_gen": which["samples"],
                    "n_ref": 10_000,
                    "n_floor": 10_000,
                    "se": None,
                    "corrected": None,
                    "folds": None,
                }
            )
    known = {
        "format": 1,
        "kind": "evaluation",
        "cell": cell["cell"],
        "run": "0" * 12,
        "settings": cell["settings"],
        "code": dict.fromkeys(("trainer", "network", "data", "evaluation", "method"), 64 * "a"),
        "step": step,
        "data_sha256": 64 * "d",
        "evaluation": dict(which),
        "nfe": 100,
        "groups": {"head": [0], "body": [1], "tail": [2]},
        "rows": rows,
        **body,
    }
    seed = cell["settings"]["seed"]
    return {"body": known, "digest": digest(known), "envelope": {"finished": 1.0 + seed, "attempt": 1}}


def run(
    inputs_: Inputs, value: Value, only: Callable[[Mapping[str, Any], int], bool] = lambda cell, step: True
) -> Inputs:
    """The same with a record of every planned evaluation without a search, where `only` allows it."""
    records = [
        record(cell, step, which, value)
        for cell in inputs_.planned
        for step in cell["milestones"]
        if only(cell, step)
        for which in cell["evaluations"]
    ]
    return replace(inputs_, records=[*inputs_.records, *records])


def sheet_of(table: Table) -> Sheet:
    assert table.sheet is not None
    return table.sheet


def build(name: str, inputs_: Inputs, *, verdicts: bool = False) -> Table:
    return build_table(inputs_, definition(name), verdicts=verdicts)


def line(sheet: Sheet, name: str, kind: str = "ours", block: str = "") -> SheetLine:
    """The one line of a kind, a row and a block (the first block, unless named)."""
    block = block or sheet.blocks[0].title
    (found,) = [each for title, each in sheet.lines() if (title, each.name, each.kind) == (block, name, kind)]
    return found


def cell(sheet: Sheet, name: str, column: str, kind: str = "ours", block: str = "") -> SheetCell:
    place = [head.name for head in sheet.columns].index(column)
    return line(sheet, name, kind, block).cells[place]


def notes(table: Table, numbers: Iterable[int]) -> str:
    return " ".join(table.notes[number - 1] for number in numbers)
