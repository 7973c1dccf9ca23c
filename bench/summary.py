"""What the speed book found as a table: every number that has a goal, and every case with its seconds."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from turns import Judged, judged  # beside this file

WIDTH = 62  # of the column that says what a number is


def summary(found: Mapping[str, Any], titles: Mapping[str, str]) -> str:
    """The table. titles: of the cases, by number."""
    lines = [
        line for name, title in titles.items() if name in found for line in _case(name, title, found[name])
    ]
    wrong = [name for name in titles if "failed" in found.get(name, {})]
    missed = [each for name in titles if name in found for each in judged(found[name], name) if not each.met]
    clear = sum(not each.open for each in missed)
    lines.append(f"{found['seconds']:.0f} s in all, {found['cpu_seconds']:.0f} s of CPU time")
    told = f"{len(missed)} goals missed, {clear} of them by more than two standard errors"
    lines.append(f"{told}; {len(wrong)} cases failed{': ' if wrong else ''}{', '.join(wrong)}")
    return "\n".join(lines)


def _case(name: str, title: str, told: Mapping[str, Any]) -> Iterator[str]:
    yield f"{name}  {title}  ({told['seconds']:.0f} s, {told['cpu_seconds']:.0f} s CPU)"
    if "failed" in told:
        yield f"    FAILED  {told['failed']}"
        return
    for each in judged(told["found"]):
        yield "    " + _line(each)


def _line(each: Judged) -> str:
    value = f"{each.value:.4g}" + (f" ± {each.error:.2g}" if each.error else "")
    verdict = "met" if each.met else "MISSED"
    within = ", within two errors of it" if each.open else ""
    return f"{each.place[:WIDTH]:{WIDTH}} {value:>16}  {each.bound:>8}  {verdict}{within}"
