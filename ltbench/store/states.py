"""How a stage of a run fares, from its latest claim and its last failure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ltbench.store import claims


@dataclass(frozen=True)
class StageState:
    """How a stage fares, as far as files tell: "running", "lost" (its process is gone without a word), "failed", "preempted"
    or "released". Whether it is done is for the records to say. `sure` is False while only time can tell running from lost."""

    state: str
    attempt: int
    sure: bool = True
    cause: str | None = None
    message: str | None = None
    host: str | None = None
    progress: dict[str, Any] | None = None


def told(now: claims.Standing | None, last: dict[str, Any] | None) -> StageState | None:
    """now: the latest claim; last: the failure of the latest attempt that has one. None where there was never an attempt."""
    attempt = 0 if now is None else now.attempt
    if last is not None and last["attempt"] >= attempt and not _outlived(last, now):
        host = None if now is None or now.owner is None else now.owner.host
        return StageState(
            "failed", last["attempt"], cause=last["cause"], message=last.get("message"), host=host,
            progress={} if now is None else now.beat,
        )  # fmt: skip
    if now is None:
        return None
    state = {None: "running", "done": "released"}.get(now.outcome, now.outcome) or "running"
    if now.outcome is None and now.alive is False:
        state = "lost"
    sure = now.outcome is not None or now.alive is not None
    return StageState(
        state, attempt, sure, host=None if now.owner is None else now.owner.host, progress=now.beat
    )


def _outlived(failure: dict[str, Any], now: claims.Standing | None) -> bool:
    """Whether an attempt that a person cancelled is not over yet, or came to its end before it heard of that."""
    if failure["cause"] != "cancelled" or now is None or now.attempt != failure["attempt"]:
        return False
    return now.outcome == "done" or (now.outcome is None and now.alive is not False)
