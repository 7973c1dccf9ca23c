"""A process that measures, for the verbs that ask one: on what, and its answers as they come."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ltbench.spec.resolved import Spec


def place_of(benchmark: Spec, device: str | None, threads: int | None) -> tuple[str, int]:
    """(cpu or cuda, CPU threads): what `run` would use here. Raises as `devices.seats` does."""
    from ltbench.launch.devices import gpus

    own = threads_of_run(benchmark, device)
    return device or ("cuda" if gpus() else "cpu"), threads or own


def threads_of_run(benchmark: Spec, device: str | None) -> int:
    """CPU threads that a worker of `run` has for this benchmark here."""
    import math

    from ltbench.launch.devices import seats

    cells = sum(math.prod(map(len, part.axes.values())) for part in benchmark.parts)
    return seats(cells, workers=None, threads=None, device=device).threads


def device_of(where: str) -> str:
    """The name of this machine's device as records have it."""
    from ltbench.cost.machine import cpu_name, gpu_names

    return next(iter(gpu_names()), "a GPU") if where == "cuda" else cpu_name()


def answers(
    module: str, words: Sequence[str], questions: str, device: str, threads: int
) -> Iterator[dict[str, Any]]:
    """Run a module with `questions` on its standard input; its JSON lines as they come.

    Everything that it started is gone afterwards.
    """
    import tempfile

    limits = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
    cards = {"CUDA_VISIBLE_DEVICES": ""} if device == "cpu" else {}
    with tempfile.TemporaryFile("w+") as text:
        text.write(questions)
        text.seek(0)
        child = subprocess.Popen(
            [sys.executable, "-m", module, *words],
            stdin=text,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            text=True,
            env={**os.environ, **limits, **cards},
        )
        assert child.stdout is not None, "the pipe was asked for"
        try:
            for line in child.stdout:
                yield json.loads(line)
        finally:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(child.pid, signal.SIGKILL)
            child.stdout.close()
            child.wait()
