"""What a SLURM cluster will do to the jobs of a profile, asked of its own tools: slow ones once, and none of them heavy."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ltbench.doctor.findings import Finding, Said, call, failure, ok, warning
from ltbench.profiles import CLASSES, Profile, Resources

TOOLS = ("sbatch", "squeue", "scontrol", "scancel", "srun")
SAVE = 60  # seconds that a job should have to save itself
PURGE = 14  # days; checkpoints of a grid that waits longer are gone
UNLIMITED = 10**9  # minutes


@dataclass(frozen=True)
class Cluster:
    """What `scontrol` tells: the configuration, and the fields of every partition and node by name."""

    config: dict[str, str]
    partitions: dict[str, dict[str, str]]
    nodes: dict[str, dict[str, str]]

    def partition(self, asked: Resources) -> str | None:
        """The partition of a job: the first that is named, else the default one."""
        if asked.partition:
            return asked.partition.split(",")[0]
        return next(
            (name for name, fields in self.partitions.items() if fields.get("Default") == "YES"), None
        )

    def members(self, partition: str | None) -> list[dict[str, str]]:
        """The nodes of a partition."""
        return [node for node in self.nodes.values() if partition in node.get("Partitions", "").split(",")]


def look() -> Cluster | None:
    """Ask the controller; None where it does not answer."""
    said = [
        call(["scontrol", "show", "config"]),
        call(["scontrol", "-a", "-o", "show", "partition"]),
        call(["scontrol", "-a", "-o", "show", "node"], 60),
    ]
    if said[0] is None or said[0].code:
        return None
    pairs = [line.split("=", 1) for line in said[0].out.splitlines() if "=" in line]
    config = {key.strip(): value.strip() for key, value in pairs}
    tables = [_table(each.out) if each and not each.code else {} for each in said[1:]]
    return Cluster(config, *tables)


def _table(text: str) -> dict[str, dict[str, str]]:
    """Lines of `KEY=VALUE ...` by the value of their first key."""
    found = {}
    for line in text.splitlines():
        fields = {key: value for key, _, value in (word.partition("=") for word in line.split()) if value}
        if fields:
            found[next(iter(fields.values()))] = fields
    return found


def examine(profile: Profile) -> Iterator[Finding]:
    """Everything about a profile's cluster that can be known without running a job."""
    absent = [tool for tool in TOOLS if shutil.which(tool) is None]
    if absent:
        remedy = "run this on a login node, or load the module that brings SLURM's commands"
        yield failure("slurm", f"not found: {', '.join(absent)}", remedy)
        return
    found = look()
    if found is None:
        said = call(["scontrol", "ping"])
        why = f": {said.reason}" if said else ""
        yield failure("slurm", f"the controller does not answer{why}", "try later, or ask the administrators")
        return
    yield ok(
        "slurm",
        f"SLURM {found.config.get('SLURM_VERSION', '?')}, cluster {found.config.get('ClusterName', '?')}",
    )
    yield from _limits(found, profile)
    yield from _requeue(found, profile)
    yield from _accounting(found)
    for job_class in CLASSES:
        yield from _request(found, profile, profile.resources(job_class), job_class)
    yield from _association(profile)
    yield from _scratch(profile)


def _limits(found: Cluster, profile: Profile) -> Iterator[Finding]:
    largest = _number(found.config.get("MaxArraySize", ""))
    if largest is None:
        yield warning("arrays", "MaxArraySize is not told", "set max_array_size in the profile")
    elif profile.max_array_size is not None and profile.max_array_size > largest:
        remedy = f"set max_array_size to at most {largest}, or leave it away"
        yield failure(
            "arrays", f"max_array_size is {profile.max_array_size}, the cluster's is {largest}", remedy
        )
    else:
        yield ok(
            "arrays",
            f"arrays of up to {profile.max_array_size or largest} elements; larger grids become several",
        )
    parameters = found.config.get("SchedulerParameters", "")
    told = [
        word
        for word in parameters.split(",")
        if re.match(r"max_array_tasks|bf_max_job_(user|array)|max_submit|defer", word)
    ]
    most = _number(found.config.get("MaxJobCount", ""))
    if most is not None and most <= 5000:
        yield warning(
            "arrays",
            f"the whole cluster holds {most} jobs at a time (MaxJobCount)",
            "submit large grids in parts, with --filter",
        )
    else:
        yield ok(
            "arrays",
            f"the cluster holds {most or '?'} jobs at a time" + (f"; {', '.join(told)}" if told else ""),
        )


