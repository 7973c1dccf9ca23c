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


def _plain(value: Any) -> Any:
    if value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, str):
        return unicodedata.normalize("NFC", value)
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
