"""Ranks in forks of the test: what they do there comes back by pickle through a file of ours."""

from __future__ import annotations

import os
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ltbench import plugins
from ltbench.children import wait_or_kill
from ltbench.conformance.suite import toy
from ltbench.conformance.suite.subject import Subject
from ltbench.distributed import Ranks, from_environment, join
from ltbench.methods import Unsupported
from ltbench.trainer import Trainer
from tests.ports import free_ports

CASES = [(name, pipeline) for name in plugins.find("methods") for pipeline in toy.NETWORKS]
# A rank may hold no label at all where the other holds some; images are moved and passes are made one after another.
CROSSED = [("ccua", "ddpm"), ("cbdm", "sit"), ("coral", "ddpm")]
AXES: dict[str, Any] = {"label_drop": 0.5, "label_drop_mode": "batch", "augment": "ada", "passes": "serial"}
STEPS = 3
MICRO = 4  # a rank owns two local batches of 4: two micro-batches, of which the first exchanges nothing
BATCH = 16


def in_ranks(folder: Path, work: Callable[[int], Any], size: int = 2, seconds: float = 400) -> list[Any]:
    """`work(rank)` in one fork per rank, under torchrun's environment; what each returned, or its signal as a negative
    number. Raises where a fork raised."""
    folder.mkdir(parents=True, exist_ok=True)
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_ports(1)[0]), "WORLD_SIZE": str(size)}
    pids = [_fork(folder, work, rank, shared) for rank in range(size)]
    end, found = time.monotonic() + seconds, []
    codes = [wait_or_kill(pid, max(0.1, end - time.monotonic())) for pid in pids]
    for rank, code in enumerate(codes):
        assert code is not None, f"rank {rank} did not end within {seconds:g} s"
        assert code <= 0, (folder / f"{rank}.error").read_text()
        found.append(torch.load(folder / f"{rank}.pt", weights_only=False) if code == 0 else code)
    return found


def _fork(folder: Path, work: Callable[[int], Any], rank: int, shared: dict[str, str]) -> int:
    pid = os.fork()
    if pid:
        return pid
    try:
        os.environ.update({**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)})
        torch.save(work(rank), folder / f"{rank}.pt")
    except BaseException:
        (folder / f"{rank}.error").write_text(traceback.format_exc())
        os._exit(1)
    os._exit(0)


def trained(name: str, pipeline: str, ranks: Ranks, **axes: Any) -> dict[str, Any] | None:
    """First gradients and state after a few clipped steps of a method; None where it does not support the pipeline."""
    torch.set_num_threads(1)
    try:
        subject = Subject(plugins.get("methods", name), pipeline)
        parts = subject.parts(batch=BATCH, clip_norm=0.5, dropout=0.1, **axes)
    except Unsupported:
        return None
    trainer = Trainer(parts, MICRO, 1, ranks=ranks)
    trainer.advance()
    gradients = {key: p.grad.clone() for key, p in trainer.named.items() if p.grad is not None}
    for _ in range(STEPS - 1):
        trainer.advance()
    tensors, state = trainer.state()
    return {"gradients": gradients, **tensors, "points": state["curve"]["points"]}


def all_trained(ranks: Ranks) -> dict[str, Any]:
    """What every method gives, and some of them under axes that cross ranks."""
    found = {f"{name}/{pipeline}": trained(name, pipeline, ranks) for name, pipeline in CASES}
    crossed = {
        f"{name}/{pipeline}/crossed": trained(name, pipeline, ranks, **AXES) for name, pipeline in CROSSED
    }
    return {**found, **crossed}


def all_methods(_rank: int) -> dict[str, Any]:
    """The same on this rank: one pair of processes tests them all."""
    ranks, _ = join(from_environment(), torch.device("cpu"))
    found = all_trained(ranks)
    ranks.close()
    return found
