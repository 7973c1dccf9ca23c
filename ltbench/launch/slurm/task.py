"""What SLURM runs: `run_task(folder, array)`, one plain function with string arguments, once per task of the job.

It goes through its entries with the same driver as `run` does, or, where several ranks share a cell, as one of them. A signal
stops it at the next step boundary. After SLURM's warning (a preemption or the time limit) it puts its own job back into the
queue. After a bare SIGTERM it waits to be killed: SLURM requeues what it preempts, and a user's scancel stays cancelled. It calls
scontrol itself rather than through submitit's `checkpoint`: that runs inside the signal handler, guesses what was a time limit, and
rewrites a pickle, while everything that a restart needs lies in the store.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

from ltbench import caches
from ltbench.launch import devices, local
from ltbench.launch.local import Outcome
from ltbench.launch.recorder import Recorder
from ltbench.launch.signals import WARNING, unshield
from ltbench.launch.slurm import commands, headway
from ltbench.launch.slurm.element import Element
from ltbench.launch.slurm.evaluations import Submitter, training_only
from ltbench.launch.slurm.layout import Array, Entry
from ltbench.launch.slurm.log import Log
from ltbench.profiles import Profile
from ltbench.store import Store

PATIENCE = 900.0  # seconds after SIGTERM in which SLURM kills, if it meant to


class Heard:
    """The signals of SLURM so far. A handler only notes them."""

    def __init__(self) -> None:
        self._first: signal.Signals | None = None
        self.warned = False

    def listen(self) -> None:
        """From now on, in place of submitit's own handlers."""
        for number in (WARNING, signal.SIGTERM):
            signal.signal(number, self._note)
        unshield()

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._first = self._first or signal.Signals(number)
        self.warned = self.warned or number == WARNING

    def __call__(self) -> signal.Signals | None:
        return self._first


def run_task(folder: str, array: str) -> None:
    """Run this element of array `array` of the submission in `folder`; leaves by SystemExit, 1 when a stage failed.

    Raises LtbenchError for a submission that cannot be read; other code than was submitted is a failed element.
    """
    heard = Heard()
    heard.listen()
    sys.exit(_Task(Element.here(folder, array), heard).run())


