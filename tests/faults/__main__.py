"""`python -m tests.faults` prints the fault catalogue as a table: what happens, what is seen, where it is shown, what is lacking."""

from __future__ import annotations

import textwrap

from tests.faults.catalogue import FAULTS, MUTANTS


def table() -> str:
    """The catalogue in 110 columns, and how much of it is shown."""
    lines = []
    for fault in FAULTS:
        mutants = sum(mutant.faults == fault.number for mutant in MUTANTS)
        lines.append(f"{fault.number}  {fault.happens}: {fault.seen}")
        words = [f"tests/{test}" for test in fault.tests]
        if fault.guard:
            words.append(f"guard: {fault.guard}" + (f" ({mutants} taken out in turn)" if mutants else ""))
        if fault.lacking:
            words.append(f"NOT SHOWN: {fault.lacking}")
        for word in words:
            lines += textwrap.wrap(word, 110, initial_indent="     ", subsequent_indent="       ")
    shown = sum(bool(fault.tests) and not fault.lacking for fault in FAULTS)
    partly = sum(bool(fault.tests) and bool(fault.lacking) for fault in FAULTS)
    return "\n".join(
        [
            *lines,
            f"{len(FAULTS)} faults: {shown} shown, {partly} partly, {len(FAULTS) - shown - partly} not yet",
        ]
    )


if __name__ == "__main__":
    print(table())
