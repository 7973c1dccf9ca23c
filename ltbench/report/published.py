"""Published numbers as data: results/published/NAME.csv, what its words mean in a benchmark, and what is known about it.

A csv has the columns of `COLUMNS`; `value` keeps the digits as printed. NAME.yaml beside it (it may be missing) says how `variant` words
and columns translate into settings, what the text implies for rows that do not state it, and facts for footnotes.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ltbench.errors import Problem, SpecError, UsageError
from ltbench.report.definition import CITE, Selector
from ltbench.spec.yaml_io import read_yaml

COLUMNS = (
    *("table", "row", "dataset", "imbalance_factor", "resolution", "pipeline", "sampler", "steps", "method"),
    *("variant", "group", "metric", "value", "note"),
)
UNSTATED = ("", "unknown")  # a column that says so states nothing


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Meaning(_Strict):
    """A column or a word of `variant`, and the setting that it is of. `said` and `is`: one value of it; without them, any, as it is."""

    word: str
    setting: str  # a setting of a cell (`method.tap`), or `evaluation.KEY`
    said: str | None = None
    is_: str | int | float | bool | None = Field(default=None, alias="is")


class Implied(_Strict):
    """A word that lines of `where` do not print but that the text settles."""

    where: Selector
    word: str
    said: str
    because: str


class Fact(_Strict):
    """A sentence for a footnote of every line that fits `where`."""

    where: Selector = {}
    text: str


class Companion(_Strict):
    """NAME.yaml."""

    meanings: list[Meaning] = []
    implied: list[Implied] = []
    facts: list[Fact] = []


@dataclass(frozen=True)
class PublishedLine:
    """One printed number. `words`: its variant, "alpha=0.05;brs=true", as a mapping; place: FILE:LINE."""

    columns: Mapping[str, str]
    words: Mapping[str, str]
    place: str

    @property
    def value(self) -> str:
        """The number as printed."""
        return self.columns["value"]

    @property
    def notes(self) -> list[str]:
        """What the file notes about it, one phrase each."""
        return [part.strip() for part in self.columns["note"].split(";") if part.strip()]

    def fits(self, selector: Mapping[str, Any]) -> bool:
        """Whether every key, a column or a word of the variant, has the asked value; null asks that it is not there."""
        return all(_same(self.said(key), wanted) for key, wanted in selector.items())

    def said(self, key: str) -> str:
        """A column or word; empty where it is not stated."""
        return self.columns[key] if key in self.columns else self.words.get(key, "")


@dataclass(frozen=True)
class Publication:
    """A file of published numbers with its source."""

    name: str
    bib: str
    source: str
    lines: tuple[PublishedLine, ...]
    companion: Companion = field(default_factory=Companion)

    @cached_property
    def _keys(self) -> set[str]:
        return {*COLUMNS, *(word for line in self.lines for word in line.words)}

    @cached_property
    def _by_table(self) -> dict[str, list[PublishedLine]]:
        found: dict[str, list[PublishedLine]] = {}
        for line in self.lines:
            found.setdefault(line.columns["table"], []).append(line)
        return found

    def find(self, selector: Mapping[str, Any]) -> PublishedLine | None:
        """The line that fits, or None. Raises UsageError where several do."""
        if unknown := sorted(set(selector) - self._keys):
            raise UsageError(
                f"{self.name}.csv has no column or variant word {unknown[0]!r}",
                f"there are {', '.join(sorted(self._keys))}",
            )
        table = selector.get("table")
        lines = self.lines if table is None else self._by_table.get(str(table), ())
        found = [line for line in lines if line.fits(selector)]
        if len(found) > 1:
            places = ", ".join(line.place for line in found[:4])
            asked = ", ".join(f"{key}: {value}" for key, value in selector.items())
            raise UsageError(
                f"{{{asked}}} fits {len(found)} published numbers ({places})", "name more columns in `theirs`"
            )
        return found[0] if found else None

    def facts_of(self, line: PublishedLine) -> list[str]:
        """Sentences known about a line."""
        return [fact.text for fact in self.companion.facts if line.fits(fact.where)]

    def settings_of(self, line: PublishedLine) -> Iterator[tuple[str, str, Any, str]]:
        """(setting, word, value, as printed) for whatever a line states or its text implies about how it was made.

        Columns have their meaning by name; words of the variant have that of the companion file.
        """
        for name, setting in _COLUMN_SETTINGS.items():
            if line.columns[name] not in UNSTATED and not self._means(name):
                yield setting, name, line.columns[name], line.columns[name]
        yield from _sampler(line)
        words = {implied.word: implied.said for implied in self.companion.implied if line.fits(implied.where)}
        words |= line.words
        words |= {name: line.columns[name] for name in COLUMNS if self._means(name) and line.columns[name]}
        for word, said in words.items():
            for meaning in self._means(word):
                if meaning.said is None:
                    yield meaning.setting, word, said, said
                elif meaning.said == said:
                    yield meaning.setting, word, meaning.is_, said

    def unexplained(self, line: PublishedLine) -> list[str]:
        """Words of the variant that no meaning covers: nothing can be checked about them."""
        return [
            word
            for word, said in line.words.items()
            if not any(m.said in (None, said) for m in self._means(word))
        ]

    def _means(self, word: str) -> list[Meaning]:
        return [meaning for meaning in self.companion.meanings if meaning.word == word]


# What columns say about how a number was made.
_COLUMN_SETTINGS = {
    "dataset": "dataset.name",
    "imbalance_factor": "dataset.imbalance",
    "resolution": "dataset.resolution",
    "pipeline": "pipeline",
    "method": "method.name",
    "steps": "step",
}


def _sampler(line: PublishedLine) -> Iterator[tuple[str, str, Any, str]]:
    """`ddim100` is the sampler ddim with 100 steps."""
    said = line.columns["sampler"]
    if said in UNSTATED:
        return
    name = said.rstrip("0123456789")
    yield "evaluation.sampler", "sampler", name, said
    if steps := said[len(name) :]:
        yield "evaluation.steps", "sampler", steps, said


def same_value(one: Any, other: Any) -> bool:
    """Equal as text, as numbers, or both nothing; `none` is nothing too."""
    if one in (None, "none") or other in (None, "none"):
        return (one in (None, "none")) == (other in (None, "none"))
    if isinstance(one, bool) or isinstance(other, bool):
        return str(one).lower() == str(other).lower()
    if str(one) == str(other):
        return True
    try:
        return float(one) == float(other)
    except (TypeError, ValueError):
        return False


def _same(said: str, wanted: Any) -> bool:
    return said == "" if wanted is None else said != "" and same_value(said, wanted)


# --- reading --------------------------------------------------------------------------------------------------------


def load_publication(path: Path) -> Publication:
    """The numbers of a csv, with its companion yaml and its entry in sources.csv. Raises SpecError with every mistake's line."""
    problems: list[Problem] = []
    lines = _lines(path, problems)
    if problems:
        raise SpecError(problems)
    bib, source = _source(path)
    if bib and not re.fullmatch(CITE, bib):
        raise UsageError(
            f"{path.with_name('sources.csv')}: {bib!r} is no BibTeX key", "letters, digits and . : _ + / -"
        )
    companion = path.with_suffix(".yaml")
    known = _companion(companion) if companion.is_file() else Companion()
    return Publication(path.stem, bib, source, tuple(lines), known)


