"""Evaluations that a training submits from inside its job, each as soon as its milestone is there."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from ltbench.errors import LtbenchError
from ltbench.launch.signals import shielded
from ltbench.launch.slurm.layout import Entry, Submission
from ltbench.profiles import Profile
from ltbench.stages.names import parse

LAST = 120.0  # seconds that the end of a job waits for what is being submitted


def trains(stage: str) -> bool:
    return parse(stage).kind == "train"


def of_milestone(entry: Entry, step: int, profile: Profile) -> Entry | None:
    """What an entry has promised to measure at `step`, as a job of the evaluation class does it; None for nothing."""
    from ltbench.launch.slurm.resources import options

    stages = tuple(s for s in entry.stages if not trains(s) and parse(s).steps == (step,))
    if not stages:
        return None
    told = {**entry.options, **options(profile.resources("evaluation"))}
    return replace(entry, stages=stages, options=told, after=None, start=None)


class Submitter:
    """Submits in a thread of its own: a slow controller keeps no training waiting. What fails is said once and left to the next
    `submit`, which finds it missing. cancelled: whether a person wants no more of it."""

    def __init__(
        self,
        submission: Submission,
        profile: Profile,
        entries: Sequence[Entry],
        function: Callable[[str, str], None],
        say: Callable[[str], None],
        cancelled: Callable[[], bool] = lambda: False,
    ) -> None:
        self._submission, self._profile, self._entries = submission, profile, entries
        self._function, self._say, self._cancelled = function, say, cancelled
        self._complained = False
        self._waiting: queue.Queue[tuple[str, int] | None] = queue.Queue()
        with shielded():  # signals are the main thread's, and sbatch is not to die of them
            self._thread = threading.Thread(target=self._work, name="ltbench-submit", daemon=True)
            self._thread.start()

    def reached(self, cell: str, step: int) -> None:
        """A milestone is there."""
        self._waiting.put((cell, step))

    def close(self) -> None:
        """Wait until everything is submitted, but not for ever."""
        self._waiting.put(None)
        self._thread.join(LAST)

    def _work(self) -> None:
        for cell, step in iter(self._waiting.get, None):
            for entry in self._entries:
                found = of_milestone(entry, step, self._profile) if entry.cell == cell else None
                if (
                    found is not None and not self._cancelled()
                ):  # the step at which it stops may be a milestone
                    self._submit(found, step)

    def _submit(self, entry: Entry, step: int) -> None:
        from ltbench.launch.slurm import submit

        environment = self._submission.info().get("environment", {})
        try:
            array, job = submit.add(
                self._submission, "evaluation", [entry], environment=environment, function=self._function
            )
        except (LtbenchError, OSError) as error:
            if not self._complained:
                self._say(f"evaluations cannot be submitted from here: {error}; the next `submit` does it")
            self._complained = True
        else:
            self._say(f"submitted the evaluation of {entry.label}, step {step}: job {job}, array {array}")


def training_only(entries: Sequence[Entry]) -> Iterator[Entry]:
    """The entries without what other jobs are to measure."""
    for entry in entries:
        yield replace(entry, stages=tuple(filter(trains, entry.stages)))
