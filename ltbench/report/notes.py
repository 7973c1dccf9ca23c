"""Numbered footnotes, and the differences between records that deserve one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ltbench.protocols import extractor_family, sampled_in
from ltbench.report.axes import RowPlan, flat, seed_of, start_text, stated_seed
from ltbench.report.columns import nfe_text
from ltbench.report.versions import mixed_versions
from ltbench.report.words import clean, of_seed

Record = Mapping[str, Any]
Found = Sequence[tuple[RowPlan, list[Record]]]  # every row with its records at the shown step

SHARED_CODE = ("trainer", "data", "evaluation")


class Notes:
    """Footnotes numbered in order of their first use; the same text keeps its number."""

    def __init__(self) -> None:
        self.texts: list[str] = []

    def number(self, text: str) -> int:
        """The number of `text`, from 1."""
        if text not in self.texts:
            self.texts.append(text)
        return self.texts.index(text) + 1


def row_notes(
    found: Found, extractor: str, others: Callable[[Record], int], notes: Notes
) -> list[tuple[int, ...]]:
    """Footnote numbers of every row: mixed code, mixed data, further records, a method trained against the extractor."""
    numbers: list[list[int]] = [[] for _ in found]
    for place, (row, _) in enumerate(found):
        if row.external:
            numbers[place].append(notes.number(row.external.note))
    everyone, found = found, [(row, [] if row.external else records) for row, records in found]
    for component in SHARED_CODE:
        who = everyone if component == "evaluation" else found
        _mixed(
            who, f"{component} code", lambda r, c=component: r["body"].get("code", {}).get(c), notes, numbers
        )
    networks = {row.cells[0]["settings"]["network"] for row, _ in found if not row.external}
    for network in sorted(networks):
        same = [(row, rs if row.cells[0]["settings"].get("network") == network else []) for row, rs in found]
        _mixed(same, "network code", lambda r: r["body"]["code"].get("network"), notes, numbers)
    _mixed(found, "training data", lambda r: r["body"].get("data_sha256"), notes, numbers)
    coded = [(row, [r for r in records if "vae" in r["body"]]) for row, records in found]
    _mixed(coded, "VAE", lambda r: r["body"]["vae"]["sha256"], notes, numbers)
    _mixed(found, "precision of sampling", _sampled_in, notes, numbers)
    if mixed := mixed_versions([(row.label, records) for row, records in found]):
        number = notes.number(mixed[0])
        for place in mixed[1]:
            numbers[place].append(number)
    _spent(found, notes, numbers)
    _recipes(found, notes, numbers)
    for place, (row, records) in enumerate(found):
        alone: Found = [(row, records)]
        own = [numbers[place]]
        _mixed(alone, "method code", lambda r: r["body"]["code"].get("method"), notes, own)
        _mixed(alone, "code of the start", lambda r: r["body"]["code"].get("init"), notes, own)
        if text := _accepted(row, records):
            numbers[place].append(notes.number(text))
        if text := _start_note(row):
            numbers[place].append(notes.number(text))
        if further := sum(others(record) for record in records):
            noun = "record" if further == 1 else "records"
            text = f"{row.label}: {further} older {noun} of the same cells and evaluation (other code or attempt) not used."
            numbers[place].append(notes.number(text))
        if text := _flattered(row, extractor):
            numbers[place].append(notes.number(text))
    return [tuple(row) for row in numbers]


def _sampled_in(record: Record) -> str:
    body = record["body"]
    return sampled_in(body["evaluation"], body["settings"]["train"].get("precision"))


def _accepted(row: RowPlan, records: Sequence[Record]) -> str | None:
    """A sentence where somebody took results of other code as good, with the reasons given."""
    reasons = sorted({clean(record["accepted"]).rstrip(".") for record in records if record.get("accepted")})
    return (
        f"{row.label}: results of other code, accepted with the reason: {'; '.join(reasons)}."
        if reasons
        else None
    )


def _flattered(row: RowPlan, extractor: str) -> str | None:
    """A sentence where a method trains against the extractor, or against another network of its family."""
    told = [(name, value) for name, value in flat(row.cells[0]["settings"]) if name.startswith("method.")]
    texts = [(name, text) for name, value in told for text in _texts(value)]
    if any(text == extractor for _, text in texts):
        return f"{row.label} trains against {extractor}, the extractor of these metrics: its values are flattered."
    family = extractor_family(extractor)
    for name, text in texts:
        if "encoder" in name.rpartition(".")[2] and extractor_family(text) == family:
            return (
                f"{row.label} trains against {text}, a network of the same family ({family}) as {extractor}, the extractor of "
                "these metrics: they favour it. Judge it by another extractor."
            )
    return None


def _texts(value: Any) -> list[str]:
    items = value if isinstance(value, list | tuple) else [value]
    return [item for item in items if isinstance(item, str)]


def _spent(found: Found, notes: Notes, numbers: list[list[int]]) -> None:
    """One footnote, on every row, where the rows' evaluations per image differ, which only an adaptive sampler may do."""
    spent = [
        (row.label, ", ".join(dict.fromkeys(nfe_text(record) for record in records)))
        for row, records in found
        if records
    ]
    if len({text for _, text in spent}) < 2:
        return
    said = "; ".join(f"{label}: {text}" for label, text in spent)
    number = notes.number(f"Evaluations of the network per image differ between rows: {said}.")
    for own in numbers:
        own.append(number)


def _recipes(found: Found, notes: Notes, numbers: list[list[int]]) -> None:
    """The training recipe that rows name, with every deviation from it: one footnote for all rows, else one each."""
    said = [None if row.external else row.cells[0].get("recipe") for row, _ in found]
    own = {text for (row, _), text in zip(found, said, strict=True) if not row.external}
    if len(own) == 1 and None not in own:
        notes.number(f"Every row is trained as {own.pop()}.")
        return
    for place, ((row, _), text) in enumerate(zip(found, said, strict=True)):
        if text is not None:
            numbers[place].append(notes.number(f"{row.label} is trained as {text}."))


def _start_note(row: RowPlan) -> str | None:
    """What a row's steps do not count, and where its weights begin."""
    init = row.cells[0]["settings"].get("init")
    if init is None:
        return None
    if "source" in init:
        cells = ", ".join(
            f"{cell['settings']['init']['cell'][:8]} for seed {seed_of(cell)}" for cell in row.cells
        )
        begun = f"the EMA weights of {start_text(init)} (cell {cells})"
    else:
        begun = f"{start_text(init)} (external weights, prior steps as declared)"
    return f"{row.label}: {init['prior_steps']:,} prior steps; its own are counted from {begun}."


def _mixed(
    found: Found, what: str, value: Callable[[Record], str | None], notes: Notes, numbers: list[list[int]]
) -> None:
    """One footnote, on every row with a minority value, when the records do not share `value`."""
    counts = Counter(str(value(record)) for _, records in found for record in records)
    if len(counts) < 2:
        return
    ranked = sorted(counts, key=lambda digest: (-counts[digest], digest))
    holders = []
    for digest in ranked:
        who = [
            f"{row.label}{of_seed(stated_seed(row, cell))}"
            for row, records in found
            for cell in row.cells
            if any(r["body"]["cell"] == cell["cell"] and str(value(r)) == digest for r in records)
        ]
        holders.append(f"{digest[:8]} in {', '.join(who)}")
    number = notes.number(f"Mixed {what}: {'; '.join(holders)}.")
    for place, (_, records) in enumerate(found):
        if any(str(value(record)) != ranked[0] for record in records):
            numbers[place].append(number)