def _requeue(found: Cluster, profile: Profile) -> Iterator[Finding]:
    config = found.config
    if config.get("JobRequeue") == "0" and not profile.requeue:
        yield warning(
            "requeue",
            "JobRequeue is 0 and the profile does not requeue",
            "set requeue: true, or run submit again after each preemption",
        )
    else:
        yield ok(
            "requeue",
            "jobs ask to be requeued" if profile.requeue else "jobs are not requeued: submit again continues",
        )
    partition = found.partition(profile.resources("training"))
    fields = found.partitions.get(partition or "")
    if fields is None:
        return  # said of the jobs that ask for it
    mode = fields.get("PreemptMode", config.get("PreemptMode", "OFF"))
    if config.get("PreemptType", "preempt/none") == "preempt/none" or mode == "OFF":
        yield ok("preemption", f"jobs in {partition} are not preempted")
        return
    kill, grace = _number(config.get("KillWait", "")) or 0, _number(fields.get("GraceTime", "")) or 0
    said = f"jobs in {partition} can be preempted ({mode}), GraceTime {grace} s, KillWait {kill} s"
    if mode.startswith("CANCEL"):
        yield warning(
            "preemption",
            f"{said}: SLURM does not start them again",
            "run submit again after a preemption, or use --watchdog",
        )
    elif "preempt_send_user_signal" in config.get("SlurmctldParameters", ""):
        yield ok("preemption", f"{said}; they get their warning signal at once")
    else:
        remedy = "ask for SlurmctldParameters=preempt_send_user_signal; until then jobs save at SIGTERM and wait for SLURM to requeue them"
        yield warning("preemption", f"{said}, and get no warning signal before SIGTERM", remedy)
    if grace + kill < SAVE:
        remedy = f"ask for a GraceTime of {SAVE} s, or lower checkpoint_seconds in the spec: a network that takes longer to save loses what came after its last checkpoint"
        yield warning("preemption", f"a preempted job has {grace + kill} s to save itself", remedy)


def _accounting(found: Cluster) -> Iterator[Finding]:
    said = call(["sacct", "-n", "-X", "-S", "now"])
    kept = found.config.get("MinJobAge", "?")
    if said is not None and said.code == 0:
        yield ok("accounting", "sacct answers")
    else:
        why = said.reason if said else "sacct is not here or does not answer"
        yield warning(
            "accounting",
            f"{why}: ended jobs are known for {kept}",
            "nothing: status then tells from the files that jobs write",
        )


def _request(found: Cluster, profile: Profile, asked: Resources, job_class: str) -> Iterator[Finding]:
    """What one class of jobs asks for against its partition."""
    name = found.partition(asked)
    if name is None:
        yield failure(job_class, "there is no default partition", "set partition in the profile")
        return
    for each in (asked.partition or name).split(","):
        yield from _partition(found, asked, each, job_class)
    yield from _nodes(found.members(name), asked, name, job_class)
    said = call(["sbatch", "--test-only"], 60, header(profile, asked) + "true\n")
    yield _tested(said, job_class)


