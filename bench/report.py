"""The first table and the next one from a store of 1,000 evaluation records of 100 values each, and whether 10,000 stay usable.

The store is written by the store's own code in its real format: a benchmark of 100 rows and 10 seeds, one record per cell. What is
measured is the whole command (`report SPEC --format md`), in process time of fresh processes, with the program's bytecode compiled, as
on anyone's second command. The first one finds what the writers kept of their records (`ltbench.store.values`) and of the code
(`ltbench.texts`), the next ones that nothing has changed (`ltbench.report.memory`), and one that one record was superseded. `copied` is
the first look at a store that was made elsewhere: every record is read and verified.

`python bench/report.py many [RECORDS]` is 100,000 evaluation records of 4 values, whose tables must be what a plain fold over the
files gives.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import folds  # beside this file
from startup import HARNESS, ROOT, cpu_seconds

KINDS = ("FD", "KD", "IS", "precision", "recall", "density", "coverage", "AuthPct", "copies", "Vendi")
GROUPS = ("all", "head", "body", "tail", *(f"class-{n}" for n in range(6)))  # 10 x 10 values
SHA = "1a2b3c4d" + 56 * "0"
GOALS = {
    "first": 1.5,
    "again": 0.5,
    "one_more": 0.8,
}  # seconds of process time, the interpreter's start included

GRID = """
name: wide
dataset: {{name: digits}}
pipeline: sit
network: SiT-N/2
train: {{batch: 32, milestones: [10]}}
evaluate: [{{protocol: small-data, sampler: euler, steps: 5, guidance: 1.5}}]
grid:
  method: [sit, cbdm, dispersive, ccua]
  train.lr: [{rates}]
  seed: [{seeds}]
"""


def measure(cells: int = 1000) -> dict[str, Any]:
    """{"records", "values", "megabytes", "first_s", "again_s", "one_more_s", "copied_s", "peak_mb", "means"} for a store of `cells`
    evaluation records; `means` were compared with a fold, before anything is superseded."""
    with tempfile.TemporaryDirectory() as folder:
        spec = Path(folder, "wide.yaml")
        rates = ", ".join(f"{1e-4 * (k + 1):.6g}" for k in range(25))
        spec.write_text(GRID.format(rates=rates, seeds=", ".join(map(str, range(cells // 100)))))
        env = _environment(folder)
        size = _fill(spec, Path(folder))
        words = [sys.executable, HARNESS, "report", str(spec), "--format", "md", "--out", f"{folder}/out"]
        time.sleep(3)  # what was written within the last two seconds is not remembered
        first = cpu_seconds(words, env, 1)
        again = cpu_seconds(words, env, 3)
        means = folds.compared(spec, Path(folder, "store"), env)
        _supersede(Path(folder))
        time.sleep(3)
        more = cpu_seconds(words, env, 1)
        shutil.rmtree(f"{folder}/cache")
        copied = cpu_seconds(words, env, 1)
    return {
        "records": cells,
        "values": len(KINDS) * len(GROUPS),
        "megabytes": round(size / 1e6, 1),
        "first_s": round(first, 2),
        "again_s": round(again, 2),
        "one_more_s": round(more, 2),
        "copied_s": round(copied, 2),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3),
        "means": means,
        "goals": GOALS,
    }


def _environment(folder: str) -> dict[str, str]:
    """Of commands whose every file lies in `folder`; the program is compiled. Also of this process, whose writers keep as jobs do."""
    os.environ["LTBENCH_CACHE"] = f"{folder}/cache"
    env = {
        **os.environ,
        "LTBENCH_STORE": f"{folder}/store",
        "LTBENCH_SCRATCH": f"{folder}/scratch",
        "LTBENCH_ASK": "0",
        "PYTHONPYCACHEPREFIX": f"{folder}/bytecode",
    }
    env.pop("PYTHONDONTWRITEBYTECODE", None)
    little = [sys.executable, HARNESS, "report", "quickstart", "--format", "md", "--out", f"{folder}/out"]
    cpu_seconds(little, env, 1)
    return env


def many(wanted: int = 100_000) -> dict[str, Any]:
    """{"records", "first_s", "again_s", "peak_mb", "means"} of a table from `wanted` small records; `means` were compared with a fold.

    first: every record is read and verified. Raises AssertionError for a mean that is not the fold's.
    """
    with tempfile.TemporaryDirectory() as folder:
        spec = Path(folder, "many.yaml")
        seeds = ", ".join(map(str, range(max(1, wanted // 10_000))))
        rates = ", ".join(f"{1e-4 * (k + 1):.6g}" for k in range(25))
        weights = ", ".join(f"{1 + 0.5 * k:g}" for k in range(10))
        text = GRID.format(rates=rates, seeds=seeds).replace("guidance: 1.5", f"guidance: [{weights}]")
        spec.write_text(text.replace("[10]", "[" + ", ".join(str(10 * (k + 1)) for k in range(10)) + "]"))
        env = _environment(folder)
        count = _fill_small(spec, Path(folder))
        words = [sys.executable, HARNESS, "report", str(spec), "--out", f"{folder}/out", "--format"]
        time.sleep(3)
        first = cpu_seconds([*words, "md"], env, 1)
        peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1e3
        again = cpu_seconds([*words, "md"], env, 3)
        means = folds.compared(spec, Path(folder, "store"), env)
    return {
        "records": count,
        "first_s": round(first, 1),
        "again_s": round(again, 2),
        "peak_mb": round(peak),
        "means": means,
    }


def _fill(spec: Path, folder: Path) -> int:
    """A training and an evaluation record for every cell, as `run` and its jobs would leave them; their bytes."""
    from ltbench import caches, plan, provenance
    from ltbench import spec as specs
    from ltbench.spec.cells import expand
    from ltbench.store import Store

    os.fsync = lambda handle: None  # a thousand of them measure the disk
    benchmark = specs.load(spec)
    store = Store.open(folder / "store", folder / "scratch")
    cells = expand(benchmark)
    plan.register(cells, store)
    evaluation = {name: entry["digest"] for name, entry in provenance.evaluation_code().items()}
    for number, cell in enumerate(cells):
        code = provenance.train_code(cell.settings)
        run = store.run(cell.id, provenance.run_id(code, cell.settings))
        digests = {name: entry["digest"] for name, entry in code.items()} | evaluation
        common = {"settings": cell.settings, "code": digests, "images_seen": 320, "data_sha256": 64 * "d"}
        curve = {"step": [10], "loss": [1.0], "grad_norm": [1.0], "lr": [1e-4], "terms": {"denoise": [1.0]}}
        envelope = {"started": 0.0, "finished": 1.0, "seconds": 1.0, "attempt": 1, "device": "cpu"}
        run.put_record(
            "train", 10, {**common, "train_counts": [10] * 10, "curve": curve, "facts": {}}, envelope
        )
        for key, what in cell.evaluations.items():
            run.put_record("evaluation", 10, {**common, **_body(number, what)}, envelope, evaluation=key)
    provenance.leave(caches.root())
    return sum(path.stat().st_size for path in (folder / "store").rglob("*.json"))


def _fill_small(spec: Path, folder: Path) -> int:
    """Records of one metric in four groups; how many. Their bytes are the store's, written without its links and syncs."""
    from ltbench import provenance
    from ltbench import spec as specs
    from ltbench.spec.cells import expand
    from ltbench.store import Store, records

    store = Store.open(folder / "store", folder / "scratch")
    evaluation = {name: entry["digest"] for name, entry in provenance.evaluation_code().items()}
    envelope = {"started": 0.0, "finished": 1.0, "seconds": 1.0, "attempt": 1, "device": "cpu"}
    count = 0
    for number, cell in enumerate(expand(specs.load(spec))):
        code = provenance.train_code(cell.settings)
        run = store.run(cell.id, provenance.run_id(code, cell.settings))
        (run.dir / "records").mkdir(parents=True)
        known = {"format": 1, "cell": cell.id, "run": run.run, "settings": cell.settings, "images_seen": 320}
        known |= {
            "code": {name: e["digest"] for name, e in code.items()} | evaluation,
            "data_sha256": 64 * "d",
        }
        for step in cell.milestones:
            bodies = [{"kind": "train", "train_counts": [10] * 10, "curve": {}, "facts": {}}]
            for place, (key, what) in enumerate(cell.evaluations.items()):
                body = _body(number * 7 + place * 3 + step, {"id": key, **what})
                bodies.append(
                    {"kind": "evaluation", **body, "rows": [_small(row) for row in body["rows"][:4]]}
                )
            for body in bodies:
                name, data = records.record_file({**known, "step": step, **body}, envelope)
                (run.dir / "records" / name).write_bytes(data)
            count += len(bodies) - 1
    return count


