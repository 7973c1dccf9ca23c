"""Who works on a stage of a run, and what becomes of it when the worker is gone.

A claim is a write-once file `claims/<stage>.<attempt>.json`; its owner alone replaces `beats/<stage>.<attempt>.json`. The
highest attempt counts. No locks, no wall clocks: the process table decides on one kernel, SLURM's restart count in one job,
and elsewhere a counter that stands still for `lease` seconds of the contender's own monotonic clock.
"""

from __future__ import annotations

import os
import re
import threading
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Literal

from ltbench import files
from ltbench.store import owner as owners
from ltbench.store import sealed
from ltbench.store.kept import LIVE, Reads
from ltbench.store.owner import Owner

LEASE = 60.0  # seconds

Outcome = Literal["done", "failed", "preempted"]
_STAGE = re.compile(r"[a-z0-9][a-z0-9-]{0,80}")
_BEAT_EVERY = 1.0  # seconds; more often only costs the file server


@dataclass(frozen=True)
class Held:
    """Somebody else's claim. `beat` is their last heartbeat; `beat_age` its age in seconds, None where nobody can know;
    `same_kernel` whether the process table vouches for them."""

    stage: str
    attempt: int
    owner: Owner | None
    beat: dict[str, Any]
    beat_age: float | None
    same_kernel: bool

    def __bool__(self) -> bool:
        return False

    @property
    def message(self) -> str:
        """One phrase: who, which attempt, how long silent."""
        host, pid = ("an unknown host", "?") if self.owner is None else (self.owner.host, self.owner.pid)
        age = "not yet known" if self.beat_age is None else f"{self.beat_age:.0f} s ago"
        return f"running on {host} (attempt {self.attempt}, pid {pid}, last beat {age})"

    def __str__(self) -> str:
        return self.message


@dataclass
class Watch:
    """What this process has seen of others' counters, on its own monotonic clock."""

    _seen: dict[str, tuple[Any, float]] = field(default_factory=dict)

    def still_for(self, path: str, counter: Any) -> float:
        """Seconds for which the counter in `path` has been seen to stand still; 0.0 at the first look and after a change."""
        now = time.monotonic()
        seen, since = self._seen.get(path, (None, now))
        if path not in self._seen or seen != counter:
            since = now
        self._seen[path] = (counter, since)
        return now - since


WATCH = (
    Watch()
)  # of the whole process: a worker opens the store anew for every stage, and must still see a lease run out


_ACTIVE: set[str] = (
    set()
)  # tokens of this process's claims: one of ours that is not here was never granted or has ended


