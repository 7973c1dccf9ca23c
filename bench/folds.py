"""H3: the report's means against a fold over the records' files that is nothing but json and a sum."""

from __future__ import annotations

import csv
import json
import math
import subprocess
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

from startup import HARNESS  # beside this file

Key = tuple[str, float, str, str]  # method, rate, metric's name, group


def compared(spec: Path, store: Path, env: Mapping[str, str]) -> int:
    """How many means of `report SPEC --format csv` are those of the files, to 1e-12. Raises AssertionError for one that is not."""
    out = spec.parent / "folded"
    words = [sys.executable, HARNESS, "report", str(spec), "--format", "csv", "--out", str(out)]
    subprocess.run(words, env=env, check=True, capture_output=True)
    (table,) = out.rglob("*.csv")
    told = dict(_told(table))
    folded = _folded(store)
    assert told, "a report of records has means"
    for key, value in told.items():
        assert math.isclose(value, folded[key], rel_tol=1e-12), (
            f"{key}: {value} reported, {folded[key]} folded"
        )
    return len(told)


def _told(table: Path) -> Iterator[tuple[Key, float]]:
    with table.open(newline="") as lines:
        for line in csv.DictReader(lines):
            if line["kind"] == "mean" and line["value"]:
                rate = float(line["axes"].removeprefix("train.lr="))
                yield (line["method"], rate, line["name"], line["group"]), float(line["value"])


def _folded(store: Path) -> dict[Key, float]:
    found: dict[Key, list[float]] = defaultdict(list)
    for path in store.rglob("evaluation-*.json"):
        body = json.loads(path.read_bytes())["body"]
        settings = body["settings"]
        for row in body["rows"]:
            key = settings["method"]["name"], settings["train"]["lr"], row["name"], row["group"]
            found[key].append(row["value"])
    return {key: math.fsum(values) / len(values) for key, values in found.items()}
