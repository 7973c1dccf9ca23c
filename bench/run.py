"""How fast ltbench itself is, as JSON on stdout: `make bench`, a few minutes on two cores.

Start-up is in CPU seconds of fresh processes; training, and terms over all pairs of a batch, are ratios of both sides in one
process, so that a busy machine changes neither much. Tests assert none of these numbers: they are for reading and for comparing two checkouts.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import time
from typing import Any

import startup  # beside this file
from startup import ROOT

PARTS = ("startup", "status", "report", "forms", "training", "data", "neighbours", "metrics")


def main() -> int:
    """Measure what `--only` names, print JSON; 1 when a start-up goal is missed and `--strict` was given."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=PARTS, help="one part")
    parser.add_argument("--device", default="cpu", help="cpu or cuda, for training and sampling")
    parser.add_argument("--strict", action="store_true", help="exit 1 when a goal is missed")
    args = parser.parse_args()
    begun = time.perf_counter()
    found: dict[str, Any] = {"python": platform.python_version(), "machine": platform.machine()}
    parts = PARTS if args.only is None else (args.only,)
    if "startup" in parts:
        print("start-up ...", file=sys.stderr)
        found["startup"] = startup.measure()
    if "report" in parts:
        print("a report from 1,000 records ...", file=sys.stderr)
        import report  # beside this file

        found["report"] = report.measure()
    if "status" in parts:
        import status  # beside this file

        print("status of 10,000 cells ...", file=sys.stderr)
        found["status"] = status.measure()
    if "forms" in parts:
        print("terms over all pairs ...", file=sys.stderr)
        found["forms"] = _forms(args.device)
    if "training" in parts:
        print("training and sampling ...", file=sys.stderr)
        found |= _training(args.device)
    if "data" in parts:
        print("data beside the steps that it feeds ...", file=sys.stderr)
        found["data"] = _data(args.device)
    if "neighbours" in parts:
        print("neighbour metrics ...", file=sys.stderr)
        found["neighbours"] = _neighbours(args.device)
    if "metrics" in parts:
        print("Fréchet distances ...", file=sys.stderr)
        found["metrics"] = _metrics()
    found["seconds"] = round(time.perf_counter() - begun, 1)
    print(json.dumps(found, indent=1))
    return int(args.strict and bool(missed({**found.get("startup", {}), **found.get("status", {})})))


def missed(times: dict[str, dict[str, float]]) -> list[str]:
    """Commands that took longer than their goal."""
    return [name for name, entry in times.items() if entry["cpu_s"] > entry.get("goal", float("inf"))]


def _forms(device: str) -> dict[str, Any]:
    import forms  # beside this file; imports torch
    import torch

    return forms.measure(torch.device(device))


def _training(device: str) -> dict[str, Any]:
    import torch
    import training  # beside this file; imports torch

    where = torch.device(device)
    name = torch.cuda.get_device_name(where) if where.type == "cuda" else "cpu, 1 thread"
    spec = str(ROOT / "benchmarks" / "quickstart.yaml")
    return {"torch": torch.__version__, "device": name, "training": training.measure(spec, where)}


def _data(device: str) -> dict[str, Any]:
    import data  # beside this file; imports torch
    import torch

    return data.measure(torch.device(device))


def _neighbours(device: str) -> dict[str, Any]:
    import neighbours  # beside this file; imports torch

    return neighbours.measure(device)


def _metrics() -> dict[str, Any]:
    import metrics  # beside this file

    return metrics.measure()


if __name__ == "__main__":
    sys.exit(main())
