"""Faults that a benchmark must survive; `catalogue` says which test shows it, `python -m tests.faults` prints that as a table."""

import os

LONG = os.environ.get("LTBENCH_FAULTS") == "long"  # `make faults`; elsewhere a sample of the same
