"""Hours of device time that records tell of, by device and stage."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

_STAGES = {"train": "training", "selection": "evaluation"}


@dataclass(frozen=True)
class Use:
    """hours: of processes; gpu_hours: of devices, 0 on a CPU. attempts: how many stages left a record."""

    hours: float = 0.0
    gpu_hours: float = 0.0
    attempts: int = 0


def spent(records: Iterable[Mapping[str, Any]]) -> dict[tuple[str, str], Use]:
    """{(device, "training" or "evaluation"): use}.

    A stage that leaves several records tells its time in each, counted from the same start: the last of them counts.
    """
    attempts: dict[tuple[Any, ...], tuple[float, float]] = {}
    for record in records:
        body, envelope = record["body"], record.get("envelope") or {}
        if envelope.get("seconds") is None:
            continue
        stage = _STAGES.get(body["kind"], body["kind"])
        place = (str(envelope.get("device") or "not named"), stage, body["cell"], body["run"])
        # Without a start, as in records of other programs, each is an attempt of its own.
        start = (envelope.get("host"), envelope["started"]) if "started" in envelope else record["digest"]
        told = float(envelope["seconds"]), float(envelope.get("gpu_hours") or 0.0)
        attempts[(*place, start)] = max(told, attempts.get((*place, start), (0.0, 0.0)))
    found: dict[tuple[str, str], list[tuple[float, float]]] = {}
    for key, told in attempts.items():
        found.setdefault(key[:2], []).append(told)
    return {
        key: Use(sum(sorted(s for s, _ in each)) / 3600, sum(sorted(g for _, g in each)), len(each))
        for key, each in found.items()
    }