class Claim:
    """The right to work on a stage, as attempt `attempt`. Used with `with`, it beats in the background and is released at
    the end: "done", or "failed" after an exception, "preempted" after KeyboardInterrupt or SystemExit.

    In there `beat` never touches the disk: a file server that hangs stops the thread beside the work, and the work at its next
    commit. `unanswered` tells for how long it has hung.
    """

    def __init__(self, folder: Path, stage: str, attempt: int, token: str, lease: float) -> None:
        self.stage, self.attempt = stage, attempt
        self._folder, self._token, self._lease = folder, token, lease
        self._counter, self._last, self._progress = 0, float("-inf"), {}
        self._outcome: Outcome | None = None
        self._pid = os.getpid()  # a forked child that runs out of our `with` block must not end our claim
        self._lock, self._stop, self._wake = threading.Lock(), threading.Event(), threading.Event()
        self._beside: threading.Thread | None = None
        self._asked: float | None = None
        _ACTIVE.add(token)

    def beat(self, **progress: Any) -> bool:
        """Say that we live, and how far we are (step, total, loss, images_per_s ...); at most once a second.

        True when it was written. A disk that refuses a beat does not end the work: others may then take it over, and
        `still_mine` tells.
        """
        if self._beside not in (None, threading.current_thread()):
            self._progress = progress or self._progress
            self._wake.set()
            return False
        with self._lock:
            self._progress = progress or self._progress
            if self._closed() or time.monotonic() - self._last < _BEAT_EVERY:
                return False
            return self._write()

    @property
    def unanswered(self) -> float:
        """Seconds for which the store has not answered a heartbeat; 0.0 while it answers."""
        asked = self._asked
        return 0.0 if asked is None else time.monotonic() - asked

    def still_mine(self) -> bool:
        """Whether no later attempt has begun. Ask before every commit: a process that was stopped for long may wake up."""
        if latest_attempt(self._folder, self.stage) != self.attempt:
            return False
        return _read(claim_path(self._folder, self.stage, self.attempt)).get("token") == self._token

    def release(self, outcome: Outcome) -> None:
        """End the claim; the first call counts. A refused write is not an error: this process knows, and others see it end."""
        if outcome not in ("done", "failed", "preempted"):
            raise ValueError(f"a claim is released as done, failed or preempted, not {outcome!r}")
        with self._lock:
            self._stop.set()
            self._wake.set()
            if not self._closed():
                self._outcome = outcome
                _ACTIVE.discard(self._token)
                self._write()

    def __enter__(self) -> Claim:
        self._beside = threading.Thread(target=self._beat_on, name="ltbench-heartbeat", daemon=True)
        self._beside.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.release("done")
        else:
            self.release("failed" if issubclass(kind, Exception) else "preempted")

    def _closed(self) -> bool:
        return self._outcome is not None or os.getpid() != self._pid

    def _beat_on(self) -> None:
        # A long evaluation block or a compilation says nothing for minutes; the process being alive is what a claim means.
        while not self._stop.is_set():
            self._wake.wait(self._lease / 6)
            self._stop.wait(max(0.0, self._last + _BEAT_EVERY - time.monotonic()))
            self._wake.clear()
            if not self._stop.is_set():
                self.beat()

    def _write(self) -> bool:
        self._counter += 1
        self._last = time.monotonic()
        beat = sealed.finite(self._progress) | {
            "format": sealed.FORMAT,
            "counter": self._counter,
            "uptime": _uptime(),
        }
        if self._outcome is not None:
            beat["outcome"] = self._outcome
        self._asked = time.monotonic()
        try:
            path = beat_path(self._folder, self.stage, self.attempt)
            files.replace(path, sealed.seal(beat), durable=self._outcome is not None)
        except files.StorageProblem:
            return False
        finally:
            self._asked = None
        return True


@dataclass(frozen=True)
class Standing:
    """The latest attempt at a stage: `outcome` of its release or None; `alive` True, False, or None for "no telling yet"."""

    attempt: int
    owner: Owner | None
    beat: dict[str, Any]
    beat_age: float | None
    outcome: Outcome | None
    alive: bool | None
    same_kernel: bool


def contend(
    folder: Path, stage: str, watch: Watch, lease: float, *, link: bool, inherited: Callable[[], list[str]]
) -> Claim | Held:
    """Claim `stage` of the run in `folder` if it is free or its owner is gone; never waits.

    A heartbeat elsewhere may stand still for `lease` seconds. `inherited()` lists the record files that earlier attempts
    left: a later attempt vouches for these and for no others.
    """
    check_stage(stage)
    while True:
        now = standing(folder, stage, watch, lease)
        if now is not None and now.outcome is None:
            if now.alive is not False:
                return Held(stage, now.attempt, now.owner, now.beat, now.beat_age, now.same_kernel)
            if not now.same_kernel and _beat_moved(folder, stage, now):
                continue
        attempt = 1 if now is None else now.attempt + 1
        token = uuid.uuid4().hex
        claim = {
            "format": sealed.FORMAT,
            "stage": stage,
            "attempt": attempt,
            "token": token,
            "owner": owners.here().json(),
            "inherited": inherited(),
        }
        path = claim_path(folder, stage, attempt)
        if files.write_once(path, sealed.seal(claim), link=link) or _read(path).get("token") == token:
            mine = Claim(folder, stage, attempt, token, lease)
            mine.beat()
            return mine
        time.sleep(0.01)  # the winner's claim is there; an NFS client may need a moment to list it


