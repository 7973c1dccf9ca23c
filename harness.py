"""The command line: `python harness.py VERB`. The same program is installed as `ltbench`."""

from __future__ import annotations

import sys

if __name__ == "__main__":
    try:
        from ltbench.entry import program

        program()
    except KeyboardInterrupt:  # before a verb began that knows what Ctrl-C means
        sys.exit(130)
