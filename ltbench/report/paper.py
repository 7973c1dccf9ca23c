"""Ours against a published number: whether it may be compared at all, and what the declared tolerance says."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ltbench.metrics.naming import INCEPTION_SHA256, KINDS, PREPARED, metric_name
from ltbench.report.axes import setting_text
from ltbench.report.definition import Tolerance
from ltbench.report.published import Publication, PublishedLine, same_value
from ltbench.report.sheet import Verdict

_ROUNDING = 1e-9
_ABSENT = object()


def published_names(kind: str) -> set[str]:
    """What `kind` is called on the weights that papers use. Nothing else stands in a published column (design: metric identity)."""
    if kind not in KINDS:
        return set()
    return {metric_name(kind, f"{name}@{INCEPTION_SHA256}") for name in PREPARED}


def tolerance_text(tolerance: Tolerance | None) -> str:
    """ "0.8 or 5 %" """
    if tolerance is None:
        return ""
    parts = [f"{tolerance.absolute:g}"] if tolerance.absolute else []
    parts += [f"{100 * tolerance.relative:g} %"] if tolerance.relative else []
    return " or ".join(parts) or "0"


def unlike(line: PublishedLine, publication: Publication, ours: Mapping[str, Any]) -> list[str]:
    """Settings that a published number states and that ours has otherwise, as "resample (published true, here none)".

    `ours`: flat settings of the cell, "evaluation.KEY" of the evaluation, and "step".
    """
    found = []
    for setting, word, value, said in publication.settings_of(line):
        here = ours.get(setting, _ABSENT)
        if here is _ABSENT or not same_value(value, here):
            text = "no such setting" if here is _ABSENT else setting_text(here)
            name = setting.removeprefix("evaluation.")
            shown = said if word in name else f"{word} {said}"
            found.append(f"{name} (published {shown}, here {text})")
    return found


def judged(ours: float, theirs: str, tolerance: Tolerance | None, better: str, reasons: list[str]) -> Verdict:
    """The verdict on `ours` (in printed units); `reasons`: why the two cannot be compared."""
    if reasons:
        return Verdict("", reason="; ".join(reasons))
    gap = ours - float(theirs)
    if tolerance is None:
        return Verdict("", gap, reason="the definition declares no tolerance")
    allowed = max(tolerance.absolute, tolerance.relative * abs(float(theirs)))
    if abs(gap) <= allowed + _ROUNDING * max(1.0, abs(ours)):
        return Verdict("within", gap, allowed)
    if better not in ("lower", "higher"):
        return Verdict("differs", gap, allowed)
    return Verdict("better" if (gap > 0) == (better == "higher") else "worse", gap, allowed)
