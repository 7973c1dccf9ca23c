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

Key = tuple[str, float, float, int, str, str]  # method, rate, guidance, step, metric's name, group


def compared(spec: Path, store: Path, env: Mapping[str, str]) -> int:
    """How many means of `report SPEC --format csv` are those of the files, to 1e-12. Raises AssertionError for one that is not."""
    out = spec.parent / "folded"
    words = [sys.executable, HARNESS, "report", str(spec), "--format", "csv", "--out", str(out)]
    subprocess.run(words, env=env, check=True, capture_output=True)
    (table,) = out.rglob("*.csv")
    told = dict(_told(table))
    assert told, "a report of records has means"
    folded = _folded(store)
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
                key = (
                    line["method"],
                    rate,
                    float(line["guidance"]),
                    int(line["step"]),
                    line["name"],
                    line["group"],
                )
                yield key, float(line["value"])


def _folded(store: Path) -> dict[Key, float]:
    found: dict[Key, list[float]] = defaultdict(list)
    for path in store.rglob("evaluation-*.json"):
        body = json.loads(path.read_bytes())["body"]
        settings = body["settings"]
        run = (
            settings["method"]["name"],
            settings["train"]["lr"],
            body["evaluation"]["guidance"],
            body["step"],
        )
        for row in body["rows"]:
            found[*run, row["name"], row["group"]].append(row["value"])
    return {key: math.fsum(values) / len(values) for key, values in found.items()}
