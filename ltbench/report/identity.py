"""What makes two numbers comparable: the identity of a section, of a family of sections, and of a column, with differences in words."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any

from ltbench.canonical import digest

Evaluation = Mapping[str, Any]
Record = Mapping[str, Any]

_NOT_COMPARED = ("id", "metrics")  # which metrics an evaluation holds changes none of them
# What all values of a column share, beside the groups' classes. Rows older than the naming of estimators are their own kind.
ROW_KEYS = ("name", "better", "scale", "k", "n_gen", "n_ref", "estimator")
_ABSENT = object()


def section_id(evaluation: Evaluation) -> str:
    """12 hex digits that two evaluations share if their numbers may stand in one section: protocol, sampler and its settings,
    guidance, sample count, labels, noise, extractor and reference. It is the evaluation's id where no `metrics` are listed."""
    return digest({key: value for key, value in evaluation.items() if key not in _NOT_COMPARED})[:12]


def family_id(evaluation: Evaluation) -> str:
    """The same without the guidance value, or the search for it: sections of one family differ in nothing else."""
    return section_id({key: value for key, value in evaluation.items() if key not in ("guidance", "search")})


def section_of(record: Record) -> str:
    """The section that a record's evaluation belongs to, by its content and not by the id that it states."""
    return _remembered(section_id, record["body"]["evaluation"])


def groups_id(record: Record) -> str:
    """8 hex digits of a record's head, body and tail classes."""
    return _remembered(digest, record["body"]["groups"])[:8]


_IDS: dict[tuple[Callable[[Any], str], str], str] = {}


def _remembered(identify: Callable[[Any], str], value: Any) -> str:
    """`identify(value)`: of thousands of records few differ in it, and a digest takes ten times what `repr` does."""
    text = repr(value)
    if (identify, text) not in _IDS:
        if len(_IDS) > 10_000:
            _IDS.clear()
        _IDS[identify, text] = identify(value)
    return _IDS[identify, text]


def fixed_steps(evaluation: Evaluation) -> bool:
    """Whether the sampler spends the same number of evaluations on every image; an adaptive one has tolerances."""
    return "rtol" not in evaluation


def differing(here: Evaluation, there: Evaluation, keys: Iterable[str] | None = None) -> list[str]:
    """ "protocol (adm-50k, here small-data)" for every key whose values differ; `there` is what the section has."""
    names = sorted({*here, *there} - {*_NOT_COMPARED}) if keys is None else keys
    return [
        f"{name} ({_said(there, name)}, here {_said(here, name)})"
        for name in names
        if here.get(name, _ABSENT) != there.get(name, _ABSENT)
    ]


def _said(evaluation: Evaluation, name: str) -> str:
    if name not in evaluation:
        return "not stated"
    value = evaluation[name]
    if isinstance(value, Mapping) and set(value) == {"name", "sha256"}:
        return f"{value['name']}@{value['sha256'][:8]}"
    return "none" if value is None else str(value)
