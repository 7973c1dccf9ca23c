"""Where the program begins. A report that is remembered is told at once; everything else imports the command line."""

from __future__ import annotations

import atexit
import contextlib
import gc
import os
import sys
from typing import NoReturn

LEAVING = ("status", "plan", "report")  # verbs that leave nothing behind in the process
KEEPING = ("status", "plan")  # verbs that hold nearly everything that they make until they end


def main() -> int:
    """Run `sys.argv`; the process's exit code, as `ltbench.cli.main` has it."""
    if sys.argv[1:2] == ["report"]:
        from ltbench.report import memory

        if memory.recall():
            sys.stdout.flush()
            return 0
    from ltbench.cli import main as whole

    return whole()


def program() -> NoReturn:
    """`main` as a process of its own. One that looked at thousands of cells neither searches what it has made for garbage nor takes it
    apart at the end, which would take Python 0.3 CPU-s. A profiler wants to see the end."""
    verb = sys.argv[1] if len(sys.argv) > 1 else ""
    if verb in KEEPING:
        gc.disable()
    code = main()
    if verb in LEAVING and sys.getprofile() is None:
        with contextlib.suppress(OSError):  # a pipe that nobody reads: Python says so in its own way
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    sys.exit(code)
