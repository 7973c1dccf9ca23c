"""Facts: small files that figures need beside records, each named after its content."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

from ltbench import files
from ltbench.errors import LtbenchError
from ltbench.store import kept

if TYPE_CHECKING:
    from ltbench.store.run import Run

FACT_LIMIT = 1 << 20  # bytes
_FACT = re.compile(r"[0-9a-f]{16}\.(png|npz)")


class Facts:
    """The facts of a run, in every layer of its store."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def put(self, data: bytes, suffix: str) -> str:
        """Keep at most 1 MiB that figures need, and return its name; `suffix` is png or npz."""
        name = f"{files.sha256_bytes(data)[:16]}.{suffix.removeprefix('.')}"
        if not _FACT.fullmatch(name):
            raise ValueError(f"a fact is a png or an npz, not {suffix!r}")
        if len(data) > FACT_LIMIT:
            raise ValueError(
                f"a fact has at most {FACT_LIMIT:,} bytes, not {len(data):,}: keep it in the scratch folder"
            )
        self.run.writable("facts")
        path = self.run.dir / "facts" / name
        if (
            not files.write_once(path, data, link=self.run.store.link)
            and files.sha256_file(path)[0][:16] != name[:16]
        ):
            files.replace(path, data)
        return name

    def names(self) -> list[str]:
        """The facts of all layers, sorted."""
        found = {name for layer in self.run.folders for name in kept.names(layer / "facts")}
        return sorted(name for name in found if _FACT.fullmatch(name))

    def file(self, name: str) -> Path:
        """The file of a fact. Raises LtbenchError when no layer has it."""
        if not _FACT.fullmatch(name):
            raise ValueError(f"{name!r} is not the name of a fact")
        for layer in self.run.folders:
            if (layer / "facts" / name).is_file():
                return layer / "facts" / name
        raise LtbenchError(
            f"fact {name} of {self.run!r} is missing", "Run the cell's evaluation again to make it."
        )

    def read(self, name: str) -> bytes:
        """A fact's bytes, verified. Raises LtbenchError (files.Unreadable when damaged)."""
        path = self.file(name)
        data = files.read_regular(path, FACT_LIMIT)
        if files.sha256_bytes(data)[:16] != name[:16]:
            raise files.Unreadable(path, "does not match its name (sha256)")
        return data
