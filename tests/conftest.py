"""One thread per process: results are compared bit for bit, and two workers share two cores. No test's plugins reach another."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator

import pytest

from ltbench import caches, plugins

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ["LTBENCH_CACHE"] = ""  # no report is remembered, but where a test is about that


@pytest.fixture(autouse=True)
def own_plugins() -> Iterator[None]:
    """`--plugins` lasts as long as a process does; here many commands share one."""
    before = os.environ.get(plugins.VARIABLE)
    yield
    os.environ.pop(plugins.VARIABLE, None)
    if before is not None:
        os.environ[plugins.VARIABLE] = before
    for kind in plugins.ROOTS:
        package = sys.modules.get(f"ltbench.{kind}")
        if package is not None:
            known = {str(plugins.PACKAGE / kind), *map(str, plugins.folders(kind))}
            package.__path__[:] = [path for path in package.__path__ if path in known]


@pytest.fixture(autouse=True)
def own_caches() -> Iterator[None]:
    """So do the places of caches that a command settles on."""
    names = (*caches.PLACES, *caches.OFFLINE, caches.MARK)
    before = {name: os.environ[name] for name in names if name in os.environ}
    yield
    for name in names:
        os.environ.pop(name, None)
    os.environ.update(before)
