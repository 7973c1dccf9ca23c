"""Several processes of one node that train one cell: who they are, and how they agree.

A rank owns whole local batches, torch's DistributedDataParallel averages gradients, and everything that decides what happens
next (a stop, a loss that is not finite) is agreed on before anybody acts on it. A rank that fails says why in the key-value
store of the group, so that the others, whose next exchange breaks off, can name the cause.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed import (
    PrefixStore,  # pyright: ignore[reportPrivateImportUsage]
    Store,  # pyright: ignore[reportPrivateImportUsage]
    TCPStore,  # pyright: ignore[reportPrivateImportUsage]
)
from torch.nn.parallel import DistributedDataParallel

from ltbench.errors import EnvironmentProblem, LtbenchError, UsageError

JOIN = 300.0  # seconds to wait for the other ranks at the start
PATIENCE = 1800.0  # seconds that one exchange may take: the leader may be writing a checkpoint meanwhile
LAST_WORDS = 3.0  # seconds to wait for whoever failed to say why
PORTS = (20000, 40000)  # first, and how many: where the ranks of a SLURM step meet unless MASTER_PORT says so

ONE_NODE = "several processes train a cell on one node only: ask for one node (--nodes=1), or for fewer ranks"


@dataclass(frozen=True)
class World:
    """A rank's place, 0 <= rank < size, and where the ranks meet."""

    rank: int
    size: int
    address: str
    port: int


def from_environment(env: Mapping[str, str] | None = None) -> World | None:
    """This process's place as torchrun (RANK, LOCAL_RANK, WORLD_SIZE, MASTER_ADDR, MASTER_PORT) or srun (SLURM_PROCID,
    SLURM_LOCALID, SLURM_NTASKS) tell it; None for a process of its own.

    Raises UsageError for ranks on more than one node and for variables that contradict each other.
    """
    env = os.environ if env is None else env
    if "WORLD_SIZE" in env:
        names = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
        nodes = 1 if env.get("LOCAL_WORLD_SIZE", env["WORLD_SIZE"]) == env["WORLD_SIZE"] else 2
    else:
        tasks = "SLURM_STEP_NUM_TASKS" if "SLURM_STEP_NUM_TASKS" in env else "SLURM_NTASKS"
        names = ("SLURM_PROCID", "SLURM_LOCALID", tasks)
        if any(name not in env for name in names):
            return None
        nodes = int(env.get("SLURM_STEP_NUM_NODES", env.get("SLURM_NNODES", "1")))
    rank, local, size = (_number(env, name) for name in names)
    if size == 1:
        return None
    if nodes > 1 or rank != local:
        raise UsageError(f"{names[2]}={size} ranks, rank {rank} is number {local} of its node: {ONE_NODE}")
    if not 0 <= rank < size:
        raise UsageError(f"{names[0]} is {rank}, which is no rank of {names[2]}={size}")
    port = int(env["MASTER_PORT"]) if "MASTER_PORT" in env else _port(env)
    return World(rank, size, env.get("MASTER_ADDR", "127.0.0.1"), port)


def _number(env: Mapping[str, str], name: str) -> int:
    try:
        return int(env[name])
    except (KeyError, ValueError):
        said = f"is '{env[name]}'" if name in env else "is not set"
        raise UsageError(f"{name} {said}; it must be a whole number where ranks are launched") from None


def _port(env: Mapping[str, str]) -> int:
    """The same for all ranks of a step, another one for other jobs on the node."""
    job, step = int(env.get("SLURM_JOB_ID", "0")), env.get("SLURM_STEP_ID", "0")
    return PORTS[0] + (job * 101 + (int(step) if step.isdigit() else 0)) % PORTS[1]


def device_of(world: World, device: torch.device) -> torch.device:
    """The GPU of a rank: its own among those it sees, or the only one it sees. CPU stays CPU."""
    if device.type != "cuda" or device.index is not None:
        return device
    seen = torch.cuda.device_count()
    if 1 < seen <= world.rank:
        raise EnvironmentProblem(
            f"{world.size} ranks, but only {seen} GPUs are visible", "ask for a GPU per rank"
        )
    mine = torch.device("cuda", world.rank if seen > 1 else 0)
    torch.cuda.set_device(mine)
    return mine


