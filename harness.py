"""The command line: `python harness.py VERB`. The same program is installed as `ltbench`."""

from __future__ import annotations

import sys

from ltbench.entry import main

if __name__ == "__main__":
    sys.exit(main())
