"""Where the program begins. A report that is remembered is told at once; everything else imports the command line."""

from __future__ import annotations

import sys


def main() -> int:
    """Run `sys.argv`; the process's exit code, as `ltbench.cli.main` has it."""
    if sys.argv[1:2] == ["report"]:
        from ltbench.report import memory

        if memory.recall():
            sys.stdout.flush()
            return 0
    from ltbench.cli import main as whole

    return whole()
