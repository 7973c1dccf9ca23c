"""JSON files that know when they are damaged.

A sealed file is a JSON object in canonical spelling with one more key at its end, "seal": the sha256 of the canonical
bytes without it. Any flipped bit, cut or hole breaks it, and any JSON reader still reads the file.
"""

from __future__ import annotations

import json
import math
import os
import sys
from pathlib import Path
from typing import Any

from ltbench import files
from ltbench.canonical import canonical_json

FORMAT = 1
LONG = 4096  # bytes; a shorter text is parsed before pydantic is imported


_SEAL = b',"seal":"'
_TAIL = len(_SEAL) + 64 + 2


class NewerFormat(files.Unreadable):
    """A sound file of a later ltbench: to be left alone, never repaired."""


def seal(value: dict[str, Any]) -> bytes:
    """`value` (not empty) as a sealed file's bytes. Raises ValueError that names the place of a NaN or a foreign type."""
    text = _canonical(value)
    return text[:-1] + _SEAL + files.sha256_bytes(text).encode() + b'"}'


def checked_digest(value: dict[str, Any]) -> str:
    """`canonical.digest`, whose ValueError names the place as well."""
    return files.sha256_bytes(_canonical(value))


def unseal(data: bytes) -> dict[str, Any]:
    """The object inside a sealed file, without its seal. Raises ValueError with the reason."""
    return parse(verified(data))


def verified(data: bytes) -> bytes:
    """The text inside a sealed file, without its seal. Raises ValueError with the reason."""
    if data[-_TAIL:].startswith(_SEAL):
        text = data[:-_TAIL] + b"}"
        if data[-_TAIL + len(_SEAL) :] != files.sha256_bytes(text).encode() + b'"}':
            raise ValueError("does not match its seal (sha256)")
        return text
    parse(data)  # a better reason, if it is not even JSON
    raise ValueError("has no seal: not written by ltbench, or damaged")


def parse(data: bytes) -> dict[str, Any]:
    """Strict JSON object: UTF-8, no NaN. Raises ValueError with the reason."""
    value = parse_any(data)
    if not isinstance(value, dict):
        raise ValueError(f"holds a {type(value).__name__} where an object belongs")
    return value


def parse_any(data: bytes) -> Any:
    """Strict JSON: UTF-8, no NaN. Raises ValueError with the reason.

    pydantic's parser takes a third of json's time and gives the same values, floats to the last bit. It refuses more (lone
    surrogates); where it refuses, json decides, and words the reason.
    """
    if len(data) >= LONG or "pydantic_core" in sys.modules:
        import pydantic_core

        try:
            return pydantic_core.from_json(data, allow_inf_nan=False)
        except ValueError:
            pass
    return _parse_slowly(data)


def _parse_slowly(data: bytes) -> Any:
    try:
        return json.loads(data.decode(), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise ValueError("is not UTF-8") from error
    except RecursionError as error:
        raise ValueError("is nested too deeply") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"is not JSON ({error.msg} at byte {error.pos} of {len(data)})") from error


def read_sealed(path: str | Path, limit: int = files.READ_LIMIT) -> dict[str, Any]:
    """A sealed file of a format this code reads. Raises FileNotFoundError or files.Unreadable."""
    return read_known(path, limit)[0]


def read_known(path: str | Path, limit: int = files.READ_LIMIT) -> tuple[dict[str, Any], os.stat_result]:
    """`read_sealed`, and how the file lay there before it was read."""
    data, found = files.read_known(path, limit)
    try:
        value = unseal(data)
    except ValueError as error:
        raise files.Unreadable(Path(path), str(error)) from error
    check_format(path, value)
    return value, found


def check_format(path: str | Path, value: dict[str, Any]) -> None:
    """Raises Unreadable when `value["format"]` is missing, NewerFormat when it is newer than this code."""
    found = value.get("format")
    if not isinstance(found, int) or isinstance(found, bool):
        raise files.Unreadable(Path(path), f"has format {found!r}, not a number")
    if found > FORMAT:
        raise NewerFormat(
            Path(path), f"has format {found}; this ltbench reads up to {FORMAT}: update ltbench to read it"
        )


def keep_once(path: Path, value: dict[str, Any], *, link: bool) -> dict[str, Any]:
    """Write `value` sealed at `path` unless a sound file is there; return what is there afterwards.

    A damaged file, which a kill can leave where link() is missing, is replaced; one of a newer format raises NewerFormat.
    Raises files.StorageProblem.
    """
    data = seal(value)
    try:
        return read_sealed(path)
    except FileNotFoundError:
        if files.write_once(path, data, link=link):
            return value
    except NewerFormat:
        raise
    except files.Unreadable:
        files.replace(path, data)
        return value
    return keep_once(path, value, link=link)  # another was quicker: theirs counts


def finite(value: Any) -> Any:
    """A copy in which the numbers that JSON lacks are the texts "nan", "inf" and "-inf", for evidence and progress."""
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)
    if isinstance(value, dict):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    return value


def _canonical(value: dict[str, Any]) -> bytes:
    try:
        return canonical_json(value)
    except ValueError as error:
        raise ValueError(f"{error}, at {_place(value) or 'an unknown place'}") from error


def _refuse_constant(name: str) -> float:
    raise ValueError(f"holds {name}, which is not a JSON number")


def _place(value: Any, where: str = "") -> str | None:
    """The first path, like `rows[3].value`, of something that canonical JSON refuses."""
    if isinstance(value, dict):
        items = [(f"{where}.{key}" if where else str(key), item) for key, item in value.items()]
    elif isinstance(value, list | tuple):
        items = [(f"{where}[{number}]", item) for number, item in enumerate(value)]
    else:
        bad = isinstance(value, float) and not math.isfinite(value)
        return where if bad or not isinstance(value, str | int | float | None) else None
    return next((found for place, item in items if (found := _place(item, place))), None)
