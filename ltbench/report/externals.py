"""Rows for what was not trained here: somebody's samples or checkpoint, measured by our extractor, with its declared settings."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from ltbench.canonical import canonical_json
from ltbench.report.axes import Planned, RowPlan, SectionPlan, flat, setting_text
from ltbench.report.identity import differing, section_of
from ltbench.report.notes import Notes
from ltbench.report.select import Record
from ltbench.report.table import External

# How an evaluation measures: other values are other metrics, and the row is refused.
MEASURED = ("protocol", "samples", "extractor", "reference")
# What says nothing about a set of images that came from elsewhere, or is said by MEASURED.
_OURS = {*MEASURED, "id", "metrics", "seed", "block"}


def external_rows(
    records: Iterable[Record], plan: SectionPlan, axes: int, shown: int, notes: Notes
) -> list[RowPlan]:
    """The external rows of a section, by name; `records` are the external ones of the store.

    A row joins the section of its data set if it was measured as the section is, else a footnote names both evaluations. How
    it was sampled is somebody's word: what differs from the section, or was not declared, is a footnote of the row.
    """
    found: dict[str, list[Record]] = {}
    for record in records:
        if _same(record["body"]["settings"].get("dataset"), plan.dataset):
            found.setdefault(record["body"]["cell"], []).append(record)
    rows = [_row(cell, found[cell], plan, axes, shown, notes) for cell in sorted(found)]
    placed = sorted((row for row in rows if row), key=lambda row: (row.method, row.cells[0]["cell"]))
    names = [row.method for row in placed]
    return [_labelled(row, names.count(row.method) > 1) for row in placed]


def _labelled(row: RowPlan, twins: bool) -> RowPlan:
    """Every view prints the label, so that the word stands in each."""
    more = f", {row.external.sha256[:8]}" if row.external and twins else ""
    return replace(row, label=f"{row.method} (external{more})")


def unplaced(records: Sequence[Record], plans: Sequence[SectionPlan]) -> Iterator[str]:
    """A sentence for every external whose data set no section has."""
    homes = [canonical_json(plan.dataset) for plan in plans]
    seen: dict[tuple[str, str], None] = {}
    for record in records:
        dataset = record["body"]["settings"].get("dataset")
        if dataset is None or canonical_json(dataset) not in homes:
            seen[record["body"]["external"]["name"], setting_text(dataset)] = None
    for name, dataset in sorted(seen):
        yield f"External {name} stands in no section: its data set is {dataset}."


def _row(
    cell: str,
    records: Sequence[Record],
    plan: SectionPlan,
    axes: int,
    shown: int,
    notes: Notes,
) -> RowPlan | None:
    alike = [record for record in records if not _unlike(record, plan)]
    body = max(alike or records, key=lambda record: record["digest"])["body"]
    told = body["external"]
    if not alike:
        texts = sorted({f"{section_of(r)}: {', '.join(_unlike(r, plan))}" for r in records})
        notes.number(
            f"External {told['name']} is refused here (evaluation {plan.evaluation['id']}): it was measured otherwise, by "
            f"evaluation {'; '.join(texts)}."
        )
        return None
    step = int(body["step"])
    keys = tuple(sorted({(cell, int(r["body"]["step"]), section_of(r)) for r in alike}))
    external = External(
        str(told["name"]), str(told["kind"]), str(told["sha256"]), step, keys, _said(body, plan)
    )
    pseudo: Planned = {
        "cell": cell,
        "label": external.name,
        "settings": {"method": {"name": external.name}, **body["settings"]},
        "milestones": [shown],
        "evaluations": [],
    }
    return RowPlan(external.name, external.name, ("",) * axes, (pseudo,), external)


def _same(one: Any, other: Any) -> bool:
    return one is not None and canonical_json(one) == canonical_json(other)


def _unlike(record: Record, plan: SectionPlan) -> list[str]:
    return differing(record["body"]["evaluation"], plan.evaluation, MEASURED)


def _said(body: Mapping[str, Any], plan: SectionPlan) -> str:
    """The footnote of an external row: what it is, what was declared, and where that is not the section's."""
    told = body["external"]
    declared = dict(flat(told["declared"]))
    listed = ", ".join(f"{key} {setting_text(value)}" for key, value in declared.items()) or "nothing"
    text = (
        f"{told['name']}: external {told['kind']}, sha256 {str(told['sha256'])[:16]}; not trained here, and not ranked. "
        f"Declared: {listed}."
    )
    known = {**body["evaluation"], **told["declared"]}
    wanted = {key: value for key, value in plan.evaluation.items() if key not in _OURS}
    silent = [key for key in wanted if known.get(key) is None and wanted[key] is not None]
    other = differing(known, wanted, [key for key in sorted(wanted) if key not in silent])
    if other:
        text += f" Not the section's: {', '.join(other)}."
    if silent:
        text += f" Not declared: {', '.join(sorted(silent))}."
    return text
