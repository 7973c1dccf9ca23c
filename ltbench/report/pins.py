"""What stands behind every printed number of a table: the lock file that pins it, and what has moved since.

A lock is a JSON file for people and version control: one line per record and per number, sorted, of any number of reports.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ltbench import files
from ltbench.canonical import digest
from ltbench.errors import LtbenchError, UsageError
from ltbench.report import words
from ltbench.report.axes import setting_text
from ltbench.report.definition import Definition
from ltbench.report.sheet import Sheet
from ltbench.report.table import Entry, Inputs, Section, Table

FORMAT = 1
_WHERE = ("part", "evaluation", "row", "column", "group", "step", "what")
Place = tuple[Any, ...]  # the values of _WHERE


@dataclass(frozen=True)
class Pins:
    """The pinned numbers of one report.

    definition: name and 16 hex digits of its content. records: digest -> {"cell", "run", "step", "evaluation", "code": {component: 16
    hex}}. numbers: place -> {"printed": text, "value": unscaled or None, "from": {digest: value or None}}.
    """

    definition: str
    records: Mapping[str, Mapping[str, Any]]
    numbers: Mapping[Place, Mapping[str, Any]]


@dataclass(frozen=True)
class Moved:
    """What differs from a lock, a line each, by kind: "value", "gone", "new", "code", "formatting"."""

    lines: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return any(self.lines.values())


# --- pinning --------------------------------------------------------------------------------------------------------


def pin(table: Table, inputs: Inputs, definition: Definition) -> Pins:
    """Every number that views print, with the records that it was made from."""
    known = {record["digest"]: record["body"] for record in (*inputs.records, *inputs.externals)}
    sheet = table.sheet  # views print it instead of the sections
    found = (
        (_numbers(section, _held_out(section, table.sections), table.decimals) for section in table.sections)
        if sheet is None
        else [_sheet(sheet)]
    )
    numbers = dict(each for several in found for each in several)
    used = {name for number in numbers.values() for name in number["from"]}
    about = f"{definition.name} {digest(definition.model_dump(mode='json'))[:16]}"
    return Pins(about, {name: _record(known[name]) for name in sorted(used & set(known))}, numbers)


def _record(body: Mapping[str, Any]) -> dict[str, Any]:
    code = {name: str(value)[:16] for name, value in sorted((body.get("code") or {}).items())}
    return {
        "cell": body["cell"],
        "run": body["run"],
        "step": body["step"],
        "evaluation": (body.get("evaluation") or {}).get("id") or body["kind"],
        "code": code,
    }


def _held_out(section: Section, sections: Sequence[Section]) -> str:
    """The part that floors are pinned under: with the data set where several sections of it are of one evaluation, for "real images"
    names no data set as the other rows' labels do."""
    here = section.part, section.evaluation["id"]
    alone = sum((each.part, each.evaluation["id"]) == here for each in sections) == 1
    return section.part if alone else f"{section.part}, {setting_text(section.dataset)}"


def _numbers(
    section: Section, held_out: str, decimals: Mapping[str, int]
) -> Iterator[tuple[Place, dict[str, Any]]]:
    for j, column in enumerate(section.columns):
        where = {"part": section.part, "evaluation": section.evaluation["id"], "column": column.name}
        where |= {"group": column.group, "step": section.shown}
        entries = [section.entry(i, j) for i in range(len(section.rows))]
        for i, (row, entry) in enumerate(zip(section.rows, entries, strict=True)):
            if entry.mean is None:
                continue
            cell = words.printed(entry, column, decimals)
            text = " ".join(filter(None, (cell.value + words.spread(cell), cell.count, cell.mark)))
            label = row.label
            yield _place(where, label, "value"), _number(text, entry.mean, [entry])
            gap = section.differences.get((i, j, section.shown))
            if gap is not None and row.baseline is not None:
                both = [entry, entries[row.baseline]]
                text = words.paired_text(section, i, j, decimals)
                yield _place(where, label, "difference"), _number(text, gap.value, both)
        if (j, section.shown) in section.floors:
            text, value = words.floor_text(section, j, decimals), section.floors[j, section.shown]
            place = _place({**where, "part": held_out}, words.FLOOR_LABEL, "floor")
            yield place, _number(text, value, entries, own=False)


