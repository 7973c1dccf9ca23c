"""Faults that a benchmark must survive; `catalogue` says which test shows it, `python -m tests.faults` prints that as a table."""

import os
import sys
from contextlib import nullcontext

import pytest

LONG = os.environ.get("LTBENCH_FAULTS") == "long"  # `make faults`; elsewhere a sample of the same
HOURS = 8 if LONG else 1  # that kills may take on a machine that is only slow


def tell(capfd: pytest.CaptureFixture[str], text: str) -> None:
    """Print how far the kills are: at once in `make faults`, which takes hours, else with what a failed test shows."""
    with capfd.disabled() if LONG else nullcontext():
        print(text, file=sys.stderr, flush=True)