def _small(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key not in ("folds", "corrected")}


def _supersede(folder: Path) -> None:
    """A later attempt at one evaluation, with other values."""
    from ltbench.store import Store

    store = Store.open(folder / "store", folder / "scratch")
    old = next(iter(store.records()))
    rows = [{**row, "value": row["value"] + 1} for row in old.body["rows"]]
    envelope = {**old.envelope, "attempt": old.attempt + 1}
    run = store.run(old.cell, old.run)
    run.put_record(old.kind, old.step, {**old.body, "rows": rows}, envelope, old.evaluation)


def _body(number: int, evaluation: dict[str, Any]) -> dict[str, Any]:
    """100 values with their errors and folds, as the metrics write them."""
    rows = []
    for i, kind in enumerate(KINDS):
        for j, group in enumerate(GROUPS):
            value = 10.0 + i + 0.37 * j + 0.0137 * ((number * 7919 + i * 31 + j) % 997)
            rows.append(
                {
                    "metric": kind,
                    "name": f"{kind}[digits-cnn-v1@{SHA[:8]}]",
                    "group": group,
                    "better": "lower",
                    "scale": 1,
                    "k": None,
                    "value": value,
                    "floor": 1.25,
                    "n_gen": 1000,
                    "n_ref": 500,
                    "n_floor": 500,
                    "estimator": "a long enough name of an estimator",
                    "se": 0.0123456789 * value,
                    "corrected": 0.98765 * value,
                    "folds": [value * (1 + 0.001234567 * (f - 4.5)) for f in range(10)],
                }
            )
    groups = {"head": [0, 1, 2], "body": [3, 4, 5, 6], "tail": [7, 8, 9]}
    return {"evaluation": evaluation, "rows": rows, "groups": groups, "train_counts": [10] * 10, "nfe": 5,
            "classes": [str(n) for n in range(10)], "facts": {}}  # fmt: skip


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    case, *size = sys.argv[1:] if sys.argv[1:2] == ["many"] else ["one", *sys.argv[1:]]
    count = int(size[0]) if size else 100_000 if case == "many" else 1_000
    print(json.dumps(many(count) if case == "many" else measure(count), indent=1))
