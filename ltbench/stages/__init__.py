"""The stages of a cell: train, then evaluate each milestone. `ltbench.job` claims one and runs it."""
