"""Contenders for claims, for tests: other processes, other machines."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from typing import Any

from ltbench import files
from ltbench.store import Claim, Held, Run, Store, claims, sealed
from tests import store_faults as faults
from tests.store_world import CELL, RUN

LEASE = 0.4  # seconds
PATIENT = 300.0  # seconds for what takes one lease
LONG = 3600.0  # a lease that no test outlives


def again(run: Run, lease: float = LEASE) -> Run:
    """The same run seen by another process: one that has watched nobody yet."""
    store = Store.open(run.store.root, run.store.scratch, lease=lease)
    store.watch = claims.Watch()
    return store.run(CELL, RUN)


def won(claim: Claim | Held) -> Claim:
    assert isinstance(claim, Claim), str(claim)
    return claim


def held(claim: Claim | Held) -> Held:
    assert isinstance(claim, Held), f"attempt {claim.attempt} was granted"
    return claim


def on_another_machine() -> None:
    files.kernel = lambda: "another/1"  # type: ignore[assignment]


def in_another_process(action: Callable[[], Any]) -> int:
    """Start `action` in a child and return once it has written its ready file; the child then waits to be killed."""
    reader, writer = os.pipe()

    def child() -> None:
        action()
        os.write(writer, b"x")
        time.sleep(600)

    pid = faults.fork(child)
    assert os.read(reader, 1) == b"x", "the child did not get ready"
    os.close(reader)
    os.close(writer)
    return pid


def end(pid: int) -> None:
    os.kill(pid, signal.SIGKILL)
    faults.wait(pid)


def rewrite_owner(run: Run, stage: str = "train", attempt: int = 1, **fields: Any) -> None:
    path = run.dir / "claims" / f"{stage}.{attempt}.json"
    content = sealed.unseal(path.read_bytes())
    content["owner"] |= fields
    path.write_bytes(sealed.seal(content))