def _sheet(sheet: Sheet) -> Iterator[tuple[Place, dict[str, Any]]]:
    """The lines of a table in a paper's form; published numbers come from no record, and are pinned by their text."""
    for title, line in sheet.lines():
        for head, cell in zip(sheet.columns, line.cells, strict=True):
            if cell.value:
                where = {"part": title, "evaluation": "", "column": head.name, "group": "", "step": 0}
                text = " ".join(
                    filter(None, (cell.value, cell.change, cell.sd or cell.se, cell.count, cell.mark))
                )
                value = cell.floor if cell.entry is None else cell.entry.mean
                entries = [] if cell.entry is None else [cell.entry]
                yield _place(where, line.name, line.kind), _number(text, value, entries)


def _place(where: Mapping[str, Any], row: str, what: str) -> Place:
    return tuple({**where, "row": row, "what": what}[key] for key in _WHERE)


def _number(
    printed: str, value: float | None, entries: Sequence[Entry], *, own: bool = True
) -> dict[str, Any]:
    """`own`: the number is made of the entries' values, which are pinned beside their records."""
    made = {each.digest: each.value if own else None for entry in entries for each in entry.values}
    return {"printed": printed, "value": value, "from": dict(sorted(made.items()))}


# --- the file -------------------------------------------------------------------------------------------------------


def write_lock(path: Path, report: str, pins: Pins) -> None:
    """Pin a report in a lock file; other reports that it pins stay. Raises LtbenchError for a file that is no lock."""
    reports = read_lock(path) if path.exists() else {}
    reports = {**reports, report: pins}
    files.make_directory(path.absolute().parent)
    files.replace(path.absolute(), _text(reports).encode())


def read_lock(path: Path) -> dict[str, Pins]:
    """The reports that a lock pins, by name. Raises UsageError where there is no such file, LtbenchError for a damaged one."""
    if not path.is_file():
        raise UsageError(f"there is no lock {path}", "`report NAME --lock FILE` writes one")
    return parse_lock(path, files.read_regular(path))


def parse_lock(path: Path, data: bytes) -> dict[str, Pins]:
    """The reports that `data` pins. Raises LtbenchError with the reason."""
    try:
        found = json.loads(data.decode())
        version = found["format"]
        if not isinstance(version, int) or version > FORMAT:
            raise LtbenchError(
                f"{path} has format {version!r}; this ltbench reads up to {FORMAT}", "update ltbench"
            )
        return {str(name): _parsed(told) for name, told in found["reports"].items()}
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        said = f"has no {error}" if isinstance(error, KeyError) else str(error)
        raise LtbenchError(
            f"{path} is no lock of ltbench, or damaged: {said}", "restore it, or write it anew by --lock"
        ) from None


def _parsed(told: Mapping[str, Any]) -> Pins:
    records = {name: {key: each[key] for key in ("cell", "run", "step", "evaluation", "code")} for name, each in told["records"].items()}  # fmt: skip
    numbers = {}
    for line in told["numbers"]:
        value = line["value"]
        if (
            not isinstance(value, int | float | None)
            or not math.isfinite(value or 0.0)
            or not isinstance(line["from"], dict)
        ):
            raise ValueError(f"a number is {value!r}")
        numbers[tuple(line[key] for key in _WHERE)] = {key: line[key] for key in ("printed", "value", "from")}
    return Pins(str(told["definition"]), records, numbers)


def _text(reports: Mapping[str, Pins]) -> str:
    """JSON by hand in its outer levels, so that a line of a diff is one record or one number."""
    blocks = []
    for name in sorted(reports):
        pins = reports[name]
        records = [f"    {_one(key)}: {_one(pins.records[key])}" for key in sorted(pins.records)]
        lines = [
            {**dict(zip(_WHERE, place, strict=True)), **pins.numbers[place]}
            for place in sorted(pins.numbers, key=lambda place: tuple(map(str, place)))
        ]
        numbers = [f"    {_one(line)}" for line in lines]
        blocks.append(
            f"  {_one(name)}: {{\n"
            f'   "definition": {_one(pins.definition)},\n'
            '   "records": {\n' + ",\n".join(records) + "\n   },\n"
            '   "numbers": [\n' + ",\n".join(numbers) + "\n   ]\n  }"
        )
    return f'{{\n "format": {FORMAT},\n "reports": {{\n' + ",\n".join(blocks) + "\n }\n}\n"


