"""`python -m ltbench.conformance NAME|PATH ... [--json]`: exit code 0 when everything passed, 1 when something failed, 2 for bad usage."""

from __future__ import annotations

import argparse
import json
import shutil
import sys

from ltbench.conformance import check
from ltbench.errors import LtbenchError


def main(argv: list[str] | None = None) -> int:
    """Check every plugin named; print its table, or JSON."""
    parser = argparse.ArgumentParser(
        prog="python -m ltbench.conformance", description="Check method plugins against their contract."
    )
    parser.add_argument("plugin", nargs="+", metavar="NAME|PATH", help="a method's name or its file")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    args = parser.parse_args(argv)
    try:
        reports = [check(target) for target in args.plugin]
    except LtbenchError as error:
        print(f"error: {error.message}" + (f"\n  {error.hint}" if error.hint else ""), file=sys.stderr)
        return error.exit_code
    if args.json:
        print(json.dumps([report.as_json() for report in reports], indent=1))
    else:
        width = shutil.get_terminal_size((100, 24)).columns
        print("\n\n".join(report.text(width) for report in reports))
    return int(any(report.failures for report in reports))


if __name__ == "__main__":
    sys.exit(main())
