"""What a job prints: a line per beginning, end and notice, and one about progress every minute."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from ltbench import redact
from ltbench.launch.local import Outcome
from ltbench.launch.work import Job

EVERY = 60.0  # seconds between two lines of progress of one worker


class Log:
    """A `local.Watcher` for a file that `logs -f` follows. on_milestone is told (cell, step)."""

    def __init__(self, on_milestone: Callable[[str, int], None] = lambda cell, step: None) -> None:
        self._on_milestone = on_milestone
        self._said: dict[int, float] = {}

    def note(self, text: str) -> None:
        """One line with the time, without secrets."""
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {redact.clean(text)}", file=sys.stderr, flush=True)

    def hello(self, worker: int, message: dict[str, Any]) -> None:
        self.note(f"worker {worker}: {message['device']}, {message['threads']} threads")

    def started(self, worker: int, job: Job) -> None:
        self._said[worker] = 0.0
        self.note(f"begins   {job.work.label}, {job.stage}")

    def event(self, worker: int, job: Job, event: dict[str, Any]) -> None:
        kind = event.get("type")
        if kind == "notice":
            self.note(f"note     {job.work.label}: {event['message']}")
        elif kind == "milestone":
            self.note(f"reached  {job.work.label}, step {event['step']}")
            self._on_milestone(job.cell, event["step"])
        elif kind == "progress" and time.monotonic() - self._said.get(worker, 0.0) >= EVERY:
            self._said[worker] = time.monotonic()
            shown = {"loss": "loss {:.4f}", "images_per_s": "{:.0f} img/s"}
            more = [text.format(event[key]) for key, text in shown.items() if event.get(key) is not None]
            self.note("  ".join([f"at       {job.work.label}, {event['step']}/{event['total']}", *more]))

    def ended(self, worker: int, job: Job, outcome: Outcome) -> None:
        why = f": {outcome.cause or ''} {outcome.message}".rstrip(": ") if outcome.outcome != "done" else ""
        self.note(f"{outcome.outcome:8} {outcome.label}, {outcome.stage}{why} ({outcome.seconds:.0f} s)")

    def held(self, worker: int, job: Job, event: dict[str, Any]) -> None:
        self.note(f"waits    {job.work.label}, {job.stage}: {event.get('message', 'held')}")

    def tick(self, done: int, total: int, waiting: Sequence[str]) -> None:
        return None
