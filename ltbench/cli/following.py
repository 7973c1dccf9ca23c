"""`logs`: what a cell's attempts printed, wherever they ran, and what they go on printing."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ltbench.cli.options import AsJson, Plugins, ScratchAt, StoreAt, place
from ltbench.cli.output import dump, plural, say
from ltbench.errors import UsageError

if TYPE_CHECKING:
    from ltbench.launch.logs import Part

PAUSE = 1.0  # seconds between two looks of -f
LINGER = 15.0  # seconds after a stage's end in which the next one is waited for
ASK_EVERY = 30.0  # seconds between two questions to SLURM
CHUNK = 1 << 20  # bytes printed at a time


def logs(
    cell: Annotated[
        str,
        typer.Argument(
            metavar="CELL|SUBMISSION",
            help="A cell's id, or its first 6 digits or more; a submission of `datasets prepare` and the like.",
        ),
    ],
    follow: Annotated[
        bool,
        typer.Option(
            "--follow", "-f", help="Go on printing, over requeues, until the cell is over; Ctrl-C ends it."
        ),
    ] = False,
    attempt: Annotated[
        int | None,
        typer.Option("--attempt", metavar="N", min=1, help="That attempt, of each stage. [the latest]"),
    ] = None,
    stage: Annotated[
        str | None,
        typer.Option("--stage", metavar="KIND", help="train, evaluate, sample or reference. [the latest]"),
    ] = None,
    json: AsJson = False,
    store: StoreAt = None,
    scratch: ScratchAt = None,
    plugins: Plugins = None,
) -> None:
    """What a cell's latest attempt printed: workers of a run on this machine, or of a SLURM job. Which file, is said on stderr.

    --json lists every attempt with its file instead of printing one.

    \b
    Example:
      python harness.py logs 76fc6efc05e6
      python harness.py logs 76fc6efc05e6 -f
      python harness.py logs 76fc6efc05e6 --stage train --attempt 1
      python harness.py logs 20260131-120000-a1b2c3d4e -f
    """
    from ltbench.cli.stores import scratch_root
    from ltbench.launch.slurm import layout

    place(store, scratch, plugins)
    if layout.named(cell):
        if stage is not None:
            raise UsageError(
                "--stage chooses among the logs of a cell, and a submission has those of its jobs",
                "leave it away, or name a cell: `status --list` has their ids",
            )
        source: Source = OfSubmission(scratch_root(), cell, attempt)
    else:
        source = Source(scratch_root(), resolve(cell), stage, attempt)
    found = source.parts()
    if json:
        dump([_told(part) for part in found])
        return
    if follow:
        try:
            _follow(source)
        except KeyboardInterrupt:
            say("stopped following; the cell goes on")
        return
    if not found:
        raise UsageError(*source.absence())
    latest = _latest(found)
    for part in latest:
        _announce(part, len(found) - len(latest))
        _print(part, part.begin)


def resolve(cell: str) -> str:
    """The whole id of a cell that is in the store, or in a submission that has not begun."""
    from ltbench.cli import stores

    house = stores.open_store(write=False)
    try:
        return house.resolve(cell)
    except UsageError:
        from ltbench.launch.slurm import seen

        known = [name for name in seen.look(house.scratch, ask=False).tasks if name.startswith(cell.lower())]
        if len(known) != 1 or not re.fullmatch("[0-9a-f]{6,}", cell.lower()):
            raise
        return known[0]


def _told(part: Part) -> dict[str, Any]:
    return {**vars(part), "log": str(part.log)}


class Source:
    """Where a cell's output is, looked up anew at every call."""

    def __init__(self, scratch: Path, cell: str, stage: str | None, attempt: int | None) -> None:
        self.scratch, self.cell, self.stage, self.attempt = scratch, cell, stage, attempt
        self._asked: tuple[float, bool | None] | None = None
        if stage not in (None, "train", "evaluate", "sample", "reference"):
            raise UsageError(f"--stage is '{stage}'", "allowed: train, evaluate, sample, reference")

    def parts(self) -> list[Part]:
        """What fits: first what SLURM kept of the cell's jobs, then what workers printed, each oldest first. A job's output is of all
        its attempts; where one is asked for, it is left out."""
        found = self._fitting(self._all())
        workers = [part for part in found if part.job is None]
        return workers if workers and self.attempt is not None else found

    def _all(self) -> list[Part]:
        from ltbench.launch.logs import of_cell

        return [*self._jobs(), *of_cell(self.scratch, self.cell)]

    def waits(self) -> bool | None:
        """Whether a job of the cell waits or runs, as SLURM says every 30 s at most; None where it was never submitted."""
        from ltbench.launch.slurm import seen
        from ltbench.launch.slurm.queue_states import GLANCE

        if self._asked is None or time.monotonic() - self._asked[0] > ASK_EVERY:
            own = seen.look(self.scratch, patience=GLANCE).tasks.get(self.cell)
            self._asked = (time.monotonic(), any(task.alive for task in own) if own else None)
        return self._asked[1]

    def _fitting(self, found: list[Part]) -> list[Part]:
        return [
            part
            for part in found
            if self.stage in (None, part.stage.partition(":")[0]) and self.attempt in (None, part.attempt)
        ]

    def _jobs(self) -> list[Part]:
        """What the cell's jobs said themselves: how far they are, and why they stopped."""
        from ltbench.launch.logs import Part
        from ltbench.launch.slurm import seen

        own = seen.look(self.scratch, ask=False).tasks.get(self.cell, [])
        found = []
        for task in own:
            if task.log.is_file():
                entry = next(entry for entry in task.entries if entry.cell == self.cell)
                stage = entry.stages[0] if entry.stages else ""
                when = task.log.stat().st_mtime
                job = f"job {task.name}"
                found.append(Part(self.cell, stage, task.restart + 1, task.log, 0, when, job, job=task.name))
        return sorted(found, key=lambda part: part.time)

    def absence(self) -> tuple[str, str]:
        """(what is not there, what is)."""
        there = self._all()
        name = self.cell[:12]
        if not there:
            return (
                f"cell {name} has printed nothing yet: it has not begun, or its logs in {self.scratch} were deleted",
                f"how it stands: python harness.py show {name}",
            )
        said = sorted({f"{part.stage.partition(':')[0]} (attempt {part.attempt})" for part in there})
        asked = " ".join(filter(None, [self.stage, f"attempt {self.attempt}" if self.attempt else None]))
        return f"cell {name} has no log of {asked}", f"there are: {', '.join(said)}"


