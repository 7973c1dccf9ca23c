"""What two spawned ranks do in the tests, in processes of their own: every method's gradients, and whole stages of a cell."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import torch

from ltbench import plugins
from ltbench.conformance.suite import toy
from ltbench.conformance.suite.subject import Subject
from ltbench.distributed import Ranks, from_environment, join
from ltbench.methods import Unsupported
from ltbench.trainer import Trainer

ROOT = Path(__file__).resolve().parents[1]
CASES = [(name, pipeline) for name in plugins.find("methods") for pipeline in toy.NETWORKS]
STEPS = 3
MICRO = 4  # a rank owns two local batches of 4: two micro-batches, of which the first exchanges nothing
BATCH = 16


def launch(
    action: str, *words: object, size: int = 2, env: dict[str, str] | None = None
) -> list[subprocess.Popen]:
    """Start `size` ranks of this file; each prints one JSON line."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    shared = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "MASTER_ADDR": "127.0.0.1",
        **(env or {}),
    }
    shared |= {"MASTER_PORT": str(port), "WORLD_SIZE": str(size), "HF_HUB_OFFLINE": "1"}
    return [
        subprocess.Popen(
            [sys.executable, __file__, action, *map(str, words)],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(size)
    ]


def answers(ranks: list[subprocess.Popen], seconds: float = 120) -> list[Any]:
    """What each rank printed last; raises with its errors where it failed."""
    said = [rank.communicate(timeout=seconds) for rank in ranks]
    for rank, (_, err) in zip(ranks, said, strict=True):
        assert rank.returncode == 0, err[-4000:]
    return [json.loads(out.splitlines()[-1]) for out, _ in said]


def trained(name: str, pipeline: str, ranks: Ranks) -> dict[str, Any] | None:
    """First gradients and state after a few clipped steps of a method; None where it does not support the pipeline."""
    torch.set_num_threads(1)
    try:
        parts = Subject(plugins.get("methods", name), pipeline).parts(batch=BATCH, clip_norm=0.5, dropout=0.1)
    except Unsupported:
        return None
    trainer = Trainer(parts, MICRO, 1, ranks=ranks)
    trainer.advance()
    gradients = {key: p.grad.clone() for key, p in trainer.named.items() if p.grad is not None}
    for _ in range(STEPS - 1):
        trainer.advance()
    tensors, state = trainer.state()
    return {"gradients": gradients, **tensors, "points": state["curve"]["points"]}


def compare(folder: Path) -> None:
    """Save what every method gives on this rank."""
    ranks, _ = join(from_environment(), torch.device("cpu"))
    found = {f"{name}/{pipeline}": trained(name, pipeline, ranks) for name, pipeline in CASES}
    torch.save(found, folder / f"rank{ranks.rank}.pt")
    ranks.close()
    print(json.dumps(len(found)))


def job(store: str, scratch: str, cell: str, run: str, stage: str, options: str, plugin_folder: str) -> None:
    """One stage, as srun would call it; with STOP_AT, rank 1 alone is asked to stop once that step is reached."""
    if plugin_folder:
        plugins.use([Path(plugin_folder)])
    from ltbench.job import run_job

    asked = [0]

    def stop() -> bool:
        asked[0] += 1
        return os.environ["RANK"] == "1" and asked[0] > int(os.environ.get("STOP_AT", "1000000"))

    result = run_job(store, scratch, cell, run, stage, json.loads(options), stop=stop)
    print(json.dumps(result), flush=True)
    if result["outcome"] == "failed":
        os._exit(0)


if __name__ == "__main__":
    if sys.argv[1] == "compare":
        compare(Path(sys.argv[2]))
    else:
        job(*sys.argv[2:])
