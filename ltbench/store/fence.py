"""Which records of a run count: those that were written while their writer still had its claim."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from ltbench import files
from ltbench.store import claims, kept, records
from ltbench.store.kept import Reads
from ltbench.store.records import Damaged, Record, Records


def layer_records(layer: str, kind: str | None, read: Callable[[str], Record], reads: Reads) -> Records:
    """The records of a run that count in one layer."""
    found: list[Record] = []
    fenced: list[Record] = []
    damaged: list[Damaged] = []
    accepts = Fence(layer, reads)
    for name in reads.names(f"{layer}/records"):
        if kind is not None and (match := records.NAME.fullmatch(name)) and match["kind"] != kind:
            continue
        try:
            record = read(f"{layer}/records/{name}")
        except files.Unreadable as problem:
            damaged.append(Damaged(problem.path, problem.reason))
        except FileNotFoundError:
            continue  # replaced under our eyes; not there is a state too
        else:
            (found if accepts(record) else fenced).append(record)
    settled = records.settle(found)
    settled.superseded += fenced
    settled.damaged += damaged
    return settled


class Fence:
    """Whether a record was written while its writer still had its claim, as far as the claims of `folder` tell."""

    def __init__(self, folder: str, reads: Reads = kept.LIVE) -> None:
        self._folder, self._reads = folder, reads
        self._latest: dict[str, int] = {}

    def __call__(self, record: Record) -> bool:
        stage = record.stage
        if stage not in self._latest:
            self._latest[stage] = claims.latest_attempt(self._folder, stage, self._reads)
        latest = self._latest[stage]
        if not 0 < record.attempt < latest:
            return True
        inherited = claims.inherited_records(Path(self._folder), stage, record.attempt, latest)
        return inherited is None or record.path.name in inherited
