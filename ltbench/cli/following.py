"""`logs`: what a cell's attempts printed, wherever they ran, and what they go on printing."""

from __future__ import annotations

import re
import sys
import time
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
      python harness.py logs 20260131-120000-a1b2c3 -f
    """
    from ltbench.cli.stores import scratch_root
    from ltbench.launch.slurm import layout

    place(store, scratch, plugins)
    if layout.named(cell):
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
    part = found[-1]
    _announce(part, len(found))
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
        if stage not in (None, "train", "evaluate", "sample", "reference"):
            raise UsageError(f"--stage is '{stage}'", "allowed: train, evaluate, sample, reference")

    def parts(self) -> list[Part]:
        """What fits, oldest first; where no worker has said anything, what SLURM kept of the cell's jobs."""
        return self._fitting(self._all())

    def _all(self) -> list[Part]:
        from ltbench.launch.logs import of_cell

        return of_cell(self.scratch, self.cell) or self._jobs()

    def _fitting(self, found: list[Part]) -> list[Part]:
        return [
            part
            for part in found
            if self.stage in (None, part.stage.partition(":")[0]) and self.attempt in (None, part.attempt)
        ]

    def _jobs(self) -> list[Part]:
        """The output of jobs whose workers said nothing: they wait, or died before they had begun."""
        from ltbench.launch.logs import Part
        from ltbench.launch.slurm import seen

        own = seen.look(self.scratch, ask=False).tasks.get(self.cell, [])
        found = []
        for task in own:
            if task.log.is_file():
                entry = next(entry for entry in task.entries if entry.cell == self.cell)
                stage = entry.stages[0] if entry.stages else ""
                when = task.log.stat().st_mtime
                found.append(Part(self.cell, stage, task.restart + 1, task.log, 0, when, f"job {task.name}"))
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
                found.append(
                    Part("", "", task.restart + 1, task.log, 0, when, f"job {task.name}", None, outcome)
                )
        return sorted(found, key=lambda part: part.time)

    def absence(self) -> tuple[str, str]:
        name = self.submission.id
        return f"no job of submission {name} has printed anything yet", "how it stands: squeue, or status"


def _announce(part: Part, count: int) -> None:
    from ltbench.cli.progress import stage_words

    words = stage_words(part.stage) if part.stage else "job"
    more = f"; {plural(count - 1, 'earlier part')} (--json lists them)" if count > 1 else ""
    end = "" if part.outcome is None else f", {part.outcome}"
    say(f"--- {words}, attempt {part.attempt} on {part.host}{end}: {part.log}{more}")


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
    """Print part after part as they come. Over once the last one has ended for good and nothing follows it for a while."""
    current: Part | None = None
    position, quiet = 0, time.monotonic()
    if not source.parts():
        say(f"{source.absence()[0]}; waiting for it, Ctrl-C ends it")
    while True:
        found = source.parts()
        for part in found[-1:] if current is None else [p for p in found if p.time >= current.time]:
            if current is None or (part.log, part.begin) != (current.log, current.begin):
                if current is not None and part.time <= current.time:
                    continue
                _announce(part, 1)
                current, position = part, part.begin
            current = part
            reached = _print(part, position)
            if reached != position:
                position, quiet = reached, time.monotonic()
        over = current is not None and current.outcome in ("done", "failed")
        if over and time.monotonic() - quiet > LINGER:
            return
        time.sleep(PAUSE)
