"""The checks themselves and what they run on. Everything here imports torch; `ltbench.conformance` starts it in a child."""
