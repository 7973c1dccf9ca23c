"""From arrays to SLURM and back: what is on its way already, what a killed driver left behind, and the submission itself.

An array is written, then handed to sbatch with a token as its comment, then its number is written down. A driver that dies in
between has lost nothing: the next one finds the token in SLURM's queue and takes the array over, or finds it nowhere and submits
the cells again. Nothing here waits: the driver ends when the last array is in the queue.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ltbench.errors import EnvironmentProblem, LtbenchError, UsageError
from ltbench.launch.slurm import layout, queue_states, sbatch
from ltbench.launch.slurm.commands import Command
from ltbench.launch.slurm.layout import Array, Entry, Submission
from ltbench.launch.slurm.queue_states import Key, State
from ltbench.launch.slurm.resources import Wanted
from ltbench.launch.slurm.settle import settle
from ltbench.plan.work import Work
from ltbench.profiles import JobClass, Profile, Resources
from ltbench.stages.names import parse
from ltbench.store import Store, sealed
from ltbench.store import owner as owners
from ltbench.store.owner import Owner

NODE_ENDS = ("NODE_FAIL", "BOOT_FAIL", "LAUNCH_FAILED")  # states in which a node is to blame
SILENT = "SLURM does not answer (sacct, squeue and scontrol were asked): what is queued already is not known"


@dataclass
class Flight:
    """What jobs that SLURM has not ended are going to do.

    stages: (run, stage) of a cell -> the job element that has it. training: cells -> the element that trains them. watchdogs:
    submissions with a watchdog that lives. adopted: arrays whose driver had died before it knew their number. commands: those that
    run as jobs, with their submission and their job.
    """

    stages: dict[tuple[str, str, str], str] = field(default_factory=dict)
    training: dict[str, str] = field(default_factory=dict)
    watchdogs: list[str] = field(default_factory=list)
    adopted: list[str] = field(default_factory=list)
    commands: list[tuple[Command, str, str]] = field(default_factory=list)

    def makers(self) -> dict[str, str]:
        """Place of a prepared data set -> the job that makes it."""
        return {command.makes: job for command, _, job in self.commands if command.makes}

    def rest(self, work: Sequence[Work]) -> list[Work]:
        """The part of the work that nobody is going to do."""
        if not self.stages and not self.training:
            return list(work)
        found = []
        for item in work:
            if stages := tuple(stage for stage in item.stages if not self._has(item, stage)):
                found.append(replace(item, stages=stages))
        return found

    def _has(self, item: Work, stage: str) -> bool:
        if stage.startswith("train:"):
            return item.cell.id in self.training
        named = parse(stage)
        if named.kind in (
            "reference",
            "encode",
        ):  # whichever cell's job makes them: they are the same for all
            return any(known == stage for _, _, known in self.stages)
        coming = {step for each in item.stages if each.startswith("train:") for step in parse(each).steps}
        if named.steps and named.steps[0] in coming and item.cell.id in self.training:
            return True  # its training submits it, or is to be followed up by another `submit`
        return (item.cell.id, item.run, stage) in self.stages

    def add(self, job: str, index: int, array: Array) -> None:
        """Take an element in that may still do something."""
        element = f"{job}_{index}"
        for entry in array.tasks[index]:
            if any(stage.startswith("train:") for stage in entry.stages):
                self.training[entry.cell] = element
            elif array.resource["class"] != "training":
                self.stages |= {(entry.cell, entry.run, stage): element for stage in entry.stages}


def in_flight(store: Store) -> Flight:
    """What is on its way, of every submission below the store's scratch root; arrays that a killed driver left are taken over, and
    ends that dead jobs could not write are written down (where the store may be written).

    Raises EnvironmentProblem where SLURM does not answer, UsageError while another driver is submitting on this machine.
    """
    known = list(layout.submissions(store.scratch))
    flight = Flight()
    for submission in known:
        flight.adopted += adopt(submission)
    jobs = {
        (s.folder, number): job for s in known for number in s.arrays() if (job := s.job(number)) is not None
    }
    states = queue_states.ask(jobs.values())
    if states is None:
        raise EnvironmentProblem(SILENT, "try again when `squeue` answers: nothing was submitted")
    living = alive(states)
    for submission in known:
        if store.write:
            settle(submission, store, states)
        for number in submission.arrays():
            job = jobs.get((submission.folder, number))
            if job is not None and (elements := living.get(job)) is not None:
                _board(flight, submission, number, job, elements)
    return flight


def alive(states: Mapping[Key, State]) -> dict[str, set[int] | None]:
    """Job -> its elements that are not over; None: all of it (SLURM gave no elements)."""
    found: dict[str, set[int] | None] = {}
    for key, state in states.items():
        if not state.alive:
            continue
        if isinstance(key, str):
            found.setdefault(key, None)
        elif (elements := found.setdefault(key[0], set())) is not None:
            elements.add(key[1])
    return found


def _board(flight: Flight, submission: Submission, number: int, job: str, elements: set[int] | None) -> None:
    array = submission.array(number)
    if array.resource["class"] == "watchdog":
        flight.watchdogs.append(submission.id)
        return
    command = Command.of(array.resource)
    for index in array.indices:
        if (elements is None or index in elements) and not submission.cancelled(number, index):
            flight.add(job, index, array)
            flight.commands += [] if command is None else [(command, submission.id, job)]


def adopt(submission: Submission) -> list[str]:
    """Find arrays without a job number in SLURM's queue by their token and write the number down; "SUB array A: job J" each.

    Raises EnvironmentProblem where SLURM does not answer, UsageError while the driver that wrote them is alive on this machine.
    """
    open_ = [number for number in submission.arrays() if submission.job(number) is None]
    if not open_:
        return []
    driver, here = Owner.from_json(submission.info().get("driver")), owners.here()
    if driver is not None and driver.pid != here.pid and driver.alive(here):
        raise UsageError(
            f"process {driver.pid} on this machine is submitting {submission.info()['benchmark']} right now",
            "wait until it has ended; nothing was submitted",
        )
    tokens = queue_states.comments()
    if tokens is None:
        raise EnvironmentProblem(SILENT, "try again when `squeue` answers: nothing was submitted")
    found = []
    for number in open_:
        if (job := tokens.get(submission.token(number))) is not None:
            submission.put_job(number, job)
            found.append(f"{submission.id} array {number}: job {job}")
    return found


def cancelled_cells(scratch: Path) -> set[str]:
    """Cells whose newest job element a person cancelled, by `cancel` or scancel."""
    found: set[str] = set()
    seen: set[str] = set()
    for submission in layout.submissions(scratch):
        over = {
            key[:2] for key, path in submission.ended().items() if _read(path).get("reason") == "cancelled"
        }
        here: set[str] = set()
        for number in submission.arrays():
            for index, task in enumerate(submission.array(number).tasks):
                cells = {entry.cell for entry in task}
                here |= cells
                if (number, index) in over or submission.cancelled(number, index):
                    found |= cells - seen
        seen |= here
    return found


# --- submitting ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sender:
    """How arrays of one submission reach SLURM. function: what an element runs, with (folder, array) as text. exclude: nodes."""

    submission: Submission
    profile: Profile
    name: str
    function: Callable[[str, str], Any]
    environment: Mapping[str, str]
    exclude: tuple[str, ...] = ()

    def text(self, number: int, wanted: Wanted, dependency: str | None = None) -> str:
        """The script of an array."""
        return self.script(
            number, self.profile.resources(wanted.job_class), wanted.indices, dependency=dependency
        )

    def script(self, number: int, asked: Resources, indices: Sequence[int], **more: Any) -> str:
        """The script of elements with these resources; `more`: dependency, begin."""
        call = sbatch.Call(self.function, self.submission.folder, number)
        return sbatch.script(
            call,
            self.submission,
            self.profile,
            asked,
            name=f"ltbench-{self.name}",
            indices=indices,
            environment=self.environment,
            exclude=self.exclude,
            **more,
        )

    def write(self, wanted: Wanted) -> Array:
        """Write an array's file."""
        resource = {"class": wanted.job_class, **told(self.profile.resources(wanted.job_class))}
        return self.submission.add_array(resource, wanted.tasks)

    def send(self, number: int, text: str) -> str:
        """Hand an array of a submission that is out to SLURM and write its job number down. Raises EnvironmentProblem."""
        job = sbatch.send(text)
        self.submission.put_job(number, job)
        return job