def standing(
    folder: Path | str, stage: str, watch: Watch, lease: float, reads: Reads = LIVE
) -> Standing | None:
    """How the latest attempt at `stage` fares; None when there was none."""
    attempt = latest_attempt(folder, stage, reads)
    if attempt == 0:
        return None
    claim = _read(f"{folder}/claims/{stage}.{attempt}.json", reads)
    owner = Owner.from_json(claim.get("owner"))
    path = f"{folder}/beats/{stage}.{attempt}.json"
    beat = _read(path, reads)
    if beat.get("outcome") == "done":  # thousands are: nobody is looked up
        return Standing(attempt, owner, beat, None, "done", None, False)
    here = owners.here()
    alive = None if owner is None else owner.alive(here)
    same_kernel = alive is not None
    if same_kernel:
        age = max(0.0, _uptime() - beat["uptime"]) if "uptime" in beat else None
    else:
        age = watch.still_for(path, beat.get("counter"))
        alive = False if age >= lease else None
    if owner is not None and (
        owner.requeued_as(here) or (owner == here and claim.get("token") not in _ACTIVE)
    ):
        alive = False
    return Standing(attempt, owner, beat, age, beat.get("outcome"), alive, same_kernel)


def owner_of(folder: Path, stage: str, attempt: int) -> tuple[Owner | None, dict[str, Any]]:
    """Who made an attempt, and its last heartbeat; None and {} where nothing readable tells."""
    claim = _read(claim_path(folder, stage, attempt))
    return Owner.from_json(claim.get("owner")), _read(beat_path(folder, stage, attempt))


def _beat_moved(folder: Path, stage: str, now: Standing) -> bool:
    """A last look before a takeover by lease. NFS may serve an old directory for a minute; a change of our own in it makes
    the client ask the server."""
    path = beat_path(folder, stage, now.attempt)
    files.ask_server(path.parent)
    return _read(path).get("counter") != now.beat.get("counter")


def latest_attempt(folder: Path | str, stage: str, reads: Reads = LIVE) -> int:
    """The highest attempt that was ever claimed; 0 for none."""
    prefix, attempts = f"{stage}.", [0]
    for name in reads.names(f"{folder}/claims"):
        number = name.removeprefix(prefix).removesuffix(".json")
        if name == f"{prefix}{number}.json" and number.isdigit():
            attempts.append(int(number))
    return max(attempts)


def inherited_records(folder: Path, stage: str, attempt: int, latest: int) -> set[str] | None:
    """The records of `attempt` and earlier that the next attempt found; None when no readable claim tells."""
    for later in range(attempt + 1, latest + 1):
        found = _read(claim_path(folder, stage, later)).get("inherited")
        if isinstance(found, list):
            return set(found)
    return None


def stages(folder: Path | str, reads: Reads = LIVE) -> list[str]:
    """Every stage that was ever claimed, sorted."""
    found = {name.split(".")[0] for name in reads.names(f"{folder}/claims") if name.endswith(".json")}
    return sorted(stage for stage in found if _STAGE.fullmatch(stage))


def check_stage(stage: str) -> str:
    """`stage` itself; ValueError when it could not be a file's name."""
    if not _STAGE.fullmatch(stage):
        raise ValueError(f"stage {stage!r} is not lower-case letters, digits and '-'")
    return stage


def claim_path(folder: Path, stage: str, attempt: int) -> Path:
    return folder / "claims" / f"{stage}.{attempt}.json"


def beat_path(folder: Path, stage: str, attempt: int) -> Path:
    return folder / "beats" / f"{stage}.{attempt}.json"


def _read(path: str | Path, reads: Reads = LIVE) -> dict[str, Any]:
    """A claim or beat, {} where there is none or it cannot be read: then only time can tell."""
    try:
        return reads.sealed(str(path))
    except (FileNotFoundError, files.Unreadable):
        return {}


def _uptime() -> float:
    """Seconds since boot, the same for every process of this kernel."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
