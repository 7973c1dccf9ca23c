"""The speed book: how fast ltbench itself is, case by case, as JSON on stdout and a table on stderr. `make bench`: all of it at sizes
for a CPU, under five minutes on two cores.

Every case first asserts that both sides agree, then lets them take turns in one process, and tells ratios; goals stand beside them
with whether they were met. The other side is our own plain rendering of the official code's sequence of operations, a library, or,
with --ref-repo, the user's own checkout of SiT, REPA or CBDM. On a GPU, `bench/gpu.py` runs the sizes people train at.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import platform
import resource
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Case:
    """A case by its number in reference/performance.md, section 6. run: (its module, the arguments) -> what it found.

    early: called before any case, for what must lie about for a while before it is looked at; `run` is handed what it gives.
    """

    module: str
    title: str
    run: Callable[..., Any]
    early: Callable[[Any, argparse.Namespace], Any] | None = None


def _device(args: argparse.Namespace) -> Any:
    import torch

    torch.set_num_threads(1)
    return torch.device(args.device)


def _on_device(module: Any, args: argparse.Namespace) -> Any:
    return module.measure(_device(args))


def _alone(module: Any, args: argparse.Namespace) -> Any:
    return module.measure()


def _report(module: Any, args: argparse.Namespace) -> Any:
    """Goals are for 1,000 records; fewer must keep them all the more."""
    from turns import goal  # beside this file

    told = module.measure(RECORDS[args.full])
    judged = {name: goal(told[f"{name}_s"], at_most=bound) for name, bound in module.GOALS.items()}
    return {**told, "goals": judged, "goals_are_for": RECORDS[True]}


def _store(module: Any, args: argparse.Namespace) -> Any:
    return module.Filled(CELLS[args.full])


def _status(module: Any, args: argparse.Namespace, filled: Any) -> Any:
    told = module.measure(3 if args.full else 1, filled)
    return {"cells": CELLS[args.full], "goals_are_for": CELLS[True], **told}


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
    return module.measure(args.device, module.FULL if args.full else module.SMALL)


def _health(module: Any, args: argparse.Namespace) -> Any:
    return module.measure(_device(args), methods=None if args.full else module.KINDS)


def _ratios(module: Any, args: argparse.Namespace) -> Any:
    return module.measure(_device(args), close=module.LONG if args.full else module.CLOSE)


def _startup(module: Any, args: argparse.Namespace) -> Any:
    return module.measure(5 if args.full else 2)


# By --full: what the goals are for, and what a CPU fills in seconds.
RECORDS = {False: 200, True: 1000}
CELLS = {False: 1_000, True: 10_000}


CASES = {
    "H1": Case("startup", "start-up of the command line", _startup),
    "H2": Case("grids", "planning and submitting 10,000 cells", _alone),
    "H3": Case("report", "a report from stored records", _report),
    "T1": Case("steps", "a training step against the official loop", _steps),
    "T2": Case("ratios", "every method against its baseline", _ratios),
    "T3": Case("ccua", "the ways to run CCUA's passes", _on_device),
    "T4": Case("unets", "a U-Net's step against CBDM's loop", _unets),
    "T5": Case("speed", "memory by rows", _on_device),
    "T6": Case("health", "whether compiled steps stay compiled", _health),
    "S1": Case("sampling", "samplers against the official ones", _samplers),
    "S2": Case("searches", "the staged guidance search", _alone),
    "E1": Case("metrics", "Fréchet distances", _metrics),
    "E2": Case("features", "features from tensors against a folder of PNG files", _on_device),
    "E3": Case("neighbours", "neighbour metrics", _neighbours),
    "D1": Case("data", "data beside the steps that it feeds", _on_device),
    "D2": Case("forms", "terms over all pairs of a batch", _on_device),
    "C1": Case("saves", "checkpoints", _on_device),
    "H4": Case("status", "status of a grid in every state", _status, early=_store),
}


def main(words: list[str] | None = None) -> int:
    """Measure what `--only` names; JSON, then a table on stderr. 1 when sides disagreed or a case failed otherwise.

    A goal that was missed is no failure, unless `--strict` says so.
    """
    args = _arguments(words)
    begun, used = time.perf_counter(), _cpu_seconds()
    wanted = {name: case for name, case in CASES.items() if _wanted(name, case, args)}
    found: dict[str, Any] = {"python": platform.python_version(), "machine": platform.machine()}
    early = {name: _early(case, args) for name, case in wanted.items() if case.early is not None}
    for number, (name, case) in enumerate(wanted.items(), 1):
        print(f"[{number}/{len(wanted)}] {name} {case.title} ...", file=sys.stderr, flush=True)
        told = _run(case, args, *early.get(name, ()))
        found[name] = {"case": case.module, **told}
        spent = f"{told['seconds']:.1f} s, {told['cpu_seconds']:.1f} s of CPU time"
        print(f"    {'FAILED, ' if 'failed' in told else ''}{spent}", file=sys.stderr, flush=True)
        _keep(found, args)
    if "torch" in sys.modules:
        found |= _torch(args.device)
    found["seconds"] = round(time.perf_counter() - begun, 1)
    found["cpu_seconds"] = round(_cpu_seconds() - used, 1)
    return _tell(found, args)


def _tell(found: dict[str, Any], args: argparse.Namespace) -> int:
    from summary import summary  # beside this file; imports torch
    from turns import missed

    found["missed"] = missed(found)
    print(json.dumps(found, indent=1), flush=True)
    _keep(found, args)
    print(summary(found, {name: case.title for name, case in CASES.items()}), file=sys.stderr)
    failed = any("failed" in told for told in found.values() if isinstance(told, dict))
    return int(failed or (args.strict and bool(found["missed"])))


def _keep(found: dict[str, Any], args: argparse.Namespace) -> None:
    """After every case, so that whoever interrupts the book has what it found."""
    if args.out is not None:
        args.out.write_text(json.dumps(found, indent=1) + "\n")


def _wanted(name: str, case: Case, args: argparse.Namespace) -> bool:
    return not args.only or bool({name, case.module} & set(args.only))


def _cpu_seconds() -> float:
    """Of this process and of those that it has waited for."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _early(case: Case, args: argparse.Namespace) -> tuple[Any, float, float]:
    """What `early` gives, and its seconds, which are the case's."""
    print(f"{case.module}: filling a store, which settles meanwhile ...", file=sys.stderr, flush=True)
    start, used = time.perf_counter(), _cpu_seconds()
    assert case.early is not None, "asked for"
    with _synced_again():
        made = case.early(importlib.import_module(case.module), args)
    return made, time.perf_counter() - start, _cpu_seconds() - used


