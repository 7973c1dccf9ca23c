"""Work of a verb that needs torch, in this process. It is called by its name, so that no other verb waits for the import."""

from __future__ import annotations

import importlib
import time
from collections.abc import Callable
from typing import Any

from ltbench.cli.output import say

EVERY = 2.0  # seconds between two lines of progress


def call(function: str, *args: Any, **kwargs: Any) -> Any:
    """What `MODULE:FUNCTION` returns."""
    module, _, name = function.partition(":")
    return getattr(importlib.import_module(module), name)(*args, **kwargs)


def teller(what: str, total: int | None = None) -> Callable[..., None]:
    """A function of (images done[, of how many]) that says so on stderr, now and then and at the end."""
    begun = last = time.monotonic()

    def tell(done: int, of: int | None = total) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last >= EVERY or done == of:
            last = now
            say(f"{what}: {done}/{of} images, {done / max(now - begun, 1e-9):.0f} a second")

    return tell