class OfSubmission(Source):
    """What the jobs of one submission printed themselves, as SLURM kept it."""

    def __init__(self, scratch: Path, name: str, attempt: int | None) -> None:
        from ltbench.launch.slurm import layout

        super().__init__(scratch, name, None, attempt)
        self.submission = layout.find(scratch, name)

    def _all(self) -> list[Part]:
        from ltbench.launch.logs import Part
        from ltbench.launch.slurm import seen

        found = []
        for task in seen.of_submission(self.submission):
            if task.log.is_file():
                told = (task.ended or {}).get("reason")
                outcome = {"done": "done", "failed": "failed", "cancelled": "failed"}.get(str(told))
                when = task.log.stat().st_mtime
                job = (f"job {task.name}", None, outcome, task.name)
                found.append(Part("", "", task.restart + 1, task.log, 0, when, *job))
        return sorted(found, key=lambda part: part.time)

    def waits(self) -> bool | None:
        """Whether one of its jobs has not said its end."""
        from ltbench.launch.slurm import seen

        return any(task.alive for task in seen.of_submission(self.submission))

    def absence(self) -> tuple[str, str]:
        name = self.submission.id
        if there := self._all():
            said = ", ".join(sorted({str(part.attempt) for part in there}))
            return f"submission {name} has no log of attempt {self.attempt}", f"there are: {said}"
        return f"no job of submission {name} has printed anything yet", "how it stands: squeue, or status"


def _latest(found: Sequence[Part]) -> list[Part]:
    """The newest stretch; of a job both what it said itself and what its worker printed, where that is anything."""
    newest = max(found, key=lambda part: part.time)
    together = [part for part in found if _element(part) == _element(newest)]
    jobs = [part for part in together if part.job is not None]
    return jobs[-1:] + [part for part in together if part.job is None][-1:]


