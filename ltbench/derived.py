"""Files that make a command faster and mean nothing else: they may be deleted, damaged or unwritable at any time."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

from ltbench import files
from ltbench.errors import LtbenchError

LIMIT = 256 << 20  # bytes


def read(path: Path) -> Any:
    """The value that `write` kept; None where there is none, or the file is damaged."""
    try:
        told, _, text = files.read_regular(path, LIMIT).partition(b"\n")
        return json.loads(text) if told.decode() == files.sha256_bytes(text) else None
    except (FileNotFoundError, files.Unreadable, ValueError):
        return None


def write(path: Path, value: Any) -> None:
    """Keep a JSON value, beside and renamed: of two writers the last one stays. A disk that refuses costs only the speed."""
    text = json.dumps(value, separators=(",", ":")).encode()
    with contextlib.suppress(LtbenchError, OSError):
        files.make_directory(path.parent)
        files.replace(path, files.sha256_bytes(text).encode() + b"\n" + text, durable=False)
