"""What a stage has around it, and what training and evaluation leave in common."""

from __future__ import annotations

import os
import platform
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from ltbench import provenance, vaes
from ltbench.datasets import Dataset
from ltbench.distributed import Ranks
from ltbench.evaluate import Tiles
from ltbench.execution import Executed
from ltbench.provenance import surroundings
from ltbench.store import Claim, Run
from ltbench.store.claims import Outcome
from ltbench.store.facts import FACT_LIMIT
from ltbench.tiles import grid_png, halved

Event = Callable[[dict[str, Any]], None]


@dataclass(frozen=True)
class Options:
    """What may differ between two executions of a stage without changing what it means.

    micro_batch: images per forward (None: the whole batch). checkpoint_seconds: least time between checkpoints.
    log_every, preview_every: steps (None: a preview at each milestone). threads: torch's (None: as they are).
    device: "cpu", "cuda", "cuda:1" ... (None: a GPU where there is one). lease: seconds after which a silent owner on
    another machine is taken for dead. keep_samples: generated images stay in the scratch folder. start: where the starting
    weights lie, if there are any: a run of their cell, or a file. vae: the folder of the cell's VAE, where a spec named one.
    execution, recompute: how networks are run, see ltbench/execution.py.
    grace: seconds between the warning that a job gets and its end, where that is known.
    """

    micro_batch: int | None = None
    checkpoint_seconds: float = 600.0
    log_every: int = 20
    preview_every: int | None = None
    threads: int | None = None
    device: str | None = None
    lease: float = 60.0
    keep_samples: bool = False
    start: str | None = None
    vae: str | None = None
    execution: str = "auto"
    recompute: bool = False
    grace: float | None = None


@dataclass(frozen=True)
class Followed:
    """The leader's claim as the other ranks see it: they write nothing, so they have nothing to end or to ask."""

    attempt: int

    def __enter__(self) -> Followed:
        return self

    def __exit__(self, *_error: object) -> None: ...

    def release(self, outcome: Outcome) -> None: ...

    def beat(self, **progress: Any) -> bool:
        return False

    unanswered = 0.0

    def still_mine(self) -> bool:
        return True


@dataclass
class Stage:
    """A claimed stage and all that its code needs around it. `ranks`: the processes that run it together."""

    run: Run
    claim: Claim | Followed
    settings: dict[str, Any]
    options: Options
    device: torch.device
    emit: Event
    stop: Callable[[], bool]
    started: float
    ranks: Ranks = field(default_factory=Ranks)
    tainted: bool = False  # a method left something in the process that cannot be put back
    executed: Executed = field(default_factory=Executed)  # of what the next record tells

    def notice(self, message: str) -> None:
        """A line for the person at the terminal."""
        self.emit({"type": "notice", "cell": self.run.cell, "message": message})

    def ran(self, how: Executed) -> None:
        """Hears how the network of the next record was really run."""
        self.executed = how

    def envelope(self, **more: Any) -> dict[str, Any]:
        """Circumstances of a record: they may differ between two runs whose bodies are equal."""
        seconds = time.time() - self.started
        return {
            "started": self.started,
            "finished": time.time(),
            "seconds": seconds,
            "gpu_hours": self.ranks.size * seconds / 3600 if self.device.type == "cuda" else 0.0,
            "attempt": self.claim.attempt,
            "host": platform.node(),
            "device": _device_name(self.device),
            "threads": torch.get_num_threads(),
            "ranks": self.ranks.size,
            **self.executed.told(),
            "memory_bytes": _peak_memory(self.device),
            **surroundings.environment(),
            **more,
        }


class Superseded(Exception):
    """Another attempt has taken this stage over; nothing more is written."""

    def __init__(self) -> None:
        super().__init__("superseded by a later attempt; stopped without writing")


def present(run: Run, kind: str, step: int, evaluation: str, code: str) -> dict[str, Any] | None:
    """The body of a record that this code made already, here or in another process meanwhile."""
    return next(
        (
            record.body
            for record in run.records(kind)
            if (record.step, record.evaluation) == (step, evaluation)
            and record.body["code"]["evaluation"] == code
        ),
        None,
    )


def put(stage: Stage, body: dict[str, Any], evaluation: str, **more: Any) -> None:
    """Keep a record of an evaluation, a selection or an illustration, with `more` in its envelope. Raises Superseded when the
    claim is lost."""
    if not stage.claim.still_mine():
        raise Superseded
    envelope = stage.envelope(evaluation_code=provenance.measuring_code(body["kind"]), **more)
    stage.run.put_record(body["kind"], body["step"], body, envelope, evaluation=evaluation)


def put_tiles(run: Run, shown: Tiles) -> dict[str, Any]:
    """Keep a picture with the record; its JSON names the file, the tile's side in pixels, and what each tile is.

    Tiles are halved until the picture fits the limit of a fact: 96 of 256 pixels would be 15 MB.
    """
    images = shown.images
    data = grid_png(images)
    while len(data) > FACT_LIMIT and images.shape[-1] > 1:
        images = halved(images)
        data = grid_png(images)
    name = run.facts.put(data, "png")
    return {"file": name, "tile": int(images.shape[-1]), "rows": shown.rows, "columns": shown.columns}


def context(stage: Stage, data: Dataset, step: int) -> dict[str, Any]:
    """What every record body begins with."""
    code = stage.run.info()["code"]
    name = vaes.named(stage.settings["dataset"])
    return {
        "format": 1,
        "cell": stage.run.cell,
        "run": stage.run.run,
        "settings": stage.settings,
        "code": {component: entry["digest"] for component, entry in code.items()},
        "step": step,
        "images_seen": None if "external" in stage.settings else step * int(stage.settings["train"]["batch"]),
        "data_sha256": data.sha256(),
        **({} if name is None else {"vae": vaes.facts(name)}),
    }


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else f"cpu ({os.cpu_count()} cores)"


def _peak_memory(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
