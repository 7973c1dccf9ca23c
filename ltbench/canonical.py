"""One spelling of a value as bytes, so that equal settings have equal digests on every machine and in every year."""

from __future__ import annotations

import hashlib
import json
import math
import unicodedata
from typing import Any


def canonical_json(value: Any) -> bytes:
    """UTF-8 JSON with sorted keys, NFC text, floats by repr and no white space.

    Raises ValueError for NaN, infinities, non-string keys and types that JSON does not have: a digest of such a value
    would not be one value's.
    """
    return json.dumps(
        _plain(value), sort_keys=True, ensure_ascii=False, allow_nan=False, separators=(",", ":")
    ).encode()


def digest(value: Any) -> str:
    """sha256 of `canonical_json(value)`, 64 hex digits."""
    return hashlib.sha256(canonical_json(value)).hexdigest()


class Digester:
    """`digest` of many objects that share parts: a part that was seen before (the same object) is not spelled again.

    For objects that nobody changes meanwhile; it keeps every part it has seen.
    """

    def __init__(self) -> None:
        self._whole: dict[
            int, tuple[Any, bytes]
        ] = {}  # the part stays alive in there, so its id stays its own
        self._items: dict[tuple[str, int], bytes] = {}
        self._keys: dict[str, bytes] = {}
        self._orders: dict[tuple[Any, ...], list[str] | None] = {}

    def digest(self, value: dict[str, Any], depth: int = 1) -> str:
        """What `digest` gives; parts are the values `depth` levels down."""
        return hashlib.sha256(self._spell(value, depth)).hexdigest()

    def _spell(self, value: dict[str, Any], depth: int) -> bytes:
        order = self._order(tuple(value))
        if order is None:
            return canonical_json(value)
        if depth > 1:
            return b"{" + b",".join([self._deep(key, value[key], depth) for key in order]) + b"}"
        known = self._items.get
        parts = [known((key, id(value[key]))) or self._item(key, value[key]) for key in order]
        return b"{" + b",".join(parts) + b"}"

    def _deep(self, key: str, value: Any, depth: int) -> bytes:
        """A key and its value, whose own parts are the ones that are shared."""
        return (
            self._keys[key] + self._spell(value, depth - 1) if type(value) is dict else self._item(key, value)
        )

    def _order(self, keys: tuple[Any, ...]) -> list[str] | None:
        """Sorted as text: the quotation mark at a spelled key's end would sort before some of what may follow it. None where a key
        is no plain text."""
        try:
            return self._orders[keys]
        except KeyError:
            plain = all(isinstance(key, str) and key.isascii() for key in keys)
            self._keys |= {key: canonical_json(key) + b":" for key in keys} if plain else {}
            found = self._orders[keys] = sorted(keys) if plain else None
            return found

    def _item(self, key: str, value: Any) -> bytes:
        seen = self._items[key, id(value)] = self._keys[key] + self._part(value)
        return seen

    def _part(self, value: Any) -> bytes:
        """A part by itself: under another key it is spelled alike."""
        if (seen := self._whole.get(id(value))) is None:
            text = b"%d" % value if type(value) is int else canonical_json(value)  # thousands of seeds
            seen = self._whole[id(value)] = (value, text)
        return seen[1]


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return value if value.isascii() else unicodedata.normalize("NFC", value)
    if isinstance(value, float):
        if not math.isfinite(value):
            raise ValueError(f"a digest cannot hold the number {value!r}")
        return value
    if isinstance(value, dict):
        if bad := [key for key in value if not isinstance(key, str)]:
            raise ValueError(f"a digest cannot hold the key {bad[0]!r}: keys are text")
        return {unicodedata.normalize("NFC", key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    raise ValueError(f"a digest cannot hold a {type(value).__name__}")
