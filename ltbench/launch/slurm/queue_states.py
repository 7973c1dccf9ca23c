"""What SLURM says of jobs: sacct, then squeue, then scontrol, whoever answers; an unknown state is never taken for an end."""

from __future__ import annotations

import re
import subprocess
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

# slurm.h's base states that are final. Whatever is not here counts as alive: SUSPENDED, CONFIGURING, REQUEUED, SPECIAL_EXIT, and
# states that a later SLURM invents.
ENDED = frozenset(
    (
        *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL"),
        *("OUT_OF_MEMORY", "TIMEOUT", "LAUNCH_FAILED", "RECONFIG_FAIL"),
    )
)
WAITING = frozenset(("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "RESV_DEL_HOLD", "SPECIAL_EXIT"))  # fmt: skip
PATIENCE = 60  # seconds for one command
GLANCE = 10  # seconds for one command where somebody only looks, and files tell nearly all of it
BATCH = 400  # job numbers on one command line
_ARRAY = re.compile(r"(?P<job>\d+)_\[(?P<ranges>[\d,\-]+)(:\d+)?(%\d+)?\]")

Key = str | tuple[str, int]


@dataclass(frozen=True)
class State:
    """A job's state in SLURM's word, upper case. reason: why it waits, or "". node: where it runs or ran, or "". source: who said it."""

    word: str
    reason: str = ""
    node: str = ""
    source: str = ""

    @property
    def alive(self) -> bool:
        """Whether it may still do something: every state that is not known to be an end."""
        return self.word not in ENDED

    @property
    def waiting(self) -> bool:
        """Whether it has not begun, or waits to begin again."""
        return self.word in WAITING


def ask(job_ids: Iterable[str], patience: float | None = None) -> dict[Key, State] | None:
    """The state of every job, and of every element under (job, index), that SLURM still knows; None where nobody answers.

    A job that is missing from the answer is one that SLURM has forgotten: it ended long ago. Accounting alone cannot say that: it
    hears of a job later than the controller does, so without the controller an answer that lacks a job is none. PREEMPTED is an
    end only in words: SLURM requeues such a job, so squeue's and scontrol's word for the same element wins over sacct's.

    patience: seconds for each of two commands. [PATIENCE] Whoever waits for more is told by None.
    """
    limit = PATIENCE if patience is None else patience
    wanted = sorted({str(job).partition("_")[0] for job in job_ids}, key=int)
    if not wanted:
        return {}
    begun = time.monotonic()
    queue = _squeue(wanted, limit)
    hangs = time.monotonic() - begun >= limit  # the controller, which scontrol would ask again
    past = _sacct(wanted, limit)
    if queue is None and not hangs:
        queue = _scontrol(wanted, limit)
    if queue is None and (past is None or set(wanted) - {_job(key) for key in past}):
        return None
    return {**(past or {}), **(queue or {})}


def comments() -> dict[str, str] | None:
    """Comment -> job number of every job of ours that SLURM still knows; None where nobody answers."""
    text = _output("squeue", "--me", "-h", "-a", "-t", "all", "-o", "%F|%k")
    if text is None:
        return None
    found = {}
    for line in text.splitlines():
        job, _, comment = line.strip().partition("|")
        if comment.startswith("ltbench-"):
            found[comment] = job
    recorded = _output("sacct", "-X", "-n", "-P", "-S", "now-7days", "-o", "JobID,Comment") or ""
    for line in recorded.splitlines():
        job, _, comment = line.strip().partition("|")
        if comment.startswith("ltbench-"):
            found.setdefault(comment, re.split(r"[_.]", job)[0])
    return found


def _sacct(jobs: list[str], patience: float) -> dict[Key, State] | None:
    found: dict[Key, State] = {}
    for part in _batches(jobs):
        text = _output(
            "sacct",
            "-X",
            "-n",
            "-P",
            "-a",
            "-j",
            ",".join(part),
            "-o",
            "JobID,State,NodeList",
            patience=patience,
        )
        if text is None:
            return None
        for line in text.splitlines():
            name, state, node, *_ = [*line.split("|"), "", ""]
            for key in _keys(name):
                found[key] = State(_word(state), node=_node(node), source="sacct")
    return found


def _squeue(jobs: list[str], patience: float) -> dict[Key, State] | None:
    """`squeue -t all` keeps ended jobs for MinJobAge; a list with one job that it has forgotten is an error in some versions."""
    found: dict[Key, State] = {}
    text = _output("squeue", "--me", "-h", "-a", "-r", "-t", "all", "-o", "%i|%T|%r|%N", patience=patience)
    if text is None:
        return None
    wanted = set(jobs)
    for line in text.splitlines():
        name, state, reason, node, *_ = [*line.split("|"), "", "", ""]
        for key in _keys(name):
            if _job(key) in wanted:
                found[key] = State(_word(state), reason if reason != "None" else "", _node(node), "squeue")
    return found


def _scontrol(jobs: list[str], patience: float) -> dict[Key, State] | None:
    text = _output("scontrol", "-o", "show", "job", patience=patience)
    if text is None:
        return None
    found: dict[Key, State] = {}
    wanted = set(jobs)
    for line in text.splitlines():
        fields = _fields(line)
        job, index = fields.get("ArrayJobId", fields.get("JobId", "")), fields.get("ArrayTaskId")
        if job not in wanted:
            continue
        reason = fields.get("Reason", "").replace("None", "")
        state = State(
            _word(fields.get("JobState", "")), reason, _node(fields.get("NodeList", "")), "scontrol"
        )
        for key in _keys(job if index is None else f"{job}_[{index}]"):
            found[key] = state
    return found


def _fields(line: str) -> dict[str, str]:
    """`A=1 B=2` as a dict."""
    found: dict[str, str] = {}
    for word in line.split():
        name, equals, value = word.partition("=")
        if equals:
            found[name] = value
    return found


def _job(key: Key) -> str:
    return key if isinstance(key, str) else key[0]


def _output(*words: str, patience: float | None = None) -> str | None:
    """A command's output; None where it is not installed, does not answer in time, or says that it cannot."""
    try:
        limit = PATIENCE if patience is None else patience
        done = subprocess.run(words, capture_output=True, text=True, timeout=limit, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def _batches(jobs: list[str]) -> Iterator[list[str]]:
    for start in range(0, len(jobs), BATCH):
        yield jobs[start : start + BATCH]


def _word(text: str) -> str:
    """`CANCELLED by 1000`, `CANCELLED+` and `COMPLETED` as one word."""
    words = text.split()
    return words[0].rstrip("+").upper() if words else "UNKNOWN"


def _node(text: str) -> str:
    return "" if text in ("(null)", "None assigned", "n/a") else text


def _keys(name: str) -> Iterator[Key]:
    """The elements that a job name of SLURM means: `7`, `7_3`, `7_[0-4,9%2]`; none for a step (`7.batch`)."""
    name = name.strip()
    if found := _ARRAY.fullmatch(name):
        for part in found["ranges"].split(","):
            first, _, last = part.partition("-")
            yield from ((found["job"], index) for index in range(int(first), int(last or first) + 1))
    elif re.fullmatch(r"\d+_\d+", name):
        job, _, index = name.partition("_")
        yield job, int(index)
    elif name.isdecimal():
        yield name
