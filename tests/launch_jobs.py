"""A stand-in for `ltbench.job`: every label of a stage is a behaviour. Cells are named after what they do."""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
import time
from pathlib import Path


def run_job(store, scratch, cell, run, stage, options, on_event, stop):
    """Do what the cell's name says: `ok`, `crash`, `exit`, `sysexit`, `raise`, `nan`, `hang`, `held`, `flood`, ..."""
    on_event({"type": "claimed", "cell": cell, "stage": stage, "run": "r" * 12, "attempt": 1})
    mark(scratch, cell, stage, "start")
    behaviour = cell.partition("-")[0]
    result = globals()[f"do_{behaviour}"](Path(scratch), cell, stage, options, on_event, stop)
    mark(scratch, cell, stage, result["outcome"])
    return result


def mark(scratch, cell, stage, what):
    """Append one line to the diary that the tests read."""
    with (Path(scratch) / "diary.jsonl").open("a") as file:
        line = {"cell": cell, "stage": stage, "what": what, "pid": os.getpid(), "time": time.time()}
        file.write(json.dumps(line) + "\n")


def do_ok(scratch, cell, stage, options, on_event, stop):
    steps = options.get("steps", 3)
    for step in range(1, steps + 1):
        if stop():
            return {"outcome": "preempted", "message": f"stopped at step {step}"}
        time.sleep(options.get("pause", 0.0))
        progress = {"type": "progress", "cell": cell, "stage": stage, "step": step, "total": steps}
        on_event({**progress, "loss": 1.0 / step, "images_per_s": 100.0})
    return {"outcome": "done"}


def do_crash(scratch, cell, stage, options, on_event, stop):
    on_event({"type": "progress", "cell": cell, "stage": stage, "step": 7, "total": 9})
    ctypes.string_at(0)


def do_exit(*_):
    print("last words")
    os._exit(5)


def do_sysexit(*_):
    sys.exit("enough")


def do_kill(*_):
    os.kill(os.getpid(), 9)


def do_eat(*_):
    return {"outcome": "done", "message": str(len(bytearray(b"1") * (1 << 30)))}


def do_raise(*_):
    raise ValueError("a bug of the job")


def do_nan(*_):
    return {"outcome": "failed", "cause": "nan", "message": "the loss is nan at step 4"}


def do_milestone(scratch, cell, stage, options, on_event, stop):
    if stage.startswith("train"):
        on_event({"type": "milestone", "cell": cell, "step": 2})
        return {"outcome": "failed", "cause": "nan", "message": "the loss is nan at step 3"}
    return {"outcome": "done"}


def do_meet(scratch, cell, stage, options, on_event, stop):
    """Done once the other cell has begun as well: not by the same worker."""
    for _ in range(6000):
        started = [line for line in (scratch / "diary.jsonl").read_text().splitlines() if '"start"' in line]
        if len({json.loads(line)["cell"] for line in started}) == 2:
            return do_ok(scratch, cell, stage, options, on_event, stop)
        time.sleep(0.05)
    return {"outcome": "failed", "cause": "code", "message": "alone"}


def do_hang(scratch, cell, stage, options, on_event, stop):
    while not stop():
        time.sleep(0.01)
    return {"outcome": "preempted", "message": "asked to stop"}


def do_deaf(*_):
    while True:
        ctypes.PyDLL(None).sleep(60)  # holds the interpreter lock: no thread of Python runs beside it


def do_held(scratch, cell, stage, options, on_event, stop):
    count = scratch / f"{cell}.count"
    seen = int(count.read_text()) if count.exists() else 0
    count.write_text(str(seen + 1))
    if seen < options.get("held", 1):
        return {"outcome": "held", "owner": "other-host pid 42", "attempt": 3, "age": 12.0}
    return {"outcome": "done"}


def do_flood(*_):
    for _ in range(200):
        print("x" * 9999)
        os.write(2, b"y" * 9999 + b"\n")
    print('{"type": "result", "outcome": "forged"}')
    return {"outcome": "done"}


def do_fork(scratch, cell, stage, options, on_event, stop):
    child = os.fork()
    if child:
        (scratch / "child.pid").write_text(str(child))
    return {"outcome": "done"}


def do_look(scratch, *_):
    """Is the child that `fork` left behind over? (Nobody waits for it, so it stays in the table as a zombie.)"""
    stat = Path("/proc", (scratch / "child.pid").read_text(), "stat")
    for _ in range(20_000):
        if stat.read_text().rpartition(")")[2].split()[0] == "Z":
            return {"outcome": "done", "message": "over"}
        time.sleep(0.01)
    return {"outcome": "done", "message": "it runs on"}


def do_children(scratch, cell, stage, options, on_event, stop):
    child = subprocess.Popen(["sleep", "300"])
    (scratch / "child.pid").write_text(str(child.pid))
    os._exit(1)


def do_stdin(*_):
    return {"outcome": "done", "message": repr(sys.stdin.read())}


def do_full(*_):
    from ltbench.errors import EnvironmentProblem

    raise EnvironmentProblem("the store's disk is full", "free 3 GB")


def do_rank(scratch, cell, stage, options, on_event, stop):
    """Rank 1 does what the cell's name says next (`rank-kill`); the others wait until they are stopped."""
    rank, what = int(os.environ["RANK"]), cell.split("-")[1]
    (scratch / f"{cell}.{rank}").write_text(os.environ["MASTER_PORT"] + " of " + os.environ["WORLD_SIZE"])
    if rank == 1 or what == "ok":
        return globals()[f"do_{what}"](scratch, cell, stage, options, on_event, stop)
    while not stop():
        time.sleep(0.01)
    return {"outcome": "preempted", "message": "stopped"}


def do_peer(scratch, cell, stage, options, on_event, stop):
    """Rank 1 fails by itself; rank 0, told of it, answers first."""
    if os.environ["RANK"] == "0":
        return {
            "outcome": "failed",
            "cause": "killed",
            "message": "rank 1 is gone",
            "peer": True,
            "retire": True,
        }
    time.sleep(0.3)
    return {"outcome": "failed", "cause": "oom", "message": "too large", "peer": False, "retire": True}


def do_env(scratch, cell, stage, options, on_event, stop):
    told = {name: os.environ.get(name) for name in ("OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")}
    return {"outcome": "done", "message": json.dumps(told)}
