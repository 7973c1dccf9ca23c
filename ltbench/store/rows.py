"""The rows of an evaluation record, left packed until somebody asks for them: most readers of records ask for few, or none.

A record's text is verified by its seal before anything of it is believed. Its rows are most of it, and as objects they take four
times the memory of their text. Packed they are a shape, which thousands of records share, and the numbers that fill it.
"""

from __future__ import annotations

import copy
import math
import re
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from ltbench.store import sealed

_BEGIN, _END = b'"rows":[', b'],"run":'
_STAND_IN = b'"cut out"'  # in place of the rows; a row is an object and never a text

# A number with a point or an exponent, where canonical JSON can have one; in a text it may look the same, which `_shape_of` notices.
_NUMBER = re.compile(rb"([:\[,])(-?[0-9]+[.e][-+.e0-9]+)(?=[,\]}])")
_HOLE = "\x01"  # for a number in a shape's text: no JSON text holds this character
_CUT = "cut out"

Names = frozenset[tuple[str, str]]  # metrics and groups


class Rows(Sequence[dict[str, Any]]):
    """A list of rows, equal to the list, that nobody changes. Every question makes new rows: whoever asks often keeps them.

    Raises ValueError where the text is no JSON, which a sealed file's never is.
    """

    def __init__(self, text: bytes) -> None:
        packed = _pack(text)
        self._text = None if packed else text  # without the brackets
        self._shape, self._numbers = packed or (_NO_SHAPE, memoryview(b""))

    @classmethod
    def packed(cls, shape: str, numbers: memoryview) -> Rows:
        """What `parts` gave; numbers: of 8 bytes each. Raises ValueError where they do not fit."""
        found = cls.__new__(cls)
        known, values = _shape(shape), numbers.cast("d")
        if known is None or known.size != len(values):
            raise ValueError("rows that do not fit their shape")
        found._text, found._shape, found._numbers = None, known, values
        return found

    def parts(self) -> tuple[str, memoryview] | None:
        """The shape and the numbers, for `packed`; None where the rows could not be packed."""
        return None if self._text is not None else (self._shape.text, self._numbers)

    def named(self, names: Names) -> dict[tuple[str, str], list[dict[str, Any]]]:
        """The rows of these metrics and groups, in their order."""
        if self._text is not None:
            return named(list(self), names)
        fill, numbers = self._shape.fill, self._numbers
        return {
            name: [fill(place, numbers) for place in places]
            for name, places in self._shape.places(names).items()
        }

    def _all(self) -> list[dict[str, Any]]:
        if self._text is not None:
            return sealed.parse_any(b"[%b]" % self._text)
        return [self._shape.fill(place, self._numbers) for place in range(len(self._shape))]

    def __getitem__(self, place: Any) -> Any:
        return self._all()[place]

    def __len__(self) -> int:
        return len(self._all()) if self._text is not None else len(self._shape)

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._all())

    def __eq__(self, other: object) -> bool:
        return self._all() == (other._all() if isinstance(other, Rows) else other)

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __repr__(self) -> str:
        return repr(self._all())


def named(rows: Iterable[dict[str, Any]], names: Names) -> dict[tuple[str, str], list[dict[str, Any]]]:
    """The rows of these metrics and groups, in their order."""
    if isinstance(rows, Rows):
        return rows.named(names)
    found: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        if (name := (row["metric"], row["group"])) in names:
            found.setdefault(name, []).append(row)
    return found


def parse(text: bytes) -> dict[str, Any]:
    """`sealed.parse` of a record's canonical text, its rows unread. Raises ValueError with the reason.

    The text is cut where its keys, which are sorted, say that the rows begin and end. What is left must be JSON with the stand-in
    as the body's only row: then the cut was in the right place, and if what was cut out is JSON too, so was the whole.
    """
    start = text.find(_BEGIN) + len(_BEGIN)
    end = text.find(_END, start)
    if start >= len(_BEGIN) and end > start:
        try:
            value = sealed.parse(text[:start] + _STAND_IN + text[end:])
        except ValueError:
            value = {}
        body = value.get("body")
        if isinstance(body, dict) and body.get("rows") == [_STAND_IN.decode().strip('"')]:
            body["rows"] = Rows(text[start:end])
            return value
    return sealed.parse(text)


# --- shapes ---------------------------------------------------------------------------------------------------------


