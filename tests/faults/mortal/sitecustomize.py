"""Python imports this first of all where its folder leads PYTHONPATH: one process of a command kills itself inside a write.

LTBENCH_DIES="worker 1 29 FOLDER": of the workers the second to come, before or after its 29th system call of a commit. "driver 0 7
FOLDER": the command itself. In FOLDER each that comes takes a number.
"""

import itertools
import os
import sys

from tests.killing import die_in_write


def turn(folder: str) -> int:
    """How many came before."""
    for number in itertools.count():
        try:
            os.close(os.open(f"{folder}/{number}", os.O_CREAT | os.O_EXCL))
            return number
        except FileExistsError:
            continue
    raise AssertionError


who, which, number, folder = os.environ["LTBENCH_DIES"].split(" ", 3)
words = {"driver": "harness.py", "worker": "ltbench.launch.worker"}
if any(word.endswith(words[who]) for word in sys.orig_argv) and turn(folder) == int(which):
    die_in_write(int(number))
