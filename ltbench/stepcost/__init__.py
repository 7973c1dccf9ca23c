"""A training step taken apart: which part of it costs how much.

ranges.py       gives the parts of a built trainer names that a profiler sees, from outside
attribution.py  from what a profiler saw to the costs of a step, by part and kind of operation
__main__.py     the process that does it, for `run --profile-step`
"""
