"""The rows of an evaluation record, left as text until somebody asks for them: most readers of records never do.

A record's text is verified by its seal before anything of it is believed. Its rows are most of it, and as objects they take four
times the memory of their text.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from ltbench.store import sealed

_BEGIN, _END = b'"rows":[', b'],"run":'
_STAND_IN = b'"cut out"'  # in place of the rows; a row is an object and never a text


class Rows(Sequence[dict[str, Any]]):
    """A list of rows, equal to the list, that nobody changes. Who asks once gets rows that are not kept; who asks again will go on
    asking, and they are.

    Raises ValueError where the text is no JSON, which a sealed file's never is.
    """

    def __init__(self, text: bytes) -> None:
        self._text = text  # without the brackets
        self._asked, self._kept = False, None

    def _all(self) -> list[dict[str, Any]]:
        if self._kept is not None:
            return self._kept
        found = sealed.parse_any(b"[%b]" % self._text)
        self._asked, self._kept = True, found if self._asked else None
        return found

    def __getitem__(self, place: Any) -> Any:
        return self._all()[place]

    def __len__(self) -> int:
        return len(self._all())

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._all())

    def __eq__(self, other: object) -> bool:
        return self._all() == (other._all() if isinstance(other, Rows) else other)

    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __repr__(self) -> str:
        return repr(self._all())


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