def _run(
    case: Case, args: argparse.Namespace, made: Any = None, before: float = 0.0, spent: float = 0.0
) -> dict[str, Any]:
    """A case that fails is told and does not take the others with it."""
    start, used = time.perf_counter() - before, _cpu_seconds() - spent
    more = () if case.early is None else (made,)
    try:
        with _synced_again():
            told = {"found": case.run(importlib.import_module(case.module), args, *more)}
    except Exception as error:
        traceback.print_exc()
        told = {"failed": f"{type(error).__name__}: {error}", "met": False}
    took = {"seconds": time.perf_counter() - start, "cpu_seconds": _cpu_seconds() - used}
    return {**told, **{name: round(value, 1) for name, value in took.items()}}


@contextmanager
def _synced_again() -> Iterator[None]:
    """A case that fills a store leaves out its flushes; the next one has them again."""
    before = os.fsync, os.fdatasync
    try:
        yield
    finally:
        os.fsync, os.fdatasync = before


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
    parser.add_argument(
        "--full",
        action="store_true",
        help="the sizes that goals are for where a CPU takes minutes: H3, H4, E1, E3; every method in T6",
    )
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="write the JSON there, too, after every case"
    )
    parser.add_argument("--strict", action="store_true", help="exit 1 when a goal is missed")
    return parser.parse_args(words)


def _torch(device: str) -> dict[str, str]:
    import torch

    name = torch.cuda.get_device_name(torch.device(device)) if device.startswith("cuda") else "cpu, 1 thread"
    return {"torch": torch.__version__, "device": name}


if __name__ == "__main__":
    sys.exit(main())