class PeerFailed(LtbenchError):
    """Another rank failed first: its cause (as in the store's failures) and its message. `silent`: it could not say why."""

    def __init__(self, cause: str, message: str, *, silent: bool = False) -> None:
        super().__init__(message)
        self.cause, self.silent = cause, silent


class Ranks:
    """One process that is all there is. `Joined` has the same methods for several."""

    rank, size = 0, 1

    @property
    def leads(self) -> bool:
        """Whether this rank claims, writes and reports for all."""
        return self.rank == 0

    def shards(self, total: int) -> range:
        """The local batches of a global batch that this rank owns. Raises UsageError where they cannot be shared evenly."""
        if total % self.size:
            allowed = ", ".join(str(n) for n in range(1, total + 1) if total % n == 0)
            raise UsageError(
                f"{self.size} ranks cannot share {total} local batches evenly",
                f"allowed numbers of ranks: {allowed}; or change train.local_batch",
            )
        own = total // self.size
        return range(self.rank * own, (self.rank + 1) * own)

    def wrap(self, objective: nn.Module) -> nn.Module:
        """The module to call: after its backward, gradients are means over the ranks."""
        return objective

    def alone(self, model: nn.Module) -> AbstractContextManager[Any]:
        """Around forward and backward of a micro-batch after which nothing is exchanged yet."""
        return nullcontext()

    def any(self, *flags: bool) -> tuple[bool, ...]:
        """Each flag: whether it is set on some rank."""
        return flags

    def worst(self, flag: Tensor) -> Tensor:
        """The largest value of a tensor over the ranks, where it lies: on a GPU the host does not wait."""
        return flag

    def names(self, known: Sequence[str], mine: Iterable[str]) -> Sequence[str]:
        """`known`, and whatever name some rank has beside; the same on every rank."""
        return list(mine)

    def sum(self, values: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
        """Tensors of equal shape, summed over the ranks; one of `names` that a rank lacks counts as zero there."""
        return dict(values)

    def gather(self, value: Any) -> list[Any]:
        """Everybody's value, by rank."""
        return [value]

    def tell(self, value: Any) -> Any:
        """The leader's value, on every rank."""
        return value

    def first_failure(self, error: BaseException, cause: str, message: str) -> PeerFailed | None:
        """None where nobody failed before this rank (the others are told), else who did and of what."""
        return None

    def close(self) -> None:
        """Leave the group."""


class Joined(Ranks):
    """A rank of several, after the others were met. gloo carries what is on the CPU, NCCL what is on a GPU."""

    def __init__(self, world: World, device: torch.device) -> None:
        self.rank, self.size, self.device = world.rank, world.size, device
        # All ranks are on this node, whatever its name resolves to.
        for name in ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME"):
            os.environ.setdefault(name, "lo0" if sys.platform == "darwin" else "lo")
        try:
            self._store = _store(world)
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo",
                store=PrefixStore("group", self._store),
                rank=world.rank,
                world_size=world.size,
                timeout=timedelta(seconds=PATIENCE),
            )
        except (dist.DistError, RuntimeError) as error:
            raise EnvironmentProblem(
                f"rank {world.rank} of {world.size} did not meet the others at {world.address}:{world.port}: "
                f"{str(error).splitlines()[0]}"
            ) from error
        self._refuse_shared_gpu()

    def _refuse_shared_gpu(self) -> None:
        if self.device.type != "cuda":
            return
        mine = str(getattr(torch.cuda.get_device_properties(self.device), "uuid", self.device))
        if len(set(self.gather(mine))) < self.size:
            raise EnvironmentProblem(
                f"{self.size} ranks do not have a GPU each: NCCL refuses to share one",
                "ask for a GPU per rank, for fewer ranks, or for --device cpu",
            )

    def wrap(self, objective: nn.Module) -> nn.Module:
        # The objective, not the network: a method's own parameters (REPA's projector) must be averaged too.
        return DistributedDataParallel(objective)

    def alone(self, model: nn.Module) -> AbstractContextManager[Any]:
        assert isinstance(model, DistributedDataParallel), "wrap() made it"
        return model.no_sync()

    def any(self, *flags: bool) -> tuple[bool, ...]:
        told = torch.tensor(flags, dtype=torch.uint8)
        dist.all_reduce(told, dist.ReduceOp.MAX)
        return tuple(bool(flag) for flag in told)

    def worst(self, flag: Tensor) -> Tensor:
        dist.all_reduce(flag, dist.ReduceOp.MAX)
        return flag

    def names(self, known: Sequence[str], mine: Iterable[str]) -> Sequence[str]:
        new = sorted(set(mine) - set(known))
        if not self.any(bool(new))[0]:
            return known
        return sorted({*known, *(name for each in self.gather(new) for name in each)})

    def sum(self, values: Mapping[str, Tensor], names: Sequence[str]) -> dict[str, Tensor]:
        like = next(iter(values.values()))
        stacked = torch.stack([values.get(name, torch.zeros_like(like)) for name in names])
        dist.all_reduce(stacked)
        return dict(zip(names, stacked, strict=True))

    def gather(self, value: Any) -> list[Any]:
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def tell(self, value: Any) -> Any:
        told = [value]
        dist.broadcast_object_list(told, src=0, device=torch.device("cpu"))
        return told[0]

    def first_failure(self, error: BaseException, cause: str, message: str) -> PeerFailed | None:
        """A broken exchange is nobody's own failure: then whoever failed is waited for, and missed by name if it is silent."""
        try:
            if not _is_broken_exchange(error):
                mine = f"{self.rank}\n{cause}\n{message}"
                first = self._store.compare_set("failed", "", mine).decode()
                return None if first == mine else _told(first)
            return self._wait_for_words()
        except (dist.DistError, RuntimeError):  # the store went with the leader, which keeps it
            return PeerFailed("killed", "rank 0 ended without a word", silent=True)

    def _wait_for_words(self) -> PeerFailed:
        self._store.set(f"alive/{self.rank}", "")
        end = time.monotonic() + LAST_WORDS
        while time.monotonic() < end:
            if self._store.check(["failed"]):
                return _told(self._store.get("failed").decode())
            time.sleep(0.05)
        gone = [str(rank) for rank in range(self.size) if not self._store.check([f"alive/{rank}"])]
        who = f"rank{'s' * (len(gone) > 1)} {', '.join(gone)}" if gone else "the exchange between ranks"
        return PeerFailed("killed", f"{who} ended without a word", silent=True)

    def close(self) -> None:
        dist.destroy_process_group()


