"""A real SLURM for one test: own ports, folders, munge key and socket, pretend GPUs, and nothing left when it ends.

Several worlds live side by side; nothing of the machine's own SLURM or munge is touched. It runs as root on loopback, without
accounting (sacct answers nothing), with a preemptable partition `low` and a preempting one `high`.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from tests.ports import free_ports

TOOLS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "squeue", "scontrol", "scancel")
MARK = "LTBENCH_SLURM_WORLD"  # in the environment of everything a world has started
UP = 120.0  # seconds that the nodes may take to report
STARTS = 3  # tries: another program can take a port between our look and the daemon's
CONFIG = """
ClusterName=ltbench
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
CommunicationParameters=NoCtldInAddrAny,NoInAddrAny
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=cred_expire={requeue_hold},socket={folder}/munge.socket
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin={task}
SelectType=select/cons_tres
SelectTypeParameters={select}
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
SlurmdParameters=config_overrides
SlurmctldParameters={parameters}
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobAcctGatherType={gather}
JobAcctGatherFrequency=task=1
JobAcctGatherParams={gather_params}
AccountingStorageType=accounting_storage/none
MaxArraySize={max_array}
MaxJobCount=20000
MinJobAge={min_job_age}
KillWait={kill_wait}
SlurmdTimeout=300
MessageTimeout=60
TCPTimeout=30
BatchStartTimeout=120
ReturnToService=2
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
GresTypes=gpu
{nodes}
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 GraceTime={grace} MaxTime=INFINITE
PartitionName=high Nodes=ALL PriorityTier=10 PreemptMode=OFF MaxTime=INFINITE
"""


@dataclass
class SlurmWorld:
    """A cluster of `nodes` pretend nodes n0, n1 ... with `cpus` and `gpus` each.

    user_signal: whether a preempted job gets its warning signal at once (preempt_send_user_signal). grace, kill_wait, min_job_age:
    seconds, as slurm.conf means GraceTime, KillWait and MinJobAge. requeue_hold: how long a requeued job is kept from starting,
    about; what is on the way between the daemons must not take longer. memory: who kills a job that has more than it asked for: nobody,
    "slurm", which looks once a second, or the "kernel", by control groups (version 1).
    Everything that could run out on a machine that is only slow is long.
    """

    nodes: int = 2
    cpus: int = 4
    gpus: int = 2
    user_signal: bool = True
    max_array: int = 5
    grace: int = 20
    kill_wait: int = 5
    min_job_age: int = 3600
    requeue_hold: int = 60
    memory: str = ""
    folder: Path = field(init=False)
    _daemons: dict[str, subprocess.Popen[bytes]] = field(init=False, default_factory=dict)

    @property
    def conf(self) -> Path:
        return self.folder / "slurm.conf"

    @property
    def env(self) -> dict[str, str]:
        """What a process needs in its environment for sbatch and the others to reach this cluster."""
        return {"SLURM_CONF": str(self.conf), MARK: str(self.folder)}

    # --- what a test does with it ------------------------------------------------------------------------------------

    def call(
        self, *words: object, check: bool = True, cwd: Path | None = None, env: dict[str, str] | None = None
    ) -> str:
        """Run a command in the cluster's environment and `env`; its standard output, stripped."""
        done = subprocess.run(
            [str(word) for word in words],
            env=_clean() | self.env | (env or {}),
            cwd=cwd,
            capture_output=True,
            text=True,
            timeout=120,
        )
        assert not check or done.returncode == 0, f"{words}: {done.stderr}"
        return done.stdout.strip()

    def states(self) -> dict[str, str]:
        """Every job element that SLURM still knows: {"12_3" or "12": "RUNNING"}."""
        lines = self.call("squeue", "-h", "-r", "-t", "all", "-o", "%i %T").splitlines()
        return dict(line.split() for line in lines)

    def show(self, job: str) -> dict[str, str]:
        """`scontrol show job` of one job as fields."""
        words = self.call("scontrol", "-o", "show", "job", job).split()
        return dict(word.partition("=")[::2] for word in words if "=" in word)

    def until(self, what: Callable[[], object], seconds: float = 900.0) -> None:
        """Wait until `what()` is true, however slow the machine. Fails with the queue and the end of the controller's log."""
        deadline = time.monotonic() + seconds
        while not what():
            if time.monotonic() > deadline:
                pytest.fail(f"not within {seconds:.0f} s\n{self.describe()}")
            time.sleep(0.2)

    def idle(self) -> bool:
        """Whether no job waits or runs."""
        return not self.call("squeue", "-h", "-o", "%i")

    def describe(self) -> str:
        """The queue and the ends of the logs, for a failed test."""
        logs = [f"== {path.name}\n{_tail(path)}" for path in sorted(self.folder.glob("*.log"))]
        return "\n".join([self.call("squeue", "-r", "-t", "all", check=False), *logs])

    def kill_node(self, name: str) -> None:
        """A node that is gone: its slurmd, and every process of its jobs, end without a word."""
        daemon = self._daemons.pop(name)
        daemon.kill()
        daemon.wait()
        for pid in self._mine():
            if _variable(pid, "SLURMD_NODENAME") == name or f"-N {name}" in _command(pid):
                _kill(pid)

    def start_node(self, name: str) -> None:
        """Start (again) a node's slurmd."""
        self._spawn(name, "slurmd", "-D", "-N", name)

    # --- life ---------------------------------------------------------------------------------------------------------

    def start(self) -> SlurmWorld:
        """Bring the cluster up. Raises RuntimeError with the logs."""
        for attempt in range(STARTS):
            self.folder = Path(tempfile.mkdtemp(prefix="slurm-", dir="/tmp"))
            self.folder.chmod(0o755)
            try:
                self._start()
            except RuntimeError:
                self.stop()
                if attempt == STARTS - 1:
                    raise
            else:
                return self
        raise AssertionError("the loop returns or raises")

    def _start(self) -> None:
        for name in ("state", *(f"spool-n{index}" for index in range(self.nodes))):
            (self.folder / name).mkdir()
        key = self.folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        self._write_config(free_ports(1 + self.nodes))
        options = {
            "socket": "munge.socket",
            "key-file": "munge.key",
            "pid-file": "munged.pid",
            "log-file": "munged.log",
            "seed-file": "munge.seed",
        }
        self._spawn(
            "munged",
            *("munged", "-F", "--force", "--num-threads=2"),
            *(f"--{name}={self.folder / file}" for name, file in options.items()),
        )
        self._until_up(lambda: (self.folder / "munge.socket").exists())
        self._spawn("slurmctld", "slurmctld", "-D", "-f", str(self.conf))
        for index in range(self.nodes):
            self.start_node(f"n{index}")
        self._until_up(lambda: self.call("sinfo", "-h", "-N", "-p", "low", "-t", "idle", "-o", "%N", check=False).count("n") == self.nodes)  # fmt: skip

    def _write_config(self, ports: list[int]) -> None:
        host = socket.gethostname()
        gres = f"Gres=gpu:a100:{self.gpus}" if self.gpus else ""
        nodes = "\n".join(
            f"NodeName=n{index} NodeHostname={host} NodeAddr=127.0.0.1 Port={ports[1 + index]} CPUs={self.cpus} "
            f"RealMemory=16000 {gres} Feature=pretend"
            for index in range(self.nodes)
        )
        parameters = "preempt_send_user_signal" if self.user_signal else ""
        values = {**vars(self), "nodes": nodes, "host": host, "ports": ports, "parameters": parameters}
        values |= {
            "select": "CR_Core_Memory" if self.memory else "CR_Core",
            "gather": f"jobacct_gather/{'linux' if self.memory == 'slurm' else 'none'}",
            "gather_params": "OverMemoryKill" if self.memory == "slurm" else "",
            "task": f"task/{'cgroup' if self.memory == 'kernel' else 'none'}",
        }
        (self.folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nConstrainRAMSpace=yes\n")
        lines = CONFIG.format(**values).splitlines()
        self.conf.write_text("\n".join(line for line in lines if not line.endswith("=")) + "\n")
        for gpu in range(
            self.gpus
        ):  # CUDA_VISIBLE_DEVICES is set for real device files only: these are like /dev/null
            device = self.folder / f"gpu{gpu}"
            try:
                os.mknod(device, stat.S_IFCHR | 0o666, os.makedev(1, 3))
            except PermissionError:  # a container without CAP_MKNOD
                device.symlink_to("/dev/null")
        files = f"{self.folder}/gpu[0-{self.gpus - 1}]"
        lines = [
            f"NodeName=n{index} Name=gpu Type=a100 File={files}"
            for index in range(self.nodes if self.gpus else 0)
        ]
        (self.folder / "gres.conf").write_text("\n".join(lines) + "\n")

    def _spawn(self, name: str, program: str, *options: str) -> None:
        out = (self.folder / f"{name}-output.log").open("ab")
        with out:
            self._daemons[name] = subprocess.Popen(
                [_tool(program), *options],
                env=_clean() | self.env,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                start_new_session=True,
                preexec_fn=_end_with_parent,
            )

    def _until_up(self, what: Callable[[], object]) -> None:
        deadline = time.monotonic() + UP
        while not what():
            dead = [name for name, daemon in self._daemons.items() if daemon.poll() is not None]
            if dead or time.monotonic() > deadline:
                raise RuntimeError(
                    f"SLURM does not start ({', '.join(dead) or 'too slow'})\n{self.describe()}"
                )
            time.sleep(0.1)

    def stop(self) -> None:
        """End everything this world has started, whatever became of it, and remove its folder."""
        for daemon in self._daemons.values():
            daemon.kill()
        for daemon in self._daemons.values():
            daemon.wait()
        self._daemons.clear()
        deadline = time.monotonic() + 60
        while (left := self._mine()) and time.monotonic() < deadline:
            for pid in left:
                _kill(pid)
            time.sleep(0.05)
        if self.memory == "kernel":  # slurmd was killed: it left its groups
            for index in range(self.nodes):
                for group, _, _ in os.walk(f"/sys/fs/cgroup/memory/slurm_n{index}", topdown=False):
                    with contextlib.suppress(OSError):
                        os.rmdir(group)
        shutil.rmtree(self.folder, ignore_errors=True)

    def _mine(self) -> list[int]:
        """Processes with this world's mark in their environment, but for this one and its parents."""
        mine = {os.getpid(), os.getppid()}
        pids = [int(path.name) for path in Path("/proc").iterdir() if path.name.isdigit()]
        return [pid for pid in pids if pid not in mine and _variable(pid, MARK) == str(self.folder)]


@contextlib.contextmanager
def slurm_world(**settings: int | bool | str) -> Iterator[SlurmWorld]:
    """A running cluster; skips the test loudly (fails it where LTBENCH_REQUIRE names slurm) without SLURM or root."""
    require_slurm()
    world = SlurmWorld(**settings)  # pyright: ignore[reportArgumentType]
    world.start()
    try:
        yield world
    finally:
        world.stop()


@pytest.fixture
def slurm(monkeypatch) -> Iterator[SlurmWorld]:
    """A cluster with the defaults of `SlurmWorld`, in whose environment this process is."""
    with slurm_world() as world:
        enter(world, monkeypatch)
        yield world


def enter(world: SlurmWorld, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put this process into a cluster's environment, out of whatever allocation it may be in."""
    for name in list(os.environ):
        if name.startswith(("SLURM_", "SBATCH_")):
            monkeypatch.delenv(name)
    for name, value in world.env.items():
        monkeypatch.setenv(name, value)


def require_slurm() -> None:
    """Skip, or fail where LTBENCH_REQUIRE names slurm, on a machine that cannot run a SLURM of its own."""
    missing = [tool for tool in TOOLS if _find(tool) is None]
    if sys.platform == "linux" and os.geteuid() == 0 and not missing:
        return
    lack = f"no {', '.join(missing)}" if missing else "it needs root on Linux"
    message = f"no real SLURM here ({lack}; Debian: apt-get install slurmctld slurmd slurm-client munge): jobs were not tried"
    if "slurm" in os.environ.get("LTBENCH_REQUIRE", "").split(","):
        pytest.fail(message)
    pytest.skip(message)


# --- small things -----------------------------------------------------------------------------------------------------


def _find(tool: str) -> str | None:
    return shutil.which(tool) or shutil.which(tool, path="/usr/sbin:/sbin")


def _tool(name: str) -> str:
    found = _find(name)
    assert found is not None, name
    return found


def _clean() -> dict[str, str]:
    """This process's environment without anything that a SLURM command would read."""
    return {name: value for name, value in os.environ.items() if not name.startswith(("SLURM_", "SBATCH_", "SQUEUE_"))}  # fmt: skip


def _end_with_parent() -> None:
    """A test that is killed takes its daemons along (PR_SET_PDEATHSIG, linux/prctl.h)."""
    ctypes.CDLL(None).prctl(1, int(signal.SIGKILL), 0, 0, 0)


def _variable(pid: int, name: str) -> str | None:
    """A variable of a process's first environment; None where it has none or is gone."""
    try:
        entries = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return None
    prefix = f"{name}=".encode()
    return next((entry[len(prefix) :].decode() for entry in entries if entry.startswith(prefix)), None)


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _kill(pid: int) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _tail(path: Path, size: int = 1500) -> str:
    return path.read_text(errors="replace")[-size:]
