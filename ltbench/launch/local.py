"""Runs the stages of many cells on this machine: worker processes, one queue, one loop.

The driver imports no torch. It starts workers, hands each one stage at a time, passes on what they report and writes down
what they can no longer report themselves: a worker that dies is a failed stage with its signal or exit code, and a fresh
one goes on with the other cells. The first Ctrl-C (or SIGTERM, SIGHUP, SLURM's SIGUSR2) asks the workers to stop at a step
boundary, a second one (but SIGUSR2, which SLURM follows up by SIGTERM) kills them. Running the same command again is the recovery procedure: every state is in the store's files.
"""

from __future__ import annotations

import selectors
import signal
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

from ltbench.errors import EnvironmentProblem
from ltbench.launch import signals
from ltbench.launch.devices import Seats
from ltbench.launch.logs import LogIndex
from ltbench.launch.memory import oom_kills
from ltbench.launch.process import CappedLog, WorkerProcess, exit_reason
from ltbench.launch.team import Team, alone
from ltbench.launch.work import CellWork, Job, Queue
from ltbench.launch.worker import DEFAULT_JOB

TICK = 0.2  # seconds between looks at signals and dead workers
SILENCE = 120.0  # seconds without a word before a worker's stacks are dumped and the user is told
HANG = 3600.0  # seconds without a word after which a worker is killed and its stage fails
CANCELLED = "was cancelled"
START_TRIES = 3  # workers in a row that may die before they have said hello


@dataclass(frozen=True)
class Outcome:
    """How one stage of one cell ended: done, failed, preempted (stopped, continues) or unreached."""

    cell: str
    label: str
    stage: str
    outcome: str
    cause: str | None = None
    message: str = ""
    seconds: float = 0.0


class Watcher(Protocol):
    """Whoever shows the run to a person."""

    def hello(self, worker: int, message: dict[str, Any]) -> None: ...
    def started(self, worker: int, job: Job) -> None: ...
    def event(self, worker: int, job: Job, event: dict[str, Any]) -> None: ...
    def ended(self, worker: int, job: Job, outcome: Outcome) -> None: ...
    def held(self, worker: int, job: Job, event: dict[str, Any]) -> None: ...
    def note(self, text: str) -> None: ...
    def tick(self, done: int, total: int, waiting: Sequence[str]) -> None: ...


@dataclass(frozen=True)
class Settings:
    """What a local run needs beside its work."""

    store: Path
    scratch: Path
    logs: Path
    seats: Seats
    entry: str = DEFAULT_JOB
    hang: float = HANG
    silence: float = SILENCE


Recorder = Callable[[Job, dict[str, Any]], None]  # writes the failure of a stage whose worker could not