def _is_broken_exchange(error: BaseException) -> bool:
    # gloo raises a plain RuntimeError that names its own source file.
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and "/gloo/" in str(error))


def _told(words: str) -> PeerFailed:
    rank, cause, message = words.split("\n", 2)
    return PeerFailed(cause, f"rank {rank}: {message}")


_MET: dict[tuple[str, int], tuple[TCPStore, int]] = {}  # the store at a place, and how often it was used


def _store(world: World) -> Store:
    """A key-value store of this meeting. A server of this process stays for the next meeting at the same place: a rank that
    is early would otherwise meet the old one just before it closes."""
    place = (world.address, world.port)
    if place not in _MET:
        _MET.clear()
        limit = timedelta(seconds=JOIN)
        server = TCPStore(world.address, world.port, world.size, world.rank == 0, timeout=limit)
        _MET[place] = (server, 0)
    server, used = _MET[place]
    _MET[place] = (server, used + 1)
    return PrefixStore(f"meeting {used}", server)


def join(world: World | None, device: torch.device) -> tuple[Ranks, torch.device]:
    """The group once all its ranks have come, and this rank's own device; a group of one for None.

    Raises EnvironmentProblem where the ranks do not meet or lack a GPU each.
    """
    if world is None:
        return Ranks(), device
    mine = device_of(world, device)
    return Joined(world, mine), mine