def _partition(found: Cluster, asked: Resources, name: str, job_class: str) -> Iterator[Finding]:
    fields = found.partitions.get(name)
    if fields is None:
        yield failure(
            job_class,
            f"there is no partition '{name}'",
            f"choose one of {', '.join(found.partitions) or '(none is told)'}",
        )
        return
    if fields.get("State", "UP") != "UP":
        yield warning(job_class, f"partition {name} is {fields['State']}", "wait, or choose another")
    limit = _minutes(fields.get("MaxTime", ""))
    if limit is not None and asked.time > limit:
        remedy = (
            f"set time to at most {limit} minutes: longer trainings continue in the next job by themselves"
        )
        yield failure(job_class, f"time is {asked.time} minutes, partition {name} allows {limit}", remedy)
    for key, value in (("AllowAccounts", asked.account), ("AllowQos", asked.qos)):
        allowed = fields.get(key, "ALL")
        if value and allowed != "ALL" and value not in allowed.split(","):
            yield failure(job_class, f"partition {name} does not take {value}", f"choose one of {allowed}")


def _nodes(members: list[dict[str, str]], asked: Resources, name: str, job_class: str) -> Iterator[Finding]:
    """Whether any node of the partition has what a job asks for."""
    if not members:
        return
    types = {kind: most for node in members for kind, most in sorted(gpus(node).items())}
    if asked.gpus and asked.gpu_type and asked.gpu_type not in types:
        there = ", ".join(kind for kind in types if kind) or "none by type"
        yield failure(
            job_class, f"no node of {name} has GPUs of type {asked.gpu_type}", f"choose one of: {there}"
        )
        return
    fitting = [node for node in members if _fits(node, asked)]
    if not fitting:
        largest = max(
            members, key=lambda node: (sum(gpus(node).values()), _number(node.get("CPUTot", "")) or 0)
        )
        has = f"{sum(gpus(largest).values())} GPUs, {largest.get('CPUTot', '?')} cores, {largest.get('RealMemory', '?')} MB"
        features = f", features {largest.get('AvailableFeatures', '')}" if asked.constraint else ""
        wants = f"{asked.gpus} GPUs, {asked.cores} cores" + (f", {asked.memory:g} GB" if asked.memory else "")
        yield failure(
            job_class,
            f"no node of {name} has {wants}: the largest has {has}{features}",
            "ask for less in the profile",
        )
        return
    kinds = ", ".join(f"{most} x {kind or 'GPU'}" for kind, most in types.items())
    yield ok(
        job_class,
        f"{len(fitting)} of {len(members)} nodes of {name} can take a job"
        + (f" (a node has {kinds})" if kinds else ""),
    )


def gpus(node: dict[str, str]) -> dict[str, int]:
    """GPUs of a node by type, "" where it has none: of `gpu:a100:4(S:0-1),gpu:v100:2`."""
    found: dict[str, int] = {}
    for kind, count in re.findall(r"gpu(?::([A-Za-z_][\w.-]*))?:(\d+)", node.get("Gres", "")):
        found[kind] = found.get(kind, 0) + int(count)
    return found


def _fits(node: dict[str, str], asked: Resources) -> bool:
    cards = gpus(node)
    enough = cards.get(asked.gpu_type, 0) if asked.gpu_type else sum(cards.values())
    features = set(node.get("AvailableFeatures", "").split(","))
    plain = asked.constraint if asked.constraint and re.fullmatch(r"[\w.-]+", asked.constraint) else None
    return (
        enough >= asked.gpus
        and (_number(node.get("CPUTot", "")) or 0) >= asked.cores
        and (not asked.memory or (_number(node.get("RealMemory", "")) or 0) >= asked.memory * 1000)
        and (plain is None or plain in features)
    )


def header(profile: Profile, asked: Resources) -> str:
    """The first lines of the script that `submit` sends for such a job, without its array and its logs."""
    from ltbench.launch.slurm import sbatch
    from ltbench.launch.slurm.layout import Submission

    nowhere = Submission(Path("/nonexistent"))
    call = sbatch.Call(print, nowhere.folder, 0)
    text = sbatch.script(call, nowhere, profile, asked, name="ltbench-doctor", indices=[0], environment={})
    left_out = tuple(f"#SBATCH --{name}=" for name in ("array", "output", "error", "comment"))
    shell, *lines = text.splitlines()
    kept = [line for line in lines if line.startswith("#SBATCH ") and not line.startswith(left_out)]
    return "\n".join([shell, *kept, ""])