class LocalRun:
    """One run of a queue. `stopped` is the signal that ended it early, None otherwise.

    asked: the caller's own answer to "which signal asked for a stop?"; then no handler is installed here, and only the caller's
    caller (SLURM) kills. cancelled: whether a job is wanted no more; it is asked before each.
    """

    def __init__(
        self,
        work: Iterable[CellWork],
        settings: Settings,
        watcher: Watcher,
        record: Recorder,
        asked: Callable[[], signal.Signals | None] | None = None,
        cancelled: Callable[[Job], bool] = lambda job: False,
    ) -> None:
        self.queue = Queue(work)
        self.settings = settings
        self.watcher = watcher
        self.outcomes: list[Outcome] = []
        self.stopped: signal.Signals | None = None
        self.environment: str | None = None
        self._record = record
        self._asked = asked
        self._cancelled = cancelled
        self._insisted = 0
        self._workers: dict[int, WorkerProcess] = {}
        self._logs: dict[int, CappedLog] = {}
        self._log_index = LogIndex(settings.logs)
        self._early_deaths = 0
        self._oom_kills = oom_kills()
        self._teams: dict[Job, Team] = {}
        self._started: dict[Job, float] = {}
        self._dumped: set[Job] = set()

    def run(self) -> list[Outcome]:
        """Work until nothing is left or a stop was asked for; outcomes in the order they came.

        Raises EnvironmentProblem when no worker can be started.
        """
        own = () if self._asked else signals.STOPS
        before = {s: signal.signal(s, self._on_signal) for s in own}
        try:
            while self._unfinished():
                self._fill_seats()
                self._feed()
                self._wait()
                for worker in list(self._workers.values()):
                    self._attend(worker)
                for team in list(self._teams.values()):
                    self._decide(team)
                waiting = [job.kind for job in self.queue.waiting()]
                self.watcher.tick(len(self.outcomes), self.queue.total, waiting)
            self._unreached()
            return self.outcomes
        finally:
            for worker in self._workers.values():
                worker.finish()
            for log in self._logs.values():
                log.close()
            self._log_index.close()
            for number, handler in before.items():
                signal.signal(number, handler)

    # -- signals ---------------------------------------------------------------------------------------------------

    def _on_signal(self, number: int, _frame: FrameType | None) -> None:
        self._insisted += number != signals.WARNING
        self.stopped = self.stopped or signal.Signals(number)

    def _heed_signals(self) -> None:
        """Runs in the loop, not in the handler: a handler that did more than count could interrupt a write."""
        if self._asked is not None:
            self.stopped = self.stopped or self._asked()
        if self._insisted >= 2:
            for worker in self._workers.values():
                worker.kill()
        elif self.stopped and not all(worker.closing for worker in self._workers.values()):
            busy = [worker for worker in self._workers.values() if worker.job is not None]
            for worker in self._workers.values():
                worker.stop()
            if busy:
                threat = "" if self._asked else "; once more kills them"
                self.watcher.note(
                    f"stopping {len(busy)} worker{'s' * (len(busy) > 1)} at the next step boundary{threat}"
                )

    @property
    def _winding_down(self) -> bool:
        return self.stopped is not None or self.environment is not None

    # -- the loop's parts ------------------------------------------------------------------------------------------

    def _unfinished(self) -> bool:
        busy = any(worker.job is not None for worker in self._workers.values())
        return (
            busy or bool(self._workers and self._winding_down) or bool(self.queue and not self._winding_down)
        )

    def _fill_seats(self) -> None:
        if self._winding_down:
            return
        seats = self.settings.seats
        busy = sum(worker.job is not None for worker in self._workers.values())
        wanted = min(seats.workers, busy + seats.ranks * len(self.queue))
        wanted += -wanted % seats.ranks
        for index in range(wanted):
            if index not in self._workers:
                self._workers[index] = self._start(index)

    def _start(self, index: int) -> WorkerProcess:
        seats = self.settings.seats
        if index not in self._logs:
            self._logs[index] = CappedLog(self.settings.logs / f"worker-{index}.log")
        return WorkerProcess(
            index,
            device=seats.devices[index],
            threads=seats.threads,
            entry=self.settings.entry,
            log=self._logs[index],
        )

    def _feed(self) -> None:
        if self._winding_down:
            for worker in self._workers.values():
                if worker.idle:
                    worker.close()
            return
        ranks = self.settings.seats.ranks
        for worker in list(self._workers.values()):
            if not worker.idle:
                continue
            seat = worker.index // ranks
            free = [w for w in self._workers.values() if w.index // ranks == seat and w.idle]
            # A training needs its seat's workers all at once; an evaluation is anybody's.
            job = self._next(worker, trainings=len(free) == ranks)
            if job is not None:
                self._give(job, sorted(free, key=lambda w: w.index) if job.kind == "train" else [worker])

    def _next(self, worker: WorkerProcess, *, trainings: bool) -> Job | None:
        """The next job that is still wanted."""
        while (job := self.queue.next(trainings=trainings)) is not None and self._cancelled(job):
            outcome = Outcome(job.cell, job.work.label, job.stage, "preempted", message=CANCELLED)
            self._settle(job, outcome)
            self.watcher.ended(worker.index, job, outcome)
        return job

    def _give(self, job: Job, workers: list[WorkerProcess]) -> None:
        self._started[job] = time.monotonic()
        self.watcher.started(workers[0].index, job)
        environments = [alone()]
        if len(workers) > 1:
            team = self._teams[job] = Team(job, workers)
            environments = team.environments()
        for worker, environment in zip(workers, environments, strict=True):
            worker.send(job, {**self._message(job), "environment": environment})

    def _decide(self, team: Team) -> None:
        """Settle a stage of several workers once it is known how it ended."""
        verdict = team.verdict()
        if verdict is not None:
            del self._teams[team.job]
            team.end()
            self._result(verdict[0], team.job, verdict[1])

    def _message(self, job: Job) -> dict[str, Any]:
        where = {"store": str(self.settings.store), "scratch": str(self.settings.scratch)}
        return {
            **where,
            "cell": job.cell,
            "run": job.work.run,
            "stage": job.stage,
            "options": job.work.options,
        }

    def _wait(self) -> None:
        with selectors.DefaultSelector() as selector:
            for worker in self._workers.values():
                for fileno in worker.filenos():
                    selector.register(fileno, selectors.EVENT_READ)
            selector.select(TICK)
        self._heed_signals()

    def _attend(self, worker: WorkerProcess) -> None:
        code = worker.returncode()  # before the messages: what a dead worker had said is still in its pipe
        for message in worker.messages():
            self._handle(worker, message)
        if code is not None:
            self._gone(worker, code)
        elif worker.job is not None and (
            worker.job not in self._teams or worker is self._teams[worker.job].leader
        ):
            self._check_silence(worker, worker.job)

    def _handle(self, worker: WorkerProcess, message: dict[str, Any]) -> None:
        kind, job = message.get("type"), worker.job
        if kind == "hello":
            worker.hello = message
            self._early_deaths = 0
            self.watcher.hello(worker.index, message)
        elif kind == "broken":
            worker.broken = message
        elif job is None:
            return  # an event that crossed the end of its job
        elif kind == "result":
            worker.job = None
            if message.get("retire"):
                worker.kill()  # everything is written; what a method left behind goes with the process
            self._heard(worker, job, message)
        elif job not in self._teams or worker is self._teams[job].leader:
            self._event(worker, job, message)

    def _event(self, worker: WorkerProcess, job: Job, event: dict[str, Any]) -> None:
        if event.get("type") == "milestone":
            self.queue.milestone(job.cell, event["step"])
        if "attempt" in event:
            job.claim = {"attempt": event["attempt"], "log": worker.log.path}
            self._log_index.begin(job.cell, job.stage, event["attempt"], worker.log.path)
        if event.get("type") == "progress":
            job.claim["step"] = event.get("step")
        self.watcher.event(worker.index, job, event)

    def _heard(self, worker: WorkerProcess, job: Job, result: dict[str, Any]) -> None:
        """A worker's part of a stage is over; with several ranks that need not be the stage's end."""
        if job in self._teams:
            self._teams[job].hear(worker, result)
        else:
            self._result(worker, job, result)

    def _result(self, worker: WorkerProcess, job: Job, result: dict[str, Any]) -> None:
        """Take a stage's end in. `held` is no end: the stage goes back to the queue."""
        if result["outcome"] == "held":
            self.queue.held(job)
            self.watcher.held(worker.index, job, result)
            return
        if result.get("recorded") is False:
            self._write_failure(job, result, worker)
        seconds = time.monotonic() - self._started.get(job, time.monotonic())
        cause, message = result.get("cause"), result.get("message") or ""
        if result["outcome"] == "preempted" and self._cancelled(job):
            message = CANCELLED
        outcome = Outcome(job.cell, job.work.label, job.stage, result["outcome"], cause, message, seconds)
        self._settle(job, outcome)
        self.watcher.ended(worker.index, job, outcome)
        if cause == "disk":
            self.environment = message

    def _settle(self, job: Job, outcome: Outcome) -> None:
        self.outcomes.append(outcome)
        if "log" in job.claim:
            self._log_index.end(job.cell, job.stage, job.claim["log"], outcome.outcome)
        if outcome.outcome == "done":
            self.queue.done(job)
            return
        kind = "preempted" if outcome.outcome == "preempted" else "unreached"
        for lost in self.queue.drop(job):
            self.outcomes.append(Outcome(lost.cell, lost.work.label, lost.stage, kind, message="not trained"))

    # -- what a worker can no longer say itself --------------------------------------------------------------------

    def _write_failure(self, job: Job, result: dict[str, Any], worker: WorkerProcess) -> None:
        result.setdefault("evidence", {})
        result["evidence"] |= {"log": str(worker.log.path), "output": worker.log.tail()}
        self._record(job, result)

    def _gone(self, worker: WorkerProcess, code: int) -> None:
        worker.finish()
        del self._workers[worker.index]
        job, worker.job = worker.job, None
        if job is not None and self.stopped and job in self._teams:
            self._teams[job].hear(worker, {"outcome": "preempted", "message": "killed"})
        elif job is not None and self.stopped:
            self._settle(job, Outcome(job.cell, job.work.label, job.stage, "preempted", message="killed"))
        elif job is not None:
            step = job.claim.get("step")
            who = f"rank {self._teams[job].members.index(worker)}" if job in self._teams else "the worker"
            message = f"{who} {exit_reason(code)}" + (f" at step {step}" if step is not None else "")
            cause = self._cause(code)
            dead = {"outcome": "failed", "cause": cause, "message": message, "recorded": False}
            self._heard(worker, job, {**dead, "evidence": {"returncode": code}})
        elif worker.hello is None and not self._winding_down:
            self._failed_start(worker, code)

    def _cause(self, code: int) -> str:
        """Of a worker's death. 137 is what a shell makes of SIGKILL."""
        kills, self._oom_kills = self._oom_kills, oom_kills()
        if code in (-signal.SIGKILL, 128 + signal.SIGKILL):
            return "oom" if (self._oom_kills or 0) > (kills or 0) else "killed"
        return "killed" if code < 0 else "plugin"

    def _failed_start(self, worker: WorkerProcess, code: int) -> None:
        self._early_deaths += 1
        if worker.broken is not None:
            raise EnvironmentProblem(
                f"the worker cannot import {self.settings.entry}: {worker.broken['message']}",
                worker.broken["traceback"],
            )
        if self._early_deaths >= START_TRIES:
            raise EnvironmentProblem(
                f"{START_TRIES} workers in a row died while starting; the last {exit_reason(code)}",
                f"its output is in {worker.log.path}:\n{worker.log.tail()}",
            )

    def _check_silence(self, worker: WorkerProcess, job: Job) -> None:
        quiet = time.monotonic() - worker.heard
        if quiet > self.settings.silence and job not in self._dumped:
            self._dumped.add(job)
            for member in self._teams[job].waiting if job in self._teams else [worker]:
                member.dump_stacks()
            self.watcher.note(
                f"worker {worker.index} ({job.work.label}, {job.stage}) has said nothing for {quiet:.0f} s; "
                f"what it is doing is in {worker.log.path}"
            )
        if quiet > self.settings.hang:
            message = f"hung: no word for {quiet:.0f} s; its stacks are in {worker.log.path}"
            worker.job = None
            worker.kill()
            dead = {"outcome": "failed", "cause": "plugin", "message": message, "recorded": False}
            self._heard(worker, job, dead)

    def _unreached(self) -> None:
        for job in self.queue.waiting():
            kind = "preempted" if self.stopped else "unreached"
            self.outcomes.append(Outcome(job.cell, job.work.label, job.stage, kind, message="not started"))


def failed(outcomes: Sequence[Outcome]) -> list[Outcome]:
    """The stages that failed, or could not start because something before them did."""
    return [outcome for outcome in outcomes if outcome.outcome in ("failed", "unreached")]
