"""Where the program begins. A report that is remembered is told at once; everything else imports the command line."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
from typing import NoReturn

LOOKING = ("status", "plan", "report")  # verbs that leave nothing behind in the process


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
    """`main` as a process of its own. One that looked at thousands of cells leaves as it is: to take apart all that it has imported
    and made takes Python 0.2 CPU-s. A profiler wants to see the end."""
    code = main()
    if sys.argv[1:2] and sys.argv[1] in LOOKING and sys.getprofile() is None:
        with contextlib.suppress(OSError):  # a pipe that nobody reads: Python says so in its own way
            atexit._run_exitfuncs()
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(code)
    sys.exit(code)
