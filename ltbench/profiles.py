"""Cluster profiles: how to reach a cluster and what to ask of it. Strict, and never mixed into a benchmark.

A profile is a YAML file in benchmarks/profiles/, in the user's configuration folder (XDG_CONFIG_HOME, ~/.config, then
ltbench/profiles/), or anywhere by its path. Its keys ask for a job's resources; the sections `training`, `evaluation` and `helper`
take the same keys and win for jobs of that class. benchmarks/profiles/example.yaml explains every key.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import AfterValidator, BeforeValidator, Field, ValidationError

from ltbench.errors import SpecError, UsageError
from ltbench.spec.models import Count, Positive, Strict
from ltbench.spec.problems import nearest, problem, problems_of, tuples
from ltbench.spec.yaml_io import Node, read_yaml

CHECKOUT = Path(__file__).resolve().parents[1]
JobClass = Literal["training", "evaluation", "helper"]
CLASSES: tuple[JobClass, ...] = get_args(JobClass)

_TIME = re.compile(
    r"(?:(?P<days>\d+)-(?P<dh>\d+)(?::(?P<dm>\d+)(?::(?P<ds>\d+))?)?|(?P<h>\d+):(?P<m>\d+):(?P<s>\d+))"
)
_TIME_RULE = "minutes (1440), hours:minutes:seconds (24:00:00), or days-hours:minutes (1-00:00)"
_OURS = {  # raw sbatch options that a key of the profile, or the harness itself, already gives
    "partition": "partition", "account": "account", "qos": "qos", "constraint": "constraint", "time": "time",
    "exclude": "exclude_nodes", "cpus-per-task": "cpus", "mem": "memory_gb", "gres": "gpus", "gpus-per-node": "gpus",
    "array": "at_once", "signal": "signal_seconds", "requeue": "requeue", "no-requeue": "requeue",
    "comment": None, "dependency": None, "job-name": None, "output": None, "error": None, "open-mode": None,
    "ntasks-per-node": None, "nodes": None, "wrap": None, "parsable": None, "kill-on-invalid-dep": None, "export": None,
}  # fmt: skip


def minutes(value: Any) -> Any:
    """A time limit in whole minutes, from any spelling that SLURM reads and nobody misreads. Raises ValueError."""
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise ValueError(f"expects a time: {_TIME_RULE}")
    if isinstance(value, int) or value.isdecimal():
        return int(value)
    found = _TIME.fullmatch(value.strip())
    if found is None:
        raise ValueError(f"cannot be read as a time; allowed: {_TIME_RULE}")
    part = {name: int(text) for name, text in found.groupdict("0").items()}
    if part["s"] or part["ds"]:
        raise ValueError("has seconds; a time limit is whole minutes")
    return part["days"] * 1440 + (part["dh"] + part["h"]) * 60 + part["dm"] + part["m"]


def _one_line(text: str) -> str:
    """Text that goes into a line of the batch script. Raises ValueError for line breaks."""
    if not text.strip() or "\n" in text or "\r" in text:
        raise ValueError("expects one line of text")
    return text


def _expanded(text: str) -> str:
    """A path of this cluster with ~ and variables filled in now. Raises ValueError for a variable that is not set."""
    found = os.path.expanduser(os.path.expandvars(text))
    if "$" in found:
        raise ValueError("names a variable that is not set here")
    if not os.path.isabs(found):
        raise ValueError("expects an absolute path")
    return found


def _raw(options: dict[str, Any]) -> dict[str, Any]:
    for name, value in options.items():
        if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
            raise ValueError(
                f"has '{name}'; options are written as sbatch's long ones, without the dashes: mail-user"
            )
        if name in _OURS:
            remedy = f"use the key {_OURS[name]}" if _OURS[name] else "the harness gives it itself"
            raise ValueError(f"cannot hold '{name}': {remedy}")
        if not isinstance(value, bool | int | str) or (isinstance(value, str) and "\n" in value):
            raise ValueError(f"has a value for '{name}' that is no text, whole number, true or false")
    return options


Line = Annotated[str, AfterValidator(_one_line)]
Minutes = Annotated[int, BeforeValidator(minutes), Field(ge=1, le=525_600)]
Directory = Annotated[str, AfterValidator(_expanded)]
Options = Annotated[dict[str, Any], AfterValidator(_raw)]


class Request(Strict):
    """What one class of jobs asks for; a key that is not given is the profile's own, then the default in `Resources`."""

    partition: Line | None = Field(None, description="sbatch --partition; several: a,b")
    account: Line | None = Field(None, description="sbatch --account")
    qos: Line | None = Field(None, description="sbatch --qos")
    constraint: Line | None = Field(None, description="sbatch --constraint, features of nodes")
    exclude_nodes: tuple[Line, ...] | None = Field(None, description="nodes that get no job")
    gpus: Annotated[int, Field(ge=0, le=64)] | None = Field(
        None, description="GPUs of a job; 0: none; default 1"
    )
    gpu_type: Line | None = Field(None, description="as in --gres=gpu:TYPE:N; default: whatever is free")
    gpu_memory_gb: Positive | None = Field(
        None, description="memory of one GPU; cells that are known to need more are refused"
    )
    bf16: bool | None = Field(None, description="whether the GPUs compute in bfloat16; default true")
    cpus_per_gpu: Count | None = Field(None, description="cores for each GPU; default 4")
    cpus: Count | None = Field(None, description="cores of a job without a GPU; default 4")
    memory_per_gpu_gb: Positive | None = Field(
        None, description="main memory for each GPU; default: the partition's"
    )
    memory_gb: Positive | None = Field(
        None, description="main memory of a job without a GPU; default: the partition's"
    )
    time: Minutes | None = Field(None, description=f"limit of one job: {_TIME_RULE}; default 1440")
    ranks: Count | None = Field(
        None, description="processes (one GPU each) that train one cell together; default 1"
    )
    pack: Count | None = Field(None, description="cells that share one job at the same time; default 1")
    at_once: Count | None = Field(
        None, description="jobs of one array that run at the same time; default: as many as fit"
    )
    sbatch: Options | None = Field(
        None, description="further options of sbatch as they are: {mail-type: FAIL}"
    )