def _tested(said: Said | None, job_class: str) -> Finding:
    if said is None:
        return warning(
            job_class, "sbatch --test-only did not answer in time", "try again when the cluster is less busy"
        )
    if said.code:
        why = (
            said.reason.removeprefix("sbatch: ").removeprefix("error: ").removeprefix("allocation failure: ")
        )
        return failure(job_class, f"sbatch refuses such a job: {why}", "change what the profile asks for")
    when = re.search(r"to start at (\S+)", said.err + said.out)
    return ok(job_class, f"sbatch takes such a job; it could start at {when[1] if when else '?'}")


def _association(profile: Profile) -> Iterator[Finding]:
    """Accounts and qualities of service, where accounting knows them."""
    user = os.environ.get("USER") or os.environ.get("LOGNAME") or str(os.getuid())
    said = call(["sacctmgr", "-nP", "show", "assoc", f"user={user}", "format=account,qos,maxsubmit"])
    if said is None or said.code:
        return
    rows = [[*line.split("|"), "", ""][:3] for line in said.out.splitlines() if line.strip()]
    accounts = {row[0] for row in rows}
    known = {qos for row in rows for qos in row[1].split(",") if qos}
    for job_class in CLASSES:
        asked = profile.resources(job_class)
        if asked.account and accounts and asked.account not in accounts:
            yield failure(
                job_class,
                f"{user} has no account '{asked.account}'",
                f"choose one of {', '.join(sorted(accounts))}",
            )
        if asked.qos and known and asked.qos not in known:
            yield failure(
                job_class,
                f"{user} may not use qos '{asked.qos}'",
                f"choose one of {', '.join(sorted(known))}",
            )
        if asked.qos:
            yield from _quality(asked, job_class)
    limits = [int(row[2]) for row in rows if row[2].isdigit()]
    if limits:
        yield ok("account", f"{min(limits)} jobs of yours may wait or run at a time: submit sends what fits")


def _quality(asked: Resources, job_class: str) -> Iterator[Finding]:
    said = call(["sacctmgr", "-nP", "show", "qos", f"name={asked.qos}", "format=maxwall"])
    limit = _minutes(said.out.strip()) if said and not said.code else None
    if limit is not None and asked.time > limit:
        yield failure(
            job_class,
            f"time is {asked.time} minutes, qos {asked.qos} allows {limit}",
            f"set time to at most {limit}",
        )


def _scratch(profile: Profile) -> Iterator[Finding]:
    if profile.scratch is not None and not Path(profile.scratch).is_dir():
        yield failure(
            "scratch",
            f"{profile.scratch} (profile) is not there",
            f"mkdir -p {profile.scratch}, or correct the profile",
        )
    if profile.purge_days is None:
        yield warning(
            "scratch",
            "the profile does not say after how many days scratch is purged",
            "set purge_days, or 3650 where nothing is deleted",
        )
    elif profile.purge_days <= PURGE:
        remedy = "keep grids short, or keep milestones elsewhere: what is deleted while a cell waits is trained again"
        yield warning("scratch", f"scratch is purged after {profile.purge_days} days", remedy)
    else:
        yield ok("scratch", f"scratch is purged after {profile.purge_days} days")


def _number(text: str) -> int | None:
    """The number at the beginning of `300 sec`, `1001`; None where there is none."""
    found = re.match(r"\d+", text)
    return int(found[0]) if found else None


def _minutes(text: str) -> int | None:
    """`UNLIMITED`, `1-00:00:00`, `12:00:00`, `30:00`, `30` in minutes; None for what is none of them."""
    if text.upper() in ("UNLIMITED", "INFINITE"):
        return UNLIMITED
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if found is None:
        return None
    days, first, second = (int(part or 0) for part in found.groups()[:3])
    if found[1] is not None or found[4] is not None:
        return days * 1440 + first * 60 + second
    return first  # minutes, or minutes:seconds
