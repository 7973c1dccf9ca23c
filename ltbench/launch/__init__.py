"""Cells to processes. `local` feeds worker processes on this machine; a worker runs `ltbench.job` and nothing else does."""
