"""One stage on several workers: what they answer, and which answer counts."""

from __future__ import annotations

import socket
import time
from typing import Any

from ltbench.launch.process import WorkerProcess
from ltbench.launch.work import Job

GRACE = 5.0  # seconds that the other ranks have to end by themselves once one of them has failed


class Team:
    """The workers that run `job` together, rank 0 first. A rank's own failure or death decides, and ends the others."""

    def __init__(self, job: Job, members: list[WorkerProcess]) -> None:
        self.job, self.members = job, members
        self.waiting = list(members)
        self._answers: list[tuple[WorkerProcess, dict[str, Any]]] = []
        self._bad_since: float | None = None

    @property
    def leader(self) -> WorkerProcess:
        return self.members[0]

    def environments(self) -> list[dict[str, str]]:
        """What torchrun would set, for every rank."""
        shared = {
            "WORLD_SIZE": str(len(self.members)),
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(_free_port()),
        }
        return [{**shared, "RANK": str(r), "LOCAL_RANK": str(r)} for r in range(len(self.members))]

    def hear(self, worker: WorkerProcess, result: dict[str, Any]) -> None:
        """A rank's end: its result, or what is known of its death."""
        self.waiting.remove(worker)
        self._answers.append((worker, result))
        if result["outcome"] == "failed" and self._bad_since is None:
            self._bad_since = time.monotonic()

    def verdict(self) -> tuple[WorkerProcess, dict[str, Any]] | None:
        """Whose result stands for all, once all have answered or had their time; None before."""
        late = self._bad_since is not None and time.monotonic() - self._bad_since > GRACE
        if self.waiting and not late:
            return None
        failed = [answer for answer in self._answers if answer[1]["outcome"] == "failed"]
        roots = [answer for answer in failed if not answer[1].get("peer")]
        leading = [answer for answer in self._answers if answer[0] is self.leader]
        return (roots or failed or leading)[0]

    def end(self) -> None:
        """Kill whoever has not answered."""
        for worker in self.waiting:
            worker.job = None
            worker.kill()


def alone() -> dict[str, str]:
    """The environment of a stage on one worker: it is no rank, whatever this program was started in."""
    return {"WORLD_SIZE": "1", "RANK": "0", "LOCAL_RANK": "0"}


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