class _Shape:
    """Rows without their numbers. `size`: how many numbers they have."""

    def __init__(self, text: str, rows: Sequence[Mapping[str, Any]], size: int) -> None:
        self.text, self.size = text, size
        self._rows = [dict(row) for row in rows]
        self._single: list[list[tuple[str, int]]] = []
        self._several: list[list[tuple[str, int, int]]] = []
        self._deep: list[tuple[int, int] | None] = []
        self._places: dict[Names, dict[tuple[str, str], list[int]]] = {}
        at = 0
        for row in self._rows:
            at = self._lay_out(row, at)

    def __len__(self) -> int:
        return len(self._rows)

    def _lay_out(self, row: dict[str, Any], at: int) -> int:
        """Note where a row's numbers are, of which the first is number `at`; where the next row's begin."""
        single, several, begin, deep = [], [], at, False
        for key, value in row.items():
            count = _holes(value)
            if value == _CUT:
                single.append((key, at))
            elif isinstance(value, list) and count == len(value) > 0 and set(value) == {_CUT}:
                several.append((key, at, at + count))
            else:
                deep = deep or count > 0
            at += count
        self._single.append([] if deep else single)
        self._several.append([] if deep else several)
        self._deep.append((begin, at) if deep else None)
        return at

    def fill(self, place: int, numbers: memoryview) -> dict[str, Any]:
        """Row `place` with its numbers."""
        where = self._deep[place]
        if where is not None:
            return _filled(self._rows[place], iter(numbers[slice(*where)]))
        row = self._rows[place].copy()
        for key, at in self._single[place]:
            row[key] = numbers[at]
        for key, begin, end in self._several[place]:
            row[key] = numbers[begin:end].tolist()
        return row

    def places(self, names: Names) -> dict[tuple[str, str], list[int]]:
        """Where the rows of some names are."""
        if names not in self._places:
            found: dict[tuple[str, str], list[int]] = {}
            for place, row in enumerate(self._rows):
                if (name := (row["metric"], row["group"])) in names:
                    found.setdefault(name, []).append(place)
            self._places[names] = found
        return self._places[names]


_NO_SHAPE = _Shape("", [], 0)
_SHAPES: dict[str, _Shape | None] = {}  # by text
_MOST = 10_000


def _pack(text: bytes) -> tuple[_Shape, memoryview] | None:
    """None for rows that cannot be put together again from a shape and numbers."""
    parts = _NUMBER.split(text)  # a text, what comes before a number, the number, a text ...
    found = parts[2::3]
    parts[2::3] = [_HOLE.encode()] * len(found)
    try:
        shape = _shape(b"".join(parts).decode())
        numbers = array("d", sealed.parse_any(b"[%b]" % b",".join(found)))  # a fifth of float's time
    except ValueError:  # whoever asks for the rows is told
        return None
    if shape is None or shape.size != len(numbers) or not math.isfinite(sum(numbers)):
        return None  # where the sum of finite numbers is not finite, they stay text too
    return shape, memoryview(numbers)


def _shape(text: str) -> _Shape | None:
    """The shape of a text with holes, made once; None where a hole is inside of a text, or the rows are no rows."""
    if text not in _SHAPES:
        if len(_SHAPES) >= _MOST:
            _SHAPES.clear()
        _SHAPES[text] = _shape_of(text)
    return _SHAPES[text]


def _shape_of(text: str) -> _Shape | None:
    size = text.count(_HOLE)
    try:
        # A stand-in inside of a text would end it, and what follows is no JSON.
        rows = sealed.parse_any(f"[{text.replace(_HOLE, _STAND_IN.decode())}]".encode())
    except ValueError:
        return None
    # A text that is the stand-in by itself would be one hole more.
    return _Shape(text, rows, size) if _holes(rows) == size and all(map(_is_row, rows)) else None


def _is_row(row: Any) -> bool:
    names = [row.get("metric"), row.get("group")] if isinstance(row, dict) else [None]
    return all(isinstance(name, str) and name != _CUT for name in names)


def _holes(value: Any) -> int:
    if isinstance(value, dict):
        return sum(map(_holes, value.values()))
    if isinstance(value, list):
        return sum(map(_holes, value))
    return int(value == _CUT)


def _filled(value: Any, numbers: Iterator[float]) -> Any:
    """A copy with the holes filled, in the order of the text."""
    if isinstance(value, dict):
        return {key: _filled(item, numbers) for key, item in value.items()}
    if isinstance(value, list):
        return [_filled(item, numbers) for item in value]
    return next(numbers) if value == _CUT else copy.copy(value)