def send_all(sender: Sender, wanted: Sequence[Wanted]) -> list[str]:
    """Write all arrays, then submit them in their order; the job numbers.

    Raises EnvironmentProblem when sbatch refuses one: what was submitted before stays and goes on; `submit` again sends the rest.
    """
    arrays = [sender.write(each) for each in wanted]
    jobs: list[str] = []
    for array, each in zip(arrays, wanted, strict=True):
        try:
            jobs.append(sbatch.send(sender.text(array.number, each, dependency(each, jobs))))
            sender.submission.put_jobs({known.number: job for known, job in zip(arrays, jobs, strict=False)})
        except EnvironmentProblem as problem:
            raise EnvironmentProblem(
                f"{problem.message}\n{len(jobs)} of {len(arrays)} arrays are in the queue",
                "what is queued goes on; the same command submits the rest once the reason is gone",
            ) from problem
    return jobs


def dependency(wanted: Wanted, jobs: Sequence[str]) -> str | None:
    """sbatch's --dependency; `jobs`: the numbers of the arrays before it."""
    parts = [f"aftercorr:{jobs[wanted.corresponding]}"] if wanted.corresponding is not None else []
    parts += ["afterany:" + ":".join(jobs[each] for each in wanted.behind)] if wanted.behind else []
    parts += ["afterok:" + ":".join(wanted.after)] if wanted.after else []
    return ",".join(parts) or None