def _nothing() -> Request:
    return Request.model_validate({})


class Profile(Request):
    """A cluster. The keys of `Request` hold for all jobs, the sections for one class each."""

    title: str = Field("", description="one line for people")
    training: Request = Field(default_factory=_nothing, description="jobs that train cells")
    evaluation: Request = Field(
        default_factory=_nothing, description="jobs that sample from a milestone and measure"
    )
    helper: Request = Field(
        default_factory=_nothing, description="jobs that others wait for: data, features of real images"
    )
    scratch: Directory | None = Field(
        None, description="where weights lie, unless --scratch or LTBENCH_SCRATCH says"
    )
    scratch_quota_gb: Positive | None = Field(None, description="what may lie there")
    scratch_quota_files: Count | None = Field(None, description="files that may lie there")
    purge_days: Count | None = Field(
        None, description="days after which the cluster deletes what nobody touched there"
    )
    staging: Line | None = Field(
        None, description="node-local folder, e.g. $TMPDIR/data, that jobs copy LTBENCH_DATA to"
    )
    modules: tuple[Line, ...] = Field((), description="module load ..., in this order")
    setup: tuple[Line, ...] = Field(
        (), description="lines of shell before the job's program, after the modules"
    )
    python: Line | None = Field(None, description="the interpreter in jobs; default: the one that submits")
    container: Line | None = Field(None, description="what stands before it: apptainer exec --nv image.sif")
    submit_from_jobs: bool = Field(True, description="a training submits the evaluation of a milestone when it is there; false: all evaluations wait from the start, each for its whole training")  # fmt: skip
    requeue: bool = Field(True, description="SLURM may start a preempted job again by itself")
    requeue_at_once: bool = Field(False, description="where SLURM preempts by SIGTERM alone (no preempt_send_user_signal): save and requeue rather than wait to be killed")  # fmt: skip
    signal_seconds: Annotated[int, Field(ge=30, le=3600)] = Field(180, description="warning before the time limit; at least twice what a checkpoint takes, and 60")  # fmt: skip
    max_timeouts: Count = Field(
        100, description="time limits that one job may run into before it counts as failed"
    )
    stuck_starts: Count = Field(
        3, description="starts in a row that may keep nothing new before a job counts as failed (no-progress)"
    )
    max_array_size: Annotated[int, Field(ge=2)] | None = Field(None, description="default: asked of scontrol")
    watchdog_minutes: Annotated[int, Field(ge=1)] = Field(
        30, description="pause between two looks of --watchdog"
    )
    node_failures: Count = Field(2, description="failures of one node after which the watchdog avoids it")

    def resources(self, job_class: JobClass) -> Resources:
        """What a job of this class asks for, with nothing left open."""
        given: dict[str, Any] = {}
        for source in (self, getattr(self, job_class)):
            given |= {
                key: getattr(source, key) for key in Request.model_fields if key in source.model_fields_set
            }
        return Resources(**{key: value for key, value in given.items() if value is not None})

    def plain(self) -> dict[str, Any]:
        """Plain data that `from_plain` reads back; what was not given is left out."""
        return self.model_dump(mode="json", exclude_unset=True)

    @classmethod
    def from_plain(cls, data: dict[str, Any]) -> Profile:
        """The profile of `plain()`."""
        return cls.model_validate(tuples(data))


