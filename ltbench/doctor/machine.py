"""What this machine can do: Python and its packages, torch and its devices, threads, plugins, weights, the terminal."""

from __future__ import annotations

import json
import locale
import os
import re
import resource
import shutil
import sys
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

from ltbench.doctor.findings import Finding, call, failure, ok, warning
from ltbench.errors import LtbenchError
from ltbench.extractors import extractor_problem, extractors
from ltbench.launch.devices import cores
from ltbench.provenance import surroundings

PYTHON = (3, 11)
# What no verb that trains or reports can do without, each with its lower bound (pyproject.toml; a test compares the two).
NEEDED = {
    "torch": "2.6", "numpy": "1.26", "safetensors": "0.4.3", "torchdiffeq": "0.2.3", "pydantic": "2.7", "submitit": "1.5.2",
    "pyyaml": "6", "typer": "0.12", "rich": "13", "pandas": "2", "matplotlib": "3.8", "seaborn": "0.13", "jinja2": "3.1",
    "scikit-learn": "1.4", "pillow": "10.1", "scipy": "1.11",
}  # fmt: skip
START = 120.0  # seconds for importing torch on a cold network disk
FILES = 1024  # open files that a process should be allowed
TORCH = """
import json, torch
cuda = torch.cuda.is_available()
cards = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())] if cuda else []
if cuda:
    (torch.ones(8, device="cuda") * 2).sum().item()
print(json.dumps({
    "version": torch.__version__, "cuda": torch.version.cuda, "available": cuda, "threads": torch.get_num_threads(),
    "cards": [[card.name, card.total_memory] for card in cards], "bf16": cuda and torch.cuda.is_bf16_supported(),
}))
"""


def python() -> Iterator[Finding]:
    """The interpreter and what is installed for it."""
    said = ".".join(map(str, sys.version_info[:3]))
    if sys.version_info < PYTHON:
        yield failure("python", f"Python {said}", f"use Python {'.'.join(map(str, PYTHON))} or later")
    else:
        yield ok("python", f"Python {said}, {sys.executable}")
    absent, old = [], []
    for name, bound in NEEDED.items():
        try:
            found = metadata.version(name)
        except metadata.PackageNotFoundError:
            absent.append(name)
            continue
        if _numbers(found) < _numbers(bound):
            old.append(f"{name} {found}, at least {bound} is needed")
    if absent:
        yield failure("packages", f"not installed: {', '.join(absent)}", "install them: pip install -e .")
    if old:
        yield failure("packages", "; ".join(old), "update them: pip install -U -e .")
    if not absent and not old:
        known = surroundings.versions()
        yield ok(
            "packages", ", ".join(f"{name} {version}" for name, version in known.items() if name != "python")
        )


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", version.partition("+")[0])[:3])


def torch() -> Iterator[Finding]:
    """torch and its devices, asked of a child process that also computes on the first GPU."""
    said = call([sys.executable, "-c", TORCH], START)
    if said is None or said.code:
        why = said.reason if said else f"gave no answer within {START:.0f} s"
        yield failure(
            "torch", f"it cannot be used: {why}", "reinstall torch for this machine (pytorch.org says how)"
        )
        return
    found = json.loads(said.out.splitlines()[-1])
    yield ok("torch", f"torch {found['version']}, CUDA {found['cuda'] or 'not built in'}")
    yield _device(found)


def _device(found: dict[str, Any]) -> Finding:
    if found["available"]:
        cards = ", ".join(f"{name} ({size / 2**30:.0f} GiB)" for name, size in found["cards"])
        more = "" if found["bf16"] else "; no bfloat16"
        return ok("device", f"{len(found['cards'])} GPU: {cards}{more}")
    if shutil.which("nvidia-smi") and (said := call(["nvidia-smi", "-L"])) and "GPU " in said.out:
        built = "torch has no CUDA in it" if not found["cuda"] else "torch cannot use it"
        remedy = "install a torch whose CUDA the driver supports (nvidia-smi shows the driver's), and look at CUDA_VISIBLE_DEVICES"
        return failure("device", f"there is a GPU, and {built}", remedy)
    return ok(
        "device", f"no GPU here: trainings run on {found['threads']} CPU threads, or elsewhere by submit"
    )


def threads() -> Iterator[Finding]:
    """Cores this process may use against what the environment asks for."""
    count = cores()
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        wanted = os.environ.get(name, "")
        if wanted.isdigit() and int(wanted) > count:
            remedy = f"unset {name} or set it to at most {count}"
            yield warning("threads", f"{name} is {wanted}, and {count} cores may be used here", remedy)
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if 0 <= soft < FILES:
        yield warning(
            "threads", f"only {soft} files may be open at a time", f"ulimit -n {FILES} before the run"
        )
    yield ok("threads", f"{count} cores may be used")


def weights() -> Iterator[Finding]:
    """Which networks that measure have their weights here."""
    here, absent = [], []
    for name in extractors():
        try:
            problem = extractor_problem(name)
        except LtbenchError as error:
            problem = error.message
        (absent if problem else here).append((name, problem))
    if here:
        yield ok("weights", f"extractors ready: {', '.join(name for name, _ in here)}")
    for _, problem in absent:
        message, _, remedy = str(problem).partition("; ")
        yield warning("weights", message, remedy or "see `python harness.py extractors`")


def plugins(problems: dict[str, dict[str, str | None]]) -> Iterator[Finding]:
    """`problems`: kind -> name -> why its file does not import, None where it does."""
    for kind, found in problems.items():
        bad = {name: why for name, why in found.items() if why}
        for name, why in bad.items():
            yield warning(
                "plugins",
                f"{kind}/{name} does not load: {why}",
                f"mend the file or remove it: cells with {name} fail",
            )
        yield ok("plugins", f"{len(found) - len(bad)} of {len(found)} {kind} load")


def terminal() -> Iterator[Finding]:
    """What prints here."""
    encoding = (sys.stdout.encoding or "").lower().replace("-", "")
    if encoding not in ("utf8", "utf16"):
        remedy = "set LANG=C.UTF-8 (or PYTHONUTF8=1): names of classes and units are printed as text"
        yield warning("terminal", f"the output is written as {sys.stdout.encoding}", remedy)
    if locale.getlocale()[0] is None and os.environ.get("LANG", "C") not in ("C", "POSIX", "C.UTF-8"):
        yield warning("terminal", f"the locale {os.environ.get('LANG')} is not installed", "set LANG=C.UTF-8")
    if sys.stdout.isatty():
        size = shutil.get_terminal_size()
        if size.columns < 80:
            yield warning("terminal", f"{size.columns} columns", "widen the window to 80 columns")
        else:
            yield ok("terminal", f"{size.columns} columns, {encoding}")
    else:
        yield ok("terminal", "not a terminal: plain lines, and --watch prints blocks")


def home(scratch: Path) -> Iterator[Finding]:
    """Caches that fill a small home directory."""
    own = Path.home()
    if scratch.resolve().is_relative_to(own.resolve()) and shutil.which("sbatch"):
        remedy = "set LTBENCH_SCRATCH to a folder of the cluster's scratch file system"
        yield warning("scratch", f"{scratch} lies in the home directory, where quotas are small", remedy)