def add(submission: Submission, job_class: JobClass, entries: Sequence[Entry], *, environment: Mapping[str, str],
        function: Callable[[str, str], Any]) -> tuple[int, str]:  # fmt: skip
    """Submit one more element with these entries from inside a job: a milestone's evaluation. Returns (array, job number).

    It waits for the features of real images where jobs of this submission still make them. Raises EnvironmentProblem.
    """
    profile, info = submission.profile(), submission.info()
    sender = Sender(
        submission, profile, info["benchmark"], function, environment, tuple(info.get("exclude", ()))
    )
    array = sender.write(Wanted(job_class, [tuple(entries)]))
    helping = [job for number in info.get("helpers", ()) if (job := submission.job(number)) is not None]
    states = queue_states.ask(helping) or {}
    living = sorted(set(helping) & alive(states).keys(), key=int)
    waits = f"afterany:{':'.join(living)}" if living else None
    text = sender.script(array.number, profile.resources(job_class), [0], dependency=waits)
    return array.number, sender.send(array.number, text)


def told(asked: Resources) -> dict[str, Any]:
    """Resources as JSON, without what was not asked for."""
    return {key: value for key, value in vars(asked).items() if value not in (None, (), {})}


# --- nodes that fail ----------------------------------------------------------------------------------------------------


def failing_nodes(scratch: Path, profile: Profile) -> list[str]:
    """Nodes on which as many elements as the profile allows ended by the node's fault, or were killed without a word."""
    known = {s: (s.started(), s.ended()) for s in layout.submissions(scratch)}
    jobs = {
        job for s, (started, _) in known.items() for a in {key[0] for key in started} if (job := s.job(a))
    }
    states = queue_states.ask(jobs) or {}
    count: Counter[str] = Counter()
    for submission, (started, ended) in known.items():
        job = {array: submission.job(array) for array in {key[0] for key in started}}
        last: dict[tuple[int, int], int] = {}
        for array, index, restart in started:
            last[array, index] = max(restart, last.get((array, index), 0))
        for key, path in started.items():
            state = states.get((job[key[0]] or "", key[1]))
            lost = key[2] < last[key[:2]] or (state is not None and state.word in NODE_ENDS)
            node = str(_read(path).get("node"))
            if lost and key not in ended:
                lost = not _preempted(submission.log(*key[:2]), node)
            if _read(ended[key]).get("cause") == "node" if key in ended else lost:
                count[node] += 1
    return sorted(node for node, failures in count.items() if failures >= profile.node_failures)


def _preempted(log: Path, node: str) -> bool:
    """Whether SLURM says in an element's log that it preempted it on this node: that it was killed before it could say so is then
    no fault of the node."""
    said = rf"JOB \d+ ON {re.escape(node)} CANCELLED AT \S+ DUE TO PREEMPTION".encode()
    try:
        return re.search(said, log.read_bytes()) is not None
    except OSError:
        return False


def _read(path: Path) -> dict[str, Any]:
    try:
        return sealed.read_sealed(path)
    except (FileNotFoundError, LtbenchError):
        return {}
