"""What a running benchmark looks like: bars on a terminal, one plain line per worker every ten seconds elsewhere (stderr)."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any

from ltbench.cli.output import clip, console, duration, plural, safe, say
from ltbench.launch.local import Outcome
from ltbench.launch.work import Job
from ltbench.stages.names import parse

LINE_EVERY = 10.0  # seconds between two plain lines of one worker
HELD_EVERY = 30.0  # seconds between two notices about the same holder


@dataclass
class Pace:
    """Time left, from how fast the steps of this stage and the stages of this run have gone."""

    workers: int
    began: dict[int, tuple[float, int]] = field(default_factory=dict)
    spent: dict[str, list[float]] = field(default_factory=dict)

    def step(self, worker: int, step: int) -> None:
        self.began.setdefault(worker, (time.monotonic(), step))

    def left(self, worker: int, step: int, total: int) -> float | None:
        """Seconds until `total`, or None before there is a speed."""
        start, first = self.began.get(worker, (0.0, step))
        if step <= first:
            return None
        return (time.monotonic() - start) / (step - first) * max(0, total - step)

    def ended(self, worker: int, kind: str, seconds: float) -> None:
        self.began.pop(worker, None)
        self.spent.setdefault(kind, []).append(seconds)

    def whole(self, waiting: Sequence[str]) -> float | None:
        """Seconds for the waiting stages, given by kind; None while a kind of them has not ended once."""
        if not all(kind in self.spent for kind in waiting):
            return None
        return sum(sum(self.spent[kind]) / len(self.spent[kind]) for kind in waiting) / self.workers


def stage_words(stage: str) -> str:
    """`train:280,560` -> `train`, `evaluate:560:…` -> `evaluate 560`, `sample:560:…:0/4` -> `sample 560 1/4`."""
    named = parse(stage)
    without = {"train": "train", "reference": "look at real images", "encode": "encode latents"}
    if named.kind in without:
        return without[named.kind]
    share = f" {named.part + 1}/{named.parts}" if named.kind == "sample" else ""
    return f"{named.kind} {named.steps[0]}{share}"


def _short_stage(stage: str) -> str:
    """For a bar of 80 columns: `train`, `eval 560`."""
    return stage_words(stage).replace("evaluate", "eval").replace("look at real images", "reals")


def numbers(event: dict[str, Any]) -> str:
    """Loss and speed of a progress event, as far as it has them."""
    parts = []
    if event.get("loss") is not None:
        parts.append(f"loss {event['loss']:.4f}")
    if event.get("images_per_s") is not None:
        parts.append(f"{event['images_per_s']:.0f} img/s")
    return "  ".join(parts)


class Talk:
    """What both views say in words: ends, failures, holders."""

    def __init__(self, workers: int) -> None:
        self.pace = Pace(workers)
        self._held: dict[str, float] = {}

    def line(self, text: str) -> None:
        say(text)

    def note(self, text: str) -> None:
        self.line(text)

    def hello(self, worker: int, message: dict[str, Any]) -> None:
        return None

    def held(self, worker: int, job: Job, event: dict[str, Any]) -> None:
        """Say who works on a cell, but not every two seconds."""
        now = time.monotonic()
        if now - self._held.get(job.cell, -HELD_EVERY) >= HELD_EVERY:
            self._held[job.cell] = now
            holder = event.get("message") or "another process works on it"
            self.line(f"waiting  {job.work.label}, {stage_words(job.stage)}: {holder}")

    def ended_line(self, outcome: Outcome) -> str:
        words = f"{outcome.label}, {stage_words(outcome.stage)}"
        if outcome.outcome == "done":
            return f"done     {words} ({duration(outcome.seconds)})"
        if outcome.outcome == "preempted":
            return f"stopped  {words}: {outcome.message or 'continues where it stopped'}"
        if outcome.cause == "unsupported":
            return f"n/a      {words}: {clip(outcome.message, 300)}"
        return f"FAILED   {words}: {outcome.cause}: {clip(outcome.message, 300)}"


class Lines(Talk, AbstractContextManager["Lines"]):
    """For pipes, logs and dumb terminals."""

    def __init__(self, workers: int) -> None:
        super().__init__(workers)
        self._said: dict[int, float] = {}
        self._count = (0, 0)

    def __exit__(self, *_: object) -> None:
        return None

    def line(self, text: str) -> None:
        say(f"{time.strftime('%H:%M:%S')} {text}")

    def started(self, worker: int, job: Job) -> None:
        self._said[worker] = time.monotonic() - LINE_EVERY / 2  # the first line comes a little earlier

    def event(self, worker: int, job: Job, event: dict[str, Any]) -> None:
        if event.get("type") == "notice":
            self.line(f"note     {job.work.label}: {event['message']}")
        if event.get("type") != "progress":
            return
        step, total = event["step"], event["total"]
        self.pace.step(worker, step)
        if time.monotonic() - self._said.get(worker, 0.0) < LINE_EVERY:
            return
        self._said[worker] = time.monotonic()
        left = self.pace.left(worker, step, total)
        parts = [f"{job.work.label}, {stage_words(job.stage)} {step}/{total}", numbers(event)]
        parts.append("" if left is None else f"{duration(left)} left")
        self.line(f"[{self._count[0]}/{self._count[1]}]  " + "  ".join(filter(None, parts)))

    def ended(self, worker: int, job: Job, outcome: Outcome) -> None:
        self.pace.ended(worker, job.kind, outcome.seconds)
        self.line(self.ended_line(outcome))

    def tick(self, done: int, total: int, waiting: Sequence[str]) -> None:
        self._count = (done, total)


class Bars(Talk, AbstractContextManager["Bars"]):
    """For a terminal: one bar per busy worker, one for the whole run, notices above them."""

    def __init__(self, workers: int, total: int) -> None:
        from rich.progress import BarColumn, Progress, TextColumn
        from rich.table import Column

        super().__init__(workers)
        self._console = console(stderr=True)
        room = max(12, min(34, self._console.width - 49))

        def text(name: str, **column: Any) -> TextColumn:
            return TextColumn(
                "{task.fields[" + name + "]}", markup=False, table_column=Column(no_wrap=True, **column)
            )

        self._progress = Progress(
            text("label", width=room, overflow="ellipsis"),
            BarColumn(bar_width=None, table_column=Column(ratio=1, min_width=6)),
            text("count", justify="right"),
            text("loss", justify="right"),
            text("speed", justify="right"),
            text("left", justify="right"),
            console=self._console,
            expand=True,
            refresh_per_second=4,
        )
        self._tasks: dict[int, Any] = {}
        self._total = self._add("all stages", total, count=f"0/{total}")

    def _add(self, label: str, total: int | None, count: str = "") -> Any:
        return self._progress.add_task("", total=total, label=label, count=count, loss="", speed="", left="")

    def __enter__(self) -> Bars:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def line(self, text: str) -> None:
        self._console.print(safe(text))

    def started(self, worker: int, job: Job) -> None:
        self._tasks[worker] = self._add(f"{job.work.label} {_short_stage(job.stage)}", None)

    def event(self, worker: int, job: Job, event: dict[str, Any]) -> None:
        if event.get("type") == "notice":
            self.line(f"note     {job.work.label}: {event['message']}")
        if event.get("type") != "progress" or worker not in self._tasks:
            return
        step, total = event["step"], event["total"]
        self.pace.step(worker, step)
        loss, speed = event.get("loss"), event.get("images_per_s")
        self._progress.update(
            self._tasks[worker],
            completed=step,
            total=total,
            count=f"{step}/{total}",
            loss="" if loss is None else f"loss {loss:.3f}",
            speed="" if speed is None else f"{speed:.0f} img/s",
            left=_clock(self.pace.left(worker, step, total)),
        )

    def ended(self, worker: int, job: Job, outcome: Outcome) -> None:
        self.pace.ended(worker, job.kind, outcome.seconds)
        self._drop(worker)
        self.line(self.ended_line(outcome))

    def held(self, worker: int, job: Job, event: dict[str, Any]) -> None:
        self._drop(worker)
        super().held(worker, job, event)

    def _drop(self, worker: int) -> None:
        task = self._tasks.pop(worker, None)
        if task is not None:
            self._progress.remove_task(task)

    def tick(self, done: int, total: int, waiting: Sequence[str]) -> None:
        left = _clock(self.pace.whole(waiting)) if waiting else ""
        self._progress.update(self._total, completed=done, total=total, count=f"{done}/{total}", left=left)


def _clock(seconds: float | None) -> str:
    if seconds is None:
        return ""
    whole = round(seconds)
    return f"{whole // 60}:{whole % 60:02d}" if whole < 3600 else f"{whole // 3600}h{whole % 3600 // 60:02d}"


def watcher(workers: int, total: int) -> Lines | Bars:
    """Bars where stderr is a terminal, lines elsewhere."""
    return Bars(workers, total) if sys.stderr.isatty() else Lines(workers)


def counts_line(cells: int, stages: int, workers: int, threads: int, ranks: int = 1) -> str:
    """`12 cells, 36 stages to do; 2 workers, 1 thread each`."""
    together = f", {ranks} train a cell together" if ranks > 1 else ""
    return (
        f"{plural(cells, 'cell')}, {plural(stages, 'stage')} to do; "
        f"{plural(workers, 'worker')}, {plural(threads, 'thread')} each{together}"
    )