def _element(part: Part) -> Path:
    """The folder of the workers' logs, which a job's own output lies beside."""
    return part.log.with_suffix("") if part.job is not None else part.log.parent


def _announce(part: Part, earlier: int = 0) -> None:
    from ltbench.cli.progress import stage_words

    where = f" on {part.host}" if part.stage else part.host  # of a command, whose host is its job
    words = stage_words(part.stage) if part.stage else ""
    more = f"; {plural(earlier, 'earlier part')} (--json lists them)" if earlier else ""
    end = "" if part.outcome is None else f", {part.outcome}"
    which = "" if part.job is not None else f", attempt {part.attempt}"
    say(f"--- {words}{which}{where}{end}: {part.log}{more}")


def _print(part: Part, start: int) -> int:
    """Print what there is from `start` on; where it ends."""
    sys.stdout.flush()
    try:
        with part.log.open("rb") as file:
            file.seek(start)
            end = part.end if part.end is not None else None
            while data := file.read(CHUNK if end is None else min(CHUNK, max(0, end - file.tell()))):
                sys.stdout.write(data.decode("utf-8", "replace"))
            sys.stdout.flush()
            return file.tell()
    except FileNotFoundError:
        say(f"{part.log} was deleted")
        return start


def _follow(source: Source) -> None:
    """Print what comes, wherever it comes, until the cell is over and nothing has come for a while."""
    follower = _Follower(source)
    if not source.parts():
        say(f"{source.absence()[0]}; waiting for it, Ctrl-C ends it")
    while True:
        follower.look()
        if follower.over():
            return
        time.sleep(PAUSE)


class _Follower:
    """Knows how far each stretch has been printed, which of them was printed last, and which ends were told."""

    def __init__(self, source: Source) -> None:
        self._source = source
        self._at: dict[tuple[object, ...], int] = {}
        self._ended: set[tuple[object, ...]] = set()
        self._current: tuple[object, ...] = ()
        self._quiet = time.monotonic()
        self._newest: Part | None = None

    def look(self) -> None:
        """Print what is new since the last look."""
        found = self._source.parts()
        if found and self._newest is None:
            self._begin(found)
        for part in found:
            self._show(part)
        workers = [part for part in found if part.job is None]
        self._newest = max(workers or found, key=lambda part: part.time, default=None)

    def _begin(self, found: Sequence[Part]) -> None:
        """Of what was there before, the latest stretch is printed from its beginning, and the others from here on."""
        latest = _latest(found)
        for part in found:
            if part not in latest:
                self._at[_key(part)] = part.log.stat().st_size if part.end is None else part.end
                self._ended |= {_key(part)} if part.outcome else set()

    def _show(self, part: Part) -> None:
        key = _key(part)
        if key not in self._at:
            self._at[key], self._current = part.begin, key
            _announce(replace(part, outcome=None))
        there = _size(part)
        if there > self._at[key]:
            if self._current != key:
                self._current = key
                _announce(replace(part, outcome=None))
            self._at[key] = _print(part, self._at[key])
            self._quiet = time.monotonic()
        if part.outcome is not None and key not in self._ended:
            self._ended.add(key)
            self._quiet = time.monotonic()
            _announce(part)

    def over(self) -> bool:
        """Whether nothing more will come: a stage that is over may be followed by the next one, a job by itself."""
        if self._newest is None or time.monotonic() - self._quiet < LINGER:
            return False
        waits = self._source.waits()
        if waits:
            return False
        of_job = self._newest.job is not None or "submissions" in self._newest.log.parts
        return self._newest.outcome in ("done", "failed") or (of_job and waits is False)


def _key(part: Part) -> tuple[object, ...]:
    return (part.log,) if part.job is not None else (part.log, part.stage, part.attempt)


def _size(part: Part) -> int:
    """Where a stretch ends by now."""
    try:
        return part.log.stat().st_size if part.end is None else part.end
    except OSError:
        return 0
