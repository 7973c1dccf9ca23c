"""The speed book: how fast ltbench itself is, case by case, as JSON on stdout. `make bench`: all sizes for a CPU, minutes on two cores.

Every case first asserts that both sides agree, then lets them take turns in one process, and tells ratios; goals stand beside them
with whether they were met. The other side is our own plain rendering of the official code's sequence of operations, a library, or,
with --ref-repo, the user's own checkout of SiT, REPA or CBDM. On a GPU, `bench/gpu.py` runs the sizes people train at.
"""

from __future__ import annotations

import argparse
import importlib
import json
import platform
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from startup import ROOT  # beside this file


@dataclass(frozen=True)
class Case:
    """A case by its number in reference/performance.md, section 6. run: (its module, the arguments) -> what it found."""

    module: str
    title: str
    run: Callable[[Any, argparse.Namespace], Any]


def _device(args: argparse.Namespace) -> Any:
    import torch

    torch.set_num_threads(1)
    return torch.device(args.device)


def _on_device(module: Any, args: argparse.Namespace) -> Any:
    return module.measure(_device(args))


def _alone(module: Any, args: argparse.Namespace) -> Any:
    return module.measure()


def _submit(module: Any, args: argparse.Namespace) -> Any:
    """In a process of its own: its imports are a part of what is measured. It ends in 1 where a goal is missed."""
    done = subprocess.run([sys.executable, ROOT / "bench" / "submit.py"], capture_output=True, text=True)
    if not done.stdout:
        raise AssertionError(f"bench/submit.py ended with {done.returncode}: {done.stderr[-2000:]}")
    return json.loads(done.stdout)


def _steps(module: Any, args: argparse.Namespace) -> Any:
    found = {"own_rendering": module.measure(_device(args)), "online_vae": module.online(_device(args))}
    return found | _theirs("train", args)


def _samplers(module: Any, args: argparse.Namespace) -> Any:
    return {"own_rendering": module.measure(_device(args))} | _theirs("sample", args)


def _unets(module: Any, args: argparse.Namespace) -> Any:
    return {"own_rendering": module.measure(_device(args))} | _theirs("unet", args)


def _theirs(what: str, args: argparse.Namespace) -> dict[str, Any]:
    if args.ref_repo is None:
        return {}
    import theirs  # beside this file

    found = theirs.measure(what, args.ref_repo, _device(args))
    return {} if found is None else {"ref_repo": found}


def _metrics(module: Any, args: argparse.Namespace) -> Any:
    return module.measure(module.FULL if args.full else module.SMALL)


def _neighbours(module: Any, args: argparse.Namespace) -> Any:
    return module.measure(args.device)


CASES = {
    "H1": Case("startup", "start-up of the command line", _alone),
    "H2": Case("submit", "planning and submitting 10,000 cells", _submit),
    "H3": Case("report", "a report from 1,000 records", _alone),
    "H4": Case("status", "status of 10,000 cells", _alone),
    "T1": Case("steps", "a training step against the official loop", _steps),
    "T2": Case("ratios", "every method against its baseline", _on_device),
    "T3": Case("ccua", "the ways to run CCUA's passes", _on_device),
    "T4": Case("unets", "a U-Net's step against CBDM's loop", _unets),
    "T5": Case("speed", "memory by rows", _on_device),
    "T6": Case("health", "whether compiled steps stay compiled", _on_device),
    "S1": Case("sampling", "samplers against the official ones", _samplers),
    "S2": Case("searches", "the staged guidance search", _alone),
    "E1": Case("metrics", "Fréchet distances", _metrics),
    "E2": Case("features", "features from tensors against a folder of PNG files", _on_device),
    "E3": Case("neighbours", "neighbour metrics", _neighbours),
    "D1": Case("data", "data beside the steps that it feeds", _on_device),
    "D2": Case("forms", "terms over all pairs of a batch", _on_device),
    "C1": Case("saves", "checkpoints", _on_device),
}


def main(words: list[str] | None = None) -> int:
    """Measure what `--only` names, print JSON; 1 when a case failed, or a goal was missed and `--strict` was given."""
    args = _arguments(words)
    begun = time.perf_counter()
    found: dict[str, Any] = {"python": platform.python_version(), "machine": platform.machine()}
    for name, case in CASES.items():
        if args.only and not {name, case.module} & set(args.only):
            continue
        print(f"{name} {case.title} ...", file=sys.stderr, flush=True)
        found[name] = {"case": case.module, **_run(case, args)}
    if "torch" in sys.modules:
        found |= _torch(args.device)
    found["seconds"] = round(time.perf_counter() - begun, 1)
    found["missed"] = list(_missed(found))
    print(json.dumps(found, indent=1))
    failed = any("failed" in told for told in found.values() if isinstance(told, dict))
    return int(failed or (args.strict and bool(found["missed"])))


def _run(case: Case, args: argparse.Namespace) -> dict[str, Any]:
    """A case that fails is told and does not take the others with it."""
    start, used = time.perf_counter(), time.process_time()
    try:
        told = {"found": case.run(importlib.import_module(case.module), args)}
    except Exception as error:
        traceback.print_exc()
        told = {"failed": f"{type(error).__name__}: {error}", "met": False}
    spent = {"seconds": time.perf_counter() - start, "process_seconds": time.process_time() - used}
    return {**told, **{name: round(value, 1) for name, value in spent.items()}}


def _arguments(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    known = [word for name, case in CASES.items() for word in (name, case.module)]
    parser.add_argument(
        "--only",
        nargs="+",
        metavar="CASE",
        choices=known,
        help=f"cases, by number or name: {', '.join(known)}",
    )
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument(
        "--ref-repo",
        metavar="PATH",
        help="a checkout of SiT, REPA or CBDM to measure against, beside our rendering",
    )
    parser.add_argument("--full", action="store_true", help="E1 at Inception's 2048 numbers: minutes more")
    parser.add_argument("--strict", action="store_true", help="exit 1 when a goal is missed")
    return parser.parse_args(words)


def _torch(device: str) -> dict[str, str]:
    import torch

    name = torch.cuda.get_device_name(torch.device(device)) if device.startswith("cuda") else "cpu, 1 thread"
    return {"torch": torch.__version__, "device": name}


def _missed(found: dict[str, Any]) -> list[str]:
    from turns import missed  # beside this file; imports torch

    return list(missed(found))


if __name__ == "__main__":
    sys.exit(main())