def _lines(path: Path, problems: list[Problem]) -> list[PublishedLine]:
    with path.open(encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if lacking := [name for name in COLUMNS if name not in (reader.fieldnames or ())]:
            problems.append(
                Problem(f"lacks the column {lacking[0]!r}", str(path), 1, allowed=", ".join(COLUMNS))
            )
            return []
        found = []
        for row in reader:
            place, seen = f"{path.name}:{reader.line_num}", len(problems)
            if None in row or None in row.values():
                problems.append(
                    Problem("has another number of fields than the header", str(path), reader.line_num)
                )
                continue
            if not _number(row["value"]):
                problems.append(Problem("value is no number", str(path), reader.line_num, value=row["value"]))
            words = dict(_words(row["variant"], path, reader.line_num, problems))
            if len(problems) == seen:
                found.append(PublishedLine({**row, "group": row["group"] or "all"}, words, place))
    return found


def _number(text: str) -> bool:
    try:
        return Decimal(text).is_finite()
    except InvalidOperation:
        return False


def _words(text: str, path: Path, line: int, problems: list[Problem]) -> Iterator[tuple[str, str]]:
    for part in filter(None, (piece.strip() for piece in text.split(";"))):
        word, equals, said = part.partition("=")
        if not equals:
            problems.append(
                Problem("variant is written word=value;word=value", str(path), line, value=repr(text))
            )
            return
        yield word, said


def _source(path: Path) -> tuple[str, str]:
    """(bib key, source) that sources.csv of the same folder has for a file; its name where there is none."""
    sources = path.with_name("sources.csv")
    if sources.is_file():
        with sources.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                if row.get("file") == path.name:
                    return row.get("bib") or "", row.get("source") or path.name
    return "", path.name


def _companion(path: Path) -> Companion:
    from ltbench.report.definition import problem_of

    tree = read_yaml(path)
    try:
        return Companion.model_validate(tree.plain())
    except ValidationError as error:
        raise SpecError([problem_of(tree, mistake, Companion) for mistake in error.errors()]) from error


def find_publication(name: str, folders: Sequence[Path]) -> Publication:
    """results/published/NAME.csv in the first folder that has it. Raises UsageError with the names that there are."""
    for folder in folders:
        if (folder / f"{name}.csv").is_file():
            return load_publication(folder / f"{name}.csv")
    known = sorted({file.stem for folder in folders for file in folder.glob("*.csv")} - {"sources"})
    raise UsageError(f"there are no published numbers {name}.csv", f"there are {', '.join(known) or 'none'}")