@dataclass(frozen=True)
class Resources:
    """A job's request with its defaults. Units as in `Request`; time in minutes."""

    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    exclude_nodes: tuple[str, ...] = ()
    gpus: int = 1
    gpu_type: str | None = None
    gpu_memory_gb: float | None = None
    bf16: bool = True
    cpus_per_gpu: int = 4
    cpus: int = 4
    memory_per_gpu_gb: float | None = None
    memory_gb: float | None = None
    time: int = 1440
    ranks: int = 1
    pack: int = 1
    at_once: int | None = None
    sbatch: dict[str, Any] | None = None

    @property
    def cores(self) -> int:
        """CPU cores of the whole job."""
        return self.gpus * self.cpus_per_gpu if self.gpus else self.cpus

    @property
    def pack_on_gpu(self) -> int:
        """Cells that share one GPU at the same time."""
        return -(-self.pack // max(1, self.gpus))

    @property
    def memory(self) -> float | None:
        """Main memory of the whole job in GB; None: the partition's default."""
        if not self.gpus:
            return self.memory_gb
        return None if self.memory_per_gpu_gb is None else self.gpus * self.memory_per_gpu_gb


def folders() -> list[Path]:
    """Where profiles are looked for by name, each once."""
    config = Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
    found = [
        Path("benchmarks/profiles"),
        CHECKOUT / "benchmarks" / "profiles",
        config / "ltbench" / "profiles",
    ]
    unique: dict[Path, Path] = {}
    for folder in found:
        if folder.is_dir():
            unique.setdefault(folder.resolve(), folder)
    return list(unique.values())


def names() -> dict[str, list[Path]]:
    """Every profile that has a name here, with its files (more than one: nobody knows which is meant)."""
    known: dict[str, list[Path]] = {}
    for folder in folders():
        for file in sorted(folder.glob("*.yaml")):
            known.setdefault(file.stem, []).append(file)
    return known


def find(name: str) -> Path:
    """The file of `--profile NAME`. Raises UsageError for none, with the nearest name, and for two of one name."""
    if Path(name).is_file():
        return Path(name)
    known = names()
    files = known.get(name.removesuffix(".yaml"), [])
    if len(files) > 1:
        raise UsageError(
            f"two profiles are called '{name}': {' and '.join(map(str, files))}", "give the path"
        )
    if files:
        return files[0]
    near = nearest(name, known)
    hint = (
        f"did you mean '{near}'?"
        if near
        else f"there are {', '.join(sorted(known))}"
        if known
        else "there is none"
    )
    raise UsageError(
        f"there is no profile '{name}' in benchmarks/profiles/ or ~/.config/ltbench/profiles/", hint
    )


def load(name: str) -> Profile:
    """The profile that `name` means. Raises UsageError, and SpecError with every mistake as file:line:column."""
    path = find(name)
    root = read_yaml(path)
    if not isinstance(root.value, dict):
        raise SpecError([problem(root, (), "a profile is a mapping of keys")])
    try:
        profile = Profile.model_validate(tuples(root.plain()))
    except ValidationError as error:
        raise SpecError(problems_of(error, Profile, root, what="the profile")) from None
    _check(profile, root)
    return profile


def _check(profile: Profile, root: Node) -> None:
    """What no single key shows. Raises SpecError."""
    found = []
    for job_class in CLASSES:
        asked = profile.resources(job_class)
        section = getattr(profile, job_class)

        def at(key: str, section: Request = section, job_class: str = job_class) -> tuple[str, ...]:
            return (job_class, key) if key in section.model_fields_set else (key,)

        if asked.ranks > 1 and asked.gpus not in (0, asked.ranks):
            found.append(problem(root, at("ranks"), f"{asked.ranks} ranks on {asked.gpus} GPUs: each rank has one GPU", allowed=f"gpus: {asked.ranks}"))  # fmt: skip
        if asked.ranks > 1 and asked.pack > 1:
            found.append(problem(root, at("pack"), "cells of several ranks do not share a job", allowed="pack: 1 or ranks: 1"))  # fmt: skip
        if asked.cores % asked.ranks:
            found.append(problem(root, at("cpus"), f"{asked.cores} cores cannot be shared evenly by {asked.ranks} ranks"))  # fmt: skip
        if asked.time * 60 <= 2 * profile.signal_seconds:
            found.append(problem(root, at("time"), f"{asked.time} minutes leave nothing beside the warning of {profile.signal_seconds} s", allowed=f"at least {profile.signal_seconds // 30 + 1}"))  # fmt: skip
    if found:
        raise SpecError(list(dict.fromkeys(found)))


def explain() -> list[tuple[str, str]]:
    """(key, what it means) of every key, for --help and `doctor`."""
    return [(name, info.description or "") for name, info in Profile.model_fields.items()]


assert {f.name for f in fields(Resources)} == set(Request.model_fields), "a key without a default"