def _one(value: Any) -> str:
    """One line of JSON, keys in their order; control characters are escaped, so a name adds no line."""
    return json.dumps(value, ensure_ascii=True, allow_nan=False)


# --- comparing ------------------------------------------------------------------------------------------------------


def compare(old: Pins, new: Pins, held: set[str]) -> Moved:
    """What moved between a lock and the present table, in words. `held`: digests of every record that the store holds."""
    lines: dict[str, list[str]] = {kind: [] for kind in ("value", "gone", "new", "code", "formatting")}
    for place in sorted({*old.numbers, *new.numbers}, key=lambda place: tuple(map(str, place))):
        before, now = old.numbers.get(place), new.numbers.get(place)
        if before is None and now is not None:
            lines["new"].append(f"{_said(place)}: printed now ({now['printed']}), not pinned")
        elif now is None and before is not None:
            lines["gone"].append(f"{_said(place)}: pinned as {before['printed']}, not printed any more")
        elif before is not None and now is not None:
            published = place[-1] == "published" and before["printed"] != now["printed"]  # pinned by its text
            if before["value"] != now["value"] or published:
                lines["value"].append(
                    f"{_said(place)}: {before['printed']} is now {now['printed']}{_exact(before, now)}"
                )
            elif before["printed"] != now["printed"]:
                lines["formatting"].append(
                    f"{_said(place)}: {before['printed']} is now {now['printed']}, of an equal value"
                )
    _records(old, new, held, lines)
    if lines["formatting"] and old.definition != new.definition:
        lines["formatting"].append(f"the definition was {old.definition} and is {new.definition}")
    return Moved(lines)


def _records(old: Pins, new: Pins, held: set[str], lines: dict[str, list[str]]) -> None:
    """Records gone, new, or replaced by one of the same cell, step and evaluation."""
    gone = {name: old.records[name] for name in sorted(set(old.records) - set(new.records))}
    fresh = {name: new.records[name] for name in sorted(set(new.records) - set(old.records))}
    heirs = {_slot(record): name for name, record in fresh.items()}
    for name, record in gone.items():
        heir = heirs.pop(_slot(record), None)
        still = "the store still holds it" if name in held else "the store holds no sound copy of it any more"
        if heir is None:
            lines["gone"].append(f"record {name[:12]} of {_of(record)}: not used any more; {still}")
            continue
        changed = _code(record["code"], fresh[heir]["code"])
        kind = "code" if changed else "new"
        why = f"other code of {', '.join(changed)}" if changed else "the same code"
        lines[kind].append(f"{_of(record)}: record {heir[:12]} ({why}) in place of {name[:12]}; {still}")
    for name in sorted(heirs.values()):
        lines["new"].append(f"record {name[:12]} of {_of(fresh[name])}: not pinned")


def _slot(record: Mapping[str, Any]) -> tuple[Any, ...]:
    return record["cell"], record["step"], record["evaluation"]


def _of(record: Mapping[str, Any]) -> str:
    return f"cell {record['cell'][:12]}, step {record['step']}, evaluation {record['evaluation']}, run {record['run']}"


def _code(old: Mapping[str, str], new: Mapping[str, str]) -> list[str]:
    return sorted(name for name in {*old, *new} if old.get(name) != new.get(name))


def _said(place: Place) -> str:
    told = dict(zip(_WHERE, place, strict=True))
    column = ", ".join(filter(None, (str(told["column"]), str(told["group"]))))
    text = " / ".join(filter(None, (str(told["part"]), str(told["row"]), column)))
    if told["evaluation"]:  # a sheet's columns are of several, at steps that its blocks name
        text += f", step {told['step']}"
    text += "" if told["what"] == "value" else f" ({told['what']})"
    return words.clean(text + (f" [{str(told['evaluation'])[:6]}]" if told["evaluation"] else ""))


def _exact(before: Mapping[str, Any], now: Mapping[str, Any]) -> str:
    """The whole values where their printed forms are equal."""
    return f" ({before['value']!r}, now {now['value']!r})" if before["printed"] == now["printed"] else ""
