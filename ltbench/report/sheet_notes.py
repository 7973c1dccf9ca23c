"""Footnotes of published numbers, from the file's own notes and facts: what many share is said once, where it belongs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ltbench.report.notes import Notes
from ltbench.report.published import Publication, PublishedLine
from ltbench.report.words import clean


@dataclass
class PublishedNotes:
    """Numbers of footnotes. Phrases of every number of the table make a footnote without a mark; those of a whole column stand at
    its head; those of most cells of a line at the line, naming the columns unless they are of all; the rest at their cells."""

    publication: Publication
    notes: Notes
    everything: Mapping[str, Sequence[PublishedLine]]  # the table's numbers, by column
    heads: dict[str, tuple[int, ...]] = field(default_factory=dict)
    _said: dict[str, set[str]] = field(default_factory=dict)  # by column: what needs no saying in it any more

    def __post_init__(self) -> None:
        told = {
            name: [self._phrases(line) for line in lines] for name, lines in self.everything.items() if lines
        }
        lists = [phrases for each in told.values() for phrases in each]
        if not lists:
            return
        shared = _in_all(lists)
        if shared:
            self._number("All published numbers here", "; ".join(shared))
        for name, each in told.items():
            own = (
                [phrase for phrase in _in_all(each) if phrase not in shared]
                if len(each) > 1 and len(told) > 1
                else []
            )
            self.heads[name] = (self._number("Published", "; ".join(own)),) if own else ()
            self._said[name] = {*shared, *own}

    def of_line(self, own: Mapping[str, PublishedLine]) -> tuple[tuple[int, ...], dict[str, tuple[int, ...]]]:
        """(footnotes of a printed line, footnotes of its cells by column)."""
        told = {
            name: [phrase for phrase in self._phrases(line) if phrase not in self._said[name]]
            for name, line in own.items()
        }
        whole: list[str] = []
        many = set()
        for phrase in dict.fromkeys(phrase for each in told.values() for phrase in each):
            names = [name for name, each in told.items() if phrase in each]
            if len(names) > len(told) / 2:
                many.add(phrase)
                whole.append(phrase if len(names) == len(told) else f"{phrase} ({', '.join(names)})")
        cells = {
            name: tuple(self._number("Published", phrase) for phrase in each if phrase not in many)
            for name, each in told.items()
        }
        return (self._number("Published", "; ".join(whole)),) if whole else (), cells

    def _number(self, lead: str, phrase: str) -> int:
        return self.notes.number(clean(f"{lead}: {phrase}."))

    def _phrases(self, line: PublishedLine) -> list[str]:
        """Settings, what the text implies, the file's notes and known facts, one phrase each."""
        found = []
        if line.words:
            found.append("settings " + ", ".join(f"{word}={said}" for word, said in line.words.items()))
        found += [
            f"{implied.word}={implied.said} ({implied.because})"
            for implied in self.publication.companion.implied
            if implied.word not in line.words and line.fits(implied.where)
        ]
        facts = [text.rstrip(".") for text in self.publication.facts_of(line)]
        return list(dict.fromkeys([*found, *line.notes, *facts]))


def _in_all(lists: Sequence[Sequence[str]]) -> list[str]:
    shared = set.intersection(*map(set, lists))
    return [phrase for phrase in lists[0] if phrase in shared]