class _Task:
    def __init__(self, element: Element, heard: Heard) -> None:
        self.element, self.heard = element, heard
        self.info = element.submission.info()
        self.profile: Profile = element.submission.profile()
        self.array: Array = element.submission.array(element.array)
        self.entries: tuple[Entry, ...] = self.array.tasks[element.index]
        self._asked = self.profile.resources(self.array.resource["class"])
        self.ranks = self._asked.ranks
        self.leads = int(os.environ.get("SLURM_PROCID", "0")) == 0
        self.log = Log()
        self.submitter: Submitter | None = None
        if self.array.resource["class"] == "training":
            self._split_evaluations()

    def _split_evaluations(self) -> None:
        """A training leaves the evaluations of its milestones to jobs of their own."""
        promised, self.entries = self.entries, tuple(training_only(self.entries))
        if self.leads and self.profile.submit_from_jobs and promised != self.entries:
            element, note = self.element, self.log.note
            self.submitter = Submitter(
                element.submission, self.profile, promised, run_task, note, lambda: element.cancelled
            )
            self.log = Log(self.submitter.reached)

    def run(self) -> int:
        """Everything; the exit code."""
        if self.element.cancelled:
            return self._end("cancelled", "preempted", message="cancelled before it began")
        try:
            store = self._open()
            if (command := commands.Command.of(self.array.resource)) is not None:
                self.element.say_started(0)  # how far a command is, only it knows
                log = self.element.submission.log(self.element.array, self.element.index)
                return self._conclude([commands.run(command, self.info, log, self.heard)])
            if self.leads and (problem := self._begin(store)) is not None:
                return self._end("failed", "failed", headway.CAUSE, problem)
            outcomes = self._outcomes(store)
        except (
            Exception
        ) as error:  # not let out: submitit would keep the traceback as it is, with whatever secret it shows
            self.log.note(traceback.format_exc())
            return self._end("failed", "failed", "code", f"{type(error).__name__}: {error}")
        finally:
            if self.submitter is not None:
                self.submitter.close()
        return self._conclude(outcomes)

    def _open(self) -> Store:
        store = Store.open(self.info["store"], self.info["scratch"])
        # A node has no network. Before torch, or whatever reads these variables, is imported.
        caches.use(Path(self.info["scratch"]), offline=True)
        return store

    def _begin(self, store: Store) -> str | None:
        """Say that it began; why it had better not go on, None to go on."""
        for entry in self.entries:
            entry.register(store)
        kept = headway.kept(self.entries, store)
        self.element.say_started(kept)
        problem = headway.problem(self.element, kept, self.profile, self._asked)
        if problem is not None:
            headway.give_up(self.entries, store, problem)
        return problem

    def _outcomes(self, store: Store) -> list[Outcome]:
        if self.ranks > 1:
            from ltbench.launch.slurm import ranks

            how = (self._threads(self.ranks), self.profile.signal_seconds)
            return ranks.run(self.entries, store, self.heard, self.log, *how)
        return self._local(store)

    def _local(self, store: Store) -> list[Outcome]:
        asked = self._asked
        seats = seats_of(asked.pack, asked.gpus, self._threads(asked.pack))
        # A job without GPUs may see those of others, on a node that does not hide them.
        device = {} if asked.gpus else {"device": "cpu"}
        told = {"threads": seats.threads, "grace": self.profile.signal_seconds, **device}
        work = [entry.work(**{**told, **entry.options}) for entry in self.entries]
        logs = self.element.submission.logs / f"{self.element.array}_{self.element.index}"
        settings = local.Settings(store.root, store.scratch, logs, seats)
        going = local.LocalRun(work, settings, self.log, Recorder(store, self.log.note), self.heard)
        return going.run()

    def _threads(self, processes: int) -> int:
        """Of each of `processes` that share the job. From what was asked for, so that a restart elsewhere computes alike."""
        return max(1, self._asked.cores // processes)

    # --- the end ------------------------------------------------------------------------------------------------------

    def _conclude(self, outcomes: Sequence[Outcome]) -> int:
        """Say how it ended, and put what is unfinished back into the queue."""
        failed = next(iter(local.failed(outcomes)), None)
        stopped = any(outcome.outcome == "preempted" for outcome in outcomes)
        if stopped:  # also where it was another rank that heard why
            return self._stopped()
        if failed is not None:
            what = ", ".join(filter(None, (failed.label, failed.stage)))
            return self._end("failed", "failed", failed.cause, f"{what}: {failed.message}")
        return self._end("done", "done")

    def _stopped(self) -> int:
        if not self.leads:
            return self._wait() if not self.heard.warned else 0
        if self.element.cancelled:
            return self._end("cancelled", "preempted", message="cancelled; saved")
        fate = self.element.view().fate
        self.log.note(f"saved; SLURM says: {fate}")
        if self.heard.warned and fate not in ("cancelled", "requeued"):
            return self._requeue("preempted" if fate == "preempted" else "timeout")
        if fate == "preempted" and self.profile.requeue_at_once:
            return self._requeue("preempted")
        message = "saved; SLURM requeued it" if fate == "requeued" else "stopped; saved"
        self._end("cancelled" if fate == "cancelled" else "preempted", "preempted", message=message)
        # What SLURM has decided already needs no waiting for its SIGKILL.
        return 0 if fate in ("cancelled", "requeued") else self._wait()

    def _requeue(self, reason: str) -> int:
        if reason == "timeout" and self.element.timeouts() >= self.profile.max_timeouts:
            message = f"ran into its time limit more than {self.profile.max_timeouts} times (max_timeouts)"
            return self._end("failed", "failed", "timeout", message)
        self._end(reason, "preempted", message="saved; requeued")
        problem = self.element.requeue()
        if problem is not None:
            self.log.note(f"SLURM does not requeue it ({problem}): the next `submit` goes on with it")
            self._end(reason, "preempted", message=f"saved; not requeued: {problem}")
        return 0

    def _wait(self) -> int:
        """Until SLURM kills. A SIGTERM that nobody follows up was neither a scancel nor a preemption: then back into the queue."""
        end = time.monotonic() + PATIENCE
        while time.monotonic() < end and not self.heard.warned:
            time.sleep(0.5)
        if not self.leads or self.element.cancelled or self.element.view().fate in ("cancelled", "requeued"):
            return 0
        return self._requeue("preempted")

    def _end(self, reason: str, outcome: str, cause: str | None = None, message: str = "") -> int:
        if self.leads:
            self.log.note(f"ends: {reason}" + (f" ({message})" if message else ""))
            self.element.say_ended(reason, outcome, cause, message)
        return int(outcome == "failed")


def seats_of(pack: int, gpus: int, threads: int) -> devices.Seats:
    """`pack` workers at once; they share the GPUs that SLURM gave in turn, or see none where it gave none."""
    cards = devices.gpus() if gpus else []
    none = None if gpus else ""
    return devices.Seats(tuple(cards[i % len(cards)] if cards else none for i in range(pack)), threads)
