"""Features on disk: content-addressed files that name their own sha256, so that nothing stale or damaged is ever reused.

    ROOT/KEY/NAME-SHA16.safetensors      NAME: what it holds; SHA16: the first digits of the file's own sha256

KEY is the digest of everything that decides the content; whoever asks for another content asks for another key. Two
processes that write the same thing write the same bytes. A file whose bytes do not match its name is set aside and made again.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from ltbench import files
from ltbench.errors import LtbenchError

Arrays = dict[str, np.ndarray]
_FILE = re.compile(r"(?P<name>[a-z0-9-]+)-(?P<sha>[0-9a-f]{16})\.safetensors")
_SIZE_LIMIT = (
    64 << 30
)  # bytes; features of a million images are larger than what is read by name alone elsewhere


@dataclass(frozen=True)
class Shards:
    """Named sets of arrays under one root. `notice` hears of files that were damaged."""

    root: Path
    notice: Callable[[str], None] = field(default=lambda message: None)

    def names(self, key: str) -> dict[str, list[Path]]:
        """What is there under a key: name -> its files (one, unless a writer was killed between two)."""
        found: dict[str, list[Path]] = {}
        folder = self.root / key
        for path in sorted(folder.iterdir()) if folder.is_dir() else []:
            if match := _FILE.fullmatch(path.name):
                found.setdefault(match["name"], []).append(path)
        return found

    def read(self, key: str, name: str) -> Arrays | None:
        """The arrays, verified; None where there are none. A damaged file is removed and named."""
        for path in self.names(key).get(name, []):
            try:
                data = files.read_regular(path, _SIZE_LIMIT)
            except FileNotFoundError:
                continue  # removed under our eyes by somebody who found it damaged
            except LtbenchError as problem:
                self._discard(path, str(problem))
                continue
            if files.sha256_bytes(data)[:16] != path.stem[-16:]:
                self._discard(path, f"{path} does not match its name (sha256)")
                continue
            try:
                return load(data)
            except SafetensorError as problem:
                self._discard(path, f"{path} is no safetensors file: {problem}")
        return None

    def verified(self, key: str, name: str) -> Path | None:
        """The file itself, to be mapped rather than read into memory; None where there is none. A damaged file is removed."""
        for path in self.names(key).get(name, []):
            try:
                if files.sha256_file(path)[0][:16] == path.stem[-16:]:
                    return path
            except FileNotFoundError:
                continue
            self._discard(path, f"{path} does not match its name (sha256)")
        return None

    def write(self, key: str, name: str, arrays: Mapping[str, np.ndarray]) -> Path:
        """Keep the arrays durably and return their file."""
        data = save({k: np.ascontiguousarray(v) for k, v in arrays.items()})
        path = self.root / key / f"{name}-{files.sha256_bytes(data)[:16]}.safetensors"
        files.make_directory(path.parent)
        if not path.exists():
            files.replace(path, data)
        return path

    def remove(self, key: str, name: str) -> None:
        """Delete what is kept under this name."""
        for path in self.names(key).get(name, []):
            path.unlink(missing_ok=True)

    def _discard(self, path: Path, reason: str) -> None:
        files.discard(path)
        self.notice(f"it is made again: {reason}")
